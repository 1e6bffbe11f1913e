/**
 * From an image to the pixels a model takes. A processor is a name:
 *
 * - `hf`: what the published preprocessors do (transformers' SiglipImageProcessor over PIL): resize to the model's
 *   square whatever the aspect ratio (NaFlex: to its grid), antialiased bilinear (bicubic for SigLIP 1), rounded to uint8.
 *   Bit-identical to PIL up to version 12. The default.
 * - `big_vision`: what the authors' demo does: TensorFlow's bilinear without antialiasing, truncated to uint8. Aliases
 *   when it shrinks; for reproducing their numbers.
 * - `aa-f32`: the antialiased bilinear filter in f32 without rounding. Pixels are then f32 and only the CPU takes them;
 *   on CUDA it is an error, never a silent rounding.
 *
 * All of them take decoded pixels (`image.ts`): upright, without colour management, transparency laid on white unless told
 * otherwise. Scaling to [−1, 1] happens in the model's patch embedding.
 */
import { ConfigError } from '../errors.js';
import { type ResizeMethod, resizeImageAsync } from '../native.js';
import type { RawImage } from './image.js';

export type ProcessorName = 'hf' | 'big_vision' | 'aa-f32';
export const PROCESSORS: readonly ProcessorName[] = ['hf', 'big_vision', 'aa-f32'];

/** A processor as a model uses it. */
export interface Processor {
  name: ProcessorName;
  /** The filter of `hf`; the others are bilinear. */
  resample: 'bilinear' | 'bicubic';
}

/**
 * A processor by name.
 * @param resample PIL's number of the checkpoint's own filter, 2 bilinear and 3 bicubic, which `hf` uses
 * @throws ConfigError for an unknown name
 */
export function processorOf(resample: 2 | 3, name: ProcessorName = 'hf'): Processor {
  if (!PROCESSORS.includes(name))
    throw new ConfigError(
      `processor must be ${PROCESSORS.join(', ')} but is ${JSON.stringify(name)}`,
    );
  return { name, resample: name === 'hf' && resample === 3 ? 'bicubic' : 'bilinear' };
}

/**
 * Resizes a decoded image on libuv's thread pool. One that has the size already is given back as it is, which is what every
 * filter makes of it; `aa-f32` widens it.
 * @param image 3 channels
 * @param height of the result, in pixels
 * @param into what a filtered image is written to, of the result's size and type; a new array when undefined
 * @returns (height, width, 3): uint8, or f32 in [0, 255] for `aa-f32`
 */
export function resizeTo(
  image: RawImage,
  height: number,
  width: number,
  processor: Processor,
  into?: Uint8Array | Float32Array,
): Promise<Uint8Array | Float32Array> {
  if (image.channels !== 3)
    throw new ConfigError(`resizeTo: the image must have 3 channels but has ${image.channels}`);
  const same =
    image.height === height && image.width === width && image.data.length === height * width * 3;
  if (same && processor.name !== 'aa-f32') return Promise.resolve(image.data);
  const method: ResizeMethod =
    processor.name === 'big_vision'
      ? 'two-point'
      : processor.name === 'aa-f32'
        ? 'f32'
        : processor.resample === 'bicubic'
          ? 'pil-bicubic'
          : 'pil-bilinear';
  return resizeImageAsync(image.data, image.height, image.width, 3, height, width, method, into);
}
