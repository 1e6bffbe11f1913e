/**
 * The objectives of one training step (SigLIP 2 §2): the sigmoid loss always; LocCa's captioning losses and
 * self-distillation with masked prediction where the config has them. Each is a term with its weight; gradients add up.
 */
import type { Batch } from '../data/batch.js';
import { batchPart } from '../data/batch.js';
import { ConfigError } from '../errors.js';
import { type ViewsConfig, viewsConfig } from '../image/views.js';
import { captionBatch, captionLoss, parallelCount } from '../losses/caption.js';
import { sslFactor } from '../losses/distill.js';
import { contrastiveLoss } from '../losses/sigmoid.js';
import type { ModelConfig } from '../model/config.js';
import type { ParameterShape } from '../model/params.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { SSL_HEAD, sslShapes } from '../model/ssl_head.js';
import { visionTokens } from '../model/vision.js';
import type { Packed } from '../ops/attention.js';
import { gradCache, type PartEncoder, type Roots } from '../optim/grad_cache.js';
import type { AdamW } from '../optim/optimizer.js';
import { Random, Stream } from '../random.js';
import { backward, concatRows, needsGrad } from '../tape.js';
import { scope, type Tensor, tensor } from '../tensor.js';
import type { DecoderTargets } from '../text/sequences.js';
import { deadTeacher, distanceParts, type TeacherFigures, teacherAlarms } from './alarms.js';
import type { TrainConfig } from './config.js';
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
export const TASKS = ['aref', 'gcap', 'caption'] as const;

/** Parameters that the objectives need beside the model's. Throws ConfigError. */
export function objectiveShapes(
  { distill }: ObjectivesConfig,
  model: ModelConfig,
): ParameterShape[] {
  return distill
    ? sslShapes(model, { ...SSL_HEAD, ...(distill.head as Without<typeof distill.head>) })
    : [];
}

/** What the loader makes for the objectives beside images and captions. Throws ConfigError when the model lacks a part. */
export function objectiveData(
  { caption, distill }: ObjectivesConfig,
  model: ModelConfig,
): { decoder?: DecoderTargets; views?: ViewsConfig } {
  if (caption && !model.decoder)
    throw new ConfigError(
      "objectives.caption needs a decoder; set model.decoder, to {} for the paper's",
    );
  if (distill && model.naflex)
    throw new ConfigError(
      'objectives.distill needs a model of fixed resolution; leave it out of NaFlex training',
    );
  return {
    ...(caption
      ? {
          decoder: {
            length: model.decoder!.length,
            minScore: caption.minScore,
            ...(caption.boxes ? { boxes: caption.boxes } : {}),
          },
        }
      : {}),
    ...(distill
      ? { views: viewsConfig(model.vision.imageSize, model.vision.patch, distill.views as object) }
      : {}),
  };
}

export class Objectives {
  /** Null without self-distillation. */
  readonly ssl: SelfDistillation | null;
  /** A parameter that tells whether the teacher follows. */
  readonly #watched: string = '';

  /** @param optimizer its moving average, the teacher, must have its first values */
  constructor(
    readonly config: Pick<TrainConfig, 'objectives' | 'seed' | 'microBatch'>,
    readonly model: Siglip2Model,
    readonly optimizer: AdamW,
  ) {
    const { distill } = config.objectives;
    if (distill) this.#watched = watchedParameter(model);
    const factor = distill?.factor ?? sslFactor(model.config);
    this.ssl = distill
      ? new SelfDistillation(model, optimizer, {
          temperatures: distill.temperatures,
          centreMomentum: distill.centreMomentum,
          distillWeight: distill.weight * factor,
          maskedWeight: distill.maskedWeight * factor,
        })
      : null;
  }

