/**
 * Referring expressions on scenes (RefCOCO's measure, SigLIP 2 Table 5): the decoder writes the box of a phrase, which
 * counts when its IoU with the object's box is at least 0.5. `referringProbe` is the paper's protocol for judging an
 * encoder, whatever it was trained with: the encoder is frozen and a fresh decoder learns the task from its tokens.
 */

import type { LoadedModel } from '../checkpoints/load.js';
import { tokenizerOf, tokenizerOptions } from '../checkpoints/tokenizer.js';
import { DataLoader } from '../data/loader.js';
import { openSource } from '../data/source.js';
import { ConfigError } from '../errors.js';
import { boxesOfPhrases } from '../inference/localize.js';
import { captionBatch, captionLoss } from '../losses/caption.js';
import { Siglip2Model } from '../model/siglip2.js';
import { AdamW } from '../optim/optimizer.js';
import { scheduleMultiplier } from '../optim/schedule.js';
import { backward, noGrad } from '../tape.js';
import { scope, tensor } from '../tensor.js';
import { type Box, type BoxFormat, iou } from '../text/regions.js';
import type { SceneSet } from './scenes.js';

/** Fractions in [0, 1]. */
export interface ReferringScores {
  /** Objects asked for. */
  queries: number;
  /** Answers with an IoU of at least 0.5. */
  accuracy: number;
  meanIou: number;
  /** `accuracy` of always answering the mean of the right boxes. */
  constant: number;
}

export interface ReferringOptions {
  /** As in training; default LocCa's. */
  boxes?: BoxFormat;
}

export interface ReferringProbeOptions extends ReferringOptions {
  /** Default 1000. */
  steps?: number;
  /** Default 32. */
  batch?: number;
  /** Peak learning rate; warm-up over a tenth, then a cosine to 0. Default 2e-3. */
  lr?: number;
  seed?: number;
}

/** Queries in one call of the model. */
const QUERIES = 128;

/**
 * Asks a model's own decoder for the box of every object.
 * @throws ConfigError when the model has no decoder
 */
export async function referringAccuracy(
  loaded: LoadedModel,
  scenes: SceneSet,
  options: ReferringOptions = {},
): Promise<ReferringScores> {
  const { model } = loaded,
    S = scenes.size,
    one = S * S * 3;
  needsDecoder(model);
  const tokenizer = await tokenizerOf(loaded);
  const queries = scenes.regions.flatMap((regions, scene) =>
    regions.map(({ box, phrase }) => ({ scene, box, phrase })),
  );
  const overlaps: number[] = [];
  for (let from = 0; from < queries.length; from += QUERIES) {
    const some = queries.slice(from, from + QUERIES),
      pixels = new Uint8Array(some.length * one);
    some.forEach(({ scene }, i) =>
      pixels.set(scenes.images.subarray(scene * one, (scene + 1) * one), i * one),
    );
    const image = scope(() =>
      noGrad(() => model.imageTokens(tensor(pixels, [some.length, S, S, 3], model.params.device))),
    );
    try {
      const found = await boxesOfPhrases(
        model,
        tokenizer,
        image,
        some.map(({ phrase }) => phrase),
        options,
      );
      found.forEach((box, i) => overlaps.push(box ? iou(box, some[i]!.box) : 0));
    } finally {
      image.dispose();
    }
  }
  const n = queries.length,
    share = (values: readonly number[]): number => values.filter((v) => v >= 0.5).length / n;
  const mean = [0, 1, 2, 3].map(
    (c) => queries.reduce((sum, q) => sum + q.box[c as 0], 0) / n,
  ) as unknown as Box;
  return {
    queries: n,
    accuracy: share(overlaps),
    meanIou: overlaps.reduce((a, b) => a + b, 0) / n,
    constant: share(queries.map(({ box }) => iou(mean, box))),
  };
}

/**
 * Trains a fresh decoder of the model's shape on the frozen tokens of a scenes split's training part, then asks it.
 * @param folder scenes made by `buildScenes`
 * @throws ConfigError when the model's config has no decoder
 */
export async function referringProbe(
  loaded: LoadedModel,
  folder: string,
  test: SceneSet,
  options: ReferringProbeOptions = {},
): Promise<ReferringScores> {
  const { steps = 1000, batch: size = 32, lr = 2e-3, seed = 0, ...format } = options;
  const { config, params } = loaded.model;
  const decoder = needsDecoder(loaded.model),
    S = config.vision.imageSize;
  const model = new Siglip2Model(config, {
    device: params.device,
    dtype: loaded.model.options.dtype,
    train: true,
  });
  // No decay: with gradients of zero the encoder then keeps its very bits.
  const optimizer = new AdamW(model.params, {
    lr,
    weightDecay: 0,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: null,
  });
  let loader: DataLoader | undefined;
  try {
    model.initialize(seed);
    for (const [name, { data }] of await params.read())
      if (!name.startsWith('decoder.')) model.params.write(name, data);
    model.params.refreshCopy();
    loader = new DataLoader(await openSource({ type: 'scenes', path: folder, split: 'train' }), {
      batchSize: size,
      seed,
      size: S,
      tokenizer: tokenizerOptions(loaded),
      cacheBytes: 2 ** 29,
      decoder: { length: decoder.length, ...format },
    });
    for (let step = 0; step < steps; step++) {
      const batch = await loader.next(),
        [aref] = batch.sequences!;
      model.params.zeroGrad();
      const loss = scope(() => {
        const tokens = noGrad(() =>
          model.imageTokens(tensor(batch.images, [size, S, S, 3], params.device)),
        );
        const told = captionLoss(
          model,
          tokens,
          captionBatch([aref!], { length: decoder.length, mask: config.text.vocab }),
        );
        backward([[told, 1]]);
        return told;
      });
      optimizer.update(
        scheduleMultiplier({ kind: 'cosine', total: steps, warmup: Math.ceil(steps / 10) }, step),
      );
      await loss.read(); // waits, so that the queue stays short
      loss.dispose();
    }
    return await referringAccuracy({ ...loaded, model }, test, format);
  } finally {
    await loader?.close();
    optimizer.dispose();
    model.dispose();
  }
}

function needsDecoder({ config }: Siglip2Model): NonNullable<typeof config.decoder> {
  if (!config.decoder)
    throw new ConfigError(
      `${config.name} has no decoder to ask for boxes; set model.decoder in the config it is trained with`,
    );
  return config.decoder;
}
