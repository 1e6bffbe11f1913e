/**
 * Augmented views for self-distillation (SILC, SigLIP 2 §2.3, with DINO's augmentations): one global view of a large
 * part of the image, several local ones of small parts, and which patches of the global view are masked. Everything is
 * keyed by (seed, epoch, sample, view), so it does not depend on workers or order.
 */
import { ConfigError } from '../errors.js';
import { Random, Stream, shuffle } from '../random.js';
import { mirror, onWhite, randomCrop } from './augment.js';
import type { RawImage, ResizeImage } from './image.js';
import {
  brightness,
  contrast,
  gaussianBlur,
  greyscale,
  hue,
  saturation,
  solarise,
} from './photometric.js';

/** How one kind of view is made; probabilities in [0, 1]. */
export interface ViewSettings {
  /** Side of the square, pixels. */
  size: number;
  /** Part of the image's area. */
  scale: [low: number, high: number];
  /** Width to height of the part. */
  ratio: [low: number, high: number];
  /** Probability of mirroring. */
  flip: number;
  /** Probability of the four changes of colour, which come in random order. */
  colour: number;
  /** Most relative change of each. */
  brightness: number;
  contrast: number;
  saturation: number;
  /** Most turn of the colour circle. */
  hue: number;
  /** Probability of grey. */
  greyscale: number;
  /** Probability of blurring. */
  blur: number;
  /** Its standard deviation, pixels. */
  sigma: [low: number, high: number];
  /** Probability of solarisation. */
  solarise: number;
}

/** Views of a sample; plain data, so that it can go to a thread. */
export interface ViewsConfig {
  global: ViewSettings;
  local: ViewSettings;
  /** V, local views of a sample. */
  locals: number;
  /** Side of a patch, for the mask of the global view. */
  patch: number;
  /** Share of the patches that are masked, the same number in every image. */
  masked: number;
}

const COMMON = {
  ratio: [3 / 4, 4 / 3] as [number, number],
  flip: 0.5,
  colour: 0.8,
  brightness: 0.4,
  contrast: 0.4,
  saturation: 0.2,
  hue: 0.1,
  greyscale: 0.2,
  sigma: [0.1, 2] as [number, number],
};

/**
 * The recipe's views: a global one of 40–100 % of the area, eight local ones of 5–40 % at 96 px (or three eighths of a
 * smaller global view), half of the patches masked. Solarisation belongs to DINO's second global view, of which there is
 * none, so it is off.
 * @param size side of the global view: the model's image size
 */
export function viewsConfig(
  size: number,
  patch: number,
  changes: {
    global?: Partial<ViewSettings>;
    local?: Partial<ViewSettings>;
    locals?: number;
    masked?: number;
  } = {},
): ViewsConfig {
  const small = Math.max(1, Math.round(Math.min(96, (size * 3) / 8) / patch)) * patch;
  return checkViews({
    global: { ...COMMON, size, scale: [0.4, 1], blur: 1, solarise: 0, ...changes.global },
    local: { ...COMMON, size: small, scale: [0.05, 0.4], blur: 0.5, solarise: 0, ...changes.local },
    locals: changes.locals ?? 8,
    patch,
    masked: changes.masked ?? 0.5,
  });
}

/** Settings that are a probability or a share. */
const SHARES = [
  'flip',
  'colour',
  'brightness',
  'contrast',
  'saturation',
  'greyscale',
  'blur',
  'solarise',
] as const;

/** Returns the config if its numbers make sense. @throws ConfigError naming the field, what it must be, what it is */
export function checkViews(config: ViewsConfig): ViewsConfig {
  const number = (name: string, v: number, low: number, high: number, whole = false): void => {
    if (!(v >= low && v <= high) || (whole && !Number.isInteger(v)))
      throw new ConfigError(
        `views: ${name} must be ${whole ? 'an integer' : 'a number'} in [${low}, ${high}] but is ` +
          JSON.stringify(v),
      );
  };
  const range = (name: string, v: readonly number[], low: number, high: number): void => {
    if (!(v.length === 2 && v[0]! >= low && v[0]! <= v[1]! && v[1]! <= high))
      throw new ConfigError(
        `views: ${name} must be [low, high] within [${low}, ${high}] but is ${JSON.stringify(v)}`,
      );
  };
  number('patch', config.patch, 1, 1024, true);
  number('locals', config.locals, 1, 64, true);
  for (const kind of ['global', 'local'] as const) {
    const v = config[kind];
    number(`${kind}.size`, v.size, config.patch, 4096, true);
    range(`${kind}.scale`, v.scale, 0.001, 1);
    range(`${kind}.ratio`, v.ratio, 0.1, 10);
    range(`${kind}.sigma`, v.sigma, 0, 100);
    for (const key of SHARES) number(`${kind}.${key}`, v[key], 0, 1);
    number(`${kind}.hue`, v.hue, 0, 0.5);
  }
  const N = patchesOf(config),
    hidden = Math.round(config.masked * N);
  if (!(config.masked > 0 && config.masked < 1 && hidden >= 1 && hidden < N))
    throw new ConfigError(
      `views: masked must be a share in (0, 1) that hides some of the ${N} patches and leaves some ` +
        `but is ${config.masked}`,
    );
  return config;
}

