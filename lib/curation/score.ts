/**
 * Offline scoring of a collection: how well every caption fits its image, and how much a model would learn from the pair.
 *
 * Units are scored in order, each in chunks of its own, so that a unit's files depend on the unit, the models and the
 * settings alone: not on what ran before, not on how units are divided among processes. Decoding runs ahead of the model
 * across units; a finished unit is two files written aside and renamed, and is not scored again.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describeSample, readCaptions, type Sample } from '../data/sample.js';
import { inBatches } from '../encoder/batching.js';
import type { Encoder } from '../encoder/encoder.js';
import { ConfigError, DataError } from '../errors.js';
import { isBadFile } from '../fs/exhausted.js';
import { draftTarget, makeFolder, writeFileAtomic } from '../fs/files.js';
import { SkipCounter, type Tolerance } from '../fs/skips.js';
import { DEFAULT_ALPHA, type RawImage, releaseDecoded } from '../image/image.js';
import { type RawPixels, useDecoded } from '../image/input.js';
import { resizeTo } from '../image/processor.js';
import { FileReader } from '../io/reader.js';
import { addChosenScores, addDiagonalScores } from '../ops/pair_scores.js';
import { Random, Stream } from '../random.js';
import { noGrad } from '../tape.js';
import { batchInvariant, scope, tensor, zeros } from '../tensor.js';
import { type Caption, chooseCaptions, groupCaptions } from '../text/captions.js';
import {
  openUnit,
  ownFlags,
  readSettings,
  type SCORE_COLUMNS,
  type ScoreSettings,
  unitFiles,
  writeUnit,
} from './score_table.js';
import type { ScoreUnit, Skipped, UnitContent } from './score_units.js';

export interface ScoreOptions {
  learner: Encoder;
  /** For the column `learnability`; may be of any size. */
  reference?: Encoder;
  /** Which of a sample's captions is scored: the `first`, `any` (by chance, the same in every run), or a language's. */
  pick?: string;
  /** Pairs that are each other's negatives in `loss`. Default 256. */
  block?: number;
  /** Transparency: forgotten, or laid on white. Default `white`. */
  alpha?: 'drop' | 'white';
  /** Images per pass through the model; decides speed and memory, never the result. Default 8. */
  batchSize?: number;
  /** This process scores the units whose number leaves the remainder `index` when divided by `count`. Default 0 and 1. */
  index?: number;
  count?: number;
  /** Most samples without a score. Default 1 % of all or 100, the larger, judged at the end. */
  maxSkips?: Tolerance;
  /** Is told of the first skip of each kind when it happens. */
  note?: (message: string) => void;
  signal?: AbortSignal;
  /** Called after every chunk; `samples` counts those scored or skipped by this call. */
  onProgress?: (progress: {
    units: number;
    ofUnits: number;
    samples: number;
    skipped: number;
  }) => void;
}

export interface ScoreSummary {
  /** Units of this process, and how many were finished before. */
  units: number;
  resumed: number;
  /** Rows of this process's units, those of finished ones included. */
  rows: number;
  skips: SkipCounter;
}

/** Samples that are read, decoded and encoded together. */
const CHUNK = 32;
/** Samples of a chunk that are read at a time. */
const LANES = 16;

/** What a row says about an image and its caption. */
interface Pair {
  sample: Sample;
  caption: Caption;
  width: number;
  height: number;
  sha256: string;
}

/** A pair and its pixels for each model. */
interface DecodedPair {
  pair: Pair;
  learner: RawImage;
  reference: RawImage | undefined;
}

interface Chunk {
  unit: ScoreUnit;
  samples: readonly Sample[];
  /** With the unit's last chunk: what was left out while it was indexed. */
  last: readonly Skipped[] | undefined;
}

/** Embeddings of pairs, row by row. */
interface PairRows {
  images: Float32Array;
  texts: Float32Array;
}

interface Scored extends Chunk {
  pairs: Pair[];
  skipped: Skipped[];
  learner: PairRows;
  reference: PairRows | undefined;
}

