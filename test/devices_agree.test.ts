/**
 * Ops at the sizes of real models: a GPU against the CPU device. Runs on a GPU alone; at these sizes the float64 reference
 * of the case tables would take hours, and the host runtime days.
 */
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, describe, expect, test } from '@jest/globals';
import { native } from '../lib/native.js';
import { type DeviceName, liveCount } from '../lib/tensor.js';
import { nmse, normal, type OpTable, runCase } from './harness.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
const info = native().buildInfo();
const gpu = device !== 'cpu' && info.cuda === 'cuda';
const folder = join(dirname(fileURLToPath(import.meta.url)), 'ops');
afterAll(() => expect(liveCount()).toBe(0));

if (!gpu)
  test.skip('needs a GPU: SIGLIP2_TEST_DEVICE=cuda on a machine that has one', () => undefined);
else
  for (const file of readdirSync(folder)
    .filter((f) => f.endsWith('.js'))
    .sort()) {
    const table = (await import(pathToFileURL(join(folder, file)).href)) as OpTable;
    if (!table.bench || !table.kernels.every((k) => info.ops.find((o) => o.name === k)?.cuda))
      continue;
    describe(file.slice(0, -3), () => {
      for (const c of table.bench!())
        for (const dtype of c.dtypes ?? ['f32'])
          test(`${c.name} (${dtype})`, async () => {
            const forward = await runCase(c, 'cpu', dtype);
            const cotangents =
              c.gradients === false
                ? undefined
                : Object.fromEntries(
                    Object.entries(forward.outputs).map(([name, y], i) => [
                      name,
                      name === 'loss'
                        ? Float64Array.of(0.75)
                        : Float64Array.from(normal(y.length, 900 + i)),
                    ]),
                  );
            const want = await runCase(c, 'cpu', dtype, cotangents),
              got = await runCase(c, device, dtype, cotangents);
            const most = dtype === 'f32' ? 1e-9 : 1e-4;
            for (const kind of ['outputs', 'grads'] as const)
              for (const [name, w] of Object.entries(want[kind]))
                expect([kind, name, nmse(got[kind][name] ?? [], w) <= most]).toEqual([
                  kind,
                  name,
                  true,
                ]);
          }, 600_000);
    });
  }
