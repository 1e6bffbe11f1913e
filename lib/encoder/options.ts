/** Options of the encoder, and their checks. */
import type { ProcessorName } from '../data/processor.js';
import type { LowerMode } from '../data/tokenizer.js';
import { ConfigError } from '../errors.js';
import type { DeviceName } from '../tensor.js';
import type { OutputType } from './output.js';

export interface LoadOptions {
  /** Default `cpu`. */
  device?: DeviceName;
  /** Type of activations and matrix inputs. Default `f32`; `bf16` is about twice as fast where the device multiplies it. */
  dtype?: 'f32' | 'bf16';
  /** How images become pixels. Default `hf`, with the checkpoint's own filter. */
  processor?: ProcessorName;
  /** Transparency: forgotten, as the published preprocessors do, or laid on white. Default `drop`. */
  alpha?: 'drop' | 'white';
  /**
   * Lower-casing of texts before the tokenizer: `ascii` (A–Z only, what the training pipeline's `tf.strings.lower` does),
   * `unicode` (what transformers' Siglip2Tokenizer does) or `none`. They differ for capitals beyond A–Z only. Default: as
   * the checkpoint says, else `ascii`.
   */
  lowercase?: LowerMode;
  /** Images with more pixels are refused. Default 178,956,970. */
  maxPixels?: number;
  /** NaFlex models: most patches of an image, 256 by default; trained from 128 to 1,024. Others have a fixed number. */
  maxPatches?: number;
  signal?: AbortSignal;
}

export interface EncodeOptions {
  /** Number format of the rows. Default `f32`. */
  output?: OutputType;
  /** Inputs per pass through the model; it decides speed and memory, never the result. Default 8 images, 32 texts. */
  batchSize?: number;
  /** Rejects with the signal's reason at once; the model stays usable. */
  signal?: AbortSignal;
  /** Called after every batch. `total` is undefined for streams. */
  onProgress?: (done: number, total: number | undefined) => void;
  /** Images that cannot be read or decoded: called with the error, and their rows are NaN. Default: the call rejects. */
  onBadImage?: (error: Error, index: number) => void;
}

export interface ZeroShotOptions extends Omit<EncodeOptions, 'output'> {
  /** Language of the built-in templates. Default `en`. */
  language?: string;
  /** Own templates, each with `{label}`; `['{label}']` takes the labels as they are. */
  templates?: readonly string[];
}

export const ENCODE_KEYS = ['output', 'batchSize', 'signal', 'onProgress', 'onBadImage', 'language', 'templates'];
export const DESCRIBE_KEYS = ['beams', 'batchSize', 'signal', 'onProgress'];
export const LOAD_KEYS = ['device', 'dtype', 'processor', 'alpha', 'lowercase', 'maxPixels', 'maxPatches', 'signal'];

/** Throws ConfigError for an option that `call` does not have. */
export function checkOptions(call: string, options: object, keys: readonly string[]): void {
  const unknown = Object.keys(options).find((k) => !keys.includes(k));
  if (unknown === undefined) return;
  throw new ConfigError(`${call}: unknown option "${unknown}"${/mask/i.test(unknown)
    ? '; SigLIP attends to the padding of texts, so there is no mask to pass' : `; the options are ${keys.join(', ')}`}`);
}

/** Throws ConfigError unless n is an integer in [1, 65536]. */
export function checkCount(name: string, n: number): void {
  if (!(Number.isInteger(n) && n >= 1 && n <= 65536))
    throw new ConfigError(`${name} must be an integer in [1, 65536] but is ${n}`);
}

/** Alone or in a list. */
export function asList<T>(x: T | readonly T[]): readonly T[] {
  return Array.isArray(x) ? x as readonly T[] : [x as T];
}
