import { checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import type { Tensor } from '../tensor.js';

const sumSquares = op<[result: Handle, x: Handle, N: number]>('sum_of_squares');
const step =
  op<
    [
      param: Handle,
      m: Handle,
      v: Handle,
      ema: Handle,
      copy: Handle,
      grad: Handle,
      norm2: Handle,
      segments: Handle,
      lrScale: Handle,
      rates: Handle,
      N: number,
      S: number,
      step: number,
      lr: number,
      beta1: number,
      beta2: number,
      eps: number,
      decay: number,
      clip: number,
      emaDecay: number,
    ]
  >('adamw_step');

/**
 * result ← Σ x², in a fixed order.
 * @param result (1) f32
 * @param x any shape, f32
 */
export function sumOfSquares(result: Tensor, x: Tensor): void {
  checkShape('sumOfSquares', 'result', result, [1]);
  sumSquares(result.handle, x.handle, x.size);
}

/** Arguments of one AdamW update over an arena of N elements; all arrays f32 unless said otherwise. */
export interface AdamWStep {
  param: Tensor;
  m: Tensor;
  v: Tensor;
  ema: Tensor | null;
  /** bf16 copy of the new weights. */
  copy: Tensor | null;
  grad: Tensor;
  /** (1) squared gradient norm: sumOfSquares(norm2, grad). */
  norm2: Tensor;
  /** (S, 2) i32: end offset of each segment, and whether it decays. */
  segments: Tensor;
  /** (S) factor of the learning rate. */
  lrScale: Tensor;
  /**
   * (4) learning rate, decay and the bias corrections 1/(1−β1^t) and 1/(1−β2^t), as `adamwRates` makes them: read by the
   * device in place of `step`, `lr` and `decay`, so that a recorded step can be replayed with new ones.
   */
  rates?: Tensor;
  /** Counted from 1, for bias correction. */
  step: number;
  /** Learning rate of this step, schedule included. */
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  /** θ ← θ − decay·θ; schedule included, not multiplied by lr (big_vision). */
  decay: number;
  /** Gradients are scaled down to this global norm. */
  clip: number;
  emaDecay: number;
}

/** The host's side of `AdamWStep.rates`. */
export function adamwRates(
  step: number,
  lr: number,
  decay: number,
  beta1: number,
  beta2: number,
): Float32Array {
  // With the betas as the kernel receives them, f32, so that both ways give the same bits.
  const correction = (beta: number): number => 1 / (1 - Math.fround(beta) ** step);
  return Float32Array.of(lr, decay, correction(beta1), correction(beta2));
}

/**
 * One update in place: global-norm clip, Adam with bias correction, decoupled decay, EMA, bf16 copy; one pass.
 * @throws ShapeError
 */
export function adamwStep(a: AdamWStep): void {
  const shape = a.param.shape,
    S = a.segments.shape[0]!;
  for (const name of ['m', 'v', 'ema', 'copy', 'grad'] as const) {
    const t = a[name];
    if (t) checkShape('adamwStep', name, t, shape);
  }
  checkShape('adamwStep', 'segments', a.segments, [S, 2]);
  checkShape('adamwStep', 'lrScale', a.lrScale, [S]);
  if (a.rates) checkShape('adamwStep', 'rates', a.rates, [4]);
  step(
    a.param.handle,
    a.m.handle,
    a.v.handle,
    a.ema?.handle ?? 0,
    a.copy?.handle ?? 0,
    a.grad.handle,
    a.norm2.handle,
    a.segments.handle,
    a.lrScale.handle,
    a.rates?.handle ?? 0,
    a.param.size,
    S,
    a.step,
    a.lr,
    a.beta1,
    a.beta2,
    a.eps,
    a.decay,
    a.clip,
    a.emaDecay,
  );
}
