import { checkColumns } from '../check.js';
import { type Handle, op } from '../native.js';
import { record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

const forward =
  op<[y: Handle, norm: Handle, x: Handle, R: number, C: number, eps: number]>(
    'l2_normalize_forward',
  );
const back =
  op<[dx: Handle, dy: Handle, x: Handle, norm: Handle, R: number, C: number, eps: number]>(
    'l2_normalize_backward',
  );

/**
 * Rows of unit length, x / (‖x‖ + eps).
 * @param x (…, C), f32 or bf16
 * @param eps 1e-8 as in big_vision; Hugging Face divides by the norm alone
 * @returns (…, C) of x's type; a row of zeros stays zero
 * @throws ShapeError
 */
export function l2Normalize(x: Tensor, eps = 1e-8): Tensor {
  const [C, R] = checkColumns('l2Normalize', x);
  const y = empty(x.shape, x.dtype, x.device),
    norm = empty([R], 'f32', x.device);
  forward(y.handle, norm.handle, x.handle, R, C, eps);
  record({
    inputs: [x],
    outputs: [y],
    saved: [norm],
    backward(dy) {
      const dx = empty(x.shape, x.dtype, x.device);
      back(dx.handle, dy!.handle, x.handle, norm.handle, R, C, eps);
      return [dx];
    },
  });
  return y;
}
