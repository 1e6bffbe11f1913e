/** Checkpoints of both public layouts, made by PyTorch, give PyTorch's embeddings and logits; round trips keep every bit. */

import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { loadModel } from '../../lib/checkpoints/load.js';
import { defaultProcessor } from '../../lib/checkpoints/processor_config.js';
import { CheckpointError } from '../../lib/errors.js';
import type { NaflexBatch } from '../../lib/image/naflex.js';
import { readMember, readZip } from '../../lib/io/zip.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import {
  arraysOf,
  type Job,
  largestDifference,
  makeCheckpoints,
  relativeError,
  smallConfig,
} from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-load-'));
const at = (...names: string[]): string => join(folder, ...names);
const HF = [
  ['F32', 1],
  ['F16', 1],
  ['BF16', 1],
  ['F32', 3],
] as const;
const FLAX: [string, Partial<Job>][] = [
  ['released (stacked)', {}],
  ['compressed', { compressed: true }],
  [
    'layer by layer, no prefix, MAP pooling of texts',
    { perLayer: true, noPrefix: true, config: smallConfig({ pool: 'map' }) },
  ],
  ['NaFlex', { config: smallConfig({ naflex: true }) }],
];
const hf = (dtype: string, shards: number): string => at(`hf-${dtype}-${shards}`);
const flax = (name: string): string => at(`flax-${FLAX.findIndex(([n]) => n === name)}`);

beforeAll(() => {
  makeCheckpoints('checkpoints', [
    ...HF.map(
      ([dtype, shards]): Job => ({
        out: hf(dtype, shards),
        layout: 'hf',
        config: smallConfig(),
        dtype,
        shards,
      }),
    ),
    ...FLAX.map(
      ([name, job]): Job => ({ out: flax(name), layout: 'flax', config: smallConfig(), ...job }),
    ),
  ]);
}, 600000);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

/** Padded patches (B, M, P·P·3) as a packed batch. */
function packed(
  patches: { shape: number[]; data: ArrayLike<number> },
  mask: ArrayLike<number>,
  shapes: Int32Array,
): NaflexBatch {
  const [B, M, V] = patches.shape as [number, number, number],
    offsets = new Int32Array(B + 1),
    kept: number[] = [];
  for (let b = 0; b < B; b++) {
    for (let m = 0; m < M; m++)
      if (mask[b * M + m])
        for (let v = 0; v < V; v++) kept.push(patches.data[(b * M + m) * V + v]!);
    offsets[b + 1] = kept.length / V;
  }
  return { patches: Uint8Array.from(kept), offsets, shapes };
}

async function results(source: string, inputs: string, dtype: 'f32' | 'bf16') {
  const { model } = await loadModel(source, { dtype });
  try {
    const { images, patches, mask, shapes, ids } = await arraysOf(inputs);
    const rows = scope(() =>
      noGrad(() => [
        images
          ? model.encodeImages(tensor(images.data, images.shape))
          : model.encodeNaflex(packed(patches!, mask!.data, shapes!.data as Int32Array)),
        model.encodeTexts(tensor(ids!.data, ids!.shape)),
      ]),
    );
    const [image, text] = (await Promise.all(rows.map((t) => t.read()))) as [
      Float32Array,
      Float32Array,
    ];
    rows.forEach((t) => t.dispose());
    const E = model.config.embed,
      n = ids!.shape[0]!;
    const [scale, bias] = (await Promise.all(
      [model.logitScale, model.logitBias].map(async (p) => (await p.read())[0]!),
    )) as [number, number];
    const logits = Float32Array.from({ length: n * n }, (_, i) => {
      let dot = 0;
      for (let e = 0; e < E; e++) dot += image[Math.floor(i / n) * E + e]! * text[(i % n) * E + e]!;
      return Math.exp(scale) * dot + bias;
    });
    return { image, text, logits };
  } finally {
    model.dispose();
  }
}

async function compare(source: string, made: string): Promise<void> {
  const want = await arraysOf(join(made, 'expected.safetensors'));
  for (const dtype of ['f32', 'bf16'] as const) {
    const got = await results(source, join(made, 'inputs.safetensors'), dtype);
    for (const name of ['image', 'text', 'logits'] as const) {
      const error =
        dtype === 'f32'
          ? largestDifference(got[name], want[name]!.data)
          : relativeError(got[name], want[name]!.data);
      expect({ dtype, name, error, small: error <= (dtype === 'f32' ? 1e-4 : 2e-2) }).toMatchObject(
        { small: true },
      );
    }
  }
}

test.each(HF)('a Hugging Face folder of %s in %d files', async (dtype, shards) => {
  const made = hf(dtype, shards);
  await compare(made, made);
  // Back to a folder: the same bytes under the same names, the same config.
  const again = `${made}-again`;
  await convertCheckpoint(made, again, { format: 'hf' });
  const [a, b] = [await openCheckpoint(made), await openCheckpoint(again)];
  expect(b.config).toEqual({ ...a.config });
  expect([...b.reader.tensors.keys()].sort()).toEqual([...a.reader.tensors.keys()].sort());
  for (const [name, info] of a.reader.tensors) {
    expect(b.reader.tensors.get(name)).toMatchObject({ dtype, shape: info.shape });
    expect(Buffer.compare(await a.reader.read(name), await b.reader.read(name))).toBe(0);
  }
  await Promise.all([a.reader.close(), b.reader.close()]);
  expect(JSON.parse(await readFile(join(again, 'config.json'), 'utf8'))).toEqual(
    JSON.parse(await readFile(join(made, 'config.json'), 'utf8')),
  );
});

