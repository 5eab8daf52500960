// What the two canvases show. Each function draws one thing in screen pixels and leaves the context as it was.

import { INK, colourOf } from "./colours";
import { HANDLES, handlePoint, type Point, type Size, type Transform, type Xyxy } from "./geometry";
import type { Levels } from "./levels";
import type { Shape } from "./viewer";

export const LINE = 2;
const HALO = "rgba(0, 0, 0, .55)";
const SHADE = "rgba(8, 11, 15, .62)";
const FAINT = 0.28;
const HANDLE = 4.5;
const DASH = [6, 4];
/** A box with a shorter side on the screen has handles at its corners alone, and smaller ones. */
const ROOM_FOR_HANDLES = 44;
const FONT = "600 13px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans CJK SC', sans-serif";
/** Beyond this enlargement pixels are shown as they are. */
const PIXELS = 3;

export type Context = CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D;

export function label(shape: Pick<Shape, "name" | "score">): string {
  return shape.score === null ? shape.name : `${shape.name}: ${shape.score.toFixed(2)}`;
}

/** The part of the picture that is in sight, from the size that fits. */
export function drawPicture(context: Context, levels: Levels, view: Transform, stage: Size, ratio: number): void {
  const source = levels.at(view.scale * ratio);
  const shrunk = source.width / levels.width;
  const left = Math.max(-view.x / view.scale, 0);
  const top = Math.max(-view.y / view.scale, 0);
  const right = Math.min((stage.width - view.x) / view.scale, levels.width);
  const bottom = Math.min((stage.height - view.y) / view.scale, levels.height);
  if (right <= left || bottom <= top) return;
  context.imageSmoothingEnabled = view.scale * ratio < PIXELS;
  context.drawImage(
    source,
    left * shrunk,
    top * shrunk,
    (right - left) * shrunk,
    (bottom - top) * shrunk,
    left * view.scale + view.x,
    top * view.scale + view.y,
    (right - left) * view.scale,
    (bottom - top) * view.scale,
  );
}

/** Outlines of boxes, `line` pixels wide. `faint` ones stand back. */
export function drawBoxes(context: Context, shapes: readonly Shape[], view: Transform, faint: boolean, line: number): void {
  context.save();
  context.globalAlpha = faint ? FAINT : 1;
  // Rectangles one by one: a path of hundreds takes twenty times as long to be drawn.
  context.lineWidth = line + 2;
  context.strokeStyle = HALO;
  for (const shape of shapes) context.strokeRect(...onScreen(shape.xyxy, view));
  context.lineWidth = line;
  for (const shape of shapes) {
    context.strokeStyle = colourOf(shape.classId);
    context.setLineDash(shape.unsure && shape.score !== null ? DASH : []);
    context.strokeRect(...onScreen(shape.xyxy, view));
  }
  context.restore();
}

/** All of the stage darker, but for these boxes. */
export function drawShade(context: Context, clear: readonly Shape[], view: Transform, stage: Size): void {
  context.save();
  context.fillStyle = SHADE;
  context.fillRect(0, 0, stage.width, stage.height);
  for (const shape of clear) context.clearRect(...onScreen(shape.xyxy, view));
  context.restore();
}

/** Class and score on a plate above the box, or inside it where there is no room. */
export function drawLabel(context: Context, shape: Shape, view: Transform, stage: Size, grown: number): void {
  const [x, y] = onScreen(shape.xyxy, view);
  drawPlate(context, label(shape), colourOf(shape.classId), { x, y }, stage, grown);
}

/** Words on a coloured plate, kept on the stage. */
export function drawPlate(context: Context, text: string, colour: string, at: Point, stage: Size, grown: number): void {
  context.save();
  context.font = FONT.replace("13px", `${13 * grown}px`);
  context.textBaseline = "middle";
  const width = context.measureText(text).width + 12 * grown;
  const height = 20 * grown;
  const x = Math.min(Math.max(at.x - 1, 0), Math.max(stage.width - width, 0));
  const y = at.y - height - 1 >= 0 ? at.y - height - 1 : Math.min(Math.max(at.y + 1, 0), stage.height - height);
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(x, y, width, height, 4 * grown);
  context.fill();
  context.fillStyle = INK;
  context.fillText(text, x + 6 * grown, y + height / 2 + 0.5);
  context.restore();
}

/** A box that is hovered or chosen: a light inside, a stronger line; handles where it can be edited. */
export function drawChosen(context: Context, shape: Shape, view: Transform, handles: boolean, grown: number): void {
  const [x, y, width, height] = onScreen(shape.xyxy, view);
  context.save();
  context.globalAlpha = 0.16;
  context.fillStyle = colourOf(shape.classId);
  context.fillRect(x, y, width, height);
  context.restore();
  drawBoxes(context, [shape], view, false, LINE * grown + 1);
  if (!handles) return;
  const roomy = Math.min(width, height) >= ROOM_FOR_HANDLES;
  context.save();
  context.lineWidth = 1.5;
  context.strokeStyle = INK;
  context.fillStyle = "#fff";
  for (const handle of HANDLES) {
    if (!roomy && !(handle.x && handle.y)) continue;
    const at = handlePoint(shape.xyxy, handle);
    context.beginPath();
    context.arc(at.x * view.scale + view.x, at.y * view.scale + view.y, (roomy ? HANDLE : HANDLE - 1.5) * grown, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
  context.restore();
}

/** A frame that is being drawn with the pointer, in picture pixels. */
export function drawFrame(context: Context, frame: Xyxy, view: Transform, colour: string): void {
  context.save();
  context.lineWidth = 1.5;
  context.strokeStyle = HALO;
  context.strokeRect(...onScreen(frame, view));
  context.setLineDash(DASH);
  context.strokeStyle = colour;
  context.strokeRect(...onScreen(frame, view));
  context.restore();
}

/** The line between two models, with their names on either side. */
export function drawDivider(context: Context, x: number, names: readonly [string, string], stage: Size, grown: number): void {
  context.save();
  context.fillStyle = HALO;
  context.fillRect(x - 2, 0, 4, stage.height);
  context.fillStyle = "#fff";
  context.fillRect(x - 1, 0, 2, stage.height);
  context.beginPath();
  context.arc(x, stage.height / 2, 13, 0, 2 * Math.PI);
  context.fill();
  context.strokeStyle = INK;
  context.lineWidth = 2;
  context.beginPath();
  for (const side of [-1, 1]) {
    context.moveTo(x + side * 4, stage.height / 2 - 4);
    context.lineTo(x + side * 8, stage.height / 2);
    context.lineTo(x + side * 4, stage.height / 2 + 4);
  }
  context.stroke();
  context.font = FONT;
  const width = (context.measureText(names[0]).width + 12) * grown;
  drawPlate(context, names[0], "#fff", { x: x - width - 6, y: 8 }, stage, grown);
  drawPlate(context, names[1], "#fff", { x: x + 8, y: 8 }, stage, grown);
  context.restore();
}

function onScreen([x1, y1, x2, y2]: Xyxy, view: Transform): [number, number, number, number] {
  return [x1 * view.scale + view.x, y1 * view.scale + view.y, (x2 - x1) * view.scale, (y2 - y1) * view.scale];
}
