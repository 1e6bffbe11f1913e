import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';
import { cast } from './elementwise.js';

type Sizes = [T: number, K: number, D: number];
const forward = op<
  [y: Handle, patches: Handle, weight: Handle, bias: Handle, position: Handle, ...Sizes]
>('patch_embed_packed_forward');
const back = op<[dweight: Handle, dbias: Handle, dy: Handle, patches: Handle, ...Sizes]>(
  'patch_embed_packed_backward',
);

/**
 * Patches that were cut out already, scaled to [−1, 1], projected, plus bias and the position of each (NaFlex,
 * SigLIP 2 §2.4.2).
 * @param patches (T, K) u8, K = P·P·3 in the order row, column, channel
 * @param weight (D, K) f32; its bf16 copy is used for bf16 results
 * @param bias (D) f32
 * @param position (T, D) f32
 * @returns (T, D) of type `dtype`
 * @throws ShapeError
 */
export function patchEmbedPacked(
  patches: Tensor,
  weight: Tensor,
  bias: Tensor,
  position: Tensor,
  options: { dtype?: 'f32' | 'bf16' } = {},
): Tensor {
  const name = 'patchEmbedPacked',
    dtype = options.dtype ?? 'f32';
  checkRank(name, 'patches', patches, 2);
  checkDType(name, 'patches', patches, 'u8');
  const [T, K] = patches.shape as [number, number],
    D = weight.shape[0] ?? 0;
  checkShape(name, 'weight', weight, [D, K]);
  checkShape(name, 'bias', bias, [D]);
  checkShape(name, 'position', position, [T, D]);
  checkDType(name, 'position', position, 'f32');
  const w = dtype === 'bf16' && weight instanceof Param ? weight.compute : weight;
  check(w.dtype === dtype, name, `weight is ${w.dtype} but the result is ${dtype}`);
  const y = empty([T, D], dtype, patches.device);
  forward(y.handle, patches.handle, w.handle, bias.handle, position.handle, T, K, D);
  record({
    inputs: [position],
    outputs: [y],
    saved: [patches],
    params: [weight, bias],
    backward(dy) {
      back(gradHandle(weight), gradHandle(bias), dy!.handle, patches.handle, T, K, D);
      return [needsGrad(position) ? cast(dy!, 'f32') : null];
    },
  });
  return y;
}
