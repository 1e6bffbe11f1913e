/** Rows of a parquet manifest: `image` (a path) and captions in the columns that a .jsonl manifest has as keys. */
import { DataError } from '../errors.js';
import { openTable } from '../io/parquet.js';

const kCaptions = ['caption', 'captions', 'text'];
const kOthers = ['lang', 'language', 'class'];

/**
 * The rows as objects, for `captionsFromObject`.
 * @throws DataError when the file is missing, damaged, or has no column of images or of captions
 */
export async function* parquetManifest(file: string): AsyncGenerator<Record<string, unknown>> {
  const table = await openTable(file);
  const captions = kCaptions.filter((name) => table.columns.includes(name));
  if (!table.columns.includes('image') || captions.length === 0) {
    throw new DataError(`${file}: a manifest needs a column "image" of paths and one of ${kCaptions.map((c) => `"${c}"`).join(', ')}, ` +
      `but the columns are ${table.columns.join(', ')}`);
  }
  const names = ['image', ...captions, ...kOthers.filter((name) => table.columns.includes(name))];
  const columns = await table.read(names);
  for (let row = 0; row < table.rows; row++) {
    yield Object.fromEntries(names.flatMap((name) => {
      const value: unknown = columns[name]![row];
      // Integers of 64 bits come as bigint, which JSON cannot hold.
      return value === null || value === undefined ? [] : [[name, typeof value === 'bigint' ? Number(value) : value]];
    }));
  }
}
