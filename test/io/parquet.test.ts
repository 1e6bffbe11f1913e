/** Parquet tables: what is written is read back, and damaged files are errors and nothing else. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { parquetReadObjects } from 'hyparquet';
import { DataError } from '../../lib/errors.js';
import { type Columns, openTable, writeTable } from '../../lib/io/parquet.js';
import { Random } from '../../lib/random.js';
import { errorOf } from '../data/support.js';
import { temporaryFolder } from '../encoder_support.js';

const folder = temporaryFolder(),
  file = join(folder, 'a.parquet');
const groups: Columns[] = [
  { name: ['x', 'zwölf', ''], count: [1, null, -7], value: new Float32Array([0.5, -1, 3]) },
  { name: ['日本'], count: [2 ** 31 - 1], value: [0.25] },
];
const write = (path: string) =>
  writeTable(path, { name: 'string', count: 'int?', value: 'float' }, groups, { note: 'hello' });

test('rows, columns and metadata come back, group after group, and the same rows give the same bytes', async () => {
  await write(file);
  const table = await openTable(file);
  expect([table.rows, table.columns, table.metadata.get('note')]).toEqual([
    4,
    ['name', 'count', 'value'],
    'hello',
  ]);
  expect(await table.read(['value', 'name', 'count'])).toEqual({
    name: ['x', 'zwölf', '', '日本'],
    count: [1, null, -7, 2 ** 31 - 1],
    value: [0.5, -1, 3, 0.25],
  });
  const bytes = readFileSync(file),
    buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer;
  expect((await parquetReadObjects({ file: buffer })).map((row) => row['name'])).toEqual([
    'x',
    'zwölf',
    '',
    '日本',
  ]);
  await write(join(folder, 'b.parquet'));
  expect(readFileSync(join(folder, 'b.parquet')).equals(bytes)).toBe(true);
  expect((await errorOf(() => table.read(['nam']))).message).toContain(
    'the columns are name, count, value',
  );
});

test('a table may be empty', async () => {
  await writeTable(file, { name: 'string' }, []);
  const table = await openTable(file);
  expect([table.rows, await table.read(['name'])]).toEqual([0, { name: [] }]);
});

test('a missing file, and 400 damaged ones, are DataErrors or tables of the right size', async () => {
  expect((await errorOf(() => openTable(join(folder, 'none')))).code).toBe('ERR_DATA');
  await write(file);
  // Known and not ours: the library believes a damaged run length of levels, up to 2³⁰, which takes a minute and gigabytes;
  // about one damaged file in a thousand has one, and none of these.
  const whole = readFileSync(file),
    random = new Random(5, 9),
    bad = join(folder, 'bad.parquet');
  let damaged = 0;
  for (let i = 0; i < 400; i++) {
    const bytes = Buffer.from(i % 4 === 0 ? whole.subarray(0, random.below(whole.length)) : whole);
    for (let k = random.below(4); k >= 0 && bytes.length > 0; k--)
      bytes[random.below(bytes.length)] = random.below(256);
    writeFileSync(bad, bytes);
    try {
      const table = await openTable(bad);
      for (const values of Object.values(await table.read(table.columns)))
        expect(values.length).toBe(table.rows);
    } catch (error) {
      if (!(error instanceof DataError)) throw error;
      damaged++;
    }
  }
  expect(damaged).toBeGreaterThan(100);
});
