// A picture with boxes: zoom, pan, hover, choose, compare, edit. Plain canvas and events, no framework.
//
// Two canvases lie on each other: the picture below, boxes above; each is drawn anew at most once a frame, and only if it
// changed. One transform leads from the picture's pixels to the screen's; all that is asked for is in picture pixels.

import { colourOf } from "./colours";
import { LINE, drawBoxes, drawChosen, drawDivider, drawFrame, drawLabel, drawShade } from "./draw";
import { Edits } from "./edits";
import {
  HANDLES,
  LEAST_SIDE,
  area,
  clamp,
  contains,
  fitted,
  framed,
  handlePoint,
  held,
  spanned,
  toPicture,
  zoomed,
  type Handle,
  type Point,
  type Size,
  type Transform,
  type Xyxy,
} from "./geometry";
import type { Levels } from "./levels";
import { drawMarks, drawPen, type Mark, type Pen } from "./marks";
import { Tiles } from "./tiles";

/** A box as the viewer shows it. `id` tells it from the others of its picture. */
export interface Shape {
  readonly id: number;
  readonly name: string;
  readonly classId: number;
  /** 0 to 1; null for a box that somebody drew or corrected. */
  readonly score: number | null;
  readonly xyxy: Xyxy;
  /** The model was not sure of it: its outline is dashed. */
  readonly unsure?: boolean;
}

/** A second set of boxes, shown right of a line; the others stand left of it. */
export interface Comparison {
  readonly shapes: readonly Shape[];
  readonly names: readonly [string, string];
}

export interface ViewerEvents {
  hover?(id: number | null): void;
  choose?(id: number | null): void;
  divide?(share: number): void;
  zoom?(scale: number): void;
  edit?(shapes: readonly Shape[]): void;
  /** A point was set with the pen, in shares of the picture's sides; null: it was put down. */
  pen?(at: Point | null): void;
}

/** The class that new boxes get. */
export interface Brush {
  readonly name: string;
  readonly classId: number;
}

type Drag =
  | { kind: "pan"; last: Point }
  | { kind: "frame"; from: Point; to: Point }
  | { kind: "draw"; from: Point; to: Point }
  | { kind: "divide" }
  | { kind: "move"; id: number; last: Point; step: string }
  | { kind: "resize"; id: number; handle: Handle; last: Point; step: string };

const MARGIN = 12;
const USUAL_LETTER = 16;
const NEAR = 6;
const NEAR_TOUCH = 16;
const WHEEL_STEP = 0.0015;
const KEY_ZOOM = 1.25;
const KEY_PAN = 60;
const FEWEST_FRAME = 6;
/** A double click is two presses within this many milliseconds and pixels. */
const DOUBLE_MS = 350;
const DOUBLE_NEAR = 8;

export class Viewer {
  private readonly image = document.createElement("canvas");
  private readonly overlay = document.createElement("canvas");
  private readonly sized: ResizeObserver;
  private readonly leaving = new AbortController();
  private readonly fingers = new Map<number, Point>();

  private readonly tiles = new Tiles();
  private levels: Levels | null = null;
  private shapes: readonly Shape[] = [];
  private comparison: Comparison | null = null;
  private divider = 0.5;
  private highlighted: string | null = null;
  private labels = false;
  private hovered: number | null = null;
  private chosen: number | null = null;
  private edits: Edits | null = null;
  private brush: Brush = { name: "", classId: 0 };
  private marks: readonly Mark[] = [];
  private pen: Pen | null = null;
  private cursor: Point = { x: 0.5, y: 0.5 };

  private stage: Size = { width: 1, height: 1 };
  /** Lines and letters on the canvas are as many times as wide as the page's letters are larger than usual. */
  private grown = 1;
  private view: Transform = { scale: 1, x: 0, y: 0 };
  private isFitted = true;
  private drag: Drag | null = null;
  private lastPress: { at: Point; time: number } | null = null;
  private steps = 0;
  private frame = 0;
  private stale = { image: true, overlay: true };

