/** Names and keywords of emoji from CLDR. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { readJson } from '../../fs/files.js';
import { packageFolder } from '../../fs/packages.js';

/** CLDR's names for languages that are called otherwise elsewhere. */
const CLDR_NAMES: Record<string, string> = { quz: 'qu' };

/** CLDR's name for a language. */
export function cldrName(language: string): string {
  return CLDR_NAMES[language] ?? language;
}

/**
 * More keywords than this make a phrase of a few languages longer than the tokenizer's 64 tokens.
 */
export const KEYWORDS = 8;

interface Annotation {
  default?: string[];
  tts?: string[];
}

function codePointsOf(char: string): string {
  return [...char]
    .filter((c) => c !== '\ufe0f')
    .map((c) => (c.codePointAt(0) as number).toString(16))
    .join('-');
}

/** CLDR's annotations of one language. */
function annotations(language: string, derived: boolean): Map<string, Annotation> {
  const cldr = cldrName(language);
  const out = new Map<string, Annotation>();
  const packages = [['cldr-annotations-full', 'annotations']];
  if (derived) packages.push(['cldr-annotations-derived-full', 'annotationsDerived']);
  for (const [name, root] of packages as [string, string][]) {
    const file = path.join(packageFolder(name), root, cldr, 'annotations.json');
    // Not every language has derived names.
    if (root === 'annotationsDerived' && !fs.existsSync(file)) continue;
    const data = readJson(file) as Record<
      string,
      { annotations?: Record<string, Annotation> } | undefined
    >;
    for (const [char, annotation] of Object.entries(data[root]?.annotations ?? {})) {
      out.set(codePointsOf(char), annotation);
    }
  }
  return out;
}

/**
 * Name and keyword phrase of a class in one language; the phrase leaves out what only repeats the
 * name.
 */
function phrases(annotation: Annotation | undefined): string[] {
  const name = annotation?.tts?.[0]?.trim();
  if (name === undefined || name === '') return [];
  const words = (annotation?.default ?? []).filter((word) => word !== name).slice(0, KEYWORDS);
  return words.length > 0 ? [name, words.join(', ')] : [name];
}

/** One class: a code point or sequence. */
export interface EmojiClass {
  /** 0 .. classes-1, in order of code points. */
  id: number;
  /** Hexadecimal, joined by "-", without variation selectors, e.g. "1f600". */
  codePoints: string;
  /** The characters themselves, as CLDR spells them. */
  char: string;
  /** Short name by language; "en" is always there. */
  names: Record<string, string>;
}

/** Which emoji are classes; see `EmojiOptions`. */
export interface ClassChoice {
  derived?: boolean;
  skinTones?: boolean;
  sequences?: boolean;
  maxClasses?: number;
}

/** A class with its captions. */
export interface ClassText extends EmojiClass {
  /** JSON of all captions: {"en": [name, keywords], ...}. */
  captions: string;
  count: number;
}

/** The classes with their captions, in order of code points. */
export function readClassTexts(options: ClassChoice, languages: readonly string[]): ClassText[] {
  const derived = options.derived ?? false;
  const byLanguage = languages.map(
    (language) => [language, annotations(language, derived)] as const,
  );
  const english = byLanguage.find(([language]) => language === 'en')?.[1] as Map<
    string,
    Annotation
  >;
  const classes: ClassText[] = [];
  for (const [codePoints, annotation] of english) {
    const char = String.fromCodePoint(...codePoints.split('-').map((hex) => parseInt(hex, 16)));
    if (phrases(annotation).length === 0) continue;
    if (
      !/\p{Extended_Pictographic}|\p{Emoji_Presentation}|\p{Regional_Indicator}|\u20e3/u.test(char)
    )
      continue;
    if (/\p{Emoji_Modifier}/u.test(char) && !(options.skinTones ?? false)) continue;
    if (char.includes('\u200d') && !(options.sequences ?? true)) continue;
    const names: Record<string, string> = {};
    const captions: Record<string, string[]> = {};
    let count = 0;
    for (const [language, map] of byLanguage) {
      const list = phrases(map.get(codePoints));
      if (list.length === 0) continue;
      names[language] = list[0] as string;
      captions[language] = list;
      count += list.length;
    }
    classes.push({ id: 0, codePoints, char, names, captions: JSON.stringify(captions), count });
  }
  const order = (text: string): string =>
    text
      .split('-')
      .map((hex) => hex.padStart(6, '0'))
      .join('-');
  classes.sort((a, b) => (order(a.codePoints) < order(b.codePoints) ? -1 : 1));
  return classes.slice(0, options.maxClasses);
}
