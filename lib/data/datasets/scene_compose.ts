/** One scene: artwork on a background, with the exact mask and box of everything in it. */

import { BACKGROUNDS, background } from '../../image/background.js';
import { div255, type RawImage } from '../../image/image.js';
import { resizeImage } from '../../native.js';
import { type Random, shuffle } from '../../random.js';
import type { Box } from '../../text/regions.js';

/** A drawing that can be put into a scene. */
export interface Artwork {
  /** Class id. */
  class: number;
  studio: string;
  /** (S, S, 4), colour multiplied by alpha. */
  image: RawImage;
}

/** Something in a scene. */
export interface Placed {
  artwork: Artwork;
  /** Bounds of the pixels that are visible, as shares of the image. */
  box: Box;
}

export interface Scene {
  width: number;
  height: number;
  /** (height, width, 3) */
  pixels: Uint8Array;
  /** (height, width): 1 + the index in `objects` of what covers a pixel, 0 for the background. */
  mask: Uint8Array;
  objects: Placed[];
}

const ASPECTS = [1, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16];
/** Most of the smaller of two squares that may lie under the other. */
const OVERLAP = 0.1;
/** Alpha from which on a pixel belongs to an object. */
const SOLID = 128;

/** Sky and ground, or one background: each of two random colours, cropped to the scene. */
function scenery(width: number, height: number, random: Random): Uint8Array {
  const side = Math.max(width, height),
    row = side * 3;
  const above = background(random.pick(BACKGROUNDS), side, random);
  const horizon = random.uniform() < 0.5 ? Math.round(height * random.between(0.4, 0.8)) : height;
  const below = horizon < height ? background(random.pick(BACKGROUNDS), side, random) : above;
  const pixels = new Uint8Array(width * height * 3);
  for (let y = 0; y < height; y++)
    pixels.set((y < horizon ? above : below).subarray(y * row, y * row + width * 3), y * width * 3);
  // Noise as of a sensor, in triples of one random number.
  const strength = random.below(10);
  if (strength > 0)
    for (let i = 0; i < pixels.length; i += 3) {
      const bits = random.uint32();
      for (let c = 0; c < 3; c++) {
        const v = pixels[i + c]! + ((((bits >>> (8 * c)) & 255) - 128) * strength) / 128;
        pixels[i + c] = v < 0 ? 0 : v > 255 ? 255 : v;
      }
    }
  return pixels;
}

interface Square {
  x: number;
  y: number;
  side: number;
}

/** Side of an object, as a share of the scene's shorter side. */
export type ObjectScale = readonly [low: number, high: number];
export const OBJECT_SCALE: ObjectScale = [0.2, 0.6];

/** A place for a square that leaves the others visible; undefined when none was found. */
function place(
  width: number,
  height: number,
  others: readonly Square[],
  [low, high]: ObjectScale,
  random: Random,
): Square | undefined {
  const short = Math.min(width, height);
  for (let attempt = 0; attempt < 30; attempt++) {
    // Later attempts are smaller.
    const side = Math.round(short * random.between(low, high - 0.03 * attempt * (high - low)));
    const square = { side, x: random.below(width - side + 1), y: random.below(height - side + 1) };
    const free = others.every((o) => {
      const across = Math.min(square.x + side, o.x + o.side) - Math.max(square.x, o.x);
      const down = Math.min(square.y + side, o.y + o.side) - Math.max(square.y, o.y);
      return across <= 0 || down <= 0 || across * down <= OVERLAP * Math.min(side, o.side) ** 2;
    });
    if (free) return square;
  }
  return undefined;
}

/** A shadow on the ground under a square: an ellipse that is darkest in its middle. */
function shadow(
  scene: Pick<Scene, 'width' | 'height' | 'pixels'>,
  { x, y, side }: Square,
  strength: number,
): void {
  const { width, height, pixels } = scene,
    cx = x + side / 2,
    cy = y + 0.96 * side,
    rx = 0.45 * side,
    ry = 0.1 * side;
  for (let v = Math.max(0, Math.floor(cy - ry)); v < Math.min(height, cy + ry); v++)
    for (let u = Math.max(0, Math.floor(cx - rx)); u < Math.min(width, cx + rx); u++) {
      const far = ((u + 0.5 - cx) / rx) ** 2 + ((v + 0.5 - cy) / ry) ** 2;
      if (far >= 1) continue;
      const keep = 1 - strength * (1 - far),
        i = (v * width + u) * 3;
      for (let c = i; c < i + 3; c++) pixels[c] = pixels[c]! * keep;
    }
}

