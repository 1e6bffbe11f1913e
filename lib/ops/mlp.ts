import { check, checkColumns, checkShape } from '../check.js';
import { op, type Handle } from '../native.js';
import { gradHandle, isRecording, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';
import { linear } from './linear.js';

const forward = op<[y: Handle, pre: Handle, x: Handle, weight: Handle, bias: Handle, M: number, N: number,
  K: number]>('linear_forward');
const back = op<[dx: Handle, dweight: Handle, dbias: Handle, dy: Handle, pre: Handle, x: Handle, xPre: Handle,
  weight: Handle, M: number, N: number, K: number]>('linear_backward');

/**
 * A transformer's MLP, `GELU(x·W1ᵀ + b1)·W2ᵀ + b2` (tanh form). As two calls of `linear`, but in backward the second
 * product comes out as the gradient of GELU's input, so that one tensor of the hidden width is made where two would be.
 * @param x (…, D), f32 or bf16
 * @param fc1 weight (H, D) f32 and bias (H) f32 or null; bf16 activations use their bf16 copies
 * @param fc2 weight (E, H) and bias (E) or null, likewise
 * @returns (…, E) of x's type
 * @throws ShapeError
 */
export function mlp(x: Tensor, fc1: { weight: Tensor; bias: Tensor | null }, fc2: { weight: Tensor; bias: Tensor | null }): Tensor {
  if (!isRecording()) return linear(linear(x, fc1.weight, fc1.bias, { gelu: true }), fc2.weight, fc2.bias);
  const [D, M] = checkColumns('mlp', x), H = fc1.weight.shape[0] ?? 0, E = fc2.weight.shape[0] ?? 0;
  const operand = (name: string, { weight, bias }: typeof fc1, shape: [number, number]): Tensor => {
    checkShape('mlp', `${name}.weight`, weight, shape);
    if (bias) checkShape('mlp', `${name}.bias`, bias, [shape[0]]);
    const w = x.dtype === 'bf16' && weight instanceof Param ? weight.compute : weight;
    check(w.dtype === x.dtype, 'mlp', `${name}.weight is ${w.dtype} but x is ${x.dtype}`);
    return w;
  };
  const w1 = operand('fc1', fc1, [H, D]), w2 = operand('fc2', fc2, [E, H]);
  const leading = x.shape.slice(0, -1), hiddenShape = [...leading, H];
  const pre = empty(hiddenShape, x.dtype, x.device), hidden = empty(hiddenShape, x.dtype, x.device);
  const y = empty([...leading, E], x.dtype, x.device);
  forward(hidden.handle, pre.handle, x.handle, w1.handle, fc1.bias?.handle ?? 0, M, H, D);
  forward(y.handle, 0, hidden.handle, w2.handle, fc2.bias?.handle ?? 0, M, E, H);
  record({
    inputs: [x], outputs: [y], saved: [pre, hidden], params: [fc1.weight, fc1.bias, fc2.weight, fc2.bias],
    backward(dy) {
      const dbias = (b: Tensor | null): Handle => b ? gradHandle(b) : 0;
      const dpre = empty(hiddenShape, x.dtype, x.device);
      back(dpre.handle, gradHandle(fc2.weight), dbias(fc2.bias), dy!.handle, 0, hidden.handle, pre.handle, w2.handle, M, E, H);
      const dx = needsGrad(x) ? empty(x.shape, x.dtype, x.device) : null;
      back(dx?.handle ?? 0, gradHandle(fc1.weight), dbias(fc1.bias), dpre.handle, 0, x.handle, 0, w1.handle, M, H, D);
      dpre.dispose();
      return [dx];
    },
  });
  return y;
}
