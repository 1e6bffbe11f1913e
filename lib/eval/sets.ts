/**
 * Fixed evaluation sets of the emoji dataset: zero-shot classification and retrieval of artwork by
 * its name.
 *
 * - seen-placed: the training studios, at random scale, position and background that training never
 *   draws.
 * - val-placed: the validation studio, placed likewise; for choosing a recipe.
 * - unseen-studio-placed: the test studio, placed likewise.
 * - unseen-studio-plain: the test studio's artwork on white, filling the square.
 *
 * Everything depends on the seed alone. Beside any result belongs what a model without a model
 * gets: chance, and the nearest neighbour among the training artwork by pixels (`pixelNeighbour`).
 */

import { type EmojiSplit, readManifest } from '../data/datasets/emoji.js';
import { describeSample, type Sample } from '../data/sample.js';
import type { SampleSource } from '../data/sample_source.js';
import { openSource } from '../data/source.js';
import { ConfigError, DataError } from '../errors.js';
import { applyTransforms, type ImageTransform } from '../image/augment.js';
import type { Background } from '../image/background.js';
import { decodeImage, premultiply, type RawImage } from '../image/image.js';
import { FileReader } from '../io/reader.js';
import { resizeImage } from '../native.js';
import { Random, Stream } from '../random.js';

/** Names of the sets. */
export type EvalSetName =
  | 'seen-placed'
  | 'val-placed'
  | 'unseen-studio-placed'
  | 'unseen-studio-plain';

/** N images with their classes. */
export interface EvalSet {
  name: EvalSetName;
  /** Side S, pixels. */
  size: number;
  /** (N, S, S, 3) sRGB bytes. */
  images: Uint8Array;
  /** (N) class ids. */
  classes: Int32Array;
  /** (N) sample keys, e.g. "openmoji-1f600". */
  keys: string[];
  /** (K) the ids to choose among, ascending: the classes of this set. Chance is 1/K. */
  candidates: Int32Array;
}

/** The evaluation sets and what belongs to them. */
export interface EvalSuite {
  sets: EvalSet[];
  /** Training artwork of all candidate classes on white, for the pixel baseline. */
  gallery: Thumbnails;
  /** Names of a class by language; index is the class id. */
  names: Record<string, string>[];
  /** Languages of the dataset. */
  languages: string[];
  seed: number;
}

/** Small images for comparing by pixels. */
export interface Thumbnails {
  /** (N, 16, 16, 3) */
  pixels: Float32Array;
  /** (N, 4, 4, 3) sums over blocks of 4x4 pixels. */
  blocks: Float32Array;
  /** (N) class ids. */
  classes: Int32Array;
}

/** Options of `buildEvalSets`. */
export interface EvalSetOptions {
  /** Side S of the images, pixels. */
  size: number;
  seed: number;
  /** Which sets; default all four. */
  sets?: readonly EvalSetName[];
  /** Placed images for each class. Default 2; seen-placed takes different studios. */
  perClass?: number;
  /** Longer side of placed artwork as a part of the square's. Default [0.4, 1]. */
  scale?: [number, number];
  /** What placed artwork lies on; default all kinds. */
  backgrounds?: Background[];
  /** A class must be drawn by the test studio and by this many training studios. Default 3. */
  minStudios?: number;
  /** Keeps only the first classes, for tests. */
  maxClasses?: number;
  signal?: AbortSignal;
}

const SETS: readonly EvalSetName[] = [
  'seen-placed',
  'val-placed',
  'unseen-studio-placed',
  'unseen-studio-plain',
];
const THUMBNAIL = 16;
const VALUES = THUMBNAIL * THUMBNAIL * 3;
const BLOCKS = 4 * 4 * 3;
const PARALLEL = 4;

/**
 * Builds the evaluation sets of a built dataset.
 * @param folder where `buildEmojiDataset` put it
 * @throws ConfigError for an unknown set; DataError when the dataset is missing or damaged, or has no class that fits
 */
