/** Pieces that every report is made of: escaping, numbers, languages, bars. */

const RTL_SCRIPTS = new Set([
  'Arab',
  'Hebr',
  'Thaa',
  'Syrc',
  'Nkoo',
  'Adlm',
  'Rohg',
  'Mand',
  'Samr',
]);

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** Text for an element or a quoted attribute. */
export function escape(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (character) => ENTITIES[character]!);
}

/** A whole number with separators. */
export const grouped = (value: number): string => escape(Math.round(value).toLocaleString('en'));

/** A fraction as percent, with as many digits as tell small figures apart. */
export function percent(fraction: number): string {
  if (!Number.isFinite(fraction)) return '–';
  const value = fraction * 100;
  return `${value.toFixed(value === 0 || value === 100 ? 0 : value < 0.995 ? 2 : 1)}\u00a0%`;
}

/** Tag and direction of a language; a tag that is none is not claimed to be one. */
export function locale(tag: string): { attributes: string; name: string } {
  try {
    const parsed = new Intl.Locale(tag);
    const dir = RTL_SCRIPTS.has(parsed.maximize().script ?? '') ? 'rtl' : 'ltr';
    const name = new Intl.DisplayNames(['en'], { type: 'language' }).of(parsed.toString()) ?? tag;
    return { attributes: `lang="${escape(parsed.toString())}" dir="${dir}"`, name };
  } catch {
    return { attributes: 'dir="auto"', name: tag };
  }
}

/** A bar of a width given as a fraction of its track. */
export function bar(fraction: number): string {
  const width = Math.min(100, Math.max(0, fraction * 100)) || 0;
  return `<i class="bar" style="--w:${width.toFixed(1)}%"></i>`;
}
