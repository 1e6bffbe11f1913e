/**
 * The heads of self-distillation and masked prediction (SigLIP 2 §2.3, after DINO and DINOv2): a three-layer MLP to a
 * narrow bottleneck, unit length, and a weight-normed linear map to the prototypes. One head for pooled images, one for
 * patches. Their parameters live beside the model's under `ssl.`; readers of the two towers pass over them.
 */
import { ConfigError } from '../errors.js';
import { gatherRows } from '../ops/gather_rows.js';
import { l2Normalize } from '../ops/l2_normalize.js';
import { linear } from '../ops/linear.js';
import { weightNormLinear } from '../ops/weight_norm_linear.js';
import { reshape } from '../tape.js';
import type { Tensor } from '../tensor.js';
import type { ModelConfig } from './config.js';
import type { ParameterShape, ParamStore } from './params.js';

/** Shape of the heads. */
export interface SslHeadConfig {
  /** Width of the two hidden layers. */
  hidden: number;
  /** Width of the unit vectors that are compared with the prototypes. */
  bottleneck: number;
  /** Prototypes of the image head. */
  prototypes: number;
  /** Prototypes of the patch head. */
  patchPrototypes: number;
  /**
   * Standard deviation that the weights of the MLP start with. DINO's 0.02 keeps the scale of what passes through layers
   * of some 2,000 inputs; narrow ones need about 1/√inputs, or the head's output is so small that a few of Adam's steps
   * drown the differences between images, and the teacher's targets become uniform. Default 0.02.
   */
  std?: number;
}

/** DINO's head, which SILC and SigLIP 2 name without numbers. */
export const SSL_HEAD: SslHeadConfig = {
  hidden: 2048,
  bottleneck: 256,
  prototypes: 65536,
  patchPrototypes: 65536,
};

export type SslHeadName = 'ssl.image_head' | 'ssl.patch_head';

/**
 * Parameters of both heads and of the mask token, in storage order. The MLP starts at N(0, std²) with zero biases, the
 * mask token at N(0, 0.02²), as DINO's; prototypes start with the deviation of PyTorch's linear layer: only their
 * direction counts.
 * @throws ConfigError when a size is no positive integer
 */
export function sslShapes(config: ModelConfig, head: SslHeadConfig = SSL_HEAD): ParameterShape[] {
  const { std = 0.02, ...sizes } = head;
  for (const [key, n] of Object.entries(sizes))
    if (!Number.isSafeInteger(n) || n < 1)
      throw new ConfigError(
        `self-distillation head: ${key} must be a positive integer but is ${n}`,
      );
  const { hidden, bottleneck } = head,
    D = config.vision.width;
  const layer = (name: string, rows: number, columns: number): ParameterShape[] => [
    { name: `${name}.weight`, shape: [rows, columns], init: { kind: 'normal', std }, decay: true },
    { name: `${name}.bias`, shape: [rows], init: { kind: 'zeros' }, decay: false },
  ];
  const shapes = (name: SslHeadName, prototypes: number): ParameterShape[] => [
    ...layer(`${name}.fc1`, hidden, D),
    ...layer(`${name}.fc2`, hidden, hidden),
    ...layer(`${name}.fc3`, bottleneck, hidden),
    {
      name: `${name}.prototypes.weight`,
      shape: [prototypes, bottleneck],
      init: { kind: 'normal', std: (3 * bottleneck) ** -0.5 },
      decay: true,
    },
  ];
  return [
    ...shapes('ssl.image_head', head.prototypes),
    ...shapes('ssl.patch_head', head.patchPrototypes),
    { name: 'ssl.mask_token', shape: [D], init: { kind: 'normal', std: 0.02 }, decay: false },
  ];
}

/**
 * Prototype logits: cosines between the projected features and the prototypes.
 * @param x (R, D) pooled images or patch tokens
 * @returns (R, K) of x's type
 */
export function sslHead(p: ParamStore, name: SslHeadName, x: Tensor): Tensor {
  const layer = (input: Tensor, part: string, gelu: boolean): Tensor =>
    linear(input, p.get(`${name}.${part}.weight`), p.get(`${name}.${part}.bias`), { gelu });
  const projected = layer(layer(layer(x, 'fc1', true), 'fc2', true), 'fc3', false);
  // Fresh projections are short, so the default epsilon would bend them.
  return weightNormLinear(l2Normalize(projected, 1e-12), p.get(`${name}.prototypes.weight`));
}

/** Tokens of chosen patches: (B, N, D) and (M) i32 rows of B·N, ascending → (M, D). */
export function tokensAt(tokens: Tensor, rows: Tensor): Tensor {
  const [B, N, D] = tokens.shape as [number, number, number];
  return gatherRows(reshape(tokens, [B * N, D]), rows);
}
