/**
 * The text tower: token table with learned positions, blocks, and as the release does it the state at the last
 * position (padding, for short texts: pads are attended to and there is no mask) through a biased head.
 */
import { embedding } from '../ops/embedding.js';
import { linear } from '../ops/linear.js';
import { reshape } from '../tape.js';
import type { Tensor } from '../tensor.js';
import { encoder } from './block.js';
import type { ModelConfig } from './config.js';
import type { ParamStore } from './params.js';
import { mapPool } from './pool.js';
import type { TowerOptions } from './vision.js';

/**
 * The text embedding before normalisation.
 * @param ids (B, L) i32, padded with 0 to exactly config.text.length
 * @returns (B, E)
 */
export function textTower(
  p: ParamStore,
  config: ModelConfig,
  ids: Tensor,
  o: TowerOptions,
): Tensor {
  const { heads, depth, width, pool, gelu } = config.text;
  const [B, L] = ids.shape as [number, number];
  const name = 'text_model.embeddings';
  const rows = embedding(
    ids,
    p.get(`${name}.token_embedding.weight`),
    p.get(`${name}.position_embedding.weight`),
    o.dtype,
  );
  const tokens = encoder(
    p,
    'text_model.encoder.layers',
    'text_model.final_layer_norm',
    { heads, depth, gelu, eps: config.layerNormEps, checkpoint: o.checkpoint },
    reshape(rows, [B, L, width]),
    pool === 'last' ? 'last' : 'all',
  );
  const pooled =
    pool === 'last'
      ? reshape(tokens, [B, width])
      : mapPool(p, 'text_model.pool', tokens, config.text, config.layerNormEps);
  return linear(pooled, p.get('text_model.head.weight'), p.get('text_model.head.bias'));
}
