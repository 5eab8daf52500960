// Shortcuts that hold everywhere; those of the picture are the viewer's. They are listed in panels/Help.tsx.

import * as review from "./state/review";
import { highlightNext, selectNext } from "./state/select";
import { editing, helpOpen, selected, toggleLabels, view } from "./state/store";

const EVERYWHERE: Readonly<Record<string, () => void>> = {
  "?": () => (helpOpen.value = true),
};

const PICTURES: Readonly<Record<string, () => void>> = {
  o: () => document.getElementById("input-files")?.click(),
  j: () => selectNext(1),
  k: () => selectNext(-1),
  l: toggleLabels,
  h: highlightNext,
  e: () => {
    if (selected.value?.found) editing.value = !editing.value;
  },
};

const REVIEW: Readonly<Record<string, () => void>> = {
  j: () => review.selectNext(1),
  k: () => review.selectNext(-1),
  enter: () => void review.addToTraining(),
  x: () => void review.dismiss(),
  u: () => void review.takeBack(),
  l: toggleLabels,
};

const OF_VIEWS: Readonly<Record<string, Readonly<Record<string, () => void>>>> = {
  pictures: PICTURES,
  review: REVIEW,
  cameras: { l: toggleLabels },
};

export function watchKeys(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || helpOpen.value) return;
    const does = EVERYWHERE[event.key] ?? OF_VIEWS[view.value]?.[event.key.toLowerCase()];
    // Enter on a button or a link is theirs.
    if (!does || (event.key === "Enter" && isControl(event.target))) return;
    event.preventDefault();
    does();
  });
}

function isControl(target: EventTarget | null): boolean {
  return target instanceof Element && target.closest("a, button, input, select, textarea, summary") !== null;
}

function isTyping(target: EventTarget | null): boolean {
  if (target instanceof HTMLInputElement) return target.type !== "range" && target.type !== "checkbox";
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}
