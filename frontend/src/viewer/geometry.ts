// Rectangles and the one transform between picture and screen; nothing here touches the page.

export type Xyxy = readonly [number, number, number, number];

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Size {
  readonly width: number;
  readonly height: number;
}

/** Picture → screen, in CSS pixels: `screen = picture * scale + offset`. */
export interface Transform {
  readonly scale: number;
  readonly x: number;
  readonly y: number;
}

/** One of the eight handles of a box: which of its sides follow the pointer. */
export interface Handle {
  readonly x: -1 | 0 | 1;
  readonly y: -1 | 0 | 1;
}

export const HANDLES: readonly Handle[] = [
  { x: -1, y: -1 },
  { x: 0, y: -1 },
  { x: 1, y: -1 },
  { x: 1, y: 0 },
  { x: 1, y: 1 },
  { x: 0, y: 1 },
  { x: -1, y: 1 },
  { x: -1, y: 0 },
];

export const MOST_SCALE = 64;
const MOST_FITTED = 4;
/** Smallest side of a box that can be drawn, in pixels of the picture. */
export const LEAST_SIDE = 1;

export function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

export function toPicture(at: Point, view: Transform): Point {
  return { x: (at.x - view.x) / view.scale, y: (at.y - view.y) / view.scale };
}

/** The whole picture in the middle of the stage; a small one is enlarged so many times at most. */
export function fitted(picture: Size, stage: Size, margin = 0): Transform {
  return framed([0, 0, picture.width, picture.height], stage, margin, MOST_FITTED);
}

/** A region of the picture, as large as the stage allows. */
export function framed([x1, y1, x2, y2]: Xyxy, stage: Size, margin = 0, most = MOST_SCALE): Transform {
  const across = Math.max(stage.width - 2 * margin, 1) / Math.max(x2 - x1, 1e-6);
  const down = Math.max(stage.height - 2 * margin, 1) / Math.max(y2 - y1, 1e-6);
  const scale = Math.min(across, down, most);
  return {
    scale,
    x: (stage.width - (x1 + x2) * scale) / 2,
    y: (stage.height - (y1 + y2) * scale) / 2,
  };
}

/** Enlarged by a factor, so that what lies under a point of the screen stays there. */
export function zoomed(view: Transform, factor: number, at: Point, least: number): Transform {
  const scale = clamp(view.scale * factor, least, MOST_SCALE);
  const grown = scale / view.scale;
  return { scale, x: at.x - (at.x - view.x) * grown, y: at.y - (at.y - view.y) * grown };
}

/** Moved back so far that the picture cannot be lost: its middle half stays in sight on each axis. */
export function held(view: Transform, picture: Size, stage: Size): Transform {
  const hold = (offset: number, side: number, room: number) => {
    const length = side * view.scale;
    return length <= room ? clamp(offset, -length / 2, room - length / 2) : clamp(offset, room / 2 - length, room / 2);
  };
  return {
    scale: view.scale,
    x: hold(view.x, picture.width, stage.width),
    y: hold(view.y, picture.height, stage.height),
  };
}

/** A rectangle from two corners in any order, inside the picture. */
export function spanned(a: Point, b: Point, picture: Size): Xyxy {
  return [
    clamp(Math.min(a.x, b.x), 0, picture.width),
    clamp(Math.min(a.y, b.y), 0, picture.height),
    clamp(Math.max(a.x, b.x), 0, picture.width),
    clamp(Math.max(a.y, b.y), 0, picture.height),
  ];
}

export function moved([x1, y1, x2, y2]: Xyxy, dx: number, dy: number, picture: Size): Xyxy {
  const x = clamp(dx, -x1, picture.width - x2);
  const y = clamp(dy, -y1, picture.height - y2);
  return [x1 + x, y1 + y, x2 + x, y2 + y];
}

/** A box whose sides at a handle moved; a side stops at its opposite and at the edge of the picture. */
export function resized([x1, y1, x2, y2]: Xyxy, handle: Handle, dx: number, dy: number, picture: Size): Xyxy {
  return [
    handle.x < 0 ? clamp(x1 + dx, 0, x2 - LEAST_SIDE) : x1,
    handle.y < 0 ? clamp(y1 + dy, 0, y2 - LEAST_SIDE) : y1,
    handle.x > 0 ? clamp(x2 + dx, x1 + LEAST_SIDE, picture.width) : x2,
    handle.y > 0 ? clamp(y2 + dy, y1 + LEAST_SIDE, picture.height) : y2,
  ];
}

export function area([x1, y1, x2, y2]: Xyxy): number {
  return Math.max(x2 - x1, 0) * Math.max(y2 - y1, 0);
}

/** Whether a point lies in a box or so near to its edge. */
export function contains([x1, y1, x2, y2]: Xyxy, at: Point, near = 0): boolean {
  return at.x >= x1 - near && at.x <= x2 + near && at.y >= y1 - near && at.y <= y2 + near;
}

export function handlePoint([x1, y1, x2, y2]: Xyxy, handle: Handle): Point {
  return {
    x: handle.x < 0 ? x1 : handle.x > 0 ? x2 : (x1 + x2) / 2,
    y: handle.y < 0 ? y1 : handle.y > 0 ? y2 : (y1 + y2) / 2,
  };
}
