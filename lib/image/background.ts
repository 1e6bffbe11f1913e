/** Random backgrounds for artwork. */
import type { Random } from '../random.js';

/** What `place` can put behind artwork. */
export type Background = 'plain' | 'gradient' | 'noise' | 'checker';

/** All backgrounds. */
export const BACKGROUNDS: readonly Background[] = ['plain', 'gradient', 'noise', 'checker'];

type Colour = [number, number, number];

function colour(random: Random): Colour {
  return [random.below(256), random.below(256), random.below(256)];
}

/**
 * A random background: two random colours, mixed as the kind says.
 * @param out where it is drawn, (S, S, 3)
 * @returns `out`
 */
export function background(
  kind: Background,
  size: number,
  random: Random,
  out: Uint8Array = new Uint8Array(size * size * 3),
): Uint8Array {
  const a = colour(random);
  const b = colour(random);
  if (kind === 'plain') return filled(out, a);
  // 0 gives the first colour, 1 the second. Filled by plain loops: a function for each pixel costs
  // several times more.
  const weights = new Float32Array(size * size);
  switch (kind) {
    case 'gradient': {
      const angle = random.between(0, 2 * Math.PI);
      const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
      // The corners are where the colours are pure, whatever the direction.
      const reach = (Math.abs(sin) + Math.abs(cos)) * size;
      for (let y = 0, i = 0; y < size; y++) {
        const start = 0.5 + ((y + 0.5 - size / 2) * sin + (0.5 - size / 2) * cos) / reach;
        for (let x = 0; x < size; x++, i++) weights[i] = start + (x * cos) / reach;
      }
      break;
    }
    case 'checker': {
      const cell = random.between(size / 16, size / 3);
      const [oy, ox] = [random.between(0, cell * 2), random.between(0, cell * 2)];
      for (let y = 0, i = 0; y < size; y++) {
        const row = Math.floor((y + oy) / cell);
        for (let x = 0; x < size; x++, i++) weights[i] = (row + Math.floor((x + ox) / cell)) & 1;
      }
      break;
    }
    case 'noise': {
      // Values on a coarse grid, joined bilinearly: blotches of a random size.
      const cells = 2 + random.below(15);
      const grid = new Float32Array((cells + 1) * (cells + 1));
      for (let i = 0; i < grid.length; i++) grid[i] = random.uniform();
      const step = cells / size;
      for (let y = 0, i = 0; y < size; y++) {
        const y0 = Math.floor(y * step);
        const fy = y * step - y0;
        for (let x = 0; x < size; x++, i++) {
          const x0 = Math.floor(x * step);
          const fx = x * step - x0;
          const at = y0 * (cells + 1) + x0;
          const above = (grid[at] as number) * (1 - fx) + (grid[at + 1] as number) * fx;
          const below =
            (grid[at + cells + 1] as number) * (1 - fx) + (grid[at + cells + 2] as number) * fx;
          weights[i] = above * (1 - fy) + below * fy;
        }
      }
      break;
    }
  }
  return mixed(weights, a, b, out);
}

/** One colour everywhere: a pixel, doubled until the image is full. */
function filled(out: Uint8Array, colour: Colour): Uint8Array {
  out.set(colour);
  for (let n = 3; n < out.length; n *= 2) out.copyWithin(n, 0, Math.min(n, out.length - n));
  return out;
}

/** Mixes two colours by weights. */
function mixed(weights: Float32Array, a: Colour, b: Colour, out: Uint8Array): Uint8Array {
  const [a0, a1, a2] = a;
  const [d0, d1, d2] = [b[0] - a0, b[1] - a1, b[2] - a2];
  for (let i = 0, j = 0; i < weights.length; i++, j += 3) {
    const w = weights[i] as number;
    out[j] = a0 + d0 * w + 0.5;
    out[j + 1] = a1 + d1 * w + 0.5;
    out[j + 2] = a2 + d2 * w + 0.5;
  }
  return out;
}
