/** Manifests: lists of images with captions, as JSON lines, as CSV or TSV with a header, or as Parquet tables. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse } from 'csv-parse';
import { DataError } from '../../errors.js';
import { fileError } from '../../fs/files.js';
import { headOf, isKind, kindOf } from '../../fs/kinds.js';
import { expandPaths, lines } from '../../fs/paths.js';
import { walk } from '../../fs/walk.js';
import { openTable, type Table } from '../../io/parquet.js';
import { FileReader, type Location } from '../../io/reader.js';
import { captionsFromJson, captionsFromObject, type ParsedCaptions } from '../../text/captions.js';
import { NotText } from '../../text/decode_text.js';
import type { MemberNames } from '../members.js';
import type { CaptionLocation } from '../sample.js';

/** Names of files that are manifests. */
export const MANIFEST = /\.(jsonl|ndjson|csv|tsv|parquet)$/i;

const IMAGES = ['image', 'file_name', 'filepath'];
const CAPTIONS = ['captions', 'caption', 'text'];
/** The captions of tables whose images are in `filepath`. */
const TITLE = 'title';
const OTHERS = ['lang', 'language', 'class'];
const MAX_RECORD = 16 << 20;

/** One row that can be read. */
export interface ManifestRow {
  example: string;
  /** A path as it is written, or where in the manifest itself the image stands. */
  image: string | Location | undefined;
  key: string | undefined;
  captions: CaptionLocation;
  parsed: ParsedCaptions;
}

/** Options of reading. */
export interface ManifestOptions {
  /** Of captions that do not say theirs. */
  language: string;
  /** Other keys or columns. */
  members?: MemberNames | undefined;
  /** Called for a row that cannot be read. */
  onSkip(reason: string, example: string): void;
}

/** The manifests that a path, a pattern, a folder of parts or a list of them names, in order. Throws DataError. */
export async function manifestFiles(paths: string | readonly string[]): Promise<string[]> {
  const files: string[] = [];
  for (const one of [paths].flat().flatMap(expandPaths)) {
    if (!fs.statSync(one, { throwIfNoEntry: false })?.isDirectory()) {
      files.push(one);
      continue;
    }
    // Writers of parts put notes of theirs beside them, whose names begin with an underscore.
    const parts = (await walk(one)).names.filter(
      (name) => MANIFEST.test(name) && !path.basename(name).startsWith('_'),
    );
    if (parts.length === 0)
      throw new DataError(
        `${one}: no manifest is in this folder; manifests end in .jsonl, .csv, .tsv or .parquet`,
      );
    files.push(...parts.map((name) => path.join(one, name)));
  }
  return files;
}

/**
 * The rows of a manifest.
 * @throws DataError when the file is missing, damaged, of another kind, or has no column of images or of captions; IoError
 */
export async function* manifestRows(
  file: string,
  options: ManifestOptions,
): AsyncGenerator<ManifestRow> {
  const kind = kindOf(headOf(file), file),
    table = /\.[ct]sv$/i.test(file);
  if (kind?.id === 'parquet' || (kind === undefined && /\.parquet$/i.test(file)))
    return yield* parquetRows(file, options);
  if (kind?.id === 'tar')
    throw new DataError(
      `${file}: is a tar archive, which is no manifest; name it as one (source.type "webdataset")`,
    );
  if (kind?.id === 'json-array' && !table)
    throw new DataError(
      `${file}: is a JSON array; a manifest has one object a line, which \`jq -c '.[]' ${file}\` writes`,
    );
  if (kind && kind.id !== 'json' && !(kind.id === 'utf16' && table) && kind.id !== 'json-array')
    throw new DataError(`${file}: is no manifest: it ${isKind(kind)}`);
  yield* table ? tableRows(file, options) : jsonRows(file, options);
}

/** What a manifest needs, for the sentence that says that it has something else. */
export function wanted({ image, caption }: MemberNames = {}): string {
  const list = (names: readonly string[]): string => names.map((name) => `"${name}"`).join(' or ');
  return (
    `${image === undefined ? list(IMAGES) : `"${image}"`} with the path of an image and ` +
    `${caption === undefined ? list(CAPTIONS) : `"${caption}"`} with its captions (members of the source names others)`
  );
}

/** Which of the columns has the images and which ones the captions; undefined when there are none. */
function columnsOf(
  columns: readonly string[],
  members: MemberNames = {},
): { image: string; captions: string[] } | undefined {
  const image = members.image ?? IMAGES.find((name) => columns.includes(name));
  let captions = (members.caption === undefined ? CAPTIONS : [members.caption]).filter((name) =>
    columns.includes(name),
  );
  if (captions.length === 0 && image === 'filepath' && columns.includes(TITLE)) captions = [TITLE];
  return image === undefined || !columns.includes(image) || captions.length === 0
    ? undefined
    : { image, captions };
}

