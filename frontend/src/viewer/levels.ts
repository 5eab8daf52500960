// A picture in several sizes, each half as wide as the one before, so that a large one is cheap to draw when it is small.

/** Longest side below which no smaller size is made. */
const ENOUGH = 1024;

export class Levels {
  private constructor(private readonly sizes: ImageBitmap[]) {}

  get width(): number {
    return this.sizes[0]!.width;
  }

  get height(): number {
    return this.sizes[0]!.height;
  }

  /** Decode a picture, turned as its EXIF data says. Raises: DOMException, if this browser cannot. */
  static async decode(file: Blob): Promise<Levels> {
    const levels = Levels.of(await createImageBitmap(file));
    while (Math.max(levels.smallest.width, levels.smallest.height) > ENOUGH) {
      const from = levels.smallest;
      levels.sizes.push(
        await createImageBitmap(from, {
          resizeWidth: Math.max(Math.round(from.width / 2), 1),
          resizeHeight: Math.max(Math.round(from.height / 2), 1),
          resizeQuality: "medium",
        }),
      );
    }
    return levels;
  }

  /** One size alone: a frame that the next one replaces. */
  static of(bitmap: ImageBitmap): Levels {
    return new Levels([bitmap]);
  }

  /** The smallest size that has at least a pixel for each of the screen's, at so many screen pixels for one of the picture. */
  at(scale: number): ImageBitmap {
    let best = this.sizes[0]!;
    for (const size of this.sizes) if (size.width >= this.width * scale) best = size;
    return best;
  }

  close(): void {
    for (const size of this.sizes) size.close();
  }

  private get smallest(): ImageBitmap {
    return this.sizes[this.sizes.length - 1]!;
  }
}
