// Which picture is shown: choosing it, decoding it, and what another model finds in it.

import { batch, effect, signal } from "@preact/signals";

import { Levels } from "../viewer/levels";
import { tell } from "./notices";
import * as queue from "./queue";
import * as store from "./store";

/** The selected picture, decoded; `problem` if it cannot be shown though it may have been looked at. */
export interface ShownPicture {
  readonly levels: Levels | null;
  readonly problem: "cannotShow" | "noBytes" | null;
}

const NOTHING: ShownPicture = { levels: null, problem: null };

export const shownPicture = signal<ShownPicture>(NOTHING);

export function select(id: number | null): void {
  if (id === store.selectedId.peek()) return;
  batch(() => {
    store.selectedId.value = id;
    store.hoveredBox.value = null;
    store.chosenBox.value = null;
  });
}

/** The next picture of the queue, or with -1 the one before. */
export function selectNext(by: 1 | -1): void {
  const pictures = store.items.value.filter((item) => item.kind === "picture");
  const at = pictures.findIndex((item) => item.id === store.selectedId.value);
  const next = pictures[at < 0 ? 0 : at + by];
  if (next) select(next.id);
}

/** Highlight the next class of the picture; after the last one none. */
export function highlightNext(): void {
  const names = store.counts.value.map(([name]) => name);
  const at = names.indexOf(store.highlighted.value ?? "");
  store.highlighted.value = names[at + 1] ?? null;
}

/** Keep what is shown in step with what is chosen. */
export function watchSelection(): void {
  effect(() => {
    void store.selectedId.value;
    store.corrected.value = null;
    store.editing.value = false;
    queue.refresh();
  });
  effect(() => {
    if (store.view.value === "pictures" && store.highlighted.value && !store.counts.value.some(([name]) => name === store.highlighted.value)) {
      store.highlighted.value = null;
    }
  });
  effect(decodeSelected);
  effect(lookWithTheOther);
  effect(askAnew);
}

function decodeSelected(): (() => void) | void {
  void store.selectedId.value;
  const item = store.selected.value;
  const open = item?.open;
  if (item?.id === decodedId) return;
  decodedId = item?.id ?? null;
  let before: Levels | null = shownPicture.peek().levels;
  const put = (now: ShownPicture) => {
    shownPicture.value = now;
    // The viewer has the new one before the old one's memory goes.
    const old = before;
    before = null;
    setTimeout(() => old?.close());
  };
  if (!item || item.kind === "archive") return put(NOTHING);
  if (!open) return put({ levels: null, problem: "noBytes" });
  const mine = item.id;
  void open()
    .then((file) => Levels.decode(file))
    .then(
      (levels) => (decodedId === mine ? put({ levels, problem: null }) : levels.close()),
      () => decodedId === mine && put({ levels: null, problem: "cannotShow" }),
    );
}

let decodedId: number | null = null;

const SETTLE_MS = 250;

/** A slider that is let go, or another model: the selected picture is looked at anew. */
function askAnew(): () => void {
  void store.maxIou.value;
  void store.chosenModel.value;
  const timer = setTimeout(queue.refresh, SETTLE_MS);
  return () => clearTimeout(timer);
}

function lookWithTheOther(): (() => void) | void {
  const model = store.comparedModel.value;
  void store.maxIou.value;
  const item = store.selected.value;
  store.comparedFound.value = null;
  if (!model || item?.kind !== "picture" || !item.open) return;
  const leaving = new AbortController();
  const timer = setTimeout(() => {
    queue.lookAgain(item, model, leaving.signal).then(
      (found) => {
        if (!leaving.signal.aborted) store.comparedFound.value = found;
      },
      (error: unknown) => leaving.signal.aborted || tell(error),
    );
  }, SETTLE_MS);
  return () => {
    clearTimeout(timer);
    leaving.abort();
  };
}
