import { type Handle, op } from '../native.js';
import type { Tensor } from '../tensor.js';

/** How a tensor starts. Fans are those of the mathematical map, not of the stored layout. */
export type Init =
  /**
   * Normal with variance 1/fanIn, truncated at two standard deviations and rescaled to that
   * variance.
   */
  | { kind: 'lecunNormal'; fanIn: number }
  | { kind: 'normal'; std: number }
  /** Uniform in +-sqrt(6 / (fanIn + fanOut)). */
  | { kind: 'xavierUniform'; fanIn: number; fanOut: number }
  | { kind: 'zeros' }
  | { kind: 'ones' }
  | { kind: 'constant'; value: number };

const initRandom =
  op<[y: Handle, N: number, kind: number, a: number, seed: number, stream: number]>('init_random');

/** Standard deviation of a unit normal truncated at ±2, by which flax's lecun_normal divides. */
const TRUNCATED_STD = 0.87962566103423978;

/**
 * Fills a tensor with its initial values. Element i depends on (seed, stream, i) alone, never on the thread count.
 * @param x any shape, f32
 * @param init which distribution; see `parameterShapes`
 * @param stream tells tensors apart under one seed
 */
export function initialize(x: Tensor, init: Init, seed: number, stream: number): void {
  const [kind, a] = ((): [number, number] => {
    switch (init.kind) {
      case 'zeros':
        return [0, 0];
      case 'ones':
        return [0, 1];
      case 'constant':
        return [0, init.value];
      case 'normal':
        return [1, init.std];
      case 'lecunNormal':
        return [2, Math.sqrt(1 / init.fanIn) / TRUNCATED_STD];
      case 'xavierUniform':
        return [3, Math.sqrt(6 / (init.fanIn + init.fanOut))];
    }
  })();
  initRandom(x.handle, x.size, kind, a, seed, stream);
}
