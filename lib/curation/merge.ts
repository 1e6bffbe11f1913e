/**
 * One table from the tables of a scored collection: scores.parquet, with duplicates and images of an evaluation set marked,
 * skipped.jsonl, and with leakage leaks.jsonl. Rows are in the order of the units, so merging twice gives the same bytes.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Encoder } from '../encoder/encoder.js';
import { ConfigError, DataError } from '../errors.js';
import { fileError, readInput, writeFileAtomic } from '../fs/files.js';
import { SkipCounter } from '../fs/skips.js';
import { f32ToF16 } from '../io/half.js';
import { type Columns, writeTable } from '../io/parquet.js';
import { packageVersion } from '../native.js';
import type { DeviceName } from '../tensor.js';
import { type Duplicates, groupDuplicates, type HalfRows, nearPairs } from './duplicates.js';
import {
  type Flag,
  openUnit,
  readEmbeddings,
  readSettings,
  SCORE_COLUMNS,
  type ScoreSettings,
  unitFiles,
} from './score_table.js';

/** A file, as a path or as its bytes. */
export interface NamedFile {
  name: string;
  open(): string | { bytes: Uint8Array };
}

export interface MergeOptions {
  /** Cosine of two images from which they look the same. Default 0.97. */
  near?: number;
  /** Images of an evaluation set, and the learner that the scores were made with. */
  leakage?: { images: readonly NamedFile[]; learner: Encoder };
  /** Merge what there is although units are missing. */
  partial?: boolean;
  /** Of the search for duplicates. Default `cpu`. */
  device?: DeviceName;
  signal?: AbortSignal;
  onProgress?: (task: string, done: number, total: number) => void;
}

/** An image of the collection that an evaluation set has too. */
export interface Leak {
  shard: string;
  key: string;
  /** The evaluation set's image, and how alike the two are; 1 for the same file. */
  image: string;
  cosine: number;
}

export interface MergeSummary {
  settings: ScoreSettings;
  rows: number;
  units: string[];
  missing: string[];
  /** All rows, without their captions: what the report draws. */
  columns: Record<'cosine' | 'probability' | 'learnability' | 'caption_length', Float32Array> & {
    language: string[];
  };
  /** First row of each unit, in the order of `units`. */
  starts: number[];
  flags: Map<Flag, number>;
  leaks: Leak[];
  skips: SkipCounter;
}

/** An image of the evaluation set that a row looks like. */
interface Match {
  image: number;
  cosine: number;
}

/** What is known of every row before the merged table is written. */
interface Collected {
  hashes: string[];
  embeddings: HalfRows;
  duplicates: Duplicates;
}

async function collect(
  folder: string,
  units: readonly string[],
  dim: number,
  options: MergeOptions,
): Promise<Collected> {
  const hashes: string[] = [],
    parts: Uint16Array[] = [];
  for (const unit of units) {
    const table = await openUnit(folder, unit);
    if (table.rows === 0) continue;
    for (const hash of (await table.read(['sha256']))['sha256'] as string[]) hashes.push(hash);
    parts.push(await readEmbeddings(folder, unit));
    if (parts.at(-1)!.length !== table.rows * dim)
      throw new DataError(
        `${unitFiles(folder, unit).embeddings}: does not fit its table; ` +
          'remove both files and score the unit again',
      );
  }
  const data = new Uint16Array(hashes.length * dim);
  parts.reduce((at, part) => (data.set(part, at), at + part.length), 0);
  const embeddings = { data, dim };
  const duplicates = await groupDuplicates(hashes, embeddings, {
    threshold: options.near ?? 0.97,
    device: options.device ?? 'cpu',
    ...(options.signal ? { signal: options.signal } : {}),
    onProgress: (done, total) => options.onProgress?.('duplicates', done, total),
  });
  return { hashes, embeddings, duplicates };
}

/** The best match in the evaluation set of every row that has one. */
async function findLeaks(
  { hashes, embeddings }: Collected,
  options: MergeOptions,
): Promise<Map<number, Match>> {
  const found = new Map<number, Match>(),
    { device = 'cpu', near: threshold = 0.97, signal, onProgress } = options,
    { images, learner } = options.leakage!;
  const byHash = new Map<string, number>();
  async function* opened(): AsyncGenerator<{ bytes: Uint8Array; name: string }> {
    for (const [i, image] of images.entries()) {
      const input = image.open();
      const bytes =
        typeof input !== 'string'
          ? input.bytes
          : await readInput(input).catch((cause: unknown) => {
              throw fileError(cause, 'read', input);
            });
      byHash.set(createHash('sha256').update(bytes).digest('hex'), i);
      yield { bytes, name: image.name };
    }
  }
  const rows: Float32Array[] = [];
  for await (const row of learner.streamImages(opened(), {
    ...(signal ? { signal } : {}),
    onProgress: (done) => onProgress?.('evaluation set', done, images.length),
  }))
    rows.push(row);
  const data = new Float32Array(rows.length * embeddings.dim);
  rows.forEach((row, i) => data.set(row, i * embeddings.dim));
  await nearPairs(
    embeddings,
    { data: f32ToF16(data), dim: embeddings.dim },
    { threshold, device },
    (row, image, cosine) => {
      if (cosine > (found.get(row)?.cosine ?? -1)) found.set(row, { image, cosine });
    },
  );
  hashes.forEach((hash, row) => {
    if (byHash.has(hash)) found.set(row, { image: byHash.get(hash)!, cosine: 1 });
  });
  return found;
}