  /**
   * One update of the model from a batch.
   * @param turn number of the update among those of the same batch
   * @param schedule multiplies learning rate and decay; null when the optimizer has been told
   */
  update(batch: Batch, turn: number, schedule: number | null): Promise<Figures> {
    this.model.params.zeroGrad();
    const figures = this.run(batch, turn);
    if (schedule === null) this.optimizer.apply();
    else this.optimizer.update(schedule);
    this.ssl?.afterUpdate();
    return figures;
  }

  /** Adds the gradients of a batch. Zero them first: the captioning loss adds to them in its forward pass already. */
  run(batch: Batch, turn = 0): Promise<Figures> {
    const parts = [this.#pairs(batch, turn)];
    if (this.ssl) parts.push(this.#distill(batch));
    return Promise.all(parts).then((all) => ({
      losses: Object.assign({}, ...all.map((f) => f.losses)) as Record<string, number>,
      total: all.reduce((sum, f) => sum + f.total, 0),
      alarms: all.flatMap((f) => f.alarms),
      ssl: all.find((f) => f.ssl)?.ssl ?? null,
    }));
  }

  /**
   * The sigmoid loss alone, of tensors on the device: adds its gradients, and brings nothing in from the host.
   * @param images (B, S, S, 3) u8
   * @param ids (B, L) for each caption of the images
   * @returns one loss per caption
   */
  contrast(images: Tensor, ids: readonly Tensor[]): Tensor[] {
    const { model } = this;
    const losses = contrastiveLoss(
      model,
      model.poolTokens(model.imageTokens(images)),
      ids.map((t) => model.encodeTexts(t)),
    );
    backward(this.#weighted(losses));
    return losses;
  }

  /** Reads what contrast() returned. */
  async contrastFigures(losses: readonly Tensor[]): Promise<Figures> {
    const sigmoid = await this.#mean(losses);
    return { losses: { sigmoid }, total: sigmoid, alarms: [], ssl: null };
  }

  dispose(): void {
    this.ssl?.dispose();
  }

  /** Each caption set's loss with its weight; the weights' sum is 1. */
  #weighted(losses: readonly Tensor[]): Roots {
    const weights = this.config.objectives.sigmoid.captionWeights ?? losses.map(() => 1);
    const sum = weights.reduce((a, b) => a + b, 0);
    return losses.map((l, i) => [l, weights[i]! / sum]);
  }
  /** Reads the weighted mean of the caption sets' losses. */
  async #mean(losses: readonly Tensor[]): Promise<number> {
    const each = await Promise.all(
      this.#weighted(losses).map(async ([l, weight]) => (await l.item()) * weight),
    );
    return each.reduce((a, b) => a + b, 0);
  }

  /** The losses of images and their texts; one pass through the vision tower serves both. */
  #pairs(batch: Batch, turn: number): Promise<Figures> {
    const {
      model,
      model: { params },
      config: {
        microBatch,
        objectives: { caption },
      },
    } = this;
    const L = model.config.text.length,
      B = batch.size,
      captions = batch.ids.length / (B * L);
    const parallel = caption
      ? parallelCount(
          B,
          caption.parallel,
          new Random(this.config.seed, Stream.parallel, batch.index, turn),
        )
      : 0;
    const said: Promise<ArrayLike<number>>[] = []; // of each part, the tasks' losses
    const embedImages: PartEncoder = (from, to, others) => {
      const part = batchPart(batch, from, to),
        { tokens, packed, whole } = this.embedded(part);
      const images = part.coarse?.count ? this.#withCoarse(whole, part.coarse, part.size) : whole!;
      if (caption && others) {
        // The last examples of the whole batch are in parallel prediction.
        const tasks = this.captionLoss(
          part,
          tokens!,
          packed,
          Math.max(0, Math.min(to - from, to - B + parallel)),
          B,
        );
        others.push([tasks, caption.weight]);
        said.push(tasks.read());
      }
      return images;
    };
    // The first B rows of ids are every image's first caption.
    const embedTexts = Array.from(
      { length: captions },
      (_, c): PartEncoder =>
        (from, to) =>
          model.encodeTexts(
            tensor(
              batch.ids.subarray((c * B + from) * L, (c * B + to) * L),
              [to - from, L],
              params.device,
            ),
          ),
    );
    const contrast = (images: Tensor, ...texts: Tensor[]): Roots =>
      this.#weighted(contrastiveLoss(model, images, texts));
    const [read] = scope(() => {
      let sigmoid: Tensor[];
      if (microBatch !== undefined && microBatch < B) {
        // Frozen image tokens are needed again for the captioning losses.
        const trained = [
          caption !== undefined || params.trains('vision_model.'),
          ...embedTexts.map(() => params.trains('text_model.')),
        ];
        sigmoid = gradCache(B, microBatch, [embedImages, ...embedTexts], contrast, trained);
      } else {
        const others: Roots = [];
        const roots = contrast(
          embedImages(0, B, others),
          ...embedTexts.map((embed) => embed(0, B)),
        );
        backward([...roots, ...others]);
        sigmoid = roots.map(([l]) => l);
      }
      return [
        Promise.all([this.#mean(sigmoid), Promise.all(said)]).then(([mean, parts]) => {
          const losses: Record<string, number> = { sigmoid: mean };
          let total = mean;
          if (caption) {
            TASKS.forEach((task, i) => {
              losses[task] = parts.reduce((sum, part) => sum + part[i]!, 0);
              total += caption.weight * losses[task];
            });
          }
          return { losses, total, alarms: [], ssl: null };
        }),
      ];
    });
    return read!;
  }

