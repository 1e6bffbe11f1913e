/** Without a backward to come a tower needs the memory of one block, whatever its depth. */
import { afterAll, expect, test } from '@jest/globals';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { linear } from '../../lib/ops/linear.js';
import { clearTape, noGrad, requireGrad } from '../../lib/tape.js';
import {
  liveCount,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
} from '../../lib/tensor.js';
import { normal } from '../harness.js';

afterAll(() => expect(liveCount()).toBe(0));

/** Bytes beyond the weights at the highest point of one image batch and one text batch. */
async function peaks(depth: number, checkpoint: boolean): Promise<[images: number, texts: number]> {
  const config = modelConfig('test', { vision: { depth }, text: { depth } });
  using model = new Siglip2Model(config, { checkpoint });
  model.initialize(1);
  const S = config.vision.imageSize,
    L = config.text.length,
    result: number[] = [];
  const pixels = new Uint8Array(8 * S * S * 3).fill(9),
    ids = new Int32Array(8 * L).fill(3);
  const images = () => model.encodeImages(tensor(pixels, [8, S, S, 3])),
    texts = () => model.encodeTexts(tensor(ids, [8, L]));
  for (const encode of [images, texts]) {
    await synchronize();
    const before = memory().live;
    resetPeak();
    const rows = scope(() => noGrad(encode));
    await rows.read();
    rows.dispose();
    result.push(memory().peak - before);
  }
  return result as [number, number];
}

test.each([false, true])(
  'ten blocks need no more than three (checkpointing: %s)',
  async (checkpoint) => {
    const [images, texts] = await peaks(3, checkpoint),
      [manyImages, manyTexts] = await peaks(10, checkpoint);
    expect([manyImages, manyTexts]).toEqual([images, texts]);
  },
);

test.each(['f32', 'bf16'] as const)(
  'GELU in place gives the bits that training sees (%s)',
  async (dtype) => {
    const [M, N, K] = [5, 70, 32],
      array = (n: number, seed: number) => {
        const values = normal(n, seed);
        return dtype === 'f32'
          ? values
          : new Uint16Array(values.buffer).filter((_, i) => i % 2 === 1);
      };
    const run = (bias: boolean): Tensor =>
      scope(() => {
        const x = requireGrad(tensor(array(M * K, 1), [M, K])),
          weight = tensor(array(N * K, 2), [N, K]);
        return linear(x, weight, bias ? tensor(normal(N, 3), [N]) : null, { gelu: true });
      });
    for (const bias of [false, true]) {
      const kept = run(bias),
        inPlace = noGrad(() => run(bias));
      expect(await inPlace.read()).toEqual(await kept.read());
      clearTape();
      kept.dispose();
      inPlace.dispose();
    }
  },
);
