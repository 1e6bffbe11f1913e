import { check, checkDType, checkRank } from '../check.js';
import { type Handle, op } from '../native.js';
import { record } from '../tape.js';
import { empty, type Tensor } from '../tensor.js';

type Sizes = [B: number, H: number, W: number, C: number, OH: number, OW: number];
const forward = op<[y: Handle, x: Handle, ...Sizes]>('resize_bilinear_forward');
const back = op<[dx: Handle, dy: Handle, ...Sizes]>('resize_bilinear_backward');

/**
 * Antialiased bilinear resizing, half-pixel centres. uint8 is bit-identical to PIL's BILINEAR; f32 (position
 * embeddings, NaFlex §2.4.2) is differentiable.
 * @param x (B, H, W, C), u8 or f32
 * @param size [height, width] of the result
 * @returns (B, height, width, C) of x's type
 * @throws ShapeError
 */
export function resizeBilinear(x: Tensor, size: readonly [height: number, width: number]): Tensor {
  checkRank('resizeBilinear', 'x', x, 4);
  checkDType('resizeBilinear', 'x', x, 'u8', 'f32');
  check(
    size.length === 2 && size.every((n) => Number.isInteger(n) && n > 0),
    'resizeBilinear',
    `the size must be two positive integers but is ${size.join('×')}`,
  );
  const [B, H, W, C] = x.shape as [number, number, number, number];
  check(H > 0 && W > 0, 'resizeBilinear', `x must have pixels but is [${x.shape.join(', ')}]`);
  const sizes: Sizes = [B, H, W, C, ...size];
  const y = empty([B, ...size, C], x.dtype, x.device);
  forward(y.handle, x.handle, ...sizes);
  if (x.dtype === 'u8') return y;
  record({
    inputs: [x],
    outputs: [y],
    saved: [],
    backward(dy) {
      const dx = empty(x.shape, 'f32', x.device);
      back(dx.handle, dy!.handle, ...sizes);
      return [dx];
    },
  });
  return y;
}
