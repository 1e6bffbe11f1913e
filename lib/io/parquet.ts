/** Apache Parquet: tables of plain columns, and embeddings as columns `name` (string) and `embedding` (list of float). */

import {
  asyncBufferFromFile,
  type FileMetaData,
  parquetMetadataAsync,
  parquetScan,
} from 'hyparquet';
import { ByteWriter, ParquetWriter, parquetWrite } from 'hyparquet-writer';
import { DataError } from '../errors.js';
import { ioError, openInput, writeFileAtomic } from '../fs/files.js';
import { CODECS, unpackPage } from './codecs.js';
import type { Location } from './reader.js';

/** Rows of a row group: what a reader has to hold at once. */
const GROUP = 4096;

/**
 * @param names one per row
 * @param rows embeddings of equal length
 * @throws IoError when the disk says no; the old file is then untouched
 */
export async function writeParquet(
  path: string,
  names: readonly string[],
  rows: readonly Float32Array[],
): Promise<void> {
  const writer = new ByteWriter();
  parquetWrite({
    writer,
    // Names repeat nowhere and floats do not compress: dictionaries and statistics would only cost space.
    statistics: false,
    rowGroupSize: GROUP,
    schema: [
      { name: 'root', num_children: 2 },
      { name: 'name', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'REQUIRED' },
      { name: 'embedding', converted_type: 'LIST', repetition_type: 'REQUIRED', num_children: 1 },
      { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
      { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' },
    ],
    columnData: [
      { name: 'name', data: [...names] },
      { name: 'embedding', data: rows.map((row) => Array.from(row)) },
    ],
  });
  await writeFileAtomic(path, new Uint8Array(writer.getBuffer()));
}

/** What a column holds; a `?` allows null. */
export type ColumnType = 'string' | 'int' | 'float' | 'int?' | 'float?';

/** The values of some rows, by column. */
export type Columns = Record<string, ArrayLike<string | number | null>>;

/** A writer whose bytes are taken away after every row group. */
class PieceWriter extends ByteWriter {
  take(): Uint8Array {
    const piece = new Uint8Array(this.buffer, 0, this.index).slice();
    this.index = 0;
    return piece;
  }
}

/**
 * Writes a table, one row group for each of `groups`. The same rows always give the same bytes.
 * @param metadata texts that travel with the file
 * @throws IoError when the disk says no; the old file is then untouched
 */
export async function writeTable(
  path: string,
  schema: Readonly<Record<string, ColumnType>>,
  groups: Iterable<Columns> | AsyncIterable<Columns>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const names = Object.keys(schema),
    writer = new PieceWriter();
  const parquet = new ParquetWriter({
    writer,
    schema: [
      { name: 'root', num_children: names.length },
      ...names.map((name) => ({
        name,
        repetition_type: schema[name]!.endsWith('?')
          ? ('OPTIONAL' as const)
          : ('REQUIRED' as const),
        ...(schema[name] === 'string'
          ? { type: 'BYTE_ARRAY' as const, converted_type: 'UTF8' as const }
          : { type: schema[name]!.startsWith('int') ? ('INT32' as const) : ('FLOAT' as const) }),
      })),
    ],
    kvMetadata: Object.entries({ ...metadata, ...pandasTypes(schema) }).map(([key, value]) => ({
      key,
      value,
    })),
  });
  await writeFileAtomic(
    path,
    (async function* () {
      for await (const group of groups) {
        const columnData = names.map((name) => ({ name, data: Array.from(group[name]!) }));
        if (columnData[0]!.data.length === 0) continue;
        await parquet.write({ columnData, rowGroupSize: columnData[0]!.data.length });
        yield writer.take();
      }
      await parquet.finish();
      yield writer.take();
    })(),
  );
}

/** What pandas needs to be told: it reads an integer column with nulls as floats otherwise. */
function pandasTypes(schema: Readonly<Record<string, ColumnType>>): Record<string, string> {
  const columns = Object.keys(schema)
    .filter((name) => schema[name] === 'int?')
    .map((name) => ({
      name,
      field_name: name,
      pandas_type: 'int32',
      numpy_type: 'Int32',
      metadata: null,
    }));
  return columns.length === 0
    ? {}
    : {
        pandas: JSON.stringify({
          index_columns: [],
          column_indexes: [],
          columns,
          pandas_version: '1.0.0',
        }),
      };
}

/** An open table. */
export interface Table {
  rows: number;
  columns: string[];
  metadata: ReadonlyMap<string, string>;
  /**
   * All rows of the columns named.
   * @throws DataError naming a column that the table lacks, or when the file is damaged
   */
  read(columns: readonly string[]): Promise<Columns>;
  /**
   * The same, a row group at a time, for tables of any size; values are as parquet has them. Throws likewise.
   * @param bytes whether byte arrays that are not said to be text stay bytes; default they are read as UTF-8
   */
  groups(
    columns: readonly string[],
    bytes?: boolean,
  ): AsyncGenerator<Record<string, ArrayLike<unknown>>>;
  /**
   * Where in the file a byte array of the group that `groups` gave last stands.
   * @param leaf path of its column: `['image', 'bytes']`
   */
  place(value: Uint8Array, leaf: readonly string[]): Location;
}

/**
 * Opens a parquet file; only its footer is read.
 * @throws DataError when the file is missing or is no parquet file; IoError when it cannot be read
 */
export async function openTable(path: string): Promise<Table> {
  const damaged = (cause: unknown): unknown => {
    const { code, syscall } = cause as NodeJS.ErrnoException;
    if (syscall !== undefined && code !== 'ENOENT') return ioError('read', path, cause);
    if (cause instanceof DataError) return cause;
    return new DataError(
      code === 'ENOENT'
        ? `cannot read ${path}: there is no such file; check the path`
        : `${path}: is not a readable parquet file: ${(cause as Error).message}`,
      { cause },
    );
  };
  let file: Awaited<ReturnType<typeof asyncBufferFromFile>>, metadata: FileMetaData;
  try {
    await (await openInput(path)).close(); // the library would wait for a pipe's writer
    file = await asyncBufferFromFile(path);
    const end = Buffer.from(
      await file.slice(Math.max(0, file.byteLength - 4), file.byteLength),
    ).toString('latin1');
    if (end === 'PARE') throw encrypted(path);
    metadata = await parquetMetadataAsync(file);
  } catch (cause) {
    throw damaged(cause);
  }
  const columns: string[] = [];
  // The children of the root; a column that is a struct or list spans several elements.
  for (let at = 1, skip = 0; at < metadata.schema.length; at++) {
    if (skip === 0) columns.push(metadata.schema[at]!.name);
    skip = Math.max(0, skip - 1) + (metadata.schema[at]!.num_children ?? 0);
  }
  /** Pages that were unpacked for the group that is read: by their buffer, where they stand in the column's bytes. */
  const pages = new Map<ArrayBufferLike, { at: number; size: number; codec: string }>();
  let group = 0;
  const compressors = Object.fromEntries(
    CODECS.map((codec) => [
      codec,
      (input: Uint8Array, unpacked: number) => {
        let page = unpackPage(input, { codec, unpacked });
        if (page.byteOffset !== 0 || page.buffer.byteLength !== page.length) page = page.slice();
        pages.set(page.buffer, { at: input.byteOffset, size: input.length, codec });
        return page;
      },
    ]),
  );
  async function* groups(
    wanted: readonly string[],
    bytes = false,
  ): AsyncGenerator<Record<string, ArrayLike<unknown>>> {
    const missing = wanted.find((column) => !columns.includes(column));
    if (missing !== undefined)
      throw new DataError(
        `${path}: there is no column "${missing}"; the columns are ${columns.join(', ')}`,
      );
    if (
      metadata.row_groups.some((g) =>
        g.columns.some(
          (c) => c.crypto_metadata && wanted.includes(c.meta_data?.path_in_schema[0] ?? wanted[0]!),
        ),
      )
    )
      throw encrypted(path);
    const scan = await parquetScan({
      file,
      metadata,
      columns: [...wanted],
      compressors,
      utf8: !bytes,
      useOffsetIndex: false,
    }).catch((cause: unknown) => {
      throw damaged(cause);
    });
    let rows = 0;
    for (const [index, { rowStart, rowEnd }] of scan.ranges.entries()) {
      const values: Record<string, ArrayLike<unknown>> = {};
      group = index;
      pages.clear();
      try {
        for (const column of wanted) {
          const read = await scan.readColumn({ column, rowStart, rowEnd });
          if (read.length !== rowEnd - rowStart)
            throw new Error(
              `column "${column}" has ${read.length} values for ${rowEnd - rowStart} rows`,
            );
          values[column] = read;
        }
      } catch (cause) {
        throw damaged(cause);
      }
      rows += rowEnd - rowStart;
      yield values;
    }
    if (wanted.length > 0 && rows !== Number(metadata.num_rows))
      throw damaged(new Error(`its row groups have ${rows} rows but it says ${metadata.num_rows}`));
  }
  function place(value: Uint8Array, leaf: readonly string[]): Location {
    const id = JSON.stringify(leaf);
    const chunk = metadata.row_groups[group]!.columns.find(
      (c) => JSON.stringify(c.meta_data?.path_in_schema) === id,
    )?.meta_data;
    if (!chunk) throw damaged(new Error(`it has no column ${leaf.join('.')}`));
    const from = Number(chunk.dictionary_page_offset || chunk.data_page_offset),
      page = pages.get(value.buffer);
    if (!page) return { path, offset: from + value.byteOffset, size: value.length };
    return {
      path,
      offset: from + page.at,
      size: page.size,
      within: {
        codec: page.codec,
        unpacked: value.buffer.byteLength,
        start: value.byteOffset,
        length: value.length,
      },
    };
  }
  return {
    rows: Number(metadata.num_rows),
    columns,
    metadata: new Map(
      (metadata.key_value_metadata ?? []).map(({ key, value }) => [key, value ?? '']),
    ),
    groups,
    place,
    async read(wanted) {
      const out: Record<string, (string | number | null)[]> = Object.fromEntries(
        wanted.map((column) => [column, []]),
      );
      for await (const values of groups(wanted))
        for (const column of wanted)
          for (const value of Array.from(values[column]!))
            out[column]!.push(value as string | number | null);
      return out;
    },
  };
}

const encrypted = (path: string): DataError =>
  new DataError(
    `${path}: is an encrypted Parquet file, which is not read; write it again without encryption`,
  );
