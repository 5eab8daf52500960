// Lines and zones at which objects are counted, and the pen that draws them.

import { INK } from "./colours";
import { drawPlate, type Context } from "./draw";
import type { Point, Size, Transform } from "./geometry";

/** A line or a zone, in shares of the picture's sides. */
export interface Mark {
  readonly name: string;
  readonly kind: "line" | "zone";
  readonly points: readonly Point[];
  /** Shown beside its name: what was counted. */
  readonly text: string;
}

/** What is being drawn. */
export interface Pen {
  readonly kind: "line" | "zone";
  readonly points: readonly Point[];
}

const COLOUR = "#ffe14d";
const HALO = "rgba(0, 0, 0, .6)";
const ARROW = 26;
const CROSS = 14;

export function drawMarks(context: Context, marks: readonly Mark[], picture: Size, view: Transform, stage: Size, grown: number): void {
  for (const mark of marks) {
    const points = mark.points.map((point) => onScreen(point, picture, view));
    strokePath(context, points, mark.kind === "zone");
    const [first, second] = points;
    if (!first || !second) continue;
    if (mark.kind === "line") drawArrow(context, first, second);
    const at = mark.kind === "line" ? first : { x: Math.min(...points.map(({ x }) => x)), y: Math.min(...points.map(({ y }) => y)) };
    drawPlate(context, mark.text ? `${mark.name}  ${mark.text}` : mark.name, COLOUR, at, stage, grown);
  }
}

/** What is drawn so far, on to the cursor. */
export function drawPen(context: Context, pen: Pen, cursor: Point, picture: Size, view: Transform): void {
  const at = onScreen(cursor, picture, view);
  strokePath(context, [...pen.points.map((point) => onScreen(point, picture, view)), at], false);
  context.save();
  for (const [width, colour] of [[3, HALO], [1, "#fff"]] as const) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(at.x - CROSS, at.y);
    context.lineTo(at.x + CROSS, at.y);
    context.moveTo(at.x, at.y - CROSS);
    context.lineTo(at.x, at.y + CROSS);
    context.stroke();
  }
  context.restore();
}

function strokePath(context: Context, points: readonly Point[], closed: boolean): void {
  context.save();
  context.beginPath();
  for (const { x, y } of points) context.lineTo(x, y);
  if (closed) {
    context.closePath();
    context.globalAlpha = 0.14;
    context.fillStyle = COLOUR;
    context.fill();
    context.globalAlpha = 1;
  }
  for (const [width, colour] of [[5, HALO], [2.5, COLOUR]] as const) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
  context.fillStyle = COLOUR;
  for (const { x, y } of points) {
    context.beginPath();
    context.arc(x, y, 4, 0, 2 * Math.PI);
    context.fill();
  }
  context.restore();
}

/** Which way counts as in: to the right of who looks along the line. */
function drawArrow(context: Context, from: Point, to: Point): void {
  const length = Math.max(Math.hypot(to.x - from.x, to.y - from.y), 1);
  const [dx, dy] = [-(to.y - from.y) / length, (to.x - from.x) / length];
  const [x, y] = [(from.x + to.x) / 2, (from.y + to.y) / 2];
  context.save();
  context.beginPath();
  context.moveTo(x + dx * ARROW, y + dy * ARROW);
  context.lineTo(x + dy * 9 + dx * 6, y - dx * 9 + dy * 6);
  context.lineTo(x - dy * 9 + dx * 6, y + dx * 9 + dy * 6);
  context.closePath();
  context.fillStyle = COLOUR;
  context.strokeStyle = INK;
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
  context.restore();
}

function onScreen({ x, y }: Point, picture: Size, view: Transform): Point {
  return { x: x * picture.width * view.scale + view.x, y: y * picture.height * view.scale + view.y };
}
