import { check, checkColumns, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, isRecording, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

/** The kernels of fully connected layers, for ops that are made of them (native/ops/linear.h). */
export const linearForward =
  op<
    [
      y: Handle,
      pre: Handle,
      x: Handle,
      weight: Handle,
      bias: Handle,
      M: number,
      N: number,
      K: number,
      exactGelu: boolean,
    ]
  >('linear_forward');
export const linearBackward =
  op<
    [
      dx: Handle,
      dweight: Handle,
      dbias: Handle,
      dy: Handle,
      pre: Handle,
      x: Handle,
      xPre: Handle,
      weight: Handle,
      M: number,
      N: number,
      K: number,
      exactGelu: boolean,
    ]
  >('linear_backward');

/** Form of GELU: x·Φ(x) itself, or its approximation by tanh, which SigLIP 2 was trained with. */
export type Gelu = 'tanh' | 'exact';

/** A fully connected layer's parameters: weight (N, K) f32, bias (N) f32 or null. */
export interface LinearLayer {
  weight: Tensor;
  bias: Tensor | null;
}

/**
 * The weight in x's type, after a check of the layer's shapes: of bf16 activations the bf16 copy.
 * @param name of the layer in errors, with a dot behind it, or empty
 * @throws ShapeError
 */
export function weightFor(
  op: string,
  name: string,
  x: Tensor,
  { weight, bias }: LinearLayer,
  N: number,
  K: number,
): Tensor {
  checkShape(op, `${name}weight`, weight, [N, K]);
  if (bias) checkShape(op, `${name}bias`, bias, [N]);
  const w = x.dtype === 'bf16' && weight instanceof Param ? weight.compute : weight;
  check(w.dtype === x.dtype, op, `${name}weight is ${w.dtype} but x is ${x.dtype}`);
  return w;
}

/**
 * Fully connected layer `y = x·Wᵀ + b`, optionally through GELU.
 * @param x (…, K), f32 or bf16
 * @param weight (N, K) f32; its bf16 copy is used for bf16 activations
 * @param bias (N) f32, or null
 * @param options.gelu the form of GELU to apply (true: tanh); its input is kept for backward
 * @returns (…, N) of x's type
 * @throws ShapeError
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  options: { gelu?: boolean | Gelu } = {},
): Tensor {
  const [K, M] = checkColumns('linear', x),
    N = weight.shape[0] ?? 0;
  const w = weightFor('linear', '', x, { weight, bias }, N, K);
  const shape = [...x.shape.slice(0, -1), N];
  const y = empty(shape, x.dtype, x.device);
  // Without a backward the CPU needs no second tensor of the widest size that there is.
  const inPlace = x.device.endsWith('cpu') && !isRecording();
  const exact = options.gelu === 'exact';
  const pre = !options.gelu ? null : inPlace ? y : empty(shape, x.dtype, x.device);
  linearForward(y.handle, pre?.handle ?? 0, x.handle, w.handle, bias?.handle ?? 0, M, N, K, exact);
  record({
    inputs: [x],
    outputs: [y],
    saved: pre ? [pre] : [],
    params: [weight, bias],
    backward(dy) {
      const dx = needsGrad(x) ? empty(x.shape, x.dtype, x.device) : null;
      linearBackward(
        dx?.handle ?? 0,
        gradHandle(weight),
        bias ? gradHandle(bias) : 0,
        dy!.handle,
        pre?.handle ?? 0,
        x.handle,
        0,
        w.handle,
        M,
        N,
        K,
        exact,
      );
      return [dx];
    },
  });
  return y;
}
