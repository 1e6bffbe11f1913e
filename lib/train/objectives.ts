/**
 * The objectives of one training step (SigLIP 2 §2): the sigmoid loss always; LocCa's captioning losses and
 * self-distillation with masked prediction where the config has them. Each is a term with its weight; gradients add up.
 */
import type { Batch } from '../data/loader.js';
import type { DecoderTargets } from '../data/sequences.js';
import { Random, Stream } from '../data/random.js';
import { viewsConfig, type ViewBatch, type ViewsConfig } from '../data/views.js';
import { ConfigError } from '../errors.js';
import { captionBatch, captionLoss, parallelCount } from '../losses/caption.js';
import { sslFactor } from '../losses/distill.js';
import { contrastiveLoss } from '../losses/sigmoid.js';
import type { ModelConfig, ParameterShape } from '../model/config.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { SSL_HEAD, sslShapes } from '../model/ssl_head.js';
import type { Packed } from '../ops/attention.js';
import { backward } from '../tape.js';
import { scope, tensor, type Tensor } from '../tensor.js';
import { deadTeacher, distanceParts, teacherAlarms, type TeacherFigures } from './alarms.js';
import type { TrainConfig } from './config.js';
import type { AdamW } from './optimizer.js';
import { SelfDistillation } from './self_distillation.js';

type ObjectivesConfig = TrainConfig['objectives'];
type Without<T> = { [K in keyof T]: Exclude<T[K], undefined> };

/** What one update says of itself. */
export interface Figures {
  /** By name, unweighted unless a task has a factor of its own. */
  losses: Record<string, number>;
  /** The losses' weighted sum. */
  total: number;
  /** Of self-distillation; see `SslFigures`. Null without it. */
  ssl: SslFigures | null;
  alarms: string[];
}

/**
 * A loss of self-distillation is the entropy of the teacher's targets plus the student's divergence from them (KL). The
 * first moves by itself as the teacher sharpens or its centre settles; the second is what the student can learn. Nats.
 */
export interface SslFigures {
  entropy: number;
  divergence: number;
  patchEntropy: number;
  patchDivergence: number;
}

/** The decoder's tasks in the loader's order, by the name of their loss. */
const TASKS = ['aref', 'gcap', 'caption'] as const;

/** Parameters that the objectives need beside the model's. Throws ConfigError. */
export function objectiveShapes({ distill }: ObjectivesConfig, model: ModelConfig): ParameterShape[] {
  return distill ? sslShapes(model, { ...SSL_HEAD, ...distill.head as Without<typeof distill.head> }) : [];
}

/** What the loader makes for the objectives beside images and captions. Throws ConfigError when the model lacks a part. */
export function objectiveData({ caption, distill }: ObjectivesConfig, model: ModelConfig): {
  decoder?: DecoderTargets;
  views?: ViewsConfig;
} {
  if (caption && !model.decoder)
    throw new ConfigError('objectives.caption needs a decoder; set model.decoder, to {} for the paper\'s');
  if (distill && model.naflex)
    throw new ConfigError('objectives.distill needs a model of fixed resolution; leave it out of NaFlex training');
  return {
    ...(caption ? { decoder: {
      length: model.decoder!.length, minScore: caption.minScore, ...(caption.boxes ? { boxes: caption.boxes } : {}),
    } } : {}),
    ...(distill ? { views: viewsConfig(model.vision.imageSize, model.vision.patch, distill.views as object) } : {}),
  };
}

export class Objectives {
  /** Null without self-distillation. */
  readonly ssl: SelfDistillation | null;

  /** @param optimizer its moving average, the teacher, must have its first values */
  constructor(readonly config: ObjectivesConfig, readonly seed: number, readonly model: Siglip2Model,
    readonly optimizer: AdamW) {
    const { distill } = config;
    const factor = distill?.factor ?? sslFactor(model.config);
    this.ssl = distill ? new SelfDistillation(model, optimizer, {
      temperatures: distill.temperatures, centreMomentum: distill.centreMomentum,
      distillWeight: distill.weight * factor, maskedWeight: distill.maskedWeight * factor,
    }) : null;
  }

