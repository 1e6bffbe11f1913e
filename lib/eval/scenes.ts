/**
 * Scenes with their ground truth for evaluation, made square as the model sees them: images, exact masks of classes,
 * captions, and the box of every object.
 */

import { join } from 'node:path';
import sharp from 'sharp';
import type { EmojiSplit } from '../data/datasets/emoji.js';
import { describeSample, readCaptions, type Sample } from '../data/sample.js';
import { openSource } from '../data/source.js';
import { DataError } from '../errors.js';
import { readJson } from '../fs/files.js';
import { decodeImage } from '../image/image.js';
import { FileReader } from '../io/reader.js';
import { resizeImage } from '../native.js';
import { parseRegions, type Region } from '../text/regions.js';

/** N scenes. */
export interface SceneSet {
  /** Side S, pixels. */
  size: number;
  /** (N, S, S, 3) sRGB bytes. */
  images: Uint8Array;
  /** (N, S, S) what is at every pixel: 0 background, otherwise 1 + class id. */
  labels: Int32Array;
  /** Label values: 1 + number of classes. */
  labelCount: number;
  /** (N) the first caption in the language asked for; a scene without one has none. */
  captions: (string | undefined)[];
  /** (N) objects with their phrase in that language. */
  regions: Region[][];
}

export interface SceneSetOptions {
  /** Side of the images, pixels. */
  size: number;
  /** Default test: studios that training never shows. */
  split?: EmojiSplit;
  /** Of captions and phrases; default en. */
  language?: string;
  /** Most scenes, the first ones; default all. */
  most?: number;
  signal?: AbortSignal;
}

const PARALLEL = 8;

/**
 * Reads one split of what `buildScenes` made.
 * @throws DataError when the folder is no scenes dataset, lacks the split, or a scene lacks its mask
 */
export async function readScenes(folder: string, options: SceneSetOptions): Promise<SceneSet> {
  const { size: S, split = 'test', language = 'en', most = Infinity, signal } = options;
  const { samples } = await openSource(
    { type: 'scenes', path: folder, split },
    signal ? { signal } : {},
  );
  const classes = readJson(join(folder, 'classes.json')) as unknown[];
  const chosen = samples.slice(0, most),
    N = chosen.length,
    pixels = S * S,
    reader = new FileReader();
  const set: SceneSet = {
    size: S,
    images: new Uint8Array(N * pixels * 3),
    labels: new Int32Array(N * pixels),
    labelCount: 1 + classes.length,
    captions: [],
    regions: [],
  };
  const read = async (sample: Sample, i: number): Promise<void> => {
    const name = describeSample(sample),
      { captions, meta } = readCaptions(reader, sample);
    const { data, height, width } = await decodeImage(reader.read(sample.image), name);
    set.images.set(resizeImage(data, height, width, 3, S, S), i * pixels * 3);
    set.labels.set(await labelsOf(reader, sample, meta, S, set.labelCount), i * pixels);
    set.captions[i] = captions.find(({ lang }) => lang === language)?.text;
    set.regions[i] = parseRegions(meta, name).filter(({ lang }) => lang === language);
  };
  try {
    for (let start = 0; start < N; start += PARALLEL) {
      signal?.throwIfAborted();
      await Promise.all(
        chosen.slice(start, start + PARALLEL).map((sample, k) => read(sample, start + k)),
      );
    }
    return set;
  } finally {
    reader.close();
  }
}

/** A scene's mask with object numbers replaced by labels, sampled at the centres of S×S pixels. */
async function labelsOf(
  reader: FileReader,
  sample: Sample,
  meta: Readonly<Record<string, unknown>>,
  S: number,
  labelCount: number,
): Promise<Int32Array> {
  const name = describeSample(sample),
    objects = meta['objects'] as { class?: unknown }[] | undefined;
  if (!sample.mask || !Array.isArray(objects))
    throw new DataError(
      `${name}: has no mask; evaluate on scenes made by \`siglip2 dataset scenes\``,
    );
  const {
    data,
    info: { width, height },
  } = await sharp(reader.read(sample.mask))
    .toColourspace('b-w')
    .raw()
    .toBuffer({ resolveWithObject: true });
  return Int32Array.from({ length: S * S }, (_, p) => {
    const y = Math.floor(((Math.floor(p / S) + 0.5) * height) / S),
      x = Math.floor((((p % S) + 0.5) * width) / S);
    const object = data[y * width + x]!;
    if (object === 0) return 0;
    const label = 1 + Number(objects[object - 1]?.class);
    if (!(label > 0 && label < labelCount))
      throw new DataError(
        `${name}: the mask has object ${object} but the metadata give it no known class; build the scenes anew`,
      );
    return label;
  });
}
