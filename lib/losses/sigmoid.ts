/** The contrastive objective: model outputs to a scalar. Training and evaluation call the same function. */
import type { Siglip2Model } from '../model/siglip2.js';
import { sigmoidLoss } from '../ops/sigmoid_loss.js';
import type { Tensor } from '../tensor.js';

/**
 * Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, eq. 1–2) of a batch with one or more captions per image: the loss of
 * each caption set against all images.
 * @param images (B, E) unit rows
 * @param texts one (B, E) tensor of unit rows per caption; row i belongs to image i
 * @returns one loss (1) per caption set, each to be weighted in backward(), so that the weights' sum is 1
 */
export function contrastiveLoss(
  model: Siglip2Model,
  images: Tensor,
  texts: readonly Tensor[],
): Tensor[] {
  return texts.map((t) => sigmoidLoss(images, t, model.logitScale, model.logitBias));
}