  /**
   * Adds the gradients of a batch. Zero them first: the captioning loss adds to them in its forward pass already.
   * @param turn number of the update among those of the same batch
   */
  run(batch: Batch, turn = 0): Promise<Figures> {
    const parts = [this.#pairs(batch, turn)];
    if (this.ssl) parts.push(this.#distill(batch.views!));
    return Promise.all(parts).then((all) => ({
      losses: Object.assign({}, ...all.map((f) => f.losses)) as Record<string, number>,
      total: all.reduce((sum, f) => sum + f.total, 0), alarms: all.flatMap((f) => f.alarms),
      ssl: all.find((f) => f.ssl)?.ssl ?? null,
    }));
  }

  /** Call after the optimizer's update. */
  afterUpdate(): void { this.ssl?.afterUpdate(); }
  dispose(): void { this.ssl?.dispose(); }

  /** The losses of images and their texts; one pass through the vision tower serves both. */
  #pairs(batch: Batch, turn: number): Promise<Figures> {
    const { model, config: { caption } } = this, device = model.params.device;
    const L = model.config.text.length, B = batch.size, captions = batch.ids.length / (B * L);
    const [read] = scope(() => {
      const { tokens, packed } = this.#tokens(batch);
      const images = model.poolTokens(tokens, packed ? { packed } : {});
      // The first B rows of ids are every image's first caption.
      const texts = Array.from({ length: captions }, (_, c) =>
        model.encodeTexts(tensor(batch.ids.subarray(c * B * L, (c + 1) * B * L), [B, L], device)));
      const sigmoid = contrastiveLoss(model, images, texts);
      const roots: [Tensor, number][] = sigmoid.map((l) => [l, 1 / captions]);
      let tasks: Tensor | undefined;
      if (caption) {
        const random = new Random(this.seed, Stream.parallel, batch.index, turn);
        const sequences = captionBatch(batch.sequences!, {
          length: model.config.decoder!.length, mask: model.config.text.vocab,
          parallel: parallelCount(B, caption.parallel, random), weights: TASKS.map((t) => caption.tasks[t]),
        });
        tasks = captionLoss(model, tokens, sequences, { gradScale: caption.weight, packed });
        roots.push([tasks, caption.weight]);
      }
      backward(roots);
      const values = Promise.all([tasks ? tasks.read() : [], ...sigmoid.map((l) => l.item())]);
      return [values.then(([said, ...pairs]) => {
        const mean = pairs.reduce((a, b) => a + b, 0) / captions;
        const losses: Record<string, number> = { sigmoid: mean };
        Array.from(said as ArrayLike<number>).forEach((value, i) => { losses[TASKS[i]!] = value; });
        const sum = Array.from(said as ArrayLike<number>).reduce((a, b) => a + b, 0);
        return { losses, total: mean + (caption?.weight ?? 0) * sum, alarms: [], ssl: null };
      })];
    });
    return read!;
  }

  #tokens(batch: Batch): { tokens: Tensor; packed: Packed | null } {
    const { model } = this, { imageSize: S } = model.config.vision;
    if (batch.naflex) return model.naflexTokens(batch.naflex);
    return { tokens: model.imageTokens(tensor(batch.images, [batch.size, S, S, 3], model.params.device)), packed: null };
  }

  #distill(views: ViewBatch): Promise<Figures> {
    const { ssl, optimizer, model: { params } } = this, { distillWeight, maskedWeight } = ssl!.options;
    const since = Object.entries(optimizer.options.since ?? {});
    const joined = since.find(([name]) => 'ssl.mask_token'.startsWith(name))?.[1] ?? 0;
    // The first update of a run may have a learning rate of 0 and then moves nothing.
    const moved = Math.max(0, optimizer.step - joined - 1);
    const images = views.globalViews.length / (3 * views.globalSize ** 2);
    const rows = views.masks.reduce((n, m) => n + m, 0);
    const [read] = scope(() => {
      // One small parameter tells whether the teacher moves at all.
      const distances = distanceParts(params, ssl!.teacher.params, 'vision_model.post_layernorm.weight');
      const { distill, masked, roots, imageStatistics, patchStatistics } = ssl!.losses(views);
      backward(roots);
      const values = Promise.all([distill.item(), masked.item(), imageStatistics.read(), patchStatistics.read(),
        Promise.all(distances.map((d) => d.item()))]);
      return [values.then(([d, m, ...read]) => {
        const [image, patch] = [figures(read[0]), figures(read[1])], distance = read[2].reduce((a, b) => a + b, 0);
        const { imageCentre, patchCentre } = ssl!.teacher;
        return {
          losses: { distill: d, masked: m }, total: distillWeight * d + maskedWeight * m,
          ssl: {
            entropy: image.entropy, divergence: d - image.entropy, patchEntropy: patch.entropy, patchDivergence: m - patch.entropy,
          },
          alarms: [
            ...teacherAlarms(image, imageCentre.size, images), ...teacherAlarms(patch, patchCentre.size, rows),
            ...[deadTeacher(distance, moved)].filter((alarm) => alarm !== null),
          ],
        };
      })];
    });
    return read!;
  }
}

function figures(read: ArrayLike<number>): TeacherFigures {
  return { entropy: read[0]!, entropyOfMean: read[1]!, largestShare: read[2]! };
}
