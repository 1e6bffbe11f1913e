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
import type { ViewBatch } from '../data/views.js';
import { ConfigError } from '../errors.js';
import { distillationLoss, SSL_WEIGHTS, sslFactor, TEMPERATURES, type Temperatures } from '../losses/distill.js';
import { maskedLoss, maskedRows } from '../losses/masked.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { Teacher } from '../model/teacher.js';
import { teacherStatistics } from '../ops/teacher_centre.js';
import { tensor, type Tensor } from '../tensor.js';
import type { AdamW } from './optimizer.js';

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
  constructor(readonly model: Siglip2Model, optimizer: AdamW, options: Partial<SelfDistillationOptions> = {}) {
    if (!optimizer.ema)
      throw new ConfigError('self-distillation needs a moving average as its teacher; set optimizer.ema, to 0.994 say');
    const factor = sslFactor(model.config);
    this.options = {
      temperatures: TEMPERATURES, centreMomentum: 0.9,
      distillWeight: SSL_WEIGHTS.distill * factor, maskedWeight: SSL_WEIGHTS.masked * factor, ...options,
    };
    this.teacher = new Teacher(model.params, optimizer.ema);
  }

  /** Both losses of a batch; moves the centres. */
  losses(batch: ViewBatch): SslLosses {
    const { model: { config, params, options: tower }, teacher, options: o } = this;
    const { globalSize: S, localSize: s } = batch, { patch } = config.vision, device = params.device;
    const B = batch.globalViews.length / (S * S * 3), V = batch.localViews.length / (s * s * 3);
    const N = Math.floor(S / patch) ** 2, t = o.temperatures;
    const images = tensor(batch.globalViews, [B, S, S, 3], device);
    const locals = tensor(batch.localViews, [V, s, s, 3], device);
    const mask = tensor(batch.masks, [B, N], device), hidden = maskedRows(batch.masks);
    if (hidden.length === 0)
      throw new ConfigError('masked prediction needs at least one masked patch in every image; raise views.masked');
    const rows = tensor(hidden, [hidden.length], device);
    const said = teacher.forward(config, images, rows, tower);
    teacher.startCentres(said);
    const whole = { logits: said.image, centre: teacher.imageCentre };
    const parts = { logits: said.patches, centre: teacher.patchCentre };
    const distill = distillationLoss(params, config, locals, whole, tower, t);
    const masked = maskedLoss(params, config, images, mask, rows, parts, tower, t);
    const result: SslLosses = {
      distill, masked, roots: [[distill, o.distillWeight], [masked, o.maskedWeight]],
      imageStatistics: teacherStatistics(said.image, teacher.imageCentre, t.teacher),
      patchStatistics: teacherStatistics(said.patches, teacher.patchCentre, t.teacher),
    };
    teacher.updateCentres(said, o.centreMomentum);
    return result;
  }

  /** Call after `optimizer.update()`. */
  afterUpdate(): void { this.teacher.refresh(); }
  dispose(): void { this.teacher.dispose(); }
}
