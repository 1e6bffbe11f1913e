import { checkColumns } from '../check.js';
import type { Handle } from '../native.js';
import { gradHandle, isRecording, needsGrad, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';
import {
  type Gelu,
  type LinearLayer,
  linear,
  linearBackward,
  linearForward,
  weightFor,
} from './linear.js';

/**
 * A transformer's MLP, `GELU(x·W1ᵀ + b1)·W2ᵀ + b2`. As two calls of `linear`, but in backward the second
 * product comes out as the gradient of GELU's input, so that one tensor of the hidden width is made where two would be.
 * @param x (…, D), f32 or bf16
 * @param fc1 weight (H, D) f32 and bias (H) f32 or null; bf16 activations use their bf16 copies
 * @param fc2 weight (E, H) and bias (E) or null, likewise
 * @param gelu form of GELU
 * @returns (…, E) of x's type
 * @throws ShapeError
 */
export function mlp(x: Tensor, fc1: LinearLayer, fc2: LinearLayer, gelu: Gelu = 'tanh'): Tensor {
  if (!isRecording())
    return linear(linear(x, fc1.weight, fc1.bias, { gelu }), fc2.weight, fc2.bias);
  const exact = gelu === 'exact';
  const [D, M] = checkColumns('mlp', x),
    H = fc1.weight.shape[0] ?? 0,
    E = fc2.weight.shape[0] ?? 0;
  const w1 = weightFor('mlp', 'fc1.', x, fc1, H, D),
    w2 = weightFor('mlp', 'fc2.', x, fc2, E, H);
  const leading = x.shape.slice(0, -1),
    hiddenShape = [...leading, H];
  const pre = empty(hiddenShape, x.dtype, x.device),
    hidden = empty(hiddenShape, x.dtype, x.device);
  const y = empty([...leading, E], x.dtype, x.device);
  linearForward(
    hidden.handle,
    pre.handle,
    x.handle,
    w1.handle,
    fc1.bias?.handle ?? 0,
    M,
    H,
    D,
    exact,
  );
  linearForward(y.handle, 0, hidden.handle, w2.handle, fc2.bias?.handle ?? 0, M, E, H, exact);
  record({
    inputs: [x],
    outputs: [y],
    saved: [pre, hidden],
    params: [fc1.weight, fc1.bias, fc2.weight, fc2.bias],
    backward(dy) {
      const dbias = (b: Tensor | null): Handle => (b ? gradHandle(b) : 0);
      const dpre = empty(hiddenShape, x.dtype, x.device);
      linearBackward(
        dpre.handle,
        gradHandle(fc2.weight),
        dbias(fc2.bias),
        dy!.handle,
        0,
        hidden.handle,
        pre.handle,
        w2.handle,
        M,
        E,
        H,
        exact,
      );
      const dx = needsGrad(x) ? empty(x.shape, x.dtype, x.device) : null;
      linearBackward(
        dx?.handle ?? 0,
        gradHandle(fc1.weight),
        dbias(fc1.bias),
        dpre.handle,
        0,
        x.handle,
        0,
        w1.handle,
        M,
        H,
        D,
        exact,
      );
      dpre.dispose();
      return [dx];
    },
  });
  return y;
}
