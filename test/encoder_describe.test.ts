/** Captions and boxes through the encoder: against the plain decoding of lib/model, and independent of the batch. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { loadModel } from '../lib/checkpoints/load.js';
import { tokenizerOf } from '../lib/checkpoints/tokenizer.js';
import { location, phrasesFor } from '../lib/encoder/describe.js';
import { type Encoder, load } from '../lib/encoder/encoder.js';
import { decode } from '../lib/model/decode.js';
import type { Siglip2Model } from '../lib/model/siglip2.js';
import { resizeImage } from '../lib/native.js';
import { noGrad } from '../lib/tape.js';
import { batchInvariant, liveCount, scope, synchronize, tensor } from '../lib/tensor.js';
import { decoderSequences } from '../lib/text/sequences.js';
import { errorOf } from './data/support.js';
import { smallCheckpoint } from './encoder_support.js';
import { normal } from './harness.js';

let folder: string, model: Encoder;
const decoder = { depth: 2, length: 24 };
const pixels = (i: number, width = 40, height = 24) => ({
  data: Uint8Array.from(
    { length: width * height * 3 },
    (_, k) => (k * 31 + i * 97 + (k >> 5) * (i + 1)) & 255,
  ),
  width,
  height,
  channels: 3 as const,
});
const images = [
  pixels(1),
  pixels(2, 9, 50),
  pixels(3, 64, 64),
  pixels(4, 30, 31),
  pixels(5, 80, 20),
];

/** A head of its own, because decoders begin with zeros there and would write the same for every image. */
function write({ params }: Siglip2Model): void {
  const head = params.get('decoder.head.weight');
  head.write(normal(head.size, 9, 0.3));
}

beforeAll(async () => {
  folder = await smallCheckpoint({ decoder }, write);
  model = await load(folder);
});
afterAll(async () => {
  model.dispose();
  await synchronize();
  expect(liveCount()).toBe(0);
});

test('captions are what decoding the image tokens behind "cap:" gives', async () => {
  const captions = await model.caption(images, { beams: 2, batchSize: 2 });
  const plain = await loadModel(folder),
    words = await tokenizerOf(plain),
    S = model.imageSize!;
  const [begin] = await decoderSequences(words, [{ task: 'cap' }], decoder.length, { query: true });
  const expected: string[] = [];
  for (const { data, width, height } of images) {
    const tokens = scope(() =>
      noGrad(() =>
        batchInvariant('cpu', () =>
          plain.model.imageTokens(tensor(resizeImage(data, height, width, 3, S, S), [1, S, S, 3])),
        ),
      ),
    );
    const [found] = await decode(plain.model, tokens, [begin!.ids], { beams: 2 });
    expected.push((await words.decode(found!.ids.subarray(begin!.ids.length))).trim());
    tokens.dispose();
  }
  plain.model.dispose();
  expect(captions).toEqual(expected);
  expect(new Set(captions).size).toBeGreaterThan(1);
  expect(await model.caption(images[2]!, { beams: 2 })).toEqual([captions[2]]);
});

test('NaFlex: padding beside longer images changes nothing', async () => {
  using flexible = await load(await smallCheckpoint({ naflex: true, decoder }, write), {
    maxPatches: 24,
  });
  const together = await flexible.caption(images);
  expect(await flexible.caption(images, { batchSize: 1 })).toEqual(together);
  expect(new Set(together).size).toBeGreaterThan(1);
});

test('a box is given in shares and in pixels; phrases are one or one each', async () => {
  expect(location([0, 0.1, 0.5, 1], 640, 427)).toEqual({
    box: [0, 0.1, 0.5, 1],
    pixels: [0, 43, 320, 427],
  });
  expect(location(undefined, 640, 427)).toBeNull();
  expect(phrasesFor('a', 2)).toEqual(['a', 'a']);
  for (const place of await model.locate(images, 'a cat'))
    expect(place === null || place.pixels.length === 4).toBe(true);
  for (const bad of [['a'], ['a', 'b', 'c', 'd', ' ']])
    expect((await errorOf(() => model.locate(images, bad))).code).toBe('ERR_CONFIG');
});

test('no decoder, a wrong option, an abort', async () => {
  using bare = await load(await smallCheckpoint());
  expect((await errorOf(() => bare.caption(images))).message).toContain('no caption decoder');
  expect((await errorOf(() => model.caption(images, { beams: 0 }))).code).toBe('ERR_CONFIG');
  expect(
    (await errorOf(() => model.caption(images, { output: 'f32' } as object))).message,
  ).toContain('"output"');
  const stop = new AbortController(),
    many = Array<(typeof images)[0]>(64).fill(images[0]!);
  const running = model.caption(many as typeof images, { beams: 4, signal: stop.signal });
  setTimeout(() => stop.abort(new Error('enough')), 20);
  await expect(running).rejects.toThrow('enough');
  expect((await model.caption(images[0]!)).length).toBe(1);
});
