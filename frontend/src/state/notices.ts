// Short messages at the edge of the page: what went well goes away by itself, what went wrong stays until it is closed.

import { Problem } from "../api/client";
import { notices, words, type Notice } from "./store";

const STAY_MS = 6000;
let next = 1;

/** Say something good, or what an error says. */
export function tell(what: unknown): void {
  const bad = what instanceof Error;
  const notice: Notice = { id: next++, kind: bad ? "bad" : "good", text: bad ? textOf(what) : String(what) };
  notices.value = [...notices.value.filter((other) => other.text !== notice.text), notice].slice(-4);
  if (!bad) setTimeout(() => close(notice.id), STAY_MS);
}

export function close(id: number): void {
  notices.value = notices.value.filter((notice) => notice.id !== id);
}

/** An error in words: the server's own, or that it cannot be reached. */
export function textOf(error: unknown): string {
  if (!(error instanceof Problem)) return error instanceof Error ? error.message : String(error);
  if (error.status === 0) return words.value.unreachable;
  return error.cure ? `${error.reason}. ${error.cure}` : error.reason;
}