/**
 * Shares of n pairs in the sigmoid loss of a batch of `block`: ℓ_ii + (block − 1) · mean over j ≠ i of ½ (ℓ_ij + ℓ_ji), with
 * ℓ_ij = softplus(∓(t x_i·y_j + b)), minus for the matching pair. The pairs are each other's negatives in groups of
 * neighbours, as few groups as have at most `block` pairs, of sizes that differ by one at most; the mean makes groups
 * comparable, and n = block gives the shares of the loss that training on just this batch has. Learnability is this with the
 * learner minus this with the reference, over the same group.
 * @param images (n, E) unit rows
 * @param texts (n, E) unit rows
 */
export async function pairLosses(
  model: Pick<Encoder, 'scale' | 'bias' | 'device'>,
  images: Float32Array,
  texts: Float32Array,
  n: number,
  block: number,
): Promise<Float32Array> {
  const E = images.length / n,
    groups = Math.ceil(n / block),
    losses = new Float32Array(n);
  for (let g = 0; g < groups; g++) {
    const from = Math.floor((g * n) / groups),
      to = Math.floor(((g + 1) * n) / groups),
      B = to - from;
    const shares = scope(() =>
      noGrad(() =>
        batchInvariant(model.device, () => {
          const rows = (all: Float32Array) =>
            tensor(all.subarray(from * E, to * E), [B, E], model.device);
          const e = {
            x: rows(images),
            y: rows(texts),
            bias: tensor(Float32Array.of(model.bias), [1], model.device),
            logScale: tensor(Float32Array.of(Math.log(model.scale)), [1], model.device),
          };
          const total = zeros([B], 'f32', model.device);
          addDiagonalScores(total, e, 1);
          const everyone = tensor(
            Int32Array.from({ length: B }, (_, i) => i),
            [B],
            model.device,
          );
          if (B > 1) addChosenScores(total, e, everyone, (block - 1) / (B - 1) / 2);
          return total;
        }),
      ),
    );
    try {
      losses.set((await shares.read()) as Float32Array, from);
    } finally {
      shares.dispose();
    }
  }
  return losses;
}

/** The caption to score; undefined when none has a letter of any script, or all say that they are in no language. */
function pickCaption(
  captions: readonly Caption[],
  pick: string,
  sample: Sample,
): Caption | undefined {
  const real = captions.filter(({ text, lang }) => /\p{L}/u.test(text) && lang !== 'zxx');
  if (pick === 'first') return real[0];
  const choice = { pick: [pick] };
  return chooseCaptions(
    groupCaptions(real, choice),
    choice,
    new Random(0, Stream.caption, sample.index),
  )?.[0];
}

/** An image no larger than its model needs; encoding it then gives what encoding the whole image gives. */
async function shrunk(image: RawImage, { imageSize: S, processor }: Encoder): Promise<RawImage> {
  if (S === null || processor.name === 'aa-f32') return image;
  return {
    data: (await resizeTo(image, S, S, processor)) as Uint8Array,
    width: S,
    height: S,
    channels: 3,
  };
}

/** Scores units into a folder. Made by `scoreCollection`. */
class Scorer {
  readonly #reader = new FileReader();
  readonly #learner: Encoder;
  readonly #reference: Encoder | undefined;
  readonly #pick: string;
  readonly #block: number;

  readonly #options: ScoreOptions;

  constructor(options: ScoreOptions) {
    this.#options = options;
    ({
      learner: this.#learner,
      reference: this.#reference,
      pick: this.#pick = 'first',
      block: this.#block = 256,
    } = options);
  }

  close(): void {
    this.#reader.close();
  }

  settings(units: readonly ScoreUnit[]): ScoreSettings {
    const learner = this.#learner,
      reference = this.#reference,
      pick = this.#pick,
      block = this.#block;
    const about = ({ source, dim, scale, bias }: Encoder) => ({ source, dim, scale, bias });
    return {
      version: 1,
      learner: about(learner),
      reference: reference ? about(reference) : null,
      processor: learner.processor.name,
      dtype: learner.dtype,
      alpha: this.#options.alpha ?? DEFAULT_ALPHA,
      pick,
      block,
      units: units.map(({ name }) => name),
    };
  }

