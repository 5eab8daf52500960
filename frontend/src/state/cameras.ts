// Cameras: which there are, the one that is watched, what is seen, and what is counted at lines and in zones.

import { batch, computed, effect, signal } from "@preact/signals";

import { Problem, get, send } from "../api/client";
import type { Counting, CountingWanted, Counts, LiveFound, Stream } from "../api/types";
import { Levels } from "../viewer/levels";
import type { Point } from "../viewer/geometry";
import type { Mark, Pen } from "../viewer/marks";
import type { Shape } from "../viewer/viewer";
import { kept } from "./kept";
import { watchOwnCamera, watchStream, type LiveProblem, type OwnCamera, type Sink } from "./live";
import { tell } from "./notices";
import { askForReview } from "./review";
import { onEvent } from "./server";
import { LEAST_SCORE, connection, countsOf, maxIou, passes, view, words } from "./store";

/** A camera of the server by its name, or the browser's own. */
export type Watched = { readonly kind: "server"; readonly name: string } | { readonly kind: "own" };

export interface LiveFrame {
  readonly levels: Levels;
  readonly found: LiveFound;
  readonly picture: Blob;
}

/** How many of each class were seen in a second. */
export interface Sample {
  readonly time: number;
  readonly counts: ReadonlyMap<string, number>;
}

const NOTHING: CountingWanted = { lines: [], zones: [] };
const MOST_SAMPLES = 300;
const ASK_MS = 3000;
/** So near to a zone's first corner, in shares of the picture, a point closes it. */
const CLOSE = 0.02;

export const streams = signal<readonly Stream[] | null>(null);
export const watched = signal<Watched | null>(null);
export const liveFrame = signal<LiveFrame | null>(null);
export const liveProblem = signal<LiveProblem | null>(null);
export const samples = signal<readonly Sample[]>([]);
/** Frames a second that are shown here. */
export const shownRate = signal(0);

/** Lines and zones of the camera that is watched. */
export const wanted = signal<CountingWanted>(NOTHING);
export const countedSince = signal<number | null>(null);
const counted = signal<Counts | null>(null);
export const countingProblem = computed(() => liveFrame.value?.found.counting_error ?? null);
/** Of the browser's own camera; a server's camera has its own at the server. */
const ownWanted = kept<CountingWanted>("counting", NOTHING, isCounting);
export const pen = signal<Pen | null>(null);

export const liveShapes = computed<readonly Shape[]>(() => {
  const found = liveFrame.value?.found;
  if (!found) return [];
  return found.detections.flatMap((box, at) =>
    // Who is followed keeps its id from frame to frame.
    passes(box)
      ? [{ id: found.tracks?.[at] ?? -1 - at, name: box.class, classId: box.class_id, score: box.score, xyxy: box.xyxy }]
      : [],
  );
});

export const liveCounts = computed<Counts>(() => liveFrame.value?.found.counts ?? counted.value ?? { lines: {}, zones: {} });

/** Lines and zones as they are drawn over the picture. */
export const marks = computed<readonly Mark[]>(() => {
  const { lines, zones } = wanted.value;
  const counts = liveCounts.value;
  return [
    ...lines.map((line): Mark => {
      const through = Object.values(counts.lines[line.name] ?? {});
      const text = `↓${sum(through.map((one) => one.in))} ↑${sum(through.map((one) => one.out))}`;
      return { name: line.name, kind: "line", points: [pointOf(line.from), pointOf(line.to)], text };
    }),
    ...zones.map((zone): Mark => {
      const inside = Object.values(counts.zones[zone.name] ?? {});
      return { name: zone.name, kind: "zone", points: zone.points.map(pointOf), text: String(sum(inside.map((one) => one.now))) };
    }),
  ];
});

let close: (() => void) | null = null;
let own: OwnCamera | null = null;
let rate: number[] = [];

/** Keep the list in step with the server, and watch only while somebody looks. */
export function watchCameras(): void {
  let timer: ReturnType<typeof setInterval> | undefined;
  effect(() => {
    clearInterval(timer);
    if (view.value !== "cameras" || connection.value !== "up") return;
    void loadStreams();
    // Their figures change all the time, and nobody tells of it.
    timer = setInterval(() => void loadStreams(), ASK_MS);
  });
  onEvent(({ event }) => {
    if (event !== "streams" || view.peek() !== "cameras") return;
    void loadStreams();
    void loadCounting();
  });
  effect(() => {
    const now = view.value === "cameras" ? watched.value : null;
    end();
    if (now) begin(now);
  });
  effect(() => {
    const asked = { min_score: LEAST_SCORE, max_iou: maxIou.value, counting: ownWanted.value };
    own?.ask(asked);
  });
}

