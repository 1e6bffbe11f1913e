/**
 * From a decoded image to the square the model sees, by a short list of named transforms given as
 * JSON. All randomness comes from the generator passed in, so a sample's augmentation depends on
 * its keys alone.
 */
import { ConfigError } from '../errors.js';
import type { Random } from '../random.js';
import { BACKGROUNDS, type Background, background } from './background.js';
import { div255, type RawImage, type ResizeImage } from './image.js';

/**
 * One step of the pipeline. Exactly one of resize, random-resized-crop and place makes the image
 * square.
 */
export type ImageTransform =
  /** Stretches the whole image to the square, as SigLIP 2's processor does. */
  | { name: 'resize' }
  /**
   * A random part with `scale` of the area and `ratio` width to height, stretched to the square.
   */
  | { name: 'random-resized-crop'; scale?: [number, number]; ratio?: [number, number] }
  /**
   * Lays artwork with transparency on a background: its longer side is a random part `scale` of the
   * square's, its position is uniform among those inside, and it is turned by up to `rotate`
   * degrees either way (default 0). `white` (default 0) is the probability of a white background
   * instead of one of `backgrounds` (default all).
   */
  | {
      name: 'place';
      scale?: [number, number];
      rotate?: number;
      backgrounds?: Background[];
      white?: number;
    }
  /** Mirrors left and right with `probability` (default 0.5). */
  | { name: 'flip'; probability?: number }
  /**
   * Scales brightness, contrast and saturation, each by a random factor in [1 - x, 1 + x] (default
   * 0).
   */
  | { name: 'colour'; brightness?: number; contrast?: number; saturation?: number };

const SHAPING = new Set(['resize', 'random-resized-crop', 'place']);

const KEYS: Record<ImageTransform['name'], readonly string[]> = {
  resize: [],
  'random-resized-crop': ['scale', 'ratio'],
  place: ['scale', 'rotate', 'backgrounds', 'white'],
  flip: ['probability'],
  colour: ['brightness', 'contrast', 'saturation'],
};

/**
 * Throws ConfigError when a list of transforms has an unknown name or key, a value out of range, or
 * a wrong order.
 */
export function checkTransforms(transforms: readonly ImageTransform[]): void {
  const fail = (i: number, what: string): never => {
    throw new ConfigError(`image.transforms[${i}]: ${what}`);
  };
  const number = (i: number, key: string, value: unknown, low: number, high: number): void => {
    if (value !== undefined && !(typeof value === 'number' && value >= low && value <= high)) {
      fail(i, `${key} must be a number in [${low}, ${high}] but is ${JSON.stringify(value)}`);
    }
  };
  const range = (i: number, key: string, value: unknown, low: number, high: number): void => {
    if (value === undefined) return;
    const [a, b] = Array.isArray(value) && value.length === 2 ? (value as number[]) : [];
    if (!(typeof a === 'number' && typeof b === 'number' && low <= a && a <= b && b <= high)) {
      fail(
        i,
        `${key} must be [low, high] within [${low}, ${high}] but is ${JSON.stringify(value)}`,
      );
    }
  };
  let shaping = 0;
  transforms.forEach((transform, i) => {
    const keys = KEYS[transform.name];
    if (keys === undefined) {
      fail(
        i,
        `name must be one of ${Object.keys(KEYS).join(', ')} ` +
          `but is ${JSON.stringify(transform.name)}`,
      );
    }
    for (const key of Object.keys(transform)) {
      if (key !== 'name' && !keys.includes(key)) {
        fail(i, `${transform.name} has no setting "${key}"; it has ${keys.join(', ') || 'none'}`);
      }
    }
    if (SHAPING.has(transform.name)) shaping++;
    else if (transform.name === 'colour' && shaping === 0)
      fail(i, 'colour must come after the transform that makes the square');
    switch (transform.name) {
      case 'random-resized-crop':
        range(i, 'scale', transform.scale, 0.001, 1);
        range(i, 'ratio', transform.ratio, 0.1, 10);
        break;
      case 'place':
        range(i, 'scale', transform.scale, 0.05, 1);
        number(i, 'rotate', transform.rotate, 0, 180);
        number(i, 'white', transform.white, 0, 1);
        if (
          transform.backgrounds !== undefined &&
          (!Array.isArray(transform.backgrounds) ||
            transform.backgrounds.length === 0 ||
            transform.backgrounds.some((b) => !BACKGROUNDS.includes(b)))
        ) {
          fail(
            i,
            `backgrounds must be a list from ${BACKGROUNDS.join(', ')} ` +
              `but is ${JSON.stringify(transform.backgrounds)}`,
          );
        }
        break;
      case 'flip':
        number(i, 'probability', transform.probability, 0, 1);
        break;
      case 'colour':
        number(i, 'brightness', transform.brightness, 0, 1);
        number(i, 'contrast', transform.contrast, 0, 1);
        number(i, 'saturation', transform.saturation, 0, 1);
        break;
      default:
    }
  });
  if (shaping !== 1) {
    throw new ConfigError(
      'image.transforms must have exactly one of resize, random-resized-crop and place ' +
        `but has ${shaping}`,
    );
  }
}