  /** Builds its canvases inside `host`, which gets the keyboard's focus. */
  constructor(
    private readonly host: HTMLElement,
    private readonly events: ViewerEvents,
  ) {
    for (const canvas of [this.image, this.overlay]) {
      canvas.className = "viewer-layer";
      canvas.ariaHidden = "true";
      host.append(canvas);
    }
    this.sized = new ResizeObserver(() => this.measure());
    this.sized.observe(host);
    this.listen();
    this.measure();
  }

  /** Let go of everything; the host is empty again. The picture stays its owner's. */
  destroy(): void {
    this.leaving.abort();
    this.sized.disconnect();
    cancelAnimationFrame(this.frame);
    this.image.remove();
    this.overlay.remove();
  }

  /** Show a picture. One of the same size keeps the view if `stay` is given: the next frame of a camera. */
  setPicture(levels: Levels | null, stay = false): void {
    const same = stay && levels && levels.width === this.levels?.width && levels.height === this.levels.height;
    this.levels = levels;
    this.tiles.clear();
    if (!same) {
      this.hover(null);
      this.choose(null);
      this.fit();
    }
    this.redraw();
  }

  /** Show boxes. While it is being edited, they are those that the editing begins with anew. */
  setShapes(shapes: readonly Shape[], comparison: Comparison | null = null): void {
    this.shapes = shapes;
    this.comparison = comparison;
    // Its own changes come back to it; they end no drag, and can still be taken back.
    if (this.edits && this.edits.shapes !== shapes) this.edits = new Edits(shapes, this.picture);
    if (this.hovered !== null && !this.find(this.hovered)) this.hover(null);
    if (this.chosen !== null && !this.find(this.chosen)) this.choose(null);
    this.redraw("overlay");
  }

  /** Show one class, and the rest dimmed; null shows all alike. */
  setHighlight(name: string | null): void {
    this.highlighted = name;
    this.redraw("overlay");
  }

  setDivider(share: number): void {
    this.divider = clamp(share, 0, 1);
    this.redraw("overlay");
  }

  /** Class and score on every box, not only on the one under the pointer. */
  setLabels(all: boolean): void {
    this.labels = all;
    this.redraw("overlay");
  }

  setHovered(id: number | null): void {
    this.hovered = id;
    this.redraw("overlay");
  }

  /** Choose a box, as a click on it does; `show` brings it into sight. */
  setChosen(id: number | null, show = false): void {
    this.chosen = id;
    const shape = id === null ? null : this.find(id);
    if (shape && show) this.bringIntoSight(shape.xyxy);
    this.redraw("overlay");
  }

  /** Let boxes be moved, drawn and deleted; null ends it. */
  setEditing(brush: Brush | null): void {
    if (brush) this.brush = brush;
    if (Boolean(brush) === Boolean(this.edits)) return;
    this.edits = brush ? new Edits(this.shapes, this.picture) : null;
    this.redraw("overlay");
  }

  /** Show lines and zones. */
  setMarks(marks: readonly Mark[]): void {
    this.marks = marks;
    this.redraw("overlay");
  }

  /** Let points be set, with the pointer or with arrows and Enter; null ends it. */
  setPen(pen: Pen | null): void {
    if (pen && !this.pen) this.cursor = { x: 0.5, y: 0.5 };
    this.pen = pen;
    this.host.dataset["pen"] = pen?.kind ?? "";
    this.redraw("overlay");
  }

  get scale(): number {
    return this.view.scale;
  }

  get undoable(): { undo: boolean; redo: boolean } {
    return { undo: this.edits?.canUndo ?? false, redo: this.edits?.canRedo ?? false };
  }

  /** All of the picture. */
  fit(): void {
    this.isFitted = true;
    this.show(fitted(this.picture, this.stage, MARGIN));
  }

  /** One pixel of the picture on one of the screen. */
  actualSize(): void {
    this.zoomBy(1 / this.view.scale / (devicePixelRatio || 1));
  }

  zoomBy(factor: number, at: Point = this.middle): void {
    if (!this.levels) return;
    this.isFitted = false;
    this.show(zoomed(this.view, factor, at, this.leastScale));
  }

