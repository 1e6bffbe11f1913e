/** The tokenizer of a loaded model. */
import { loadTokenizer, type GemmaTokenizer } from '../data/tokenizer.js';
import type { LoadedModel } from './files.js';

/** The tokenizer that a loaded model's texts need. */
export function tokenizerOf(loaded: LoadedModel): Promise<GemmaTokenizer> {
  return loadTokenizer({
    lower: loaded.lowercase, length: loaded.model.config.text.length, generation: loaded.processor.generation, ...(loaded.tokenizer ? { path: loaded.tokenizer } : {}),
    ...(loaded.vocab ? { vocab: loaded.vocab } : {}),
  });
}
