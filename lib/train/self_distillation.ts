/**
 * Self-distillation and masked prediction as one part of a training step (SigLIP 2 §2.3): the teacher's targets, both
 * losses as weighted roots of backward(), the centres, and the figures the alarms watch.
 *
 *   const ssl = new SelfDistillation(model, optimizer);      // after optimizer.resetEma()
 *   each step:  const { roots, ... } = ssl.losses(views);  backward([...others, ...roots]);
 *               optimizer.update(lr);  ssl.afterUpdate();
 *
 * The roots may have a backward() of their own, before or after that of the other losses: gradients add up, and the
 * activations of one part are gone before those of the next are made.
 */

import { ConfigError } from '../errors.js';
import type { ViewBatch } from '../image/views.js';
import {
  distillationLoss,
  SSL_WEIGHTS,
  sslFactor,
  TEMPERATURES,
  type Temperatures,
} from '../losses/distill.js';
import { maskedLoss, maskedRows } from '../losses/masked.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { Teacher, type TeacherOutput } from '../model/teacher.js';
import { teacherStatistics } from '../ops/teacher_centre.js';
import type { AdamW } from '../optim/optimizer.js';
import { scope, type Tensor, tensor } from '../tensor.js';

export interface SelfDistillationOptions {
  temperatures: Temperatures;
  /** m_c of the centres. */
  centreMomentum: number;
  /** Weight of the local-to-global loss, the factor of the size included. */
  distillWeight: number;
  /** Weight of masked prediction, the factor of the size included. */
  maskedWeight: number;
}

/** Tensors of one step; the caller's scope owns them. */
export interface SslLosses {
  distill: Tensor;
  masked: Tensor;
  /** For backward(). */
  roots: [loss: Tensor, weight: number][];
  /** (3) mean entropy, entropy of the mean, largest share; see `teacherStatistics`. */
  imageStatistics: Tensor;
  patchStatistics: Tensor;
}

export class SelfDistillation {
  readonly teacher: Teacher;
  readonly options: SelfDistillationOptions;

  /**
   * @param model made with `extra: sslShapes(config, …)` and `train: true`
   * @param optimizer with `ema` set: the teacher is its moving average
   * @throws ConfigError without one
   */
  constructor(
    readonly model: Siglip2Model,
    optimizer: AdamW,
    options: Partial<SelfDistillationOptions> = {},
  ) {
    if (!optimizer.ema)
      throw new ConfigError(
        'self-distillation needs a moving average as its teacher; set optimizer.ema, to 0.994 say',
      );
    const factor = sslFactor(model.config);
    this.options = {
      temperatures: TEMPERATURES,
      centreMomentum: 0.9,
      distillWeight: SSL_WEIGHTS.distill * factor,
      maskedWeight: SSL_WEIGHTS.masked * factor,
      ...options,
    };
    this.teacher = new Teacher(model, optimizer.ema);
  }

  /**
   * Both losses of a batch; moves the centres. A batch may come in parts, in order, each with its own backward(): their
   * roots are weighted by their share of it, and the last one moves the centres.
   * @param before images of the whole batch before this part
   * @param of images of the whole batch; default: this is all of it
   */
  losses(batch: ViewBatch, before = 0, of?: number): SslLosses {
    if (of === undefined) this.startCentres([() => batch]);
    const { model, teacher, options: o } = this,
      device = model.params.device;
    const { localSize: s } = batch,
      t = o.temperatures,
      { images, rows, said } = this.#teach(batch);
    const B = images.shape[0]!,
      V = batch.localViews.length / (s * s * 3),
      all = of ?? B,
      share = B / all;
    const locals = tensor(batch.localViews, [V, s, s, 3], device),
      mask = tensor(batch.masks, [B, batch.masks.length / B], device);
    const whole = { logits: said.image, centre: teacher.imageCentre };
    const parts = { logits: said.patches, centre: teacher.patchCentre };
    const distill = distillationLoss(model, locals, whole, t);
    const masked = maskedLoss(model, images, mask, rows, parts, t);
    const result: SslLosses = {
      distill,
      masked,
      roots: [
        [distill, o.distillWeight * share],
        [masked, o.maskedWeight * share],
      ],
      imageStatistics: teacherStatistics(said.image, teacher.imageCentre, t.teacher),
      patchStatistics: teacherStatistics(said.patches, teacher.patchCentre, t.teacher),
    };
    teacher.updateCentres(said, o.centreMomentum, before, all - before - B);
    return result;
  }

  /**
   * Starts the centres at the means of a whole batch, unless they have values; call before the `losses` of its parts. From
   * zero they would need some 1/(1 − momentum) batches, in which all images have nearly the same target and the losses
   * look too good.
   * @param parts make the parts, in order
   */
  startCentres(parts: readonly (() => ViewBatch)[]): void {
    if (this.teacher.centred) return;
    let before = 0;
    parts.forEach((part, i) =>
      scope(() => {
        const { said } = this.#teach(part());
        this.teacher.updateCentres(said, 0, before, parts.length - 1 - i);
        before += said.image.shape[0]!;
      }),
    );
  }

  /** The global views, which of their patches are hidden, and what the teacher says of both. */
  #teach({ globalViews, globalSize: S, masks }: ViewBatch): {
    images: Tensor;
    rows: Tensor;
    said: TeacherOutput;
  } {
    const {
        model: { params },
        teacher,
      } = this,
      hidden = maskedRows(masks);
    if (hidden.length === 0)
      throw new ConfigError(
        'masked prediction needs at least one masked patch in every image; raise views.masked',
      );
    const images = tensor(globalViews, [globalViews.length / (S * S * 3), S, S, 3], params.device);
    const rows = tensor(hidden, [hidden.length], params.device);
    return { images, rows, said: teacher.forward(images, rows) };
  }

  /** Call after `optimizer.update()`. */
  afterUpdate(): void {
    this.teacher.refresh();
  }
  dispose(): void {
    this.teacher.dispose();
  }
}