export function watch(camera: Watched | null): void {
  const before = watched.peek();
  const same = before?.kind === camera?.kind && (camera?.kind !== "server" || (before?.kind === "server" && before.name === camera.name));
  if (!same) watched.value = camera;
}

/** Raises: Problem, in the server's words: why it is no camera, or refused. */
export async function addStream(name: string, source: string): Promise<void> {
  streams.value = await send<Stream[]>("POST", "/streams", { name, source });
  watch({ kind: "server", name });
}

export async function removeStream(name: string): Promise<void> {
  try {
    await send("DELETE", `/streams/${encodeURIComponent(name)}`);
    const now = watched.peek();
    if (now?.kind === "server" && now.name === name) watched.value = null;
    await loadStreams();
  } catch (error) {
    tell(error);
  }
}

/** Have the frame that is shown now reviewed. */
export async function reviewFrame(): Promise<void> {
  const frame = liveFrame.value;
  const now = watched.value;
  if (!frame || !now) return;
  const name = `${now.kind === "own" ? words.value.ownCamera : now.name} ${new Date().toLocaleTimeString()}`;
  await askForReview(frame.picture, name).catch(tell);
}

// -- lines and zones ---------------------------------------------------------------------------------------------------

export function draw(kind: Pen["kind"] | null): void {
  pen.value = kind && { kind, points: [] };
}

/** The next point of what is being drawn; null puts the pen down. */
export function setPoint(at: Point | null): void {
  const now = pen.value;
  if (!now || !at) {
    pen.value = null;
    return;
  }
  const first = now.points[0];
  const closes = now.kind === "zone" && now.points.length >= 3 && first && Math.hypot(at.x - first.x, at.y - first.y) < CLOSE;
  const points = closes ? now.points : [...now.points, at];
  if (closes || (now.kind === "line" && points.length === 2)) finish({ kind: now.kind, points });
  else pen.value = { kind: now.kind, points };
}

/** Close the zone that is being drawn. */
export function finishZone(): void {
  if (pen.value?.kind === "zone" && pen.value.points.length >= 3) finish(pen.value);
}

function finish({ kind, points }: Pen): void {
  pen.value = null;
  const { lines, zones } = wanted.value;
  const [from, to] = points.map(({ x, y }): [number, number] => [x, y]);
  if (kind === "line" && from && to) {
    void want({ zones, lines: [...lines, { name: freeName(words.value.line, lines), from, to }] });
  } else {
    void want({ lines, zones: [...zones, { name: freeName(words.value.zone, zones), points: points.map(({ x, y }) => [x, y]) }] });
  }
}

/** Call a line or a zone something else; a name that is taken or empty is not taken. */
export function rename(kind: Mark["kind"], before: string, now: string): void {
  const all = kind === "line" ? wanted.value.lines : wanted.value.zones;
  if (!now || all.some(({ name }) => name === now)) return;
  const renamed = <T extends { name: string }>(those: readonly T[]) => those.map((one) => (one.name === before ? { ...one, name: now } : one));
  const { lines, zones } = wanted.value;
  void want(kind === "line" ? { lines: renamed(lines), zones } : { lines, zones: renamed(zones) });
}

export function removeMark(kind: Mark["kind"], gone: string): void {
  const { lines, zones } = wanted.value;
  const others = <T extends { name: string }>(those: readonly T[]) => those.filter(({ name }) => name !== gone);
  void want(kind === "line" ? { lines: others(lines), zones } : { lines, zones: others(zones) });
}

/** Count from nought again. */
export async function resetCounts(): Promise<void> {
  const now = watched.value;
  if (now?.kind === "own") {
    ownWanted.value = { ...ownWanted.value };
    countedSince.value = Date.now() / 1000;
    return;
  }
  if (!now) return;
  try {
    take(await send<Counting>("POST", `/streams/${encodeURIComponent(now.name)}/counting/reset`));
  } catch (error) {
    tell(error);
  }
}

async function want(those: CountingWanted): Promise<void> {
  const now = watched.value;
  if (now?.kind === "own") {
    ownWanted.value = wanted.value = those;
    countedSince.value = Date.now() / 1000;
    return;
  }
  if (!now) return;
  // Shown at once: what is drawn next is added to it, whether the server has answered or not.
  wanted.value = those;
  waiting = { name: now.name, those };
  sending ??= sendWanted();
  await sending;
}

/** The newest change that is not at the server; one is sent after the other, and those between are passed over. */
let waiting: { name: string; those: CountingWanted } | null = null;
let sending: Promise<void> | null = null;

