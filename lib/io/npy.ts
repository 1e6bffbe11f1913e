/** NumPy's .npy format, version 1.0: one little-endian f32 matrix, written row by row. */
import { endianness } from 'node:os';
import { IoError } from '../errors.js';
import { writeFileAtomic } from '../fs/files.js';

/** The bytes before the values of a C-order f32 matrix, padded so that these start on a multiple of 64. */
export function npyHeader(rows: number, columns: number): Buffer {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`;
  const padded = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + '\n';
  const head = Buffer.from([
    0x93,
    0x4e,
    0x55,
    0x4d,
    0x50,
    0x59,
    1,
    0,
    padded.length & 255,
    padded.length >> 8,
  ]);
  return Buffer.concat([head, Buffer.from(padded, 'latin1')]);
}

/**
 * Writes a matrix whose number of rows is known beforehand; rows are pulled one at a time.
 * @throws IoError when the disk says no, or when another number of rows comes; the old file is then untouched
 */
export async function writeNpy(
  path: string,
  rows: number,
  columns: number,
  source: AsyncIterable<Float32Array>,
): Promise<void> {
  if (endianness() !== 'LE')
    throw new IoError(
      `cannot write ${path}: .npy is written on little-endian machines only; choose .parquet`,
    );
  await writeFileAtomic(
    path,
    (async function* () {
      yield npyHeader(rows, columns);
      let count = 0;
      for await (const row of source) {
        if (row.length !== columns)
          throw new IoError(
            `cannot write ${path}: row ${count} has ${row.length} values but must have ${columns}`,
          );
        count++;
        yield new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
      }
      if (count !== rows)
        throw new IoError(`cannot write ${path}: ${count} rows came but ${rows} were announced`);
    })(),
  );
}
