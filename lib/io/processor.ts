/** What a checkpoint says about its inputs beyond the model: how images are resized, which generation its texts are of. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CheckpointError } from '../errors.js';
import type { ModelConfig } from '../model/config.js';
import { readTextLimited } from './files.js';
import { parseObject } from './safetensors_header.js';

/** How a checkpoint wants its inputs. */
export interface Processor {
  /** PIL's filter for resizing: 2 is bilinear (SigLIP 2), 3 bicubic (SigLIP 1). */
  resample: 2 | 3;
  /**
   * Of the texts. SigLIP 2: Gemma's vocabulary, padded with 0. SigLIP 1: sentencepiece with 32,000 (English) or 250,000
   * (multilingual) pieces, punctuation removed, padded with 1, which is its EOS.
   */
  generation: 1 | 2;
}

const SIGLIP_1_VOCABULARIES: readonly number[] = [32000, 250000];

/** The processor that a model without further files has. */
export function defaultProcessor(config: ModelConfig): Processor {
  const generation = SIGLIP_1_VOCABULARIES.includes(config.text.vocab) ? 1 : 2;
  return { generation, resample: generation === 1 ? 3 : 2 };
}

const close = (value: number) => z.number().refine((v) => Math.abs(v - value) < 1e-6, `must be ${value}`).optional();
const halves = z.array(z.literal(0.5, 'must be 0.5')).length(3).optional();
const schema = z.looseObject({
  resample: z.union([z.literal(2), z.literal(3)], 'must be 2 (bilinear) or 3 (bicubic)').optional(),
  do_resize: z.literal(true).optional(), do_rescale: z.literal(true).optional(), do_normalize: z.literal(true).optional(),
  rescale_factor: close(1 / 255), image_mean: halves, image_std: halves,
});

/**
 * The processor of a model folder, from preprocessor_config.json when there is one.
 * @throws CheckpointError when it is damaged, or asks for another filter or other pixel statistics than SigLIP's
 */
export async function readProcessor(folder: string, config: ModelConfig): Promise<Processor> {
  const path = join(folder, 'preprocessor_config.json'), usual = defaultProcessor(config);
  if (!existsSync(path)) return usual;
  const parsed = schema.safeParse(parseObject(path, await readTextLimited(path)));
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new CheckpointError(`${path}: key "${issue?.path.map(String).join('.') ?? ''}": ${issue?.message ?? 'not valid'}; this is no SigLIP preprocessor`);
  }
  return { ...usual, resample: parsed.data.resample ?? usual.resample };
}
