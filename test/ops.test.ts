/** Runs every case table of test/ops on the CPU, or on SIGLIP2_TEST_DEVICE. */
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { native } from '../lib/native.js';
import { type DeviceName, liveCount } from '../lib/tensor.js';
import { checkCase, debugDevice, type OpTable } from './harness.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
const folder = join(dirname(fileURLToPath(import.meta.url)), 'ops');
const tables: [string, OpTable][] = [];
for (const file of readdirSync(folder)
  .filter((f) => f.endsWith('.js'))
  .sort()) // one at a time: jest's loader races
  tables.push([
    file.slice(0, -3),
    (await import(pathToFileURL(join(folder, file)).href)) as OpTable,
  ]);

beforeAll(() => debugDevice(device));
afterAll(() => expect(liveCount()).toBe(0));

const info = native().buildInfo();
const emulated = device !== 'cpu' && info.cuda === 'cuda-host';
for (const [name, table] of tables) {
  const ops = table.kernels.map((k) => info.ops.find((o) => o.name === k));
  // On a CUDA device only what has a kernel there can run; the CPU has them all.
  const there = device === 'cpu' || ops.every((o) => o?.cuda);
  if (!there) continue;
  describe(name, () => {
    test('kernels are registered', () => expect(ops.map((o) => o?.name)).toEqual(table.kernels));
    for (const c of table.cases.filter((c) => !(c.large && emulated)))
      for (const dtype of c.dtypes ?? ['f32'])
        test(`${c.name} (${dtype})`, async () =>
          expect(await checkCase(c, device, dtype)).toEqual([]));
  });
}
