/**
 * NaFlex images of many lengths through the vision tower, packed without padding and padded to the longest with masked
 * keys: the same weights, the same ops, the same result. Prints the time of both, forward and with backward, and the
 * ratio.
 */
import { parseArgs } from 'node:util';
import { checkNaflexBatch, type NaflexBatch, naflexGrid } from '../lib/image/naflex.js';
import { encoder } from '../lib/model/block.js';
import { modelConfig } from '../lib/model/config.js';
import { mapPool } from '../lib/model/pool.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { cast } from '../lib/ops/elementwise.js';
import { l2Normalize } from '../lib/ops/l2_normalize.js';
import { patchEmbedPacked } from '../lib/ops/patch_embed_packed.js';
import { positionResize } from '../lib/ops/position_resize.js';
import { backward, noGrad, reshape } from '../lib/tape.js';
import {
  type DeviceName,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../lib/tensor.js';
import { circumstances, save } from './measure.js';

/**
 * Embeddings (S, E) as `encodeNaflex` gives them, computed with every image padded to the longest. The positions of
 * padding are those of the first rows of some image: nothing sees them.
 */
export function encodePadded(model: Siglip2Model, batch: NaflexBatch): Tensor {
  const { patch, heads, depth, width } = model.config.vision,
    K = patch * patch * 3;
  const { images: S, longest: M } = checkNaflexBatch(batch, patch);
  const { params: p, options: o } = model,
    eps = model.config.layerNormEps,
    name = 'vision_model.embeddings';
  const bytes = new Uint8Array(S * M * K),
    shapes: number[] = [];
  const lengths = Int32Array.from(
    { length: S },
    (_, s) => batch.offsets[s + 1]! - batch.offsets[s]!,
  );
  for (let s = 0; s < S; s++) {
    bytes.set(batch.patches.subarray(batch.offsets[s]! * K, batch.offsets[s + 1]! * K), s * M * K);
    // Behind the image's own grid a row of single positions fills up its M rows.
    shapes.push(batch.shapes[2 * s]!, batch.shapes[2 * s + 1]!);
    if (lengths[s]! < M) shapes.push(1, M - lengths[s]!);
  }
  const keyLengths = tensor(lengths, [S], p.device);
  const positions = positionResize(
    p.get(`${name}.position_embedding.weight`),
    Int32Array.from(shapes),
  );
  const x = patchEmbedPacked(
    tensor(bytes, [S * M, K], p.device),
    p.get(`${name}.patch_embedding.weight`),
    p.get(`${name}.patch_embedding.bias`),
    positions,
    { dtype: o.dtype },
  );
  const tokens = encoder(
    p,
    'vision_model.encoder.layers',
    'vision_model.post_layernorm',
    { heads, depth, eps, gelu: model.config.vision.gelu, checkpoint: o.checkpoint, keyLengths },
    reshape(x, [S, M, width]),
  );
  return l2Normalize(
    cast(mapPool(p, 'vision_model.head', tokens, model.config.vision, eps, { keyLengths }), 'f32'),
  );
}

/** A batch of noise with the grids of images of common shapes, as many of each length. */
export function mixedBatch(images: number, patch: number, lengths: readonly number[]): NaflexBatch {
  const sizes = [
    [480, 640],
    [640, 427],
    [512, 512],
    [1080, 1920],
    [300, 900],
  ] as const;
  const shapes = Int32Array.from(
    Array.from({ length: images }, (_, s) => {
      const [height, width] = sizes[s % sizes.length]!;
      return naflexGrid(height, width, patch, lengths[s % lengths.length]!);
    }).flat(),
  );
  const offsets = new Int32Array(images + 1);
  for (let s = 0; s < images; s++)
    offsets[s + 1] = offsets[s]! + shapes[2 * s]! * shapes[2 * s + 1]!;
  const patches = Uint8Array.from(
    { length: offsets[images]! * patch * patch * 3 },
    (_, i) => (i * 2654435761) >>> 24,
  );
  return { patches, offsets, shapes };
}

const median = (v: number[]): number =>
  v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'B/16' },
      depth: { type: 'string', default: '4' },
      images: { type: 'string', default: '12' },
      lengths: { type: 'string', default: '64,128,256,576,784,1024' },
      dtype: { type: 'string', default: 'f32' },
      device: { type: 'string', default: 'cpu' },
      rounds: { type: 'string', default: '3' },
      json: { type: 'string' },
    },
  });
  const device = values.device as DeviceName,
    dtype = values.dtype as 'f32' | 'bf16',
    depth = Number(values.depth);
  const config = modelConfig(values.model, { naflex: true, vocab: 16, vision: { depth } });
  const lengths = values.lengths.split(',').map(Number);
  const model = new Siglip2Model(config, { device, dtype, train: true });
  model.initialize(0);
  const batch = mixedBatch(Number(values.images), config.vision.patch, lengths);
  const { images, tokens, longest } = checkNaflexBatch(batch, config.vision.patch);

  const ways = {
    packed: () => model.encodeNaflex(batch),
    padded: () => encodePadded(model, batch),
  };
  const passes = {
    forward: (encode: () => Tensor) => noGrad(encode),
    'forward + backward': (encode: () => Tensor) => {
      model.params.zeroGrad();
      const y = encode();
      backward([[y, zeros(y.shape, 'f32', device)]]);
      return y;
    },
  };
  const kept = scope(() => noGrad(() => ({ a: ways.packed(), b: ways.padded() })));
  const a = (await kept.a.read()) as Float32Array,
    b = (await kept.b.read()) as Float32Array;
  const difference = a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i]!)), 0);
  kept.a.dispose();
  kept.b.dispose();

  const all = images * longest;
  console.log(
    `${config.name} depth ${depth} ${dtype} on ${String(circumstances(device)['cpu'])}, ${images} images of ` +
      `${Math.min(...lengths)}–${longest} tokens: ${tokens} packed, ${all} padded (${(all / tokens).toFixed(2)}×)`,
  );
  console.log(`  largest difference of an embedding's value ${difference.toExponential(1)}`);
  const record: Record<string, unknown> = {
    ...circumstances(device),
    what: 'naflex',
    model: config.name,
    depth,
    dtype,
    images,
    tokens,
    longest,
    difference,
  };
  for (const [pass, run] of Object.entries(passes)) {
    const seconds: Record<keyof typeof ways, number[]> = { packed: [], padded: [] };
    const peak: Record<string, number> = {};
    for (let r = 0; r <= Number(values.rounds); r++) {
      for (const way of ['packed', 'padded'] as const) {
        resetPeak(device);
        const t0 = performance.now();
        scope(() => {
          run(ways[way]);
        });
        await synchronize(device);
        // The first round warms up.
        if (r > 0) seconds[way].push((performance.now() - t0) / 1000);
        const m = memory(device);
        peak[way] = m.peak + m.scratchPeak;
      }
    }
    // Each packed run beside the padded one that followed it.
    const ratios = seconds.packed.map((s, i) => seconds.padded[i]! / s),
      ratio = median(ratios);
    const packed = median(seconds.packed),
      padded = median(seconds.padded);
    console.log(
      `  ${pass.padEnd(20)} packed ${packed.toFixed(3)} s   padded ${padded.toFixed(3)} s   ` +
        `padded/packed ${ratio.toFixed(2)} (${ratios.map((x) => x.toFixed(2)).join(', ')})   ` +
        `peak ${(peak['packed']! / 2 ** 20).toFixed(0)} and ${(peak['padded']! / 2 ** 20).toFixed(0)} MiB`,
    );
    Object.assign(record, {
      [`${pass} packed`]: packed,
      [`${pass} padded`]: padded,
      [`${pass} ratio`]: ratio,
    });
  }
  save(values.json, record);
  model.dispose();
}
