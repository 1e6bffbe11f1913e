/** Decoding with cached keys and values against running the whole decoder again for every token. */
import { afterAll, expect, test } from '@jest/globals';
import { captionBatch, captionLoss } from '../../lib/losses/caption.js';
import { modelConfig } from '../../lib/model/config.js';
import { decode } from '../../lib/model/decode.js';
import { decoderStates } from '../../lib/model/decoder.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { linear } from '../../lib/ops/linear.js';
import { noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { normal } from '../harness.js';

afterAll(() => expect(liveCount()).toBe(0));

const B = 3,
  N = 6,
  V = 37,
  L = 10;
const image = normal(B * N * 32, 4);

function decoderModel(): Siglip2Model {
  const model = new Siglip2Model(
    modelConfig('test', { vocab: V, decoder: { depth: 2, length: L } }),
  );
  model.initialize(2);
  // A small projection keeps the choice open; the end mark is made unlikely so that sequences differ in length.
  model.params.get('decoder.head.weight').write(normal(V * 32, 9, 0.3));
  return model;
}

/** Logits of the token after `ids`, by the whole decoder. */
async function uncached(model: Siglip2Model, b: number, ids: number[]): Promise<Float32Array> {
  const n = ids.length + 1;
  const logits = scope(() =>
    noGrad(() =>
      linear(
        decoderStates(
          model.params,
          model.config,
          tensor(Int32Array.of(0, ...ids), [1, n]),
          tensor(image.subarray(b * N * 32, (b + 1) * N * 32), [1, N, 32]),
          model.options,
        ),
        model.params.get('decoder.head.weight'),
        model.params.get('decoder.head.bias'),
      ),
    ),
  );
  const all = (await logits.read()) as Float32Array;
  logits.dispose();
  return all.slice((n - 1) * V);
}
const softmaxLog = (l: Float32Array): number[] => {
  const most = Math.max(...l),
    total = l.reduce((s, x) => s + Math.exp(x - most), 0);
  return Array.from(l, (x) => x - most - Math.log(total));
};

test('greedy: every token is the uncached argmax, behind what is forced', async () => {
  using model = decoderModel();
  const forced = [[], [5, 6, 7], [9]],
    tokens = tensor(image, [B, N, 32]);
  const found = await decode(model, tokens, forced);
  tokens.dispose();
  for (let b = 0; b < B; b++) {
    const ids: number[] = [...forced[b]!];
    let sum = 0;
    while (ids.length < L && ids.at(-1) !== 1) {
      const p = softmaxLog(await uncached(model, b, ids)),
        id = p.indexOf(Math.max(...p));
      sum += p[id]!;
      ids.push(id);
    }
    expect([...found[b]!.ids]).toEqual(ids);
    expect(found[b]!.logProbability).toBeCloseTo(sum, 4);
  }
}, 60000);

test('beams: as an uncached beam search, and never worse than greedy where all beams end alike', async () => {
  using model = decoderModel();
  const K = 3,
    tokens = tensor(image, [B, N, 32]);
  const found = await decode(model, tokens, [[4], [4], [4]], { beams: K, length: 6 });
  tokens.dispose();
  for (let b = 0; b < B; b++) {
    let live = [{ ids: [4], p: 0 }];
    for (let t = 1; t < 6; t++) {
      const next = [];
      for (const x of live) {
        if (x.ids.at(-1) === 1) next.push(x);
        else
          softmaxLog(await uncached(model, b, x.ids)).forEach((p, id) =>
            next.push({ ids: [...x.ids, id], p: x.p + p }),
          );
      }
      live = next.sort((x, y) => y.p - x.p).slice(0, K);
    }
    expect([...found[b]!.ids]).toEqual(live[0]!.ids);
    expect(found[b]!.logProbability).toBeCloseTo(live[0]!.p, 4);
  }
}, 60000);

test('the probability of a found sequence is what the loss says of it', async () => {
  using model = decoderModel();
  const tokens = tensor(image, [B, N, 32]);
  const found = await decode(model, tokens, [[], [], []]);
  const sequences = found.map(({ ids }) => ({ ids, prefix: 0 }));
  const loss = scope(() =>
    noGrad(() => captionLoss(model, tokens, captionBatch([sequences], { length: L, mask: V }))),
  );
  const mean = found.reduce((s, { ids, logProbability }) => s - logProbability / ids.length, 0) / B;
  expect(await loss.item()).toBeCloseTo(mean, 4);
  loss.dispose();
  tokens.dispose();
});

test('too long a beginning, a wrong number of beginnings, no decoder', async () => {
  using model = decoderModel();
  using bare = new Siglip2Model(modelConfig('test'));
  const tokens = tensor(image, [B, N, 32]);
  await expect(decode(model, tokens, [[], [], new Int32Array(L + 1)])).rejects.toThrow(
    /at most 10 tokens/,
  );
  await expect(decode(model, tokens, [[]])).rejects.toThrow(
    /3 images need as many beginnings but there are 1/,
  );
  await expect(decode(bare, tokens, [[], [], []])).rejects.toThrow(/no decoder/);
  tokens.dispose();
});
