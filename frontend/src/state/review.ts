// Pictures on which the model was unsure: which are shown, what somebody corrected in them, and what was decided.

import { batch, computed, effect, signal } from "@preact/signals";

import { Problem, address, get, getBlob, send, upload } from "../api/client";
import type { Federation, MarkedBox, Reason, Review } from "../api/types";
import { Levels } from "../viewer/levels";
import type { Shape } from "../viewer/viewer";
import { between, kept } from "./kept";
import { tell } from "./notices";
import { onEvent } from "./server";
import { chosenBox, connection, hoveredBox, mayChange, status, view, words } from "./store";

export type ReviewFilter = "open" | "added" | "dismissed" | "all";

/** A picture for review that is decoded; its boxes are shown with it, and not before. */
export interface ShownReview {
  readonly entry: Review;
  readonly levels: Levels;
}

const MOST_OPEN = 1000;
const PAGE = 100;
const DRAFT_MS = 500;

export const reviewFilter = signal<ReviewFilter>("open");
export const reviewReason = signal<Reason | "">("");
export const reviewSource = signal("");
/** Boxes of the model below this score are left out where nobody has corrected anything yet. */
export const reviewScore = kept("reviewScore", 0.25, between(0.05, 0.95));

const loaded = signal<readonly Review[]>([]);
export const moreReviews = signal(false);
export const openReviews = signal(0);
/** Pictures that were added and that the node trains on; null at a server without a node. */
export const corrections = signal<number | null>(null);

export const reviewId = signal<string | null>(null);
export const shownReview = signal<ShownReview | null>(null);
export const reviewProblem = signal<unknown>(null);
/** Boxes as they were corrected in this page, by the picture's id. */
const drafts = signal<ReadonlyMap<string, readonly Shape[]>>(new Map());
export const lastDecided = signal<{ readonly id: string; readonly as: "added" | "dismissed" } | null>(null);
/** Changes that the server has not answered. */
const deciding = signal(0);

export const reviews = computed(() =>
  loaded.value.filter(
    ({ reasons, source }) =>
      (!reviewReason.value || reasons.includes(reviewReason.value)) && (!reviewSource.value || source === reviewSource.value),
  ),
);
export const reviewSources = computed(() => [...new Set(loaded.value.map(({ source }) => source))].sort());
export const reviewed = computed(() => loaded.value.find(({ id }) => id === reviewId.value) ?? null);

export const isDraft = computed(() => {
  const entry = shownReview.value?.entry;
  return entry !== undefined && (drafts.value.has(entry.id) || entry.boxes !== null);
});

/** While the next picture is on its way, nothing can be done to the one before it. */
export const isPresent = computed(() => shownReview.value !== null && shownReview.value.entry.id === reviewId.value);

/** Boxes of the picture that is shown: as somebody corrected them, else the model's. */
export const reviewShapes = computed<readonly Shape[]>(() => {
  const entry = shownReview.value?.entry;
  if (!entry || !isPresent.value) return [];
  const draft = drafts.value.get(entry.id);
  if (draft) return draft;
  if (entry.boxes) {
    return entry.boxes.map((box, id) => ({
      id,
      name: box.class,
      classId: Math.max(entry.classes.indexOf(box.class), 0),
      score: null,
      xyxy: box.xyxy,
    }));
  }
  return asFound(entry);
});

/** What the model found in a picture, from the score of the slider on. */
function asFound(entry: Review): readonly Shape[] {
  const sureFrom = status.value?.sure_from ?? 0;
  return entry.detections.flatMap((box, id) =>
    box.score >= reviewScore.value
      ? [{ id, name: box.class, classId: box.class_id, score: box.score, xyxy: box.xyxy, unsure: box.score < sureFrom }]
      : [],
  );
}

export const mayDecide = computed(() => mayChange.value && isPresent.value && deciding.value === 0);
export const mayCorrect = computed(() => mayChange.value && shownReview.value?.entry.state === "open");

