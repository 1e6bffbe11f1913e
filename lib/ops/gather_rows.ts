import { checkDType, checkRank } from '../check.js';
import { type Handle, op } from '../native.js';
import { record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

type Sizes = [M: number, R: number, D: number];
const forward = op<[y: Handle, x: Handle, index: Handle, ...Sizes]>('gather_rows_forward');
const back = op<[dx: Handle, dy: Handle, index: Handle, ...Sizes]>('gather_rows_backward');

/**
 * Chosen rows of a matrix: `y[m] = x[index[m]]`.
 * @param x (R, D), f32 or bf16
 * @param index (M) i32, ascending without repeats in [0, R). On the CPU another index rejects the next read() or
 *   synchronize(), naming it; on CUDA a row from outside is NaN
 * @returns (M, D) of x's type
 * @throws ShapeError
 */
export function gatherRows(x: Tensor, index: Tensor): Tensor {
  checkRank('gatherRows', 'x', x, 2);
  checkDType('gatherRows', 'x', x, 'f32', 'bf16');
  checkRank('gatherRows', 'index', index, 1);
  checkDType('gatherRows', 'index', index, 'i32');
  const [R, D] = x.shape as [number, number],
    M = index.size;
  const y = empty([M, D], x.dtype, x.device);
  forward(y.handle, x.handle, index.handle, M, R, D);
  record({
    inputs: [x],
    outputs: [y],
    saved: [index],
    backward(dy) {
      const dx = empty([R, D], x.dtype, x.device);
      back(dx.handle, dy!.handle, index.handle, M, R, D);
      return [dx];
    },
  });
  return y;
}
