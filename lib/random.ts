/**
 * Counter-based random numbers for the data pipeline.
 *
 * Every random choice is drawn from a generator keyed by what the choice is about (seed, epoch,
 * sample, purpose), never from a generator shared between samples. So a result does not depend on
 * how many workers there are or on which of them came first, and any sample of any epoch can be
 * reproduced alone.
 */

/** What a generator is used for; two purposes with the same other keys give unrelated numbers. */
export const Stream = {
  order: 1,
  augment: 2,
  caption: 3,
  evaluation: 4,
  selection: 5,
  view: 7,
  mask: 8,
  scene: 31,
  decoder: 32,
  parallel: 33,
  naflexLength: 34,
  captionSwap: 41,
  mixture: 43,
  debias: 44,
} as const;

/** Final mixing of one 32-bit word (the finalizer of MurmurHash3). */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/**
 * One 32-bit hash of a list of safe integers (both 32-bit halves count) under a salt.
 * @param keys integers with |key| <= 2^53 - 1
 */
export function hashKeys(keys: readonly number[], salt = 0): number {
  let h = mix(salt ^ 0x9e3779b9);
  for (const key of keys) {
    const low = key >>> 0;
    const high = Math.floor(key / 4294967296) | 0;
    h = mix(Math.imul(h ^ mix(low ^ 0x165667b1), 0x9e3779b1) + salt);
    h = mix(Math.imul(h ^ mix(high ^ 0x27d4eb2f), 0x85ebca77) + 0x3c6ef372);
  }
  return h;
}

/**
 * A small fast generator (sfc32: 128 bits of state, chaotic plus counter) seeded from integer keys.
 */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /**
   * @param keys what the numbers are for, e.g. (seed, Stream.augment, epoch, sample); safe integers
   */
  constructor(...keys: number[]) {
    this.#a = hashKeys(keys, 1);
    this.#b = hashKeys(keys, 2);
    this.#c = hashKeys(keys, 3);
    for (let i = 0; i < 8; i++) this.uint32();
  }

  /** Uniform integer in [0, 2^32). */
  uint32(): number {
    const out = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + out) | 0;
    return out >>> 0;
  }

  /** Uniform number in [0, 1) with 32 random bits. */
  uniform(): number {
    return this.uint32() / 4294967296;
  }

  /** Uniform number in [low, high). */
  between(low: number, high: number): number {
    return low + (high - low) * this.uniform();
  }

  /** Uniform integer in [0, n), without modulo bias. @param n 1 .. 2^32 */
  below(n: number): number {
    // Values at or above the largest multiple of n would favour small results: draw again.
    const limit = 4294967296 - (4294967296 % n);
    let x = this.uint32();
    while (x >= limit) x = this.uint32();
    return x % n;
  }

  /** One element of a non-empty list. */
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

/** Shuffles `values` in place (Fisher-Yates) and returns it. */
export function shuffle<T extends { length: number; [index: number]: unknown }>(
  values: T,
  random: Random,
): T {
  const list = values as { length: number; [index: number]: unknown };
  for (let i = list.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const held = list[i];
    list[i] = list[j];
    list[j] = held;
  }
  return values;
}

/** A random permutation of 0 .. n-1. */
export function permutation(n: number, random: Random): Int32Array {
  const out = new Int32Array(n);
  for (let i = 0; i < n; i++) out[i] = i;
  for (let i = n - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const held = out[i] as number;
    out[i] = out[j] as number;
    out[j] = held;
  }
  return out;
}