/**
 * Merges the tables of a folder that `scoreCollection` filled.
 * @throws DataError when the folder has no scores, units are missing (and `partial` is not set) or files are damaged;
 *   ConfigError when the learner is not the one that made the scores; IoError
 */
export async function mergeScores(
  folder: string,
  options: MergeOptions = {},
): Promise<MergeSummary> {
  const settings = readSettings(folder),
    { learner } = settings;
  const given = options.leakage?.learner;
  if (
    given &&
    (given.dim !== learner.dim || given.scale !== learner.scale || given.bias !== learner.bias)
  )
    throw new ConfigError(
      `${folder}: was scored with ${learner.source}, which is not the model given; ` +
        'leakage needs the same one',
    );
  const there = (unit: string): boolean => existsSync(unitFiles(folder, unit).table);
  const units = settings.units.filter(there),
    missing = settings.units.filter((unit) => !there(unit));
  if (missing.length > 0 && !options.partial)
    throw new DataError(
      `${folder}: ${missing.length} of ${settings.units.length} tables are missing, ` +
        `${missing[0]} first; finish scoring, or merge what there is with --partial`,
    );
  const collected = await collect(folder, units, learner.dim, options),
    rows = collected.hashes.length;
  const { group, exact } = collected.duplicates;
  const leaked = options.leakage ? await findLeaks(collected, options) : new Map<number, Match>();

  const summary: MergeSummary = {
    settings,
    rows,
    units,
    missing,
    starts: [],
    flags: new Map(),
    leaks: [],
    skips: new SkipCounter(Infinity),
    columns: {
      cosine: new Float32Array(rows),
      probability: new Float32Array(rows),
      learnability: new Float32Array(rows),
      caption_length: new Float32Array(rows),
      language: [],
    },
  };
  const skipped: object[] = [];
  async function* groups(): AsyncGenerator<Columns> {
    let at = 0;
    for (const unit of units) {
      const { notes, ...table } = await openUnit(folder, unit),
        columns = await table.read(Object.keys(SCORE_COLUMNS));
      summary.starts.push(at);
      for (const skip of notes.skipped) {
        const { reason, example, ...more } = skip;
        summary.skips.add(reason, example, more);
        skipped.push({ unit, ...skip });
      }
      for (const name of ['cosine', 'probability', 'learnability', 'caption_length'] as const)
        summary.columns[name].set(
          Array.from(columns[name]!, (v) => (v === null ? NaN : Number(v))),
          at,
        );
      for (const language of columns['language'] as string[])
        summary.columns.language.push(language);
      const flags = Array.from(columns['flags'] as string[], (own, i) => {
        const row = at + i,
          all = own === '' ? [] : (own.split(',') as Flag[]),
          first = group[row]!;
        if (exact[row]) all.push('exact-duplicate');
        else if (first >= 0 && first !== row) all.push('near-duplicate');
        const leak = leaked.get(row);
        if (leak) {
          all.push('leaked');
          const { shard, key } = columns,
            image = options.leakage!.images[leak.image]!.name;
          summary.leaks.push({
            shard: shard![i] as string,
            key: key![i] as string,
            image,
            cosine: leak.cosine,
          });
        }
        for (const flag of all) summary.flags.set(flag, (summary.flags.get(flag) ?? 0) + 1);
        return all.join();
      });
      const duplicate = Array.from(group.subarray(at, at + table.rows), (first) =>
        first < 0 ? null : first,
      );
      yield { ...columns, duplicate, flags };
      at += table.rows;
    }
  }
  const { units: _, ...made } = settings,
    { near = 0.97 } = options;
  await writeTable(join(folder, 'scores.parquet'), SCORE_COLUMNS, groups(), {
    siglip2: JSON.stringify({
      by: `siglip2 ${packageVersion()}`,
      ...made,
      near,
      leakage: options.leakage !== undefined,
    }),
  });
  const asLines = (list: readonly object[]): string =>
    list.map((item) => `${JSON.stringify(item)}\n`).join('');
  await writeFileAtomic(join(folder, 'skipped.jsonl'), asLines(skipped));
  const leaks = join(folder, 'leaks.jsonl');
  if (options.leakage) await writeFileAtomic(leaks, asLines(summary.leaks));
  else await rm(leaks, { force: true }); // of an earlier merge, whose flags are gone too
  return summary;
}
