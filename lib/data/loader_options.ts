/** Options of the data loader, their checks, and what the workers need of them. */
import { ConfigError } from '../errors.js';
import type { Tolerance } from '../fs/skips.js';
import { checkTransforms, type ImageTransform } from '../image/augment.js';
import { type AlphaMode, DEFAULT_ALPHA } from '../image/image.js';
import { checkViews, type ViewsConfig } from '../image/views.js';
import { type CaptionChoice, checkCaptionChoice } from '../text/captions.js';
import { checkBoxFormat } from '../text/regions.js';
import type { DecoderTargets } from '../text/sequences.js';
import type { TokenizerOptions } from '../text/tokenizer.js';
import type { BuilderConfig } from './batch_builder.js';
import { checkNaflexTargets, type NaflexTargets } from './naflex_lengths.js';

/** Options of `DataLoader`. */
export interface LoaderOptions {
  batchSize: number;
  seed: number;
  /** Side S of the images, pixels. */
  size: number;
  /** Default [{name: 'resize'}]. */
  transforms?: ImageTransform[];
  /** What becomes of transparency where no `place` uses it. Default "white". */
  alpha?: AlphaMode;
  /** Images with more pixels are refused. Default 178,956,970. */
  maxPixels?: number;
  /** Augmented views of every image for self-distillation, in `batch.views`. Default none. */
  views?: ViewsConfig;
  /** Other sides, pixels, at which every image comes too, made from what the transforms made, in `batch.resized`. */
  sizes?: readonly number[];
  /** Default {pick: ['any']}. */
  captions?: CaptionChoice;
  /** Default: the Gemma tokenizer, 64 ids; null makes no ids. */
  tokenizer?: TokenizerOptions | null;
  /**
   * Also makes sequences for the caption decoder, with one region for each task chosen anew in every
   * epoch. Boxes follow no crop or flip: the transforms may only be resize and colour.
   */
  decoder?: DecoderTargets;
  /**
   * Images keep their aspect ratio and come as packed patches in `batch.naflex`, of a length drawn for each batch. No
   * transform but a plain resize.
   */
  naflex?: NaflexTargets;
  /** See `Sampler`. */
  shuffle?: boolean;
  /** No two samples of a batch have the same class. */
  uniqueBy?: 'class';
  /**
   * Worker threads; 0 works in the calling thread. Default: one less than the cores, at least 1.
   */
  workers?: number;
  /** Batches made ahead of the one that is waited for. Default 2 for each worker, at least 2. */
  prefetch?: number;
  /**
   * Decoded images kept by each worker, bytes. Default 256 MiB with `place`, else 0 (photographs do
   * not come back soon).
   */
  cacheBytes?: number;
  /** Milliseconds without any progress after which `next` fails. Default 30,000. */
  timeoutMs?: number;
  /**
   * Most samples that may turn out unusable, those of indexing included. Default: as for the
   * source.
   */
  maxSkips?: Tolerance;
  /** Ends loading; `next` then throws the signal's reason. */
  signal?: AbortSignal;
}

/** Throws ConfigError when options are out of range or do not fit each other. */
export function checkLoaderOptions(options: LoaderOptions): void {
  const {
    size,
    transforms = [{ name: 'resize' }],
    captions = {},
    tokenizer,
    workers,
    prefetch,
  } = options;
  if (!(Number.isInteger(size) && size >= 1 && size <= 8192)) {
    throw new ConfigError(`size: expected an integer in [1, 8192] but got ${size}`);
  }
  if (workers !== undefined && !(Number.isInteger(workers) && workers >= 0 && workers <= 256)) {
    throw new ConfigError(`workers: expected an integer in [0, 256] but got ${workers}`);
  }
  if (
    prefetch !== undefined &&
    !(Number.isInteger(prefetch) && prefetch >= 0 && prefetch <= 1024)
  ) {
    throw new ConfigError(`prefetch: expected an integer in [0, 1024] but got ${prefetch}`);
  }
  checkTransforms(transforms);
  checkCaptionChoice(captions);
  if (options.views !== undefined) checkViews(options.views);
  if (!(options.sizes ?? []).every((side) => Number.isInteger(side) && side >= 1 && side <= 8192))
    throw new ConfigError(
      `sizes: expected integers in [1, 8192] but got ${JSON.stringify(options.sizes)}`,
    );
  if (options.decoder !== undefined) {
    const other = transforms.find(({ name }) => name !== 'resize' && name !== 'colour');
    if (other) {
      throw new ConfigError(
        `decoder: boxes do not follow the transform "${other.name}"; use resize, with colour if you like`,
      );
    }
    if (tokenizer === null) throw new ConfigError('decoder: its sequences need a tokenizer');
    if (options.decoder.boxes) checkBoxFormat(options.decoder.boxes);
  }
  if (options.naflex !== undefined) {
    checkNaflexTargets(options.naflex);
    const other = transforms.find(({ name }) => name !== 'resize');
    if (options.sizes?.length)
      throw new ConfigError('naflex: packed images have no other sizes; leave `sizes` out');
    if (other)
      throw new ConfigError(
        `naflex: images keep their shape, so "${other.name}" cannot be a transform; use resize`,
      );
  }
}

/** @param classes whether the samples have classes */
export function builderConfig(options: LoaderOptions, classes: boolean): BuilderConfig {
  const { size, transforms = [{ name: 'resize' }], captions = {}, tokenizer } = options;
  const { vocab, ...rest } = tokenizer ?? {};
  return {
    seed: options.seed,
    size,
    transforms,
    captions,
    classes,
    alpha: options.alpha ?? DEFAULT_ALPHA,
    cacheBytes:
      options.cacheBytes ?? (transforms.some(({ name }) => name === 'place') ? 256 << 20 : 0),
    tokenizer:
      tokenizer === null
        ? undefined
        : vocab === undefined
          ? rest
          : { ...rest, vocab: vocab.toJSON() },
    ...(options.maxPixels === undefined ? {} : { maxPixels: options.maxPixels }),
    ...(options.views === undefined ? {} : { views: options.views }),
    ...(options.sizes?.length ? { sizes: options.sizes } : {}),
    ...(options.decoder === undefined ? {} : { decoder: options.decoder }),
    ...(options.naflex === undefined ? {} : { naflex: options.naflex }),
  };
}
