/** The vision tower: patch embedding with learned positions, blocks, MAP pooling (SigLIP 2 §2.1). */
import { patchEmbed } from '../ops/patch_embed.js';
import type { Tensor } from '../tensor.js';
import { encoder } from './block.js';
import type { ModelConfig } from './config.js';
import type { ParamStore } from './params.js';
import { mapPool } from './pool.js';

/** How a tower is run. */
export interface TowerOptions {
  /** Type of the activations. */
  dtype: 'f32' | 'bf16';
  /** Gradient checkpointing per block. */
  checkpoint: boolean;
}

/**
 * Tokens after the final LayerNorm.
 * @param pixels (B, S, S, 3) uint8, RGB
 * @returns (B, N, D), N = floor(S / patch)², row-major
 */
export function visionTokens(p: ParamStore, config: ModelConfig, pixels: Tensor, o: TowerOptions): Tensor {
  const { heads, depth } = config.vision;
  const name = 'vision_model.embeddings';
  const x = patchEmbed(pixels, p.get(`${name}.patch_embedding.weight`), p.get(`${name}.patch_embedding.bias`),
    p.get(`${name}.position_embedding.weight`), { patch: config.vision.patch, dtype: o.dtype });
  return encoder(p, 'vision_model.encoder.layers', 'vision_model.post_layernorm',
    { heads, depth, eps: config.layerNormEps, checkpoint: o.checkpoint }, x);
}

/**
 * The image embedding before normalisation.
 * @param pixels (B, S, S, 3) uint8
 * @returns (B, E)
 */
export function visionTower(p: ParamStore, config: ModelConfig, pixels: Tensor, o: TowerOptions): Tensor {
  return mapPool(p, 'vision_model.head', visionTokens(p, config, pixels, o), config.vision.heads, config.layerNormEps);
}
