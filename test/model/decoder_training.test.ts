/** The decoder learns what it is told, writes it again, and goes to disk and back with its model. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { loadModel, modelFiles } from '../../lib/checkpoints/load.js';
import { load } from '../../lib/encoder/encoder.js';
import { writeFolderAtomic } from '../../lib/fs/files.js';
import { boxesOfPhrases, captionImages, phrasesOfBoxes } from '../../lib/inference/localize.js';
import { captionBatch, captionLoss, parallelCount } from '../../lib/losses/caption.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { AdamW } from '../../lib/optim/optimizer.js';
import { Random } from '../../lib/random.js';
import { backward, noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import type { Box } from '../../lib/text/regions.js';
import { decoderSequences } from '../../lib/text/sequences.js';
import { collectIds, loadTokenizer } from '../../lib/text/tokenizer.js';
import { VocabMap } from '../../lib/text/vocab.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-decoder-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

test('four images by heart: caption, box from phrase, phrase from box; then saved and loaded', async () => {
  const phrases = ['a red apple', 'two dogs', 'ein Baum', 'the moon'];
  const boxes: Box[] = [
    [0, 0.1, 0.5, 0.6],
    [0.2, 0.2, 0.9, 0.8],
    [0.5, 0, 1, 1],
    [0.25, 0.25, 0.75, 0.5],
  ];
  const say = (task: 'cap' | 'aref' | 'gcap') =>
    phrases.map((text, i) => ({ task, text, ...(task === 'cap' ? {} : { box: boxes[i]! }) }));
  const full = await loadTokenizer(),
    L = 40;
  const all = (
    await Promise.all(
      (['aref', 'gcap', 'cap'] as const).map((t) => decoderSequences(full, say(t), L)),
    )
  ).flat();
  const vocab = VocabMap.fromIds([
    ...all.flatMap((s) => [...s!.ids]),
    ...(await collectIds(full, phrases)),
  ]);
  const dense = all.map((s) => ({ prefix: s!.prefix, ids: vocab.map(s!.ids.slice()) }));

  const config = modelConfig('test', { vocab: vocab.size, decoder: { length: L } });
  using model = new Siglip2Model(config, { train: true });
  model.initialize(1);
  const S = config.vision.imageSize;
  const pixels = Uint8Array.from(
    { length: 4 * S * S * 3 },
    (_, i) => 128 + 100 * Math.sin((i % 97) * (1 + Math.floor(i / (S * S * 3)))),
  );
  const optimizer = new AdamW(model.params, {
    lr: 3e-3,
    weightDecay: 0,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: null,
  });
  let first = 0,
    last = 0;
  for (let step = 0; step < 200; step++) {
    model.params.zeroGrad();
    const parallel = parallelCount(4, 0.5, new Random(1, step));
    const loss = scope(() => {
      const l = captionLoss(
        model,
        model.imageTokens(tensor(pixels, [4, S, S, 3])),
        captionBatch([dense.slice(0, 4), dense.slice(4, 8), dense.slice(8)], {
          length: L,
          mask: vocab.size,
          parallel,
        }),
      );
      backward(l);
      optimizer.update(1);
      return l;
    });
    if (step === 0 || step === 199) {
      const sum = ((await loss.read()) as Float32Array).reduce((a, b) => a + b);
      if (step === 0) first = sum;
      last = sum;
    }
    loss.dispose();
  }
  // Each task starts at the logarithm of the vocabulary, for the projection starts at zero.
  expect(first).toBeCloseTo(3 * Math.log(vocab.size), 4);
  expect(last).toBeLessThan(0.3 * first);

  const words = await loadTokenizer({ vocab });
  const tokens = scope(() => noGrad(() => model.imageTokens(tensor(pixels, [4, S, S, 3]))));
  (await boxesOfPhrases(model, words, tokens, phrases)).forEach((b, i) =>
    boxes[i]!.forEach((v, k) => expect(b?.[k as 0]).toBeCloseTo(v, 6)),
  );
  expect(await phrasesOfBoxes(model, words, tokens, boxes)).toEqual(
    phrases.map((p) => p.toLowerCase()),
  );
  const captions = await captionImages(model, words, tokens, { beams: 2 });
  expect(captions).toEqual(phrases.map((p) => p.toLowerCase()));

  const path = join(folder, 'model');
  await writeFolderAtomic(path, (f) =>
    modelFiles(f, model, { vocab, tokenizer: null, lowercase: 'ascii', ema: null }),
  );
  const { model: loaded } = await loadModel(path);
  expect(loaded.config.decoder).toEqual(config.decoder);
  expect(await captionImages(loaded, words, tokens, { beams: 2 })).toEqual(captions);
  loaded.dispose();
  tokens.dispose();

  using encoder = await load(path);
  const images = phrases.map((_, i) => {
    const data = pixels.subarray(i * S * S * 3, (i + 1) * S * S * 3);
    return { data, width: S, height: S, channels: 3 as const };
  });
  expect(await encoder.caption(images, { beams: 2, batchSize: 3 })).toEqual(captions);
  const places = await encoder.locate(images, phrases, { batchSize: 3 });
  places.forEach((place, i) =>
    boxes[i]!.forEach((v, k) => {
      expect(place!.box[k as 0]).toBeCloseTo(v, 6);
      expect(place!.pixels[k as 0]).toBe(Math.round(v * S));
    }),
  );
  optimizer.dispose();
}, 240000);
