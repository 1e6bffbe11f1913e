/**
 * The vision tower: patch embedding with learned positions, blocks, MAP pooling (SigLIP 2 §2.1); and its NaFlex form,
 * in which images of any shape are packed into one sequence (§2.4.2).
 */
import { checkNaflexBatch, type NaflexBatch } from '../data/naflex.js';
import type { Packed } from '../ops/attention.js';
import { patchEmbed } from '../ops/patch_embed.js';
import { patchEmbedPacked } from '../ops/patch_embed_packed.js';
import { positionResize } from '../ops/position_resize.js';
import { tensor, type Tensor } from '../tensor.js';
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

/** Tokens of many images, one image after the other without padding. */
export interface PackedTokens {
  /** (T, D) */
  tokens: Tensor;
  /** Where each image begins and ends; what attention over the tokens needs. Lives in the caller's scope. */
  packed: Packed;
}

/**
 * Tokens of NaFlex images after the final LayerNorm.
 * @param batch S images, T patches in all, of `config.vision.patch` pixels a side
 * @returns tokens (T, D); each image row-major
 * @throws ShapeError when the parts of the batch do not fit together
 */
export function naflexTokens(p: ParamStore, config: ModelConfig, batch: NaflexBatch, o: TowerOptions): PackedTokens {
  const { heads, depth, patch } = config.vision;
  const { images, tokens, longest } = checkNaflexBatch(batch, patch);
  const name = 'vision_model.embeddings', device = p.device;
  const packed = { offsets: tensor(batch.offsets, [images + 1], device), longest };
  const position = positionResize(p.get(`${name}.position_embedding.weight`), batch.shapes);
  const x = patchEmbedPacked(tensor(batch.patches, [tokens, patch * patch * 3], device),
    p.get(`${name}.patch_embedding.weight`), p.get(`${name}.patch_embedding.bias`), position, { dtype: o.dtype });
  const y = encoder(p, 'vision_model.encoder.layers', 'vision_model.post_layernorm',
    { heads, depth, eps: config.layerNormEps, checkpoint: o.checkpoint, packed }, x);
  return { tokens: y, packed };
}
