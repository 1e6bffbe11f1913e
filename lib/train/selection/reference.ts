/** Embeddings of whole batches without gradient, by the learner or by the frozen reference of a selection. */

import type { LoadedModel } from '../../checkpoints/load.js';
import { tokenizerOf } from '../../checkpoints/tokenizer.js';
import type { Batch } from '../../data/batch.js';
import { batchPart } from '../../data/batch.js';
import type { Siglip2Model } from '../../model/siglip2.js';
import { visionTokens } from '../../model/vision.js';
import type { PairEmbeddings } from '../../ops/pair_scores.js';
import { embedAll, partsOf } from '../../optim/grad_cache.js';
import { noGrad } from '../../tape.js';
import { scope, type Tensor, tensor } from '../../tensor.js';
import type { ReferenceCache } from './reference_cache.js';

/** Square images of a batch, (B, side, side, 3). */
export interface Squares {
  images: Uint8Array;
  side: number;
}

/** A frozen model, or what is left of it. */
export interface Reference {
  /** Of a batch; the rows are the caller's to dispose, temperature and bias are not. */
  embed(batch: Batch): Promise<PairEmbeddings>;
  dispose(): void;
}

/**
 * Embeds the images and the first captions of a batch.
 * @param ids (B, L) or longer, of the model's vocabulary
 * @param part samples that are embedded at a time
 * @param squares images of any side, for which positions are resized; null: the batch's NaFlex patches
 * @returns x and y (B, E) f32, the caller's to dispose
 */
export function embedPairs(
  model: Siglip2Model,
  batch: Batch,
  ids: Int32Array,
  part: number,
  squares: Squares | null,
): PairEmbeddings {
  const { params, config, options } = model,
    L = config.text.length,
    parts = partsOf(batch.size, part);
  const images = (from: number, to: number): Tensor => {
    if (!squares) return model.encodeNaflex(batchPart(batch, from, to).naflex!);
    const { side } = squares,
      one = side * side * 3;
    const pixels = tensor(
      squares.images.subarray(from * one, to * one),
      [to - from, side, side, 3],
      params.device,
    );
    return model.poolTokens(visionTokens(params, config, pixels, options));
  };
  const texts = (from: number, to: number): Tensor =>
    model.encodeTexts(tensor(ids.subarray(from * L, to * L), [to - from, L], params.device));
  const [x, y] = scope(() =>
    noGrad(() => [images, texts].map((encode) => embedAll(encode, batch.size, parts))),
  ) as [Tensor, Tensor];
  return { x, y, logScale: model.logitScale, bias: model.logitBias };
}

/**
 * A model that embeds every batch anew. Owns the model.
 * @param squares the batch's images at the model's side; null for NaFlex
 */
export async function modelReference(
  loaded: LoadedModel,
  part: number,
  squares: (batch: Batch) => Squares | null,
): Promise<Reference> {
  const { model } = loaded,
    tokenizer = await tokenizerOf(loaded);
  return {
    async embed(batch) {
      const ids = await tokenizer.encodeBatch(batch.texts.slice(0, batch.size));
      return embedPairs(model, batch, ids, part, squares(batch));
    },
    dispose: () => model.dispose(),
  };
}

/** What a cache holds. Disposes the model, of which it keeps temperature and bias. */
export async function cachedReference(
  cache: ReferenceCache,
  { model }: LoadedModel,
): Promise<Reference> {
  const { device } = model.params,
    E = cache.width;
  const values = await Promise.all([model.logitScale, model.logitBias].map((t) => t.item()));
  const [logScale, bias] = values.map((v) => tensor(Float32Array.of(v), [1], device)) as [
    Tensor,
    Tensor,
  ];
  model.dispose();
  return {
    embed(batch) {
      const { x, y } = cache.rows(batch),
        on = (rows: Float32Array): Tensor => tensor(rows, [batch.size, E], device);
      return Promise.resolve({ x: on(x), y: on(y), logScale, bias });
    },
    dispose: () => [logScale, bias].forEach((t) => t.dispose()),
  };
}
