/** The caption decoder and its objective: against PyTorch, against one task at a time, and on odd input. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { script } from '../../bench/peers/pytorch/peer.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { captionBatch, captionLoss, parallelCount } from '../../lib/losses/caption.js';
import { modelConfig } from '../../lib/model/config.js';
import { parameterCounts, parameterShapes } from '../../lib/model/shapes.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { Random } from '../../lib/random.js';
import { backward, clearTape, noGrad, requireGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import type { DecoderSequence } from '../../lib/text/sequences.js';
import { generator, normal } from '../harness.js';
import { answer } from '../oracle.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-caption-'));
const path = (name: string): string => join(folder, name);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const B = 4,
  N = 5,
  L = 12,
  V = 41;

function decoderModel(bias: boolean, checkpoint = false): Siglip2Model {
  // The image tokens are wider than the decoder, as g-opt's are.
  const config = modelConfig('test', {
    vocab: V,
    length: L,
    vision: { width: 48, heads: 2 },
    decoder: { depth: 2, bias },
  });
  const model = new Siglip2Model(config, { train: true, checkpoint });
  model.initialize(5);
  // The projection starts at zero, which would leave nothing to compare; biases likewise.
  for (const { name, shape } of model.params.shapes)
    if (/^decoder\.(head|.*\.bias|.*norm.*)/.test(name)) {
      const n = shape.reduce((a, b) => a * b, 1);
      model.params
        .get(name)
        .write(normal(n, n, 0.2).map((x) => x + (name.endsWith('norm.weight') ? 1 : 0)));
    }
  return model;
}

/** Three sets; some examples without a sequence, some that fill all L tokens. */
function sequences(): (DecoderSequence | null)[][] {
  const r = generator(3);
  return [0, 1, 2].map((s) =>
    Array.from({ length: B }, (_, b) => {
      if (s < 2 && b === 1) return null;
      const n = b === 2 ? L : 4 + b + s;
      const ids = Int32Array.from({ length: n }, (_, i) =>
        i === n - 1 ? 1 : 2 + Math.floor(((r() + 1) / 2) * (V - 2)),
      );
      return { ids, prefix: s === 2 ? 0 : 2 };
    }),
  );
}
const image = normal(B * N * 48, 8);

test.each([
  [false, false],
  [true, false],
  [false, true],
])(
  'bias %p, checkpointing %p: losses and gradients as PyTorch',
  async (bias, checkpoint) => {
    using model = decoderModel(bias, checkpoint);
    const sets = sequences(),
      parallel = 2,
      weights = [1, 0.5, 2],
      scale = 0.75;
    const flat = sets.flat();
    writeFileSync(path('model.json'), JSON.stringify(model.config));
    await writeSafetensors(
      path('model.safetensors'),
      [...(await model.params.read())].map(([name, t]) => ({ name, dtype: 'F32' as const, ...t })),
    );
    const tokens = new Int32Array(3 * B * L);
    flat.forEach((s, i) => {
      if (s) tokens.set(s.ids, i * L);
    });
    await writeSafetensors(path('batch.safetensors'), [
      { name: 'image', dtype: 'F32', shape: [B, N, 48], data: image },
      { name: 'tokens', dtype: 'I32', shape: [3, B, L], data: tokens },
      {
        name: 'prefix',
        dtype: 'I32',
        shape: [3, B],
        data: Int32Array.from(flat, (s) => s?.prefix ?? 0),
      },
      {
        name: 'parallel',
        dtype: 'I32',
        shape: [3, B],
        data: Int32Array.from(flat, (_, i) => (i >= 3 * B - parallel ? 1 : 0)),
      },
    ]);
    const theirs = JSON.parse(
      answer(`caption-${bias ? 'bias' : 'plain'}`, {
        args: [
          script('decoder.py'),
          '--config',
          path('model.json'),
          '--weights',
          path('model.safetensors'),
          '--batch',
          path('batch.safetensors'),
          '--out',
          path('grads.safetensors'),
          '--weight',
          ...weights.map((w) => String(w * scale)),
        ],
        writes: [path('grads.safetensors')],
      }),
    ) as { losses: number[] };

    model.params.zeroGrad();
    const { loss, dimage } = scope(() => {
      const x = requireGrad(tensor(image, [B, N, 48]));
      const l = captionLoss(
        model,
        x,
        captionBatch(sets, { length: L, mask: V, parallel, weights }),
        { gradScale: scale },
      );
      return { loss: l, dimage: backward([[l, scale]]).get(x)! };
    });
    const losses = await loss.read();
    weights.forEach((w, s) =>
      expect(Math.abs(losses[s]! / w - theirs.losses[s]!) / theirs.losses[s]!).toBeLessThan(1e-5),
    );
    const reader = await openSafetensors(path('grads.safetensors'));
    const ours = new Map(
      [...(await model.params.read(model.params.grads!))]
        .filter(([name]) => name.startsWith('decoder.'))
        .map(([name, t]) => [name, t.data]),
    );
    ours.set('image', (await dimage.read()) as Float32Array);
    for (const [name, data] of ours) {
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
    }
    await reader.close();
    loss.dispose();
    dimage.dispose();
  },
  120000,
);

