/** The trimmed vocabulary of a small model: the token ids that its training captions use. */
import type { Caption } from '../data/captions.js';
import { FileReader } from '../data/files.js';
import { parseRegions } from '../data/regions.js';
import { sequenceVocabulary, textPart } from '../data/sequences.js';
import { describeSample, readCaptions, type SampleSource } from '../data/sample.js';
import { collectIds, loadTokenizer } from '../data/tokenizer.js';
import { VocabMap } from '../data/vocab.js';
import type { TrainConfig } from './config.js';

/**
 * Reads every caption of the source once and keeps the ids that occur, in the config's languages; with a decoder also
 * those of its sequences: phrases of regions, box coordinates, and captions behind a space.
 */
export async function trimmedVocabulary(config: TrainConfig, source: SampleSource, note: (m: string) => void): Promise<VocabMap> {
  const { data } = config;
  const decoder = (config.model as { decoder?: unknown }).decoder != null;
  const texts = new Set<string>(decoder ? sequenceVocabulary() : []);
  const reader = new FileReader();
  try {
    for (const sample of source.samples) {
      const { captions, meta } = readCaptions(reader, sample);
      for (const text of captionsInUse(captions, data.captions)) {
        texts.add(text);
        if (decoder) texts.add(textPart(text));
      }
      if (decoder) for (const { phrase } of parseRegions(meta, describeSample(sample))) texts.add(textPart(phrase));
    }
  } finally {
    reader.close();
  }
  const tokenizer = await loadTokenizer({ lower: data.lowercase, ...(data.tokenizer ? { path: data.tokenizer } : {}) });
  const vocab = VocabMap.fromIds(await collectIds(tokenizer, texts));
  note(`vocabulary: ${texts.size} captions use ${vocab.size} of the tokenizer's ids; the model keeps those`);
  return vocab;
}

/** The part of a choice of captions that says which can come at all. */
type Languages = Pick<TrainConfig['data']['captions'], 'languages' | 'primaryProbability'>;

/** The captions that training can choose: in the config's languages; only the first of each when the others never are. */
export function* captionsInUse(captions: readonly Caption[], choice: Languages): Generator<string> {
  const seen = new Set<string>();
  for (const { lang, text } of captions) {
    if (choice.languages && !choice.languages.includes(lang)) continue;
    if (choice.primaryProbability === 1 && seen.has(lang)) continue;
    seen.add(lang);
    yield text;
  }
}
