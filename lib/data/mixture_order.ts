/**
 * How often each source and each language of a mixture is drawn, and in which order. A cell is one language of one
 * source.
 */
import { ConfigError } from '../errors.js';
import { permutation, Random, Stream } from '../random.js';

/** The captions of one language in one source. */
export interface Cell {
  /** Index of the source. */
  source: number;
  /** BCP 47 code. */
  language: string;
  /** Samples that have a caption in it, at least 1. */
  count: number;
}

export interface LanguageMix {
  /**
   * Share of the draws by language; `other` is shared by all that are not named, and a code without a region stands for
   * all its regions. They add up to 1; 0 leaves a language out. Default {en: 0.9, other: 0.1}, as in SigLIP 2 §2.1.
   */
  quotas?: Record<string, number>;
  /**
   * Languages that share a quota get parts ∝ count^(1/temperature): 1 as they come, larger ones are more even. Default
   * 1.
   */
  temperature?: number;
}

/** SigLIP 2's mixture: 90 % English, 10 % all other languages. */
export const DEFAULT_QUOTAS: Readonly<Record<string, number>> = { en: 0.9, other: 0.1 };
/** Most that a source or language may get too much or too little when weights and quotas are fitted to each other. */
const TOLERANCE = 1e-4;
const ROUNDS = 20_000;

/** The quota that a language falls under: itself, itself without its region, or `other`. */
function quotaOf(language: string, quotas: Readonly<Record<string, number>>): string {
  if (Object.hasOwn(quotas, language)) return language;
  const primary = language.split('-')[0]!.toLowerCase();
  return Object.hasOwn(quotas, primary) ? primary : 'other';
}

/** The shares of the languages: quotas, divided within `other` and between regions by count^(1/temperature). */
export function languageShares(cells: readonly Cell[], mix: LanguageMix): Map<string, number> {
  const { quotas = DEFAULT_QUOTAS, temperature = 1 } = mix;
  const sum = Object.values(quotas).reduce((a, b) => a + b, 0);
  if (Object.values(quotas).some((q) => !(q >= 0)) || Math.abs(sum - 1) > 1e-6)
    throw new ConfigError(
      `mixture: the quotas ${JSON.stringify(quotas)} must be shares that add up to 1 but add up to ${sum}`,
    );
  if (!(temperature > 0))
    throw new ConfigError(`mixture: temperature must be positive but is ${temperature}`);
  const counts = new Map<string, number>(),
    weights = new Map<string, number>();
  for (const { language, count } of cells)
    counts.set(language, (counts.get(language) ?? 0) + count);
  for (const [language, count] of counts) {
    const quota = quotaOf(language, quotas);
    weights.set(quota, (weights.get(quota) ?? 0) + count ** (1 / temperature));
  }
  const missing = Object.keys(quotas).find((quota) => quotas[quota]! > 0 && !weights.has(quota));
  if (missing !== undefined)
    throw new ConfigError(
      `mixture: the quota of "${missing}" is ${quotas[missing]} but no caption is in ` +
        `${missing === 'other' ? 'any other language' : 'that language'}; there are captions in ${[...counts.keys()].join(', ')}`,
    );
  return new Map(
    [...counts].map(([language, count]) => {
      const quota = quotaOf(language, quotas);
      return [language, ((quotas[quota] ?? 0) * count ** (1 / temperature)) / weights.get(quota)!];
    }),
  );
}

/**
 * The share of each cell in the draws: sources get their weights, languages their quotas, and beyond that every sample
 * is as likely as the next. Weights and quotas are reconciled by iterative proportional fitting (Deming and Stephan
 * 1940), which gives the shares nearest to the collection as it is.
 * @param weights of the sources, in any unit; undefined leaves them to their languages
 * @returns shares that add up to 1
 * @throws ConfigError when quotas or weights are no shares, or cannot hold together
 */
export function cellShares(
  cells: readonly Cell[],
  names: readonly string[],
  weights: readonly number[] | undefined,
  mix: LanguageMix,
): Float64Array {
  const languages = languageShares(cells, mix);
  const shares = Float64Array.from(cells, ({ language, count }) =>
    languages.get(language)! > 0 ? count : 0,
  );
  const fit = <K>(keyOf: (cell: Cell) => K, targets: ReadonlyMap<K, number>): void => {
    const sums = totals(cells, shares, keyOf);
    cells.forEach((cell, i) => {
      const sum = sums.get(keyOf(cell))!;
      if (sum > 0) shares[i]! *= targets.get(keyOf(cell))! / sum;
    });
  };
  const language = (cell: Cell): string => cell.language,
    source = (cell: Cell): number => cell.source;
  if (weights === undefined) {
    fit(language, languages);
    return shares;
  }
  if (weights.some((w) => !(w > 0)) || weights.length !== names.length)
    throw new ConfigError(
      `mixture: every source needs a positive weight, or none has one; they are ${weights.join(', ')}`,
    );
  const all = weights.reduce((a, b) => a + b, 0);
  const sources = new Map(weights.map((w, s) => [s, w / all]));
  for (let round = 0; round < ROUNDS; round++) {
    fit(source, sources);
    // Only the languages can be off now.
    const got = totals(cells, shares, language);
    if ([...languages].every(([l, share]) => Math.abs(share - got.get(l)!) < TOLERANCE / 100))
      break;
    fit(language, languages);
  }
  const bySource = totals(cells, shares, source),
    byLanguage = totals(cells, shares, language);
  for (const [s, share] of sources) check(`source ${names[s]}`, share, bySource.get(s) ?? 0);
  for (const [l, share] of languages) check(`language ${l}`, share, byLanguage.get(l)!);
  return shares;
}

