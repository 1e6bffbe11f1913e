/** What a checkpoint's caption decoder says of images: captions, and the box of a phrase. */

import type { LoadedModel } from '../checkpoints/load.js';
import { ConfigError } from '../errors.js';
import type { RawImage } from '../image/image.js';
import type { ImageInput } from '../image/input.js';
import type { LocalizeOptions } from '../inference/localize.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { noGrad } from '../tape.js';
import { batchInvariant, scope, type Tensor } from '../tensor.js';
import type { Box } from '../text/regions.js';
import type { GemmaTokenizer } from '../text/tokenizer.js';
import { inBatches } from './batching.js';
import { checkCount, checkOptions, checkStrings, DESCRIBE_KEYS } from './options.js';
import type { Prepared, VisionInput } from './vision_input.js';

/** Options of `caption` and `locate`. */
export interface DescribeOptions {
  /** Sequences that are kept in the search; 1, the default, takes the likeliest token each time. */
  beams?: number;
  /** Images per pass through the model. Default 8. */
  batchSize?: number;
  /** Rejects with the signal's reason at once; the model stays usable. */
  signal?: AbortSignal;
  /** Called after every batch. */
  onProgress?: (done: number, total: number) => void;
}

/** Where in an image something is. */
export interface Location {
  /** Left, top, right, bottom, each as a share of the upright image's width or height. */
  box: Box;
  /** The same in pixels of the upright image, rounded. */
  pixels: [left: number, top: number, right: number, bottom: number];
}

/** A box on an image of this size; null where the decoder wrote no box. */
export function location(box: Box | undefined, width: number, height: number): Location | null {
  if (!box) return null;
  const [left, top, right, bottom] = box;
  const x = (share: number): number => Math.round(share * width),
    y = (share: number): number => Math.round(share * height);
  return { box, pixels: [x(left), y(top), x(right), y(bottom)] };
}

/**
 * One phrase per image.
 * @throws ConfigError when their number is another, or one is blank
 */
export function phrasesFor(phrases: string | readonly string[], images: number): readonly string[] {
  const list = checkStrings(
    'locate',
    'phrases',
    typeof phrases === 'string' ? Array<string>(images).fill(phrases) : phrases,
  );
  if (list.length !== images)
    throw new ConfigError(
      `locate: ${images} images need one phrase, or one each, but there are ${list.length}`,
    );
  if (list.some((phrase) => phrase.trim() === ''))
    throw new ConfigError('locate: a phrase must be a text that is not blank');
  return list;
}

/** What describing needs of an encoder. */
export interface Describer {
  vision: VisionInput;
  /** Throws when the encoder is disposed. */
  open(): LoadedModel;
  words(): Promise<GemmaTokenizer>;
  /** Decodes an image for `use`, which shrinks it. */
  decode<T>(
    input: ImageInput,
    signal: AbortSignal | undefined,
    use: (image: RawImage) => Promise<T>,
  ): Promise<T>;
}

interface Item {
  /** Place in the list of images. */
  index: number;
  /** Of the upright image, in pixels. */
  width: number;
  height: number;
  pixels: Prepared;
}

/** A batch that the decoder is to say something about. */
export interface Question {
  model: Siglip2Model;
  words: GemmaTokenizer;
  /** (B, N, D) image tokens. */
  tokens: Tensor;
  items: Item[];
  options: LocalizeOptions;
}

/**
 * `answer` for all images, batch by batch, in order.
 * @param call what the caller is called, for errors
 * @throws ConfigError when the checkpoint has no decoder; DataError naming an image; the signal's reason
 */
export async function describe<T>(
  call: string,
  encoder: Describer,
  images: readonly ImageInput[],
  options: DescribeOptions,
  answer: (question: Question) => Promise<T[]>,
): Promise<T[]> {
  checkOptions(call, options, DESCRIBE_KEYS);
  const { beams = 1, batchSize: size = 8, signal, onProgress } = options,
    results: T[] = [];
  if (!encoder.open().model.config.decoder)
    throw new ConfigError(
      `${call}: this checkpoint has no caption decoder; take one of training with model.decoder`,
    );
  checkCount('batchSize', size);
  checkCount('beams', beams);
  const prepare = (input: ImageInput, index: number): Promise<Item> =>
    encoder.decode(input, signal, async (image) => {
      const { width, height } = image;
      return { index, width, height, pixels: await encoder.vision.prepare(image) };
    });
  const run = async (items: Item[]): Promise<T[]> => {
    const words = await encoder.words(),
      { model, boxes } = encoder.open();
    const { tokens, lengths } = scope(() =>
      noGrad(() =>
        batchInvariant(model.params.device, () =>
          encoder.vision.forDecoder(
            model,
            items.map(({ pixels }) => pixels),
          ),
        ),
      ),
    );
    try {
      const decoding = { beams, imageLengths: lengths, signal, ...(boxes ? { boxes } : {}) };
      return await answer({ model, words, tokens, items, options: decoding });
    } finally {
      tokens.dispose();
      lengths?.dispose();
    }
  };
  for await (const result of inBatches(images, { size, ahead: 2 * size, prepare, run, signal })) {
    results.push(result);
    if (results.length % size === 0 || results.length === images.length)
      onProgress?.(results.length, images.length);
  }
  return results;
}
