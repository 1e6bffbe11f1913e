/**
 * What a training step takes, without taking it: the step's own code runs on a dry device, whose allocator counts as a
 * real one's does, so that the peak follows every change of the model, the losses and the ops by itself. FLOPs are
 * counted by formulas (lib/model/flops.ts).
 */
import { constants } from 'node:buffer';
import type { Batch } from '../data/batch.js';
import { batchPart } from '../data/batch.js';
import { naflexUpdates } from '../data/naflex_lengths.js';
import { patchesOf, type ViewsConfig } from '../image/views.js';
import { maskedRows } from '../losses/masked.js';
import { type ModelConfig, type ModelOverrides, modelConfig, patchCount } from '../model/config.js';
import { decoderFlops, imageFlops, sigmoidLossFlops, textFlops } from '../model/flops.js';
import { AdamW } from '../optim/optimizer.js';
import { clearTape, noGrad, requireGrad } from '../tape.js';
import { type DryDeviceName, memory, resetPeak, scope, tensor } from '../tensor.js';
import type { DecoderSequence } from '../text/sequences.js';
import { chosenDtype, type TrainConfig } from './config.js';
import { trainedModel } from './freeze.js';
import { Objectives, objectiveData, TASKS } from './objectives.js';

/** A number for each part of the model that has one. */
export type Parts = Partial<
  Record<'vision' | 'text' | 'decoder' | 'distillation' | 'sigmoid', number>
>;

/** Memory in bytes and model FLOPs of one training step on one device. */
export interface StepPlan {
  device: 'cpu' | 'cuda';
  dtype: 'f32' | 'bf16';
  batch: number;
  /** Images whose activations are kept at a time. */
  microBatch: number;
  checkpointBlocks: boolean;
  parameters: number;
  /** Those that are not frozen. */
  trained: number;
  /** What stays from step to step. */
  fixed: {
    weights: number;
    bf16Copies: number;
    gradients: number;
    moments: number;
    average: number;
  };
  /** What backward finds of each part for one micro-batch. Self-distillation comes after the others have gone. */
  activations: Parts;
  /** Beside both at the worst moment: gradients of activations, a block that runs again, inputs. */
  transient: number;
  /** Most bytes of kernels' own memory. On a CUDA device: what the CPU's kernels would take. */
  workspace: number;
  /** All of the above; what the metrics call peakBytes. */
  peak: number;
  /** What the free lists keep beyond that, as long as the device is not full. */
  cached: number;
  /**
   * Forward and backward, without what is computed twice. Of captions: as if every token were scored. A part that is
   * frozen whole has no backward; of one that is frozen in part it is counted whole.
   */
  flops: Parts & { total: number };
  /** Computed again for gradient checkpointing and caching. */
  recomputed: number;
  /** Bytes of the largest array of pixels that the loader makes, and the most that one holds in this Node. */
  pixels: { largest: number; most: number };
}

/** Pixels in a dry run: only their number counts, and it may be more than an array holds. */
class Pixels {
  readonly [Symbol.toStringTag] = 'Uint8Array';
  constructor(readonly length: number) {}
  subarray(from: number, to: number): Pixels {
    return new Pixels(to - from);
  }
  set(): void {
    /* nothing is there */
  }
}
const pixels = (n: number): Uint8Array => new Pixels(n) as unknown as Uint8Array;

/**
 * Plans a config's step. A NaFlex model is planned at each of its lengths, every image with as many patches, and the one
 * that takes most is returned. With `trimVocabulary` the table has the size that the config gives it.
 * @throws ConfigError as training would
 */
export async function planStep(config: TrainConfig, device: 'cpu' | 'cuda'): Promise<StepPlan> {
  const { variant, ...overrides } = config.model as { variant: string } & ModelOverrides;
  const shape = modelConfig(variant, overrides);
  const plans: StepPlan[] = [];
  for (const length of shape.naflex ? config.naflex.lengths : [patchCount(shape)])
    plans.push(await planLength(config, shape, length, device));
  return plans.reduce((a, b) => (b.peak > a.peak ? b : a));
}

