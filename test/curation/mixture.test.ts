/** Shares and order of a mixture's draws, against counting and a convex optimum found in another way. */
import { expect, test } from '@jest/globals';
import {
  type Cell,
  cellShares,
  languageShares,
  MixtureOrder,
  totals,
} from '../../lib/data/mixture_order.js';
import { liveCount } from '../../lib/tensor.js';

const cell = (source: number, language: string, count: number): Cell => ({
  source,
  language,
  count,
});
const CELLS = [
  cell(0, 'en', 4000),
  cell(0, 'de', 300),
  cell(0, 'ja', 100),
  cell(0, 'pt-BR', 20),
  cell(1, 'en', 500),
  cell(1, 'de', 900),
  cell(1, 'mi', 7),
];
const NAMES = ['web', 'clean'];
const sum = (values: Iterable<number>): number => [...values].reduce((a, b) => a + b, 0);

test('languages get their quotas, and those that share one their part by count and temperature', () => {
  const plain = languageShares(CELLS, {});
  expect(plain.get('en')).toBeCloseTo(0.9, 12);
  expect(plain.get('de')! / plain.get('ja')!).toBeCloseTo(12, 9);
  expect(sum(plain.values())).toBeCloseTo(1, 12);
  const flat = languageShares(CELLS, {
    quotas: { en: 0.5, pt: 0.2, mi: 0, other: 0.3 },
    temperature: 2,
  });
  expect(flat.get('pt-BR')).toBeCloseTo(0.2, 12);
  expect(flat.get('mi')).toBe(0);
  expect(flat.get('de')! / flat.get('ja')!).toBeCloseTo(Math.sqrt(12), 9);
});

test('weights of sources and quotas of languages hold together, and nothing else is changed', () => {
  const shares = cellShares(CELLS, NAMES, [3, 1], {});
  expect(sum(shares)).toBeCloseTo(1, 5);
  const sources = totals(CELLS, shares, (c) => c.source),
    languages = totals(CELLS, shares, (c) => c.language);
  expect(sources.get(0)).toBeCloseTo(0.75, 5);
  expect(languages.get('en')).toBeCloseTo(0.9, 5);
  // The optimum of min KL(shares ‖ counts) under both marginals keeps every odds ratio of the counts.
  const odds = (v: ArrayLike<number>): number => (v[0]! * v[5]!) / (v[1]! * v[4]!);
  expect(odds(shares) / odds(CELLS.map((c) => c.count))).toBeCloseTo(1, 3);
});

test.each([
  [
    'a source without the language that most draws are of',
    () => cellShares([cell(0, 'en', 9), cell(1, 'de', 9)], NAMES, [1, 1], {}),
    /cannot hold together: (source|language)/,
  ],
  [
    'quotas that are no shares',
    () => languageShares(CELLS, { quotas: { en: 0.9 } }),
    /add up to 1/,
  ],
  [
    'a language that is not there',
    () => languageShares(CELLS, { quotas: { en: 0.9, fr: 0.1 } }),
    /"fr".*en, de, ja/,
  ],
  ['no other language', () => languageShares([cell(0, 'en', 9)], {}), /any other language/],
  ['temperature 0', () => languageShares(CELLS, { temperature: 0 }), /temperature/],
  [
    'a weight for one source only',
    () => cellShares(CELLS, NAMES, [1, NaN], {}),
    /every source needs/,
  ],
])('refused: %s', (_, run, text) => {
  expect(run).toThrow(
    expect.objectContaining({
      code: 'ERR_CONFIG',
      message: expect.stringMatching(text) as never,
    }) as never,
  );
});

test('100,000 draws have the shares within 1 %, and so has every stretch of them to within a few draws', () => {
  const shares = cellShares(CELLS, NAMES, [3, 1], {}),
    counts = Int32Array.from(CELLS, (c) => c.count);
  const order = new MixtureOrder(counts, shares, 5827, 7);
  const cellOf = counts.reduce<number[]>((all, n, c) => all.concat(Array<number>(n).fill(c)), []);
  const drawn = new Float64Array(CELLS.length),
    entries: number[] = [];
  for (let epoch = 0; entries.length < 100_000; epoch++) entries.push(...order.epoch(epoch));
  entries.length = 100_000;
  for (const entry of entries) drawn[cellOf[entry]!]!++;
  drawn.forEach((n, c) => {
    // 1 % of the share, or two draws where the share is a few draws in all.
    expect(Math.abs(n - 100_000 * shares[c]!)).toBeLessThan(Math.max(2, 1000 * shares[c]!));
  });
  for (let from = 0; from + 512 <= 5827; from += 512) {
    const english = entries
      .slice(from, from + 512)
      .filter((entry) => CELLS[cellOf[entry]!]!.language === 'en').length;
    expect(Math.abs(english - 0.9 * 512)).toBeLessThan(5);
  }
  // Nothing of a cell comes a third time before all of it came twice.
  const times = new Map<number, number>();
  for (const entry of entries)
    if (cellOf[entry] === 1) times.set(entry, (times.get(entry) ?? 0) + 1);
  expect(Math.max(...times.values()) - Math.min(...times.values())).toBeLessThanOrEqual(1);
  expect(times.size).toBe(300);
});

test('an epoch is a function of seed and epoch, and rare cells get their turn in the end', () => {
  const counts = Int32Array.of(60, 3),
    shares = Float64Array.of(0.999, 0.001);
  const make = (seed = 1): MixtureOrder => new MixtureOrder(counts, shares, 63, seed);
  const one = make();
  for (let e = 0; e < 4; e++) one.epoch(e);
  expect(one.epoch(2)).toEqual(make().epoch(2));
  expect(one.epoch(5)).not.toEqual(make(2).epoch(5));
  const rare = Array.from({ length: 160 }, (_, e) => one.draws(e)[1]!);
  expect(Math.abs(sum(rare) - 160 * 63 * 0.001)).toBeLessThan(2);
  expect(sum(one.draws(3))).toBe(63);
});

test('nothing is left alive', () => expect(liveCount()).toBe(0));
