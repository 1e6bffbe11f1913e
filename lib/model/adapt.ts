/**
 * Weights for another resolution, another patch size, or NaFlex (SigLIP 2 §2.4): the position table is resized as an
 * image, the patch kernel by FlexiViT's pseudo-inverse (PI-resize), and convolution kernels become flat ones and back.
 * Everything is computed in double precision; all other tensors stay as they are.
 */
import { check } from '../check.js';
import { CheckpointError, ConfigError } from '../errors.js';
import { gridSide, type ModelConfig } from './config.js';
import { parameterShapes } from './shapes.js';
import { type ModelOptions, Siglip2Model } from './siglip2.js';

/** A row-major matrix. */
export interface Matrix {
  rows: number;
  columns: number;
  /** (rows, columns) */
  data: Float64Array;
}

/**
 * How one axis is resized. `antialias`: triangle filter with half-pixel centres that widens when it shrinks (NaFlex,
 * and the default); `linear`: the same without widening; `corners`: linear between samples whose first and last
 * coincide with the input's, as big_vision's loader does.
 */
export type Filter = 'antialias' | 'linear' | 'corners';

/** The (to, from) matrix that resizes an axis; its rows sum to 1. */
export function resizeMatrix(from: number, to: number, filter: Filter): Matrix {
  const data = new Float64Array(to * from),
    scale = from / to;
  for (let i = 0; i < to; i++) {
    const support = filter === 'antialias' ? Math.max(1, scale) : 1;
    const corner = to > 1 ? (i * (from - 1)) / (to - 1) : 0;
    const middle = (i + 0.5) * scale - 0.5;
    // Only the widened filter reaches beyond the edge, and loses what falls there; the others repeat the edge.
    const at =
      filter === 'corners'
        ? corner
        : filter === 'linear'
          ? Math.min(Math.max(middle, 0), from - 1)
          : middle;
    let sum = 0;
    for (let j = 0; j < from; j++)
      sum += data[i * from + j] = Math.max(0, 1 - Math.abs(j - at) / support);
    for (let j = 0; j < from; j++) data[i * from + j]! /= sum;
  }
  return { rows: to, columns: from, data };
}

/**
 * The Moore–Penrose inverse of a matrix of full rank, through the normal equations: exact enough for matrices that
 * resize an axis, whose condition numbers are small.
 */
export function pseudoInverse(a: Matrix): Matrix {
  const wide = a.rows < a.columns,
    n = Math.min(a.rows, a.columns),
    m = Math.max(a.rows, a.columns);
  const at = (i: number, k: number): number => (wide ? a.data[i * m + k]! : a.data[k * n + i]!); // (n, m)
  // (B·Bᵀ)·X = B with B of n rows, by Gauss–Jordan with pivots; X is the inverse or its transpose.
  const width = n + m,
    w = new Float64Array(n * width);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++)
      for (let k = 0; k < m; k++) w[i * width + j]! += at(i, k) * at(j, k);
    for (let k = 0; k < m; k++) w[i * width + n + k] = at(i, k);
  }
  for (let p = 0; p < n; p++) {
    let best = p;
    for (let i = p + 1; i < n; i++)
      if (Math.abs(w[i * width + p]!) > Math.abs(w[best * width + p]!)) best = i;
    for (let k = p; k < width && best !== p; k++)
      [w[p * width + k], w[best * width + k]] = [w[best * width + k]!, w[p * width + k]!];
    const pivot = w[p * width + p]!;
    for (let k = p; k < width; k++) w[p * width + k]! /= pivot;
    for (let i = 0; i < n; i++) {
      const factor = w[i * width + p]!;
      if (i !== p && factor !== 0)
        for (let k = p; k < width; k++) w[i * width + k]! -= factor * w[p * width + k]!;
    }
  }
  const data = new Float64Array(n * m);
  for (let i = 0; i < n; i++)
    for (let k = 0; k < m; k++) data[wide ? k * n + i : i * m + k] = w[i * width + n + k]!;
  return { rows: a.columns, columns: a.rows, data };
}

