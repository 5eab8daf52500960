// The picture at the present enlargement, in squares that are kept: while it is only moved, nothing is scaled anew.

import type { Size, Transform } from "./geometry";
import { drawPicture } from "./draw";
import type { Levels } from "./levels";

/** Side of a square, in pixels of the screen. */
const SIDE = 512;
/** Squares kept: a few screens full. */
const MOST = 96;

export class Tiles {
  private readonly kept = new Map<string, HTMLCanvasElement>();
  private levels: Levels | null = null;
  private scale = 0;

  /** Draw what is in sight. The first time at an enlargement it is scaled at once, since the next may be another one. */
  draw(context: CanvasRenderingContext2D, levels: Levels, view: Transform, stage: Size, ratio: number): void {
    const scale = view.scale * ratio;
    if (levels !== this.levels || scale !== this.scale) {
      this.clear();
      this.levels = levels;
      this.scale = scale;
      drawPicture(context, levels, view, stage, ratio);
      return;
    }
    const [x, y] = [Math.round(view.x * ratio), Math.round(view.y * ratio)];
    const [width, height] = [levels.width * scale, levels.height * scale];
    const from = (offset: number) => Math.max(Math.floor(-offset / SIDE), 0);
    const to = (offset: number, room: number, length: number) => Math.ceil(Math.min((room * ratio - offset) / SIDE, length / SIDE));
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    for (let row = from(y); row < to(y, stage.height, height); row += 1) {
      for (let column = from(x); column < to(x, stage.width, width); column += 1) {
        context.drawImage(this.at(column, row), x + column * SIDE, y + row * SIDE);
      }
    }
    context.restore();
  }

  clear(): void {
    this.kept.clear();
  }

  private at(column: number, row: number): HTMLCanvasElement {
    const key = `${column} ${row}`;
    const found = this.kept.get(key);
    // Those used last stand last.
    if (found) this.kept.delete(key);
    const tile = found ?? this.made(column, row);
    this.kept.set(key, tile);
    if (this.kept.size > MOST) this.kept.delete(this.kept.keys().next().value!);
    return tile;
  }

  private made(column: number, row: number): HTMLCanvasElement {
    const tile = document.createElement("canvas");
    tile.width = tile.height = SIDE;
    const view = { scale: this.scale, x: -column * SIDE, y: -row * SIDE };
    drawPicture(tile.getContext("2d")!, this.levels!, view, tile, 1);
    return tile;
  }
}
