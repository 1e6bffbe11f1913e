/** Embeddings as Apache Parquet: columns `name` (string) and `embedding` (list of float). */
import { ByteWriter, parquetWrite } from 'hyparquet-writer';
import { writeFileAtomic } from './files.js';

/** Rows of a row group: what a reader has to hold at once. */
const GROUP = 4096;

/**
 * @param names one per row
 * @param rows embeddings of equal length
 * @throws IoError when the disk says no; the old file is then untouched
 */
export async function writeParquet(path: string, names: readonly string[], rows: readonly Float32Array[]): Promise<void> {
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
    columnData: [{ name: 'name', data: [...names] }, { name: 'embedding', data: rows.map((row) => Array.from(row)) }],
  });
  await writeFileAtomic(path, new Uint8Array(writer.getBuffer()));
}
