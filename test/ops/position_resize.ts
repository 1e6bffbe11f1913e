import { positionResize } from '../../lib/ops/position_resize.js';
import { type OpCase, param } from '../harness.js';

export const kernels = ['position_resize_forward', 'position_resize_backward'];

/** w_ia ∝ max(0, 1 − |a + ½ − (i + ½)s| / max(1, s)), s = in/out, rows that sum to 1; (out, in). */
export function weights(n: number, m: number): Float64Array {
  const s = n / m,
    w = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    let sum = 0;
    for (let a = 0; a < n; a++)
      sum += w[i * n + a] = Math.max(0, 1 - Math.abs(a + 0.5 - (i + 0.5) * s) / Math.max(1, s));
    for (let a = 0; a < n; a++) w[i * n + a]! /= sum;
  }
  return w;
}

function make(G: number, D: number, shapes: [number, number][], large = false): OpCase {
  const T = shapes.reduce((sum, [r, c]) => sum + r * c, 0);
  return {
    name: `${G}×${G}×${D} → ${shapes.length > 4 ? `${shapes.length} images` : shapes.map((s) => s.join('×')).join(', ')}`,
    inputs: { position: param([G * G, D], 1) },
    run: (t) => ({ y: positionResize(t['position']!, Int32Array.from(shapes.flat())) }),
    reference(v) {
      const y = new Float64Array(T * D),
        x = v['position']!;
      let token = 0;
      for (const [rows, columns] of shapes) {
        const down = weights(G, rows),
          across = weights(G, columns);
        for (let i = 0; i < rows; i++)
          for (let j = 0; j < columns; j++, token++)
            for (let a = 0; a < G; a++)
              for (let b = 0; b < G; b++) {
                const w = down[i * G + a]! * across[j * G + b]!;
                if (w !== 0)
                  for (let d = 0; d < D; d++) y[token * D + d]! += w * x[(a * G + b) * D + d]!;
              }
      }
      return { y };
    },
    large,
    bytes: { forward: 4 * D * (G * G + T), backward: 4 * D * (2 * G * G + T) },
    flops: { forward: 8 * T * D, backward: 8 * T * D },
  };
}

export const cases = [
  make(1, 3, [
    [1, 1],
    [2, 3],
  ]),
  make(4, 5, [[4, 4]]),
  make(4, 1, [
    [1, 1],
    [1, 9],
    [9, 1],
    [3, 5],
  ]),
  make(5, 7, [
    [2, 3],
    [11, 4],
    [5, 5],
  ]),
  make(7, 65, [
    [3, 2],
    [8, 13],
  ]),
  make(16, 4, [
    [1, 64],
    [6, 10],
    [27, 36],
    [1, 1],
  ]),
  // Longer than any table of lengths, and more images than work items.
  make(
    16,
    3,
    [
      [1, 1500],
      [700, 2],
    ],
    true,
  ),
  make(
    3,
    2,
    Array.from({ length: 70 }, (_, i) => [1 + (i % 4), 1 + (i % 3)]),
  ),
];
export const bench = (): OpCase[] => [
  make(16, 768, [[16, 16]]),
  make(16, 768, [
    [8, 8],
    [9, 14],
    [21, 27],
    [32, 32],
    [10, 100],
  ]),
  make(
    16,
    768,
    Array.from({ length: 64 }, (_, i) => [12 + (i % 9), 21 - (i % 9)]),
  ),
];
