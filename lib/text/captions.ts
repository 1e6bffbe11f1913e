/**
 * Captions of a sample: parsing them from .txt and .json, and choosing which ones a training step
 * sees.
 */
import { ConfigError } from '../errors.js';
import type { Random } from '../random.js';
import { decodeText, parseJson } from './decode_text.js';

/**
 * One caption. The first caption of a language is its primary one (in the emoji dataset: the short
 * name).
 */
export interface Caption {
  /** BCP 47 language code, e.g. "en". */
  lang: string;
  text: string;
}

/** A sample's captions and whatever else its JSON says. */
export interface ParsedCaptions {
  captions: Caption[];
  meta: Record<string, unknown>;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Adds the strings of a JSON value (a string or a list of them) that are not blank. */
function collect(value: unknown, lang: string, out: Caption[]): void {
  for (const item of Array.isArray(value) ? value : [value]) {
    const said: unknown = isObject(item) ? item['text'] : item;
    if (typeof said !== 'string') continue;
    // Half of a surrogate pair is what a cut emoji leaves in JSON; as UTF-8 it would be a replacement character.
    const text = said.replace(/\p{Cs}/gu, '').trim();
    if (text !== '')
      out.push({
        lang: isObject(item) && typeof item['lang'] === 'string' ? item['lang'] : lang,
        text,
      });
  }
}

/**
 * The captions in a parsed JSON object: `{captions: {en: ["a", "b"], de: "c"}}`, `{captions: ["a",
 * {lang: "de", text: "b"}]}`, `{caption: "a"}` or `{text: "a"}`, the last three in the language of
 * `lang`/`language`, else in `language`. All other keys are `meta`.
 * @param key the captions' key where it is another one
 */
export function captionsFromObject(
  object: unknown,
  language: string,
  key?: string,
): ParsedCaptions {
  if (!isObject(object)) return { captions: [], meta: {} };
  const { captions, caption, text, ...meta } =
    key === undefined ? object : { ...object, captions: object[key], caption: null, text: null };
  const own =
    typeof meta['lang'] === 'string'
      ? meta['lang']
      : typeof meta['language'] === 'string'
        ? meta['language']
        : language;
  const out: Caption[] = [];
  if (isObject(captions)) {
    for (const [lang, list] of Object.entries(captions)) collect(list, lang, out);
  } else if (captions !== undefined) {
    collect(captions, own, out);
  }
  if (out.length === 0) collect(caption ?? text, own, out);
  return { captions: out, meta };
}

/** Parses a .json (or a line of .jsonl). Throws SyntaxError when it is not JSON, NotText when it is not even text. */
export function captionsFromJson(data: Uint8Array, language: string, key?: string): ParsedCaptions {
  return captionsFromObject(parseJson(decodeText(data)), language, key);
}

/** Parses a .txt: the whole text is one caption. Throws NotText. */
export function captionsFromText(data: Uint8Array, language: string): ParsedCaptions {
  const text = decodeText(data).trim();
  return { captions: text === '' ? [] : [{ lang: language, text }], meta: {} };
}

/** Which captions a sample contributes to a batch. */
export interface CaptionChoice {
  /**
   * One entry for each caption per image: "any" (any caption), "other" (a language that no other
   * entry of this list names, and not one already chosen for this image if that can be helped), or
   * a language code. A sample that lacks the language asked for falls back to "any". Default
   * ["any"].
   */
  pick?: string[];
  /**
   * Probability of a language's first caption where there are several; the rest share what is left.
   * Default: all captions of the language are equally likely. Entries "any" choose among all
   * captions unless this is set.
   */
  primaryProbability?: number;
  /** Languages to use; captions in others are ignored. Default: all. */
  languages?: string[];
}

/** Throws ConfigError when a choice has a value out of range. */
export function checkCaptionChoice(choice: CaptionChoice): void {
  const { pick = ['any'], primaryProbability: p, languages } = choice;
  if (
    !Array.isArray(pick) ||
    pick.length === 0 ||
    pick.some((entry) => typeof entry !== 'string' || entry === '')
  ) {
    throw new ConfigError(
      'captions.pick: expected a non-empty list of "any", "other" or language codes',
    );
  }
  if (p !== undefined && !(p >= 0 && p <= 1)) {
    throw new ConfigError(`captions.primaryProbability: expected a number in [0, 1] but got ${p}`);
  }
  for (const entry of pick) {
    if (
      languages !== undefined &&
      entry !== 'any' &&
      entry !== 'other' &&
      !languages.includes(entry)
    ) {
      throw new ConfigError(
        `captions.pick names "${entry}", which captions.languages leaves out; add it there`,
      );
    }
  }
}

/** Captions by language, as `chooseCaptions` draws from them. */
export interface CaptionGroups {
  all: readonly Caption[];
  byLang: ReadonlyMap<string, readonly Caption[]>;
  langs: readonly string[];
  /** Languages that no entry of `pick` names. */
  unnamed: readonly string[];
}

/** The captions in the languages of a choice; a sample that comes back keeps its groups. */
export function groupCaptions(
  captions: readonly Caption[],
  { pick = ['any'], languages }: CaptionChoice,
): CaptionGroups {
  const byLang = new Map<string, Caption[]>();
  const all = captions.filter(({ lang }) => languages === undefined || languages.includes(lang));
  for (const caption of all) {
    const list = byLang.get(caption.lang);
    if (list === undefined) byLang.set(caption.lang, [caption]);
    else list.push(caption);
  }
  const langs = [...byLang.keys()];
  return { all, byLang, langs, unnamed: langs.filter((lang) => !pick.includes(lang)) };
}

/**
 * Chooses one caption for each entry of `choice.pick`.
 * @param groups what `groupCaptions` made for the same choice
 * @returns as many captions as entries; undefined when no caption is in an allowed language
 */
export function chooseCaptions(
  { all, byLang, langs, unnamed }: CaptionGroups,
  { pick = ['any'], primaryProbability }: CaptionChoice,
  random: Random,
): Caption[] | undefined {
  if (all.length === 0) return undefined;
  const inLanguage = (lang: string): Caption => {
    const list = byLang.get(lang)!;
    if (list.length === 1 || primaryProbability === undefined) return random.pick(list);
    return random.uniform() < primaryProbability
      ? (list[0] as Caption)
      : (list[1 + random.below(list.length - 1)] as Caption);
  };
  const any = (): Caption =>
    primaryProbability === undefined ? random.pick(all) : inLanguage(random.pick(langs));

  const chosen: Caption[] = [];
  for (const entry of pick) {
    if (entry === 'other') {
      const fresh =
        chosen.length === 0
          ? unnamed
          : unnamed.filter((lang) => !chosen.some((caption) => caption.lang === lang));
      const from = fresh.length > 0 ? fresh : unnamed;
      chosen.push(from.length > 0 ? inLanguage(random.pick(from)) : any());
    } else {
      chosen.push(entry !== 'any' && byLang.has(entry) ? inLanguage(entry) : any());
    }
  }
  return chosen;
}
