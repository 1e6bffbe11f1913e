/**
 * Batches from worker threads, in the sampler's order.
 *
 * The sampler says which samples are in which batch, and every random choice is keyed by seed,
 * epoch and sample; so the batches are the same whatever the number of workers, and a run resumed
 * from `state` goes on with exactly those it would have had. Nothing waits forever: a worker that
 * dies or stops making progress is an error that names the sample and what was being done with it.
 */
import { availableCores } from '../cores.js';
import { ConfigError, DataError, type ErrorCode, IoError, Siglip2Error } from '../errors.js';
import type { SkipCounter } from '../fs/skips.js';
import type { Batch, BuiltBatch } from './batch.js';
import { type BuilderConfig, type BuilderReply, Progress, stageNames } from './batch_builder.js';
import { localSite, type Site, threadSite } from './builder_worker.js';
import { builderConfig, checkLoaderOptions, type LoaderOptions } from './loader_options.js';
import type { DrawAccount, MixtureState } from './mixture.js';
import { describeSample, type Sample } from './sample.js';
import type { SampleSource } from './sample_source.js';
import { type BatchPlan, Sampler, type SamplerState } from './sampler.js';

/** Where a loader stands, for JSON. */
export interface LoaderState extends SamplerState {
  mixture?: MixtureState;
}

/** A batch that was asked for. */
interface Pending {
  plan: BatchPlan;
  /** The sampler's state after this batch. */
  after: SamplerState;
  site: Site;
  /** The samples as replaced so far. */
  current: Int32Array;
  tried: Set<number>;
  built?: BuiltBatch;
}

/** Endless batches of a collection. Call `close` (or use `await using`) when done. */
export class DataLoader implements AsyncIterable<Batch> {
  /** Samples that could not be used, those of indexing included. */
  readonly skips: SkipCounter;
  /** Captions of the batches so far, and those that were cut to the tokenizer's length. */
  readonly texts = { all: 0, cut: 0 };
  readonly #sampler: Sampler;
  readonly #config: BuilderConfig;
  readonly #sites: Site[] = [];
  readonly #pending = new Map<number, Pending>();
  readonly #prefetch: number;
  readonly #account: DrawAccount | undefined;
  #consumed: SamplerState;
  #expected = 0;
  #started = false;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;
  #turn: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;
  readonly #onAbort = (): void => this.#fail(this.#options.signal?.reason as Error);

  readonly #source: SampleSource;
  readonly #options: LoaderOptions;