/** left · x · rightᵀ along the two middle axes: x (n, H, W, c) → (n, left.rows, right.rows, c). */
function alongBoth(
  x: ArrayLike<number>,
  n: number,
  left: Matrix,
  right: Matrix,
  c: number,
): Float32Array {
  const [H, W, OH, OW] = [left.columns, right.columns, left.rows, right.rows];
  const out = new Float32Array(n * OH * OW * c),
    middle = new Float64Array(H * OW * c),
    line = new Float64Array(OW * c);
  for (let b = 0; b < n; b++) {
    middle.fill(0);
    for (let i = 0; i < H; i++)
      for (let j = 0; j < OW; j++)
        for (let k = 0; k < W; k++) {
          const f = right.data[j * W + k]!,
            to = (i * OW + j) * c,
            from = ((b * H + i) * W + k) * c;
          if (f !== 0) for (let d = 0; d < c; d++) middle[to + d]! += f * x[from + d]!;
        }
    for (let i = 0; i < OH; i++) {
      line.fill(0);
      for (let k = 0; k < H; k++) {
        const f = left.data[i * H + k]!;
        if (f !== 0) for (let d = 0; d < OW * c; d++) line[d]! += f * middle[k * OW * c + d]!;
      }
      out.set(line, (b * OH + i) * OW * c);
    }
  }
  return out;
}

const isSize = (n: number): boolean => Number.isSafeInteger(n) && n > 0;

/**
 * Position embeddings for another grid.
 * @param positions (rows·columns, D), row-major
 * @returns (rows·columns of `to`, D); a copy when the grids are equal
 * @throws ShapeError when the positions are not those of the grid
 */
export function resizePositions(
  positions: Float32Array,
  from: readonly [rows: number, columns: number],
  to: readonly [rows: number, columns: number],
  filter: Filter = 'antialias',
): Float32Array {
  const D = positions.length / (from[0] * from[1]);
  check(
    [...from, ...to].every(isSize) && isSize(D),
    'resizePositions',
    `${positions.length} values from a grid of ${from.join(' × ')} ` +
      `to one of ${to.join(' × ')}: grids have two positive integers, and each place the same number of values`,
  );
  return alongBoth(
    positions,
    1,
    resizeMatrix(from[0], to[0], filter),
    resizeMatrix(from[1], to[1], filter),
    D,
  );
}

/**
 * Patch kernels for another patch size (FlexiViT's PI-resize): with B the bilinear enlargement of a patch, the kernel
 * ŵ = (Bᵀ)⁺·w. A larger one gives on the enlarged patch exactly what the old one gave on the patch; a smaller one is
 * the best in the least-squares sense.
 * @param kernels (planes, from, from): one for every output and input channel
 * @returns (planes, to, to)
 * @throws ShapeError when the kernels are not of that size
 */
export function piResize(kernels: Float32Array, from: number, to: number): Float32Array {
  check(
    [from, to, kernels.length / (from * from)].every(isSize),
    'piResize',
    `${kernels.length} values are no kernels of ${from} × ${from}, or there are none of ${to} × ${to}`,
  );
  const inverse = pseudoInverse(resizeMatrix(from, to, 'linear')); // (from, to)
  const data = new Float64Array(to * from);
  for (let i = 0; i < to; i++)
    for (let j = 0; j < from; j++) data[i * from + j] = inverse.data[j * to + i]!;
  const transposed = { rows: to, columns: from, data };
  return alongBoth(kernels, kernels.length / (from * from), transposed, transposed, 1);
}

/** Convolution kernels (D, 3, P, P) as flat ones (D, P·P·3), whose columns run over row, column, channel. */
export function flatKernel(kernel: Float32Array, patch: number): Float32Array {
  return permute(kernel, 3, patch * patch);
}
/** Flat kernels (D, P·P·3) as convolution kernels (D, 3, P, P). */
export function convolutionKernel(kernel: Float32Array, patch: number): Float32Array {
  return permute(kernel, patch * patch, 3);
}
/** (D, a, b) → (D, b, a). */
function permute(x: Float32Array, a: number, b: number): Float32Array {
  const out = new Float32Array(x.length);
  for (let d = 0; d < x.length; d += a * b)
    for (let i = 0; i < a; i++) for (let j = 0; j < b; j++) out[d + j * a + i] = x[d + i * b + j]!;
  return out;
}

