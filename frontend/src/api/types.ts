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
