/** Floating-point operations of the towers: matrix products only, a multiply-add counted as two. */
import { patchCount, type ModelConfig } from './config.js';

/** One block over `tokens` tokens of which `queries` are wanted. */
function blockFlops(width: number, mlp: number, tokens: number, queries: number): number {
  const projections = 2 * width * width * (2 * tokens + 2 * queries);  // k, v for all; q, out for the wanted
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
  return 2 * N * 3 * patch * patch * width + depth * blockFlops(width, mlp, N, N) + poolFlops(width, mlp, N);
}

/** Forward FLOPs of one text; with last-token pooling the last block computes that token only. */
export function textFlops(config: ModelConfig): number {
  const { width, depth, mlp, length, pool } = config.text;
  const last = pool === 'last' ? blockFlops(width, mlp, length, 1)
    : blockFlops(width, mlp, length, length) + poolFlops(width, mlp, length);
  return (depth - 1) * blockFlops(width, mlp, length, length) + last + 2 * width * config.embed;
}