  /** All chunks of the units; the next unit is indexed while this one is worked on. */
  async *chunks(units: readonly ScoreUnit[]): AsyncGenerator<Chunk> {
    const open = (unit: ScoreUnit | undefined): Promise<UnitContent> | undefined => {
      const opening = unit?.open(this.#options.signal);
      opening?.catch(() => undefined);
      return opening;
    };
    let ahead = open(units[0]);
    for (const [i, unit] of units.entries()) {
      const { samples, skipped } = await ahead!;
      ahead = open(units[i + 1]);
      for (let from = 0; from === 0 || from < samples.length; from += CHUNK)
        yield {
          unit,
          samples: samples.slice(from, from + CHUNK),
          last: from + CHUNK < samples.length ? undefined : skipped,
        };
    }
  }

  /** Scored chunks, in order. */
  run(units: readonly ScoreUnit[]): AsyncGenerator<Scored> {
    return inBatches(this.chunks(units), {
      size: 1,
      ahead: 2,
      signal: this.#options.signal,
      prepare: async (chunk) => ({ chunk, read: await this.#readAll(chunk.samples) }),
      run: (batch) =>
        Promise.all(
          batch.map(async ({ chunk, read }) => {
            const decoded = read.filter((r) => 'pair' in r),
              skipped = read.filter((r) => 'reason' in r);
            const pairs = decoded.map(({ pair }) => pair),
              texts = pairs.map(({ caption }) => caption.text);
            const [learner, reference] = await Promise.all([
              this.#encode(
                this.#learner,
                decoded.map((d) => d.learner),
                texts,
              ),
              this.#reference &&
                this.#encode(
                  this.#reference,
                  decoded.map((d) => d.reference!),
                  texts,
                ),
            ]);
            return { ...chunk, pairs, skipped, learner, reference };
          }),
        ),
    });
  }

  /** A few at a time, for what they hold until they are shrunk. */
  async #readAll(samples: readonly Sample[]): Promise<(DecodedPair | Skipped)[]> {
    const out: (DecodedPair | Skipped)[] = [];
    let next = 0;
    const lane = async (): Promise<void> => {
      for (let i = next++; i < samples.length; i = next++) out[i] = await this.#read(samples[i]!);
    };
    await Promise.all(Array.from({ length: LANES }, lane));
    return out;
  }

