/** Against Philox4x32-10 in big integers and the quantile found by bisection of the normal distribution's series. */
import type { Init } from '../../lib/ops/init.js';
import { initialize } from '../../lib/ops/init.js';
import { empty } from '../../lib/tensor.js';
import type { OpCase } from '../harness.js';

export const kernels = ['init_random'];

const LOW = 0xffffffffn;
/** The four words of a block: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. */
function philox(counter: bigint[], key: bigint[]): bigint[] {
  let [a, b, c, d] = counter as [bigint, bigint, bigint, bigint],
    [k, l] = key as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const p = 0xd2511f53n * a,
      q = 0xcd9e8d57n * c;
    [a, b, c, d] = [(q >> 32n) ^ b ^ k, q & LOW, (p >> 32n) ^ d ^ l, p & LOW];
    [k, l] = [(k + 0x9e3779b9n) & LOW, (l + 0xbb67ae85n) & LOW];
  }
  return [a, b, c, d];
}

/** Standard normal distribution function, by the series around zero. */
function distribution(x: number): number {
  let term = x,
    sum = x;
  for (let k = 1; k < 200; k++) sum += term *= (x * x) / (2 * k + 1);
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}
function quantile(u: number): number {
  let [low, high] = [-7, 7];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (distribution(middle) < u) low = middle;
    else high = middle;
  }
  return low;
}

function value(init: Init, u: number): number {
  const tail = distribution(-2);
  // The variance of a unit normal between −2 and 2: 1 − 4 φ(2) / (1 − 2 Φ(−2)).
  const deviation = Math.sqrt(1 - (4 * Math.exp(-2)) / Math.sqrt(2 * Math.PI) / (1 - 2 * tail));
  switch (init.kind) {
    case 'zeros':
      return 0;
    case 'ones':
      return 1;
    case 'constant':
      return init.value;
    case 'normal':
      return init.std * quantile(u);
    case 'lecunNormal':
      return quantile(tail + (1 - 2 * tail) * u) / deviation / Math.sqrt(init.fanIn);
    case 'xavierUniform':
      return (2 * u - 1) * Math.sqrt(6 / (init.fanIn + init.fanOut));
  }
}

function make(init: Init, n: number, seed: number, stream: number): OpCase {
  return {
    name: `${init.kind}, ${n}, seed ${seed}, stream ${stream}`,
    // The device is that of the inputs, and this op has none of its own.
    inputs: { like: { data: new Float32Array(1), shape: [1], kind: 'data' } },
    run: (t) => {
      const y = empty([n], 'f32', t['like']!.device);
      initialize(y, init, seed, stream);
      return { y };
    },
    reference: () => ({
      y: Float64Array.from({ length: n }, (_, i) => {
        const key = [BigInt(seed) & LOW, BigInt(seed) >> 32n];
        const word = philox([BigInt(i >> 2), 0n, BigInt(stream) & LOW, BigInt(stream) >> 32n], key)[
          i & 3
        ]!;
        return value(init, (Number(word) + 0.5) / 2 ** 32);
      }),
    }),
    gradients: false,
    bytes: { forward: 4 * n, backward: 0 },
  };
}

export const cases = [
  make({ kind: 'zeros' }, 1, 0, 0),
  make({ kind: 'ones' }, 5, 0, 0),
  make({ kind: 'constant', value: -10 }, 3, 1, 2),
  make({ kind: 'normal', std: 0.02 }, 1, 0, 0),
  make({ kind: 'normal', std: 0.3 }, 1027, 7, 3),
  make({ kind: 'lecunNormal', fanIn: 100 }, 1025, 2 ** 40 + 5, 2 ** 33 + 1),
  make({ kind: 'xavierUniform', fanIn: 10, fanOut: 20 }, 2050, 1, 9),
];
export const bench = () => [
  make({ kind: 'normal', std: 0.02 }, 768 * 3072, 0, 0),
  make({ kind: 'xavierUniform', fanIn: 768, fanOut: 3072 }, 768 * 3072, 0, 0),
];
