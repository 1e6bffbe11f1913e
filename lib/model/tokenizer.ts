/** The tokenizer of a loaded model. */
import { loadTokenizer, type GemmaTokenizer } from '../data/tokenizer.js';
import type { LoadedModel } from './files.js';

/** The tokenizer that a loaded model's texts need. */
export function tokenizerOf(loaded: LoadedModel): Promise<GemmaTokenizer> {
  const { model, lowercase, processor, tokenizer, vocab } = loaded;
  return loadTokenizer({
    lower: lowercase, length: model.config.text.length, generation: processor.generation,
    ...(tokenizer ? { path: tokenizer } : {}), ...(vocab ? { vocab } : {}),
  });
}
