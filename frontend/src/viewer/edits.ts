// Boxes as somebody corrects them: each change makes a new list, and can be taken back.

import { moved, resized, spanned, type Handle, type Point, type Size, type Xyxy } from "./geometry";
import type { Shape } from "./viewer";

const MOST_STEPS = 200;

export class Edits {
  private past: (readonly Shape[])[] = [];
  private future: (readonly Shape[])[] = [];
  /** What the last step was, so that a drag or a held key is one step. */
  private step = "";

  constructor(
    private boxes: readonly Shape[],
    private readonly picture: Size,
  ) {}

  get shapes(): readonly Shape[] {
    return this.boxes;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  move(id: number, dx: number, dy: number, step: string): void {
    this.replace(id, (shape) => ({ ...shape, xyxy: moved(shape.xyxy, dx, dy, this.picture) }), `move ${step}`);
  }

  resize(id: number, handle: Handle, dx: number, dy: number, step: string): void {
    this.replace(id, (shape) => ({ ...shape, xyxy: resized(shape.xyxy, handle, dx, dy, this.picture) }), `size ${step}`);
  }

  relabel(id: number, name: string, classId: number): void {
    this.replace(id, (shape) => ({ ...shape, name, classId, score: null }), "");
  }

  remove(id: number): void {
    this.set(this.boxes.filter((shape) => shape.id !== id), "");
  }

  /** A new box between two corners; returns its id. */
  add(a: Point, b: Point, name: string, classId: number): number {
    const id = 1 + Math.max(-1, ...this.boxes.map((shape) => shape.id));
    const xyxy: Xyxy = spanned(a, b, this.picture);
    this.set([...this.boxes, { id, name, classId, score: null, xyxy }], "");
    return id;
  }

  undo(): void {
    const before = this.past.pop();
    if (!before) return;
    this.future.push(this.boxes);
    this.boxes = before;
    this.step = "";
  }

  redo(): void {
    const after = this.future.pop();
    if (!after) return;
    this.past.push(this.boxes);
    this.boxes = after;
    this.step = "";
  }

  /** What comes next is a step of its own. */
  settle(): void {
    this.step = "";
  }

  private replace(id: number, change: (shape: Shape) => Shape, step: string): void {
    // A box that somebody has touched is theirs: the model's score says nothing of it any more.
    const next = this.boxes.map((shape) => (shape.id === id ? { ...change(shape), score: null } : shape));
    this.set(next, step && `${step} ${id}`);
  }

  private set(next: readonly Shape[], step: string): void {
    if (!step || step !== this.step) {
      this.past.push(this.boxes);
      if (this.past.length > MOST_STEPS) this.past.shift();
    }
    this.step = step;
    this.future = [];
    this.boxes = next;
  }
}
