/** Choosing rows of a scored collection, and writing what was chosen: a key list, or new tars. */
import { existsSync } from 'node:fs';
import { extname, join } from 'node:path';
import { memberKey } from '../data/members.js';
import type { Sample } from '../data/sample.js';
import { ConfigError, DataError } from '../errors.js';
import { makeFolder, writeFileAtomic } from '../fs/files.js';
import { keyLines } from '../fs/keys.js';
import { kindOf } from '../fs/kinds.js';
import { readableImage } from '../image/names.js';
import { openTable } from '../io/parquet.js';
import { FileReader } from '../io/reader.js';
import { indexTar } from '../io/tar.js';
import { TarWriter } from '../io/tar_writer.js';
import { decodeText, parseJson } from '../text/decode_text.js';
import { originalSamples } from './originals.js';
import { FLAGS, openUnit, readSettings, SCORE_COLUMNS } from './score_table.js';

export interface FilterOptions {
  /**
   * Conditions that a row has to meet, all of them: `cosine>=0.2`, `language=de`, `caption~dog` (contains). Flags are a list:
   * `flags=leaked` has it, `flags!=leaked` has it not, `flags=` has none.
   */
  where?: readonly string[];
  /** Column for `percentile` and `top`. Default `cosine`. */
  by?: string;
  /** Leaves out rows whose `by` is below this percentile of it. */
  percentile?: number;
  /** At most so many rows: those with the largest `by`. */
  top?: number;
  /** `percentile` and `top` hold for each language by itself. */
  perLanguage?: boolean;
  /** Of images that are the same or look the same only the first row that meets the conditions. */
  unique?: boolean;
}

/** Rows that were chosen, in the order of the table. */
export interface Chosen {
  rows: number;
  kept: { shard: string; key: string }[];
}

type Value = string | number | null;
type Column = keyof typeof SCORE_COLUMNS;
const OPERATORS: Record<string, (a: string | number, b: string | number) => boolean> = {
  '>=': (a, b) => a >= b,
  '<=': (a, b) => a <= b,
  '!=': (a, b) => a !== b,
  '!~': (a, b) => !String(a).includes(String(b)),
  '>': (a, b) => a > b,
  '<': (a, b) => a < b,
  '=': (a, b) => a === b,
  '~': (a, b) => String(a).includes(String(b)),
};

function columnOf(name: string): Column {
  if (!Object.hasOwn(SCORE_COLUMNS, name))
    throw new ConfigError(
      `filter: there is no column "${name}"; the columns are ` +
        Object.keys(SCORE_COLUMNS).join(', '),
    );
  return name as Column;
}

const isText = (column: Column): boolean => SCORE_COLUMNS[column] === 'string';

/** A condition as a column and a test; a row without a value meets none. */
function parseCondition(text: string): { column: Column; meets: (value: Value) => boolean } {
  const match = /^\s*(\w+)\s*(>=|<=|!=|!~|>|<|=|~)\s*(.*?)\s*$/s.exec(text);
  if (!match)
    throw new ConfigError(
      `filter: a condition is a column, one of ${Object.keys(OPERATORS).join(' ')} and a value, ` +
        `but got "${text}"`,
    );
  const [, name = '', operator = '', right = ''] = match,
    compare = OPERATORS[operator]!;
  const column = columnOf(name),
    textual = isText(column);
  const value = textual ? right : Number(right);
  if (!textual && (right === '' || Number.isNaN(value)))
    throw new ConfigError(`filter: ${name} is a number but "${text}" compares it with "${right}"`);
  if (operator.includes('~') && !textual)
    throw new ConfigError(`filter: ${name} is a number, which ${operator} is not for`);
  if (column === 'flags') return { column, meets: flagTest(operator, right) };
  return { column, meets: (v) => v !== null && compare(v, value) };
}

/** A condition on the list of a row's flags. */
function flagTest(operator: string, flag: string): (value: Value) => boolean {
  if (!/^!?[=~]$/.test(operator))
    throw new ConfigError(
      `filter: flags are a list, which ${operator} is not for; use flags=${flag || 'FLAG'} or flags!=${flag || 'FLAG'}`,
    );
  if (flag !== '' && !Object.hasOwn(FLAGS, flag))
    throw new ConfigError(
      `filter: there is no flag "${flag}"; the flags are ${Object.keys(FLAGS).join(', ')}`,
    );
  const wanted = !operator.startsWith('!');
  return (value) =>
    (flag === '' ? value === '' : String(value).split(',').includes(flag)) === wanted;
}

