// Shortcuts that hold everywhere; those of the picture are the viewer's. They are listed in panels/Help.tsx.

import { highlightNext, selectNext } from "./state/select";
import { editing, helpOpen, selected, showLabels, view } from "./state/store";

const EVERYWHERE: Readonly<Record<string, () => void>> = {
  "?": () => (helpOpen.value = true),
};

const PICTURES: Readonly<Record<string, () => void>> = {
  o: () => document.getElementById("input-files")?.click(),
  j: () => selectNext(1),
  k: () => selectNext(-1),
  l: () => (showLabels.value = !showLabels.value),
  h: highlightNext,
  e: () => {
    if (selected.value?.found) editing.value = !editing.value;
  },
};

export function watchKeys(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || helpOpen.value) return;
    const does = EVERYWHERE[event.key] ?? (view.value === "pictures" ? PICTURES[event.key.toLowerCase()] : undefined);
    if (!does) return;
    event.preventDefault();
    does();
  });
}

function isTyping(target: EventTarget | null): boolean {
  if (target instanceof HTMLInputElement) return target.type !== "range" && target.type !== "checkbox";
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}