/** Whether a table with these columns is a manifest. */
export const hasImages = (columns: readonly string[], members?: MemberNames): boolean =>
  columnsOf(columns, members) !== undefined;

function chooseColumns(
  file: string,
  columns: readonly string[],
  members: MemberNames | undefined,
): { image: string; captions: string[] } {
  const found = columnsOf(columns, members);
  if (!found)
    throw new DataError(
      `${file}: a manifest needs a column ${wanted(members)}, but the columns are ${columns.join(', ') || 'none'}`,
    );
  return found;
}

/** A row with the captions under the names that are read everywhere. */
function normal(
  row: Record<string, unknown>,
  captions: readonly string[],
): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const name of captions)
    if (row[name] != null) out[CAPTIONS.includes(name) ? name : 'captions'] = row[name];
  for (const name of OTHERS) if (row[name] != null) out[name] = row[name];
  return out;
}

function imagePath(value: unknown): string | undefined {
  const named =
    typeof value === 'object' && value !== null ? (value as { path?: unknown }).path : value;
  if (typeof named !== 'string' || named === '') return undefined;
  if (!named.startsWith('file://')) return named;
  try {
    return fileURLToPath(named);
  } catch {
    return named;
  }
}

async function* jsonRows(
  file: string,
  { language, members = {}, onSkip }: ManifestOptions,
): AsyncGenerator<ManifestRow> {
  let number = 0;
  for await (const { data, offset } of lines(file)) {
    number++;
    if (data.every((byte) => byte === 0x20 || byte === 0x09)) continue;
    const example = `${file} line ${number}`,
      location: CaptionLocation = { path: file, offset, size: data.length, format: 'json' };
    if (members.caption !== undefined && !CAPTIONS.includes(members.caption))
      location.as = members.caption;
    try {
      let parsed = captionsFromJson(data, language, location.as);
      const { meta } = parsed,
        name = members.image ?? IMAGES.find((key) => meta[key] != null);
      if (
        name === 'filepath' &&
        parsed.captions.length === 0 &&
        location.as === undefined &&
        typeof meta[TITLE] === 'string'
      ) {
        location.as = TITLE;
        parsed = captionsFromJson(data, language, TITLE);
      }
      const image = imagePath(name === undefined ? undefined : meta[name]);
      yield { example, image, key: image, captions: location, parsed };
    } catch (error) {
      if (error instanceof NotText) onSkip('captions are not UTF-8', example);
      else if (error instanceof SyntaxError) onSkip('the line is not valid JSON', example);
      else throw error;
    }
  }
}

/** The chunks of a file as text: UTF-8, or UTF-16 with its mark. Throws DataError for bytes that are neither. */
async function* textOf(file: string): AsyncGenerator<string> {
  let decoder: InstanceType<typeof TextDecoder> | undefined;
  try {
    for await (const chunk of fs.createReadStream(file)) {
      const bytes = chunk as Buffer,
        mark = bytes.length > 1 ? bytes.readUInt16BE(0) : 0;
      decoder ??= new TextDecoder(
        mark === 0xfffe ? 'utf-16le' : mark === 0xfeff ? 'utf-16be' : 'utf-8',
        { fatal: true },
      );
      yield decoder.decode(bytes, { stream: true });
    }
    if (decoder) yield decoder.decode();
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw fileError(cause, 'read', file);
    throw new DataError(
      `${file}: is not UTF-8 text; convert it, with \`iconv -f LATIN1 -t UTF-8 ${file}\` if that is what it is`,
      { cause },
    );
  }
}

/** What separates the fields: in a .csv what the header has most of, for such files have tabs and semicolons too. */
function delimiterOf(file: string, header: string): string {
  if (/\.tsv$/i.test(file)) return '\t';
  const count = (mark: string): number => header.split(mark).length;
  return [',', '\t', ';'].reduce((best, mark) => (count(mark) > count(best) ? mark : best));
}

