/** The files of a scored collection: a table per unit, embeddings beside it, and score.json: how they came about. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { DataError } from '../errors.js';
import { readJson } from '../fs/files.js';
import { f32ToF16 } from '../io/half.js';
import { type Columns, type ColumnType, openTable, type Table, writeTable } from '../io/parquet.js';
import { openSafetensors, writeSafetensors } from '../io/safetensors.js';
import type { ScoreUnit, Skipped } from './score_units.js';

/** Columns of a table of scores, one row per image and caption. */
export const SCORE_COLUMNS = {
  /** Name of the tar, folder or manifest. */
  shard: 'string',
  key: 'string',
  /** The caption that was scored, and its language as its file says. */
  caption: 'string',
  language: 'string',
  /** In Unicode code points. */
  caption_length: 'int',
  /** In pixels, with EXIF orientation applied. */
  width: 'int',
  height: 'int',
  /** Of the image's and the caption's embedding, in [−1, 1]. */
  cosine: 'float',
  /** sigmoid(t · cosine + b): that the two belong together. */
  probability: 'float',
  /** The pair's share in the learner's sigmoid loss, and that minus the reference's (`pairLosses`). */
  loss: 'float',
  learnability: 'float?',
  /** Of the image file's bytes, hexadecimal. */
  sha256: 'string',
  /** Row of the first of the images that look the same; null for one that is alone. Made by merging. */
  duplicate: 'int?',
  /** Words of `FLAGS`, joined by commas. */
  flags: 'string',
} as const satisfies Record<string, ColumnType>;

/** What can be said about a row. The first three are the basic filter of DataComp (arXiv 2304.14108). */
export const FLAGS = {
  'small-image': 'a side shorter than 200 pixels',
  'long-image': 'an aspect ratio above 3',
  'short-caption': 'at most 5 characters',
  'exact-duplicate': 'the same file as an earlier row',
  'near-duplicate': 'looks the same as an earlier row',
  leaked: 'looks the same as an image of the evaluation set',
} as const;
export type Flag = keyof typeof FLAGS;

/** Flags that follow from a row alone. */
export function ownFlags(width: number, height: number, captionLength: number): Flag[] {
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  const is: [Flag, boolean][] = [
    ['small-image', short < 200],
    ['long-image', long > 3 * short],
    ['short-caption', captionLength <= 5],
  ];
  return is.filter(([, yes]) => yes).map(([flag]) => flag);
}

const modelSchema = z.strictObject({
  source: z.string(),
  dim: z.int(),
  scale: z.number(),
  bias: z.number(),
});
const settingsSchema = z.strictObject({
  version: z.literal(1),
  learner: modelSchema,
  reference: modelSchema.nullable(),
  processor: z.string(),
  dtype: z.string(),
  alpha: z.enum(['drop', 'white']),
  pick: z.string(),
  block: z.int().min(1),
  units: z.array(z.string()),
});
/** How a folder of scores came about: score.json. */
export type ScoreSettings = z.output<typeof settingsSchema>;

/** @throws DataError when the folder has no scores or its score.json is damaged */
export function readSettings(folder: string): ScoreSettings {
  const file = join(folder, 'score.json');
  if (!existsSync(file))
    throw new DataError(
      `${folder}: has no score.json; it is no folder that \`siglip2 score\` wrote`,
    );
  const parsed = settingsSchema.safeParse(readJson(file));
  if (!parsed.success)
    throw new DataError(
      `${file}: is damaged or of another version: ${parsed.error.issues[0]!.message}`,
    );
  return parsed.data;
}

/** Where a unit's rows, and the embeddings of its images, are. */
export function unitFiles(folder: string, unit: string): { table: string; embeddings: string } {
  return {
    table: join(folder, `${unit}.parquet`),
    embeddings: join(folder, `${unit}.safetensors`),
  };
}

/** What a unit's table says beside its rows. */
export interface UnitNotes {
  spec: ScoreUnit['spec'];
  skipped: readonly Skipped[];
}

/**
 * Writes a finished unit: embeddings first, so that a table means that the unit is complete.
 * @param images (rows, dim), stored as half floats
 */
export async function writeUnit(
  folder: string,
  unit: ScoreUnit,
  rows: number,
  columns: Columns,
  images: Float32Array,
  skipped: readonly Skipped[],
): Promise<void> {
  const { table, embeddings } = unitFiles(folder, unit.name);
  if (rows > 0) {
    const shape = [rows, images.length / rows];
    await writeSafetensors(embeddings, [
      { name: 'images', dtype: 'F16', shape, data: f32ToF16(images) },
    ]);
  }
  const notes: UnitNotes = { spec: unit.spec, skipped };
  await writeTable(table, SCORE_COLUMNS, [columns], { siglip2: JSON.stringify(notes) });
}

/** The notes of an open unit's table. Throws DataError when they are missing. */
export function unitNotes(file: string, table: Table): UnitNotes {
  const text = table.metadata.get('siglip2');
  if (text === undefined)
    throw new DataError(`${file}: was not written by \`siglip2 score\`; score this unit again`);
  return JSON.parse(text) as UnitNotes;
}

/** An open table of a unit, with its notes. */
export async function openUnit(
  folder: string,
  unit: string,
): Promise<Table & { notes: UnitNotes }> {
  const file = unitFiles(folder, unit).table,
    table = await openTable(file);
  return { ...table, notes: unitNotes(file, table) };
}

/** Embeddings of a unit's images: half floats, (rows, dim), unit rows to their precision. */
export async function readEmbeddings(folder: string, unit: string): Promise<Uint16Array> {
  const reader = await openSafetensors(unitFiles(folder, unit).embeddings);
  try {
    const bytes = await reader.read('images');
    return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  } finally {
    await reader.close();
  }
}
