import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { findPython, peerEnvironment, script, TorchStep } from '../../bench/peers/pytorch/peer.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import type { ModelConfig } from '../../lib/model/config.js';
import { modelConfig } from '../../lib/model/config.js';
import { parameterShapes } from '../../lib/model/shapes.js';

// The peer must be right before anything is compared with it: its names and shapes against ours,
// its loss against the known value at the start, its gradients against finite differences.
const python =
  findPython() ??
  (() => {
    throw new Error('no Python with PyTorch: set SIGLIP2_PYTHON to one, or run npm run test:peers');
  })();

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'siglip2-peer-test-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Uniform in [-1, 1) from a seed. */
function noise(seed: number): () => number {
  let state = seed >>> 0;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1;
}

type Weights = Map<string, Float32Array>;

function weights(config: ModelConfig): Weights {
  const random = noise(7);
  return new Map(
    parameterShapes(config).map(({ name, shape, init }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const base = init.kind === 'ones' ? 1 : init.kind === 'constant' ? init.value : 0;
      return [name, Float32Array.from({ length: size }, () => base + 0.2 * random())];
    }),
  );
}

const path = (name: string): string => join(folder, name);
const BATCH = 4;

async function prepare(config: ModelConfig, values: Weights, steps?: number): Promise<void> {
  const [side, length, random] = [config.vision.imageSize, config.text.length, noise(3)];
  const lead = steps === undefined ? [BATCH] : [steps, BATCH];
  const count = lead.reduce((a, b) => a * b, 1);
  await writeFile(path('model.json'), JSON.stringify(config));
  await writeSafetensors(path('batch.safetensors'), [
    {
      name: 'images',
      dtype: 'U8',
      shape: [...lead, side, side, 3],
      data: Uint8Array.from({ length: count * side * side * 3 }, () => 127.5 * (random() + 1)),
    },
    {
      name: 'ids',
      dtype: 'I32',
      shape: [...lead, length],
      data: Int32Array.from(
        { length: count * length },
        () => (config.text.vocab / 2) * (random() + 1),
      ),
    },
  ]);
  await writeSafetensors(
    path('model.safetensors'),
    parameterShapes(config).map(({ name, shape }) => ({
      name,
      dtype: 'F32' as const,
      shape,
      data: values.get(name)!,
    })),
  );
}

function run(mode: 'grads' | 'train', ...more: string[]): string[] {
  const output = execFileSync(
    python,
    [
      script('grads.py'),
      mode,
      '--config',
      path('model.json'),
      '--weights',
      path('model.safetensors'),
      '--batch',
      path('batch.safetensors'),
      ...more,
    ],
    { encoding: 'utf8', env: peerEnvironment(), maxBuffer: 2 ** 26 },
  );
  return output.trim().split('\n');
}

const lossOf = (lines: string[]): number => (JSON.parse(lines[0]!) as { loss: number }).loss;

test.each([
  ['last', false],
  ['map', true],
] as const)(
  'text pooling %s, NaFlex %p: names, shapes, and gradients against finite differences',
  async (pool, naflex) => {
    const config = modelConfig('test', { pool, naflex, vocab: 23, initLogitBias: -2 });
    const values = weights(config);
    await prepare(config, values);
    const loss = lossOf(run('grads', '--f64', '--out', path('grads.safetensors')));
    const grads = await openSafetensors(path('grads.safetensors'));
    const gradients = new Map<string, Float32Array>();
    for (const name of grads.tensors.keys()) gradients.set(name, await grads.readFloat32(name));
    const shapes = Object.fromEntries([...grads.tensors].map(([name, { shape }]) => [name, shape]));
    await grads.close();
    expect(shapes).toEqual({
      ...Object.fromEntries(parameterShapes(config).map(({ name, shape }) => [name, shape])),
      'out.loss': [1],
      'out.image': [BATCH, 32],
      'out.text': [BATCH, 32],
    });
    expect(gradients.get('out.loss')![0]).toBeCloseTo(loss, 5);
    // One central difference along a random direction sees every gradient. The direction is what is
    // left of it in the stored f32 weights.
    const random = noise(11);
    const direction = [...values].map(
      ([name, v]) => [name, v.map(() => 2 ** -12 * random())] as const,
    );
    const moved = [1, -1].map(
      (sign) =>
        new Map(
          direction.map(([name, d]) => [name, values.get(name)!.map((v, i) => v + sign * d[i]!)]),
        ),
    );
    const losses: number[] = [];
    for (const side of moved) {
      await prepare(config, side);
      losses.push(lossOf(run('grads', '--f64', '--out', path('unused.safetensors'))));
    }
    let expected = 0;
    for (const [name, above] of moved[0]!) {
      const [below, gradient] = [moved[1]!.get(name)!, gradients.get(name)!];
      above.forEach((value, i) => (expected += (value - below[i]!) * gradient[i]!));
    }
    expect(Math.abs(losses[0]! - losses[1]! - expected)).toBeLessThan(1e-3 * Math.abs(expected));
  },
);

test('training steps: a zero multiplier changes nothing, then the loss falls', async () => {
  const config = modelConfig('test', { vocab: 23 });
  await prepare(config, weights(config), 2);
  await writeFile(
    path('recipe.json'),
    JSON.stringify({
      lr: 1e-2,
      weightDecay: 1e-4,
      schedule: [0, 0, ...Array<number>(20).fill(0.5)],
      lrFactors: { 'token_embedding.weight': 8 },
    }),
  );
  const lines = run(
    'train',
    '--recipe',
    path('recipe.json'),
    '--out',
    path('trained.safetensors'),
  ).map((line) => JSON.parse(line) as { step: number; loss: number; gradNorm: number });
  expect(lines.map(({ step }) => step)).toEqual([...lines.keys()]);
  // Two batches alternate: steps 0 and 2 see the same data with the same weights.
  expect(lines[2]!.loss).toBe(lines[0]!.loss);
  expect(lines[20]!.loss).toBeLessThan(0.7 * lines[0]!.loss);
  expect(lines.every(({ gradNorm }) => gradNorm > 0)).toBe(true);
  const trained = await openSafetensors(path('trained.safetensors'));
  expect([...trained.tensors.keys()].sort()).toEqual(
    parameterShapes(config)
      .map(({ name }) => name)
      .sort(),
  );
  await trained.close();
});

test('throughput: the loss at the start is the published one, and it answers line by line', async () => {
  const peer = await TorchStep.start(modelConfig('test', { initLogitScale: -20 }), 256, 2);
  try {
    // Without similarity every pair has the logit -10: softplus(10) + 255 softplus(-10).
    expect(peer.info.loss).toBeCloseTo(
      Math.log1p(Math.exp(10)) + 255 * Math.log1p(Math.exp(-10)),
      3,
    );
    expect(peer.info).toMatchObject({ threads: 2, parameters: 59266 });
    expect(peer.info.matmulGflops).toBeGreaterThan(0.1);
    const result = await peer.run(2);
    expect(result.steps).toBe(2);
    expect(result.imagesPerSecond).toBeCloseTo(512 / result.seconds, 5);
    expect(await peer.matmul()).toBeGreaterThan(0.1);
    await expect(peer.run(0)).rejects.toThrow(/expected 'run K'/);
  } finally {
    await peer.close();
  }
});
