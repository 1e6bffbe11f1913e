import { expect, test } from '@jest/globals';
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from '../../lib/io/half.js';

const ALL = Uint16Array.from({ length: 65536 }, (_, i) => i);

/** The value of a 16-bit float with `m` mantissa bits, by definition. */
function decode(bits: number, m: number): number {
  const exponents = 2 ** (15 - m) - 1;
  const bias = (exponents - 1) / 2;
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits & 0x7fff) >> m;
  const mantissa = bits & (2 ** m - 1);
  if (exponent === exponents) return mantissa ? NaN : sign * Infinity;
  return exponent === 0
    ? sign * mantissa * 2 ** (1 - bias - m)
    : sign * (1 + mantissa / 2 ** m) * 2 ** (exponent - bias);
}

/** Nearest 16-bit float, ties to even, by bisection over the ordered non-negative codes. */
function encode(value: number, m: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const x = Math.abs(value);
  const infinity = (2 ** (15 - m) - 1) << m;
  let [low, high] = [0, infinity];
  while (high - low > 1) {
    const mid = (low + high) >> 1;
    if (decode(mid, m) <= x) low = mid;
    else high = mid;
  }
  // Infinity stands for the next value the format would have, so overflow rounds like everything
  // else.
  const next =
    high === infinity ? decode(low, m) + (decode(low, m) - decode(low - 1, m)) : decode(high, m);
  const [down, up] = [x - decode(low, m), next - x];
  return (
    sign | (x === Infinity ? infinity : down < up || (down === up && low % 2 === 0) ? low : high)
  );
}

test.each([
  [10, f16ToF32, f32ToF16],
  [7, bf16ToF32, f32ToBf16],
] as const)(
  '%d mantissa bits: all codes widen exactly and come back; random floats round as IEEE says',
  (m, widen, narrow) => {
    const values = widen(ALL);
    expect(values.every((value, bits) => Object.is(value, decode(bits, m)))).toBe(true);
    const back = narrow(values);
    const lost = [...ALL].filter((bits) =>
      Number.isNaN(values[bits]) ? !Number.isNaN(decode(back[bits]!, m)) : back[bits] !== bits,
    );
    expect(lost).toEqual([]);
    // Random bit patterns cover all magnitudes; midpoints between codes cover all ties.
    const bits = new Uint32Array(40000);
    let seed = 1;
    for (let i = 0; i < bits.length; i++)
      bits[i] = seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const ties = Array.from(ALL, (code) => (decode(code, m) + decode((code + 1) & 0xffff, m)) / 2);
    const edges = [
      0,
      -0,
      Infinity,
      -Infinity,
      65504,
      65519.99,
      65520,
      2 ** -24,
      2 ** -25,
      2 ** -25 * 1.0001,
      1e-45,
    ];
    const floats = [...new Float32Array(bits.buffer), ...ties, ...edges].filter(
      (x) => !Number.isNaN(x),
    );
    const narrowed = narrow(Float32Array.from(floats));
    const wrong = floats.filter((x, i) => narrowed[i] !== encode(Math.fround(x), m));
    expect(wrong).toEqual([]);
  },
);

test('a given output is filled', () => {
  const out = new Float32Array(2);
  expect(bf16ToF32(Uint16Array.of(0x3f80, 0xc000), out)).toBe(out);
  expect([...out]).toEqual([1, -2]);
  const half = new Uint16Array(1);
  expect(f32ToF16(Float32Array.of(1), half)).toBe(half);
  expect(half[0]).toBe(0x3c00);
});
