import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { isRecording, lossWeight, needsGrad, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forwardBackward = op<
  [
    loss: Handle,
    dx: Handle,
    dy: Handle,
    dlogScale: Handle,
    dbias: Handle,
    x: Handle,
    y: Handle,
    logScale: Handle,
    bias: Handle,
    M: number,
    N: number,
    D: number,
    row0: number,
    col0: number,
    weight: number,
  ]
>('sigmoid_loss_forward_backward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** One block of the global pair matrix: rows row0 … row0+M−1 of x against columns col0 … col0+N−1 of y. */
export interface SigmoidLossBlock {
  /** (M, D) unit rows, f32 or bf16. */
  x: Tensor;
  /** (N, D) unit rows of x's type. */
  y: Tensor;
  /** (1) f32, log of the temperature t; the logits are t·x·y + bias. */
  logScale: Tensor;
  /** (1) f32. */
  bias: Tensor;
  /** Global index of x's first row; pair (i, j) is positive where row0 + i = col0 + j. */
  row0: number;
  /** Global index of y's first row. */
  col0: number;
  /** Every term is divided by it: the number of images over all blocks and all devices. */
  globalBatch: number;
  /** Accumulators, all f32, += in place; null: not computed. */
  loss: Tensor;
  /** (M, D) */
  dx: Tensor | null;
  /** (N, D) */
  dy: Tensor | null;
  /** (1) */
  dlogScale: Tensor | null;
  /** (1) */
  dbias: Tensor | null;
}

/**
 * Adds one block's share of the pairwise sigmoid loss and of its gradients to the accumulators. The blocks of a ring
 * or of a chunked batch sum to what one call over all pairs gives; nothing of the size M×N is ever in memory. Not on
 * the tape: `sigmoidLoss` is.
 * @throws ShapeError
 */
export function sigmoidLossBlock(a: SigmoidLossBlock): void {
  const name = 'sigmoidLossBlock';
  checkRank(name, 'x', a.x, 2);
  const [M, D] = a.x.shape as [number, number],
    N = a.y.shape[0]!;
  checkDType(name, 'x', a.x, 'f32', 'bf16');
  checkDType(name, 'y', a.y, a.x.dtype);
  checkShape(name, 'y', a.y, [N, D]);
  for (const key of ['logScale', 'bias', 'loss', 'dlogScale', 'dbias'] as const) {
    const t = a[key];
    if (t) checkShape(name, key, t, [1]);
  }
  if (a.dx) checkShape(name, 'dx', a.dx, [M, D]);
  if (a.dy) checkShape(name, 'dy', a.dy, [N, D]);
  for (const key of ['row0', 'col0'] as const)
    check(
      Number.isSafeInteger(a[key]) && a[key] >= 0,
      name,
      `${key} must be an index but is ${a[key]}`,
    );
  check(a.globalBatch > 0, name, `globalBatch must be positive but is ${a.globalBatch}`);
  forwardBackward(
    a.loss.handle,
    a.dx?.handle ?? 0,
    a.dy?.handle ?? 0,
    a.dlogScale?.handle ?? 0,
    a.dbias?.handle ?? 0,
    a.x.handle,
    a.y.handle,
    a.logScale.handle,
    a.bias.handle,
    M,
    N,
    D,
    a.row0,
    a.col0,
    1 / a.globalBatch,
  );
}

/**
 * Pairwise sigmoid loss of SigLIP (arXiv 2303.15343, eq. 1–2): row i of x belongs to row i of y and to no other,
 * `L = 1/B · Σ_ij softplus(−z_ij (exp(logScale)·x_i·y_j + bias))`, z = +1 on the diagonal, −1 elsewhere.
 *
 * All gradients are made in the same pass as the value and kept for backward (two f32 tensors of x's shape); under
 * noGrad(), or when nobody wants one, only the value is. The result must be a root of backward(), with its weight.
 * @param x (B, E) unit rows, f32 or bf16
 * @param y (B, E) unit rows of x's type
 * @param logScale (1) f32
 * @param bias (1) f32
 * @param options.chunk rows of y per kernel call, all by default: bounds how long one call holds the stream; the
 *   kernel's workspace is the same few MiB at any size
 * @returns (1) f32: sum over the columns, mean over the rows
 * @throws ShapeError
 */
export function sigmoidLoss(
  x: Tensor,
  y: Tensor,
  logScale: Tensor,
  bias: Tensor,
  options: { chunk?: number } = {},
): Tensor {
  checkRank('sigmoidLoss', 'x', x, 2);
  checkShape('sigmoidLoss', 'y', y, x.shape);
  const [B, E] = x.shape as [number, number],
    chunk = options.chunk ?? B;
  check(B > 0 && E > 0, 'sigmoidLoss', `x must have rows and columns but is [${B}, ${E}]`);
  check(
    Number.isSafeInteger(chunk) && chunk > 0,
    'sigmoidLoss',
    `chunk must be a positive integer but is ${chunk}`,
  );
  const wanted = (on: boolean, like: Tensor) =>
    on && isRecording() ? zeros(like.shape, 'f32', x.device) : null;
  const loss = zeros([1], 'f32', x.device);
  const dx = wanted(needsGrad(x), x),
    dy = wanted(needsGrad(y), y);
  const dlogScale = wanted(needsGrad(logScale), logScale),
    dbias = wanted(needsGrad(bias), bias);
  for (let col0 = 0; col0 < B; col0 += chunk) {
    const n = Math.min(chunk, B - col0),
      whole = n === B;
    const part = (t: Tensor | null) => t && (whole ? t : t.view(col0 * E, [n, E]));
    const yPart = part(y)!,
      dyPart = part(dy);
    sigmoidLossBlock({
      x,
      y: yPart,
      logScale,
      bias,
      row0: 0,
      col0,
      globalBatch: B,
      loss,
      dx,
      dy: dyPart,
      dlogScale,
      dbias,
    });
    if (!whole) for (const t of [yPart, dyPart]) t?.dispose();
  }
  const made = [dx, dy, dlogScale, dbias];
  record({
    inputs: [x, y, logScale, bias],
    outputs: [loss],
    saved: made.filter((t) => t !== null),
    backward(dloss) {
      check(
        dloss === null,
        'sigmoidLoss',
        'the loss must be a root of backward() with a weight, not an input of another op',
      );
      const weight = lossWeight(loss);
      return [
        finish(dx, x, weight),
        finish(dy, y, weight),
        finish(dlogScale, logScale, weight),
        finish(dbias, bias, weight),
      ];
    },
  });
  for (const t of made) t?.dispose(); // the tape holds them now, and only the tape
  return loss;
}

/** weight · gradient in x's type; the gradient's own memory when nothing changes. */
function finish(gradient: Tensor | null, x: Tensor, weight: number): Tensor | null {
  if (!gradient) return null;
  if (weight === 1 && x.dtype === 'f32') return gradient.reshape(x.shape);
  const result = empty(x.shape, x.dtype, x.device);
  scaleCast(result.handle, gradient.handle, x.size, weight);
  return result;
}