/** Whether images keep their transparency until the transforms have run: only `place` uses it. */
export function wantsAlpha(transforms: readonly ImageTransform[]): boolean {
  return transforms.some(({ name }) => name === 'place');
}

/**
 * Applies the transforms.
 *
 * @param image decoded pixels, not changed; four channels must be premultiplied
 * @param size side S of the result
 * @param out where the (S, S, 3) result goes, S*S*3 bytes
 */
export function applyTransforms(
  image: RawImage,
  transforms: readonly ImageTransform[],
  size: number,
  random: Random,
  resize: ResizeImage,
  out: Uint8Array,
): void {
  let current = image;
  transforms.forEach((transform, i) => {
    switch (transform.name) {
      case 'resize':
        current = square(
          current,
          resize(current.data, current.height, current.width, current.channels, size, size),
          size,
        );
        break;
      case 'random-resized-crop': {
        const part = randomCrop(
          current,
          transform.scale ?? [0.08, 1],
          transform.ratio ?? [3 / 4, 4 / 3],
          random,
        );
        current = square(
          part,
          resize(part.data, part.height, part.width, part.channels, size, size),
          size,
        );
        break;
      }
      case 'place':
        // The last transform draws where the result goes.
        current = place(
          current,
          transform,
          size,
          random,
          resize,
          i === transforms.length - 1 ? out : new Uint8Array(size * size * 3),
        );
        break;
      case 'flip':
        if (random.uniform() < (transform.probability ?? 0.5)) current = mirror(current);
        break;
      case 'colour':
        current = jitter(current, transform, random);
        break;
    }
  });
  if (current.data === out) return;
  if (current.channels === 3) out.set(current.data);
  else onWhite(current.data, out);
}

function square(image: RawImage, data: Uint8Array, size: number): RawImage {
  return { data, width: size, height: size, channels: image.channels };
}

/** Premultiplied RGBA on white. */
export function onWhite(rgba: Uint8Array, out: Uint8Array): void {
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    const rest = 255 - (rgba[i + 3] as number);
    for (let c = 0; c < 3; c++) out[j + c] = (rgba[i + c] as number) + rest;
  }
}

function crop(image: RawImage, top: number, left: number, height: number, width: number): RawImage {
  const { channels } = image;
  const data = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { data, height, width, channels };
}

/**
 * Inception-style crop: ten tries at a random area and log-uniform ratio, then the largest centred
 * part that fits.
 */
export function randomCrop(
  image: RawImage,
  scale: [number, number],
  ratio: [number, number],
  random: Random,
): RawImage {
  const { height, width } = image;
  for (let i = 0; i < 10; i++) {
    const area = height * width * random.between(scale[0], scale[1]);
    const aspect = Math.exp(random.between(Math.log(ratio[0]), Math.log(ratio[1])));
    const w = Math.round(Math.sqrt(area * aspect));
    const h = Math.round(Math.sqrt(area / aspect));
    if (w >= 1 && h >= 1 && w <= width && h <= height) {
      return crop(image, random.below(height - h + 1), random.below(width - w + 1), h, w);
    }
  }
  const aspect = Math.min(Math.max(width / height, ratio[0]), ratio[1]);
  const w = Math.max(1, Math.min(width, Math.round(height * aspect)));
  const h = Math.max(1, Math.min(height, Math.round(width / aspect)));
  return crop(image, (height - h) >> 1, (width - w) >> 1, h, w);
}

/** Left and right exchanged. */
export function mirror(image: RawImage): RawImage {
  const { data, height, width, channels } = image;
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (y * width + x) * channels;
      const to = (y * width + width - 1 - x) * channels;
      for (let c = 0; c < channels; c++) out[to + c] = data[from + c] as number;
    }
  }
  return { data: out, height, width, channels };
}

