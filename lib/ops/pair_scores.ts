import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import type { Tensor } from '../tensor.js';

const diagonal =
  op<
    [
      scores: Handle,
      x: Handle,
      y: Handle,
      logScale: Handle,
      bias: Handle,
      B: number,
      D: number,
      weight: number,
    ]
  >('pair_scores_diagonal');
const withChosen =
  op<
    [
      scores: Handle,
      x: Handle,
      y: Handle,
      chosen: Handle,
      logScale: Handle,
      bias: Handle,
      B: number,
      K: number,
      D: number,
      weight: number,
    ]
  >('pair_scores_chosen');

/** Embeddings of one super-batch by one model, and the temperature and bias of that model's sigmoid loss. */
export interface PairEmbeddings {
  /** (B, D) unit rows, f32 or bf16. */
  x: Tensor;
  /** (B, D) unit rows of x's type; row i belongs to row i of x. */
  y: Tensor;
  /** (1) f32, log of the temperature. */
  logScale: Tensor;
  /** (1) f32. */
  bias: Tensor;
}

/**
 * Adds weight · ℓ_ii, the sigmoid losses of the matching pairs, to `scores`. Not differentiable.
 * @param scores (B) f32, += in place
 * @throws ShapeError
 */
export function addDiagonalScores(scores: Tensor, e: PairEmbeddings, weight: number): void {
  const [B, D] = checkEmbeddings('addDiagonalScores', scores, e);
  diagonal(scores.handle, e.x.handle, e.y.handle, e.logScale.handle, e.bias.handle, B, D, weight);
}

/**
 * Adds weight · Σ_k (ℓ_ik + ℓ_ki) over the chosen k ≠ i to `scores`: what sample i costs next to those already chosen.
 * Not differentiable. Nothing of the size B×K is in memory.
 * @param scores (B) f32, += in place
 * @param chosen (K) i32, rows in [0, B)
 * @throws ShapeError
 */
export function addChosenScores(
  scores: Tensor,
  e: PairEmbeddings,
  chosen: Tensor,
  weight: number,
): void {
  const [B, D] = checkEmbeddings('addChosenScores', scores, e);
  checkRank('addChosenScores', 'chosen', chosen, 1);
  checkDType('addChosenScores', 'chosen', chosen, 'i32');
  if (chosen.size === 0) return;
  withChosen(
    scores.handle,
    e.x.handle,
    e.y.handle,
    chosen.handle,
    e.logScale.handle,
    e.bias.handle,
    B,
    chosen.size,
    D,
    weight,
  );
}

function checkEmbeddings(
  name: string,
  scores: Tensor,
  { x, y, logScale, bias }: PairEmbeddings,
): [B: number, D: number] {
  checkRank(name, 'x', x, 2);
  const [B, D] = x.shape as [number, number];
  check(B > 0 && D > 0, name, `x must not be empty but is [${B}, ${D}]`);
  checkDType(name, 'x', x, 'f32', 'bf16');
  checkDType(name, 'y', y, x.dtype);
  checkShape(name, 'y', y, x.shape);
  checkShape(name, 'scores', scores, [B]);
  checkShape(name, 'logScale', logScale, [1]);
  checkShape(name, 'bias', bias, [1]);
  return [B, D];
}