test('three tasks in one pass are the three alone', async () => {
  using model = decoderModel(false);
  const sets = sequences();
  const losses = async (chosen: (DecoderSequence | null)[][], parallel = 0): Promise<number[]> => {
    const l = scope(() =>
      noGrad(() =>
        captionLoss(
          model,
          tensor(image, [B, N, 48]),
          captionBatch(chosen, { length: L, mask: V, parallel }),
        ),
      ),
    );
    const values = [...(await l.read())];
    l.dispose();
    return values;
  };
  const together = await losses(sets, 3),
    alone = [
      await losses([sets[0]!]),
      await losses([sets[1]!]),
      await losses([sets[2]!], 3),
    ].flat();
  together.forEach((l, i) => expect(l).toBeCloseTo(alone[i]!, 5));
  expect((await losses(sets, 0))[2]).not.toBeCloseTo(together[2]!, 4);
});

test('padding behind the tokens of an image changes nothing', async () => {
  using model = decoderModel(false);
  const padded = new Float32Array(B * (N + 3) * 48).fill(7);
  for (let b = 0; b < B; b++)
    padded.set(image.subarray(b * N * 48, (b + 1) * N * 48), b * (N + 3) * 48);
  const batch = captionBatch(sequences(), { length: L, mask: V, parallel: 1 });
  const [plain, masked] = scope(() =>
    noGrad(() => [
      captionLoss(model, tensor(image, [B, N, 48]), batch),
      captionLoss(model, tensor(padded, [B, N + 3, 48]), batch, {
        imageLengths: tensor(new Int32Array(B).fill(N), [B]),
      }),
    ]),
  );
  const want = await plain!.read();
  (await masked!.read()).forEach((l, i) => expect(l).toBeCloseTo(want[i]!, 5));
  plain!.dispose();
  masked!.dispose();
});

test('a causal sequence does not see what follows, a parallel one does not see itself', async () => {
  using model = decoderModel(false);
  const base = sequences()[2]!,
    changed = base.map(
      (s) => s && { ...s, ids: s.ids.map((id, i) => (i === s.ids.length - 2 ? id ^ 1 : id)) },
    );
  const weightsUpTo = async (s: (DecoderSequence | null)[], parallel: number): Promise<number> => {
    const batch = captionBatch([s], { length: L, mask: V, parallel });
    // Scores only the first token of every example, which no change at the end may reach.
    batch.targets.forEach((_, i) => {
      if (i % L > 0) batch.targets[i] = -1;
    });
    const l = scope(() => noGrad(() => captionLoss(model, tensor(image, [B, N, 48]), batch)));
    return l.item().finally(() => l.dispose());
  };
  for (const parallel of [0, B])
    expect(await weightsUpTo(changed, parallel)).toBe(await weightsUpTo(base, parallel));
});

