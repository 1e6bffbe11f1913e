import { checkColumns, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forward =
  op<
    [
      y: Handle,
      sum: Handle,
      mean: Handle,
      rstd: Handle,
      x: Handle,
      residual: Handle,
      weight: Handle,
      bias: Handle,
      R: number,
      C: number,
      eps: number,
    ]
  >('layer_norm_forward');
const back =
  op<
    [
      dx: Handle,
      dweight: Handle,
      dbias: Handle,
      dy: Handle,
      dsum: Handle,
      h: Handle,
      weight: Handle,
      mean: Handle,
      rstd: Handle,
      R: number,
      C: number,
    ]
  >('layer_norm_backward');

/**
 * LayerNorm over the last axis: `(x − mean) / sqrt(var + eps) · weight + bias`.
 * @param x (…, C), f32 or bf16
 * @param weight (C) f32
 * @param bias (C) f32, or null
 * @param eps 1e-6 in every SigLIP 2 model
 * @returns (…, C) of x's type
 * @throws ShapeError
 */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor | null, eps = 1e-6): Tensor {
  return normalize(x, null, weight, bias, eps).y;
}

/**
 * The residual addition and the LayerNorm that follows it in a pre-LN block, in one pass over memory.
 * @returns `sum` = x + residual and `y` = LayerNorm(sum), both (…, C)
 * @throws ShapeError
 */
export function addLayerNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  eps = 1e-6,
): { sum: Tensor; y: Tensor } {
  checkShape('addLayerNorm', 'residual', residual, x.shape);
  return normalize(x, residual, weight, bias, eps);
}

function normalize(
  x: Tensor,
  residual: Tensor | null,
  weight: Tensor,
  bias: Tensor | null,
  eps: number,
) {
  const [C, R] = checkColumns('layerNorm', x);
  checkRank('layerNorm', 'weight', weight, 1);
  checkShape('layerNorm', 'weight', weight, [C]);
  if (bias) checkShape('layerNorm', 'bias', bias, [C]);
  const y = empty(x.shape, x.dtype, x.device);
  const sum = residual ? empty(x.shape, x.dtype, x.device) : x;
  const mean = empty([R], 'f32', x.device),
    rstd = empty([R], 'f32', x.device);
  forward(
    y.handle,
    residual ? sum.handle : 0,
    mean.handle,
    rstd.handle,
    x.handle,
    residual?.handle ?? 0,
    weight.handle,
    bias?.handle ?? 0,
    R,
    C,
    eps,
  );
  record({
    inputs: residual ? [x, residual] : [x],
    outputs: residual ? [y, sum] : [y],
    saved: [sum, mean, rstd],
    params: [weight, bias],
    backward(dy, dsum) {
      const dx = empty(x.shape, x.dtype, x.device);
      const g = dy ?? zeros(x.shape, x.dtype, x.device);
      back(
        dx.handle,
        gradHandle(weight),
        bias ? gradHandle(bias) : 0,
        g.handle,
        dsum?.handle ?? 0,
        sum.handle,
        weight.handle,
        mean.handle,
        rstd.handle,
        R,
        C,
      );
      return residual ? [dx, dx] : [dx];
    },
  });
  return { y, sum };
}
