/** What the caption decoder says of images: captions, the box of a phrase, the phrase of a box. */

import { type DecodeOptions, decode } from '../model/decode.js';
import type { Siglip2Model } from '../model/siglip2.js';
import type { Tensor } from '../tensor.js';
import type { Box, BoxFormat } from '../text/regions.js';
import { parseBox } from '../text/regions.js';
import { decoderSequences, type SequenceContent } from '../text/sequences.js';
import type { GemmaTokenizer } from '../text/tokenizer.js';

export interface LocalizeOptions extends DecodeOptions {
  /** As in training. */
  boxes?: BoxFormat;
}

/** The text behind each query. */
async function answers(
  model: Siglip2Model,
  tokenizer: GemmaTokenizer,
  image: Tensor,
  queries: readonly SequenceContent[],
  options: LocalizeOptions,
): Promise<string[]> {
  const length = options.length ?? model.config.decoder?.length ?? 0;
  const format = options.boxes ? { boxes: options.boxes } : {};
  const sequences = await decoderSequences(tokenizer, queries, length, { query: true, ...format });
  const beginnings = sequences.map((s) => s?.ids ?? new Int32Array(0));
  const found = await decode(model, image, beginnings, options);
  return Promise.all(
    found.map(async ({ ids }, i) =>
      (await tokenizer.decode(ids.subarray(beginnings[i]!.length))).trim(),
    ),
  );
}

/**
 * One caption per image.
 * @param tokenizer with the model's vocabulary
 * @param image (B, N, Dv) from `model.imageTokens`
 */
export function captionImages(
  model: Siglip2Model,
  tokenizer: GemmaTokenizer,
  image: Tensor,
  options: LocalizeOptions = {},
): Promise<string[]> {
  const queries = Array.from({ length: image.shape[0]! }, () => ({ task: 'cap' as const }));
  return answers(model, tokenizer, image, queries, options);
}

/** The box of one phrase per image; undefined where what was written is no box. */
export async function boxesOfPhrases(
  model: Siglip2Model,
  tokenizer: GemmaTokenizer,
  image: Tensor,
  phrases: readonly string[],
  options: LocalizeOptions = {},
): Promise<(Box | undefined)[]> {
  const texts = await answers(
    model,
    tokenizer,
    image,
    phrases.map((text) => ({ task: 'aref' as const, text })),
    options,
  );
  return texts.map((text) => parseBox(text, options.boxes));
}

/** The phrase of one box per image. */
export function phrasesOfBoxes(
  model: Siglip2Model,
  tokenizer: GemmaTokenizer,
  image: Tensor,
  boxes: readonly Box[],
  options: LocalizeOptions = {},
): Promise<string[]> {
  return answers(
    model,
    tokenizer,
    image,
    boxes.map((box) => ({ task: 'gcap' as const, box })),
    options,
  );
}
