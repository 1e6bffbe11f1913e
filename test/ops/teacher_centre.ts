import { scale } from '../../lib/ops/elementwise.js';
import { teacherMean, teacherStatistics, updateCentre } from '../../lib/ops/teacher_centre.js';
import { input, type OpCase } from '../harness.js';

export const kernels = ['teacher_mean', 'centre_update', 'teacher_statistics'];

const { exp, log } = Math; // a global is slow to look up inside jest
const MOMENTUM = 0.9,
  TEMPERATURE = 0.3;

function make(R: number, K: number, size = 1): OpCase {
  return {
    name: `${R}×${K}${size === 1 ? '' : `, logits ${size}`}`,
    inputs: { teacher: input([R, K], 1, size), centre: input([K], 2, 0.3, 'data') },
    run(t) {
      const centre = scale(t['centre']!, 1),
        mean = teacherMean(t['teacher']!);
      const statistics = teacherStatistics(t['teacher']!, t['centre']!, TEMPERATURE);
      updateCentre(centre, mean, MOMENTUM);
      return { mean, centre, statistics };
    },
    reference(v) {
      const t = v['teacher']!,
        c = v['centre']!;
      const mean = new Float64Array(K),
        p = new Float64Array(K);
      let entropy = 0;
      for (let r = 0; r < R; r++) {
        const l = Float64Array.from(c, (ck, k) => (t[r * K + k]! - ck) / TEMPERATURE);
        const most = l.reduce((a, b) => (a > b ? a : b), -Infinity);
        const lse = most + log(l.reduce((sum, x) => sum + exp(x - most), 0));
        l.forEach((x, k) => {
          const q = exp(x - lse);
          entropy -= (q * (x - lse)) / R;
          p[k] = p[k]! + q / R;
          mean[k] = mean[k]! + t[r * K + k]! / R;
        });
      }
      const ofMean = p.reduce((sum, q) => (q > 0 ? sum - q * log(q) : sum), 0);
      return {
        mean,
        centre: c.map((ck, k) => MOMENTUM * ck + (1 - MOMENTUM) * mean[k]!),
        statistics: Float64Array.of(
          entropy,
          ofMean,
          p.reduce((a, b) => (a > b ? a : b), 0),
        ),
      };
    },
    gradients: false,
    dtypes: ['f32', 'bf16'],
    bytes: { forward: 12 * R * K, backward: 0 },
    flops: { forward: 30 * R * K, backward: 0 },
  };
}

export const cases = [
  make(1, 1),
  make(1, 5),
  make(3, 33),
  make(70, 9),
  make(5, 1030),
  make(4, 300, 20),
];
export const bench = () => [make(128, 65536), make(2048, 8192)];