export async function buildEvalSets(folder: string, options: EvalSetOptions): Promise<EvalSuite> {
  const { size, seed, sets = SETS, perClass = 2, scale = [0.4, 1], minStudios = 3 } = options;
  const unknown = sets.find((name) => !SETS.includes(name));
  if (unknown !== undefined)
    throw new ConfigError(`no set is called "${unknown}"; the sets are ${SETS.join(', ')}`);
  const manifest = readManifest(folder);
  const drawnBy = new Map<number, number>();
  const test = new Set<number>();
  for (const studio of manifest.studios) {
    for (const id of studio.classes) {
      if (studio.split === 'train') drawnBy.set(id, (drawnBy.get(id) ?? 0) + 1);
      if (studio.split === 'test') test.add(id);
    }
  }
  const fits = [...test]
    .filter((id) => (drawnBy.get(id) ?? 0) >= minStudios)
    .sort((a, b) => a - b)
    .slice(0, options.maxClasses);
  if (fits.length === 0) {
    throw new DataError(
      `${folder}: no class is drawn by the test studio and by ${minStudios} training studios`,
    );
  }
  const candidates = new Set(fits);
  const source = async (split: EmojiSplit): Promise<SampleSource> =>
    openSource(
      { type: 'emoji', path: folder, split },
      options.signal === undefined ? {} : { signal: options.signal },
    );
  const artist = new Artist(options.signal);
  try {
    const train = await source('train');
    const out: EvalSet[] = [];
    const placed: ImageTransform[] = [
      {
        name: 'place',
        scale,
        ...(options.backgrounds ? { backgrounds: options.backgrounds } : {}),
      },
    ];
    for (const name of sets) {
      const from =
        name === 'seen-placed' ? train : await source(name === 'val-placed' ? 'val' : 'test');
      const plain = name === 'unseen-studio-plain';
      const samples = chooseSamples(
        from,
        candidates,
        plain ? 1 : perClass,
        seed,
        SETS.indexOf(name),
      );
      const images = await artist.draw(
        samples,
        plain ? [{ name: 'resize' }] : placed,
        size,
        (sample, i) => new Random(seed, Stream.evaluation, SETS.indexOf(name), sample.index, i),
      );
      const classes = Int32Array.from(samples, (sample) => sample.class as number);
      out.push({
        name,
        size,
        images,
        classes,
        keys: samples.map(({ key }) => key),
        candidates: Int32Array.from(new Set(classes)).sort(),
      });
    }
    const samples = train.samples.filter((sample) => candidates.has(sample.class ?? -1));
    const plain = await artist.draw(samples, [{ name: 'resize' }], size, () => new Random(seed));
    return {
      sets: out,
      seed,
      gallery: thumbnails(
        plain,
        size,
        Int32Array.from(samples, (sample) => sample.class as number),
      ),
      names: (train.classes ?? []).map(({ names }) => names),
      languages: manifest.languages.map(({ code }) => code),
    };
  } finally {
    artist.close();
  }
}

/**
 * `perClass` samples of each candidate class: different studios first, then the same again.
 * Ascending classes.
 */
function chooseSamples(
  source: SampleSource,
  candidates: ReadonlySet<number>,
  perClass: number,
  seed: number,
  set: number,
): Sample[] {
  const byClass = new Map<number, Sample[]>();
  for (const sample of source.samples) {
    const id = sample.class ?? -1;
    if (!candidates.has(id)) continue;
    const list = byClass.get(id);
    if (list === undefined) byClass.set(id, [sample]);
    else list.push(sample);
  }
  return [...byClass.keys()]
    .sort((a, b) => a - b)
    .flatMap((id) => {
      const list = byClass.get(id) as Sample[];
      const first = new Random(seed, Stream.evaluation, set, -1, id).below(list.length);
      return Array.from({ length: perClass }, (_, k) => list[(first + k) % list.length] as Sample);
    });
}

/** Draws samples with transforms; artwork that comes more than once is decoded once. */
class Artist {
  readonly #reader = new FileReader();
  readonly #decoded = new Map<string, RawImage>();

  readonly #signal: AbortSignal | undefined;

  constructor(signal: AbortSignal | undefined) {
    this.#signal = signal;
  }

  /** @returns (samples.length, size, size, 3) */
  async draw(
    samples: readonly Sample[],
    transforms: readonly ImageTransform[],
    size: number,
    random: (sample: Sample, i: number) => Random,
  ): Promise<Uint8Array> {
    const pixels = size * size * 3;
    const out = new Uint8Array(samples.length * pixels);
    for (let start = 0; start < samples.length; start += PARALLEL) {
      this.#signal?.throwIfAborted();
      await Promise.all(
        samples.slice(start, start + PARALLEL).map(async (sample, k) => {
          const i = start + k;
          applyTransforms(
            await this.#image(sample),
            transforms,
            size,
            random(sample, i),
            resizeImage,
            out.subarray(i * pixels, (i + 1) * pixels),
          );
        }),
      );
    }
    return out;
  }

