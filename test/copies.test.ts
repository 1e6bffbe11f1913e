/** Several copies of the package's JavaScript over one addon, as module resets of jest and vitest make them. */
import { afterAll, expect, jest, test } from '@jest/globals';

type Tensors = typeof import('../lib/tensor.js');
const copy = (): Promise<Tensors> => {
  jest.resetModules();
  return import('../lib/tensor.js');
};
afterAll(async () => expect((await copy()).liveCount()).toBe(0));

test('calls in flight when modules are reset settle, with their own values', async () => {
  let before: Promise<unknown> = Promise.resolve();
  for (let round = 0; round < 20; round++) {
    const { tensor, synchronize } = await copy(),
      n = 1 << 16;
    const x = tensor(new Float32Array(n).fill(round + 1), [n]),
      reading = Promise.all([x.read(), synchronize()]);
    const settled = reading.then(([data]) => {
      x.dispose();
      expect([round, data[0], data[n - 1]]).toEqual([round, round + 1, round + 1]);
    });
    // The next copy begins while this one waits.
    if (round % 2) await before;
    before = Promise.all([before, settled]);
  }
  await before;
});

test('two copies compute beside each other, and errors reach the one that asked', async () => {
  const [a, b] = [await copy(), await copy()];
  expect(a.tensor).not.toBe(b.tensor);
  const x = a.tensor(Float32Array.of(1, 2), [2]),
    y = b.tensor(Float32Array.of(3, 4), [2]);
  const all = await Promise.all([x.read(), y.read(), x.read(), y.read()]);
  expect(all.map((data) => [...data])).toEqual([
    [1, 2],
    [3, 4],
    [1, 2],
    [3, 4],
  ]);
  x.dispose();
  y.dispose();
  await expect((async () => x.read())()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
});

test('one listener of the process ends the threads of all copies', async () => {
  for (let i = 0; i < 12; i++) {
    const { tensor } = await copy();
    tensor(Float32Array.of(1), [1]).dispose();
  }
  expect(
    process.listeners('exit').filter((listener) => Symbol.for('siglip2.shutdown') in listener)
      .length,
  ).toBe(1);
});
