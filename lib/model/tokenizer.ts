/** The tokenizer of a loaded model. */
import { loadTokenizer, type GemmaTokenizer, type TokenizerOptions } from '../data/tokenizer.js';
import type { LoadedModel } from './files.js';

/** What the tokenizer of a loaded model's texts is made with. */
export function tokenizerOptions({ model, lowercase, processor, tokenizer, vocab }: LoadedModel): TokenizerOptions {
  return {
    lower: lowercase, length: model.config.text.length, generation: processor.generation,
    ...(tokenizer ? { path: tokenizer } : {}), ...(vocab ? { vocab } : {}),
  };
}

/** The tokenizer that a loaded model's texts need. */
export function tokenizerOf(loaded: LoadedModel): Promise<GemmaTokenizer> { return loadTokenizer(tokenizerOptions(loaded)); }
