/**
 * What can be said against a run before its data are read and its start is there. The stages of a recipe may begin
 * weeks after one another, and a mistake in the last should not wait for the others.
 */
import { definedOnly } from '../check.js';
import { checkLoaderOptions, type LoaderOptions } from '../data/loader_options.js';
import type { ImageTransform } from '../image/augment.js';
import { type ModelConfig, type ModelOverrides, modelConfig } from '../model/config.js';
import { toSteps } from '../optim/duration.js';
import { AdamW } from '../optim/optimizer.js';
import { checkSchedule } from '../optim/schedule.js';
import type { VocabMap } from '../text/vocab.js';
import type { TrainConfig } from './config.js';
import { trainedModel } from './freeze.js';
import { Objectives, objectiveData } from './objectives.js';
import { checkSelection, superBatchSize } from './selection/selection.js';

/** The shape of a config's model. Throws ConfigError. */
export function shapeOf({ model }: TrainConfig, vocab: VocabMap | null = null): ModelConfig {
  const { variant, ...overrides } = model as { variant: string } & ModelOverrides;
  return modelConfig(variant, { ...overrides, ...(vocab ? { vocab: vocab.size } : {}) });
}

/** What a run's loader makes, but for further sizes of the images. Throws ConfigError when the model lacks a part. */
export function loaderOptions(
  config: TrainConfig,
  shape: ModelConfig,
  vocab: VocabMap | null = null,
): LoaderOptions {
  const { data, seed, selection, naflex } = config;
  return {
    batchSize: superBatchSize(config.batch, selection?.ratio ?? 0),
    seed,
    size: shape.vision.imageSize,
    transforms: data.transforms as unknown as ImageTransform[],
    captions: definedOnly(data.captions),
    tokenizer: {
      ...definedOnly({
        path: data.tokenizer,
        lower: data.lowercase,
        length: shape.text.length,
        rows: shape.text.vocab,
      }),
      ...(vocab ? { vocab } : {}),
    },
    ...objectiveData(config.objectives, shape),
    ...(shape.naflex ? { naflex: { patch: shape.vision.patch, lengths: naflex.lengths } } : {}),
    ...definedOnly({
      alpha: data.alpha,
      maxPixels: data.maxPixels,
      prefetch: data.prefetch,
      workers: data.workers,
      cacheBytes: data.cacheBytes,
      maxSkips: data.maxSkips,
      timeoutMs: data.timeoutMs,
      uniqueBy: data.uniqueClasses ? ('class' as const) : undefined,
    }),
  };
}

/**
 * Makes the model, its optimizer and objectives on a device that computes nothing and takes no memory.
 * @throws ConfigError as `Trainer.open` would
 */
export function checkRun(config: TrainConfig): void {
  const shape = shapeOf(config),
    {
      batch,
      total,
      optimizer: { warmup, schedule, ...adam },
    } = config;
  checkLoaderOptions(loaderOptions(config, shape));
  if (config.selection) checkSelection(config.selection, config, shape, Infinity);
  // Of epochs only the data know how many steps they are.
  if (!/epoch/.test(JSON.stringify([total, warmup]))) {
    const steps = toSteps(total, { batch, name: 'total' });
    const rising = toSteps(warmup, { batch, total: steps, name: 'optimizer.warmup' });
    checkSchedule({ kind: schedule, total: steps, warmup: rising });
  }
  using model = trainedModel(config, shape, 'dry:cpu', 'f32');
  const optimizer = new AdamW(model.params, adam);
  try {
    new Objectives(config, model, optimizer).dispose();
  } finally {
    optimizer.dispose();
  }
}
