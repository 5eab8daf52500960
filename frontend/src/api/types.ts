// Short names for what the server answers; the shapes themselves are made from its description, see schema.d.ts.

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Box = Schemas["Box"];
export type Found = Schemas["FoundAnswer"];
export type Job = Schemas["JobAnswer"];
export type Status = Schemas["StatusAnswer"];
export type Xyxy = Box["xyxy"];
export type Model = Schemas["ModelAnswer"];

/** One line of a job's results. */
export type JobLine = { file: string } & (Found | { error: string });

export type Review = Schemas["ReviewAnswer"];
export type Reason = Review["reasons"][number];
export type MarkedBox = Schemas["MarkedBox"];
export type Federation = Schemas["FederationAnswer"] | Schemas["AloneAnswer"];
export type Member = Schemas["FederationAnswer"];
export type Sent = Schemas["SentAnswer"];
export type Seen = Schemas["HistoryAnswer"];
export type Series = Schemas["SeriesAnswer"];
export type Stream = Schemas["StreamAnswer"];
export type CountingWanted = Required<Schemas["CountingBody"]>;
export type Counting = Schemas["CountingAnswer"];
export type Counts = Schemas["Counts"];

/** What comes with each frame of a camera. */
export type LiveFound = Found & {
  frame: number;
  skipped: number;
  /** Number of the followed object, for each detection; only where there is counting. */
  tracks?: (number | null)[];
  counts?: Counts;
  counting_error?: string;
  /** A frame that was not looked at says why instead. */
  error?: string;
};