  close(): void {
    this.#reader.close();
  }

  async #image(sample: Sample): Promise<RawImage> {
    const name = describeSample(sample);
    const known = this.#decoded.get(name);
    if (known !== undefined) return known;
    const image = await decodeImage(this.#reader.read(sample.image), name, { alpha: 'keep' });
    if (image.channels === 4) premultiply(image.data);
    this.#decoded.set(name, image);
    return image;
  }
}

/**
 * 16x16 thumbnails (antialiased bilinear).
 * @param images (N, size, size, 3)
 * @param classes (N)
 */
export function thumbnails(images: Uint8Array, size: number, classes: Int32Array): Thumbnails {
  const n = classes.length;
  const pixels = new Float32Array(n * VALUES);
  const blocks = new Float32Array(n * BLOCKS);
  for (let i = 0; i < n; i++) {
    const image = images.subarray(i * size * size * 3, (i + 1) * size * size * 3);
    const small = resizeImage(image, size, size, 3, THUMBNAIL, THUMBNAIL);
    pixels.set(small, i * VALUES);
    for (let k = 0; k < VALUES; k++) {
      const [y, x, c] = [Math.floor(k / 48), Math.floor(k / 3) % 16, k % 3];
      const block = i * BLOCKS + ((y >> 2) * 4 + (x >> 2)) * 3 + c;
      blocks[block] = (blocks[block] as number) + (small[k] as number);
    }
  }
  return { pixels, blocks, classes };
}

/**
 * Squared L2 distance between a[i .. i+length) and b[j .. j+length), a multiple of 48 values; once
 * it is over `limit`, any number over `limit`.
 */
function distance(
  a: Float32Array,
  i: number,
  b: Float32Array,
  j: number,
  length: number,
  limit: number,
): number {
  let sum = 0;
  for (let start = 0; start < length && sum <= limit; start += 48) {
    for (let k = start; k < start + 48; k++) {
      const d = (a[i + k] as number) - (b[j + k] as number);
      sum += d * d;
    }
  }
  return sum;
}

/**
 * Top-1 of the nearest neighbour by pixels (16x16 thumbnails, L2; the first of equals): the
 * baseline beside which a model's accuracy must stand. Only gallery images of the set's candidate
 * classes compete.
 * @returns fraction in [0, 1]
 */
export function pixelNeighbour(set: EvalSet, gallery: Thumbnails): number {
  const queries = thumbnails(set.images, set.size, set.classes);
  const allowed = new Set(set.candidates);
  const rows = Int32Array.from(
    [...gallery.classes.keys()].filter((j) => allowed.has(gallery.classes[j] as number)),
  );
  // The distance between block sums, over the 16 pixels of a block, never exceeds the distance
  // between the pixels (Cauchy-Schwarz). So whatever is already farther by blocks than the best by
  // pixels need not be looked at.
  const bounds = new Float64Array(rows.length);
  let right = 0;
  for (let i = 0; i < set.classes.length; i++) {
    let closest = 0;
    for (let r = 0; r < rows.length; r++) {
      const row = rows[r] as number;
      const bound =
        distance(queries.blocks, i * BLOCKS, gallery.blocks, row * BLOCKS, BLOCKS, Infinity) / 16;
      bounds[r] = bound;
      if (bound < (bounds[closest] as number)) closest = r;
    }
    const exact = (r: number, limit: number): number =>
      distance(
        queries.pixels,
        i * VALUES,
        gallery.pixels,
        (rows[r] as number) * VALUES,
        VALUES,
        limit,
      );
    let best = rows.length > 0 ? exact(closest, Infinity) : Infinity;
    let bestRow = closest;
    for (let r = 0; r < rows.length; r++) {
      if ((bounds[r] as number) > best || r === closest) continue;
      const d = exact(r, best);
      if (d < best || (d === best && r < bestRow)) {
        best = d;
        bestRow = r;
      }
    }
    if (gallery.classes[rows[bestRow] as number] === set.classes[i]) right++;
  }
  return right / set.classes.length;
}

/**
 * The captions to classify a set by in one language: classes without a name in it are left out.
 * @returns ids (K') and names (K') in the same order
 */
export function candidateNames(
  suite: EvalSuite,
  set: EvalSet,
  language: string,
): { ids: Int32Array; names: string[] } {
  const ids = set.candidates.filter((id) => suite.names[id]?.[language] !== undefined);
  return { ids, names: Array.from(ids, (id) => suite.names[id]?.[language] as string) };
}