  async #read(sample: Sample): Promise<DecodedPair | Skipped> {
    const example = describeSample(sample),
      { alpha = DEFAULT_ALPHA, signal } = this.#options;
    try {
      const { captions } = readCaptions(this.#reader, sample);
      const caption = pickCaption(captions, this.#pick, sample);
      if (!caption) return { example, reason: 'the caption is in no language' };
      const bytes = this.#reader.read(sample.image);
      const { width, height, learner, reference } = await useDecoded(
        { bytes, name: example },
        { alpha, signal },
        async (image) => {
          const [learner, reference] = await Promise.all([
            shrunk(image, this.#learner),
            this.#reference && shrunk(image, this.#reference),
          ]);
          if (![learner, reference].some((made) => made?.data === image.data))
            releaseDecoded(image);
          return { width: image.width, height: image.height, learner, reference };
        },
      );
      const sha256 = createHash('sha256').update(bytes).digest('hex');
      return { pair: { sample, caption, width, height, sha256 }, learner, reference };
    } catch (error) {
      if (!isBadFile(error) || signal?.aborted) throw error;
      const undecoded = error.message.includes('cannot decode');
      return {
        example,
        reason: undecoded ? 'the image cannot be decoded' : 'the file cannot be read',
      };
    }
  }

  async #encode(
    model: Encoder,
    images: readonly RawImage[],
    texts: readonly string[],
  ): Promise<PairRows> {
    const { batchSize, signal } = this.#options,
      aborting = signal ? { signal } : {};
    const [x, y] = await Promise.all([
      model.encodeImages(images as RawPixels[], {
        ...(batchSize ? { batchSize } : {}),
        ...aborting,
      }),
      model.encodeTexts(texts, aborting),
    ]);
    return { images: x.data, texts: y.data };
  }

  /** Writes the files of a unit whose chunks are all there. */
  async finish(
    out: string,
    chunks: readonly Scored[],
  ): Promise<{ rows: number; skipped: Skipped[] }> {
    const { unit, last } = chunks.at(-1)!,
      pairs = chunks.flatMap((c) => c.pairs),
      n = pairs.length;
    const skipped = [...last!, ...chunks.flatMap((c) => c.skipped)];
    const joined = (of: (c: Scored) => Float32Array): Float32Array => {
      const parts = chunks.map(of),
        all = new Float32Array(parts.reduce((sum, p) => sum + p.length, 0));
      parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
      return all;
    };
    const images = joined((c) => c.learner.images),
      texts = joined((c) => c.learner.texts),
      E = this.#learner.dim;
    const cosine = pairs.map((_, i) => {
      let sum = 0;
      for (let d = i * E; d < (i + 1) * E; d++) sum += images[d]! * texts[d]!;
      return sum;
    });
    const bad = cosine.findIndex((c) => !Number.isFinite(c));
    if (bad >= 0)
      throw new DataError(
        `${describeSample(pairs[bad]!.sample)}: the model gives ${cosine[bad]}; its weights are damaged`,
      );
    const reference = this.#reference,
      block = this.#block,
      loss = await pairLosses(this.#learner, images, texts, n, block);
    const other =
      reference &&
      (await pairLosses(
        reference,
        joined((c) => c.reference!.images),
        joined((c) => c.reference!.texts),
        n,
        block,
      ));
    const lengths = pairs.map(({ caption }) => [...caption.text].length);
    await writeUnit(
      out,
      unit,
      n,
      {
        shard: pairs.map(() => unit.shard),
        key: pairs.map((p) => p.sample.key),
        caption: pairs.map((p) => p.caption.text),
        language: pairs.map((p) => p.caption.lang),
        caption_length: lengths,
        width: pairs.map((p) => p.width),
        height: pairs.map((p) => p.height),
        cosine,
        probability: cosine.map(
          (c) => 1 / (1 + Math.exp(-(this.#learner.scale * c + this.#learner.bias))),
        ),
        loss,
        learnability: Array.from(loss, (l, i) => (other ? l - other[i]! : null)),
        sha256: pairs.map((p) => p.sha256),
        duplicate: pairs.map(() => null),
        flags: pairs.map((p, i) => ownFlags(p.width, p.height, lengths[i]!).join()),
      } satisfies Record<keyof typeof SCORE_COLUMNS, unknown>,
      images,
      skipped,
    );
    return { rows: n, skipped };
  }
}

/** In what two ways of scoring differ, in words; the name of a model may change, for it may have moved. */
function differences(before: ScoreSettings, now: ScoreSettings): string[] {
  const model = (name: 'learner' | 'reference', option: string): string[] => {
    const [a, b] = [before[name], now[name]],
      numbers = ['dim', 'scale', 'bias'] as const;
    if (!a || !b)
      return a === b
        ? []
        : [`${option} was ${a?.source ?? 'not given'} but is ${b?.source ?? 'not given'}`];
    const wrong = numbers.filter((key) => a[key] !== b[key]);
    return wrong.length === 0
      ? []
      : [
          `${option} was ${a.source} but is ${b.source} (${wrong
            .map((key) => `${key} ${a[key]} and ${b[key]}`)
            .join(', ')})`,
        ];
  };
  const options = (['pick', 'block', 'processor', 'dtype', 'alpha'] as const).filter(
    (key) => before[key] !== now[key],
  );
  return [
    ...model('learner', '--model'),
    ...model('reference', '--reference'),
    ...options.map((key) => `--${key} was ${before[key]} but is ${now[key]}`),
  ];
}

/** Writes score.json, or checks that the folder's earlier scores were made in the same way and adds the new units. */
async function claimFolder(out: string, settings: ScoreSettings): Promise<void> {
  const file = join(out, 'score.json');
  let units = settings.units;
  if (existsSync(file)) {
    const before = readSettings(out),
      other = differences(before, settings);
    if (other.length > 0)
      throw new ConfigError(
        `${out} has scores that were made otherwise (score.json): ${other.join('; ')}; ` +
          'choose another --out, or remove the folder',
      );
    units = [...new Set([...before.units, ...units])];
    if (units.length === before.units.length) return;
  }
  await writeFileAtomic(file, `${JSON.stringify({ ...settings, units }, null, 2)}\n`);
}

/** Removes what a killed process left of the units' files. */
async function removeDrafts(out: string, units: readonly ScoreUnit[]): Promise<void> {
  const own = new Set(units.flatMap(({ name }) => [`${name}.parquet`, `${name}.safetensors`]));
  for (const name of await readdir(out)) {
    const draft = draftTarget(name);
    if (draft !== undefined && own.has(draft)) await rm(join(out, name), { force: true });
  }
}

/**
 * Scores a collection into a folder: for each unit a table (`SCORE_COLUMNS`) and the embeddings of its images. Units that
 * are finished are left alone, so a run that was killed at any moment goes on, and ends with the same bytes, on the CPU.
 * @param units from `scoreUnits`; one process at a time for each share of them
 * @throws ConfigError for options out of range, or when the folder has scores made in another way; DataError when too many
 *   samples cannot be scored, or none can; IoError when the disk says no; the signal's reason
 */
export async function scoreCollection(
  units: readonly ScoreUnit[],
  out: string,
  options: ScoreOptions,
): Promise<ScoreSummary> {
  const { index = 0, count = 1, maxSkips, onProgress, block = 256 } = options;
  if (
    !(
      Number.isInteger(count) &&
      count >= 1 &&
      Number.isInteger(index) &&
      index >= 0 &&
      index < count
    )
  )
    throw new ConfigError(
      `score: index must be in [0, count) but index is ${index} and count ${count}`,
    );
  if (!(Number.isInteger(block) && block >= 1))
    throw new ConfigError(`score: block must be a positive integer but is ${block}`);
  const scorer = new Scorer(options),
    skips = new SkipCounter(maxSkips, options.note);
  try {
    await makeFolder(out);
    await claimFolder(out, scorer.settings(units));
    const mine = units.filter((_, i) => i % count === index),
      missing: ScoreUnit[] = [];
    let rows = 0;
    for (const unit of mine) {
      if (!existsSync(unitFiles(out, unit.name).table)) {
        missing.push(unit);
        continue;
      }
      const { rows: n, notes } = await openUnit(out, unit.name);
      rows += n;
      for (const { reason, example, ...more } of notes.skipped) skips.add(reason, example, more);
    }
    await removeDrafts(out, missing);
    let open: Scored[] = [],
      done = 0,
      samples = 0;
    const report = (): void =>
      onProgress?.({
        units: mine.length - missing.length + done,
        ofUnits: mine.length,
        samples,
        skipped: skips.total,
      });
    const finish = async (chunks: readonly Scored[]): Promise<void> => {
      const unit = await scorer.finish(out, chunks);
      rows += unit.rows;
      for (const { reason, example, ...more } of unit.skipped) skips.add(reason, example, more);
      skips.checkEnds();
      done++;
      report();
      if (maxSkips !== undefined) skips.check(rows + skips.total, out);
    };
    // A unit is written while the next one is computed, and before that one is written.
    let writing = Promise.resolve();
    try {
      for await (const chunk of scorer.run(missing)) {
        open.push(chunk);
        samples += chunk.samples.length;
        for (const { reason, example, ...more } of chunk.skipped) skips.add(reason, example, more);
        report();
        if (!chunk.last) continue;
        await writing;
        writing = finish(open);
        writing.catch(() => undefined);
        open = [];
      }
    } finally {
      await writing;
    }
    skips.check(rows + skips.total, out);
    if (rows === 0 && mine.length > 0)
      throw new DataError(
        `${out}: no sample could be scored${skips.total > 0 ? `: ${skips.summary()}` : ''}`,
      );
    return { units: mine.length, resumed: mine.length - missing.length, rows, skips };
  } finally {
    scorer.close();
  }
}
