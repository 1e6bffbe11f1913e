/** Embeddings of many images or texts, batch by batch, for evaluation. */
import { type NaflexImage, packNaflex } from '../image/naflex.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { noGrad } from '../tape.js';
import { scope, type Tensor, tensor } from '../tensor.js';

/** What `encode` gives for rows `from` to `to` of n, (to − from, dim) f32, `batch` rows at a time and without gradient. */
export async function inBatches(
  n: number,
  batch: number,
  dim: number,
  encode: (from: number, to: number) => Tensor,
): Promise<Float32Array> {
  const out = new Float32Array(n * dim);
  for (let from = 0; from < n; from += batch) {
    const rows = scope(() => noGrad(() => encode(from, Math.min(n, from + batch))));
    try {
      out.set((await rows.read()) as Float32Array, from * dim);
    } finally {
      rows.dispose();
    }
  }
  return out;
}

/**
 * @param images (n, S, S, 3) uint8
 * @returns (n, E) unit rows
 */
export function embedImages(
  model: Siglip2Model,
  images: Uint8Array,
  n: number,
  batch = 64,
): Promise<Float32Array> {
  const S = model.config.vision.imageSize,
    one = S * S * 3;
  return inBatches(n, batch, model.config.embed, (from, to) =>
    model.encodeImages(
      tensor(images.subarray(from * one, to * one), [to - from, S, S, 3], model.params.device),
    ),
  );
}

/**
 * Embeddings of NaFlex images, as many at a time as have at most `tokens` patches together, but at least one.
 * @param images from `naflexImage`
 * @returns (n, E) unit rows
 */
export async function embedNaflex(
  model: Siglip2Model,
  images: readonly NaflexImage[],
  tokens = 16384,
): Promise<Float32Array> {
  const E = model.config.embed,
    out = new Float32Array(images.length * E);
  for (let from = 0, to = 0; from < images.length; from = to) {
    for (let sum = 0; to < images.length; to++) {
      sum += images[to]!.rows * images[to]!.columns;
      if (sum > tokens && to > from) break;
    }
    const batch = packNaflex(images.slice(from, to));
    out.set(await inBatches(1, 1, (to - from) * E, () => model.encodeNaflex(batch)), from * E);
  }
  return out;
}

/**
 * @param ids (n, L) token ids
 * @returns (n, E) unit rows
 */
export function embedTexts(
  model: Siglip2Model,
  ids: Int32Array,
  n: number,
  batch = 256,
): Promise<Float32Array> {
  const L = model.config.text.length;
  return inBatches(n, batch, model.config.embed, (from, to) =>
    model.encodeTexts(tensor(ids.subarray(from * L, to * L), [to - from, L], model.params.device)),
  );
}
