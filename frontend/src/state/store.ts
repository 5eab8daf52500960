// All that the page knows. Panels read these signals and call the functions of this folder; nothing is kept in a panel
// that another one could want.

import { computed, signal } from "@preact/signals";

import type { Box, Found, Model, Status } from "../api/types";
import { en } from "../text/en";
import type { Dictionary } from "../text/en";
import { zh } from "../text/zh";
import type { Shape } from "../viewer/viewer";
import { between, isBoolean, kept, oneOf } from "./kept";
import type { Item } from "./queue";

// -- how it looks ------------------------------------------------------------------------------------------------------

export type Language = "en" | "zh";
export type Theme = "system" | "light" | "dark";

const preferred: Language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

export const language = kept<Language>("language", preferred, oneOf("en", "zh"));
export const theme = kept<Theme>("theme", "system", oneOf("system", "light", "dark"));

/** The words of the language; panels read it while they render and are rendered anew when it changes. */
export const words = computed<Dictionary>(() => (language.value === "zh" ? zh : en));

/** Which view is open; its id also stands in the address after #. */
export const view = signal("pictures");
export const helpOpen = signal(false);

// -- the server --------------------------------------------------------------------------------------------------------

/** "none": a server without a model yet, as a node's is at first. */
export type Connection = "asking" | "up" | "lost" | "password" | "none";

export const connection = signal<Connection>("asking");
export const status = signal<Status | null>(null);
export const models = signal<readonly Model[]>([]);
export const mayChange = computed(() => status.value?.role === "administrator");
export const modelInUse = computed(() => status.value?.model ?? null);

export interface Notice {
  readonly id: number;
  readonly kind: "good" | "bad";
  readonly text: string;
}

/** Short messages at the edge of the page. */
export const notices = signal<readonly Notice[]>([]);

// -- what is asked and shown -------------------------------------------------------------------------------------------

export const LEAST_SCORE = 0.1;
export const MOST_SCORE = 0.9;
/** Above it a box that is found twice overlaps itself, unless somebody says otherwise; the server's own. */
export const USUAL_IOU = 0.7;

export const minScore = kept("minScore", 0.25, between(LEAST_SCORE, MOST_SCORE));
/** Classes that have a lowest score of their own. */
export const classScores = signal<Readonly<Record<string, number>>>({});
export const maxIou = kept("maxIou", USUAL_IOU, between(0.1, 0.95));
/** The model that looks at this page's pictures; null for the one in use. */
export const chosenModel = signal<string | null>(null);
/** The model whose boxes stand right of the line; null for no comparison. */
export const comparedModel = signal<string | null>(null);
export const divider = signal(0.5);
export const showLabels = kept("labels", false, isBoolean);

export function toggleLabels(): void {
  showLabels.value = !showLabels.value;
}

export const items = signal<readonly Item[]>([]);
export const selectedId = signal<number | null>(null);
export const selected = computed(() => items.value.find((item) => item.id === selectedId.value) ?? null);

/** What the compared model found in the selected picture. */
export const comparedFound = signal<Found | null>(null);
/** Boxes of the selected picture as somebody corrected them; null while nobody has. */
export const corrected = signal<readonly Shape[] | null>(null);
export const editing = signal(false);

export const highlighted = signal<string | null>(null);
export const hoveredBox = signal<number | null>(null);
export const chosenBox = signal<number | null>(null);

/** Whether a box is shown at the present sliders. */
export function passes(box: Pick<Box, "class" | "score">): boolean {
  return box.score >= (classScores.value[box.class] ?? minScore.value);
}

export function shapesOf(found: Found | null): readonly Shape[] {
  if (!found) return [];
  return found.detections.flatMap((box, id) =>
    passes(box) ? [{ id, name: box.class, classId: box.class_id, score: box.score, xyxy: box.xyxy }] : [],
  );
}

/** The boxes of the selected picture that the sliders let through, or as they were corrected. */
export const shapes = computed(() => corrected.value ?? shapesOf(selected.value?.found ?? null));
export const comparedShapes = computed(() => shapesOf(comparedFound.value));

/** Objects by class, the most frequent first. */
export function countsOf(boxes: readonly Shape[]): readonly (readonly [string, number])[] {
  const found = new Map<string, number>();
  for (const { name } of boxes) found.set(name, (found.get(name) ?? 0) + 1);
  return [...found].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

export const counts = computed(() => countsOf(shapes.value));

/** Classes in the selected picture, whatever their score: those that can have a slider of their own. */
export const classesHere = computed(() => {
  const names = new Set(selected.value?.found?.detections.map((box) => box.class) ?? []);
  return [...names].sort((a, b) => a.localeCompare(b));
});

/** How a model is called where there is little room. */
export function modelName(hash: string | null): string {
  const model = models.value.find((one) => one.hash === hash);
  return model ? model.label || model.hash.slice(0, 8) : (hash ?? "").slice(0, 8);
}