/** Rows with the largest values, ties to the earlier row. */
const best = (rows: readonly number[], values: ArrayLike<Value>): number[] =>
  [...rows].sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);

/**
 * Chooses rows of a merged collection: first those that meet the conditions, of them one of each group of duplicates,
 * of them those above the percentile, of them the top.
 * @throws ConfigError for a column or condition that makes no sense; DataError when the folder was not merged
 */
export async function chooseRows(folder: string, options: FilterOptions): Promise<Chosen> {
  const { where = [], percentile, top, perLanguage = false, unique = false } = options;
  const by = columnOf(options.by ?? 'cosine');
  const conditions = where.map(parseCondition);
  if (isText(by)) throw new ConfigError(`filter: ${by} is text, which has no order to go by`);
  if (percentile !== undefined && !(percentile >= 0 && percentile <= 100))
    throw new ConfigError(`filter: percentile must be in [0, 100] but is ${percentile}`);
  if (top !== undefined && !(Number.isInteger(top) && top > 0))
    throw new ConfigError(`filter: top must be a positive integer but is ${top}`);
  const file = join(folder, 'scores.parquet');
  if (!existsSync(file))
    throw new DataError(
      `${folder}: has no scores.parquet; make it with \`siglip2 score --merge ${folder}\``,
    );
  const table = await openTable(file);
  const needed = new Set<Column>([
    'shard',
    'key',
    'language',
    'duplicate',
    by,
    ...conditions.map(({ column }) => column),
  ]);
  const columns = await table.read([...needed]),
    duplicate = columns['duplicate']!,
    values = columns[by]!;

  const meetsAll = (row: number): boolean =>
    conditions.every(({ column, meets }) => meets(columns[column]![row]!));
  let rows = Array.from({ length: table.rows }, (_, i) => i).filter(meetsAll);
  if (unique) {
    const seen = new Set<number>();
    rows = rows.filter((row) => {
      const group = duplicate[row] as number | null,
        fresh = group === null || !seen.has(group);
      if (group !== null) seen.add(group);
      return fresh;
    });
  }
  if (percentile !== undefined || top !== undefined) {
    rows = rows.filter((row) => values[row] !== null);
    const groups = new Map<Value, number[]>();
    for (const row of rows) {
      const group = perLanguage ? columns['language']![row]! : '',
        list = groups.get(group);
      if (list) list.push(row);
      else groups.set(group, [row]);
    }
    rows = [...groups.values()]
      .flatMap((group) => {
        const below =
          percentile === undefined ? 0 : Math.ceil((percentile / 100) * (group.length - 1));
        return best(group, values).slice(0, Math.min(group.length - below, top ?? Infinity));
      })
      .sort((a, b) => a - b);
  }
  const { shard, key } = columns as Record<string, string[]>;
  return { rows: table.rows, kept: rows.map((row) => ({ shard: shard![row]!, key: key![row]! })) };
}

/**
 * Writes the chosen rows as a key list, for `keys` of a data source.
 * @throws ConfigError when the name is that of another kind of file
 */
export async function writeKeys(path: string, { kept }: Chosen): Promise<void> {
  checkKeysFile(path);
  await writeFileAtomic(path, keyLines(kept.map(({ shard, key }) => ({ file: shard, key }))));
}

/** Throws ConfigError unless the name fits a key list, which is text. */
export function checkKeysFile(path: string): void {
  if (!['', '.txt', '.tsv', '.keys', '.list'].includes(extname(path).toLowerCase()))
    throw new ConfigError(
      `filter: ${path} would be a list of keys, which is text; give --out a name that ends in .txt, or write ` +
        'the samples with --tars DIR',
    );
}

/** What a sample of a folder or manifest is called in a tar; not as those `taken`, for x.jpg and x.png share a stem. */
function stemOf(key: string, taken: Set<string>): string {
  // A tar's key ends at the first dot of the name, and its members have relative paths.
  const plain = key
    .replace(/\.[^./]*$/, '')
    .replaceAll('.', '_')
    .replace(/^\/+/, '');
  let stem = plain;
  for (let n = 2; taken.has(stem); n++) stem = `${plain}-${n}`;
  taken.add(stem);
  return stem;
}

