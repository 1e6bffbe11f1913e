/** Progress of long work: one line that renews itself on a terminal, JSON lines everywhere else. */

/** Seconds as `1:05` or `2:03:09`. */
export function clock(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const h = Math.floor(s / 3600),
    m = Math.floor(s / 60) % 60;
  const two = (n: number) => String(n).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

/** `1 table`, `2 tables`. */
export function counted(n: number, thing: string): string {
  return `${n} ${thing}${n === 1 ? '' : 's'}`;
}

export class Progress {
  readonly #start = performance.now();
  #last = -Infinity;
  #shown = false;
  /**
   * @param stream where to; a terminal gets the renewed line
   * @param every milliseconds in which at most one update is shown; that of the end always is
   */
  constructor(
    readonly label: string,
    readonly stream: NodeJS.WriteStream = process.stderr,
    readonly every = 1000,
  ) {}

  /**
   * Call it as often as you like.
   * @param done and total of the work, in any unit
   * @param facts what else to say, the most important first, for a narrow terminal shows what it has room for
   */
  update(
    done: number,
    total: number,
    facts: Record<string, string | number> | (() => Record<string, string | number>),
  ): void {
    const now = performance.now();
    if (done < total && now - this.#last < this.every) return;
    this.#last = now;
    this.#show(
      done,
      total,
      (now - this.#start) / 1000,
      typeof facts === 'function' ? facts() : facts,
    );
  }
  #show(
    done: number,
    total: number,
    seconds: number,
    facts: Record<string, string | number>,
  ): void {
    const eta = done > 0 ? (seconds / done) * (total - done) : NaN;
    if (this.stream.isTTY) {
      const percent = (total > 0 ? (100 * done) / total : 100).toFixed(1);
      const line = [
        `${this.label} ${percent} %, ${Number.isNaN(eta) ? '?' : clock(eta)} to go`,
        ...Object.entries(facts).map(([k, v]) => `${k} ${v}`),
        `${clock(seconds)} gone`,
      ].join(' · ');
      this.stream.write(
        `\r\x1b[2K${line.slice(0, Math.max(20, (this.stream.columns ?? 100) - 1))}`,
      );
      this.#shown = true;
    } else {
      this.stream.write(
        `${JSON.stringify({
          task: this.label,
          done,
          total,
          ...facts,
          seconds: Number(seconds.toFixed(1)),
          eta: Number.isNaN(eta) ? null : Number(eta.toFixed(1)),
        })}\n`,
      );
    }
  }
  /** Ends the line; further output starts below it. */
  end(): void {
    if (this.#shown) this.stream.write('\n');
    this.#shown = false;
  }
}