/**
 * Lays artwork over the scene and writes `id` where it is solid. It is never mirrored: arrows, letters and moons would
 * become something else.
 */
function draw(
  scene: Omit<Scene, 'objects'>,
  artwork: RawImage,
  { x, y, side }: Square,
  id: number,
): void {
  const { width, pixels, mask } = scene;
  const from = resizeImage(artwork.data, artwork.height, artwork.width, 4, side, side);
  for (let v = 0; v < side; v++)
    for (let u = 0; u < side; u++) {
      const i = (v * side + u) * 4,
        alpha = from[i + 3]!;
      if (alpha === 0) continue;
      const at = (y + v) * width + x + u;
      for (let c = 0; c < 3; c++)
        pixels[at * 3 + c] = from[i + c]! + div255(pixels[at * 3 + c]! * (255 - alpha));
      if (alpha >= SOLID) mask[at] = id;
    }
}

/** Bounds of every id 1 … n in a mask, as shares of the image; undefined where an id does not occur. */
function bounds(mask: Uint8Array, width: number, height: number, n: number): (Box | undefined)[] {
  const low = new Int32Array(2 * (n + 1)).fill(2 ** 30),
    high = new Int32Array(2 * (n + 1)).fill(-1);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const k = 2 * mask[i]!;
      if (k === 0) continue;
      if (x < low[k]!) low[k] = x;
      if (x > high[k]!) high[k] = x;
      if (y < low[k + 1]!) low[k + 1] = y;
      high[k + 1] = y;
    }
  return Array.from({ length: n }, (_, j) => {
    const k = 2 * (j + 1);
    return high[k]! < 0
      ? undefined
      : ([
          low[k]! / width,
          low[k + 1]! / height,
          (high[k]! + 1) / width,
          (high[k + 1]! + 1) / height,
        ] as const);
  });
}

/**
 * Composes a scene of up to `artworks.length` objects; those that find no place are left out, the first never.
 * @param size the longer side is between this and 4/3 of it, pixels
 */
export function composeScene(
  artworks: readonly Artwork[],
  size: number,
  random: Random,
  scale: ObjectScale = OBJECT_SCALE,
): Scene {
  const long = size + random.below(Math.floor(size / 3) + 1),
    aspect = random.pick(ASPECTS);
  const width = Math.round(aspect >= 1 ? long : long * aspect),
    height = Math.round(aspect >= 1 ? long / aspect : long);
  const scene = {
    width,
    height,
    pixels: scenery(width, height, random),
    mask: new Uint8Array(width * height),
  };
  const squares: Square[] = [],
    there: Artwork[] = [];
  for (const artwork of artworks) {
    const square = place(width, height, squares, scale, random);
    if (!square) continue;
    squares.push(square);
    there.push(artwork);
  }
  const strength = random.between(0, 0.6);
  squares.forEach((square, i) => {
    shadow(scene, square, strength);
    draw(scene, there[i]!.image, square, i + 1);
  });
  const boxes = bounds(scene.mask, width, height, there.length);
  const objects: Placed[] = [],
    renumbered = new Uint8Array(there.length + 1);
  there.forEach((artwork, i) => {
    const box = boxes[i];
    if (box) renumbered[i + 1] = objects.push({ artwork, box });
  });
  // Something small can be covered altogether; the others close up.
  if (objects.length < there.length)
    scene.mask.forEach((id, i) => {
      scene.mask[i] = renumbered[id]!;
    });
  return { ...scene, objects };
}

/** `n` different items of a list. */
export function pickSome<T>(list: readonly T[], n: number, random: Random): T[] {
  const chosen = new Set<number>();
  while (chosen.size < Math.min(n, list.length)) chosen.add(random.below(list.length));
  return shuffle([...chosen], random).map((i) => list[i]!);
}
