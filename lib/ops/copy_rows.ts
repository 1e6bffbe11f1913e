import { check, checkDType, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { isRecording, needsGrad } from '../tape.js';
import { sizeOf, type Tensor } from '../tensor.js';

const forward =
  op<[y: Handle, x: Handle, to: Handle, from: Handle, n: number, Y: number, X: number, C: number]>(
    'copy_rows_forward',
  );

/**
 * Writes rows of x into y: `y[to[i]] = x[from[i]]`. For inference: it has no gradient.
 * @param y (Y, …) f32 or bf16, changed in place
 * @param x (X, …) of the same row shape and type
 * @param to (n) i32, no two equal; an index outside y rejects the next read() or synchronize() (on a GPU: is ignored)
 * @param from (n) i32
 * @throws ShapeError
 */
export function copyRows(y: Tensor, x: Tensor, to: Tensor, from: Tensor): void {
  checkDType('copyRows', 'y', y, 'f32', 'bf16');
  checkDType('copyRows', 'x', x, y.dtype);
  checkShape('copyRows', 'x', x, [x.shape[0] ?? 0, ...y.shape.slice(1)]);
  checkShape('copyRows', 'to', to, [to.size]);
  checkShape('copyRows', 'from', from, [to.size]);
  checkDType('copyRows', 'to', to, 'i32');
  checkDType('copyRows', 'from', from, 'i32');
  check(!isRecording() || !needsGrad(x), 'copyRows', 'has no gradient; call it under noGrad()');
  forward(
    y.handle,
    x.handle,
    to.handle,
    from.handle,
    to.size,
    y.shape[0]!,
    x.shape[0]!,
    sizeOf(y.shape.slice(1)),
  );
}
