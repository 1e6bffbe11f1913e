/**
 * What open_clip does to a text before the tokenizer sees it: ftfy's mending, HTML entities, white space. Broken
 * encodings ("Ã©" for "é"), which ftfy guesses, stay broken.
 */

/**
 * "whitespace" makes one space of every run of white space and none at the ends, "lower" also small letters,
 * "canonicalize" also drops ASCII punctuation and makes spaces of underscores.
 */
export type TextCleaning = 'whitespace' | 'lower' | 'canonicalize';

export const ASCII_PUNCTUATION = /[!-/:-@[-`{-~]/g;

/** Of named entities those that are in use. */
const ENTITIES: Record<string, string> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
  nbsp: '\u00a0',
};

function unescape(text: string): string {
  return text.replace(
    /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w+));/g,
    (whole, decimal?: string, hex?: string, name?: string) => {
      if (name !== undefined) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name]! : whole;
      const code = decimal !== undefined ? Number(decimal) : parseInt(hex!, 16);
      return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
    },
  );
}

/** ftfy's fixes of characters: terminal escapes, ligatures, widths, curly quotes, controls, composed letters. */
function mend(text: string): string {
  return text
    .replace(/\x1b\[[\d;]*[a-zA-Z]/g, '')
    .replace(/[\ufb00-\ufb06\u0132\u0133\u0149\u01c4-\u01cc\uff01-\uffef\u3000]/g, (c) =>
      c.normalize('NFKC'),
    )
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(/[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, '')
    .normalize('NFC');
}

/** A text as open_clip cleans it. */
export function cleanText(text: string, clean: TextCleaning): string {
  // ftfy takes a text with "<" for HTML, whose entities stay for now.
  const mended = unescape(unescape(mend(text.includes('<') ? text : unescape(text))));
  const letters =
    clean === 'whitespace'
      ? mended
      : clean === 'lower'
        ? mended.toLowerCase()
        : mended.replaceAll('_', ' ').replace(ASCII_PUNCTUATION, '').toLowerCase();
  return letters.replace(/\s+/g, ' ').trim();
}
