/**
 * Local-to-global self-distillation (SILC; SigLIP 2 §2.3): small views of an image must predict what the teacher says of
 * its large view. Model outputs to a scalar.
 */
import type { ModelConfig } from '../model/config.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { sslHead } from '../model/ssl_head.js';
import { visionTower } from '../model/vision.js';
import { distillLoss } from '../ops/distill_loss.js';
import type { Tensor } from '../tensor.js';

/** How both self-distillation losses compare student and teacher. */
export interface Temperatures {
  /** τ_s. Default 0.1. */
  student: number;
  /** τ_t. Default 0.04. */
  teacher: number;
}

/** DINO's temperatures; SigLIP 2 prints none. */
export const TEMPERATURES: Temperatures = { student: 0.1, teacher: 0.04 };

/** What the teacher says, without gradient. */
export interface Target {
  /** (rows, K) logits. */
  logits: Tensor;
  /** (K) f32. */
  centre: Tensor;
}

/** Weights of the two losses before the factor of the model size (SigLIP 2 §2.3). */
export const SSL_WEIGHTS = { distill: 1, masked: 0.25 } as const;

/** Factor of both losses by model size (SigLIP 2 §2.3); sizes the paper does not train get that of B. */
export function sslFactor(config: ModelConfig): number {
  const factors: Record<string, number> = { B: 0.25, L: 0.5, So400m: 1, 'g-opt': 0.5 };
  return factors[config.name.split('/')[0]!] ?? 0.25;
}

/**
 * Mean over images and local views of the cross-entropy between the teacher's view of the whole and the student's of a
 * part.
 * @param model the student, with the heads of `sslShapes`
 * @param views (V·B, s, s, 3) u8 local views, view by view: row v·B + b belongs to image b
 * @param target the teacher's logits (B, K) for the global views
 * @returns (1), a root of backward()
 */
export function distillationLoss(
  { params, config, options }: Siglip2Model,
  views: Tensor,
  target: Target,
  t: Temperatures = TEMPERATURES,
): Tensor {
  const logits = sslHead(params, 'ssl.image_head', visionTower(params, config, views, options));
  return distillLoss(logits, target.logits, target.centre, {
    studentTemperature: t.student,
    teacherTemperature: t.teacher,
    overwriteStudent: true,
  });
}