/** Patches of the global view. */
export function patchesOf(config: ViewsConfig): number {
  return Math.floor(config.global.size / config.patch) ** 2;
}

/** The views of a batch of B samples. */
export interface ViewBatch {
  /** (B, S, S, 3) */
  globalViews: Uint8Array;
  /** (V·B, s, s, 3), view by view: view v of sample b is at v·B + b. */
  localViews: Uint8Array;
  /** (B, N), 1 where a patch of the global view is masked; the same number in every row. */
  masks: Uint8Array;
  /** S and s. */
  globalSize: number;
  localSize: number;
}

/** Room for the views of a batch. */
export function emptyViews(config: ViewsConfig, size: number): ViewBatch {
  const {
    global: { size: S },
    local: { size: s },
  } = config;
  return {
    globalViews: new Uint8Array(size * S * S * 3),
    localViews: new Uint8Array(config.locals * size * s * s * 3),
    masks: new Uint8Array(size * patchesOf(config)),
    globalSize: S,
    localSize: s,
  };
}

/** Where the views of sample `slot` of a batch go. */
export function viewTargets(batch: ViewBatch, slot: number, config: ViewsConfig): ViewTargets {
  const size = batch.masks.length / patchesOf(config);
  const part = (all: Uint8Array, i: number, of: number): Uint8Array =>
    all.subarray(i * (all.length / of), (i + 1) * (all.length / of));
  return {
    global: part(batch.globalViews, slot, size),
    mask: part(batch.masks, slot, size),
    locals: Array.from({ length: config.locals }, (_, v) =>
      part(batch.localViews, v * size + slot, config.locals * size),
    ),
  };
}

/** Where the views of a sample go. */
export interface ViewTargets {
  /** (S, S, 3) */
  global: Uint8Array;
  /** V of (s, s, 3) */
  locals: Uint8Array[];
  /** (N), 1 where a patch is masked */
  mask: Uint8Array;
}

/** Makes all views of one image and its mask. Four channels must be premultiplied; they are laid on white. */
export function makeViews(
  image: RawImage,
  config: ViewsConfig,
  key: { seed: number; epoch: number; sample: number },
  resize: ResizeImage,
  out: ViewTargets,
): void {
  const rgb = opaque(image);
  const random = (stream: number, view: number): Random =>
    new Random(key.seed, stream, key.epoch, key.sample, view);
  out.global.set(makeView(rgb, config.global, random(Stream.view, 0), resize));
  out.locals.forEach((to, v) =>
    to.set(makeView(rgb, config.local, random(Stream.view, v + 1), resize)),
  );
  out.mask.set(randomMask(patchesOf(config), config.masked, random(Stream.mask, 0)));
}

/** One view: crop and resize, mirror, colour, grey, blur, solarise. (size, size, 3) */
export function makeView(
  image: RawImage,
  v: ViewSettings,
  random: Random,
  resize: ResizeImage,
): Uint8Array {
  const part = randomCrop(image, v.scale, v.ratio, random);
  let data = resize(part.data, part.height, part.width, 3, v.size, v.size);
  if (random.uniform() < v.flip)
    data = mirror({ data, height: v.size, width: v.size, channels: 3 }).data;
  if (random.uniform() < v.colour) jitter(data, v, random);
  if (random.uniform() < v.greyscale) greyscale(data);
  if (random.uniform() < v.blur)
    gaussianBlur(data, v.size, v.size, random.between(v.sigma[0], v.sigma[1]));
  if (random.uniform() < v.solarise) solarise(data);
  return data;
}

function jitter(data: Uint8Array, v: ViewSettings, random: Random): void {
  const around = (x: number): number => random.between(1 - x, 1 + x);
  const [b, c, s, h] = [
    around(v.brightness),
    around(v.contrast),
    around(v.saturation),
    random.between(-v.hue, v.hue),
  ];
  const changes = [
    () => brightness(data, b),
    () => contrast(data, c),
    () => saturation(data, s),
    () => hue(data, h),
  ];
  for (const change of shuffle(changes, random)) change();
}

/** Exactly round(share · n) of n patches, uniformly. */
export function randomMask(n: number, share: number, random: Random): Uint8Array {
  const mask = new Uint8Array(n);
  mask.fill(1, 0, Math.round(share * n));
  return shuffle(mask, random);
}

function opaque(image: RawImage): RawImage {
  if (image.channels === 3) return image;
  const data = new Uint8Array(image.height * image.width * 3);
  onWhite(image.data, data);
  return { ...image, data, channels: 3 };
}
