import { afterEach, expect, test } from '@jest/globals';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { AdamW } from '../../lib/optim/optimizer.js';
import { liveCount, scope, type Tensor, tensor } from '../../lib/tensor.js';
import { checkTrainConfig } from '../../lib/train/config.js';
import { Objectives } from '../../lib/train/objectives.js';
import { errorOf } from '../data/support.js';
import { generator } from '../harness.js';

afterEach(() => expect(liveCount()).toBe(0));

const run = {
  out: 'unused',
  model: { variant: 'test' },
  batch: 6,
  total: 1,
  data: { source: { type: 'folder', path: 'unused' } },
};
const config = (
  captionWeights?: number[],
  pick = ['en', 'other'],
): ReturnType<typeof checkTrainConfig> =>
  checkTrainConfig({
    ...run,
    data: { ...run.data, captions: { pick } },
    objectives: { sigmoid: captionWeights ? { captionWeights } : {} },
  });

/** Loss and gradient of one batch with these captions, by their number. */
async function gradient(
  captions: readonly number[],
  captionWeights?: number[],
): Promise<{ loss: number; grads: Float32Array }> {
  const shape = modelConfig('test', { vocab: 61 }),
    B = run.batch,
    S = shape.vision.imageSize,
    L = shape.text.length,
    r = generator(5);
  const pixels = Uint8Array.from({ length: B * S * S * 3 }, () => 127.5 * (1 + r()));
  const ids = [0, 1].map(() =>
    Int32Array.from({ length: B * L }, (_, i) => (i % L < 5 ? 2 + ((r() + 1) / 2) * 59 : 0)),
  );
  const model = new Siglip2Model(shape, { train: true });
  model.initialize(3);
  const { warmup: _, schedule: __, ...adam } = config().optimizer;
  const optimizer = new AdamW(model.params, adam);
  const objectives = new Objectives(
    config(
      captionWeights,
      captions.map(() => 'any'),
    ),
    model,
    optimizer,
  );
  model.params.zeroGrad();
  const [figures] = scope(() => {
    const images: Tensor = tensor(pixels, [B, S, S, 3]);
    return [
      objectives.contrastFigures(
        objectives.contrast(
          images,
          captions.map((c) => tensor(ids[c]!, [B, L])),
        ),
      ),
    ];
  });
  const { total: loss } = await figures!,
    grads = (await model.params.grads!.read()) as Float32Array;
  for (const made of [objectives, optimizer, model]) made.dispose();
  return { loss, grads };
}

test('captions of an image count by their weights', async () => {
  const first = await gradient([0]),
    second = await gradient([1]);
  for (const [weights, share] of [
    [[3, 1], 0.75],
    [undefined, 0.5],
  ] as const) {
    const both = await gradient([0, 1], weights && [...weights]);
    expect(both.loss).toBeCloseTo(share * first.loss + (1 - share) * second.loss, 5);
    const expected = first.grads.map((g, i) => share * g + (1 - share) * second.grads[i]!);
    const largest = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    const error = both.grads.reduce((a, g, i) => Math.max(a, Math.abs(g - expected[i]!)), 0);
    expect(error).toBeLessThan(1e-5 * largest);
  }
});

test('there are as many weights as captions', async () => {
  expect((await errorOf(() => config([1, 2, 3]))).message).toBe(
    'config: objectives.sigmoid.captionWeights is [1,2,3]: data.captions.pick has 2 captions for each image; give as many weights',
  );
});
