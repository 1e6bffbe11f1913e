/**
 * Regions of an image with a phrase each, and boxes as text (LocCa, arXiv 2403.19596): what the referring-expression
 * and grounded-captioning objectives are made of. Also the queries with which a user's own detector can find regions
 * for a caption (OWLv2, arXiv 2306.09683, §3.1 and A.1).
 */
import { ConfigError, DataError } from '../errors.js';
import type { Random } from '../random.js';

/** Left, top, right, bottom, each as a share of the image's width or height. */
export type Box = readonly [xMin: number, yMin: number, xMax: number, yMax: number];

export interface Region {
  box: Box;
  /** The detector's confidence, in [0, 1]. */
  score: number;
  phrase: string;
  /** Language of the phrase, where the data says it. */
  lang?: string;
}

/** How a box is written. It is part of what a decoder has learnt, so it belongs into a checkpoint's metadata. */
export interface BoxFormat {
  /** Coordinates are rounded to 0 … bins. */
  bins: number;
  /** What the four numbers are, as indices into a Box. */
  order: readonly [number, number, number, number];
}

/** LocCa's: left, bottom, right, top (y runs downwards), 0 to 500. */
export const defaultBoxFormat: BoxFormat = { bins: 500, order: [0, 3, 2, 1] };

/** Throws ConfigError unless the bins are positive and the order is a permutation. */
export function checkBoxFormat({ bins, order }: BoxFormat): void {
  if (!Number.isInteger(bins) || bins < 1)
    throw new ConfigError(`boxes.bins must be a positive integer but is ${bins}`);
  if ([...order].sort().join() !== '0,1,2,3')
    throw new ConfigError(
      `boxes.order must be a permutation of 0, 1, 2, 3 but is ${order.join(', ')}`,
    );
}

/** A box as text, `[a, b, c, d]`; what lies outside the image is clamped to its edge. */
export function formatBox(box: Box, { bins, order }: BoxFormat = defaultBoxFormat): string {
  const number = (i: number): number => Math.round(bins * Math.min(1, Math.max(0, box[i as 0])));
  return `[${order.map(number).join(', ')}]`;
}

/** The first box in a text; undefined when there is none, or its corners are not in order. */
export function parseBox(
  text: string,
  { bins, order }: BoxFormat = defaultBoxFormat,
): Box | undefined {
  const found = /\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]/.exec(text);
  if (!found) return undefined;
  const box: [number, number, number, number] = [0, 0, 0, 0];
  order.forEach((at, i) => {
    box[at as 0] = Math.min(1, Number(found[i + 1]) / bins);
  });
  return box[0] <= box[2] && box[1] <= box[3] ? box : undefined;
}

/** Area of the intersection over area of the union; 0 where both are empty. */
export function iou(a: Box, b: Box): number {
  const side = (low: 0 | 1): number =>
    Math.max(0, Math.min(a[(low + 2) as 2], b[(low + 2) as 2]) - Math.max(a[low], b[low]));
  const area = (x: Box): number => (x[2] - x[0]) * (x[3] - x[1]);
  const both = side(0) * side(1),
    all = area(a) + area(b) - both;
  return all > 0 ? both / all : 0;
}

/**
 * The regions of a sample's metadata: `regions: [{ box: [xMin, yMin, xMax, yMax], score, phrase, lang? }, …]`, boxes
 * normalised to the image; a missing score is 1. A box that reaches beyond the image is clamped; a region is left out
 * when nothing of its box remains or its phrase is blank.
 * @param name the sample, for the error
 * @throws DataError when a field has the wrong type, a number is not finite, or corners are not in order
 */
