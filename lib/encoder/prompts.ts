/**
 * Prompt templates for zero-shot classification. A label's embedding is the mean of its prompts' embeddings. They are
 * phrased so that the label can stand in its dictionary form: no article, case or gender has to fit.
 */
import { kindOf } from '../check.js';
import { ConfigError } from '../errors.js';
import { checkStrings } from './options.js';

/** By language (BCP 47, lower case); `{label}` stands for the label. */
export const PROMPTS: Readonly<Record<string, readonly string[]>> = {
  en: ['a photo of {label}.', 'a picture of {label}.', '{label}'],
  ar: ['صورة: {label}', '{label}'],
  bg: ['снимка: {label}', '{label}'],
  bn: ['ছবি: {label}', '{label}'],
  ca: ['foto: {label}', '{label}'],
  cs: ['fotografie: {label}', '{label}'],
  da: ['foto: {label}', '{label}'],
  de: ['ein Foto: {label}', '{label}'],
  el: ['φωτογραφία: {label}', '{label}'],
  es: ['una foto: {label}', '{label}'],
  et: ['foto: {label}', '{label}'],
  fa: ['عکس: {label}', '{label}'],
  fi: ['valokuva: {label}', '{label}'],
  fr: ['une photo : {label}', '{label}'],
  he: ['תמונה: {label}', '{label}'],
  hi: ['तस्वीर: {label}', '{label}'],
  hr: ['fotografija: {label}', '{label}'],
  hu: ['fénykép: {label}', '{label}'],
  id: ['foto {label}', '{label}'],
  it: ['una foto: {label}', '{label}'],
  ja: ['{label}の写真', '{label}'],
  ko: ['{label} 사진', '{label}'],
  lt: ['nuotrauka: {label}', '{label}'],
  lv: ['foto: {label}', '{label}'],
  nl: ['een foto: {label}', '{label}'],
  no: ['foto: {label}', '{label}'],
  pl: ['zdjęcie: {label}', '{label}'],
  pt: ['uma foto: {label}', '{label}'],
  ro: ['fotografie: {label}', '{label}'],
  ru: ['фотография: {label}', '{label}'],
  sk: ['fotografia: {label}', '{label}'],
  sl: ['fotografija: {label}', '{label}'],
  sr: ['фотографија: {label}', '{label}'],
  sv: ['foto: {label}', '{label}'],
  sw: ['picha ya {label}', '{label}'],
  th: ['ภาพถ่าย {label}', '{label}'],
  tr: ['fotoğraf: {label}', '{label}'],
  uk: ['фотографія: {label}', '{label}'],
  vi: ['ảnh {label}', '{label}'],
  zh: ['{label}的照片', '{label}'],
};

/**
 * The templates of a language, or the caller's own.
 * @throws ConfigError for a language without templates (it lists those there are), or a template without `{label}`
 */
export function promptTemplates(
  language: string,
  templates?: readonly string[],
): readonly string[] {
  if (templates) {
    const bad = checkStrings('zeroShot', 'templates', templates).find(
      (t) => !t.includes('{label}'),
    );
    if (templates.length === 0 || bad !== undefined)
      throw new ConfigError(
        `templates must each contain {label} but ${bad === undefined ? 'there is none' : `${JSON.stringify(bad)} does not`}`,
      );
    return templates;
  }
  if (typeof language !== 'string')
    throw new ConfigError(`the language must be a tag such as "de" but is ${kindOf(language)}`);
  const tag = language.toLowerCase(),
    found = [tag, tag.split('-')[0]!].find((key) => Object.hasOwn(PROMPTS, key));
  if (!found)
    throw new ConfigError(
      `there are no prompt templates for language "${language}"; give templates, or choose one of ${Object.keys(PROMPTS).join(', ')}`,
    );
  return PROMPTS[found]!;
}
