/** What a checkpoint says about its inputs beyond the model: how images are resized, which generation its texts are of. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CheckpointError } from '../errors.js';
import { readTextLimited } from '../fs/files.js';
import { parseObject } from '../io/safetensors_header.js';
import type { ModelConfig } from '../model/config.js';
import type { TextCleaning } from '../text/clean.js';

/** How a checkpoint wants its inputs. */
export interface Processor {
  /** PIL's filter for resizing: 2 is bilinear (SigLIP 2), 3 bicubic (SigLIP 1). */
  resample: 2 | 3;
  /**
   * Of the texts. SigLIP 2: Gemma's vocabulary, padded with 0. SigLIP 1: sentencepiece with 32,000 (English) or 250,000
   * (multilingual) pieces, punctuation removed, padded with 1, which is its EOS.
   */
  generation: 1 | 2;
  /** Most patches of an image, `max_num_patches`; of NaFlex models only. */
  maxPatches: number;
  /** What is done to a text before it is lower-cased; see `TokenizerOptions`. Nothing when absent. */
  clean?: TextCleaning | undefined;
}

const SIGLIP_1_VOCABULARIES: readonly number[] = [32000, 250000];
const FILTERS = ['nearest', 'Lanczos', 'bilinear', 'bicubic', 'box', 'Hamming'];

/** The processor that a model without further files has. */
export function defaultProcessor(config: ModelConfig): Processor {
  const generation = SIGLIP_1_VOCABULARIES.includes(config.text.vocab) ? 1 : 2;
  return { generation, resample: generation === 1 ? 3 : 2, maxPatches: 256 };
}

const near = (value: number) =>
  z.number().refine((v) => Math.abs(v - value) < 1e-6, `must be ${value}`);
const half = near(0.5),
  halves = z.union([half, z.array(half).min(1).max(3)], 'must be 0.5').nullish();
const yes = z.literal(true, 'must be true').nullish();
const pixels = z
  .int()
  .min(1)
  .max(2 ** 20);
const schema = z.looseObject({
  resample: z.union([z.literal(2), z.literal(3)]).nullish(),
  do_resize: yes,
  do_rescale: yes,
  do_normalize: yes,
  do_center_crop: z.literal(false, 'must be false').nullish(),
  do_pad: z.literal(false, 'must be false').nullish(),
  rescale_factor: near(1 / 255).nullish(),
  image_mean: halves,
  image_std: halves,
  size: z
    .union(
      [pixels, z.looseObject({ height: pixels, width: pixels })],
      'must be one of height and width',
    )
    .nullish(),
  patch_size: z.union([pixels, z.tuple([pixels, pixels])]).nullish(),
  max_num_patches: z
    .int()
    .min(1)
    .max(2 ** 20)
    .nullish(),
});

/**
 * The processor of a model folder: from processor_config.json, which transformers 5 writes, else preprocessor_config.json.
 * What a file leaves out is as transformers' SiglipImageProcessor and Siglip2ImageProcessor have it.
 * @throws CheckpointError when it is damaged, or asks for what SigLIP's preprocessing does not do: another filter, other
 *   pixel statistics, another size than the model's
 */
export async function readProcessor(folder: string, config: ModelConfig): Promise<Processor> {
  const usual = defaultProcessor(config),
    found = await imageProcessor(folder);
  if (found === undefined) return usual;
  const { path, at, json } = found,
    parsed = schema.safeParse(json);
  const refuse = (key: string, why: string): CheckpointError =>
    new CheckpointError(`${path}: key "${at}${key}": ${why}`);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!,
      key = issue.path.map(String).join('.');
    const filter = key === 'resample' ? FILTERS[json['resample'] as number] : undefined;
    throw refuse(
      key,
      filter
        ? `the filter is ${filter} but must be bilinear (2) or bicubic (3)`
        : key === 'resample'
          ? 'must be 2 (bilinear) or 3 (bicubic)'
          : `${issue.message}; this is no SigLIP preprocessor`,
    );
  }
  const { resample, size, patch_size: patch, max_num_patches: maxPatches } = parsed.data,
    { vision, naflex } = config;
  const side = typeof size === 'number' ? { height: size, width: size } : size;
  if (!naflex && side && (side.height !== vision.imageSize || side.width !== vision.imageSize))
    throw refuse(
      'size',
      `${side.height}×${side.width} px is not the ${vision.imageSize}×${vision.imageSize} px of the model in config.json`,
    );
  if (patch && [patch].flat().some((p) => p !== vision.patch))
    throw refuse(
      'patch_size',
      `${String(patch)} is not the ${vision.patch} of the model in config.json`,
    );
  return {
    ...usual,
    resample: resample ?? (naflex ? 2 : 3),
    maxPatches: maxPatches ?? usual.maxPatches,
  };
}

/** What the folder says of its images, and where. */
async function imageProcessor(
  folder: string,
): Promise<{ path: string; at: string; json: Record<string, unknown> } | undefined> {
  const read = async (
    name: string,
  ): Promise<{ path: string; json: Record<string, unknown> } | undefined> => {
    const path = join(folder, name);
    return existsSync(path)
      ? { path, json: parseObject(path, await readTextLimited(path)) }
      : undefined;
  };
  const own = await read('processor_config.json'),
    nested = own?.json['image_processor'];
  if (own && nested !== undefined && nested !== null) {
    if (typeof nested !== 'object' || Array.isArray(nested))
      throw new CheckpointError(`${own.path}: key "image_processor" must be an object`);
    return { path: own.path, at: 'image_processor.', json: nested as Record<string, unknown> };
  }
  const old = await read('preprocessor_config.json');
  return old && { ...old, at: '' };
}