/** Keep the list in step with the server while somebody looks at it, and the number that waits at all times. */
export function watchReview(): void {
  onEvent(({ event }) => {
    if (event === "review") void load();
    if (event === "federation") void loadCorrections();
  });
  effect(() => {
    void reviewFilter.value;
    if (connection.value === "up") void load();
  });
  effect(() => {
    if (view.value === "review" && !reviewed.value && reviews.value[0]) reviewId.value = reviews.value[0].id;
  });
  effect(decodeReviewed);
  addEventListener("pagehide", () => void saveDraft(true));
}

/** Choose a picture of the list. */
export function selectReview(id: string): void {
  void saveDraft();
  batch(() => {
    reviewId.value = id;
    chosenBox.value = null;
    hoveredBox.value = null;
  });
}

/** The next picture of the list, or with -1 the one before; the keyboard goes to the picture. */
export function selectNext(by: 1 | -1): void {
  const list = reviews.value;
  const at = list.findIndex(({ id }) => id === reviewId.value);
  const next = list[at < 0 ? 0 : at + by];
  if (next) selectReview(next.id);
  focusPicture();
}

export function focusPicture(): void {
  document.querySelector<HTMLElement>(".viewer")?.focus({ preventScroll: true });
}

/** Boxes were corrected: shown at once, kept at the server as a draft soon. */
export function correct(shapes: readonly Shape[]): void {
  const entry = shownReview.value?.entry;
  if (!entry || !isPresent.value) return;
  drafts.value = new Map(drafts.value).set(entry.id, shapes);
  clearTimeout(saving);
  saving = setTimeout(() => void saveDraft(), DRAFT_MS);
  unsaved = entry.id;
}

/** Begin again with what the model found. */
export function discardDraft(): void {
  const shown = shownReview.value;
  if (!shown) return;
  correct(asFound(shown.entry));
}

let saving: ReturnType<typeof setTimeout> | undefined;
let unsaved: string | null = null;

async function saveDraft(leaving = false): Promise<void> {
  const id = unsaved;
  const draft = id === null ? undefined : drafts.peek().get(id);
  unsaved = null;
  clearTimeout(saving);
  if (id === null || !draft) return;
  if (leaving) {
    // A page that is closed may still send a small message.
    const headers = { "x-manyeyes": "1", "content-type": "application/json" };
    void fetch(address(`/review/${id}/boxes`), { method: "PUT", keepalive: true, headers, body: JSON.stringify({ boxes: marked(draft) }) });
    return;
  }
  await send("PUT", `/review/${id}/boxes`, { boxes: marked(draft) }).catch((error: unknown) => {
    unsaved ??= id;
    tell(error);
  });
}

/** Put the picture with the boxes that are shown among those the site trains on, and go on with the next. */
export async function addToTraining(): Promise<void> {
  const shown = shownReview.value;
  if (!shown || !mayCorrect.value || !mayDecide.value) return;
  await decide(shown.entry, "added", () => send("POST", `/review/${shown.entry.id}/add`, { boxes: marked(reviewShapes.value) }));
}

/** The picture needs no correction; on with the next. */
export async function dismiss(): Promise<void> {
  const shown = shownReview.value;
  if (!shown || !mayDecide.value || shown.entry.state === "dismissed") return;
  await decide(shown.entry, "dismissed", () => send("POST", `/review/${shown.entry.id}/dismiss`));
}

/** Take the last decision back, and show that picture again. */
export async function takeBack(): Promise<void> {
  const last = lastDecided.value;
  if (last) await reopen(last.id);
}

/** Open a picture again; it is out of the training pictures until it is added again. */
export async function reopen(id: string): Promise<void> {
  await changing(async () => {
    await send("POST", `/review/${id}/reopen`);
    if (lastDecided.value?.id === id) lastDecided.value = null;
    if (reviewFilter.value !== "all") reviewFilter.value = "open";
    await load();
    selectReview(id);
    focusPicture();
  });
}

/** Forget a picture, also as a training picture. */
export async function forget(id: string): Promise<void> {
  await changing(async () => {
    await send("DELETE", `/review/${id}`);
    forgetDraft(id);
    goOn(id);
    await load();
  });
}

/** Have a picture reviewed that the model was sure of. Raises: Problem. */
export async function askForReview(file: Blob, name: string): Promise<void> {
  const entry = await upload<Review>("/review", file, name, { query: { min_score: 0.1, name } });
  tell(entry.state === "open" ? words.value.reviewAsked(name) : words.value.reviewKnown(name));
  await load();
}

