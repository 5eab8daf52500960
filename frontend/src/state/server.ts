// Whether the server answers, who one is there, and which models it has; it is asked until it answers, and told of changes.

import { effect } from "@preact/signals";

import { Problem, get, send, socketAddress } from "../api/client";
import type { Model, Status } from "../api/types";
import { tell } from "./notices";
import * as queue from "./queue";
import * as store from "./store";

const ASK_MS = 5000;
const ASK_LOST_MS = 1500;
const REOPEN_MS = 500;

/** What the server tells without being asked: `event` says of which part it has news. */
export interface ServerEvent {
  readonly event: "hello" | "model" | "review" | "federation" | "jobs" | "streams" | "history";
}

const listeners = new Set<(event: ServerEvent) => void>();
let socket: WebSocket | null = null;

/** Call a function with each event; returns what ends it. */
export function onEvent(listener: (event: ServerEvent) => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Ask for the state now and from now on. */
export function watchServer(): void {
  onEvent(({ event }) => {
    if (event === "model") void loadStatus();
  });
  // Another model is in use: the selected picture is looked at anew, without anybody asking.
  effect(() => {
    if (store.modelInUse.value) queue.refresh();
  });
  const again = async () => {
    await loadStatus();
    setTimeout(() => void again(), store.connection.peek() === "lost" ? ASK_LOST_MS : ASK_MS);
  };
  void again();
}

/** Log in with a password. Raises: Problem, with the server's words for a wrong one. */
export async function logIn(password: string): Promise<void> {
  await send("POST", "/login", { password });
  await loadStatus();
}

export async function logOut(): Promise<void> {
  await send("POST", "/logout");
  await loadStatus();
}

/** Have the server look with another model from now on; everybody's pictures, cameras too. Raises: Problem. */
export async function putToUse(hash: string): Promise<void> {
  store.models.value = await send<Model[]>("POST", `/models/${hash}/use`);
  await loadStatus();
}

/** Change to the model that was in use before. Raises: Problem. */
export async function rollBack(): Promise<void> {
  store.models.value = await send<Model[]>("POST", "/models/roll-back");
  await loadStatus();
}

async function loadStatus(): Promise<void> {
  const before = store.status.peek();
  try {
    const now = await get<Status>("/status");
    const changed = before?.model !== now.model || before.model_changes !== now.model_changes;
    if (changed) store.models.value = await get<Model[]>("/models");
    store.status.value = now;
    const back = store.connection.peek() !== "up";
    store.connection.value = "up";
    if (!socket) listen();
    if (back) void queue.takeOverJobs().catch(tell);
    if (changed && before) tell(store.words.peek().modelChanged(store.modelName(now.model)));
  } catch (error) {
    const code = error instanceof Problem ? error.status : 0;
    const now = code === 401 ? "password" : code === 404 ? "none" : "lost";
    // A node without a model has news of its federation all the same.
    if (now === "none" && !socket) listen();
    store.connection.value = now;
  }
}

function listen(): void {
  const mine = new WebSocket(socketAddress("/events"));
  socket = mine;
  mine.onmessage = (message) => {
    const event = JSON.parse(String(message.data)) as ServerEvent;
    for (const listener of listeners) listener(event);
  };
  let opened = false;
  mine.onopen = () => (opened = true);
  mine.onclose = () => {
    socket = null;
    // One that was open is opened again soon; one that was refused is left to the next time the server is asked.
    if (opened) setTimeout(() => void loadStatus(), REOPEN_MS);
  };
}
