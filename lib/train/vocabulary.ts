/** The trimmed vocabulary of a small model: the token ids that its training captions use. */

import { describeSample, readCaptions } from '../data/sample.js';
import type { SampleSource } from '../data/sample_source.js';
import { FileReader } from '../io/reader.js';
import type { Caption } from '../text/captions.js';
import { parseRegions } from '../text/regions.js';
import { sequenceVocabulary, textPart } from '../text/sequences.js';
import { collectIds, loadTokenizer } from '../text/tokenizer.js';
import { VocabMap } from '../text/vocab.js';
import type { TrainConfig } from './config.js';

export interface VocabularyOptions {
  /** Which captions training can choose; all by default. */
  captions?: Languages;
  lowercase?: 'ascii' | 'unicode' | 'none';
  /** Path of a tokenizer.json; the Gemma one by default. */
  tokenizer?: string | undefined;
  /** Whether the model has a caption decoder. */
  decoder?: boolean;
  /** One line about what was kept. */
  note?: (message: string) => void;
}

/**
 * Reads every caption of the source once and keeps the ids that occur: a small model's token table then has `size` rows
 * (`modelConfig(…, { vocab: size })`), and the loader's tokenizer gets it as `vocab`. With a decoder also the ids of its
 * sequences are kept: phrases of regions, box coordinates, and captions behind a space.
 */
export async function trimmedVocabulary(
  source: SampleSource,
  options: VocabularyOptions = {},
): Promise<VocabMap> {
  const { decoder = false, lowercase: lower = 'ascii', tokenizer: path } = options;
  const texts = new Set<string>(decoder ? sequenceVocabulary() : []);
  const reader = new FileReader();
  try {
    for (const sample of source.samples) {
      const { captions, meta } = readCaptions(reader, sample);
      for (const text of captionsInUse(captions, options.captions ?? {})) {
        texts.add(text);
        if (decoder) texts.add(textPart(text));
      }
      if (decoder)
        for (const { phrase } of parseRegions(meta, describeSample(sample)))
          texts.add(textPart(phrase));
    }
  } finally {
    reader.close();
  }
  const tokenizer = await loadTokenizer({ lower, ...(path ? { path } : {}) });
  const vocab = VocabMap.fromIds(await collectIds(tokenizer, texts));
  options.note?.(
    `vocabulary: ${texts.size} captions use ${vocab.size} of the tokenizer's ids; the model keeps those`,
  );
  return vocab;
}

/** The part of a choice of captions that says which can come at all. */
export type Languages = Partial<
  Pick<TrainConfig['data']['captions'], 'languages' | 'primaryProbability'>
>;

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
