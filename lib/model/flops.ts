/** Floating-point operations of the model: matrix products only, a multiply-add counted as two. */
import { type ModelConfig, patchCount } from './config.js';

/** One block over `tokens` tokens of which `queries` are wanted. */
function blockFlops(width: number, mlp: number, tokens: number, queries: number): number {
  const projections = 2 * width * width * (2 * tokens + 2 * queries); // k, v for all; q, out for the wanted
  const attention = 4 * queries * tokens * width;
  return projections + attention + 4 * queries * width * mlp;
}

/** The pooling head: keys and values of all tokens, one query. The probe's own projection is shared by the batch. */
function poolFlops(width: number, mlp: number, tokens: number): number {
  return 4 * width * width * tokens + 4 * tokens * width + 2 * width * width + 4 * width * mlp;
}

/** Forward FLOPs of one image of N tokens; by default of the config's size. Resizing NaFlex positions is not counted. */
export function imageFlops(config: ModelConfig, N = patchCount(config)): number {
  const { width, depth, mlp, patch } = config.vision;
  return (
    2 * N * 3 * patch * patch * width +
    depth * blockFlops(width, mlp, N, N) +
    poolFlops(width, mlp, N)
  );
}

/** Forward FLOPs of one text; with last-token pooling the last block computes that token only. */
export function textFlops(config: ModelConfig): number {
  const { width, depth, mlp, length, pool } = config.text;
  const last =
    pool === 'last'
      ? blockFlops(width, mlp, length, 1)
      : blockFlops(width, mlp, length, length) + poolFlops(width, mlp, length);
  return (depth - 1) * blockFlops(width, mlp, length, length) + last + 2 * width * config.embed;
}

/** Forward FLOPs of one sequence through the decoder over N image tokens, the logits of all its tokens included. */
export function decoderFlops(config: ModelConfig, N = patchCount(config)): number {
  if (!config.decoder) return 0;
  const { width: W, depth, mlp, length: L } = config.decoder,
    Dv = config.vision.width;
  const cross = 4 * L * W * W + 4 * N * Dv * W + 4 * L * N * W; // q and out, k and v, attention
  return depth * (blockFlops(W, mlp, L, L) + cross) + 2 * L * W * config.text.vocab;
}

/** FLOPs of the sigmoid loss of B pairs with all its gradients: the products that give logits, dx and dy. */
export function sigmoidLossFlops(config: ModelConfig, B: number): number {
  return 6 * B * B * config.embed;
}
