/** The whole model against PyTorch, from the public description: loss, every gradient, and 50 training steps. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { script } from '../../bench/peers/pytorch/peer.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { type ModelConfig, modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { sigmoidLoss } from '../../lib/ops/sigmoid_loss.js';
import { AdamW } from '../../lib/optim/optimizer.js';
import { backward } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { generator } from '../harness.js';
import { answer } from '../oracle.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-torch-'));
const path = (name: string): string => join(folder, name);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const B = 6,
  STEPS = 50;

interface Batches {
  images: Uint8Array;
  ids: Int32Array;
}

/** Images with some structure and captions padded with 0; writes what PyTorch reads. */
async function prepare(
  config: ModelConfig,
  model: Siglip2Model,
  steps: number | null,
): Promise<Batches> {
  const S = config.vision.imageSize,
    L = config.text.length,
    lead = steps === null ? [B] : [steps, B];
  const n = lead.reduce((a, b) => a * b, 1),
    r = generator(11);
  const images = Uint8Array.from(
    { length: n * S * S * 3 },
    (_, i) => 127.5 * (1 + 0.5 * Math.sin(i / 97) + 0.5 * r()),
  );
  const ids = Int32Array.from({ length: n * L }, (_, i) =>
    i % L < 5 ? 2 + ((r() + 1) / 2) * (config.text.vocab - 2) : 0,
  );
  writeFileSync(path('model.json'), JSON.stringify(config));
  await writeSafetensors(path('batch.safetensors'), [
    { name: 'images', dtype: 'U8', shape: [...lead, S, S, 3], data: images },
    { name: 'ids', dtype: 'I32', shape: [...lead, L], data: ids },
  ]);
  await writeSafetensors(
    path('model.safetensors'),
    [...(await model.params.read())].map(([name, t]) => ({ name, dtype: 'F32' as const, ...t })),
  );
  return { images, ids };
}

function torch(name: string, writes: string[], ...args: string[]): string[] {
  return answer(`torch-${name}`, {
    args: [
      script('grads.py'),
      ...args,
      '--config',
      path('model.json'),
      '--weights',
      path('model.safetensors'),
      '--batch',
      path('batch.safetensors'),
    ],
    writes,
  })
    .trim()
    .split('\n');
}

function step(model: Siglip2Model, { images, ids }: Batches, at = 0): Promise<number> {
  const S = model.config.vision.imageSize,
    L = model.config.text.length;
  const loss = scope(() => {
    const x = model.encodeImages(
      tensor(images.subarray(at * B * S * S * 3, (at + 1) * B * S * S * 3), [B, S, S, 3]),
    );
    const y = model.encodeTexts(tensor(ids.subarray(at * B * L, (at + 1) * B * L), [B, L]));
    model.params.zeroGrad();
    const l = sigmoidLoss(x, y, model.logitScale, model.logitBias);
    backward(l);
    return l;
  });
  return loss.item().finally(() => loss.dispose());
}

test.each([
  ['last', false],
  ['map', false],
  ['last', true],
] as const)(
  'text pooling %s, checkpointing %p: loss and all gradients',
  async (pool, checkpoint) => {
    const config = modelConfig('test', { pool, vocab: 61, initLogitBias: -2 });
    using model = new Siglip2Model(config, { train: true, checkpoint });
    model.initialize(3);
    const batches = await prepare(config, model, null);
    const loss = await step(model, batches);
    const theirs = JSON.parse(
      torch(
        `gradients-${pool}`,
        [path('grads.safetensors')],
        'grads',
        '--f64',
        '--out',
        path('grads.safetensors'),
      )[0]!,
    ) as { loss: number };
    expect(Math.abs(loss - theirs.loss) / theirs.loss).toBeLessThan(1e-5);
    const reader = await openSafetensors(path('grads.safetensors'));
    const ours = await model.params.read(model.params.grads!);
    let compared = 0;
    for (const [name, { data }] of ours) {
      const want = await reader.readFloat32(name);
      let error = 0,
        norm = 0;
      data.forEach((g, i) => {
        error += (g - want[i]!) ** 2;
        norm += want[i]! ** 2;
      });
      // A key bias shifts every logit of a row alike, so its gradient is zero but for rounding.
      if (/k_proj\.bias$/.test(name)) expect(Math.sqrt(norm)).toBeLessThan(1e-6);
      else expect({ name, error: Math.sqrt(error / norm) < 1e-5 }).toEqual({ name, error: true });
      compared++;
    }
    await reader.close();
    expect(compared).toBe(model.params.segments.length);
  },
  120000,
);

test('50 training steps track PyTorch', async () => {
  const config = modelConfig('test', { vocab: 61, initLogitBias: -2 });
  using model = new Siglip2Model(config, { train: true });
  model.initialize(4);
  const batches = await prepare(config, model, 5);
  const schedule = Array.from(
    { length: STEPS },
    (_, i) =>
      Math.min(1, i / 5) * 0.5 * (1 + Math.cos((Math.PI * Math.max(0, i - 5)) / (STEPS - 5))),
  );
  const recipe = {
    lr: 1e-3,
    weightDecay: 1e-4,
    schedule,
    clip: 1,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
  };
  writeFileSync(path('recipe.json'), JSON.stringify(recipe));
  const theirs = torch('training', [], 'train', '--recipe', path('recipe.json')).map(
    (l) => JSON.parse(l) as { loss: number; gradNorm: number },
  );
  const optimizer = new AdamW(model.params, { ...recipe, lrScale: {}, ema: null });
  for (let i = 0; i < STEPS; i++) {
    const loss = await step(model, batches, i % 5);
    optimizer.update(schedule[i]!);
    const norm = Math.sqrt(await optimizer.norm2.item());
    expect(Math.abs(loss - theirs[i]!.loss) / theirs[i]!.loss).toBeLessThan(1e-3);
    expect(Math.abs(norm - theirs[i]!.gradNorm) / theirs[i]!.gradNorm).toBeLessThan(1e-2);
  }
  expect(theirs.at(-1)!.loss).toBeLessThan(theirs[0]!.loss * 0.9);
  optimizer.dispose();
}, 120000);
