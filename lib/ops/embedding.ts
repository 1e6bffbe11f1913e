import { checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

const forward =
  op<
    [
      y: Handle,
      ids: Handle,
      table: Handle,
      position: Handle,
      R: number,
      V: number,
      L: number,
      D: number,
    ]
  >('embedding_forward');
const back =
  op<
    [
      dtable: Handle,
      dposition: Handle,
      dy: Handle,
      ids: Handle,
      R: number,
      V: number,
      L: number,
      D: number,
    ]
  >('embedding_backward');

/**
 * Token embeddings plus learned positions: `table[ids[b, l]] + position[l]`.
 * @param ids (B, L) i32; an id outside the table rejects the next read() or synchronize(), naming it
 * @param table (V, D) f32; on the CPU also bf16, for models that are not trained
 * @param position (L, D) f32
 * @param dtype type of the result
 * @returns (B·L, D)
 * @throws ShapeError
 */
export function embedding(
  ids: Tensor,
  table: Tensor,
  position: Tensor,
  dtype: 'f32' | 'bf16' = 'f32',
): Tensor {
  checkRank('embedding', 'ids', ids, 2);
  checkDType('embedding', 'ids', ids, 'i32');
  checkRank('embedding', 'table', table, 2);
  const R = ids.size,
    L = ids.shape[1]!,
    [V, D] = table.shape as [number, number];
  checkShape('embedding', 'position', position, [L, D]);
  const y = empty([R, D], dtype, ids.device);
  forward(y.handle, ids.handle, table.handle, position.handle, R, V, L, D);
  record({
    inputs: [],
    outputs: [y],
    saved: [ids],
    params: [table, position],
    backward(dy) {
      back(gradHandle(table), gradHandle(position), dy!.handle, ids.handle, R, V, L, D);
      return [];
    },
  });
  return y;
}
