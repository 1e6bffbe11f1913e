import { checkDType, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

const addForward = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/**
 * a + b, element by element.
 * @param a any shape, f32 or bf16
 * @param b same shape and type
 * @throws ShapeError
 */
export function add(a: Tensor, b: Tensor): Tensor {
  checkShape('add', 'b', b, a.shape);
  checkDType('add', 'b', b, a.dtype);
  const y = empty(a.shape, a.dtype, a.device);
  addForward(y.handle, a.handle, b.handle, a.size);
  record({ inputs: [a, b], outputs: [y], saved: [], backward: (dy) => [dy!, dy!] });
  return y;
}

/**
 * factor · x, in x's type or another float type.
 * @throws ShapeError
 */
export function scale(
  x: Tensor,
  factor: number,
  dtype: 'f32' | 'bf16' | undefined = undefined,
): Tensor {
  checkDType('scale', 'x', x, 'f32', 'bf16');
  const y = empty(x.shape, dtype ?? x.dtype, x.device);
  scaleCast(y.handle, x.handle, x.size, factor);
  record({
    inputs: [x],
    outputs: [y],
    saved: [],
    backward(dy) {
      const dx = empty(x.shape, x.dtype, x.device);
      scaleCast(dx.handle, dy!.handle, x.size, factor);
      return [dx];
    },
  });
  return y;
}

/** x in another float type, rounded to nearest even; x itself when it has that type. */
export function cast(x: Tensor, dtype: 'f32' | 'bf16'): Tensor {
  return x.dtype === dtype ? x : scale(x, 1, dtype);
}