export function parseRegions(meta: Readonly<Record<string, unknown>>, name: string): Region[] {
  const list = meta['regions'];
  if (list === undefined || list === null) return [];
  if (!Array.isArray(list))
    throw new DataError(`${name}: regions must be a list but is ${typeof list}`);
  return list.flatMap((item: unknown, i): Region[] => {
    const { box, score = 1, phrase, lang } = Object(item) as Record<string, unknown>;
    const bad = (what: string): DataError =>
      new DataError(`${name}: regions[${i}]: ${what}; correct the annotation or remove it`);
    if (
      !Array.isArray(box) ||
      box.length !== 4 ||
      !box.every((v) => typeof v === 'number' && Number.isFinite(v))
    )
      throw bad(`box must be [xMin, yMin, xMax, yMax] but is ${JSON.stringify(box)?.slice(0, 60)}`);
    const [x0, y0, x1, y1] = box as [number, number, number, number];
    if (x0 > x1 || y0 > y1)
      throw bad(
        `the corners of box ${JSON.stringify(box)} are not in order xMin, yMin, xMax, yMax`,
      );
    if (typeof score !== 'number' || !(score >= 0 && score <= 1))
      throw bad(`score must be in [0, 1] but is ${String(score)}`);
    if (typeof phrase !== 'string') throw bad(`phrase must be a text but is ${typeof phrase}`);
    const inside = (v: number): number => Math.min(1, Math.max(0, v));
    const clamped: Box = [inside(x0), inside(y0), inside(x1), inside(y1)];
    if (clamped[0] === clamped[2] || clamped[1] === clamped[3] || phrase.trim() === '') return [];
    return [
      { box: clamped, score, phrase: phrase.trim(), ...(typeof lang === 'string' ? { lang } : {}) },
    ];
  });
}

/**
 * One region for the referring expression and one for grounded captioning, chosen independently and uniformly among
 * those with at least `minScore`; undefined when there is none.
 */
export function sampleRegions(
  regions: readonly Region[],
  random: Random,
  minScore = 0.3,
): { aref: Region; gcap: Region } | undefined {
  const good = regions.filter(({ score }) => score >= minScore);
  return good.length > 0 ? { aref: random.pick(good), gcap: random.pick(good) } : undefined;
}

/** Words that say nothing about what can be seen: of files, shops, sites and pictures as such. */
const GENERIC = new Set(
  (
    'image images img picture pictures pic pics photo photos photograph photography photographer jpg jpeg png gif ' +
    'webp svg pdf file files download downloads free wallpaper wallpapers background thumbnail icon clipart ' +
    'vector stock royalty getty shutterstock istock alamy adobe depositphotos pinterest facebook instagram ' +
    'twitter youtube flickr etsy ebay amazon walmart aliexpress shop shopping store buy sale price cheap discount ' +
    'order shipping online official website web site page com www http https html copyright rights reserved ' +
    'license click view preview gallery album screenshot hd uhd 4k'
  ).split(' '),
);

const STOP_WORDS = new Set(
  (
    'a about above after again all am an and any are as at be because been before being below between both but by ' +
    'can did do does doing down during each few for from further had has have having he her here hers him his how ' +
    'i if in into is it its just me more most my no nor not now of off on once only or other our out over own ' +
    'same she so some such than that the their them then there these they this those through to too under until ' +
    'up very was we were what when where which while who whom why will with you your'
  ).split(' '),
);

/**
 * The phrases of a caption that a detector is asked for: lower-case, generic words dropped, every run of 1 to
 * `longest` words that is not made of stop-words only; shorter ones first, each once.
 * @param options.longest 10 words
 * @param options.most 300 queries
 */
export function ngramQueries(
  caption: string,
  options: { longest?: number; most?: number } = {},
): string[] {
  const { longest = 10, most = 300 } = options;
  const words = caption
    .toLowerCase()
    .split(/\s+/u)
    .map((w) => w.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, ''))
    .filter((w) => w !== '' && !GENERIC.has(w));
  const found = new Set<string>();
  for (let n = 1; n <= Math.min(longest, words.length); n++)
    for (let i = 0; i + n <= words.length; i++) {
      if (found.size >= most) return [...found];
      const run = words.slice(i, i + n);
      if (!run.every((w) => STOP_WORDS.has(w))) found.add(run.join(' '));
    }
  return [...found];
}
