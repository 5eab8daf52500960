// Pictures and archives on their way through the server: a few uploads at a time, progress, errors one by one, retry.

import { Problem, get, getText, upload } from "../api/client";
import type { Found, Job, JobLine } from "../api/types";
import { readZip } from "../archive/zip";
import * as store from "./store";

/** A picture or an archive in the queue. */
export interface Item {
  readonly id: number;
  /** As its owner called it; with its folder, where it came in one. */
  readonly name: string;
  readonly kind: "picture" | "archive";
  readonly state: "waiting" | "sending" | "looking" | "done" | "failed";
  /** How much of it was sent, or of an archive looked at: 0 to 1. */
  readonly progress: number;
  readonly found: Found | null;
  /** What `found` was asked with; another answer is wanted when it is not the present one. */
  readonly asked: Asked | null;
  readonly problem: Problem | null;
  readonly job: Job | null;
  /** The bytes; null where this browser has none: an archive of an earlier visit. */
  readonly open: (() => Promise<Blob>) | null;
}

export interface Asked {
  readonly maxIou: number;
  readonly model: string | null;
}

const AT_A_TIME = 3;
const POLL_MS = 700;
/** A server that has too much to do, or is away, is asked again so often before the picture counts as failed. */
const TRIES = 5;
const PICTURES = /\.(jpe?g|png|webp|bmp|tiff?)$/i;
const ARCHIVES = /\.zip$/i;

const all = new Map<number, Item>();
const waiting: number[] = [];
let next = 1;
let busy = 0;
let frame = 0;

/** Put files into the queue. What is no picture and came with its folder is passed over; returns how many those were. */
export function add(files: readonly NamedFile[]): number {
  let passedOver = 0;
  let first: number | null = null;
  for (const { file, name, chosen } of files) {
    const isArchive = ARCHIVES.test(name);
    if (!chosen && !isArchive && !PICTURES.test(name)) {
      passedOver += 1;
      continue;
    }
    const id = put({ name, kind: isArchive ? "archive" : "picture", open: () => Promise.resolve(file) });
    waiting.push(id);
    if (!isArchive) first ??= id;
  }
  if (store.selected.value === null && first !== null) store.selectedId.value = first;
  publish();
  work();
  return passedOver;
}

/** A file with its name; `chosen` by hand, and not merely found in a folder. */
export interface NamedFile {
  readonly file: Blob;
  readonly name: string;
  readonly chosen: boolean;
}

export function retry(id: number): void {
  const item = all.get(id);
  if (item?.state !== "failed" || !item.open) return;
  change(id, { state: "waiting", problem: null, progress: 0 });
  waiting.push(id);
  work();
}

export function retryAll(): void {
  for (const item of all.values()) retry(item.id);
}

/** Take an item out of the list; an archive's pictures stay. */
export function remove(id: number): void {
  all.delete(id);
  publish();
}

export function clear(): void {
  for (const item of all.values()) if (item.state === "done" || item.state === "failed") all.delete(item.id);
  publish();
}

/** Ask for the selected picture anew if it was asked for with other settings than the present ones. */
export function refresh(): void {
  const item = all.get(store.selectedId.peek() ?? -1);
  if (item?.kind !== "picture" || item.state !== "done" || !item.open || isPresent(item.asked)) return;
  change(item.id, { state: "waiting" });
  waiting.unshift(item.id);
  work();
}

/** What a model finds in a picture, beside the queue: for a comparison. Raises: Problem. */
export async function lookAgain(item: Item, model: string, signal: AbortSignal): Promise<Found> {
  if (!item.open) throw new Problem(0, "");
  const query = { min_score: store.LEAST_SCORE, max_iou: store.maxIou.value, model };
  return upload<Found>("/detect", await item.open(), item.name, { query, signal });
}

/** Archives that the server is still at: those of a page that was closed or loaded anew. */
export async function takeOverJobs(): Promise<void> {
  const known = new Set([...all.values()].map((item) => item.job?.id));
  for (const job of await get<Job[]>("/jobs")) {
    if (known.has(job.id) || (job.state !== "waiting" && job.state !== "running")) continue;
    const id = put({ name: job.name, kind: "archive", open: null });
    change(id, { state: "looking", job });
    void follow(id, job);
  }
}

function present(): Asked {
  return { maxIou: store.maxIou.peek(), model: store.chosenModel.peek() ?? store.modelInUse.peek() };
}

function isPresent(asked: Asked | null): boolean {
  const now = present();
  return asked?.maxIou === now.maxIou && asked.model === now.model;
}

