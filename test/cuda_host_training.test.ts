/**
 * Twenty training steps of a small two-tower model on a CUDA device (cuda-host, where there is no GPU) against the same
 * on the CPU device: the loss of every step.
 */
import { afterAll, expect, test } from '@jest/globals';
import { modelConfig } from '../lib/model/config.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { native } from '../lib/native.js';
import { sigmoidLoss } from '../lib/ops/sigmoid_loss.js';
import { AdamW } from '../lib/optim/optimizer.js';
import { RecordedStep } from '../lib/record.js';
import { backward } from '../lib/tape.js';
import { type DeviceName, empty, liveCount } from '../lib/tensor.js';
import { generator } from './harness.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
const STEPS = Number(process.env['SIGLIP2_TRAINING_STEPS'] ?? 20);
afterAll(() => expect(liveCount()).toBe(0));

// The CPU is what the run is compared with; a device that lacks a kernel of the step fails here.
const run = device === 'cpu' ? test.skip : test;

const B = 8,
  WIDTH = { width: 32, depth: 2, heads: 2, mlp: 64 };
const config = modelConfig('test', {
  imageSize: 16,
  vocab: 50,
  length: 8,
  embed: 32,
  vision: { ...WIDTH, patch: 4 },
  text: WIDTH,
});

/** Losses of the steps; every step has a batch of its own and its own learning rate. */
async function train(on: DeviceName, dtype: 'f32' | 'bf16', recorded: boolean): Promise<number[]> {
  const model = new Siglip2Model(config, { device: on, dtype, train: true });
  model.initialize(7);
  const optimizer = new AdamW(model.params, {
    lr: 1e-3,
    weightDecay: 1e-4,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: 0.99,
  });
  optimizer.resetEma();
  const S = config.vision.imageSize,
    L = config.text.length,
    r = generator(11);
  const images = empty([B, S, S, 3], 'u8', on),
    ids = empty([B, L], 'i32', on);
  const step = new RecordedStep(on, () => {
    const x = model.encodeImages(images),
      y = model.encodeTexts(ids);
    model.params.zeroGrad();
    const loss = sigmoidLoss(x, y, model.logitScale, model.logitBias);
    backward(loss);
    optimizer.apply();
    return loss;
  });
  const losses: number[] = [];
  for (let i = 0; i < STEPS; i++) {
    images.write(
      Uint8Array.from(
        { length: images.size },
        (_, k) => 127.5 * (1 + 0.5 * Math.sin(k / (7 + i)) + 0.5 * r()),
      ),
    );
    ids.write(
      Int32Array.from({ length: ids.size }, (_, k) =>
        k % L < 5 ? 2 + ((r() + 1) / 2) * (config.text.vocab - 2) : 0,
      ),
    );
    optimizer.advance(Math.min(1, (i + 1) / 5));
    losses.push(await step.run((loss) => loss.item()));
    if (!recorded) step.dispose(); // every step is then its first
  }
  step.dispose();
  for (const t of [images, ids]) t.dispose();
  optimizer.dispose();
  model.dispose();
  return losses;
}

// The CPU device computes in f32 either way: two runs in bf16 would show how two roundings drift apart.
run.each([
  ['f32', 1e-4, true],
  ['bf16', 1e-2, false],
] as const)(
  '%s: every loss within %d of the CPU device',
  async (dtype, tolerance, recorded) => {
    const want = await train('cpu', 'f32', false),
      got = await train(device, dtype, recorded);
    const apart = want.map((l, i) => Math.abs(got[i]! / l - 1));
    console.log(
      `${dtype}, ${STEPS} steps${recorded ? ', replayed' : ''}: loss ${want[0]!.toFixed(4)} → ${want.at(-1)!.toFixed(4)} on the CPU, ` +
        `${got.at(-1)!.toFixed(4)} on ${native().buildInfo().cuda}; apart by ${apart.map((a) => a.toExponential(0)).join(' ')}`,
    );
    // Beyond twenty steps differences of rounding grow as they do between any two orders of summation.
    apart.forEach((a, i) =>
      expect([i, a < (i < 20 ? tolerance : 10 * tolerance)]).toEqual([i, true]),
    );
    expect(want.at(-1)).toBeLessThan(want[0]!);
  },
  600_000,
);
