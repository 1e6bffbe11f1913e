/** The two-tower model: config, parameters and the two encoders. */
import { checkShape } from '../check.js';
import { ConfigError } from '../errors.js';
import type { NaflexBatch } from '../image/naflex.js';
import { cast } from '../ops/elementwise.js';
import { l2Normalize } from '../ops/l2_normalize.js';
import { isRecording, needsGrad, noGrad, type Param } from '../tape.js';
import { type DeviceName, scope, type Tensor } from '../tensor.js';
import type { Lengths } from './block.js';
import type { ModelConfig } from './config.js';
import type { ParameterShape } from './params.js';
import { ParamStore } from './params.js';
import { mapPool } from './pool.js';
import { parameterShapes } from './shapes.js';
import { textTower } from './text.js';
import {
  naflexTokens,
  type PackedTokens,
  type TowerOptions,
  visionTokens,
  visionTower,
} from './vision.js';

export interface ModelOptions {
  device?: DeviceName;
  /** Type of activations and matrix inputs; weights, statistics and losses are f32 either way. Default f32. */
  dtype?: 'f32' | 'bf16';
  /** Whether gradients are kept. Default false. */
  train?: boolean;
  /** Gradient checkpointing per block: less memory for one more forward. Default false. */
  checkpoint?: boolean;
  /** Names of parameters that are not trained. Default none. */
  frozen?: ReadonlySet<string>;
  /** Parameters beside the two towers, the self-distillation heads say (`sslShapes`). Default none. */
  extra?: readonly ParameterShape[];
}

/** Beginnings of the names of what makes image tokens. */
const TOKENS = ['embeddings', 'encoder', 'post_layernorm'].map((part) => `vision_model.${part}.`);

/** A SigLIP 2 model, of fixed resolution or NaFlex. Parameters carry their Hugging Face names. */
export class Siglip2Model {
  readonly params: ParamStore;
  readonly options: TowerOptions;

  constructor(
    readonly config: ModelConfig,
    options: ModelOptions = {},
  ) {
    this.params = new ParamStore([...parameterShapes(config), ...(options.extra ?? [])], options);
    this.options = { dtype: options.dtype ?? 'f32', checkpoint: options.checkpoint ?? false };
  }

  /** log of the temperature, (1). */
  get logitScale(): Param {
    return this.params.get('logit_scale');
  }
  /** Logit bias, (1). */
  get logitBias(): Param {
    return this.params.get('logit_bias');
  }

  /**
   * Image embeddings with unit norm. A NaFlex model takes square images too, of its position grid's size.
   * @param pixels (B, S, S, 3) uint8 RGB, S = config.vision.imageSize
   * @returns (B, E) f32
   * @throws ShapeError
   */
  encodeImages(pixels: Tensor): Tensor {
    this.#checkPixels('encodeImages', pixels);
    return l2Normalize(cast(visionTower(this.params, this.config, pixels, this.options), 'f32'));
  }

  /**
   * Dense features: one vector for every patch, after the final LayerNorm and before pooling; not normalised.
   * @param pixels (B, S, S, 3) uint8 RGB
   * @returns (B, N, D) of the activations' type, N patches row-major
   * @throws ShapeError
   */
  imageTokens(pixels: Tensor): Tensor {
    this.#checkPixels('imageTokens', pixels);
    return this.#part(TOKENS, [], () =>
      visionTokens(this.params, this.config, pixels, this.options),
    );
  }

  /**
   * Embeddings with unit norm of images of any shape. Their patches are packed: nothing is computed for padding.
   * @param batch S images from `naflexImage` and `packNaflex`, on the host
   * @returns (S, E) f32
   * @throws ConfigError when this is no NaFlex model; ShapeError when the batch does not fit together
   */
  encodeNaflex(batch: NaflexBatch): Tensor {
    this.#checkNaflex('encodeNaflex');
    const { tokens, packed } = naflexTokens(this.params, this.config, batch, this.options);
    return this.poolTokens(tokens, { packed });
  }

  /**
   * Dense features of images of any shape, before pooling; not normalised.
   * @returns tokens (T, D) of the activations' type: the patches of all images, one image after the other, each row-major
   * @throws ConfigError when this is no NaFlex model; ShapeError when the batch does not fit together
   */
  naflexTokens(batch: NaflexBatch): PackedTokens {
    this.#checkNaflex('naflexTokens');
    return this.#part(TOKENS, [], () =>
      naflexTokens(this.params, this.config, batch, this.options),
    );
  }

  /**
   * The image embeddings of dense features: `imageTokens` then `poolTokens` is `encodeImages`, and with `packed` the
   * same for NaFlex.
   * @param tokens (B, N, D) from `imageTokens`, or (T, D) from `naflexTokens`
   * @returns (B, E) f32
   */
  poolTokens(tokens: Tensor, lengths: Lengths = {}): Tensor {
    const { vision, layerNormEps } = this.config;
    return this.#part(['vision_model.head.'], [tokens], () =>
      l2Normalize(
        cast(
          mapPool(this.params, 'vision_model.head', tokens, vision, layerNormEps, lengths),
          'f32',
        ),
      ),
    );
  }

  /**
   * Text embeddings with unit norm.
   * @param ids (B, L) i32 token ids, padded with 0 to exactly L = config.text.length
   * @returns (B, E) f32
   * @throws ShapeError
   */
  encodeTexts(ids: Tensor): Tensor {
    checkShape('encodeTexts', 'ids', ids, [ids.shape[0] ?? 0, this.config.text.length]);
    return this.#part(['text_model.'], [], () =>
      l2Normalize(cast(textTower(this.params, this.config, ids, this.options), 'f32')),
    );
  }

  /** Runs a part of the model; one that is frozen, and whose input is, leaves nothing behind but its result. */
  #part<T>(parameters: readonly string[], inputs: readonly Tensor[], fn: () => T): T {
    if (
      !isRecording() ||
      inputs.some(needsGrad) ||
      parameters.some((prefix) => this.params.trains(prefix))
    )
      return fn();
    return noGrad(() => scope(fn));
  }

  #checkPixels(name: string, pixels: Tensor): void {
    const S = this.config.vision.imageSize;
    checkShape(name, 'pixels', pixels, [pixels.shape[0] ?? 0, S, S, 3]);
  }
  #checkNaflex(name: string): void {
    if (this.config.naflex) return;
    throw new ConfigError(
      `${name}: ${this.config.name} has a fixed resolution; use a NaFlex model, or convert this one ` +
        'with adaptModel',
    );
  }

  initialize(seed: number): void {
    this.params.initialize(seed);
  }
  dispose(): void {
    this.params.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}
