// What was found, as files: a picture with its boxes, JSON, CSV.

import { LINE, drawBoxes, drawLabel, type Context } from "../viewer/draw";
import type { Levels } from "../viewer/levels";
import type { Shape } from "../viewer/viewer";
import { shapes, shapesOf, type Language } from "./store";
import type { Item } from "./queue";

const COLUMNS = ["file", "width", "height", "model", "class", "score", "left", "top", "right", "bottom"] as const;
/** At this length of its longest side lines and letters are as wide as on the screen. */
const USUAL_SIDE = 1280;

/** A picture in full size with these boxes, as PNG. Raises: Error, if it is too large for this browser. */
export async function picturePng(levels: Levels, boxes: readonly Shape[]): Promise<Blob> {
  const canvas = new OffscreenCanvas(levels.width, levels.height);
  const context: Context | null = canvas.getContext("2d");
  if (!context) throw new Error(`${levels.width} × ${levels.height}`);
  const view = { scale: 1, x: 0, y: 0 };
  const grown = Math.max(Math.max(levels.width, levels.height) / USUAL_SIDE, 1);
  context.drawImage(levels.at(1), 0, 0);
  drawBoxes(context, boxes, view, false, LINE * grown);
  for (const shape of boxes) drawLabel(context, shape, view, levels, grown);
  return canvas.convertToBlob({ type: "image/png" });
}

/** Boxes of pictures as the sliders show them; of the selected one as they were corrected. */
export function asJson(items: readonly Item[], selectedId: number | null): string {
  const pictures = done(items).map(({ item, found }) => ({
    file: item.name,
    width: found.width,
    height: found.height,
    model: found.model,
    detections: boxesOf(item, selectedId).map((shape) => ({
      class: shape.name,
      class_id: shape.classId,
      score: shape.score,
      xyxy: shape.xyxy.map(rounded),
    })),
  }));
  return JSON.stringify(pictures, null, 2) + "\n";
}

/** The same, a line an object (RFC 4180). */
export function asCsv(items: readonly Item[], selectedId: number | null): string {
  const rows = done(items).flatMap(({ item, found }) =>
    boxesOf(item, selectedId).map((shape) => [
      item.name,
      found.width,
      found.height,
      found.model,
      shape.name,
      shape.score ?? "",
      ...shape.xyxy.map(rounded),
    ]),
  );
  return [COLUMNS, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** Objects as plain text: `person 4, car 2`. */
export function inWords(counts: readonly (readonly [string, number])[], language: Language): string {
  return counts.map(([name, number]) => `${name} ${number}`).join(language === "zh" ? "，" : ", ");
}

/** Hand a file to the browser, which saves it where it saves files. */
export function save(content: Blob | string, name: string, type = "text/plain"): void {
  const url = URL.createObjectURL(typeof content === "string" ? new Blob([content], { type }) : content);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A file's name without folder and ending. */
export function stem(name: string): string {
  return (name.split("/").pop() ?? name).replace(/\.[^.]+$/, "") || "picture";
}

function done(items: readonly Item[]) {
  return items.flatMap((item) => (item.kind === "picture" && item.found ? [{ item, found: item.found }] : []));
}

function boxesOf(item: Item, selectedId: number | null): readonly Shape[] {
  return item.id === selectedId ? shapes.value : shapesOf(item.found);
}

function rounded(value: number): number {
  return Math.round(value * 100) / 100;
}

/** Spreadsheets run what begins like a formula: such text gets an apostrophe before it (OWASP, CSV injection). */
function cell(value: string | number): string {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
