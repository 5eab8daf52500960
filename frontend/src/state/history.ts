// What was found and when, by class, source and time; of the pictures nothing is kept.

import { computed, effect, signal } from "@preact/signals";

import { Problem, get, send } from "../api/client";
import type { Seen, Series } from "../api/types";
import { tell } from "./notices";
import { onEvent } from "./server";
import { connection, status, view, words } from "./store";

export const SPANS = ["1", "24", "168", "720", "own"] as const;
export type Span = (typeof SPANS)[number];

const PAGE = 100;
const MOST = 1000;
const BINS = 96;
const HOUR = 3600;
/** The server counts no further back. */
const MOST_HOURS = 24 * 366;
/** Cameras find something all the time: the list follows them so often. */
const SETTLE_MS = 1500;

export const historyClass = signal("");
export const historySource = signal("");
export const historySpan = signal<Span>("24");
/** As the fields give them, in this browser's time zone; empty for no end. */
export const historyFrom = signal("");
export const historyUntil = signal("");

export const seen = signal<readonly Seen[]>([]);
export const moreSeen = signal(false);
export const historySeries = signal<Series | null>(null);
const metSources = signal<ReadonlySet<string>>(new Set());

export const historySources = computed(() => [...metSources.value].sort());
export const historyClasses = computed(() => {
  const names = new Set([...(status.value?.classes ?? []), ...Object.keys(historySeries.value?.classes ?? {})]);
  return [...names].sort((a, b) => a.localeCompare(b));
});

/** Objects of each class over time, of the chosen class alone if one is chosen; the most frequent first. */
export const historyCounts = computed(() => {
  const classes = Object.entries(historySeries.value?.classes ?? {});
  return classes
    .filter(([name]) => !historyClass.value || name === historyClass.value)
    .map(([name, values]) => ({ name, values, total: values.reduce((sum, value) => sum + value, 0) }))
    .filter(({ total }) => total > 0)
    .sort((a, b) => b.total - a.total || a.name.localeCompare(b.name));
});

/** Keep list and curve in step with the choices, and with the server while somebody looks. */
export function watchHistory(): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  effect(() => {
    void [historyClass.value, historySource.value, historySpan.value, historyFrom.value, historyUntil.value];
    if (view.value === "history" && connection.value === "up") void load(PAGE);
  });
  onEvent(({ event }) => {
    if (event !== "history" || view.peek() !== "history") return;
    timer ??= setTimeout(() => {
      timer = undefined;
      void load(Math.min(Math.max(seen.peek().length, PAGE), MOST));
    }, SETTLE_MS);
  });
}

export async function loadMoreSeen(): Promise<void> {
  const last = seen.value[seen.value.length - 1];
  if (!last) return;
  try {
    const older = await get<Seen[]>("/history", { ...choices(), most: PAGE, before: last.id });
    seen.value = [...seen.value, ...older];
    moreSeen.value = older.length === PAGE;
  } catch (error) {
    tell(error);
  }
}

export async function forgetSeen(id: number): Promise<void> {
  try {
    await send("DELETE", `/history/${id}`);
    await load(Math.max(seen.value.length, PAGE));
  } catch (error) {
    tell(error);
  }
}

/** Forget all that the choices show, on further pages too. */
export async function forgetShown(): Promise<void> {
  const { since, until, source, class: name } = choices();
  const before = until ?? Date.now() / 1000 + 1;
  try {
    const { deleted } = await send<{ deleted: number }>("DELETE", "/history", undefined, { before, since, source, class: name });
    tell(words.value.historyDeleted(deleted));
    await load(PAGE);
  } catch (error) {
    tell(error);
  }
}

function choices() {
  const { since, until } = range();
  return { since, until, source: historySource.peek() || null, class: historyClass.peek() || null };
}

/** Seconds since 1970; null where there is no end. */
function range(): { since: number | null; until: number | null } {
  const span = historySpan.peek();
  if (span !== "own") return { since: Date.now() / 1000 - HOUR * Number(span), until: null };
  return { since: secondsOf(historyFrom.peek()), until: secondsOf(historyUntil.peek()) };
}

function secondsOf(text: string): number | null {
  const time = new Date(text).getTime();
  return Number.isNaN(time) ? null : time / 1000;
}

let asked = 0;

async function load(most: number): Promise<void> {
  const mine = ++asked;
  const wanted = choices();
  const now = Date.now() / 1000;
  try {
    const list = await get<Seen[]>("/history", { ...wanted, most });
    const oldest = wanted.since ?? list[list.length - 1]?.time ?? now - 24 * HOUR;
    const hours = Math.min(Math.max((now - oldest) / HOUR, 0.01), MOST_HOURS);
    const series = await get<Series>("/history/series", { hours, bins: BINS, source: wanted.source });
    if (mine !== asked) return;
    seen.value = list;
    moreSeen.value = list.length === most;
    historySeries.value = cut(series, wanted.until);
    metSources.value = new Set([...metSources.value, ...list.map(({ source }) => source)]);
  } catch (error) {
    // That the server is away, or needs a password, is said at the head of the page.
    if (!(error instanceof Problem && (error.status === 0 || error.status === 401))) tell(error);
  }
}

/** Without the spans that begin after a time. */
function cut(series: Series, until: number | null): Series {
  if (until === null) return series;
  const bins = Math.max(Math.ceil((until - series.from) / series.step), 0);
  const classes = Object.fromEntries(Object.entries(series.classes).map(([name, values]) => [name, values.slice(0, bins)]));
  return { ...series, classes };
}
