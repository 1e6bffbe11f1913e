/** Zero-shot evaluation of a model on the emoji sets: every language, beside chance and the pixel baseline. */

import type { LoadedModel } from '../checkpoints/load.js';
import { embedImages, embedTexts } from '../inference/embed.js';
import { evaluateLanguage, type LanguageScores, scores, topK } from '../inference/retrieval.js';
import type { GemmaTokenizer } from '../text/tokenizer.js';
import { candidateNames, type EvalSet, type EvalSuite, pixelNeighbour } from './sets.js';

/** One set's part of eval.json. Fractions in [0, 1]. */
export interface SetResult {
  classes: number;
  /** Images. */
  n: number;
  /** Top-1 of guessing. */
  chance: number;
  /** Top-1 of the nearest training picture by 16×16 pixels. */
  pixel_1nn: number;
  languages: Record<string, LanguageScores>;
}

/** Yields [set name, result] for every set of the suite. Names of a class that a language lacks are left out there. */
export async function* evaluateSuite(
  loaded: LoadedModel,
  suite: EvalSuite,
  tokenizer: GemmaTokenizer,
  onProgress: (done: number, total: number) => void = () => undefined,
): AsyncGenerator<[string, SetResult]> {
  const { model } = loaded,
    d = model.config.embed;
  const texts = new Map<string, { ids: Int32Array; names: string[]; rows: Float32Array }>();
  const total = suite.sets.length * suite.languages.length;
  let done = 0;
  for (const set of suite.sets) {
    const n = set.classes.length;
    const images = await embedImages(model, set.images, n);
    const languages: Record<string, LanguageScores> = {};
    for (const language of suite.languages) {
      const { ids, names } = candidateNames(suite, set, language);
      const key = `${language} ${ids.join()}`;
      let t = texts.get(key);
      if (!t)
        texts.set(
          key,
          (t = {
            ids,
            names,
            rows: await embedTexts(model, await tokenizer.encodeBatch(names), names.length),
          }),
        );
      const row = new Map(Array.from(ids, (id, i) => [id, i]));
      const named = [...set.classes.keys()].filter((i) => row.has(set.classes[i]!));
      const some =
        named.length === n
          ? images
          : Float32Array.from(
              { length: named.length * d },
              (_, i) => images[named[Math.floor(i / d)]! * d + (i % d)]!,
            );
      languages[language] = await evaluateLanguage(
        some,
        named.map((i) => row.get(set.classes[i]!)!),
        names.length ? t.rows : new Float32Array(0),
        names,
        d,
        model.params.device,
      );
      onProgress(++done, total);
    }
    yield [
      set.name,
      {
        classes: set.candidates.length,
        n,
        chance: 1 / set.candidates.length,
        pixel_1nn: pixelNeighbour(set, suite.gallery),
        languages,
      },
    ];
  }
}

/** A typed query and the pictures it found, best first. */
export interface Found {
  query: string;
  language: string;
  /** Rows of the set. */
  images: number[];
  correct: boolean[];
}

/** What the names of some classes retrieve from a set, in several languages. */
export async function retrieve(
  loaded: LoadedModel,
  suite: EvalSuite,
  set: EvalSet,
  tokenizer: GemmaTokenizer,
  queries: readonly { language: string; id: number }[],
  k: number,
): Promise<Found[]> {
  const { model } = loaded,
    d = model.config.embed,
    n = set.classes.length;
  const images = await embedImages(model, set.images, n);
  const words = queries.map(({ language, id }) => suite.names[id]![language]!);
  const rows = await embedTexts(model, await tokenizer.encodeBatch(words), words.length);
  const s = await scores(rows, images, d, model.params.device);
  return queries.map(({ language, id }, q) => {
    const best = topK(s.subarray(q * n, (q + 1) * n), k);
    return {
      query: words[q]!,
      language,
      images: best,
      correct: best.map(
        (i) => suite.names[set.classes[i]!]![language] === suite.names[id]![language],
      ),
    };
  });
}