  panBy(dx: number, dy: number): void {
    this.isFitted = false;
    this.show({ ...this.view, x: this.view.x + dx, y: this.view.y + dy });
  }

  /** Enlarge a region, in picture pixels. */
  frameRegion(region: Xyxy, margin = MARGIN): void {
    this.isFitted = false;
    this.show(framed(region, this.stage, margin));
  }

  relabel(brush: Brush): void {
    this.brush = brush;
    if (this.chosen !== null) this.editing((edits, id) => edits.relabel(id, brush.name, brush.classId), this.chosen);
  }

  remove(): void {
    if (this.chosen === null) return;
    this.editing((edits, id) => edits.remove(id), this.chosen);
    this.choose(null);
  }

  undo(): void {
    this.editing((edits) => edits.undo());
  }

  redo(): void {
    this.editing((edits) => edits.redo());
  }

  /** A new box in the middle of what is in sight, a quarter as wide; it is chosen, for the keyboard. */
  addInMiddle(): void {
    if (!this.edits) return;
    const middle = toPicture(this.middle, this.view);
    const [dx, dy] = [this.stage.width / 8 / this.view.scale, this.stage.height / 8 / this.view.scale];
    this.addBox({ x: middle.x - dx, y: middle.y - dy }, { x: middle.x + dx, y: middle.y + dy });
  }

  /** Choose the next box, or with -1 the one before, from left to right; after the last one comes the first. */
  chooseNext(by: 1 | -1): void {
    if (!this.chooseOn(by)) this.chooseOn(by);
  }

  // -- what is shown -------------------------------------------------------------------------------------------------

  private get picture(): Size {
    return this.levels ?? { width: 1, height: 1 };
  }

  private get current(): readonly Shape[] {
    return this.edits?.shapes ?? this.shapes;
  }

  private get middle(): Point {
    return { x: this.stage.width / 2, y: this.stage.height / 2 };
  }

  private get leastScale(): number {
    return Math.min(fitted(this.picture, this.stage).scale / 4, 1);
  }

  private get dividerX(): number {
    return this.divider * this.stage.width;
  }

  /** On which side of the line a point of the screen is decides whose boxes are there. */
  private shapesAt(at: Point): readonly Shape[] {
    return this.comparison && at.x > this.dividerX ? this.comparison.shapes : this.current;
  }

  private find(id: number): Shape | null {
    return this.current.find((shape) => shape.id === id) ?? this.comparison?.shapes.find((shape) => shape.id === id) ?? null;
  }

  private show(view: Transform): void {
    const before = this.view.scale;
    this.view = held(view, this.picture, this.stage);
    if (this.view.scale !== before) this.events.zoom?.(this.view.scale);
    this.redraw();
  }

  private bringIntoSight([x1, y1, x2, y2]: Xyxy): void {
    const { scale, x, y } = this.view;
    const inside =
      x1 * scale + x >= 0 && y1 * scale + y >= 0 && x2 * scale + x <= this.stage.width && y2 * scale + y <= this.stage.height;
    if (inside) return;
    this.isFitted = false;
    this.show({
      scale,
      x: this.stage.width / 2 - ((x1 + x2) / 2) * scale,
      y: this.stage.height / 2 - ((y1 + y2) / 2) * scale,
    });
  }

  private measure(): void {
    const { clientWidth: width, clientHeight: height } = this.host;
    const ratio = devicePixelRatio || 1;
    const middle = toPicture(this.middle, this.view);
    this.grown = Math.max(parseFloat(getComputedStyle(document.documentElement).fontSize) / USUAL_LETTER, 1);
    this.stage = { width: Math.max(width, 1), height: Math.max(height, 1) };
    for (const canvas of [this.image, this.overlay]) {
      canvas.width = Math.round(this.stage.width * ratio);
      canvas.height = Math.round(this.stage.height * ratio);
    }
    if (this.isFitted) {
      this.fit();
      return;
    }
    const { scale } = this.view;
    this.show({ scale, x: this.middle.x - middle.x * scale, y: this.middle.y - middle.y * scale });
  }

