import { afterEach, beforeAll, expect, test } from '@jest/globals';
import { add } from '../lib/ops/elementwise.js';
import { linear } from '../lib/ops/linear.js';
import { noGrad } from '../lib/tape.js';
import {
  empty,
  liveCount,
  memory,
  resetPeak,
  scope,
  setDebug,
  setMemoryLimit,
  synchronize,
  tensor,
  zeros,
} from '../lib/tensor.js';

beforeAll(() => setDebug(false)); // another file of this process may have left the guard zones on
afterEach(() => expect(liveCount()).toBe(0));

test('data of every type comes back as it went in', async () => {
  for (const data of [
    Float32Array.of(1.5, -2, 3),
    Uint16Array.of(0x3f80, 0, 0xc000),
    Uint8Array.of(0, 127, 255),
    Int32Array.of(-7, 0, 9),
  ]) {
    const t = tensor(data, [3]);
    expect(Array.from(await t.read())).toEqual(Array.from(data));
    t.dispose();
  }
});

test('a scope frees what it made, except what it returns', async () => {
  const kept = scope(() => {
    const a = zeros([4]),
      b = zeros([4]);
    expect(liveCount()).toBe(2);
    return { sum: add(a, b) };
  });
  expect(liveCount()).toBe(1);
  const inner = scope(() => {
    const x = scope(() => zeros([2])); // moves to this scope
    return add(x, x);
  });
  expect(liveCount()).toBe(2);
  inner.dispose();
  inner.dispose();
  kept.sum.dispose();
});

test('an error inside a scope frees everything too', () => {
  expect(() =>
    scope(() => {
      zeros([8]);
      throw new Error('boom');
    }),
  ).toThrow('boom');
});

test('a tensor of an enclosing owner is not taken over by a scope that returns it', () => {
  const mine = zeros([3]);
  scope(() => scope(() => mine));
  expect(mine.disposed).toBe(false);
  mine.dispose();
});

test('use after dispose is a clear error', () => {
  const t = zeros([2]);
  t.dispose();
  expect(() => scope(() => add(t, t))).toThrow(
    expect.objectContaining({ code: 'ERR_DISPOSED' }) as never,
  );
});

test('held memory outlives its owner', async () => {
  const t = tensor(Float32Array.of(1, 2), [2]);
  t.hold();
  t.dispose();
  expect(Array.from(await t.read())).toEqual([1, 2]);
  t.release();
});

test('views share memory and keep it alive', async () => {
  const t = tensor(Float32Array.of(0, 1, 2, 3, 4, 5), [2, 3]);
  const row = t.view(3, [3]);
  t.dispose();
  expect(Array.from(await row.read())).toEqual([3, 4, 5]);
  expect(() => row.view(2, [2])).toThrow('leaves its tensor');
  row.dispose();
});

test('over the memory limit: ERR_MEMORY, and nothing is corrupted', async () => {
  const keep = tensor(
    Float32Array.from({ length: 1000 }, (_, i) => i),
    [1000],
  );
  const before = memory().live;
  setMemoryLimit(1 << 20);
  try {
    expect(() => empty([1 << 20])).toThrow(
      expect.objectContaining({ code: 'ERR_MEMORY' }) as never,
    );
    expect(memory().live).toBe(before);
    const small = zeros([1000]);
    expect(Array.from(await keep.read())).toEqual(Array.from({ length: 1000 }, (_, i) => i));
    small.dispose();
  } finally {
    setMemoryLimit(0);
  }
  const large = empty([1 << 20]);
  large.dispose();
  keep.dispose();
});

test('sizes that repeat cost no new memory, and peak counts what was live at once', async () => {
  const once = (): void =>
    scope(() => {
      zeros([5000]);
      zeros([5000]);
    });
  once();
  resetPeak();
  const { reserved, live } = memory();
  for (let i = 0; i < 100; i++) once();
  await synchronize();
  expect(memory().reserved).toBe(reserved);
  expect(memory().peak - live).toBe(2 * Math.ceil(20000 / 64) * 64);
});

test('a kernel that refuses its arguments rejects the next synchronization, then the device goes on', async () => {
  const { op } = await import('../lib/native.js');
  const x = zeros([4]),
    y = zeros([5]);
  op<number[]>('add_forward')(y.handle, x.handle, x.handle, 5);
  await expect(synchronize()).rejects.toThrow(
    /add_forward: a tensor has 16 bytes where the kernel needs 20/,
  );
  await synchronize();
  x.dispose();
  y.dispose();
});

test('tensors of impossible shape and wrong data are refused', () => {
  expect(() => empty([-1])).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }) as never);
  expect(() => tensor(new Float32Array(3), [2])).toThrow('3 values do not fit [2]');
  const t = zeros([4]);
  expect(() => t.write(new Float32Array(5))).toThrow('16 bytes');
  expect(() => t.reshape([3])).toThrow('does not fit');
  t.dispose();
});

test('the event loop is free while kernels run', async () => {
  const x = zeros([1024, 1024]),
    w = zeros([1024, 1024]);
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  for (let i = 0; i < 20; i++)
    scope(() => {
      noGrad(() => linear(x, w, null));
    });
  await synchronize();
  clearInterval(timer);
  expect(ticks).toBeGreaterThan(0);
  x.dispose();
  w.dispose();
});

test('shapes and data that are none are refused, also where the product of the sizes looks right', () => {
  const data = new Float32Array(4);
  for (const shape of [[-1, -4], [2.5, 1.6], 'x' as never, undefined as never])
    expect(() => tensor(data, shape)).toThrow(/tensor/);
  expect(() => zeros([-2, -2])).toThrow('cannot have the shape [-2, -2]');
  expect(() => tensor(new Float64Array(4) as never, [4])).toThrow('needs a Float32Array');
});
