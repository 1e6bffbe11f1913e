/** Progress of long work: one line that renews itself on a terminal, JSON lines everywhere else. */

/** Seconds as `1:05` or `2:03:09`. */
export function clock(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  const two = (n: number) => String(n).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

export class Progress {
  readonly #start = performance.now();
  #shown = false;
  /** @param stream where to; a terminal gets the renewed line */
  constructor(readonly label: string, readonly stream: NodeJS.WriteStream = process.stderr) {}

  /**
   * @param done and total of the work, in any unit
   * @param facts what else to say, in order
   */
  update(done: number, total: number, facts: Record<string, string | number>): void {
    const seconds = (performance.now() - this.#start) / 1000;
    const eta = done > 0 ? seconds / done * (total - done) : NaN;
    if (this.stream.isTTY) {
      const percent = (total > 0 ? 100 * done / total : 100).toFixed(1);
      const line = [`${this.label} ${percent} %`, ...Object.entries(facts).map(([k, v]) => `${k} ${v}`),
        `${clock(seconds)} gone, ${Number.isNaN(eta) ? '?' : clock(eta)} to go`].join(' · ');
      this.stream.write(`\r\x1b[2K${line.slice(0, Math.max(20, (this.stream.columns ?? 100) - 1))}`);
      this.#shown = true;
    } else {
      this.stream.write(`${JSON.stringify({ task: this.label, done, total, ...facts, seconds: Number(seconds.toFixed(1)),
        eta: Number.isNaN(eta) ? null : Number(eta.toFixed(1)) })}\n`);
    }
  }
  /** Ends the line; further output starts below it. */
  end(): void {
    if (this.#shown) this.stream.write('\n');
    this.#shown = false;
  }
}
