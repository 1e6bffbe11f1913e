import { afterEach, expect, test } from '@jest/globals';
import { contrastiveLoss } from '../../lib/losses/sigmoid.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { gradCache, type PartEncoder } from '../../lib/optim/grad_cache.js';
import { backward } from '../../lib/tape.js';
import {
  liveCount,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
} from '../../lib/tensor.js';
import { errorOf } from '../data/support.js';
import { generator } from '../harness.js';

afterEach(() => expect(liveCount()).toBe(0));

const config = modelConfig('test', { vocab: 61, initLogitBias: -2 });
const S = config.vision.imageSize,
  L = config.text.length;

/** A batch of images with some structure and two captions each. */
function data(B: number): { images: Uint8Array; ids: Int32Array[] } {
  const r = generator(11);
  return {
    images: Uint8Array.from(
      { length: B * S * S * 3 },
      (_, i) => 127.5 * (1 + 0.5 * Math.sin(i / 97) + 0.5 * r()),
    ),
    ids: [0, 1].map(() =>
      Int32Array.from({ length: B * L }, (_, i) => (i % L < 5 ? 2 + ((r() + 1) / 2) * 59 : 0)),
    ),
  };
}

/** Losses and all gradients of a batch, whole or in parts, and the most bytes that were in use. */
async function gradients(
  B: number,
  part: number | null,
  checkpoint = false,
): Promise<{ losses: number[]; grads: Float32Array; peak: number }> {
  const model = new Siglip2Model(config, { train: true, checkpoint });
  model.initialize(3);
  const { images, ids } = data(B);
  const encoders: PartEncoder[] = [
    (from, to) =>
      model.encodeImages(
        tensor(images.subarray(from * S * S * 3, to * S * S * 3), [to - from, S, S, 3]),
      ),
    ...ids.map(
      (set): PartEncoder =>
        (from, to) =>
          model.encodeTexts(tensor(set.subarray(from * L, to * L), [to - from, L])),
    ),
  ];
  const loss = (x: Tensor, ...texts: Tensor[]): [Tensor, number][] =>
    contrastiveLoss(model, x, texts).map((l) => [l, 1 / texts.length]);
  await synchronize();
  resetPeak();
  const made = scope(() => {
    if (part !== null) return gradCache(B, part, encoders, loss as never);
    const roots = loss(...(encoders.map((e) => e(0, B)) as [Tensor, Tensor]));
    backward(roots);
    return roots.map(([l]) => l);
  });
  const losses = await Promise.all(made.map((l) => l.item()));
  for (const l of made) l.dispose();
  const grads = (await model.params.grads!.read()) as Float32Array;
  const { peak } = memory();
  model.dispose();
  return { losses, grads, peak };
}

function relative(a: Float32Array, b: Float32Array): number {
  let error = 0,
    norm = 0;
  b.forEach((v, i) => {
    error += (a[i]! - v) ** 2;
    norm += v * v;
  });
  return Math.sqrt(error / norm);
}

test('2,048 pairs in parts of 64 have the loss and gradient of the whole batch, in a fraction of its memory', async () => {
  const whole = await gradients(2048, null),
    cached = await gradients(2048, 64);
  cached.losses.forEach((l, i) =>
    expect(Math.abs(l - whole.losses[i]!) / whole.losses[i]!).toBeLessThan(1e-6),
  );
  expect(relative(cached.grads, whole.grads)).toBeLessThan(1e-5);
  expect(cached.peak).toBeLessThan(whole.peak / 8);
});

test('parts that do not divide the batch, one part, and gradient checkpointing', async () => {
  const whole = await gradients(21, null);
  for (const [part, checkpoint] of [
    [8, false],
    [21, false],
    [100, false],
    [8, true],
  ] as const)
    expect(relative((await gradients(21, part, checkpoint)).grads, whole.grads)).toBeLessThan(1e-5);
});

test('a wrong size says which', async () => {
  expect((await errorOf(() => gradCache(4, 0, [], () => []))).message).toBe(
    'gradCache: part must be a positive integer but is 0',
  );
  const wrong: PartEncoder = () => tensor(new Float32Array(6), [3, 2]);
  expect((await errorOf(() => gradCache(4, 2, [wrong], () => []))).message).toMatch(
    /examples 0 to 2 must be \[2, E\] but are \[3, 2\]/,
  );
});
