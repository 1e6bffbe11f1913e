/** Token ids from outside the table, and the table's gradient when most rows share one id. */
import { afterAll, expect, test } from '@jest/globals';
import { native } from '../lib/native.js';
import { embedding } from '../lib/ops/embedding.js';
import { backward, Param } from '../lib/tape.js';
import { liveCount, scope, synchronize, tensor, zeros } from '../lib/tensor.js';
import { outputWithThreads } from './child.js';
import { normal } from './harness.js';

afterAll(() => expect(liveCount()).toBe(0));

function weights(rows: number, D: number): Param {
  const p = new Param(native().allocate(0, rows * D * 4, 0), [rows, D], 'f32', 'cpu');
  p.zero();
  p.grad = zeros([rows, D]);
  return p;
}

test.each([5, -1, 2 ** 31 - 1, -(2 ** 31)])(
  'id %i of a table of five rows is an error that names it',
  async (id) => {
    const ids = tensor(Int32Array.of(0, 4, 1, id), [2, 2]),
      table = zeros([5, 3]),
      position = zeros([2, 3]);
    const y = embedding(ids, table, position);
    await expect(synchronize()).rejects.toThrow(
      `token id ${id} at position 3 is outside the table of 5 rows`,
    );
    for (const t of [ids, table, position, y]) t.dispose();
  },
);

test('20,000 rows, nearly all with one id: no rounding beyond that of a few', async () => {
  const V = 50_000,
    D = 3,
    R = 20_000,
    ids = new Int32Array(R).fill(7);
  ids[5] = V - 1;
  const table = weights(V, D),
    position = weights(1, D),
    dy = normal(R * D, 1);
  for (let i = 0; i < dy.length; i++) dy[i]! += 10;
  scope(() => {
    const y = embedding(tensor(ids, [R, 1]), table, position);
    backward([[y, tensor(dy, [R, D])]]);
  });
  const dtable = await table.grad!.read(),
    dposition = await position.grad!.read();
  for (let d = 0; d < D; d++) {
    let all = 0;
    for (let r = 0; r < R; r++) all += dy[r * D + d]!;
    const last = dy[5 * D + d]!;
    expect(Math.abs(dposition[d]! / all - 1)).toBeLessThan(3e-6);
    expect(Math.abs(dtable[7 * D + d]! / (all - last) - 1)).toBeLessThan(3e-6);
    expect(dtable[(V - 1) * D + d]).toBe(last);
  }
  expect(dtable.filter((v) => v !== 0).length).toBe(2 * D);
  for (const p of [table, position]) {
    p.grad!.dispose();
    p.dispose();
  }
});

test('1, 2 and 3 threads give the same bits', () => {
  const source = `
    import { createHash } from 'node:crypto';
    import { native } from 'lib/native.js';
    import { embedding } from 'lib/ops/embedding.js';
    import { initialize } from 'lib/ops/init.js';
    import { Param, backward } from 'lib/tape.js';
    import { empty, tensor, zeros } from 'lib/tensor.js';
    const V = 300, D = 200, B = 400, L = 6;
    const make = (n, stream) => {
      const p = new Param(native().allocate(0, n * D * 4, 0), [n, D], 'f32', 'cpu');
      initialize(p, { kind: 'normal', std: 1 }, 1, stream);
      p.grad = zeros([n, D]);
      return p;
    };
    const table = make(V, 0), position = make(L, 1), dy = empty([B * L, D]);
    initialize(dy, { kind: 'normal', std: 1 }, 1, 2);
    const ids = tensor(Int32Array.from({ length: B * L }, (_, i) => i % 3 === 0 ? (i * 7919) % V : 0), [B, L]);
    const y = embedding(ids, table, position), hash = createHash('sha256');
    backward([[y, dy]]);
    for (const t of [y, table.grad, position.grad]) hash.update(await t.read());
    console.log(hash.digest('hex'));`;
  const bits = [1, 2, 3].map((n) => outputWithThreads(n, source));
  expect(bits[0]).toMatch(/^[0-9a-f]{64}/);
  expect(new Set(bits).size).toBe(1);
}, 30_000);
