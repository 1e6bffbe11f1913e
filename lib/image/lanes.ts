/** How many images are worked on at once: what bounds memory and open files, whatever the size of a batch. */

/** Runs at most a number of works at a time; others wait, in order. */
export class Lanes {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(lanes: number) {
    this.#free = lanes;
  }

  /** What `work` gives, when it was its turn. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((turn) => this.#waiting.push(turn));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next)
        next(); // which takes over this lane
      else this.#free++;
    }
  }
}

/** Threads of libuv's pool, on which images are decoded and resized: 4 unless UV_THREADPOOL_SIZE says otherwise. */
export function poolThreads(
  setting: string | undefined = process.env['UV_THREADPOOL_SIZE'],
): number {
  if (setting === undefined) return 4;
  return Math.min(1024, Math.max(1, Number.parseInt(setting, 10) || 0));
}

/**
 * From encoded bytes to the pixels of a model, of this thread: a decoded photograph takes as much memory as a thousand
 * resized ones, and more of them than there are threads gain nothing.
 */
export const decodingLanes = new Lanes(poolThreads());
/** Files and downloads that are open or read and not yet decoded, of this thread. */
export const readingLanes = new Lanes(Math.max(16, 2 * poolThreads()));