function check(what: string, wanted: number, got: number): void {
  if (Math.abs(wanted - got) <= TOLERANCE) return;
  const percent = (x: number): string => `${(100 * x).toFixed(2)} %`;
  throw new ConfigError(
    `mixture: the weights of the sources and the quotas of their languages cannot hold together: ${what} ` +
      `should get ${percent(wanted)} of the draws but can only get ${percent(got)}; change the weights or the quotas`,
  );
}

/** Sums of the cells' values by some key. */
export function totals<K>(
  cells: readonly Cell[],
  values: ArrayLike<number>,
  keyOf: (cell: Cell) => K,
): Map<K, number> {
  const sums = new Map<K, number>();
  cells.forEach((cell, i) => sums.set(keyOf(cell), (sums.get(keyOf(cell)) ?? 0) + values[i]!));
  return sums;
}

/**
 * The order of the draws, epoch by epoch: a pure function of seed and epoch. An entry is one sample in one language;
 * those of a cell are neighbours, in the order of the cells.
 *
 * In every epoch each cell gets its share to within one draw, and what is cut off one epoch comes in a later one. A
 * cell's draws are spread evenly, so any stretch of the order has the shares as nearly as whole numbers allow. Within a
 * cell the samples come in random order, each once before any comes again, across epochs.
 */
export class MixtureOrder {
  /** First entry of each cell, and their number. */
  readonly #first: Int32Array;
  /** Cumulative shares. */
  readonly #bounds: Float64Array;
  readonly #passes: { pass: number; order: Int32Array }[];

  /**
   * @param counts entries of each cell
   * @param shares of each cell, adding up to 1
   * @param length draws of an epoch
   */
  constructor(
    readonly counts: Int32Array,
    readonly shares: Float64Array,
    readonly length: number,
    readonly seed: number,
  ) {
    this.#first = new Int32Array(counts.length + 1);
    this.#bounds = new Float64Array(counts.length + 1);
    counts.forEach((count, c) => {
      this.#first[c + 1] = this.#first[c]! + count;
      this.#bounds[c + 1] = this.#bounds[c]! + shares[c]!;
    });
    this.#bounds.fill(1, shares.findLastIndex((share) => share > 0) + 1);
    this.#passes = Array.from(counts, () => ({ pass: -1, order: new Int32Array(0) }));
  }

  /** Draws of each cell in an epoch: a comb of `length` teeth, shifted a little from epoch to epoch, laid over the shares. */
  draws(epoch: number): Int32Array {
    const shift = (epoch * GOLDEN) % 1;
    const teeth = this.#bounds.map((bound) =>
      Math.min(this.length, Math.ceil(this.length * bound - shift)),
    );
    return Int32Array.from(this.counts, (_, c) => teeth[c + 1]! - teeth[c]!);
  }

  /** The entries of an epoch, (length). */
  epoch(epoch: number): Int32Array {
    const { length, counts, seed } = this;
    const next = new Float64Array(counts.length);
    for (let e = 0; e < epoch; e++)
      this.draws(e).forEach((n, c) => {
        next[c]! += n;
      });
    const cellOf = new Int32Array(length);
    let at = 0;
    this.draws(epoch).forEach((n, c) => cellOf.fill(c, at, (at += n)));
    // Steps of the golden ratio around the comb: a low-discrepancy order that takes every tooth once.
    const stride = coprimeNear(Math.round(length * GOLDEN), length);
    const out = new Int32Array(length);
    let tooth = new Random(seed, Stream.mixture, epoch).below(length);
    for (let i = 0; i < length; i++) {
      const c = cellOf[tooth]!;
      out[i] = this.#first[c]! + this.#entry(c, next[c]!++);
      tooth = (tooth + stride) % length;
    }
    return out;
  }

  /** Which of its samples a cell's n-th draw is. */
  #entry(cell: number, n: number): number {
    const count = this.counts[cell]!,
      pass = Math.floor(n / count),
      known = this.#passes[cell]!;
    if (known.pass !== pass) {
      known.pass = pass;
      known.order = permutation(count, new Random(this.seed, Stream.mixture, cell, pass));
    }
    return known.order[n % count]!;
  }
}

const GOLDEN = (Math.sqrt(5) - 1) / 2;

/** The number nearest to `wish`, from 1 on, that shares no divisor with n. */
function coprimeNear(wish: number, n: number): number {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  for (let d = 0; ; d++)
    for (const k of [wish + d, wish - d]) if (k >= 1 && gcd(k, n) === 1) return k;
}