  /**
   * The decoder's losses of a batch or a part of one.
   * @param parallel how many examples, at the end, are in parallel prediction
   * @param of examples of the whole batch
   */
  captionLoss(
    batch: Batch,
    tokens: Tensor,
    packed: Packed | null,
    parallel: number,
    of: number,
  ): Tensor {
    const {
      model,
      config: {
        objectives: { caption },
      },
    } = this;
    const sequences = captionBatch(batch.sequences!, {
      length: model.config.decoder!.length,
      mask: model.config.text.vocab,
      parallel,
      weights: TASKS.map((t) => caption!.tasks[t]),
    });
    return captionLoss(model, tokens, sequences, { gradScale: caption!.weight, packed, of });
  }

  /** The tokens of `tokens()` with their embeddings. Frozen tokens that no decoder reads are gone already. */
  embedded(batch: Batch): { tokens: Tensor | null; packed: Packed | null; whole: Tensor | null } {
    const { tokens, packed } = this.tokens(batch);
    const whole = tokens && this.model.poolTokens(tokens, packed ? { packed } : {});
    if (tokens && !needsGrad(tokens) && !this.config.objectives.caption) tokens.dispose();
    return { tokens, packed, whole };
  }

  /** Tokens of the images that are trained on at the model's size, on the tape; null where there is none. */
  tokens(batch: Batch): { tokens: Tensor | null; packed: Packed | null } {
    const { model } = this,
      { imageSize: S } = model.config.vision;
    if (batch.naflex) return model.naflexTokens(batch.naflex);
    const n = batch.size - (batch.coarse?.count ?? 0);
    if (n === 0) return { tokens: null, packed: null };
    const pixels = tensor(
      batch.images.subarray(0, n * S * S * 3),
      [n, S, S, 3],
      model.params.device,
    );
    return { tokens: model.imageTokens(pixels), packed: null };
  }