  private redraw(what: "all" | "overlay" = "all"): void {
    this.stale.overlay = true;
    if (what === "all") this.stale.image = true;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  private draw(): void {
    if (this.stale.image) {
      const context = this.cleared(this.image);
      if (this.levels) this.tiles.draw(context, this.levels, this.view, this.stage, devicePixelRatio || 1);
    }
    if (this.stale.overlay) this.drawOverlay(this.cleared(this.overlay));
    this.stale = { image: false, overlay: false };
  }

  private cleared(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
    const context = canvas.getContext("2d")!;
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.stage.width, this.stage.height);
    return context;
  }

  private drawOverlay(context: CanvasRenderingContext2D): void {
    if (!this.levels) return;
    if (this.comparison) {
      this.drawSide(context, this.current, 0, this.dividerX);
      this.drawSide(context, this.comparison.shapes, this.dividerX, this.stage.width);
      drawDivider(context, this.dividerX, this.comparison.names, this.stage, this.grown);
    } else {
      this.drawSide(context, this.current, 0, this.stage.width);
    }
    drawMarks(context, this.marks, this.picture, this.view, this.stage, this.grown);
    if (this.pen) drawPen(context, this.pen, this.cursor, this.picture, this.view);
    if (this.drag?.kind === "frame" || this.drag?.kind === "draw") {
      const colour = this.drag.kind === "frame" ? "#fff" : colourOf(this.brush.classId);
      drawFrame(context, spanned(this.drag.from, this.drag.to, this.picture), this.view, colour);
    }
  }