/** A tensor on the host. */
export interface HostTensor {
  shape: readonly number[];
  data: Float32Array;
}
export interface AdaptOptions {
  /** How the position table is resized. Default `antialias`. */
  positions?: Filter;
}

const PATCH = 'vision_model.embeddings.patch_embedding.weight';
const POSITION = 'vision_model.embeddings.position_embedding.weight';

/**
 * The weights of `from`, changed to what `to` needs: image size, patch size and NaFlex may differ, all else must be
 * equal. Only the patch kernel and the position table are new; other tensors are passed on, also ones the models do
 * not know. The same change fits an average of the weights.
 * @throws ConfigError naming the first field that must not differ; CheckpointError when a tensor is missing or of
 *   another shape
 */
export function adaptTensors(
  tensors: ReadonlyMap<string, HostTensor>,
  from: ModelConfig,
  to: ModelConfig,
  options: AdaptOptions = {},
): Map<string, HostTensor> {
  checkSame(from, to);
  const take = (name: string): Float32Array => {
    const shape = shapeOf(from, name),
      tensor = tensors.get(name);
    if (tensor && tensor.shape.join() === shape.join()) return tensor.data;
    throw new CheckpointError(
      `adaptTensors: "${name}" must be [${shape.join(', ')}] but is ` +
        `${tensor ? `[${tensor.shape.join(', ')}]` : 'missing'}; give the config the weights were made with`,
    );
  };
  const [P, Q] = [from.vision.patch, to.vision.patch],
    [G, H] = [gridSide(from), gridSide(to)];
  let kernel = take(PATCH);
  if (from.naflex && (P !== Q || !to.naflex)) kernel = convolutionKernel(kernel, P);
  if (P !== Q) kernel = piResize(kernel, P, Q);
  if (to.naflex && (P !== Q || !from.naflex)) kernel = flatKernel(kernel, Q);
  const positions = take(POSITION);
  return new Map([
    ...tensors,
    [PATCH, { shape: shapeOf(to, PATCH), data: kernel }],
    [
      POSITION,
      {
        shape: shapeOf(to, POSITION),
        data: G === H ? positions : resizePositions(positions, [G, G], [H, H], options.positions),
      },
    ],
  ]);
}

function shapeOf(config: ModelConfig, name: string): readonly number[] {
  return parameterShapes(config).find((p) => p.name === name)!.shape;
}

function checkSame(from: ModelConfig, to: ModelConfig): void {
  const fields = ({ vision, text, embed, layerNormEps }: ModelConfig): [string, unknown][] => [
    ...(['width', 'depth', 'heads', 'mlp'] as const).map((k): [string, unknown] => [
      `vision.${k}`,
      vision[k],
    ]),
    ...Object.entries(text).map(([k, v]): [string, unknown] => [`text.${k}`, v]),
    ['embed', embed],
    ['layerNormEps', layerNormEps],
  ];
  const there = new Map(fields(to));
  for (const [field, value] of fields(from)) {
    if (there.get(field) !== value) {
      throw new ConfigError(
        `adaptTensors: ${field} must stay ${String(value)} but is to be ${String(there.get(field))}; ` +
          'only vision.imageSize, vision.patch and naflex can be adapted',
      );
    }
  }
}

/**
 * A new model of config `to` with the adapted weights of `model`, which stays as it is.
 * @throws as `adaptTensors`; CheckpointError when `to` has a tensor that `model` has not
 */
export async function adaptModel(
  model: Siglip2Model,
  to: ModelConfig,
  options: AdaptOptions & ModelOptions = {},
): Promise<Siglip2Model> {
  const tensors = adaptTensors(await model.params.read(), model.config, to, options);
  const adapted = new Siglip2Model(to, options);
  try {
    for (const { name } of adapted.params.shapes) {
      const tensor = tensors.get(name);
      if (!tensor)
        throw new CheckpointError(
          `adaptModel: the model has no "${name}"; adapt to a config without it`,
        );
      adapted.params.write(name, tensor.data);
    }
  } catch (error) {
    adapted.dispose();
    throw error;
  }
  adapted.params.refreshCopy();
  return adapted;
}
