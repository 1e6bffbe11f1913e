/**
 * Online selection (JEST, arXiv 2406.17711; ACID, arXiv 2411.18674; SigLIP 2 §2.5): every step embeds a super-batch with
 * the model as it is and with a frozen reference, and trains on the samples chosen jointly from it. The choice follows
 * from the embeddings, the seed and the number of the batch, so ranks that gathered the same embeddings choose the same.
 */
import { join } from 'node:path';
import { type LoadedModel, loadModel } from '../../checkpoints/load.js';
import type { Batch } from '../../data/batch.js';
import { takeSamples } from '../../data/batch.js';
import type { SampleSource } from '../../data/sample_source.js';
import { ConfigError } from '../../errors.js';
import type { ModelConfig } from '../../model/config.js';
import type { Siglip2Model } from '../../model/siglip2.js';
import type { PairEmbeddings } from '../../ops/pair_scores.js';
import type { TrainConfig } from '../config.js';
import {
  cachedReference,
  embedPairs,
  modelReference,
  type Reference,
  type Squares,
} from './reference.js';
import { ReferenceCache } from './reference_cache.js';
import { diagonalScores, selectBatch } from './select.js';

/** What selection did in a step. */
export interface SelectionFigures {
  /** Mean score of a pair by itself, S_ii, of the chosen and of the rejected. */
  chosen: number;
  rejected: number;
  /** Chosen, as a share of the super-batch. */
  share: number;
}

export interface Selected {
  /** What to train on, in the order of the super-batch. */
  batch: Batch;
  figures: SelectionFigures;
  /** Keys of the samples. */
  chosen: string[];
  rejected: string[];
}

type SelectionConfig = NonNullable<TrainConfig['selection']>;

/** Samples of a super-batch of which the filter ratio leaves a batch. */
export function superBatchSize(batch: number, ratio: number): number {
  return Math.round(batch / (1 - ratio));
}

export class OnlineSelection {
  #reference: Reference | null = null;

  /** @param sizes sides at which the loader must deliver images as well */
  private constructor(
    readonly config: SelectionConfig,
    readonly seed: number,
    readonly batch: number,
    readonly model: Siglip2Model,
    readonly sizes: readonly number[],
  ) {}

  /**
   * Opens the reference of a training config; null when the config selects nothing.
   * @param model the learner
   * @throws ConfigError when selection does not fit the model or the data; CheckpointError or IoError of the reference
   */
  static async open(
    train: TrainConfig,
    model: Siglip2Model,
    source: SampleSource,
    note: (message: string) => void,
  ): Promise<OnlineSelection | null> {
    const { selection: config, batch, seed } = train;
    if (!config) return null;
    checkSelection(config, train, model.config, source.length);
    const {
      params: { device },
      options: { dtype },
    } = model;
    const loaded =
      config.reference === undefined ? null : await loadModel(config.reference, { device, dtype });
    try {
      const sizes = new Set<number>(config.resolution === undefined ? [] : [config.resolution]);
      if (loaded && config.referenceCache === false) {
        checkNaflex(model.config, loaded.model.config);
        if (!model.config.naflex) sizes.add(loaded.model.config.vision.imageSize);
      }
      sizes.delete(model.config.vision.imageSize);
      const selection = new OnlineSelection(config, seed, batch, model, [...sizes]);
      if (loaded)
        selection.#reference = await selection.#openReference(train, loaded, source, note);
      return selection;
    } catch (error) {
      loaded?.model.dispose();
      throw error;
    }
  }