async function* tableRows(
  file: string,
  { language, members }: ManifestOptions,
): AsyncGenerator<ManifestRow> {
  const chunks = textOf(file),
    first = ((await chunks.next()).value as string | undefined) ?? '';
  const parser = parse({
    bom: true,
    delimiter: delimiterOf(file, /^[^\r\n]*/.exec(first)![0]),
    columns: true,
    skip_empty_lines: true,
    relax_quotes: true,
    relax_column_count: true,
    max_record_size: MAX_RECORD,
  });
  const fed = (async () => {
    const write = async (text: string): Promise<void> => {
      if (!parser.write(text))
        await new Promise<void>((resolve) => {
          parser.once('drain', resolve).once('close', resolve);
        });
    };
    await write(first);
    for await (const text of chunks) await write(text);
    parser.end();
  })().catch((error: unknown) => {
    parser.destroy(error as Error);
  });
  let number = 0,
    columns: ReturnType<typeof chooseColumns> | undefined;
  try {
    for await (const record of parser as AsyncIterable<Record<string, string>>) {
      number++;
      columns ??= chooseColumns(file, Object.keys(record), members);
      const text = (name: string): unknown => (record[name]?.trim() ? record[name] : undefined);
      const row = normal(
        Object.fromEntries([...columns.captions, ...OTHERS].map((name) => [name, text(name)])),
        columns.captions,
      );
      if (typeof row['captions'] === 'string' && /^\s*[[{]/.test(row['captions']))
        row['captions'] = jsonOr(row['captions']);
      if (/^\d+$/.test(String(row['class']))) row['class'] = Number(row['class']);
      const inline = JSON.stringify(row),
        image = imagePath(text(columns.image));
      yield {
        example: `${file} row ${number}`,
        image,
        key: image,
        captions: { path: file, offset: 0, size: -1, format: 'json', inline },
        parsed: captionsFromObject(row, language),
      };
    }
    if (number === 0)
      throw new DataError(
        `${file}: has no row behind a header; a manifest needs a column ${wanted(members)}`,
      );
  } catch (cause) {
    if (!/^CSV_/.test(String((cause as { code?: unknown }).code)))
      throw fileError(cause, 'read', file);
    throw new DataError(
      `${file}: cannot be read as a table behind row ${number}: ${(cause as Error).message}`,
      { cause },
    );
  } finally {
    parser.destroy();
    await fed;
  }
}

function jsonOr(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** A value of a Parquet table as JSON has it: 64-bit integers as numbers where these are exact, byte arrays as text. Throws NotText. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint')
    return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Uint8Array) {
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(value);
    } catch (cause) {
      throw new NotText('not UTF-8', { cause });
    }
  }
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Date || typeof value !== 'object' || value === null) return value;
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<number>, plain);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
}

async function* parquetRows(
  file: string,
  { language, members, onSkip }: ManifestOptions,
): AsyncGenerator<ManifestRow> {
  const table = await openTable(file),
    { image, captions } = chooseColumns(file, table.columns, members);
  const names = [image, ...captions, ...OTHERS.filter((name) => table.columns.includes(name))];
  let number = 0;
  for await (const group of table.groups(names, true)) {
    let checked = false;
    for (let i = 0; i < group[image]!.length; i++) {
      const example = `${file} row ${++number}`;
      try {
        const row = normal(
          Object.fromEntries(names.slice(1).map((name) => [name, plain(group[name]![i])])),
          captions,
        );
        const named = namedImage(table, image, group[image]![i]);
        if (named && typeof named.image === 'object' && !checked) {
          checkPlace(named.image, named.bytes!);
          checked = true;
        }
        const inline = JSON.stringify(row);
        yield {
          example,
          image: named?.image,
          key: named?.key ?? String(number),
          captions: { path: file, offset: 0, size: -1, format: 'json', inline },
          parsed: captionsFromObject(row, language),
        };
      } catch (error) {
        if (!(error instanceof NotText)) throw error;
        onSkip('captions are not UTF-8', example);
      }
    }
  }
}

/** The image of a row: a path, or bytes, alone or beside a path as data sets of Hugging Face have them. */
function namedImage(
  table: Table,
  column: string,
  value: unknown,
): { image: string | Location; key: string | undefined; bytes?: Uint8Array } | undefined {
  const struct =
    typeof value === 'object' && value !== null && !(value instanceof Uint8Array)
      ? (value as { bytes?: unknown })
      : undefined;
  const bytes = struct ? struct.bytes : value;
  if (bytes instanceof Uint8Array && (struct || !isPath(bytes))) {
    const own = struct && (struct as { path?: unknown }).path,
      named = own instanceof Uint8Array ? String(plain(own)) : own;
    return {
      image: table.place(bytes, struct ? [column, 'bytes'] : [column]),
      key: imagePath(named),
      bytes,
    };
  }
  const found = imagePath(
    struct ? { path: plain((struct as { path?: unknown }).path) } : plain(value),
  );
  return found === undefined ? undefined : { image: found, key: found };
}

/** Whether bytes that are not said to be text are the name of a file and no image. */
function isPath(bytes: Uint8Array): boolean {
  return (
    bytes.length < 4096 &&
    kindOf(bytes.subarray(0, 512), '') === undefined &&
    bytes.every((byte) => byte >= 0x20)
  );
}

/** Once for each row group: what stands at the place is what was read. */
function checkPlace(place: Location, bytes: Uint8Array): void {
  const reader = new FileReader();
  try {
    if (!reader.read(place).equals(bytes))
      throw new DataError(
        `${place.path}: its images are not found where they should stand; the file is damaged, or encodes them otherwise than plain`,
      );
  } finally {
    reader.close();
  }
}
