/** The two-tower model: config, parameters and the two encoders. */
import { checkShape } from '../check.js';
import { cast } from '../ops/elementwise.js';
import { l2Normalize } from '../ops/l2_normalize.js';
import type { Param } from '../tape.js';
import type { DeviceName, Tensor } from '../tensor.js';
import { parameterShapes, type ModelConfig } from './config.js';
import { ParamStore } from './params.js';
import { textTower } from './text.js';
import { mapPool } from './pool.js';
import { visionTokens, visionTower, type TowerOptions } from './vision.js';

export interface ModelOptions {
  device?: DeviceName;
  /** Type of activations and matrix inputs; weights, statistics and losses are f32 either way. Default f32. */
  dtype?: 'f32' | 'bf16';
  /** Whether gradients are kept. Default false. */
  train?: boolean;
  /** Gradient checkpointing per block: less memory for one more forward. Default false. */
  checkpoint?: boolean;
}

/** A SigLIP 2 model with fixed resolution. Parameters carry their Hugging Face names. */
export class Siglip2Model {
  readonly params: ParamStore;
  readonly options: TowerOptions;

  constructor(readonly config: ModelConfig, options: ModelOptions = {}) {
    this.params = new ParamStore(parameterShapes(config), options);
    this.options = { dtype: options.dtype ?? 'f32', checkpoint: options.checkpoint ?? false };
  }

  /** log of the temperature, (1). */
  get logitScale(): Param { return this.params.get('logit_scale'); }
  /** Logit bias, (1). */
  get logitBias(): Param { return this.params.get('logit_bias'); }

  /**
   * Image embeddings with unit norm.
   * @param pixels (B, S, S, 3) uint8 RGB, S = config.vision.imageSize
   * @returns (B, E) f32
   * @throws ShapeError
   */
  encodeImages(pixels: Tensor): Tensor {
    const S = this.config.vision.imageSize;
    checkShape('encodeImages', 'pixels', pixels, [pixels.shape[0] ?? 0, S, S, 3]);
    return l2Normalize(cast(visionTower(this.params, this.config, pixels, this.options), 'f32'));
  }

  /**
   * Image tokens after the vision tower's last LayerNorm: what the caption decoder attends to and `poolTokens` pools.
   * @param pixels (B, S, S, 3) uint8 RGB
   * @returns (B, N, D)
   * @throws ShapeError
   */
  imageTokens(pixels: Tensor): Tensor {
    const S = this.config.vision.imageSize;
    checkShape('imageTokens', 'pixels', pixels, [pixels.shape[0] ?? 0, S, S, 3]);
    return visionTokens(this.params, this.config, pixels, this.options);
  }

  /** The image embeddings (B, E) f32 of `imageTokens`: both together are `encodeImages`. */
  poolTokens(tokens: Tensor): Tensor {
    const { heads } = this.config.vision;
    return l2Normalize(cast(mapPool(this.params, 'vision_model.head', tokens, heads, this.config.layerNormEps), 'f32'));
  }

  /**
   * Text embeddings with unit norm.
   * @param ids (B, L) i32 token ids, padded with 0 to exactly L = config.text.length
   * @returns (B, E) f32
   * @throws ShapeError
   */
  encodeTexts(ids: Tensor): Tensor {
    checkShape('encodeTexts', 'ids', ids, [ids.shape[0] ?? 0, this.config.text.length]);
    return l2Normalize(cast(textTower(this.params, this.config, ids, this.options), 'f32'));
  }

  initialize(seed: number): void { this.params.initialize(seed); }
  dispose(): void { this.params.dispose(); }
  [Symbol.dispose](): void { this.dispose(); }
}
