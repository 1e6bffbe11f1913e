/**
 * From an image to the pixels a fixed-resolution model takes. A processor is a name:
 *
 * - `hf`: what the published preprocessors do (transformers' SiglipImageProcessor over PIL): resize to the model's
 *   square whatever the aspect ratio, antialiased bilinear (bicubic for SigLIP 1), rounded to uint8. Bit-identical to
 *   PIL. The default.
 * - `big_vision`: what the authors' demo does: TensorFlow's bilinear without antialiasing, truncated to uint8. Aliases
 *   when it shrinks; for reproducing their numbers.
 * - `aa-f32`: the antialiased bilinear filter in f32 without rounding. Pixels are then f32 and only the CPU takes them;
 *   on CUDA it is an error, never a silent rounding.
 *
 * All of them take the numbers of the file as they are (no colour management) and forget transparency unless told
 * otherwise, as PIL's `convert("RGB")` does; EXIF orientation is applied first. Scaling to [−1, 1] happens in the
 * model's patch embedding.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { CheckpointError, ConfigError } from '../errors.js';
import { readTextLimited } from '../io/files.js';
import { resizeImageAsync, type ResizeMethod } from '../native.js';
import type { RawImage } from './image.js';

export type ProcessorName = 'hf' | 'big_vision' | 'aa-f32';
export const PROCESSORS: readonly ProcessorName[] = ['hf', 'big_vision', 'aa-f32'];

/** A processor as a model uses it. */
export interface Processor {
  name: ProcessorName;
  /** The filter of `hf`; the others are bilinear. */
  resample: 'bilinear' | 'bicubic';
}

/** PIL's numbers of the filters that released checkpoints use. */
const RESAMPLE: Record<number, Processor['resample']> = { 2: 'bilinear', 3: 'bicubic' };
const close = (value: number) => z.number().refine((v) => Math.abs(v - value) < 1e-6, `must be ${value}`);
const half = z.array(close(0.5)).length(3);
const preprocessorJson = z.looseObject({
  resample: z.union([z.literal(2), z.literal(3)]).default(2),
  do_resize: z.literal(true).default(true),
  do_rescale: z.literal(true).default(true),
  do_normalize: z.literal(true).default(true),
  rescale_factor: close(1 / 255).default(1 / 255),
  image_mean: half.default([0.5, 0.5, 0.5]),
  image_std: half.default([0.5, 0.5, 0.5]),
});

/**
 * The processor of a checkpoint folder: `hf` with the filter of its preprocessor_config.json (bilinear when there is no
 * such file), or the one asked for by name.
 * @throws CheckpointError when the file asks for other pixel statistics than SigLIP's; ConfigError for an unknown name
 */
export async function processorOf(folder: string, name: ProcessorName = 'hf'): Promise<Processor> {
  if (!PROCESSORS.includes(name)) throw new ConfigError(`processor must be ${PROCESSORS.join(', ')} but is ${JSON.stringify(name)}`);
  if (name !== 'hf') return { name, resample: 'bilinear' };
  const file = join(folder, 'preprocessor_config.json');
  if (!existsSync(file)) return { name, resample: 'bilinear' };
  let json: unknown;
  try {
    json = JSON.parse(await readTextLimited(file));
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    throw new CheckpointError(`${file}: is not valid JSON (${cause.message})`, { cause });
  }
  const parsed = preprocessorJson.safeParse(json);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new CheckpointError(`${file}: key "${issue?.path.join('.') ?? ''}" is not what a SigLIP model needs (${issue?.message ?? ''}); ` +
      'choose the processor by name to use the model all the same');
  }
  return { name, resample: RESAMPLE[parsed.data.resample]! };
}

/**
 * Resizes a decoded image to the model's square on libuv's thread pool.
 * @param image 3 channels
 * @param size side in pixels
 * @returns (size, size, 3): uint8, or f32 in [0, 255] for `aa-f32`
 */
export function resizeTo(image: RawImage, size: number, processor: Processor): Promise<Uint8Array | Float32Array> {
  if (image.channels !== 3) throw new ConfigError(`resizeTo: the image must have 3 channels but has ${image.channels}`);
  const method: ResizeMethod = processor.name === 'big_vision' ? 'two-point' : processor.name === 'aa-f32' ? 'f32'
    : processor.resample === 'bicubic' ? 'pil-bicubic' : 'pil-bilinear';
  return resizeImageAsync(image.data, image.height, image.width, 3, size, size, method);
}