async function planLength(
  config: TrainConfig,
  shape: ModelConfig,
  length: number,
  device: 'cpu' | 'cuda',
): Promise<StepPlan> {
  const dry: DryDeviceName = `dry:${device}`,
    dtype = chosenDtype(config.dtype, device);
  const { views } = objectiveData(config.objectives, shape);
  const batch = emptyBatch(config, shape, length, views);
  const updates = naflexUpdates(batch, config.naflex),
    first = updates[0]!;
  const microBatch = Math.min(config.microBatch ?? first.size, first.size);
  const idle = memory(dry).live;
  using model = trainedModel(config, shape, dry, dtype);
  const { warmup: _w, schedule: _s, ...adam } = config.optimizer;
  const optimizer = new AdamW(model.params, adam);
  let objectives: Objectives | undefined;
  try {
    objectives = new Objectives(config, model, optimizer);
    resetPeak(dry);
    for (const [turn, update] of updates.entries()) await objectives.update(update, turn, 1);
    const { peak, scratchPeak, reserved } = memory(dry),
      { params } = model;
    const activations = keptActivations(objectives, batchPart(first, 0, microBatch), dry);
    const bytes = (...tensors: ({ bytes: number } | null | undefined)[]): number =>
      tensors.reduce((n, t) => n + (t?.bytes ?? 0), 0);
    const fixed = {
      weights: bytes(params.values),
      bf16Copies: bytes(params.copy, objectives.ssl?.teacher.params.copy),
      gradients: bytes(params.grads),
      moments: bytes(optimizer.m, optimizer.v),
      average: bytes(optimizer.ema),
    };
    const { distillation = 0, ...pairs } = activations;
    const kept = Math.max(distillation, sum(pairs));
    const flops = stepFlops(config, shape, length, objectives, updates, views);
    return {
      device,
      dtype,
      batch: config.batch,
      microBatch,
      checkpointBlocks: config.checkpointBlocks,
      parameters: params.segments.reduce((n, s) => n + s.size, 0),
      trained: params.segments.reduce((n, s) => n + (s.trained === null ? 0 : s.size), 0),
      fixed,
      activations,
      transient: peak - idle - sum(fixed) - kept,
      workspace: scratchPeak,
      peak: peak - idle + scratchPeak,
      cached: Math.max(0, reserved - peak),
      ...flops,
      pixels: {
        most: constants.MAX_LENGTH,
        largest: Math.max(
          ...[
            batch.images,
            batch.naflex?.patches,
            batch.views?.globalViews,
            batch.views?.localViews,
          ].map((p) => p?.length ?? 0),
        ),
      },
    };
  } finally {
    objectives?.dispose();
    optimizer.dispose();
  }
}

function sum(parts: object): number {
  return Object.values(parts).reduce((a: number, b: number) => a + b, 0);
}

/** A batch of the sizes that the loader would give. */
function emptyBatch(
  config: TrainConfig,
  shape: ModelConfig,
  length: number,
  views: ViewsConfig | undefined,
): Batch {
  const {
      batch: B,
      objectives: { caption },
    } = config,
    { imageSize: S, patch } = shape.vision;
  const captions = config.data.captions.pick.length;
  const sequence: DecoderSequence | null =
    caption && shape.decoder ? { ids: new Int32Array(shape.decoder.length), prefix: 1 } : null;
  const rows = divisorNearRoot(length);
  return {
    images: pixels(shape.naflex ? 0 : B * S * S * 3),
    ids: new Int32Array(captions * B * shape.text.length),
    size: B,
    keys: new Array<string>(B).fill(''),
    samples: new Int32Array(B),
    index: 0,
    epoch: 0,
    waitMs: 0,
    langs: new Array<string>(captions * B).fill(''),
    texts: new Array<string>(captions * B).fill(''),
    ...(shape.naflex
      ? {
          naflex: {
            length,
            patches: pixels(B * length * patch * patch * 3),
            offsets: Int32Array.from({ length: B + 1 }, (_, i) => i * length),
            shapes: Int32Array.from({ length: 2 * B }, (_, i) =>
              i % 2 === 0 ? rows : length / rows,
            ),
          },
        }
      : {}),
    ...(sequence
      ? { sequences: TASKS.map(() => new Array<DecoderSequence>(B).fill(sequence)) }
      : {}),
    ...(views ? { views: emptyDryViews(views, B) } : {}),
  };
}

