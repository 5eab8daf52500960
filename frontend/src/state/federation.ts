// This site's node in its federation: what it is at, what left the site, and taking part or not.

import { effect, signal } from "@preact/signals";

import { Problem, get, send } from "../api/client";
import type { Federation, Member, Sent } from "../api/types";
import { tell } from "./notices";
import { onEvent } from "./server";
import { connection, view } from "./store";

const MOST_SENT = 200;

export type Rounds = Member["rounds_done"];

/** null until the server has said whether it belongs to a node. */
export const federation = signal<Federation | null>(null);
export const sent = signal<readonly Sent[]>([]);

/** Keep it in step with the server while somebody looks at it. */
export function watchFederation(): void {
  const isShown = () => view.peek() === "federation" || connection.peek() === "none";
  effect(() => {
    if ((view.value === "federation" && connection.value === "up") || connection.value === "none") void load();
  });
  onEvent(({ event }) => {
    if (event === "federation" && isShown()) void load();
  });
}

export async function takePart(does: boolean): Promise<void> {
  try {
    await send("POST", does ? "/federation/resume" : "/federation/pause");
    await load();
  } catch (error) {
    tell(error);
  }
}

async function load(): Promise<void> {
  try {
    const now = await get<Federation>("/federation");
    const left = now.member ? await get<Sent[]>("/federation/sent", { most: MOST_SENT }) : [];
    federation.value = now;
    sent.value = left;
  } catch (error) {
    // That the server is away, or needs a password, is said at the head of the page.
    if (!(error instanceof Problem && (error.status === 0 || error.status === 401))) tell(error);
  }
}

/** Those of the newest run; one that is begun anew under its old name begins with its first round again. */
export function ofLastRun(rounds: Rounds): Rounds {
  const begins = rounds.findLastIndex(({ run, round }, at) => at > 0 && (run !== rounds[at - 1]!.run || round <= rounds[at - 1]!.round));
  return rounds.slice(Math.max(begins, 0));
}
