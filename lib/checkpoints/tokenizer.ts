/** The tokenizer of a loaded model. */
import { CheckpointError } from '../errors.js';
import { type GemmaTokenizer, loadTokenizer, type TokenizerOptions } from '../text/tokenizer.js';
import type { LoadedModel } from './load.js';

/**
 * What the tokenizer of a loaded model's texts is made with.
 * @throws CheckpointError when the checkpoint came without its tokenizer
 */
export function tokenizerOptions({
  model,
  lowercase,
  processor,
  tokenizer,
  noTokenizer,
  vocab,
}: LoadedModel): TokenizerOptions {
  if (noTokenizer !== undefined) throw new CheckpointError(noTokenizer);
  const { text } = model.config;
  return {
    lower: lowercase,
    length: text.length,
    generation: processor.generation,
    rows: text.vocab,
    clean: processor.clean,
    ...(tokenizer ? { path: tokenizer } : {}),
    ...(vocab ? { vocab } : {}),
  };
}

/** The tokenizer that a loaded model's texts need. */
export async function tokenizerOf(loaded: LoadedModel): Promise<GemmaTokenizer> {
  return loadTokenizer(tokenizerOptions(loaded));
}
