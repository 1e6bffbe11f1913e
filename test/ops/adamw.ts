import { adamwStep, sumOfSquares } from '../../lib/ops/adamw.js';
import { empty, tensor } from '../../lib/tensor.js';
import { input, normal, type OpCase } from '../harness.js';

export const kernels = ['sum_of_squares', 'adamw_step'];

/** Steps of one arena with three segments: decayed, not decayed, and with ten times the learning rate. */
function make(N: number, steps: number, clip: number, extras: boolean): OpCase {
  const lr = 0.01,
    beta1 = 0.9,
    beta2 = 0.95,
    eps = 1e-8,
    decay = 1e-3,
    emaDecay = 0.9;
  const ends = [Math.floor(N / 3), Math.floor(N / 2), N],
    scales = [1, 1, 10],
    decays = [1, 0, 1];
  return {
    name: `${N} elements, ${steps} steps, clip ${clip}${extras ? ', EMA and bf16 copy' : ''}`,
    inputs: { param: input([N], 1, 1, 'data'), grad: input([N], 2, 1, 'data') },
    run(t) {
      const { param, grad } = t as { param: never; grad: never };
      const device = t['param']!.device;
      const m = empty([N], 'f32', device).zero(),
        v = empty([N], 'f32', device).zero();
      const ema = extras ? tensor(normal(N, 3), [N], device) : null;
      const copy = extras ? empty([N], 'bf16', device) : null;
      const norm2 = empty([1], 'f32', device);
      const segments = tensor(
        Int32Array.from(ends.flatMap((e, i) => [e, decays[i]!])),
        [3, 2],
        device,
      );
      const lrScale = tensor(Float32Array.from(scales), [3], device);
      for (let step = 1; step <= steps; step++) {
        sumOfSquares(norm2, grad);
        adamwStep({
          param,
          m,
          v,
          ema,
          copy,
          grad,
          norm2,
          segments,
          lrScale,
          step,
          lr,
          beta1,
          beta2,
          eps,
          decay,
          clip,
          emaDecay,
        });
      }
      return { theta: t['param']!, m, v, norm2, ...(ema ? { ema, copy: copy! } : {}) };
    },
    reference(x) {
      const theta = x['param']!.slice(),
        g0 = x['grad']!;
      const m = new Float64Array(N),
        v = new Float64Array(N),
        ema = Float64Array.from(normal(N, 3));
      const norm2 = g0.reduce((s, g) => s + g * g, 0),
        factor = Math.min(1, clip / Math.sqrt(norm2));
      for (let step = 1; step <= steps; step++)
        for (let i = 0; i < N; i++) {
          const s = i < ends[0]! ? 0 : i < ends[1]! ? 1 : 2,
            g = g0[i]! * factor;
          m[i] = beta1 * m[i]! + (1 - beta1) * g;
          v[i] = beta2 * v[i]! + (1 - beta2) * g * g;
          const update =
            (lr * scales[s]! * (m[i]! / (1 - beta1 ** step))) /
            (Math.sqrt(v[i]! / (1 - beta2 ** step)) + eps);
          theta[i] = theta[i]! - update - decays[s]! * decay * theta[i]!;
          ema[i] = ema[i]! + (1 - emaDecay) * (theta[i]! - ema[i]!);
        }
      return {
        theta,
        m,
        v,
        norm2: Float64Array.of(norm2),
        ...(extras ? { ema, copy: theta } : {}),
      };
    },
    // The bf16 copy carries 2^-9 of rounding.
    nmse: extras ? 1e-5 : 1e-10,
    gradients: false,
    bytes: { forward: steps * N * 4 * (1 + 7), backward: 0 },
    flops: { forward: steps * N * 16, backward: 0 },
  };
}

export const cases = [
  make(3, 1, 1, false),
  make(70, 20, 0.5, false),
  make(70, 20, 1e6, true),
  make(70001, 3, 1, false),
  make(9000, 5, 1, true),
];
export const bench = () => [make(1 << 24, 1, 1, false)];
