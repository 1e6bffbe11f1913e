/**
 * Which language a caption is in, where nobody says: identified by eld (60 languages, Apache-2.0, offline). Its tables
 * take some hundred MB, so only the thread that indexes a collection loads them, and only when it is asked to.
 */

/** As the language of a source: each sample's is identified from its captions. */
export const DETECT = 'detect';
/** BCP 47's "undetermined": text whose language nobody could tell. */
export const UNDETERMINED = 'und';

/**
 * @returns a BCP 47 code; "und" when the text is too short or too mixed to tell; undefined when it holds no letter and so is
 *   in no language: numbers, punctuation, emoji
 */
export type LanguageDetector = (text: string) => string | undefined;

/** Loads the detector. */
export async function languageDetector(): Promise<LanguageDetector> {
  const { eld } = await import('eld');
  if ('load' in eld) await eld.load('large');
  eld.enableTextCleanup(true); // addresses and file names say nothing about the language around them
  return (text) => {
    if (!/\p{L}/u.test(text)) return undefined;
    const found = eld.detect(text);
    return found.language !== '' && found.isReliable() ? found.language : UNDETERMINED;
  };
}
