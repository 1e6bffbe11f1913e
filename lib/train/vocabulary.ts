/** The trimmed vocabulary of a small model: the token ids that its training captions use. */
import { FileReader } from '../data/files.js';
import { readCaptions, type SampleSource } from '../data/source.js';
import { collectIds, loadTokenizer } from '../data/tokenizer.js';
import { VocabMap } from '../data/vocab.js';
import type { TrainConfig } from './config.js';

/** Reads every caption of the source once and keeps the ids that occur, in the config's languages. */
export async function trimmedVocabulary(config: TrainConfig, source: SampleSource, note: (m: string) => void): Promise<VocabMap> {
  const { data } = config;
  const texts = new Set<string>();
  const reader = new FileReader();
  try {
    for (const sample of source.samples)
      for (const { lang, text } of readCaptions(reader, sample).captions)
        if (!data.captions.languages || data.captions.languages.includes(lang)) texts.add(text);
  } finally {
    reader.close();
  }
  const tokenizer = await loadTokenizer({ lower: data.lowercase, ...(data.tokenizer ? { path: data.tokenizer } : {}) });
  const vocab = VocabMap.fromIds(await collectIds(tokenizer, texts));
  note(`vocabulary: ${texts.size} captions use ${vocab.size} of the tokenizer's ids; the model keeps those`);
  return vocab;
}
