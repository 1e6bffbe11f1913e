/** The caption decoder's part of a model's config (LocCa, SigLIP 2 §2.2). */
import { z } from 'zod';
import { ConfigError } from '../errors.js';

export interface DecoderConfig {
  depth: number;
  width: number;
  heads: number;
  mlp: number;
  /** Tokens per sequence, the end mark included; shorter ones are padded to it. */
  length: number;
  /** Biases in projections, MLPs and inner LayerNorms; the last LayerNorm and the logits always have one. */
  bias: boolean;
}

const count = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
export const decoderSchema = z
  .strictObject({
    depth: count,
    width: count,
    heads: count,
    mlp: count,
    length: count,
    bias: z.boolean(),
  })
  .nullable()
  .optional();

/** The decoder that belongs to a text tower, with changes. */
export function decoderConfig(
  text: Pick<DecoderConfig, 'depth' | 'width' | 'heads' | 'mlp' | 'length'>,
  changes: Partial<DecoderConfig> = {},
): DecoderConfig {
  const { width, heads, mlp, length } = text;
  const base = {
    depth: Math.max(1, Math.floor(text.depth / 2)),
    width,
    heads,
    mlp,
    length,
    bias: false,
  };
  const given = Object.entries(changes).filter(([, value]) => value !== undefined);
  return { ...base, ...Object.fromEntries(given) };
}

/** The rules between the fields. Throws ConfigError. */
export function checkDecoder({ width, heads }: DecoderConfig): void {
  if (width % heads !== 0)
    throw new ConfigError(
      `model: decoder.width ${width} must be a multiple of decoder.heads ${heads}`,
    );
}
