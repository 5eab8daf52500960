// The views of the page, in the order of their tabs. A new one is a component and a line here; its name is a key of the
// dictionaries, its id stands in the address after #.

import type { ReadonlySignal } from "@preact/signals";
import type { ComponentType } from "preact";

import { CamerasView } from "./panels/CamerasView";
import { FederationView } from "./panels/FederationView";
import { HistoryView } from "./panels/HistoryView";
import { PicturesView } from "./panels/PicturesView";
import { ReviewView } from "./panels/ReviewView";
import { openReviews } from "./state/review";
import type { en } from "./text/en";

export interface View {
  readonly id: string;
  readonly name: { [K in keyof typeof en]: (typeof en)[K] extends string ? K : never }[keyof typeof en];
  readonly panel: ComponentType;
  /** How much in it waits for somebody; shown on its tab. */
  readonly waiting?: ReadonlySignal<number>;
}

export const VIEWS: readonly View[] = [
  { id: "pictures", name: "pictures", panel: PicturesView },
  { id: "review", name: "review", panel: ReviewView, waiting: openReviews },
  { id: "cameras", name: "cameras", panel: CamerasView },
  { id: "history", name: "history", panel: HistoryView },
  { id: "federation", name: "federation", panel: FederationView },
];
