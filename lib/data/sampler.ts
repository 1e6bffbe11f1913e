/**
 * Which samples are in which batch: a pure function of (seed, epoch, batch), so that an interrupted
 * run continues with exactly the batches it would have had.
 */
import { ConfigError, DataError } from '../errors.js';
import { permutation, Random, Stream } from '../random.js';

/** Where a sampler stands, for JSON. */
export interface SamplerState {
  seed: number;
  /** Sizes of the collection and of a batch: a state fits only the same data. */
  samples: number;
  batchSize: number;
  /** Epoch of the next batch, from 0. */
  epoch: number;
  /** The next batch within its epoch, from 0. */
  batch: number;
  /** The next batch since the start, from 0. */
  batches: number;
}

/** The samples of one batch. */
export interface BatchPlan {
  /** Number of the batch since the start. */
  index: number;
  epoch: number;
  /** Positions in the collection, (B). */
  samples: Int32Array;
}

/** Options of `Sampler`. */
export interface SamplerOptions {
  batchSize: number;
  seed: number;
  /** Default true; false gives every epoch in the order of the collection. */
  shuffle?: boolean;
  /** "class": no two samples of a batch have the same class. Needs `classes`. */
  uniqueBy?: 'class';
  /** Class of each sample; negative means none, which never collides. */
  classes?: Int32Array;
  /** The order of an epoch instead of a permutation: a function of the epoch alone; samples may come more than once. */
  order?: (epoch: number) => Int32Array;
  /** Group of each sample: a stand-in is of the same group if that can be helped. */
  groups?: Int32Array;
}

/**
 * Endless batches, epoch after epoch. Each epoch is a fresh permutation of the collection; the rest
 * that does not fill a batch is dropped. With `uniqueBy`, a sample whose class is already in the
 * batch waits for the next batch that lacks it (waiting samples go first), and what still waits
 * when no full batch can be made is dropped with the rest.
 */
export class Sampler {
  /** Samples of the epoch's batches in order; replaced when the epoch changes. */
  #plan: Int32Array | undefined;
  #planEpoch = -1;
  #order: Int32Array | undefined;
  #position: SamplerState;

  readonly #options: SamplerOptions;

  /**
   * @param samples number of samples in the collection
   * @throws ConfigError when the collection cannot fill one batch (or has too few classes for
   *   `uniqueBy`)
   */
  constructor(samples: number, options: SamplerOptions) {
    this.#options = options;
    const { batchSize, seed, uniqueBy, classes } = options;
    if (!(Number.isInteger(batchSize) && batchSize >= 1)) {
      throw new ConfigError(`batchSize: expected an integer of at least 1 but got ${batchSize}`);
    }
    if (!Number.isSafeInteger(seed))
      throw new ConfigError(`seed: expected an integer but got ${seed}`);
    if (samples < batchSize) {
      throw new ConfigError(
        `batchSize ${batchSize} is more than the ${samples} samples there are; make it smaller`,
      );
    }
    if (uniqueBy !== undefined) {
      if (classes === undefined || classes.length !== samples) {
        throw new ConfigError(
          'uniqueBy "class" needs a class for every sample; this collection has none',
        );
      }
      const kinds = new Set<number>();
      classes.forEach((id, i) => kinds.add(id < 0 ? -1 - i : id));
      if (kinds.size < batchSize) {
        throw new ConfigError(
          `batchSize ${batchSize} with uniqueBy "class" needs as many classes, ` +
            `but there are ${kinds.size}; make it smaller`,
        );
      }
    }
    this.#position = { seed, samples, batchSize, epoch: 0, batch: 0, batches: 0 };
  }

  /**
   * Batches in the epoch of the next batch (with `uniqueBy` it may differ by a few from epoch to
   * epoch).
   */
  get batchesPerEpoch(): number {
    return this.#epochPlan(this.#position.epoch).length / this.#options.batchSize;
  }

  /** Where the sampler stands. */
  get state(): SamplerState {
    return { ...this.#position };
  }

  /**
   * Continues from a state. Throws DataError when it belongs to other data, another batch size or
   * another seed.
   */
  restore(state: SamplerState): void {
    for (const key of ['seed', 'samples', 'batchSize'] as const) {
      if (state[key] !== this.#position[key]) {
        throw new DataError(
          `the data state was saved with ${key} = ${state[key]} but this run has ` +
            `${this.#position[key]}; resume with the same data and settings, or start a new run`,
        );
      }
    }
    for (const key of ['epoch', 'batch', 'batches'] as const) {
      if (!Number.isSafeInteger(state[key]) || state[key] < 0) {
        throw new DataError(
          `the data state has ${key} = ${state[key]}; expected an integer of at least 0`,
        );
      }
    }
    this.#position = {
      ...this.#position,
      epoch: state.epoch,
      batch: state.batch,
      batches: state.batches,
    };
  }