describe('layout', () => {
  test('shift, prefix, weights, masks, examples without a sequence', () => {
    const b = captionBatch(
      [
        [{ ids: Int32Array.of(7, 8, 9, 1), prefix: 2 }, null],
        [
          { ids: Int32Array.of(5, 1), prefix: 1 },
          { ids: Int32Array.of(6, 1), prefix: 0 },
        ],
      ],
      { length: 4, mask: 20, parallel: 1, weights: [1, 3] },
    );
    expect(b.causal).toBe(3);
    expect([...b.ids]).toEqual([0, 7, 8, 9, 0, 0, 0, 0, 0, 5, 1, 0, 20, 20, 20, 20]);
    expect([...b.targets]).toEqual([-1, -1, 9, 1, -1, -1, -1, -1, -1, 1, -1, -1, 6, 1, -1, -1]);
    expect([...b.weights]).toEqual([0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 3, 0, 0, 1.5, 1.5, 0, 0]);
  });
  test('parallel prediction: a seeded share of the examples', () => {
    const counts = Array.from({ length: 400 }, (_, i) => parallelCount(32, 0.5, new Random(1, i)));
    expect(counts.reduce((a, b) => a + b) / 400).toBeCloseTo(16, -0.5);
    expect(parallelCount(32, 0.5, new Random(1, 7))).toBe(counts[7]);
    expect([parallelCount(9, 0, new Random(1)), parallelCount(9, 1, new Random(1))]).toEqual([
      0, 9,
    ]);
  });
  test('nothing to score: loss 0, gradients 0', async () => {
    using model = decoderModel(false);
    model.params.zeroGrad();
    const l = scope(() => {
      const out = captionLoss(
        model,
        requireGrad(tensor(image, [B, N, 48])),
        captionBatch([[null, null, null, null]], { length: L, mask: V }),
      );
      backward(out);
      return out;
    });
    expect(await l.item()).toBe(0);
    expect((await model.params.grads!.read()).every((g) => g === 0)).toBe(true);
    l.dispose();
  });
  test('a root with another weight than it was made for is refused', () => {
    using model = decoderModel(false);
    scope(() => {
      const l = captionLoss(
        model,
        tensor(image, [B, N, 48]),
        captionBatch([sequences()[2]!], { length: L, mask: V }),
      );
      expect(() => backward([[l, 2]])).toThrow(/gradScale, 1, but has the weight 2/);
    });
    clearTape();
  });
  test('a model without a decoder says so', () => {
    using model = new Siglip2Model(modelConfig('test'));
    scope(() =>
      expect(() =>
        captionLoss(
          model,
          tensor(new Float32Array(1), [1]),
          captionBatch([[null]], { length: 4, mask: 1 }),
        ),
      ).toThrow(/has no decoder/),
    );
  });
});

test('shapes of the released sizes: half the text tower, keys and values from the vision width, exact parameter counts', () => {
  const g = modelConfig('g-opt/16', { decoder: {} });
  expect(g.decoder).toMatchObject({ depth: 13, width: 1152, heads: 16, mlp: 4304, bias: false });
  const shapes = new Map(parameterShapes(g).map((s) => [s.name, s]));
  expect(shapes.get('decoder.layers.0.cross_attn.k_proj.weight')!.shape).toEqual([1152, 1536]);
  expect(shapes.get('decoder.embeddings.token_embedding.weight')).toMatchObject({
    shape: [256001, 1152],
    decay: false,
  });
  expect(shapes.get('decoder.head.weight')).toMatchObject({ decay: true, init: { kind: 'zeros' } });
  // 450 M, 726 M, 857 M, 869 M
  expect(
    ['B/16', 'L/16', 'So400m/14', 'g-opt/16'].map((v) =>
      Math.round(parameterCounts(modelConfig(v, { decoder: {} })).decoder / 1e6),
    ),
  ).toEqual([450, 726, 857, 869]);
  expect(parameterCounts(modelConfig('B/16', { decoder: {} })).total).toBe(
    parameterCounts(modelConfig('B/16')).total,
  );
  expect(modelConfig('B/16').decoder).toBeUndefined();
});
