import { check, checkRank } from '../check.js';
import { type Handle, op } from '../native.js';
import { record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

const forward =
  op<[y: Handle, x: Handle, B: number, T: number, C: number, index: number]>(
    'select_token_forward',
  );
const back =
  op<[dx: Handle, dy: Handle, B: number, T: number, C: number, index: number]>(
    'select_token_backward',
  );

/**
 * One token of every sequence, the last one say for last-token pooling.
 * @param x (B, T, C), f32 or bf16
 * @param index which token; negative counts from the end
 * @returns (B, 1, C)
 * @throws ShapeError
 */
export function selectToken(x: Tensor, index: number): Tensor {
  checkRank('selectToken', 'x', x, 3);
  const [B, T, C] = x.shape as [number, number, number];
  const at = index < 0 ? T + index : index;
  check(
    Number.isInteger(at) && at >= 0 && at < T,
    'selectToken',
    `index ${index} is outside the ${T} tokens`,
  );
  const y = empty([B, 1, C], x.dtype, x.device);
  forward(y.handle, x.handle, B, T, C, at);
  record({
    inputs: [x],
    outputs: [y],
    saved: [],
    backward(dy) {
      const dx = empty(x.shape, x.dtype, x.device);
      back(dx.handle, dy!.handle, B, T, C, at);
      return [dx];
    },
  });
  return y;
}