  /** Embeddings of the images at the model's size, followed by those of the last ones at another. */
  #withCoarse(
    whole: Tensor | null,
    { count, side, images }: NonNullable<Batch['coarse']>,
    B: number,
  ): Tensor {
    const { model } = this,
      { params, config, options } = model;
    const pixels = tensor(
      images.subarray((B - count) * side * side * 3),
      [count, side, side, 3],
      params.device,
    );
    const coarse = model.poolTokens(visionTokens(params, config, pixels, options));
    return whole ? concatRows([whole, coarse]) : coarse;
  }

  #distill(batch: Batch): Promise<Figures> {
    const {
      ssl,
      optimizer,
      model: { params },
      config: { microBatch = batch.size },
    } = this;
    const { distillWeight, maskedWeight } = ssl!.options,
      B = batch.size;
    const since = Object.entries(optimizer.options.since ?? {});
    const joined = since.find(([name]) => 'ssl.mask_token'.startsWith(name))?.[1] ?? 0;
    // The first update of a run may have a learning rate of 0 and then moves nothing.
    const moved = Math.max(0, optimizer.step - joined - 1);
    // One small parameter tells whether the teacher moves at all.
    const distance = scope(() => [
      Promise.all(distanceParts(params, ssl!.teacher.params, this.#watched).map((d) => d.item())),
    ])[0]!;
    const ranges = Array.from(
      { length: Math.ceil(B / microBatch) },
      (_, i) => [i * microBatch, Math.min(B, (i + 1) * microBatch)] as const,
    );
    ssl!.startCentres(
      ranges.map(
        ([from, to]) =>
          () =>
            batchPart(batch, from, to).views!,
      ),
    );
    const parts = ranges.map(([from, to]) => {
      const share = (to - from) / B,
        views = batchPart(batch, from, to).views!,
        rows = views.masks.reduce((n, x) => n + x, 0);
      return scope(() => {
        const { distill, masked, roots, imageStatistics, patchStatistics } = ssl!.losses(
          views,
          from,
          B,
        );
        backward(roots);
        return [
          Promise.all([
            distill.item(),
            masked.item(),
            imageStatistics.read(),
            patchStatistics.read(),
          ]).then(([d, m, ...said]) => {
            const image = figures(said[0]),
              patch = figures(said[1]),
              { imageCentre, patchCentre } = ssl!.teacher;
            return {
              distill: share * d,
              masked: share * m,
              entropy: share * image.entropy,
              patchEntropy: share * patch.entropy,
              alarms: [
                ...teacherAlarms(image, imageCentre.size, to - from),
                ...teacherAlarms(patch, patchCentre.size, rows),
              ],
            };
          }),
        ];
      })[0]!;
    });
    return Promise.all([distance, Promise.all(parts)]).then(([moves, all]) => {
      const mean = (of: 'distill' | 'masked' | 'entropy' | 'patchEntropy'): number =>
        all.reduce((sum, part) => sum + part[of], 0);
      const distill = mean('distill'),
        masked = mean('masked'),
        entropy = mean('entropy'),
        patchEntropy = mean('patchEntropy');
      const dead = deadTeacher(
        moves.reduce((a, b) => a + b, 0),
        moved,
      );
      return {
        losses: { distill, masked },
        total: distillWeight * distill + maskedWeight * masked,
        ssl: {
          entropy,
          divergence: distill - entropy,
          patchEntropy,
          patchDivergence: masked - patchEntropy,
        },
        // What is wrong with the teacher shows in every part, in other figures.
        alarms: [...all[0]!.alarms, ...(dead === null ? [] : [dead])],
      };
    });
  }
}

/** A small parameter of what self-distillation trains. */
function watchedParameter({ params }: Siglip2Model): string {
  const trained = params.segments.filter(
    (s) => s.trained !== null && s.name.startsWith('vision_model.'),
  );
  const usual = 'vision_model.post_layernorm.weight';
  if (trained.length === 0)
    throw new ConfigError(
      'objectives.distill trains the vision tower, but all of it is frozen; remove one of the two',
    );
  return (
    trained.find(({ name }) => name === usual)?.name ??
    trained.reduce((a, b) => (b.size < a.size ? b : a)).name
  );
}

function figures(read: ArrayLike<number>): TeacherFigures {
  return { entropy: read[0]!, entropyOfMean: read[1]!, largestShare: read[2]! };
}
