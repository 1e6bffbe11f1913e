import { checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, needsGrad, Param, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

type Sizes = [B: number, N: number, D: number];
const forward =
  op<[y: Handle, x: Handle, token: Handle, position: Handle, mask: Handle, ...Sizes]>(
    'mask_tokens_forward',
  );
const back =
  op<[dx: Handle, dtoken: Handle, dposition: Handle, dy: Handle, mask: Handle, ...Sizes]>(
    'mask_tokens_backward',
  );

/**
 * Replaces the masked patches of embedded images by a learned token; their positions stay (SigLIP 2 §2.3).
 * @param x (B, N, D) patch embeddings with their positions added, f32 or bf16
 * @param token (D) f32
 * @param position (N, D) f32, the positions that x contains
 * @param mask (B, N) u8, nonzero where a patch is masked
 * @returns (B, N, D): `token + position[n]` where masked, x elsewhere
 * @throws ShapeError
 */
export function maskTokens(x: Tensor, token: Tensor, position: Tensor, mask: Tensor): Tensor {
  const name = 'maskTokens';
  checkRank(name, 'x', x, 3);
  checkDType(name, 'x', x, 'f32', 'bf16');
  const [B, N, D] = x.shape as [number, number, number];
  checkShape(name, 'token', token, [D]);
  checkShape(name, 'position', position, [N, D]);
  checkShape(name, 'mask', mask, [B, N]);
  checkDType(name, 'mask', mask, 'u8');
  const y = empty(x.shape, x.dtype, x.device);
  forward(y.handle, x.handle, token.handle, position.handle, mask.handle, B, N, D);
  // Positions of another image size are computed ones: their gradient travels on.
  const computed = position instanceof Param ? null : position;
  record({
    inputs: [x, computed],
    outputs: [y],
    saved: [mask],
    params: [token, position],
    backward(dy) {
      const dx = needsGrad(x) ? empty(x.shape, x.dtype, x.device) : null;
      const dposition = needsGrad(computed) ? zeros([N, D], 'f32', x.device) : null;
      back(
        dx?.handle ?? 0,
        gradHandle(token),
        dposition?.handle ?? gradHandle(position),
        dy!.handle,
        mask.handle,
        B,
        N,
        D,
      );
      return [dx, dposition];
    },
  });
  return y;
}
