/** Options of the encoder, and their checks. */
import { checkKeys, kindOf } from '../check.js';
import { ConfigError } from '../errors.js';
import type { ProcessorName } from '../image/processor.js';
import type { DeviceName } from '../tensor.js';
import type { LowerMode } from '../text/tokenizer.js';
import type { OutputType } from './output.js';

export interface LoadOptions {
  /** Default `cpu`. */
  device?: DeviceName;
  /** Type of activations and matrix inputs. Default `f32`; `bf16` is about twice as fast where the device multiplies it. */
  dtype?: 'f32' | 'bf16';
  /** How images become pixels. Default `hf`, with the checkpoint's own filter. */
  processor?: ProcessorName;
  /** Transparency: laid on white, as people see it and as transformers 5 does, or forgotten. Default `white`. */
  alpha?: 'drop' | 'white';
  /**
   * Lower-casing of texts: `ascii` (A–Z only, what the authors' pipeline's `tf.strings.lower` does), `unicode` (what
   * transformers' Siglip2Tokenizer does) or `none` (what its GemmaTokenizer does). Default: as the checkpoint says; where it
   * says nothing, `unicode` for NaFlex models and `ascii` for others.
   */
  lowercase?: LowerMode;
  /** Images with more pixels are refused. Default 178,956,970. */
  maxPixels?: number;
  /**
   * NaFlex models: most patches of an image, by default what the checkpoint's processor says, else 256; trained from 128 to
   * 1,024. Others have a fixed number.
   */
  maxPatches?: number;
  signal?: AbortSignal;
}

/** The type parameter follows `output`, so that the rows have the array's type. */
export interface EncodeOptions<T extends OutputType = OutputType> {
  /** Number format of the rows. Default `f32`. */
  output?: T;
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

export const ENCODE_KEYS = ['output', 'batchSize', 'signal', 'onProgress', 'onBadImage'];
export const ZERO_SHOT_KEYS = [
  'batchSize',
  'signal',
  'onProgress',
  'onBadImage',
  'language',
  'templates',
];
export const DESCRIBE_KEYS = ['beams', 'batchSize', 'signal', 'onProgress'];
export const LOAD_KEYS = [
  'device',
  'dtype',
  'processor',
  'alpha',
  'lowercase',
  'maxPixels',
  'maxPatches',
  'signal',
];

/** `checkKeys`, and a signal and functions must be such. */
export function checkOptions(call: string, options: object, keys: readonly string[]): void {
  checkKeys(call, options, keys, (key) =>
    /mask/i.test(key)
      ? '; SigLIP attends to the padding of texts, so there is no mask to pass'
      : undefined,
  );
  const { signal, ...rest } = options as { signal?: Partial<AbortSignal> };
  // Not instanceof: a signal may come from another realm.
  if (signal !== undefined && typeof signal?.throwIfAborted !== 'function')
    throw new ConfigError(`${call}: signal must be an AbortSignal but is ${kindOf(signal)}`);
  for (const name of ['onProgress', 'onBadImage'] as const) {
    const given = (rest as Record<string, unknown>)[name];
    if (given !== undefined && typeof given !== 'function')
      throw new ConfigError(`${call}: ${name} must be a function but is ${kindOf(given)}`);
  }
}

/** Throws ConfigError unless the options of `load` are in range, so that the first image or text need not. */
export function checkLoadOptions(options: LoadOptions): void {
  checkOptions('load', options, LOAD_KEYS);
  const among = (name: 'dtype' | 'alpha' | 'lowercase', ...values: string[]): void => {
    const given = options[name];
    if (given !== undefined && !values.includes(given))
      throw new ConfigError(
        `load: ${name} must be ${orList(values)} but is ${JSON.stringify(given)}`,
      );
  };
  among('dtype', 'f32', 'bf16');
  among('alpha', 'drop', 'white');
  among('lowercase', 'ascii', 'unicode', 'none');
  const { maxPixels, maxPatches } = options;
  if (maxPixels !== undefined && !(Number.isSafeInteger(maxPixels) && maxPixels >= 1))
    throw new ConfigError(`load: maxPixels must be a positive integer but is ${String(maxPixels)}`);
  if (maxPatches !== undefined) checkCount('load: maxPatches', maxPatches);
}

const orList = (values: readonly string[]): string =>
  `${values.slice(0, -1).join(', ')} or ${values.at(-1)}`;

/** `list` when it is an array of strings. Throws ConfigError calling them `what`, a plural, otherwise. */
export function checkStrings(
  call: string,
  what: string,
  list: readonly string[],
): readonly string[] {
  if (!Array.isArray(list))
    throw new ConfigError(
      `${call}: the ${what} must be an array of strings but are ${kindOf(list)}`,
    );
  const bad = list.findIndex((s) => typeof s !== 'string');
  if (bad >= 0)
    throw new ConfigError(
      `${call}: the ${what} must be strings but number ${bad} is ${kindOf(list[bad])}`,
    );
  return list;
}

/** Throws ConfigError unless `source` can be iterated over and is no string, whose characters nobody means. */
export function checkSource(call: string, source: unknown): void {
  const { [Symbol.iterator]: one, [Symbol.asyncIterator]: other } = Object(source ?? {}) as Partial<
    Iterable<1> & AsyncIterable<1>
  >;
  if (typeof source === 'string' || (typeof one !== 'function' && typeof other !== 'function'))
    throw new ConfigError(
      `${call}: the source must be an array, an iterable or an async iterable but is ` +
        kindOf(source),
    );
}

/** Throws ConfigError unless n is an integer in [1, 65536]. */
export function checkCount(name: string, n: number): void {
  if (!(Number.isInteger(n) && n >= 1 && n <= 65536))
    throw new ConfigError(`${name} must be an integer in [1, 65536] but is ${String(n)}`);
}

/** Alone or in a list. */
export function asList<T>(x: T | readonly T[]): readonly T[] {
  return Array.isArray(x) ? (x as readonly T[]) : [x as T];
}
