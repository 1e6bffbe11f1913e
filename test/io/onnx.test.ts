/** Exported graphs in onnxruntime give PyTorch's results: every opset, weights inside and beside, other batch sizes, NaFlex. */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { modelFiles } from '../../lib/checkpoints/load.js';
import { exportOnnx } from '../../lib/checkpoints/onnx.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { VocabMap } from '../../lib/text/vocab.js';
import type { Feeds, Outputs } from './onnx_worker.js';
import { arraysOf, largestDifference, makeCheckpoints, smallConfig } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-onnx-'));
const at = (...names: string[]): string => join(folder, ...names);
beforeAll(() => {
  makeCheckpoints(
    'checkpoints-onnx',
    (['last', 'map', 'naflex'] as const).map((kind) => ({
      out: at(kind),
      layout: 'flax' as const,
      config: smallConfig(kind === 'naflex' ? { naflex: true } : { pool: kind }),
    })),
  );
}, 600000);
afterAll(async () => {
  await runtime.terminate();
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const runtime = new Worker(new URL('./onnx_worker.js', import.meta.url));
let serial = 0;

function run(path: string, feeds: Feeds): Promise<Outputs> {
  const mine = serial++;
  return new Promise((resolve, reject) => {
    const answer = ([id, outputs, error]: [number, Outputs | null, string | null]): void => {
      if (id !== mine) return;
      runtime.off('message', answer);
      if (outputs) resolve(outputs);
      else reject(new Error(`${path}: ${error}`));
    };
    runtime.on('message', answer);
    runtime.postMessage([mine, path, feeds]);
  });
}

/** (B, S, S, 3) bytes as (B, 3, S, S) in [-1, 1]. */
function planes(images: ArrayLike<number>, [B, S]: readonly number[]): Float32Array {
  const out = new Float32Array(images.length),
    area = S! * S!;
  for (let b = 0; b < B!; b++) {
    for (let p = 0; p < area; p++)
      for (let c = 0; c < 3; c++)
        out[(b * 3 + c) * area + p] = images[(b * area + p) * 3 + c]! / 127.5 - 1;
  }
  return out;
}

test.each([
  [17, 'last', Infinity],
  [18, 'map', Infinity],
  [19, 'last', 20000],
  [20, 'last', 0],
  [20, 'map', Infinity],
] as const)(
  'opset %d, text pooling %s, weights beside the graph above %p bytes',
  async (opset, pool, externalAbove) => {
    const made = at(pool),
      out = at(`onnx-${opset}-${pool}`);
    await convertCheckpoint(join(made, 'model.npz'), out, { format: 'onnx', opset, externalAbove });
    expect(statSync(join(out, 'vision.onnx.data'), { throwIfNoEntry: false }) !== undefined).toBe(
      externalAbove !== Infinity,
    );
    const want = await arraysOf(join(made, 'expected.safetensors')),
      { images, ids } = await arraysOf(join(made, 'inputs.safetensors'));
    const vision = join(out, 'vision.onnx'),
      text = join(out, 'text.onnx');
    const [B, S] = images!.shape as [number, number],
      E = 24,
      L = ids!.shape[1]!;
    const pixels = planes(images!.data, images!.shape);
    const image = await run(vision, { pixel_values: ['float32', pixels, [B, 3, S, S]] });
    expect(largestDifference(image['image_embeds']!, want['image']!.data)).toBeLessThan(1e-4);
    expect(image['last_hidden_state']!.length).toBe(B * 16 * E);
    const words = await run(text, { input_ids: ['int64', ids!.data, [B, L]] });
    expect(largestDifference(words['text_embeds']!, want['text']!.data)).toBeLessThan(1e-4);
    // Any batch.
    const one = await run(vision, {
      pixel_values: ['float32', pixels.subarray(0, pixels.length / B), [1, 3, S, S]],
    });
    expect(largestDifference(one['image_embeds']!, want['image']!.data.slice(0, E))).toBeLessThan(
      1e-4,
    );
    const two = await run(text, { input_ids: ['int64', ids!.data.slice(0, 2 * L), [2, L]] });
    expect(largestDifference(two['text_embeds']!, want['text']!.data.slice(0, 2 * E))).toBeLessThan(
      1e-4,
    );
    // Any length: the first tokens alone give finite unit rows.
    const short = await run(text, { input_ids: ['int64', ids!.data.slice(0, 5), [1, 5]] });
    expect(Math.hypot(...short['text_embeds']!)).toBeCloseTo(1, 5);
  },
);

test.each([17, 20])('NaFlex, opset %d: three aspect ratios in one batch', async (opset) => {
  const made = at('naflex'),
    out = at(`onnx-naflex-${opset}`);
  await convertCheckpoint(join(made, 'model.npz'), out, { format: 'onnx', opset });
  const want = await arraysOf(join(made, 'expected.safetensors'));
  const { patches, mask, shapes } = await arraysOf(join(made, 'inputs.safetensors'));
  const session = join(out, 'vision.onnx');
  const [B, M, V] = patches!.shape as [number, number, number];
  const pixels = Float32Array.from(patches!.data, (v, i) =>
    mask!.data[Math.floor(i / V)] ? v / 127.5 - 1 : 0,
  );
  const got = await run(session, {
    pixel_values: ['float32', pixels, [B, M, V]],
    pixel_attention_mask: ['int64', mask!.data, [B, M]],
    spatial_shapes: ['int64', shapes!.data, [B, 2]],
  });
  expect(largestDifference(got['image_embeds']!, want['image']!.data)).toBeLessThan(1e-4);
  // One image without padding, longer than any in the batch before: nothing depends on the length.
  const [h, w] = [shapes!.data[0]!, shapes!.data[1]!],
    n = h * w;
  const alone = await run(session, {
    pixel_values: ['float32', pixels.subarray(0, n * V), [1, n, V]],
    pixel_attention_mask: ['int64', new Uint8Array(n).fill(1), [1, n]],
    spatial_shapes: ['int64', [h, w], [1, 2]],
  });
  expect(largestDifference(alone['image_embeds']!, want['image']!.data.slice(0, 24))).toBeLessThan(
    1e-4,
  );
});

test.each([17, 20])('exact GELU, opset %d: the results are ours', async (opset) => {
  const config = smallConfig({ vision: { gelu: 'exact' }, text: { gelu: 'exact' } }),
    own = at(`exact-${opset}`),
    out = at(`onnx-exact-${opset}`);
  using model = new Siglip2Model(config);
  model.initialize(1);
  await mkdir(own);
  await modelFiles(own, model, { vocab: null, tokenizer: null, lowercase: 'none', ema: null });
  await convertCheckpoint(own, out, { format: 'onnx', opset });
  const pixels = Uint8Array.from({ length: 32 * 32 * 3 }, (_, i) => 31 * i),
    ids = Int32Array.from({ length: 12 }, (_, i) => 5 * i);
  const [image, text] = scope(() =>
    noGrad(() =>
      [
        model.encodeImages(tensor(pixels, [1, 32, 32, 3])),
        model.encodeTexts(tensor(ids, [1, 12])),
      ].map((t) => t.read()),
    ),
  );
  const got = await run(join(out, 'vision.onnx'), {
    pixel_values: ['float32', planes(pixels, [1, 32]), [1, 3, 32, 32]],
  });
  expect(largestDifference(got['image_embeds']!, (await image) as Float32Array)).toBeLessThan(1e-5);
  const words = await run(join(out, 'text.onnx'), { input_ids: ['int64', ids, [1, 12]] });
  expect(largestDifference(words['text_embeds']!, (await text) as Float32Array)).toBeLessThan(1e-5);
});

test('a model of ours with a trimmed vocabulary: complete token ids go in, and the results are ours', async () => {
  const kept = [0, 1, 2, 3, 10, 500, 99999],
    config = modelConfig('test', { vocab: kept.length }),
    own = at('own');
  using model = new Siglip2Model(config, {});
  model.initialize(1);
  await modelFiles(own, model, {
    vocab: VocabMap.fromIds(kept),
    tokenizer: null,
    lowercase: 'ascii',
    ema: null,
  });
  await convertCheckpoint(own, at('own-onnx'), { format: 'onnx' });
  expect(JSON.parse(await readFile(at('own-onnx', 'config.json'), 'utf8'))).toHaveProperty(
    'text_config.vocab_size',
    256000,
  );
  const full = Array.from({ length: 16 }, (_, i) => (i < 6 ? [10, 99999, 77, 500, 2, 1][i]! : 0));
  const dense = full.map((id) => (kept.includes(id) ? kept.indexOf(id) : 3));
  const session = at('own-onnx', 'text.onnx');
  const theirs = await run(session, { input_ids: ['int64', full, [1, 16]] });
  const rows = scope(() =>
    noGrad(() => model.encodeTexts(tensor(Int32Array.from(dense), [1, 16]))),
  );
  expect(largestDifference(theirs['text_embeds']!, await rows.read())).toBeLessThan(1e-4);
  rows.dispose();
});

test('other opsets are refused', async () => {
  const own = at('opset');
  using model = new Siglip2Model(modelConfig('test'), {});
  model.initialize(1);
  await modelFiles(own, model, { vocab: null, tokenizer: null, lowercase: 'ascii', ema: null });
  const from = await openCheckpoint(own);
  await expect(exportOnnx(folder, from, { opset: 16 })).rejects.toThrow(
    /opset must be 17, 18, 19 or 20/,
  );
  await from.reader.close();
});