test.each(FLAX.map(([name]) => name))('a big_vision file: %s', async (name) => {
  const made = flax(name);
  await compare(join(made, 'model.npz'), made);
  const [converted, back] = [`${made}-hf`, `${made}-back.npz`];
  await convertCheckpoint(join(made, 'model.npz'), converted, { format: 'hf' });
  await compare(converted, made);
  await expect(convertCheckpoint(made, converted, { format: 'hf' })).rejects.toThrow(
    /already there/,
  );
  // And back, stacked.
  await convertCheckpoint(converted, back, { format: 'npz' });
  await compare(back, made);
  const [a, b] = [await openCheckpoint(join(made, 'model.npz')), await openCheckpoint(back)];
  for (const name of a.reader.tensors.keys())
    expect(Buffer.compare(await a.reader.read(name), await b.reader.read(name))).toBe(0);
  await Promise.all([a.reader.close(), b.reader.close()]);
});

test('the arrays of our .npz are files as NumPy writes them, byte for byte', async () => {
  const made = flax('NaFlex');
  await convertCheckpoint(join(made, 'model.npz'), join(made, 'ours.npz'), { format: 'npz' });
  const files = async (path: string): Promise<Map<string, string>> => {
    const handle = await open(path),
      out = new Map<string, string>();
    for (const [name, member] of await readZip(path, handle))
      out.set(
        name,
        createHash('sha256')
          .update(await readMember(path, handle, member))
          .digest('hex'),
      );
    await handle.close();
    return out;
  };
  const ours = await files(join(made, 'ours.npz'));
  expect(ours.size).toBeGreaterThan(50);
  expect(ours).toEqual(await files(join(made, 'model.npz')));
});

test('what a checkpoint says of its inputs', async () => {
  const made = hf('F16', 1);
  const processor = async () => {
    const { reader, resample, generation } = await openCheckpoint(made);
    await reader.close();
    return { resample, generation };
  };
  expect(await processor()).toEqual({ resample: 2, generation: 2 });
  // SigLIP 1 is told by its vocabulary.
  expect(defaultProcessor(modelConfig('B/16', { vocab: 32000 }))).toMatchObject({
    resample: 3,
    generation: 1,
  });
  expect(defaultProcessor(modelConfig('B/16'))).toMatchObject({ resample: 2, generation: 2 });
  writeFileSync(
    join(made, 'preprocessor_config.json'),
    JSON.stringify({ resample: 3, image_mean: [0.5, 0.5, 0.5] }),
  );
  expect(await processor()).toEqual({ resample: 3, generation: 2 });
  writeFileSync(join(made, 'preprocessor_config.json'), JSON.stringify({ resample: 1 }));
  await expect(processor()).rejects.toThrow(/key "resample"/);
  writeFileSync(join(made, 'preprocessor_config.json'), '{');
  await expect(processor()).rejects.toThrow(CheckpointError);
});

test('loading can be stopped, and tells how far it is', async () => {
  const made = hf('F32', 1);
  const seen: number[] = [];
  const { model } = await loadModel(made, { onProgress: (done, total) => seen.push(done / total) });
  model.dispose();
  expect(seen.at(-1)).toBe(1);
  await expect(loadModel(made, { signal: AbortSignal.abort() })).rejects.toMatchObject({
    name: 'AbortError',
  });
  const late = new AbortController();
  await expect(
    loadModel(made, { signal: late.signal, onProgress: () => late.abort() }),
  ).rejects.toMatchObject({ name: 'AbortError' });
});

test('a bf16 model that is not trained has the weights of one that is, in half the memory', async () => {
  const config = smallConfig(),
    ids = new Int32Array(24).fill(7),
    pixels = Uint8Array.from({ length: 2 * 32 * 32 * 3 }, (_, i) => i % 251);
  const rows: Float32Array[] = [],
    sizes: number[] = [];
  for (const train of [true, false]) {
    using model = new Siglip2Model(config, { dtype: 'bf16', train });
    model.initialize(3);
    const out = scope(() =>
      noGrad(() => [
        model.encodeImages(tensor(pixels, [2, 32, 32, 3])),
        model.encodeTexts(tensor(ids, [2, 12])),
      ]),
    );
    for (const t of out) {
      rows.push((await t.read()) as Float32Array);
      t.dispose();
    }
    sizes.push(model.params.values.bytes + model.params.copy!.bytes);
    const read = await model.params.read();
    expect(read.size).toBe(model.params.segments.length);
    expect(read.get('text_model.head.weight')!.data.some((v) => v !== 0)).toBe(true);
  }
  expect(largestDifference(rows[0]!, rows[2]!)).toBe(0);
  // The token table is rounded too, before its position is added.
  expect(relativeError(rows[3]!, rows[1]!)).toBeLessThan(2e-2);
  expect(sizes[1]! / sizes[0]!).toBeLessThan(0.4);
});