  /**
   * Throws ConfigError when the options do not fit each other or the collection. Starts no thread
   * yet.
   */
  constructor(source: SampleSource, options: LoaderOptions) {
    this.#source = source;
    this.#options = options;
    checkLoaderOptions(options);
    const classes = source.samples.some((sample) => sample.class !== undefined)
      ? Int32Array.from(source.samples, (sample) => sample.class ?? -1)
      : undefined;
    const { mixture } = source;
    mixture?.checkCaptions(options.captions ?? {});
    this.#account = mixture?.account();
    const plain = {
      batchSize: options.batchSize,
      seed: options.seed,
      ...(options.shuffle === undefined ? {} : { shuffle: options.shuffle }),
      ...(options.uniqueBy === undefined ? {} : { uniqueBy: options.uniqueBy }),
      ...(classes === undefined ? {} : { classes }),
    };
    this.#sampler = new Sampler(
      mixture?.length ?? source.length,
      mixture?.samplerOptions(plain) ?? plain,
    );
    this.#consumed = this.#sampler.state;
    this.skips = source.skips.clone(options.maxSkips);
    this.#prefetch = options.prefetch ?? 2 * Math.max(1, this.#workerCount());
    this.#config = builderConfig(options, classes !== undefined);
  }

  /** Batches in the current epoch. */
  get batchesPerEpoch(): number {
    return this.#sampler.batchesPerEpoch;
  }

  /** For a checkpoint: continues after the last batch that `next` returned. */
  get state(): LoaderState {
    return { ...this.#consumed, ...(this.#account ? { mixture: this.#account.state } : {}) };
  }

  /**
   * Continues from a state; only before the first `next`. Throws DataError when it belongs to other
   * data or settings.
   */
  restore(state: LoaderState): void {
    if (this.#started)
      throw new ConfigError('restore: call it before the first batch is asked for');
    this.#account?.restore(state.mixture);
    this.#sampler.restore(state);
    this.#consumed = this.#sampler.state;
  }

  /**
   * The next batch.
   * @throws DataError when too many samples are unusable, nobody can stand in, or a worker died or
   *   made no progress; IoError when the disk fails; the reason of an aborted signal. After an
   *   error the loader is closed.
   */
  next(): Promise<Batch> {
    const result = this.#turn.then(() => this.#take());
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Batches for ever; leaving the loop closes the loader. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Batch> {
    try {
      for (;;) yield await this.next();
    } finally {
      await this.close();
    }
  }

  /** Ends the workers. Harmless when called again. */
  close(): Promise<void> {
    this.#failure ??= new DataError('the data loader is closed');
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    this.#wake?.();
    this.#closing ??= Promise.all(this.#sites.map((site) => site.close())).then(() =>
      this.#pending.clear(),
    );
    return this.#closing;
  }

  /** For `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** What a number in a plan stands for: a sample, or an entry of a mixture. */
  #sampleAt(index: number): Sample {
    return this.#source.mixture?.sample(index) ?? this.#source.at(index);
  }

  #workerCount(): number {
    return this.#options.workers ?? Math.max(1, availableCores() - 1);
  }

  #start(): void {
    this.#started = true;
    this.#expected = this.#consumed.batches;
    const { signal } = this.#options;
    signal?.addEventListener('abort', this.#onAbort, { once: true });
    if (signal?.aborted) {
      this.#onAbort();
      return;
    }
    const count = this.#workerCount();
    for (let i = 0; i < count; i++)
      this.#sites.push(
        threadSite(
          this.#config,
          (reply) => this.#receive(reply),
          (site, what, cause) =>
            this.#fail(
              new DataError(`a data worker ${what} while ${this.#activity(site)}`, { cause }),
            ),
        ),
      );
    if (count === 0) this.#sites.push(localSite(this.#config, (reply) => this.#receive(reply)));
  }

  /** What a site is doing, with the sample's file. */
  #activity(site: Site): string {
    const stage = stageNames[Atomics.load(site.progress, Progress.stage)] ?? 'working';
    const sample = this.#source.samples[Atomics.load(site.progress, Progress.sample)];
    return sample === undefined ? stage : `${stage} of ${describeSample(sample)}`;
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    void this.close();
  }

  async #take(): Promise<Batch> {
    if (!this.#started && this.#failure === undefined) this.#start();
    const begin = performance.now();
    this.#pump();
    const index = this.#expected;
    if (this.#pending.get(index)?.built === undefined) await this.#wait(index);
    const entry = this.#pending.get(index);
    if (this.#failure !== undefined || entry?.built === undefined) {
      throw this.#failure ?? new DataError('the data loader has no batch');
    }
    this.#pending.delete(index);
    this.#expected++;
    this.#consumed = entry.after;
    this.#pump();
    const { built, plan } = entry;
    this.#account?.add(entry.current);
    this.texts.all += built.texts.length;
    this.texts.cut += built.cut ?? 0;
    return {
      ...built,
      ...(this.#account ? { drawn: this.#account.drawn } : {}),
      size: plan.samples.length,
      index,
      epoch: plan.epoch,
      waitMs: performance.now() - begin,
    };
  }

  /** Until batch `index` is built or loading has failed. */
  async #wait(index: number): Promise<void> {
    const { timeoutMs = 30_000 } = this.#options;
    for (const site of this.#sites) site.hold(true);
    let ticks = -1;
    let since = performance.now();
    try {
      while (this.#failure === undefined && this.#pending.get(index)?.built === undefined) {
        const site = this.#pending.get(index)?.site as Site;
        const now = Atomics.load(site.progress, Progress.ticks);
        if (now !== ticks) {
          ticks = now;
          since = performance.now();
        } else if (performance.now() - since >= timeoutMs) {
          this.#fail(
            new DataError(
              `no data for ${timeoutMs / 1000} s: a worker is still ${this.#activity(site)}; ` +
                'is the disk reachable? (raise data.timeoutMs if it is only slow)',
            ),
          );
          break;
        }
        let timer: NodeJS.Timeout | undefined;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
          timer = setTimeout(resolve, Math.min(1000, timeoutMs / 4));
        });
        clearTimeout(timer);
        this.#wake = undefined;
      }
    } finally {
      for (const site of this.#sites) site.hold(false);
    }
  }

  /** Keeps the workers supplied. */
  #pump(): void {
    while (this.#failure === undefined && this.#pending.size < this.#prefetch + 1) {
      const plan = this.#sampler.next();
      const site = this.#sites.reduce((best, other) => (other.load < best.load ? other : best));
      const entry: Pending = {
        plan,
        after: this.#sampler.state,
        site,
        current: plan.samples.slice(),
        tried: new Set(),
      };
      this.#pending.set(plan.index, entry);
      site.load++;
      site.send({
        type: 'build',
        index: plan.index,
        visit: this.#source.mixture ? plan.index : plan.epoch,
        samples: Array.from(plan.samples, (i) => this.#sampleAt(i)),
      });
    }
  }

  #receive(reply: BuilderReply): void {
    if (this.#failure !== undefined) return;
    const entry = this.#pending.get(reply.index);
    if (entry === undefined) return;
    try {
      if (reply.type === 'error') throw remoteError(reply.code as ErrorCode, reply.message);
      if (reply.type === 'failed') {
        this.#replace(entry, reply);
        return;
      }
    } catch (error) {
      this.#fail(error as Error);
      return;
    }
    entry.built = reply.batch;
    entry.site.load--;
    if (reply.index === this.#expected) this.#wake?.();
  }

  /** Counts unusable samples and sends others in their place. */
  #replace(entry: Pending, reply: Extract<BuilderReply, { type: 'failed' }>): void {
    const { plan, current, tried } = entry;
    const samples: Sample[] = [];
    const slots: number[] = [];
    for (const { slot, reason, message } of reply.failures) {
      const unusable = current[slot] as number;
      this.skips.add(reason, describeSample(this.#sampleAt(unusable)));
      this.skips.check(this.#source.length + this.#source.skips.total, this.#source.name);
      tried.add(unusable);
      const other = this.#sampler.replacement(plan.epoch, unusable, current, tried);
      if (other === undefined) {
        throw new DataError(
          `batch ${plan.index}: no usable sample is left to stand in: ${message}`,
        );
      }
      current[slot] = other;
      slots.push(slot);
      samples.push(this.#sampleAt(other));
    }
    entry.site.send({ type: 'replace', index: plan.index, slots, samples });
  }
}

/** An error that happened in a worker, as its class. */
function remoteError(code: ErrorCode, message: string): Error {
  if (code === 'ERR_DATA') return new DataError(message);
  if (code === 'ERR_CONFIG') return new ConfigError(message);
  if (code === 'ERR_IO') return new IoError(message);
  return new Siglip2Error(code, message);
}
