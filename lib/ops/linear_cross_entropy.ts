import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradOf, isRecording, lossWeight, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forwardBackward = op<
  [
    loss: Handle,
    dh: Handle,
    dweight: Handle,
    dbias: Handle,
    h: Handle,
    weight: Handle,
    bias: Handle,
    targets: Handle,
    weights: Handle,
    R: number,
    V: number,
    D: number,
    groups: number,
    denominator: number,
    gradScale: number,
  ]
>('linear_cross_entropy_forward_backward');

export interface LinearCrossEntropyOptions {
  /** (R) f32, a factor for each row; all 1 by default. */
  weights?: Tensor;
  /** What Σ weight·ce is divided by; by default Σ weight over the rows that count, which makes it the mean. */
  denominator?: number;
  /** The rows fall, in their order, into so many equal groups with a loss each; 1 by default. */
  groups?: number;
  /** The weight that the loss will have as a root of backward(); 1 by default. */
  gradScale?: number;
}

/**
 * Cross-entropy of the vocabulary projection `h·Wᵀ + b` with integer targets. The logits, (R, V), are never whole in
 * memory, and rows that don't count cost nothing.
 *
 * Value and gradients are made in one pass, here: **those of `weight` and `bias` are added now, not in backward()**, so
 * gradients must be zeroed before the forward pass and the loss's weight in backward() is said beforehand. Under
 * noGrad(), or when nobody wants a gradient, only the value is made. The result must be a root of backward().
 * @param h (R, D), f32 or bf16
 * @param weight (V, D) f32; its bf16 copy is used for bf16 rows
 * @param bias (V) f32, or null
 * @param targets (R) i32: the token of each row; −1 leaves the row out. Another value outside [0, V) rejects the next
 *   read() or synchronize(), naming the row; on a GPU it makes the loss NaN
 * @returns (groups) f32
 * @throws ShapeError
 */
export function linearCrossEntropy(
  h: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  targets: Tensor,
  options: LinearCrossEntropyOptions = {},
): Tensor {
  const name = 'linearCrossEntropy';
  const { weights = null, denominator = 0, groups = 1, gradScale = 1 } = options;
  checkRank(name, 'h', h, 2);
  checkDType(name, 'h', h, 'f32', 'bf16');
  const [R, D] = h.shape as [number, number],
    V = weight.shape[0] ?? 0;
  checkShape(name, 'weight', weight, [V, D]);
  if (bias) checkShape(name, 'bias', bias, [V]);
  checkShape(name, 'targets', targets, [R]);
  checkDType(name, 'targets', targets, 'i32');
  if (weights) {
    checkShape(name, 'weights', weights, [R]);
    checkDType(name, 'weights', weights, 'f32');
  }
  check(denominator >= 0, name, `denominator must be positive but is ${denominator}`);
  check(
    Number.isInteger(groups) && groups > 0 && R % groups === 0,
    name,
    `${R} rows cannot be split into ${groups} equal groups`,
  );
  const w = h.dtype === 'bf16' && weight instanceof Param ? weight.compute : weight;
  check(w.dtype === h.dtype, name, `weight is ${w.dtype} but h is ${h.dtype}`);

  const loss = zeros([groups], 'f32', h.device);
  const dh = isRecording() && needsGrad(h) ? empty(h.shape, h.dtype, h.device) : null;
  const grad = (p: Tensor | null): Handle => (p && isRecording() ? (gradOf(p)?.handle ?? 0) : 0);
  forwardBackward(
    loss.handle,
    dh?.handle ?? 0,
    grad(weight),
    grad(bias),
    h.handle,
    w.handle,
    bias?.handle ?? 0,
    targets.handle,
    weights?.handle ?? 0,
    R,
    V,
    D,
    groups,
    denominator,
    gradScale,
  );
  record({
    inputs: [h],
    outputs: [loss],
    saved: dh ? [dh] : [],
    params: [weight, bias],
    backward(dloss) {
      check(
        dloss === null && lossWeight(loss) === gradScale,
        name,
        'the loss must be a root of backward() with the weight ' +
          `given as gradScale, ${gradScale}, but has ${dloss ? 'a gradient' : `the weight ${lossWeight(loss)}`}`,
      );
      return [dh?.reshape(dh.shape) ?? null];
    },
  });
  dh?.dispose(); // the tape holds it now, and only the tape
  return loss;
}