  /** The next batch. */
  next(): BatchPlan {
    const { batchSize } = this.#options;
    let plan = this.#epochPlan(this.#position.epoch);
    if (this.#position.batch * batchSize >= plan.length) {
      this.#position = { ...this.#position, epoch: this.#position.epoch + 1, batch: 0 };
      plan = this.#epochPlan(this.#position.epoch);
      if (plan.length === 0)
        throw new DataError(
          `an epoch has no ${batchSize} samples that can be in one batch; make the batch smaller`,
        );
    }
    const { epoch, batch, batches } = this.#position;
    const samples = plan.slice(batch * batchSize, (batch + 1) * batchSize);
    this.#position = { ...this.#position, batch: batch + 1, batches: batches + 1 };
    return { index: batches, epoch, samples };
  }

  /**
   * Who stands in for an unusable sample: the samples that follow it in the epoch's order, one
   * after the other, leaving out those in the batch (and their classes under `uniqueBy`). It
   * depends on the batch alone, not on what other batches met; a stand-in may therefore come twice
   * in an epoch.
   *
   * @param inBatch the batch as it is now, unusable samples included
   * @param tried samples that already turned out unusable
   * @returns undefined when nobody is left
   */
  replacement(
    epoch: number,
    unusable: number,
    inBatch: Int32Array,
    tried: ReadonlySet<number>,
  ): number | undefined {
    const order = this.#epochOrder(epoch);
    const { uniqueBy, classes, groups } = this.#options;
    const held = new Set(inBatch);
    const heldClasses = new Set<number>();
    if (uniqueBy !== undefined && classes !== undefined) {
      for (const i of inBatch)
        if (i !== unusable && (classes[i] as number) >= 0) heldClasses.add(classes[i] as number);
    }
    const start = order.indexOf(unusable);
    let other: number | undefined;
    for (let k = 1; k < order.length; k++) {
      const candidate = order[(start + k) % order.length] as number;
      if (held.has(candidate) || tried.has(candidate)) continue;
      if (uniqueBy !== undefined && heldClasses.has(classes?.[candidate] as number)) continue;
      if (groups === undefined || groups[candidate] === groups[unusable]) return candidate;
      other ??= candidate;
    }
    return other;
  }

  #epochOrder(epoch: number): Int32Array {
    if (epoch === this.#planEpoch && this.#order !== undefined) return this.#order;
    const { samples, seed } = this.#position;
    if (this.#options.order !== undefined) return this.#options.order(epoch);
    if (this.#options.shuffle ?? true)
      return permutation(samples, new Random(seed, Stream.order, epoch));
    return Int32Array.from({ length: samples }, (_, i) => i);
  }

  #epochPlan(epoch: number): Int32Array {
    if (this.#plan === undefined || this.#planEpoch !== epoch) {
      this.#order = this.#epochOrder(epoch);
      this.#planEpoch = epoch;
      this.#plan =
        this.#options.uniqueBy === undefined
          ? this.#order.subarray(
              0,
              this.#order.length - (this.#order.length % this.#options.batchSize),
            )
          : uniqueBatches(
              this.#order,
              this.#options.classes as Int32Array,
              this.#options.batchSize,
            );
    }
    return this.#plan;
  }
}

/** Cuts an order into batches without repeated classes, deferring repeats. */
function uniqueBatches(order: Int32Array, classes: Int32Array, batchSize: number): Int32Array {
  const out = new Int32Array(order.length);
  let filled = 0;
  // Waiting samples by class, so that a batch looks at each waiting class once and not at each
  // waiting sample.
  const waiting = new Map<number, number[]>();
  let next = 0;
  for (;;) {
    const inBatch = new Set<number>();
    const start = filled;
    for (const [id, queue] of waiting) {
      if (filled - start === batchSize) break;
      out[filled++] = queue.shift() as number;
      inBatch.add(id);
      if (queue.length === 0) waiting.delete(id);
    }
    while (filled - start < batchSize && next < order.length) {
      const sample = order[next++] as number;
      const id = classes[sample] as number;
      if (id >= 0 && inBatch.has(id)) {
        const queue = waiting.get(id);
        if (queue === undefined) waiting.set(id, [sample]);
        else queue.push(sample);
      } else {
        inBatch.add(id);
        out[filled++] = sample;
      }
    }
    if (filled - start < batchSize) return out.subarray(0, start);
  }
}