  private drawSide(context: CanvasRenderingContext2D, shapes: readonly Shape[], left: number, right: number): void {
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, this.stage.height);
    context.clip();
    const line = LINE * this.grown;
    const shown = this.highlighted === null ? shapes : shapes.filter((shape) => shape.name === this.highlighted);
    if (this.highlighted !== null) {
      drawShade(context, shown, this.view, this.stage);
      drawBoxes(context, shapes.filter((shape) => shape.name !== this.highlighted), this.view, true, line);
    }
    drawBoxes(context, shown, this.view, false, line);
    if (this.labels) for (const shape of shown) drawLabel(context, shape, this.view, this.stage, this.grown);
    for (const id of new Set([this.chosen, this.hovered])) {
      const shape = shapes.find((one) => one.id === id);
      if (!shape) continue;
      drawChosen(context, shape, this.view, this.edits !== null && id === this.chosen, this.grown);
      drawLabel(context, shape, this.view, this.stage, this.grown);
    }
    context.restore();
  }

  // -- pointer -------------------------------------------------------------------------------------------------------

  private listen(): void {
    const options = { signal: this.leaving.signal };
    const { host } = this;
    host.addEventListener("pointerdown", (event) => this.press(event), options);
    host.addEventListener("pointermove", (event) => this.movePointer(event), options);
    host.addEventListener("pointerup", (event) => this.release(event), options);
    host.addEventListener("pointercancel", (event) => this.release(event), options);
    host.addEventListener("pointerleave", () => this.drag || this.hover(null), options);
    host.addEventListener("contextmenu", (event) => event.preventDefault(), options);
    host.addEventListener("wheel", (event) => this.wheel(event), { ...options, passive: false });
    host.addEventListener("keydown", (event) => this.key(event), options);
    host.addEventListener("keyup", () => this.edits?.settle(), options);
  }

  private at(event: MouseEvent): Point {
    const { left, top } = this.host.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }

  private press(event: PointerEvent): void {
    if (!this.levels || event.target instanceof HTMLInputElement) return;
    this.host.focus({ preventScroll: true });
    this.host.setPointerCapture(event.pointerId);
    const at = this.at(event);
    this.fingers.set(event.pointerId, at);
    if (this.fingers.size > 1) {
      this.drag = null;
      return;
    }
    if (event.button === 0 && this.pen) {
      this.cursor = this.shareOf(at);
      this.events.pen?.(this.cursor);
      return;
    }
    if (event.button === 0 && this.isDouble(at)) {
      this.fit();
      return;
    }
    this.drag = this.begun(event, at);
    this.host.dataset["drag"] = this.drag?.kind ?? "";
  }

  /** A point of the screen in shares of the picture's sides, inside it. */
  private shareOf(at: Point): Point {
    const { x, y } = toPicture(at, this.view);
    return { x: clamp(x / this.picture.width, 0, 1), y: clamp(y / this.picture.height, 0, 1) };
  }

  private isDouble(at: Point): boolean {
    const before = this.lastPress;
    const time = performance.now();
    const double =
      before !== null && time - before.time < DOUBLE_MS && Math.hypot(at.x - before.at.x, at.y - before.at.y) < DOUBLE_NEAR;
    this.lastPress = double ? null : { at, time };
    return double;
  }

  private begun(event: PointerEvent, at: Point): Drag {
    const from = toPicture(at, this.view);
    const near = event.pointerType === "mouse" ? NEAR : NEAR_TOUCH;
    if (event.button === 2) return { kind: "frame", from, to: from };
    if (this.comparison && Math.abs(at.x - this.dividerX) <= near + 4) return { kind: "divide" };
    if (event.button === 0 && this.edits && !event.getModifierState("Shift")) return this.begunEditing(from, near);
    if (event.button === 0) this.choose(this.hit(at, near)?.id ?? null);
    return { kind: "pan", last: at };
  }

  private begunEditing(from: Point, near: number): Drag {
    const step = String(++this.steps);
    const chosen = this.current.find((shape) => shape.id === this.chosen);
    const handle = chosen && this.handleAt(chosen, from, near);
    if (chosen && handle) return { kind: "resize", id: chosen.id, handle, last: from, step };
    const hit = chosen && contains(chosen.xyxy, from) ? chosen : this.smallest(this.current, from, near);
    this.choose(hit?.id ?? null);
    return hit ? { kind: "move", id: hit.id, last: from, step } : { kind: "draw", from, to: from };
  }

  private movePointer(event: PointerEvent): void {
    const at = this.at(event);
    const finger = this.fingers.get(event.pointerId);
    if (finger && this.fingers.size > 1) {
      this.pinch(event.pointerId, at);
      return;
    }
    if (finger) this.fingers.set(event.pointerId, at);
    if (this.drag) this.dragTo(this.drag, at);
    else if (this.levels) this.point(at, event.pointerType === "mouse" ? NEAR : NEAR_TOUCH);
  }

  private point(at: Point, near: number): void {
    if (this.pen) {
      this.cursor = this.shareOf(at);
      this.redraw("overlay");
      return;
    }
    this.hover(this.hit(at, 2)?.id ?? null);
    const chosen = this.edits && this.current.find((shape) => shape.id === this.chosen);
    const handle = chosen && this.handleAt(chosen, toPicture(at, this.view), near);
    const onLine = this.comparison && Math.abs(at.x - this.dividerX) <= near;
    this.host.dataset["point"] = onLine ? "divide" : handle ? handleName(handle) : this.hovered !== null ? "box" : "";
  }

  /** Two fingers: what lies between them stays between them. */
  private pinch(id: number, at: Point): void {
    const [other] = [...this.fingers].filter(([one]) => one !== id);
    const before = this.fingers.get(id)!;
    this.fingers.set(id, at);
    if (!other) return;
    const rest = other[1];
    const grown = distance(at, rest) / Math.max(distance(before, rest), 1);
    const middle = { x: (at.x + rest.x) / 2, y: (at.y + rest.y) / 2 };
    this.panBy((at.x - before.x) / 2, (at.y - before.y) / 2);
    this.zoomBy(grown, middle);
  }

  private dragTo(drag: Drag, at: Point): void {
    const to = toPicture(at, this.view);
    switch (drag.kind) {
      case "pan":
        this.panBy(at.x - drag.last.x, at.y - drag.last.y);
        drag.last = at;
        break;
      case "divide":
        this.setDivider(at.x / this.stage.width);
        this.events.divide?.(this.divider);
        break;
      case "frame":
      case "draw":
        drag.to = to;
        this.redraw("overlay");
        break;
      case "move":
        this.editing((edits) => edits.move(drag.id, to.x - drag.last.x, to.y - drag.last.y, drag.step));
        drag.last = to;
        break;
      case "resize":
        this.editing((edits) => edits.resize(drag.id, drag.handle, to.x - drag.last.x, to.y - drag.last.y, drag.step));
        drag.last = to;
        break;
    }
  }

  private release(event: PointerEvent): void {
    this.fingers.delete(event.pointerId);
    const { drag } = this;
    this.drag = null;
    this.host.dataset["drag"] = "";
    this.redraw("overlay");
    if (event.type === "pointercancel" || !drag || (drag.kind !== "frame" && drag.kind !== "draw")) return;
    const region = spanned(drag.from, drag.to, this.picture);
    const enough = Math.min(region[2] - region[0], region[3] - region[1]) * this.view.scale >= FEWEST_FRAME;
    if (!enough) return;
    if (drag.kind === "frame") this.frameRegion(region, 0);
    else this.addBox(drag.from, drag.to);
  }

  private wheel(event: WheelEvent): void {
    if (!this.levels) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    // Two fingers on a touchpad come as a wheel with Ctrl, in smaller steps.
    const strength = event.ctrlKey ? 6 : 1;
    this.zoomBy(Math.exp(-clamp(event.deltaY * lines, -240, 240) * WHEEL_STEP * strength), this.at(event));
  }

  private hit(at: Point, near: number): Shape | null {
    return this.smallest(this.shapesAt(at), toPicture(at, this.view), near);
  }

  /** Of boxes in each other the inner one is meant; dimmed ones are not. */
  private smallest(shapes: readonly Shape[], at: Point, near: number): Shape | null {
    let best: Shape | null = null;
    for (const shape of shapes) {
      if (this.highlighted !== null && shape.name !== this.highlighted) continue;
      if (!contains(shape.xyxy, at, near / this.view.scale)) continue;
      if (!best || area(shape.xyxy) < area(best.xyxy)) best = shape;
    }
    return best;
  }

  private handleAt(shape: Shape, at: Point, near: number): Handle | null {
    const fitting = HANDLES.map((handle) => ({ handle, far: distance(handlePoint(shape.xyxy, handle), at) }))
      .filter(({ far }) => far * this.view.scale <= near + 3)
      .sort((a, b) => a.far - b.far);
    return fitting[0]?.handle ?? null;
  }

  private hover(id: number | null): void {
    if (id === this.hovered) return;
    this.hovered = id;
    this.events.hover?.(id);
    this.redraw("overlay");
  }

  private choose(id: number | null): void {
    if (id === this.chosen) return;
    this.chosen = id;
    this.events.choose?.(id);
    this.redraw("overlay");
  }

  // -- editing and keyboard ------------------------------------------------------------------------------------------

  private editing(change: (edits: Edits, id: number) => void, id = -1): void {
    if (!this.edits) return;
    change(this.edits, id);
    if (this.chosen !== null && !this.find(this.chosen)) this.choose(null);
    this.events.edit?.(this.edits.shapes);
    this.redraw("overlay");
  }

  private addBox(a: Point, b: Point): void {
    this.editing((edits) => {
      this.choose(edits.add(a, b, this.brush.name, this.brush.classId));
    });
  }

  private key(event: KeyboardEvent): void {
    if (!this.levels || event.target !== this.host) return;
    if (this.pressed(event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** Whether the key means something here. */
  private pressed(event: KeyboardEvent): boolean {
    const arrow = ARROWS[event.key];
    if (this.pen && this.penned(this.pen, event)) return true;
    if (arrow) return this.arrow(arrow, event);
    if (event.ctrlKey || event.metaKey) return this.takenBack(event);
    if (event.altKey) return false;
    switch (event.key) {
      case "+":
      case "=":
        this.zoomBy(KEY_ZOOM);
        return true;
      case "-":
        this.zoomBy(1 / KEY_ZOOM);
        return true;
      case "0":
        this.fit();
        return true;
      case "]":
        this.chooseNext(1);
        return true;
      case "[":
        this.chooseNext(-1);
        return true;
      case "Tab":
        return this.edits !== null && this.chooseOn(event.shiftKey ? -1 : 1);
      case "Enter":
      case "z":
      case "Z":
        return this.enlargeChosen();
      case "Escape":
        return this.escaped();
      case "n":
      case "N":
        this.addInMiddle();
        return this.edits !== null;
      case "Delete":
      case "Backspace":
        this.remove();
        return this.edits !== null;
      default:
        return false;
    }
  }

  /** The pen by keyboard: arrows move it, Enter sets a point, Escape puts it down. */
  private penned({ kind, points }: Pen, event: KeyboardEvent): boolean {
    const arrow = ARROWS[event.key];
    if (arrow) {
      const pixels = (event.shiftKey ? 40 : 8) / this.view.scale;
      this.cursor = {
        x: clamp(this.cursor.x + (arrow[0] * pixels) / this.picture.width, 0, 1),
        y: clamp(this.cursor.y + (arrow[1] * pixels) / this.picture.height, 0, 1),
      };
      this.redraw("overlay");
      return true;
    }
    if (event.key === "Enter" || event.key === " ") {
      // The same point again ends a zone.
      const last = points[points.length - 1];
      const ends = kind === "zone" && last && last.x === this.cursor.x && last.y === this.cursor.y;
      this.events.pen?.(ends && points[0] ? points[0] : this.cursor);
      return true;
    }
    if (event.key !== "Escape") return false;
    this.events.pen?.(null);
    return true;
  }

  private takenBack(event: KeyboardEvent): boolean {
    const key = event.key.toLowerCase();
    if (!this.edits || (key !== "z" && key !== "y")) return false;
    if (key === "y" || event.shiftKey) this.redo();
    else this.undo();
    return true;
  }

  /** Arrows move the picture; while editing the chosen box, and with Alt its lower right corner. */
  private arrow([dx, dy]: readonly [number, number], event: KeyboardEvent): boolean {
    if (event.ctrlKey || event.metaKey) return false;
    if (!this.edits || this.chosen === null) {
      if (event.altKey) return false;
      this.panBy(-dx * KEY_PAN, -dy * KEY_PAN);
      return true;
    }
    const pixels = Math.max(LEAST_SIDE, 1 / this.view.scale) * (event.shiftKey ? 10 : 1);
    const corner = { x: 1, y: 1 } as const;
    this.editing((edits, id) => {
      if (event.altKey) edits.resize(id, corner, dx * pixels, dy * pixels, "key");
      else edits.move(id, dx * pixels, dy * pixels, "key");
    }, this.chosen);
    return true;
  }

  /** The next box, as `chooseNext`; after the last one none, and the key may leave the picture. */
  private chooseOn(by: 1 | -1): boolean {
    const order = [...this.current].sort((a, b) => a.xyxy[0] - b.xyxy[0] || a.xyxy[1] - b.xyxy[1]);
    const at = order.findIndex((shape) => shape.id === this.chosen);
    const next = order[at < 0 ? (by > 0 ? 0 : order.length - 1) : at + by] ?? null;
    this.choose(next?.id ?? null);
    if (next) this.bringIntoSight(next.xyxy);
    return next !== null;
  }

  private enlargeChosen(): boolean {
    const shape = this.chosen === null ? null : this.find(this.chosen);
    if (shape) this.frameRegion(shape.xyxy, Math.min(this.stage.width, this.stage.height) / 6);
    return shape !== null;
  }

  private escaped(): boolean {
    if (this.drag) this.drag = null;
    else if (this.chosen !== null) this.choose(null);
    else return false;
    this.redraw("overlay");
    return true;
  }
}

const ARROWS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

function handleName(handle: Handle): string {
  return `${["n", "", "s"][handle.y + 1]}${["w", "", "e"][handle.x + 1]}`;
}