/** Older ones than those of the list. */
export async function loadMore(): Promise<void> {
  const last = loaded.value[loaded.value.length - 1];
  if (!last) return;
  try {
    const older = await get<Review[]>("/review", { state: reviewFilter.value, most: PAGE, before: last.id });
    loaded.value = [...loaded.value, ...older];
    moreReviews.value = older.length === PAGE;
  } catch (error) {
    tell(error);
  }
}

async function decide(entry: Review, as: "added" | "dismissed", ask: () => Promise<unknown>): Promise<void> {
  await changing(async () => {
    unsaved = null;
    clearTimeout(saving);
    await ask();
    forgetDraft(entry.id);
    lastDecided.value = { id: entry.id, as };
    tell(as === "added" ? words.value.reviewAdded : words.value.reviewDismissed);
    goOn(entry.id);
    await load();
    focusPicture();
  });
}

/** One change after the other. */
async function changing(does: () => Promise<void>): Promise<void> {
  const before = underway;
  deciding.value += 1;
  underway = before.then(does).catch(tell);
  await underway;
  deciding.value -= 1;
}

let underway = Promise.resolve();

function goOn(from: string): void {
  const list = reviews.value;
  const at = list.findIndex(({ id }) => id === from);
  const next = list[at + 1] ?? list[at - 1];
  if (next) selectReview(next.id);
  else reviewId.value = null;
}

function forgetDraft(id: string): void {
  const rest = new Map(drafts.value);
  rest.delete(id);
  drafts.value = rest;
}

function marked(shapes: readonly Shape[]): MarkedBox[] {
  return shapes.map((shape) => ({ class: shape.name, xyxy: [...shape.xyxy] }));
}

async function load(): Promise<void> {
  const filter = reviewFilter.peek();
  try {
    const open = await get<Review[]>("/review", { state: "open", most: MOST_OPEN });
    const most = Math.max(PAGE, loaded.peek().length);
    const list = filter === "open" ? open : await get<Review[]>("/review", { state: filter, most });
    if (filter !== reviewFilter.peek()) return;
    batch(() => {
      openReviews.value = open.length;
      loaded.value = list;
      moreReviews.value = filter !== "open" && list.length === most;
    });
    await loadCorrections();
  } catch (error) {
    tellUnlessAway(error);
  }
}

async function loadCorrections(): Promise<void> {
  try {
    const federation = await get<Federation>("/federation");
    corrections.value = federation.member ? federation.corrections : null;
  } catch (error) {
    tellUnlessAway(error);
  }
}

/** That the server is away stands at the head of the page. */
function tellUnlessAway(error: unknown): void {
  if (!(error instanceof Problem && (error.status === 0 || error.status === 401))) tell(error);
}

let decoding: string | null = null;

function decodeReviewed(): void {
  const entry = view.value === "review" ? reviewed.value : null;
  const shown = shownReview.peek();
  if (entry && shown?.entry.id === entry.id) {
    if (shown.entry !== entry) shownReview.value = { entry, levels: shown.levels };
    return;
  }
  if (!entry) {
    decoding = null;
    put(null);
    return;
  }
  if (decoding === entry.id) return;
  decoding = entry.id;
  void getBlob(`/review/${entry.id}/picture`)
    .then((file) => Levels.decode(file))
    .then(
      (levels) => {
        const now = reviewed.peek();
        if (decoding !== entry.id || now?.id !== entry.id) return levels.close();
        reviewProblem.value = null;
        put({ entry: now, levels });
      },
      (error: unknown) => {
        if (decoding !== entry.id) return;
        batch(() => {
          put(null);
          reviewProblem.value = error;
        });
      },
    )
    .finally(() => {
      if (decoding === entry.id) decoding = null;
    });
}

function put(now: ShownReview | null): void {
  const before = shownReview.peek()?.levels;
  shownReview.value = now;
  // The viewer has the new one before the old one's memory goes.
  if (before && before !== now?.levels) setTimeout(() => before.close());
}