function emptyDryViews(views: ViewsConfig, B: number): NonNullable<Batch['views']> {
  const {
      global: { size: S },
      local: { size: s },
      locals,
      masked,
    } = views,
    N = patchesOf(views);
  return {
    globalViews: pixels(B * S * S * 3),
    localViews: pixels(B * locals * s * s * 3),
    globalSize: S,
    localSize: s,
    masks: Uint8Array.from({ length: B * N }, (_, i) => (i % N < Math.round(masked * N) ? 1 : 0)),
  };
}

function divisorNearRoot(n: number): number {
  let d = Math.floor(Math.sqrt(n));
  while (n % d !== 0) d--;
  return d;
}

/** Bytes that the forward pass of each part leaves for backward, of one micro-batch. */
function keptActivations(objectives: Objectives, part: Batch, device: DryDeviceName): Parts {
  const { model, ssl } = objectives,
    { size: n, ids } = part,
    L = model.config.text.length;
  const left = (forward: () => unknown): number =>
    scope(() => {
      const before = memory(device).live;
      forward();
      const kept = memory(device).live - before;
      clearTape();
      return kept;
    });
  const vision = left(() => objectives.embedded(part));
  const text = left(() => {
    for (let i = 0; i < ids.length; i += n * L)
      model.encodeTexts(tensor(ids.subarray(i, i + n * L), [n, L], device));
  });
  const decoder =
    part.sequences &&
    scope(() => {
      const { tokens, packed } = noGrad(() => scope(() => objectives.tokens(part)));
      if (model.params.trains('vision_model.')) requireGrad(tokens!);
      return left(() => objectives.captionLoss(part, tokens!, packed, 0, n));
    });
  const distillation = ssl && left(() => ssl.losses(part.views!));
  return {
    vision,
    text,
    ...(decoder ? { decoder } : {}),
    ...(distillation ? { distillation } : {}),
  };
}

function stepFlops(
  config: TrainConfig,
  shape: ModelConfig,
  length: number,
  { model, ssl }: Objectives,
  updates: readonly Batch[],
  views: ViewsConfig | undefined,
): Pick<StepPlan, 'flops' | 'recomputed'> {
  const { batch: B } = config,
    captions = config.data.captions.pick.length;
  const forward = {
    vision: B * imageFlops(shape, length),
    text: B * captions * textFlops(shape),
    ...(config.objectives.caption
      ? { decoder: B * TASKS.length * decoderFlops(shape, length) }
      : {}),
  };
  const trains = (part: keyof typeof forward): boolean =>
    part === 'decoder' || model.params.trains(`${part}_model.`);
  const parts: Parts = Object.fromEntries(
    Object.entries(forward).map(([name, f]) => [
      name,
      (trains(name as keyof typeof forward) ? 3 : 1) * f,
    ]),
  );
  const again = Object.entries(forward).reduce(
    (sum, [name, f]) => sum + (trains(name as keyof typeof forward) ? f : 0),
    0,
  );
  const encoded =
    (config.objectives.caption || trains('vision') ? forward.vision : 0) +
    (trains('text') ? forward.text : 0);
  parts.sigmoid = captions * updates.reduce((n, u) => n + sigmoidLossFlops(shape, u.size), 0);
  let student = 0;
  if (ssl && views) {
    const head = (name: string): number =>
      2 *
      model.params.segments.reduce(
        (n, s) => n + (s.name.startsWith(`ssl.${name}`) && s.shape.length > 1 ? s.size : 0),
        0,
      );
    const N = patchesOf(views),
      n = Math.floor(views.local.size / views.patch) ** 2;
    const whole = B * imageFlops(shape, N),
      hidden = maskedRows(updates[0]!.views!.masks).length * head('patch_head');
    student = B * views.locals * (imageFlops(shape, n) + head('image_head')) + whole + hidden;
    parts.distillation = 3 * student + whole + B * head('image_head') + hidden;
  }
  const cached = config.microBatch !== undefined && config.microBatch < updates[0]!.size;
  return {
    flops: { ...parts, total: sum(parts) },
    recomputed: (config.checkpointBlocks ? again + student : 0) + (cached ? encoded : 0),
  };
}
