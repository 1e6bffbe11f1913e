/** Recorded steps: the same bits as ordinary ones, also where learning rate and inputs change; and what they refuse. */
import { afterAll, expect, test } from '@jest/globals';
import { ParamStore } from '../lib/model/params.js';
import { native } from '../lib/native.js';
import { scale } from '../lib/ops/elementwise.js';
import { initialize } from '../lib/ops/init.js';
import { layerNorm } from '../lib/ops/layer_norm.js';
import { sigmoidLoss } from '../lib/ops/sigmoid_loss.js';
import { AdamW } from '../lib/optim/optimizer.js';
import { RecordedStep } from '../lib/record.js';
import { backward } from '../lib/tape.js';
import { type DeviceName, empty, liveCount, memory, scope, tensor } from '../lib/tensor.js';
import { normal } from './harness.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
const records = device !== 'cpu';
afterAll(() => expect(liveCount()).toBe(0));

const B = 5,
  D = 16,
  STEPS = 6;
const SHAPES = [
  { name: 'norm.weight', shape: [D], decay: false, init: { kind: 'ones' } },
  { name: 'norm.bias', shape: [D], decay: false, init: { kind: 'zeros' } },
  { name: 'scale', shape: [1], decay: true, init: { kind: 'constant', value: 1 } },
  { name: 'bias', shape: [1], decay: false, init: { kind: 'constant', value: -2 } },
] as const;

/** A small training run; the step is recorded or not. */
async function train(
  recorded: boolean,
): Promise<{ losses: number[]; weights: Float32Array; replays: boolean }> {
  const params = new ParamStore(SHAPES as never, { device, train: true });
  params.initialize(1);
  const optimizer = new AdamW(params, {
    lr: 0.05,
    weightDecay: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: 0.9,
  });
  optimizer.resetEma();
  const x = empty([B, D], 'f32', device),
    y = empty([B, D], 'f32', device);
  initialize(y, { kind: 'normal', std: 1 }, 3, 4);
  const whole = () => {
    params.zeroGrad();
    const loss = sigmoidLoss(
      layerNorm(x, params.get('norm.weight'), params.get('norm.bias')),
      y,
      params.get('scale'),
      params.get('bias'),
    );
    backward(loss);
    optimizer.apply();
    return { loss };
  };
  const step = new RecordedStep(device, whole);
  const losses: number[] = [];
  for (let i = 0; i < STEPS; i++) {
    x.write(normal(B * D, 10 + i));
    optimizer.advance((i + 1) / STEPS);
    const read = recorded
      ? step.run(({ loss }) => loss.item())
      : scope(() => ({ read: whole().loss.item() })).read;
    losses.push(await read);
  }
  const result = {
    losses,
    weights: (await params.values.read()) as Float32Array,
    replays: step.recorded,
  };
  step.dispose();
  for (const t of [x, y]) t.dispose();
  optimizer.dispose();
  params.dispose();
  return result;
}

test('replayed steps give the bits of ordinary ones', async () => {
  const ordinary = await train(false),
    recorded = await train(true);
  expect(recorded.losses).toEqual(ordinary.losses);
  expect(Buffer.from(recorded.weights.buffer).equals(Buffer.from(ordinary.weights.buffer))).toBe(
    true,
  );
  expect(new Set(ordinary.losses).size).toBe(STEPS); // every step was another one
  expect(recorded.replays).toBe(records);
});

test('memory of a recording is its own, and comes back', async () => {
  const x = tensor(Float32Array.of(1, 2, 3), [3], device);
  const step = new RecordedStep(device, () => [scale(x, 2), scale(scale(x, 3), 5)]);
  for (let i = 0; i < 3; i++) step.run(() => undefined);
  // Would take the block of the temporary if that were common property, and be overwritten by the next run.
  const mine = tensor(Float32Array.of(7, 8, 9), [3], device);
  x.write(Float32Array.of(4, 5, 6));
  const read = await Promise.all(step.run((out) => out.map((t) => t.read())));
  expect(read.map((v) => Array.from(v))).toEqual([
    [8, 10, 12],
    [60, 75, 90],
  ]);
  expect(Array.from(await mine.read())).toEqual([7, 8, 9]);
  const live = memory(device).live;
  step.dispose();
  expect(memory(device).live).toBeLessThanOrEqual(live);
  expect(step.recorded).toBe(false);
  for (const t of [x, mine]) t.dispose();
});

(records ? test : test.skip)(
  'a step that brings in host data or reads back is refused while it is recorded',
  async () => {
    const x = tensor(Float32Array.of(1), [1], device);
    for (const [fn, message] of [
      [() => tensor(Float32Array.of(2), [1], device), 'cannot take data from the host'],
      [
        () => {
          void x.item().catch(() => undefined);
          x.write(Float32Array.of(3));
          return scale(x, 1);
        },
        'cannot take data from the host',
      ],
      [
        () => {
          native().synchronize(1, 0);
          return scale(x, 1);
        },
        'cannot be waited for',
      ],
    ] as const) {
      using step = new RecordedStep(device, fn);
      step.run(() => undefined);
      expect(() => step.run(() => undefined)).toThrow(message);
    }
    // The device works on.
    const y = scale(x, 2);
    expect(await y.item()).toBe(6);
    for (const t of [x, y]) t.dispose();
  },
);
