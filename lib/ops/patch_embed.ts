import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forward =
  op<
    [
      y: Handle,
      images: Handle,
      weight: Handle,
      bias: Handle,
      position: Handle,
      B: number,
      H: number,
      W: number,
      P: number,
      D: number,
      flat: boolean,
    ]
  >('patch_embed_forward');
const back =
  op<
    [
      dweight: Handle,
      dbias: Handle,
      dposition: Handle,
      dy: Handle,
      images: Handle,
      B: number,
      H: number,
      W: number,
      P: number,
      D: number,
      flat: boolean,
    ]
  >('patch_embed_backward');

/**
 * Patches of images with values in [0, 255], scaled to [−1, 1], projected, plus bias and learned position (SigLIP 2 §2.1). Pixels right
 * of and below the last whole patch are left out, as a VALID convolution does.
 * @param images (B, H, W, 3) u8; on the CPU also f32
 * @param weight (D, 3, P, P), or (D, P·P·3) as in NaFlex checkpoints; its bf16 copy is used for bf16 results
 * @param bias (D)
 * @param position (N, D), N = floor(H/P)·floor(W/P), row-major: a parameter, or computed and then differentiable
 * @returns (B, N, D) of type `dtype`
 * @throws ShapeError
 */
export function patchEmbed(
  images: Tensor,
  weight: Tensor,
  bias: Tensor,
  position: Tensor,
  options: { patch: number; dtype?: 'f32' | 'bf16' },
): Tensor {
  checkRank('patchEmbed', 'images', images, 4);
  checkDType(
    'patchEmbed',
    'images',
    images,
    ...(images.device === 'cpu' ? (['u8', 'f32'] as const) : (['u8'] as const)),
  );
  const [B, H, W] = images.shape as [number, number, number],
    P = options.patch,
    D = weight.shape[0] ?? 0;
  const flat = weight.shape.length === 2,
    dtype = options.dtype ?? 'f32';
  checkShape('patchEmbed', 'images', images, [B, H, W, 3]);
  check(H >= P && W >= P, 'patchEmbed', `images of ${H}×${W} are smaller than one patch of ${P}`);
  const N = Math.floor(H / P) * Math.floor(W / P);
  checkShape('patchEmbed', 'weight', weight, flat ? [D, P * P * 3] : [D, 3, P, P]);
  checkShape('patchEmbed', 'bias', bias, [D]);
  checkShape('patchEmbed', 'position', position, [N, D]);
  const w = dtype === 'bf16' && weight instanceof Param ? weight.compute : weight;
  check(w.dtype === dtype, 'patchEmbed', `weight is ${w.dtype} but the result is ${dtype}`);
  const y = empty([B, N, D], dtype, images.device);
  forward(y.handle, images.handle, w.handle, bias.handle, position.handle, B, H, W, P, D, flat);
  // Positions of another image size are computed ones: their gradient travels on.
  const computed = position instanceof Param ? null : position;
  record({
    inputs: [computed],
    outputs: [y],
    saved: [images],
    params: [weight, bias, position],
    backward(dy) {
      const dposition = needsGrad(computed) ? zeros([N, D], 'f32', images.device) : null;
      back(
        gradHandle(weight),
        gradHandle(bias),
        dposition?.handle ?? gradHandle(position),
        dy!.handle,
        images.handle,
        B,
        H,
        W,
        P,
        D,
        flat,
      );
      return [dposition];
    },
  });
  return y;
}