async function sendWanted(): Promise<void> {
  while (waiting) {
    const { name, those } = waiting;
    waiting = null;
    try {
      const counting = await send<Counting>("PUT", `/streams/${encodeURIComponent(name)}/counting`, those);
      if (!waiting && isWatched(name)) take(counting);
    } catch (error) {
      tell(error);
    }
  }
  sending = null;
  await loadCounting();
}

function isWatched(name: string): boolean {
  const now = watched.peek();
  return now?.kind === "server" && now.name === name;
}

function take({ lines = [], zones = [], counts, since }: Counting): void {
  batch(() => {
    wanted.value = { lines, zones };
    counted.value = counts;
    countedSince.value = since;
  });
}

async function loadCounting(): Promise<void> {
  const now = watched.peek();
  if (now?.kind !== "server") return;
  try {
    const counting = await get<Counting>(`/streams/${encodeURIComponent(now.name)}/counting`);
    if (watched.peek() === now && !sending) take(counting);
  } catch (error) {
    if (!isAway(error)) tell(error);
  }
}

// -- frames ------------------------------------------------------------------------------------------------------------

function begin(camera: Watched): void {
  const sink: Sink = {
    frame: (found, picture) => (watched.peek() === camera ? show(found, picture) : Promise.resolve()),
    problem: (reason) => {
      if (watched.peek() === camera) liveProblem.value = reason;
    },
  };
  if (camera.kind === "server") {
    void loadCounting();
    close = watchStream(camera.name, sink);
    return;
  }
  wanted.value = ownWanted.peek();
  countedSince.value = wanted.peek().lines.length + wanted.peek().zones.length ? Date.now() / 1000 : null;
  own = watchOwnCamera({ min_score: LEAST_SCORE, max_iou: maxIou.peek(), counting: ownWanted.peek() }, sink);
  close = () => own?.close();
}

function end(): void {
  close?.();
  close = own = null;
  rate = [];
  const before = liveFrame.peek();
  batch(() => {
    liveFrame.value = null;
    liveProblem.value = null;
    samples.value = [];
    shownRate.value = 0;
    wanted.value = NOTHING;
    counted.value = null;
    countedSince.value = null;
    pen.value = null;
  });
  if (before) setTimeout(() => before.levels.close());
}

async function show(found: LiveFound, picture: Blob): Promise<void> {
  const camera = watched.peek();
  const bitmap = await createImageBitmap(picture).catch(() => null);
  if (!bitmap) return;
  if (watched.peek() !== camera || view.peek() !== "cameras") {
    bitmap.close();
    return;
  }
  const before = liveFrame.peek();
  const now = Date.now();
  rate = [...rate.filter((time) => now - time < 3000), now];
  batch(() => {
    liveFrame.value = { levels: Levels.of(bitmap), found, picture };
    shownRate.value = rate.length > 1 ? (1000 * (rate.length - 1)) / Math.max(now - rate[0]!, 1) : 0;
    sample(now / 1000);
  });
  // The viewer has the new one before the old one's memory goes.
  if (before) setTimeout(() => before.levels.close());
}

/** Of each second the most that were seen at a time: a frame in which one is missed makes no dent. */
function sample(time: number): void {
  const second = Math.floor(time);
  const counts = new Map(countsOf(liveShapes.peek()));
  const last = samples.peek()[samples.peek().length - 1];
  if (last?.time !== second) {
    samples.value = [...samples.peek(), { time: second, counts }].slice(-MOST_SAMPLES);
    return;
  }
  const most = new Map(last.counts);
  for (const [name, number] of counts) most.set(name, Math.max(number, most.get(name) ?? 0));
  samples.value = [...samples.peek().slice(0, -1), { time: second, counts: most }];
}

async function loadStreams(): Promise<void> {
  try {
    streams.value = await get<Stream[]>("/streams");
    // The first look at this view shows the first camera.
    const first = streams.value[0];
    if (!watched.peek() && first && !looked) watch({ kind: "server", name: first.name });
    looked = true;
  } catch (error) {
    if (!isAway(error)) tell(error);
  }
}

let looked = false;

function isAway(error: unknown): boolean {
  return error instanceof Problem && (error.status === 0 || error.status === 401);
}

function freeName(word: string, taken: readonly { name: string }[]): string {
  for (let number = 1; ; number += 1) {
    const name = `${word} ${number}`;
    if (!taken.some((one) => one.name === name)) return name;
  }
}

function pointOf([x, y]: readonly [number, number] | readonly number[]): Point {
  return { x: x ?? 0, y: y ?? 0 };
}

function sum(values: readonly number[]): number {
  return values.reduce((all, value) => all + value, 0);
}

function isCounting(value: unknown): value is CountingWanted {
  const { lines, zones } = (value ?? {}) as Partial<CountingWanted>;
  return Array.isArray(lines) && Array.isArray(zones);
}
