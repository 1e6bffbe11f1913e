/**
 * Conversions between 32-bit floats and the two 16-bit formats of checkpoints: IEEE binary16 (F16)
 * and bfloat16 (BF16). Narrowing rounds to nearest, ties to even; NaN stays NaN and overflow
 * becomes infinity, as in IEEE 754 section 4.3.1. A given output is filled and returned.
 */

/** One 32-bit word seen as float and as bits. */
const WORD = new Float32Array(1);
const BITS = new Uint32Array(WORD.buffer);

/** Widens bfloat16 bits; exact. */
export function bf16ToF32(
  bits: Uint16Array,
  out: Float32Array = new Float32Array(bits.length),
): Float32Array {
  const words = new Uint32Array(out.buffer, out.byteOffset, bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16;
  return out;
}

/** Narrows to bfloat16 bits. */
export function f32ToBf16(
  values: Float32Array,
  out: Uint16Array = new Uint16Array(values.length),
): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    out[i] =
      (word & 0x7fffffff) > 0x7f800000
        ? // Truncating could clear every mantissa bit that makes a NaN; setting the quiet bit keeps it
          // one.
          (word >>> 16) | 0x40
        : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** Widens IEEE binary16 bits; exact. */
export function f16ToF32(
  bits: Uint16Array,
  out: Float32Array = new Float32Array(bits.length),
): Float32Array {
  const words = new Uint32Array(out.buffer, out.byteOffset, bits.length);
  for (let i = 0; i < bits.length; i++) {
    const half = bits[i]!;
    const sign = (half & 0x8000) << 16;
    const exponent = (half >>> 10) & 0x1f;
    const mantissa = half & 0x3ff;
    if (exponent === 0) {
      // Zero or subnormal: a multiple of 2^-24.
      out[i] = (sign === 0 ? 1 : -1) * mantissa * 2 ** -24;
    } else {
      words[i] = sign | ((exponent === 31 ? 0xff : exponent + 112) << 23) | (mantissa << 13);
    }
  }
  return out;
}

/** Narrows to IEEE binary16 bits. */
export function f32ToF16(
  values: Float32Array,
  out: Uint16Array = new Uint16Array(values.length),
): Uint16Array {
  for (let i = 0; i < values.length; i++) {
    WORD[0] = values[i]!;
    const word = BITS[0]!;
    const sign = (word >>> 16) & 0x8000;
    const magnitude = word & 0x7fffffff;
    let half: number;
    if (magnitude >= 0x47800000) {
      half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    } else if (magnitude < 0x38800000) {
      // Below 2^-14 the result is a multiple of 2^-24, which is the spacing of floats at 0.5:
      // adding 0.5 rounds to it with the float unit's own ties-to-even.
      WORD[0] = Math.abs(values[i]!) + 0.5;
      half = BITS[0]! - 0x3f000000;
    } else {
      half = (magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
    }
    out[i] = sign | half;
  }
  return out;
}

/** Element types of checkpoints that hold real numbers. */
export type FloatDtype = 'F32' | 'F16' | 'BF16' | 'F64';

/**
 * The first `out.length` little-endian values of a buffer as 32-bit floats. F64 is rounded.
 * @returns out
 */
export function decodeFloats(dtype: FloatDtype, raw: ArrayBuffer, out: Float32Array): Float32Array {
  if (dtype === 'F32') out.set(new Float32Array(raw, 0, out.length));
  else if (dtype === 'F64') out.set(new Float64Array(raw, 0, out.length));
  else if (dtype === 'F16') f16ToF32(new Uint16Array(raw, 0, out.length), out);
  else bf16ToF32(new Uint16Array(raw, 0, out.length), out);
  return out;
}
