/**
 * Examples a second over the latest steps. A single step's time says little: two steps are in flight, and at a checkpoint
 * both end at once.
 */
export class Rate {
  /** When the latest steps ended, milliseconds, pauses left out; the first is where counting begins. */
  readonly #ends: number[];
  #paused = 0;

  /** @param steps over how many */
  constructor(start: number, readonly steps = 10) { this.#ends = [start]; }

  /** Time that no step took, a checkpoint's writing say. */
  pause(milliseconds: number): void { this.#paused += milliseconds; }

  /**
   * Counts a step that has ended.
   * @param now milliseconds, on the clock of `start`
   * @returns examples a second
   */
  add(examples: number, now: number): number {
    this.#ends.push(now - this.#paused);
    if (this.#ends.length > this.steps + 1) this.#ends.shift();
    return examples * (this.#ends.length - 1) / Math.max(this.#ends.at(-1)! - this.#ends[0]!, 1e-6) * 1000;
  }
}
