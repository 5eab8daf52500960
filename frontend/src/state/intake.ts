// Files that somebody gave the page, wherever they let go of them.

import { droppedFiles } from "../parts/files";
import { tell } from "./notices";
import * as queue from "./queue";
import { view, words } from "./store";

/** Put files into the queue, and show it. */
export function takeIn(files: readonly queue.NamedFile[]): void {
  if (!files.length) return;
  view.value = "pictures";
  const passedOver = queue.add(files);
  if (passedOver) tell(words.value.passedOver(passedOver));
}

/** All of the page takes what is dropped on it or pasted: a browser would show the file instead. */
export function watchDrops(): void {
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer) void droppedFiles(event.dataTransfer).then(takeIn, tell);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) void droppedFiles(event.clipboardData).then(takeIn, tell);
  });
}