function jitter(
  image: RawImage,
  { brightness = 0, contrast = 0, saturation = 0 }: Extract<ImageTransform, { name: 'colour' }>,
  random: Random,
): RawImage {
  const { data, channels } = image;
  if (channels !== 3) {
    const rgb = new Uint8Array(image.height * image.width * 3);
    onWhite(data, rgb);
    image = { ...image, data: rgb, channels: 3 };
  }
  const source = image.data;
  const out = new Uint8ClampedArray(source.length);
  const b = random.between(1 - brightness, 1 + brightness);
  const k = random.between(1 - contrast, 1 + contrast);
  const s = random.between(1 - saturation, 1 + saturation);
  let mean = 0;
  for (let i = 0; i < source.length; i++) mean += source[i] as number;
  mean /= source.length;
  for (let i = 0; i < source.length; i += 3) {
    const [red, green, blue] = [
      source[i] as number,
      source[i + 1] as number,
      source[i + 2] as number,
    ];
    const grey = 0.299 * red + 0.587 * green + 0.114 * blue; // ITU-R BT.601 luma
    for (let c = 0; c < 3; c++) {
      const saturated = grey + s * ((source[i + c] as number) - grey);
      out[i + c] = b * (mean + k * (saturated - mean));
    }
  }
  return { ...image, data: new Uint8Array(out.buffer) };
}

/** Artwork of any opacity on a background, drawn into `out`, (S, S, 3). */
function place(
  image: RawImage,
  transform: Extract<ImageTransform, { name: 'place' }>,
  size: number,
  random: Random,
  resize: ResizeImage,
  out: Uint8Array,
): RawImage {
  const { scale = [0.5, 1], rotate = 0, backgrounds = BACKGROUNDS, white = 0 } = transform;
  const side = size * random.between(scale[0], scale[1]);
  const longer = Math.max(image.height, image.width);
  const height = Math.max(1, Math.min(size, Math.round((side * image.height) / longer)));
  const width = Math.max(1, Math.min(size, Math.round((side * image.width) / longer)));
  const top = random.below(size - height + 1);
  const left = random.below(size - width + 1);
  const angle = rotate > 0 ? (random.between(-rotate, rotate) * Math.PI) / 180 : 0;
  if (random.uniform() < white) out.fill(255);
  else background(random.pick(backgrounds), size, random, out);

  let art = resize(image.data, image.height, image.width, image.channels, height, width);
  if (image.channels === 3) art = opaque(art);
  if (angle !== 0) art = rotated(art, height, width, angle);
  for (let y = 0; y < height; y++) {
    let from = y * width * 4;
    let to = ((top + y) * size + left) * 3;
    for (let x = 0; x < width; x++, from += 4, to += 3) {
      const rest = 255 - (art[from + 3] as number);
      if (rest === 255) continue;
      for (let c = 0; c < 3; c++) {
        // Resizing rounds colour and alpha apart, so the sum can be over by one.
        out[to + c] = Math.min(
          255,
          (art[from + c] as number) + div255((out[to + c] as number) * rest),
        );
      }
    }
  }
  return { data: out, height: size, width: size, channels: 3 };
}

function opaque(rgb: Uint8Array): Uint8Array {
  const out = new Uint8Array((rgb.length / 3) * 4).fill(255);
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    for (let c = 0; c < 3; c++) out[j + c] = rgb[i + c] as number;
  }
  return out;
}

/**
 * Turns premultiplied RGBA about its centre (bilinear); what leaves the rectangle is cut, what
 * enters is clear.
 */
function rotated(art: Uint8Array, height: number, width: number, angle: number): Uint8Array {
  const out = new Uint8Array(art.length);
  const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
  const [cy, cx] = [(height - 1) / 2, (width - 1) / 2];
  const at = (y: number, x: number, c: number): number =>
    y < 0 || x < 0 || y >= height || x >= width ? 0 : (art[(y * width + x) * 4 + c] as number);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sy = cy + (y - cy) * cos - (x - cx) * sin;
      const sx = cx + (y - cy) * sin + (x - cx) * cos;
      const [y0, x0] = [Math.floor(sy), Math.floor(sx)];
      const [fy, fx] = [sy - y0, sx - x0];
      for (let c = 0; c < 4; c++) {
        const above = at(y0, x0, c) * (1 - fx) + at(y0, x0 + 1, c) * fx;
        const below = at(y0 + 1, x0, c) * (1 - fx) + at(y0 + 1, x0 + 1, c) * fx;
        out[(y * width + x) * 4 + c] = Math.round(above * (1 - fy) + below * fy);
      }
    }
  }
  return out;
}