function put(given: Pick<Item, "name" | "kind" | "open">): number {
  const id = next++;
  const empty = { state: "waiting", progress: 0, found: null, asked: null, problem: null, job: null } as const;
  all.set(id, { id, ...empty, ...given });
  return id;
}

function change(id: number, values: Partial<Item>): void {
  const item = all.get(id);
  if (!item) return;
  all.set(id, { ...item, ...values });
  publish();
}

/** Panels hear of changes once a frame, however many there were. */
function publish(): void {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    store.items.value = [...all.values()];
  });
}

/** Begin with what waits, each in a task of its own: to open and send a file takes the browser milliseconds. */
function work(): void {
  setTimeout(() => {
    const item = busy < AT_A_TIME ? nextWaiting() : null;
    if (!item) return;
    busy += 1;
    void (item.kind === "archive" ? sendArchive(item) : look(item))
      .catch((error: unknown) => change(item.id, { state: "failed", problem: asProblem(error) }))
      .finally(() => {
        busy -= 1;
        work();
      });
    work();
  });
}

function nextWaiting(): Item | null {
  while (waiting.length) {
    const item = all.get(waiting.shift()!);
    if (item?.state === "waiting") return item;
  }
  return null;
}

async function look(item: Item): Promise<void> {
  const asked = present();
  const query = { min_score: store.LEAST_SCORE, max_iou: asked.maxIou, model: store.chosenModel.value };
  const found = await tried(item, (file, onProgress) =>
    upload<Found>("/detect", file, item.name, { query, onProgress }),
  );
  change(item.id, { state: "done", progress: 1, found, asked, problem: null });
  store.selectedId.value ??= item.id;
}

async function sendArchive(item: Item): Promise<void> {
  const asked = present();
  const query = { min_score: store.LEAST_SCORE, max_iou: asked.maxIou, model: store.chosenModel.peek() };
  const job = await tried(item, (file, onProgress) => upload<Job>("/jobs", file, item.name, { query, onProgress }));
  change(item.id, { state: "looking", progress: 0, job, asked });
  void follow(item.id, job);
}

/** Send a file, and again after a while where the server says that it is busy or does not answer. */
async function tried<T>(item: Item, send: (file: Blob, onProgress: (share: number) => void) => Promise<T>): Promise<T> {
  const file = await item.open!();
  for (let left = TRIES; ; left -= 1) {
    change(item.id, { state: "sending", progress: 0 });
    try {
      return await send(file, (share) =>
        change(item.id, { progress: share, state: share < 1 ? "sending" : "looking" }),
      );
    } catch (error) {
      const problem = asProblem(error);
      if (left <= 1 || (problem.status !== 503 && problem.status !== 0)) throw problem;
      await sleep(1000 * (problem.retryAfter ?? 1) * (1 + Math.random()));
    }
  }
}

/** Ask for a job until it is done, then take over what was found; a server that is away is waited for. */
async function follow(id: number, began: Job): Promise<void> {
  let job = began;
  while (job.state === "waiting" || job.state === "running") {
    await sleep(POLL_MS);
    if (!all.has(id)) return;
    try {
      job = await get<Job>(`/jobs/${job.id}`);
    } catch (error) {
      const problem = asProblem(error);
      if (problem.status === 0 || problem.status === 401) continue;
      change(id, { state: "failed", problem });
      return;
    }
    change(id, { job, progress: job.files ? job.looked_at / job.files : 0 });
  }
  try {
    await unpack(id, job);
  } catch (error) {
    change(id, { state: "failed", problem: asProblem(error) });
  }
}

/** The pictures of an archive become items of their own, with what was found or why not. */
async function unpack(id: number, job: Job): Promise<void> {
  const archive = all.get(id);
  if (!archive) return;
  const lines = (await getText(`/jobs/${job.id}/results`)).split("\n").filter(Boolean);
  const file = await archive.open?.();
  const entries = file ? await readZip(file) : null;
  for (const text of lines) {
    const line = JSON.parse(text) as JobLine;
    const child = put({ name: line.file, kind: "picture", open: entries?.get(line.file) ?? null });
    if ("error" in line) change(child, { state: "failed", problem: new Problem(422, line.error) });
    else change(child, { state: "done", progress: 1, found: line, asked: archive.asked });
    if (!("error" in line)) store.selectedId.value ??= child;
  }
  const problem = job.state === "failed" ? new Problem(422, job.error ?? "") : null;
  change(id, { state: problem ? "failed" : "done", progress: 1, job, problem });
}

function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem(422, error instanceof Error ? error.message : String(error));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
