import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { isRecording, lossWeight, needsGrad, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forwardBackward = op<
  [
    loss: Handle,
    dlogits: Handle,
    logits: Handle,
    targets: Handle,
    weights: Handle,
    R: number,
    V: number,
    denominator: number,
    smoothing: number,
  ]
>('softmax_cross_entropy_forward_backward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

export interface CrossEntropyOptions {
  /** (R) f32, a factor for each row; all 1 by default. */
  weights?: Tensor;
  /** What Σ weight·ce is divided by; by default Σ weight over the rows that count, which makes it the mean. */
  denominator?: number;
  /** Share of the target's probability that is spread evenly over all V classes; 0 by default. */
  labelSmoothing?: number;
  /** Lets the gradient take the logits' own memory, which then hold no logits any more. */
  overwriteLogits?: boolean;
}

/**
 * Mean cross-entropy of the softmax over the last axis. Value and gradient are made in one pass; under noGrad(), or
 * when nobody wants the gradient, only the value is. The result must be a root of backward(), with its weight.
 * @param logits (…, V), f32 or bf16
 * @param targets (…) i32: the class of each row; −1 leaves the row out. Another value outside [0, V) rejects the next
 *   read() or synchronize(), naming the row
 * @returns (1) f32; 0 when no row counts
 * @throws ShapeError
 */
export function softmaxCrossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const name = 'softmaxCrossEntropy';
  const { weights = null, denominator = 0, labelSmoothing = 0, overwriteLogits = false } = options;
  check(logits.shape.length > 0, name, 'logits must have at least one axis');
  checkDType(name, 'logits', logits, 'f32', 'bf16');
  checkDType(name, 'targets', targets, 'i32');
  checkShape(name, 'targets', targets, logits.shape.slice(0, -1));
  const V = logits.shape.at(-1)!,
    R = targets.size;
  if (weights) {
    checkRank(name, 'weights', weights, 1);
    checkShape(name, 'weights', weights, [R]);
  }
  check(denominator >= 0, name, `denominator must be positive but is ${denominator}`);
  check(
    labelSmoothing >= 0 && labelSmoothing < 1,
    name,
    `labelSmoothing must be in [0, 1) but is ${labelSmoothing}`,
  );
  const loss = zeros([1], 'f32', logits.device);
  const wanted = isRecording() && needsGrad(logits);
  const dlogits = !wanted
    ? null
    : overwriteLogits
      ? logits.reshape(logits.shape)
      : empty(logits.shape, logits.dtype, logits.device);
  forwardBackward(
    loss.handle,
    dlogits?.handle ?? 0,
    logits.handle,
    targets.handle,
    weights?.handle ?? 0,
    R,
    V,
    denominator,
    labelSmoothing,
  );
  if (!dlogits) return loss;
  record({
    inputs: [logits],
    outputs: [loss],
    saved: [dlogits],
    backward(dloss) {
      check(
        dloss === null,
        name,
        'the loss must be a root of backward() with a weight, not an input of another op',
      );
      const weight = lossWeight(loss);
      if (weight !== 1) scaleCast(dlogits.handle, dlogits.handle, dlogits.size, weight);
      return [dlogits.reshape(dlogits.shape)];
    },
  });
  dlogits.dispose(); // the tape holds it now, and only the tape
  return loss;
}
