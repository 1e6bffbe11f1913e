import { afterEach, expect, test } from '@jest/globals';
import { native } from '../lib/native.js';
import { add, cast, scale } from '../lib/ops/elementwise.js';
import { layerNorm } from '../lib/ops/layer_norm.js';
import { linear } from '../lib/ops/linear.js';
import {
  backward,
  checkpoint,
  clearTape,
  concatRows,
  noGrad,
  Param,
  requireGrad,
  reshape,
} from '../lib/tape.js';
import {
  liveCount,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../lib/tensor.js';
import { normal } from './harness.js';

afterEach(() => expect(liveCount()).toBe(0));

function param(shape: number[], seed: number): Param {
  const data = normal(
    shape.reduce((a, b) => a * b, 1),
    seed,
    0.2,
  );
  const p = new Param(native().allocate(0, data.byteLength, 0), shape, 'f32', 'cpu');
  p.write(data);
  p.grad = zeros(shape);
  return p;
}
const free = (...ps: Param[]): void =>
  ps.forEach((p) => {
    p.grad?.dispose();
    p.dispose();
  });

test('a tensor used twice gets the sum of both gradients, whoever shares its memory', async () => {
  const g = await scope(() => {
    const x = requireGrad(tensor(Float32Array.of(1, 2), [2]));
    const y = add(add(x, x), scale(add(x, x), 3)); // 8 x
    const grads = backward([[y, tensor(Float32Array.of(1, 10), [2])]]);
    return grads.get(x)!;
  });
  expect(Array.from(await g.read())).toEqual([8, 80]);
  g.dispose();
});

test('rows below each other get the rows of the gradient', async () => {
  const [y, ga, gb] = scope(() => {
    const a = requireGrad(tensor(Float32Array.of(1, 2), [1, 2])),
      b = requireGrad(tensor(Float32Array.of(3, 4, 5, 6), [2, 2]));
    const all = concatRows([a, scale(b, 2)]);
    const grads = backward([[all, tensor(Float32Array.of(10, 20, 30, 40, 50, 60), [3, 2])]]);
    return [all, grads.get(a)!, grads.get(b)!];
  }) as [Tensor, Tensor, Tensor];
  expect(Array.from(await y.read())).toEqual([1, 2, 6, 8, 10, 12]);
  expect(Array.from(await ga.read())).toEqual([10, 20]);
  expect(Array.from(await gb.read())).toEqual([60, 80, 100, 120]);
  for (const t of [y, ga, gb]) t.dispose();
});

test('parameters accumulate over several backward passes; a frozen one stays untouched', async () => {
  const w = param([3, 2], 1),
    frozen = param([2, 3], 2);
  frozen.grad!.dispose();
  frozen.grad = null;
  const once = (): void =>
    scope(() => {
      const x = tensor(Float32Array.of(1, 2), [1, 2]);
      const y = linear(linear(x, w, null), frozen, null);
      backward([[y, tensor(Float32Array.of(1, 1), [1, 2])]]);
    });
  once();
  const first = Array.from(await w.grad!.read());
  once();
  expect(Array.from(await w.grad!.read())).toEqual(first.map((v) => 2 * v));
  free(w, frozen);
});

test('a parameter may be an input: its gradient accumulates in param.grad', async () => {
  const p = param([1, 4], 3),
    w = param([2, 4], 4);
  scope(() => backward([[linear(p, w, null), tensor(Float32Array.of(1, 0), [1, 2])]]));
  expect(Array.from(await p.grad!.read())).toEqual(Array.from((await w.read()).subarray(0, 4)));
  free(p, w);
});

test('noGrad records nothing and keeps nothing', () => {
  const w = param([64, 64], 5);
  const before = liveCount();
  scope(() => {
    noGrad(() => linear(tensor(normal(64, 6), [1, 64]), w, null));
  });
  expect(liveCount()).toBe(before);
  free(w);
});

test('checkpointing gives the same bits with less memory', async () => {
  const [w1, w2, g, b] = [param([256, 64], 1), param([64, 256], 2), param([64], 3), param([64], 4)];
  const block = (x: Tensor): Tensor =>
    linear(linear(layerNorm(x, g, b), w1, null, { gelu: true }), w2, null);
  const run = async (saving: boolean): Promise<{ bits: number[][]; peak: number }> => {
    for (const p of [w1, w2, g, b]) p.grad!.zero();
    resetPeak();
    const dx = scope(() => {
      const x = requireGrad(tensor(normal(512 * 64, 9), [512, 64]));
      let h: Tensor = x;
      for (let i = 0; i < 4; i++) {
        const [y] = saving ? checkpoint((a) => [block(a!)], h) : [block(h)];
        h = reshape(add(h, y!), [512, 64]);
      }
      return backward([[h, tensor(normal(512 * 64, 10), [512, 64])]]).get(x)!;
    });
    const reads = [dx, ...[w1, w2, g, b].map((p) => p.grad!)];
    const bits = await Promise.all(reads.map(async (t) => Array.from(await t.read())));
    dx.dispose();
    return { bits, peak: memory().peak };
  };
  const plain = await run(false),
    saved = await run(true);
  expect(saved.bits).toEqual(plain.bits);
  expect(saved.peak).toBeLessThan(plain.peak * 0.6);
  free(w1, w2, g, b);
});

test("casts pass gradients through in the input's type", async () => {
  const dx = scope(() => {
    const x = requireGrad(tensor(Float32Array.of(1, 2, 3), [3]));
    return backward([[cast(x, 'bf16'), tensor(Uint16Array.of(0x3f80, 0x4000, 0), [3])]]).get(x)!;
  });
  expect(dx.dtype).toBe('f32');
  expect(Array.from(await dx.read())).toEqual([1, 2, 0]);
  dx.dispose();
});

test('an abandoned recording can be dropped', async () => {
  scope(() => {
    add(requireGrad(zeros([3])), zeros([3]));
  });
  expect(liveCount()).toBeGreaterThan(0);
  clearTape();
  await synchronize();
});
