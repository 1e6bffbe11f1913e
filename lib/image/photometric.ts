/**
 * Colour, blur and solarisation of uint8 RGB pixels, bit-identical to PIL (ImageEnhance, HSV conversion, GaussianBlur,
 * ImageOps) and therefore to what DINO-style augmentation does through torchvision. All work in place on (n, 3) bytes.
 */

const { fround, trunc, floor, imul, sqrt, max, min } = Math;

/** PIL's blend of one value with another: float32, clipped, truncated. */
function blend(from: number, to: number, factor: number): number {
  const v = fround(from + fround(factor * (to - from)));
  return v <= 0 ? 0 : v >= 255 ? 255 : trunc(v);
}

/** Luma as PIL converts to "L": ITU-R 601 in 16-bit fixed point. */
function luma(r: number, g: number, b: number): number {
  return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

/** Blends every value with one constant: a table of 256 results. */
function blendWith(rgb: Uint8Array, constant: number, factor: number): void {
  const f = fround(factor),
    table = Uint8Array.from({ length: 256 }, (_, v) => blend(constant, v, f));
  for (let i = 0; i < rgb.length; i++) rgb[i] = table[rgb[i]!]!;
}

/** Times `factor`; 1 changes nothing. */
export function brightness(rgb: Uint8Array, factor: number): void {
  blendWith(rgb, 0, factor);
}

/** Away from (above 1) or towards (below 1) the mean grey. */
export function contrast(rgb: Uint8Array, factor: number): void {
  let sum = 0;
  for (let i = 0; i < rgb.length; i += 3) sum += luma(rgb[i]!, rgb[i + 1]!, rgb[i + 2]!);
  blendWith(rgb, trunc(sum / (rgb.length / 3) + 0.5), factor);
}

/** Away from (above 1) or towards (below 1) each pixel's grey. */
export function saturation(rgb: Uint8Array, factor: number): void {
  const f = fround(factor);
  for (let i = 0; i < rgb.length; i += 3) {
    const r = rgb[i]!,
      g = rgb[i + 1]!,
      b = rgb[i + 2]!,
      grey = luma(r, g, b);
    rgb[i] = blend(grey, r, f);
    rgb[i + 1] = blend(grey, g, f);
    rgb[i + 2] = blend(grey, b, f);
  }
}

/** Grey in all three channels. */
export function greyscale(rgb: Uint8Array): void {
  for (let i = 0; i < rgb.length; i += 3)
    rgb[i] = rgb[i + 1] = rgb[i + 2] = luma(rgb[i]!, rgb[i + 1]!, rgb[i + 2]!);
}

/** Inverts values of 128 and more. */
export function solarise(rgb: Uint8Array): void {
  for (let i = 0; i < rgb.length; i++) {
    const v = rgb[i]!;
    if (v >= 128) rgb[i] = 255 - v;
  }
}

/**
 * Turns the hue by `turn` of the colour circle, in [−0.5, 0.5], through PIL's 8-bit HSV.
 */
export function hue(rgb: Uint8Array, turn: number): void {
  const shift = trunc(turn * 255) & 255;
  for (let i = 0; i < rgb.length; i += 3) {
    const r = rgb[i]!,
      g = rgb[i + 1]!,
      b = rgb[i + 2]!;
    const most = r > g ? (r > b ? r : b) : g > b ? g : b,
      least = r < g ? (r < b ? r : b) : g < b ? g : b;
    const range = most - least;
    // Grey has no hue to turn.
    if (range === 0) continue;
    const s = trunc(fround(range / most) * 255);
    if (s === 0) {
      rgb[i] = rgb[i + 1] = rgb[i + 2] = most;
      continue;
    }
    const rc = fround((most - r) / range),
      gc = fround((most - g) / range),
      bc = fround((most - b) / range);
    const sector =
      r === most ? fround(bc - gc) : g === most ? fround(2 + rc - bc) : fround(4 + gc - rc);
    const h = (trunc(fround((sector / 6 + 1) % 1) * 255) + shift) & 255;
    const k = floor((h * 6) / 255),
      f = fround((h * 6) / 255 - k),
      fs = fround(s / 255);
    const p = half(most * (1 - fs)),
      q = half(most * (1 - fround(fs * f))),
      t = half(most * (1 - fs * (1 - f)));
    switch (k % 6) {
      case 0:
        rgb[i] = most;
        rgb[i + 1] = t;
        rgb[i + 2] = p;
        break;
      case 1:
        rgb[i] = q;
        rgb[i + 1] = most;
        rgb[i + 2] = p;
        break;
      case 2:
        rgb[i] = p;
        rgb[i + 1] = most;
        rgb[i + 2] = t;
        break;
      case 3:
        rgb[i] = p;
        rgb[i + 1] = q;
        rgb[i + 2] = most;
        break;
      case 4:
        rgb[i] = t;
        rgb[i + 1] = p;
        rgb[i + 2] = most;
        break;
      default:
        rgb[i] = most;
        rgb[i + 1] = p;
        rgb[i + 2] = q;
    }
  }
}

/** C's round() for values that are not negative, clipped to a byte. */
function half(v: number): number {
  return min(255, max(0, floor(v + 0.5)));
}

/** Number of box filters per axis that make one Gaussian. */
const PASSES = 3;

/**
 * Gaussian blur with standard deviation `sigma` pixels, as PIL does it: three box filters of fractional width along each
 * axis (Gwosdek et al., SSVM 2011), edges repeated, rounded to bytes after every pass.
 * @param rgb (height, width, 3)
 */
export function gaussianBlur(rgb: Uint8Array, height: number, width: number, sigma: number): void {
  const wide = boxRadius(sigma),
    radius = trunc(wide);
  const inner = trunc(fround(16777216 / fround(fround(wide * 2) + 1)));
  const outer = trunc((16777216 - (radius * 2 + 1) * inner) / 2);
  const room = max(height, width) + 2 * (radius + 1);
  const lines: [Uint8Array, Uint8Array] = [new Uint8Array(room), new Uint8Array(room)];
  for (let y = 0; y < height; y++)
    for (let c = 0; c < 3; c++)
      boxFilters(rgb, y * width * 3 + c, 3, width, lines, radius, inner, outer);
  for (let i = 0; i < width * 3; i++)
    boxFilters(rgb, i, width * 3, height, lines, radius, inner, outer);
}

/** Half width of the box whose threefold use has this deviation; all in float32, as PIL computes it. */
function boxRadius(sigma: number): number {
  const s = fround(fround(sigma) * fround(sigma));
  const variance = fround(s / PASSES);
  const length = fround(sqrt(12 * variance + 1)),
    whole = fround(floor((length - 1) / 2));
  const numerator = fround(
    fround(2 * whole + 1) * fround(fround(whole * fround(whole + 1)) - fround(3 * variance)),
  );
  const denominator = fround(6 * fround(variance - fround(fround(whole + 1) * fround(whole + 1))));
  return fround(whole + fround(numerator / denominator));
}

/**
 * PASSES box filters over one line of `count` values `step` apart. Weights are 24-bit fixed point: `inner` for the
 * 2·radius + 1 values inside, `outer` for the one beyond on either side. `lines` is workspace: a line with its edges
 * repeated radius + 1 times, so that the loops need not ask where they are.
 */
function boxFilters(
  data: Uint8Array,
  start: number,
  step: number,
  count: number,
  lines: readonly [Uint8Array, Uint8Array],
  radius: number,
  inner: number,
  outer: number,
): void {
  const edge = radius + 1,
    width = 2 * edge;
  let [from, to] = lines;
  for (let x = 0, at = start; x < count; x++, at += step) from[edge + x] = data[at]!;
  for (let pass = 0; pass < PASSES; pass++) {
    for (let x = 0; x < edge; x++) {
      from[x] = from[edge]!;
      from[edge + count + x] = from[edge + count - 1]!;
    }
    let sum = 0; // over the window around −1
    for (let x = 0; x < width - 1; x++) sum += from[x]!;
    for (let x = 0; x < count; x++) {
      const left = from[x]!;
      sum = (sum + from[x + width - 1]! - left) | 0;
      // Both products together stay below 2³², so arithmetic modulo 2³² is exact.
      to[edge + x] = (imul(sum, inner) + imul(left + from[x + width]!, outer) + 8388608) >>> 24;
    }
    [from, to] = [to, from];
  }
  for (let x = 0, at = start; x < count; x++, at += step) data[at] = from[edge + x]!;
}
