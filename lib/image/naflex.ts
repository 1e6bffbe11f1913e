/**
 * NaFlex preprocessing (SigLIP 2, section 2.4.2): an image keeps its aspect ratio and becomes at
 * most so many patches. Images of a batch lie one after the other, without padding.
 */
import { ConfigError, DataError, ShapeError } from '../errors.js';
import { resizeImage } from '../native.js';
import type { RawImage, ResizeImage } from './image.js';

/** Patches of several images, packed. S images, T patches in all, P pixels a side. */
export interface NaflexBatch {
  /**
   * (T, P*P*3): images one after the other, the patches of one row by row, the bytes of a patch in
   * the order (row, column, channel).
   */
  patches: Uint8Array;
  /** (S + 1): the patches of image s are those from offsets[s] on, up to offsets[s + 1]. */
  offsets: Int32Array;
  /** (S, 2): patches of every image down and across. */
  shapes: Int32Array;
}

/** One image cut into patches; `packNaflex` makes a batch of them. */
export interface NaflexImage {
  /** (rows * columns, P*P*3), in the order of `NaflexBatch.patches`. */
  patches: Uint8Array;
  rows: number;
  columns: number;
}

/**
 * The grid of patches an image is resized to: of all scales, up to 100, the largest that gives at
 * most `maxTokens` patches, each side rounded up to whole patches on its own. Found by bisection to
 * 1e-5 in double precision, as the public preprocessors do, so that grids are theirs. Small images
 * are enlarged.
 *
 * @param height in pixels
 * @param width in pixels
 * @param patch side of a patch, in pixels
 * @throws ConfigError for a patch or number of tokens that is no positive integer; DataError for an
 *   image without pixels, or so long that it cannot be brought to so few patches
 */
export function naflexGrid(
  height: number,
  width: number,
  patch: number,
  maxTokens: number,
): [rows: number, columns: number] {
  if (!isCount(patch))
    throw new ConfigError(`naflex: the patch must be a positive integer but is ${patch}`);
  if (!isCount(maxTokens)) {
    throw new ConfigError(`naflex: maxTokens must be a positive integer but is ${maxTokens}`);
  }
  if (!isCount(height) || !isCount(width)) {
    throw new DataError(`naflex: an image must have at least one pixel but is ${height}×${width}`);
  }
  const cells = (side: number, scale: number): number =>
    Math.max(1, Math.ceil((side * scale) / patch));
  let low = 1e-6;
  let high = 100;
  while (high - low >= 1e-5) {
    const scale = (low + high) / 2;
    if (cells(height, scale) * cells(width, scale) <= maxTokens) low = scale;
    else high = scale;
  }
  const rows = cells(height, low);
  const columns = cells(width, low);
  if (rows * columns > maxTokens) {
    throw new DataError(
      `naflex: an image of ${height}×${width} is too long for ${maxTokens} patches of ${patch} px; ` +
        'crop it',
    );
  }
  return [rows, columns];
}

/**
 * Resizes an image (PIL's antialiased bilinear filter) to its NaFlex grid and cuts it into patches.
 *
 * @param image three channels
 * @param patch side of a patch, in pixels
 * @throws DataError when the image is not (height, width, 3) bytes; and as `naflexGrid`
 */
export function naflexImage(
  image: RawImage,
  patch: number,
  maxTokens: number,
  resize: ResizeImage = resizeImage,
): NaflexImage {
  const { data, height, width, channels } = image;
  const [rows, columns] = naflexGrid(height, width, patch, maxTokens);
  if (channels !== 3 || data.length !== height * width * 3) {
    throw new DataError(
      `naflex: an image of ${height}×${width} must have ${height * width * 3} bytes of RGB but has ` +
        `${data.length} in ${channels} channels`,
    );
  }
  const pixels = resize(data, height, width, 3, rows * patch, columns * patch);
  return { patches: patchify(pixels, rows, columns, patch), rows, columns };
}

/** Pixels (rows*P, columns*P, 3) to patches (rows * columns, P*P*3). */
export function patchify(
  pixels: Uint8Array,
  rows: number,
  columns: number,
  patch: number,
): Uint8Array {
  const patches = new Uint8Array(pixels.length);
  const run = 3 * patch;
  let to = 0;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      for (let y = 0; y < patch; y++, to += run) {
        const from = ((row * patch + y) * columns + column) * run;
        patches.set(pixels.subarray(from, from + run), to);
      }
    }
  }
  return patches;
}

/** Lays images one after the other. They must have the same size of patch. */
export function packNaflex(images: readonly NaflexImage[]): NaflexBatch {
  const offsets = new Int32Array(images.length + 1);
  images.forEach(({ rows, columns }, s) => {
    offsets[s + 1] = offsets[s]! + rows * columns;
  });
  const patches = new Uint8Array(images.reduce((sum, image) => sum + image.patches.length, 0));
  let to = 0;
  for (const image of images) {
    patches.set(image.patches, to);
    to += image.patches.length;
  }
  return { patches, offsets, shapes: Int32Array.from(images.flatMap((i) => [i.rows, i.columns])) };
}

/**
 * Proves that the parts of a batch fit together.
 *
 * @param patch side of a patch, in pixels
 * @returns S, T and the most patches of one image
 * @throws ShapeError naming the part
 */
export function checkNaflexBatch(
  batch: NaflexBatch,
  patch: number,
): { images: number; tokens: number; longest: number } {
  const { patches, offsets, shapes } = batch;
  const images = offsets.length - 1;
  const fail = (what: string): never => {
    throw new ShapeError(`naflex batch: ${what}`);
  };
  if (images < 1) fail('there must be at least one image');
  if (shapes.length !== 2 * images) {
    fail(`shapes must be [${images}, 2], as offsets say, but has ${shapes.length} values`);
  }
  if (offsets[0] !== 0) fail(`offsets must begin with 0 but begin with ${offsets[0]}`);
  let longest = 0;
  for (let s = 0; s < images; s++) {
    const [rows, columns] = [shapes[2 * s]!, shapes[2 * s + 1]!];
    const length = offsets[s + 1]! - offsets[s]!;
    if (rows < 1 || columns < 1 || rows * columns !== length) {
      fail(`image ${s} has ${length} patches by its offsets but is ${rows}×${columns}`);
    }
    longest = Math.max(longest, length);
  }
  const tokens = offsets[images]!;
  if (patches.length !== tokens * patch * patch * 3) {
    fail(`patches must be [${tokens}, ${patch * patch * 3}] but has ${patches.length} bytes`);
  }
  return { images, tokens, longest };
}

function isCount(n: number): boolean {
  return Number.isSafeInteger(n) && n > 0;
}
