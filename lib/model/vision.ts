/**
 * The vision tower: patch embedding with learned positions, blocks, MAP pooling (SigLIP 2 §2.1); and its NaFlex form,
 * in which images of any shape are packed into one sequence (§2.4.2).
 */
import { check } from '../check.js';
import { checkNaflexBatch, type NaflexBatch } from '../image/naflex.js';
import type { Packed } from '../ops/attention.js';
import { maskTokens } from '../ops/mask_tokens.js';
import { patchEmbed } from '../ops/patch_embed.js';
import { patchEmbedPacked } from '../ops/patch_embed_packed.js';
import { positionResize } from '../ops/position_resize.js';
import { resizeBilinear } from '../ops/resize_bilinear.js';
import { reshape } from '../tape.js';
import { type Tensor, tensor } from '../tensor.js';
import { encoder } from './block.js';
import { gridSide, type ModelConfig } from './config.js';
import type { ParamStore } from './params.js';
import { mapPool } from './pool.js';

/** How a tower is run. */
export interface TowerOptions {
  /** Type of the activations. */
  dtype: 'f32' | 'bf16';
  /** Gradient checkpointing per block. */
  checkpoint: boolean;
}

/** Which patches the model does not see: the masked half of a masked-prediction view. */
export interface PatchMask {
  /** (B, N) u8, nonzero where the patch gives way to the mask token. */
  mask: Tensor;
  /** (D), what stands there instead. */
  token: Tensor;
}

const EMBEDDINGS = 'vision_model.embeddings';

/**
 * The learned positions for a grid of patches: the table itself at the config's image size, otherwise the table resized
 * (antialiased bilinear, half-pixel centres), with its gradient.
 * @returns (rows · columns, D)
 */
export function visionPositions(
  p: ParamStore,
  config: ModelConfig,
  rows: number,
  columns: number,
): Tensor {
  const table = p.get(`${EMBEDDINGS}.position_embedding.weight`),
    side = gridSide(config),
    D = config.vision.width;
  if (rows === side && columns === side) return table;
  return reshape(resizeBilinear(reshape(table, [1, side, side, D]), [rows, columns]), [
    rows * columns,
    D,
  ]);
}

/**
 * Tokens after the final LayerNorm.
 * @param pixels (B, H, W, 3) uint8, RGB; sides other than the config's get resized positions
 * @param masked patches to hide
 * @returns (B, N, D), N = floor(H / patch) · floor(W / patch), row-major
 */
export function visionTokens(
  p: ParamStore,
  config: ModelConfig,
  pixels: Tensor,
  o: TowerOptions,
  masked?: PatchMask,
): Tensor {
  const { heads, depth, patch, gelu } = config.vision;
  const [rows, columns] = [1, 2].map((axis) => Math.floor((pixels.shape[axis] ?? 0) / patch)) as [
    number,
    number,
  ];
  check(
    rows > 0 && columns > 0,
    'visionTokens',
    `pixels [${pixels.shape.join(', ')}] hold no patch of ${patch}×${patch}`,
  );
  const position = visionPositions(p, config, rows, columns);
  const x = patchEmbed(
    pixels,
    p.get(`${EMBEDDINGS}.patch_embedding.weight`),
    p.get(`${EMBEDDINGS}.patch_embedding.bias`),
    position,
    { patch, dtype: o.dtype },
  );
  const seen = masked ? maskTokens(x, masked.token, position, masked.mask) : x;
  return encoder(
    p,
    'vision_model.encoder.layers',
    'vision_model.post_layernorm',
    { heads, depth, gelu, eps: config.layerNormEps, checkpoint: o.checkpoint },
    seen,
  );
}

/**
 * Pools tokens into the image embedding before normalisation.
 * @param tokens (B, N, D) from `visionTokens`
 * @returns (B, E)
 */
export function visionPool(p: ParamStore, config: ModelConfig, tokens: Tensor): Tensor {
  return mapPool(p, 'vision_model.head', tokens, config.vision, config.layerNormEps);
}

/**
 * The image embedding before normalisation.
 * @param pixels (B, H, W, 3) uint8
 * @returns (B, E)
 */
export function visionTower(
  p: ParamStore,
  config: ModelConfig,
  pixels: Tensor,
  o: TowerOptions,
): Tensor {
  return visionPool(p, config, visionTokens(p, config, pixels, o));
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
export function naflexTokens(
  p: ParamStore,
  config: ModelConfig,
  batch: NaflexBatch,
  o: TowerOptions,
): PackedTokens {
  const { heads, depth, patch, gelu } = config.vision;
  const { images, tokens, longest } = checkNaflexBatch(batch, patch);
  const name = 'vision_model.embeddings',
    device = p.device;
  const packed = { offsets: tensor(batch.offsets, [images + 1], device), longest };
  const position = positionResize(p.get(`${name}.position_embedding.weight`), batch.shapes);
  const x = patchEmbedPacked(
    tensor(batch.patches, [tokens, patch * patch * 3], device),
    p.get(`${name}.patch_embedding.weight`),
    p.get(`${name}.patch_embedding.bias`),
    position,
    { dtype: o.dtype },
  );
  const y = encoder(
    p,
    'vision_model.encoder.layers',
    'vision_model.post_layernorm',
    { heads, depth, gelu, eps: config.layerNormEps, checkpoint: o.checkpoint, packed },
    x,
  );
  return { tokens: y, packed };
}