function renamed(row: unknown, captions: string): unknown {
  const { [captions]: found, ...rest } = Object(row) as Record<string, unknown>;
  return { ...rest, captions: found };
}

/** The files of a sample of a folder or manifest, as they are called in a tar. */
function members(
  { image, captions, mask }: Sample,
  stem: string,
  reader: FileReader,
): [name: string, bytes: Uint8Array][] {
  const text = captions.inline === undefined ? reader.read(captions) : Buffer.from(captions.inline),
    bytes = reader.read(image);
  // Under the name by which the captions are found in a tar.
  const found =
    captions.as === undefined
      ? text
      : Buffer.from(JSON.stringify(renamed(parseJson(decodeText(text)), captions.as)));
  const ending = readableImage(image.path)
    ? extname(image.path)
    : `.${kindOf(bytes, image.path)?.id ?? 'jpg'}`;
  return [
    [`${stem}${ending}`, bytes],
    [`${stem}.${captions.format}`, found],
    ...(mask ? [[`${stem}.mask.png`, reader.read(mask)] as [string, Uint8Array]] : []),
  ];
}

/**
 * Writes the chosen samples as new tars, one for every table that has some: all members of a tar's samples, or image and
 * captions of a folder's or manifest's. Tars that are there already are kept, so it can be run again after a stop.
 * @returns number of samples written or there already
 * @throws DataError naming samples that are gone since they were scored
 */
export async function writeTars(folder: string, out: string, { kept }: Chosen): Promise<number> {
  const keys = new Map<string, Set<string>>();
  for (const { shard, key } of kept) {
    const own = keys.get(shard);
    if (own) own.add(key);
    else keys.set(shard, new Set([key]));
  }
  await makeFolder(out);
  const reader = new FileReader();
  let written = 0;
  try {
    for (const unit of readSettings(folder).units) {
      const table = await openUnit(folder, unit),
        { shard, key } = (await table.read(['shard', 'key'])) as Record<string, string[]>;
      const own = new Set(key!.filter((one, i) => keys.get(shard![i]!)?.has(one)));
      if (own.size === 0) continue;
      const target = join(out, unit.endsWith('.tar') ? unit : `${unit}.tar`);
      const copy = table.notes.spec.type === 'webdataset' ? copyMembers : copySamples;
      if (!existsSync(target)) await copy(folder, unit, own, target, reader);
      written += own.size;
    }
    return written;
  } finally {
    reader.close();
  }
}

async function copyMembers(
  folder: string,
  unit: string,
  keys: ReadonlySet<string>,
  target: string,
  reader: FileReader,
): Promise<void> {
  const { spec } = (await openUnit(folder, unit)).notes,
    tar = (spec as { tars: string[] }).tars[0]!;
  const entries = (await indexTar(tar, { onDamage: () => undefined })).filter(
    ({ name, fault }) => fault === undefined && keys.has(memberKey(name) ?? ''),
  );
  const there = new Set(entries.map(({ name }) => memberKey(name)));
  const missing = [...keys].find((key) => !there.has(key));
  if (missing !== undefined)
    throw new DataError(
      `${tar}: ${missing} is gone since it was scored; score the collection again`,
    );
  write(
    target,
    entries.map(({ name, offset, size }) => () => [name, reader.read({ path: tar, offset, size })]),
  );
}

async function copySamples(
  folder: string,
  unit: string,
  keys: ReadonlySet<string>,
  target: string,
  reader: FileReader,
): Promise<void> {
  const samples = (await originalSamples(folder, new Map([[unit, keys]]))).get(unit);
  const missing = [...keys].find((key) => !samples?.has(key));
  if (missing !== undefined)
    throw new DataError(
      `${unit}: ${missing} is gone since it was scored; score the collection again`,
    );
  const taken = new Set<string>();
  write(
    target,
    [...keys].flatMap((key) =>
      members(samples!.get(key)!, stemOf(key, taken), reader).map((member) => () => member),
    ),
  );
}

function write(target: string, list: (() => [name: string, bytes: Uint8Array])[]): void {
  const writer = new TarWriter(target);
  try {
    for (const member of list) writer.add(...member());
    writer.finish();
  } catch (error) {
    writer.abort();
    throw error;
  }
}