  async #openReference(
    { out, data }: TrainConfig,
    loaded: LoadedModel,
    source: SampleSource,
    note: (message: string) => void,
  ): Promise<Reference> {
    const { referenceCache } = this.config;
    if (referenceCache === false) {
      const { imageSize } = loaded.model.config.vision;
      return modelReference(loaded, this.batch, (candidates) =>
        this.#squares(candidates, imageSize),
      );
    }
    const file = referenceCache === true ? join(out, 'reference.safetensors') : referenceCache;
    return cachedReference(
      await ReferenceCache.open(file, source, loaded, data.captions, note),
      loaded,
    );
  }

  /** A batch's images at one of the sides it was loaded with; null for NaFlex. */
  #squares(batch: Batch, side: number): Squares | null {
    const {
      naflex,
      vision: { imageSize },
    } = this.model.config;
    if (naflex) return null;
    return {
      side,
      images: side === imageSize ? batch.images : batch.resized![this.sizes.indexOf(side)]!,
    };
  }

  /** Chooses what to train on. Waits for the device once for each chunk. */
  async select(candidates: Batch): Promise<Selected> {
    const {
      model,
      seed,
      config: { ratio, chunks, gain, score, resolution, coarse },
    } = this;
    const side = resolution ?? model.config.vision.imageSize;
    const learner =
      score === 'easy-reference'
        ? null
        : embedPairs(
            model,
            candidates,
            candidates.ids,
            this.batch,
            this.#squares(candidates, side),
          );
    let reference: PairEmbeddings | null = null;
    try {
      reference = (await this.#reference?.embed(candidates)) ?? null;
      const options = { filterRatio: ratio, chunks, gain, score, seed, step: candidates.index };
      const rows = (await selectBatch(learner, reference, options)).sort();
      const diagonal = diagonalScores(learner, reference, score),
        reading = diagonal.read();
      diagonal.dispose();
      const scores = await reading,
        taken = new Set(rows);
      const others = candidates.keys.map((_, i) => i).filter((i) => !taken.has(i));
      const mean = (of: readonly number[]): number =>
        of.reduce((sum, i) => sum + scores[i]!, 0) / of.length;
      const batch = takeSamples(candidates, rows);
      if (resolution !== undefined)
        batch.coarse = { count: Math.round(coarse * rows.length), ...this.#squares(batch, side)! };
      return {
        batch,
        figures: {
          chosen: mean([...rows]),
          rejected: mean(others),
          share: rows.length / candidates.size,
        },
        chosen: batch.keys,
        rejected: others.map((i) => candidates.keys[i]!),
      };
    } finally {
      for (const t of [learner, reference].flatMap((e) => (e ? [e.x, e.y] : []))) t.dispose();
    }
  }

  dispose(): void {
    this.#reference?.dispose();
  }
}

/** Whether a selection fits its run. @param samples how many there are @throws ConfigError */
export function checkSelection(
  { ratio, chunks, resolution, coarse }: SelectionConfig,
  { batch, objectives }: TrainConfig,
  model: ModelConfig,
  samples: number,
): void {
  const candidates = superBatchSize(batch, ratio);
  if (samples < candidates) {
    throw new ConfigError(
      `selection: a super-batch of ${candidates} is more than the ${samples} samples there are; ` +
        'lower batch or selection.ratio',
    );
  }
  if (candidates === batch)
    throw new ConfigError(
      `selection.ratio ${ratio} drops no sample of a batch of ${batch}; raise it`,
    );
  if (chunks > batch)
    throw new ConfigError(
      `selection.chunks must be at most the batch of ${batch} but is ${chunks}`,
    );
  if (objectives.distill) {
    throw new ConfigError(
      'selection: the views of objectives.distill would be made for samples that are dropped; ' +
        'use one of the two',
    );
  }
  if (resolution === undefined) return;
  if (model.naflex)
    throw new ConfigError(
      'selection.resolution is for models of fixed resolution; remove it for NaFlex',
    );
  if (coarse > 0 && objectives.caption)
    throw new ConfigError(
      'selection.coarse must be 0 beside objectives.caption, whose decoder reads all images at one size',
    );
}

function checkNaflex(learner: ModelConfig, reference: ModelConfig): void {
  if (learner.naflex && !(reference.naflex && reference.vision.patch === learner.vision.patch)) {
    throw new ConfigError(
      'selection.reference of a NaFlex model must be a NaFlex model with the same patch; ' +
        'or set selection.referenceCache, for which images are square',
    );
  }
}
