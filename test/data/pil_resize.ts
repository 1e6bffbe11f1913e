/**
 * Reference of PIL's antialiased bilinear resize on bytes: horizontal, then vertical, each with
 * 22-bit fixed-point weights and rounded to bytes (the algorithm of Pillow's Resample.c, written
 * anew).
 */
const BITS = 22;

function pass(
  src: Uint8Array,
  lines: number,
  lineStride: number,
  length: number,
  stride: number,
  channels: number,
  outLength: number,
  outLineStride: number,
  outStride: number,
): Uint8Array {
  const out = new Uint8Array(lines * outLength * channels);
  const scale = length / outLength;
  const stretch = Math.max(scale, 1);
  for (let i = 0; i < outLength; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - stretch + 0.5));
    const end = Math.min(length, Math.trunc(centre + stretch + 0.5));
    const weights: number[] = [];
    for (let j = first; j < end; j++)
      weights.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) / stretch)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const fixed = weights.map((w) => Math.trunc(0.5 + (w / sum) * (1 << BITS)));
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < channels; c++) {
        let total = 1 << (BITS - 1);
        fixed.forEach((w, j) => {
          total += w * (src[line * lineStride + (first + j) * stride + c] as number);
        });
        out[line * outLineStride + i * outStride + c] = Math.min(255, Math.max(0, total >> BITS));
      }
    }
  }
  return out;
}

/** (height, width, channels) to (outHeight, outWidth, channels). */
export function pilResize(
  src: Uint8Array,
  height: number,
  width: number,
  channels: number,
  outHeight: number,
  outWidth: number,
): Uint8Array {
  let data = src;
  if (outWidth !== width) {
    data = pass(
      data,
      height,
      width * channels,
      width,
      channels,
      channels,
      outWidth,
      outWidth * channels,
      channels,
    );
  }
  if (outHeight !== height) {
    data = pass(
      data,
      outWidth,
      channels,
      height,
      outWidth * channels,
      channels,
      outHeight,
      channels,
      outWidth * channels,
    );
  }
  return data === src ? src.slice() : data;
}
