/**
 * Masked prediction (TIPS, SigLIP 2 §2.3): the student sees the teacher's view with half of the patches hidden and must
 * predict what the teacher says of each hidden patch. Model outputs to a scalar.
 */
import type { Siglip2Model } from '../model/siglip2.js';
import { sslHead, tokensAt } from '../model/ssl_head.js';
import { visionTokens } from '../model/vision.js';
import { distillLoss } from '../ops/distill_loss.js';
import type { Tensor } from '../tensor.js';
import { type Target, TEMPERATURES, type Temperatures } from './distill.js';

/** The rows of a mask that are set, ascending: what `maskedLoss` and the teacher gather. */
export function maskedRows(mask: Uint8Array): Int32Array {
  let n = 0;
  const rows = new Int32Array(mask.length);
  mask.forEach((m, i) => {
    if (m) rows[n++] = i;
  });
  return rows.subarray(0, n);
}

/**
 * Mean over the masked patches of the cross-entropy between the teacher's and the student's prototypes. Every image has
 * the same number of them, so it is also the mean over images of their means.
 * @param model the student, with the heads and the mask token of `sslShapes`
 * @param images (B, H, W, 3) u8, the teacher's views
 * @param mask (B, N) u8
 * @param rows (M) i32, `maskedRows` of the mask
 * @param target the teacher's logits (M, K) at those rows
 * @returns (1), a root of backward()
 */
export function maskedLoss(
  { params, config, options }: Siglip2Model,
  images: Tensor,
  mask: Tensor,
  rows: Tensor,
  target: Target,
  t: Temperatures = TEMPERATURES,
): Tensor {
  const tokens = visionTokens(params, config, images, options, {
    mask,
    token: params.get('ssl.mask_token'),
  });
  const logits = sslHead(params, 'ssl.patch_head', tokensAt(tokens, rows));
  return distillLoss(logits, target.logits, target.centre, {
    studentTemperature: t.student,
    teacherTemperature: t.teacher,
    overwriteStudent: true,
  });
}
