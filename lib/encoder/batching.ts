/** Ordered, bounded work over a stream of inputs: what the encoders' streaming is made of. */

/** Rejects with the signal's reason as soon as it is aborted; the promise itself runs on, its result is dropped. */
export function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error);
    if (signal.aborted) {
      promise.catch(() => undefined);
      abort();
      return;
    }
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

export interface BatchOptions<T, U, R> {
  /** Items of one call of `run`. */
  size: number;
  /** Most items being prepared or waiting to be run; the source is not asked for more. At least `size`. */
  ahead: number;
  /** Runs for several items at once. */
  prepare(item: T, index: number): Promise<U>;
  /** Results of a batch, one per item, in order. The next batch starts while the last one's results are waited for. */
  run(batch: U[]): Promise<R[]>;
  signal?: AbortSignal | undefined;
}

/**
 * prepare, then run in batches; yields one result per item, in order. At most `ahead` items are taken from the source
 * beyond those in the two batches that run, so a slow consumer slows the source down. The first error ends everything
 * and closes the source. An abort rejects at once, whatever is still computing.
 */
export async function* inBatches<T, U, R>(
  source: Iterable<T> | AsyncIterable<T>,
  o: BatchOptions<T, U, R>,
): AsyncGenerator<R, void, undefined> {
  const iterator =
    Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
  const queue: Promise<U>[] = [];
  let running: Promise<R[]> | undefined,
    index = 0,
    ended = false;
  const quiet = <P extends Promise<unknown>>(p: P): P => {
    p.catch(() => undefined); // whoever waits for it sees the error; nobody does after an earlier one
    return p;
  };
  try {
    o.signal?.throwIfAborted();
    for (;;) {
      while (!ended && queue.length < o.ahead) {
        const next = await abortable(Promise.resolve(iterator.next()), o.signal);
        if (next.done) ended = true;
        else queue.push(quiet(o.prepare(next.value, index++)));
      }
      if (queue.length === 0 && !running) return;
      const batch =
        queue.length > 0 ? await abortable(Promise.all(queue.splice(0, o.size)), o.signal) : [];
      const before: Promise<R[]> | undefined = running;
      running = batch.length > 0 ? quiet(o.run(batch)) : undefined;
      if (before) yield* await abortable(before, o.signal);
    }
  } finally {
    // Not awaited: a source that hangs must not hold up an abort.
    if (!ended) Promise.resolve(iterator.return?.()).catch(() => undefined);
  }
}
