import { check, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, needsGrad, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';
import { linearBackward, linearForward } from './linear.js';

const normalize =
  op<[y: Handle, norm: Handle, x: Handle, R: number, C: number, eps: number]>(
    'l2_normalize_forward',
  );
const normalizeBack =
  op<[dx: Handle, dy: Handle, x: Handle, norm: Handle, R: number, C: number, eps: number]>(
    'l2_normalize_backward',
  );
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');
const add = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');

/** Far below every norm, so that it only keeps a row of zeros from dividing by zero. */
const EPS = 1e-12;

/**
 * Linear layer whose weight rows are used at unit length, without bias: `y = x · (w_n / ‖w_n‖)ᵀ`. This is weight
 * normalisation (arXiv 1602.07868) with its gain fixed at 1, the last layer of DINO's head: with unit rows of x the
 * results are cosines with the prototypes.
 *
 * The gradient of the unit rows is kept in f32 until it has gone through the normalisation, whatever the type of x.
 * @param x (…, K), f32 or bf16
 * @param weight (N, K) f32
 * @returns (…, N) of x's type
 * @throws ShapeError
 */
export function weightNormLinear(x: Tensor, weight: Tensor): Tensor {
  const K = x.shape.at(-1) ?? 0,
    M = x.size / K,
    N = weight.shape[0] ?? 0,
    device = x.device;
  checkShape('weightNormLinear', 'weight', weight, [N, K]);
  check(weight.dtype === 'f32', 'weightNormLinear', `weight must be f32 but is ${weight.dtype}`);
  const norm = empty([N], 'f32', device),
    wide = empty([N, K], 'f32', device);
  normalize(wide.handle, norm.handle, weight.handle, N, K, EPS);
  const unit = x.dtype === 'f32' ? wide : empty([N, K], x.dtype, device);
  if (unit !== wide) {
    scaleCast(unit.handle, wide.handle, wide.size, 1);
    wide.dispose();
  }
  const y = empty([...x.shape.slice(0, -1), N], x.dtype, device);
  linearForward(y.handle, 0, x.handle, unit.handle, 0, M, N, K, false);
  record({
    inputs: [x],
    outputs: [y],
    saved: [unit, norm],
    params: [weight],
    backward(dy) {
      const dx = needsGrad(x) ? empty(x.shape, x.dtype, device) : null;
      const accumulator = gradHandle(weight);
      const dunit = accumulator ? zeros([N, K], 'f32', device) : null;
      linearBackward(
        dx?.handle ?? 0,
        dunit?.handle ?? 0,
        0,
        dy!.handle,
        0,
        x.handle,
        0,
        unit.handle,
        M,
        N,
        K,
        false,
      );
      if (dunit) {
        const dweight = empty([N, K], 'f32', device);
        normalizeBack(dweight.handle, dunit.handle, weight.handle, norm.handle, N, K, EPS);
        add(accumulator, accumulator, dweight.handle, dweight.size);
      }
      return [dx];
    },
  });
  return y;
}
