/**
 * The kernels as plain functions over typed arrays, for other pipelines and for micro-benchmarks: `siglip2/kernels`.
 * Every call uploads its inputs, runs one op on the device and reads the result back; nothing stays behind. In a model,
 * where results stay on the device, use the tensors of `siglip2` instead.
 *
 * @example
 * import { layerNorm, sigmoidLoss } from 'siglip2/kernels';
 * const y = await layerNorm({ data: Float32Array.of(1, 2, 3, 6), shape: [1, 4] });
 * console.log(y.shape, y.data.map((v) => Math.round(v * 100) / 100));
 * // [ 1, 4 ] Float32Array(4) [ -1.07, -0.53, 0, 1.6 ]
 */
import { checkKeys, kindOf } from './check.js';
import { ConfigError, ShapeError } from './errors.js';
import * as attentions from './ops/attention.js';
import { cast } from './ops/elementwise.js';
import { embedding as embeddingOp } from './ops/embedding.js';
import { l2Normalize as l2NormalizeOp } from './ops/l2_normalize.js';
import { layerNorm as layerNormOp } from './ops/layer_norm.js';
import { type Gelu, linear as linearOp } from './ops/linear.js';
import { patchEmbed as patchEmbedOp } from './ops/patch_embed.js';
import { resizeBilinear as resizeBilinearOp } from './ops/resize_bilinear.js';
import { sigmoidLoss as sigmoidLossOp } from './ops/sigmoid_loss.js';
import { backward, noGrad, requireGrad } from './tape.js';
import { type DeviceName, scope, sizeOf, type Tensor, tensor } from './tensor.js';

/** A dense row-major array of `shape`. */
export interface NdArray<T extends Float32Array | Uint8Array | Int32Array = Float32Array> {
  data: T;
  shape: readonly number[];
}

/** Where and in which precision a kernel runs. */
export interface KernelOptions {
  /** Default `cpu`. */
  device?: DeviceName;
  /** Type of activations and weight matrices on the device; results come back as f32 either way. Default `f32`. */
  dtype?: 'f32' | 'bf16';
}

/** The element types of an array, by the tag that arrays of another realm have too. */
type ArrayName = 'Float32Array' | 'Uint8Array' | 'Int32Array';
type AnyArray = NdArray<Float32Array | Uint8Array | Int32Array>;

/** `x` when it is an array of one of these types with a shape that fits. @throws ShapeError */
function checked<T extends AnyArray>(name: string, x: T, ...types: ArrayName[]): T {
  const { data, shape } = (x ?? {}) as Partial<T>,
    type = Object.prototype.toString.call(data).slice(8, -1);
  const wanted = types.length > 0 ? types : ['Float32Array'];
  if (!wanted.includes(type) || !Array.isArray(shape))
    throw new ShapeError(`${name} must be { data, shape }, ${wanted.join(' or ')} and its sizes`);
  if (!shape.every((n) => Number.isSafeInteger(n) && n >= 0))
    throw new ShapeError(
      `${name}: the shape must be of whole numbers but is [${shape.join(', ')}]`,
    );
  if (data!.length !== sizeOf(shape))
    throw new ShapeError(
      `${name} has ${data!.length} values but its shape [${shape.join(', ')}] needs ` +
        sizeOf(shape),
    );
  return x;
}

/** @throws ConfigError for options that `call` does not have */
function checkOptions(call: string, o: KernelOptions, ...more: string[]): void {
  checkKeys(call, o, [...more, 'device', 'dtype']);
  if (o.dtype !== undefined && !['f32', 'bf16'].includes(o.dtype))
    throw new ConfigError(`${call}: dtype must be f32 or bf16 but is ${JSON.stringify(o.dtype)}`);
}

/** @throws ConfigError unless it is a positive integer */
function checkCount(name: string, n: number): void {
  if (!(Number.isSafeInteger(n) && n > 0))
    throw new ConfigError(`${name} must be a positive integer but is ${String(n)}`);
}

function upload(name: string, x: AnyArray, o: KernelOptions, ...types: ArrayName[]): Tensor {
  const { data, shape } = checked(name, x, ...types);
  return tensor(data, shape, o.device);
}
/** An activation or weight matrix, in the precision asked for. */
const active = (name: string, x: NdArray, o: KernelOptions): Tensor =>
  cast(upload(name, x, o), o.dtype ?? 'f32');

/** Runs `fn` without a tape and reads back what it returns. */
async function run<T extends Float32Array | Uint8Array = Float32Array>(
  fn: () => Tensor,
): Promise<NdArray<T>> {
  const y = scope(() =>
    noGrad(() => {
      const result = fn();
      return result.dtype === 'bf16' ? cast(result, 'f32') : result;
    }),
  );
  try {
    return { data: (await y.read()) as T, shape: y.shape };
  } finally {
    y.dispose();
  }
}

/** A vector of ones or zeros, for a scale or bias that was left out. */
const constant = (n: number, value: number): NdArray => ({
  data: new Float32Array(n).fill(value),
  shape: [n],
});

/**
 * LayerNorm over the last axis.
 * @param x (…, C)
 * @param options.weight (C), ones by default
 * @param options.bias (C), zeros by default
 * @param options.eps default 1e-6
 */
export function layerNorm(
  x: NdArray,
  options: KernelOptions & { weight?: NdArray; bias?: NdArray; eps?: number } = {},
): Promise<NdArray> {
  return run(() => {
    checkOptions('layerNorm', options, 'weight', 'bias', 'eps');
    const C = checked('x', x).shape.at(-1) ?? 1,
      { weight = constant(C, 1), bias = constant(C, 0), eps } = options;
    if (eps !== undefined && !(eps > 0))
      throw new ConfigError(`layerNorm: eps must be a positive number but is ${String(eps)}`);
    return layerNormOp(
      active('x', x, options),
      upload('weight', weight, options),
      upload('bias', bias, options),
      eps,
    );
  });
}

/**
 * x·Wᵀ + b, optionally through GELU.
 * @param x (…, K)
 * @param weight (N, K)
 * @param options.bias (N)
 * @param options.gelu its form: x·Φ(x) as 'exact', or the approximation by 'tanh', which `true` stands for
 * @returns (…, N)
 */
export function linear(
  x: NdArray,
  weight: NdArray,
  options: KernelOptions & { bias?: NdArray; gelu?: boolean | Gelu } = {},
): Promise<NdArray> {
  return run(() => {
    checkOptions('linear', options, 'bias', 'gelu');
    const { gelu = false } = options;
    if (![true, false, 'tanh', 'exact'].includes(gelu))
      throw new ConfigError(
        `linear: gelu must be true, false, 'tanh' or 'exact' but is ${JSON.stringify(gelu)}`,
      );
    return linearOp(
      active('x', x, options),
      active('weight', weight, options),
      options.bias ? upload('bias', options.bias, options) : null,
      { gelu },
    );
  });
}

/**
 * Multi-head self-attention over the output of a fused projection.
 * @param qkv (B, N, 3·C): q, k and v of all heads, one after the other
 * @param options.heads each has C / heads columns
 * @param options.keyLengths (B), only the first so many keys of each sample
 * @param options.causal only keys at or before the query
 * @returns (B, N, C)
 */
export function attention(
  qkv: NdArray,
  options: KernelOptions & { heads: number; keyLengths?: Int32Array; causal?: boolean },
): Promise<NdArray> {
  return run(() => {
    checkOptions('attention', options, 'heads', 'keyLengths', 'causal');
    const { heads, keyLengths, causal = false } = options;
    checkCount('attention: heads', heads);
    return attentions.attention(active('qkv', qkv, options), heads, {
      causal,
      ...lengths('attention', keyLengths, qkv, options),
    });
  });
}

/**
 * Multi-head attention of queries over another sequence.
 * @param q (B, Nq, C), or (1, Nq, C) for queries shared by the batch
 * @param kv (B, Nk, 2·C): k and v of all heads, one after the other
 * @returns (B, Nq, C)
 */
export function crossAttention(
  q: NdArray,
  kv: NdArray,
  options: KernelOptions & { heads: number; keyLengths?: Int32Array },
): Promise<NdArray> {
  return run(() => {
    checkOptions('crossAttention', options, 'heads', 'keyLengths');
    checkCount('crossAttention: heads', options.heads);
    return attentions.crossAttention(
      active('q', q, options),
      active('kv', kv, options),
      options.heads,
      lengths('crossAttention', options.keyLengths, kv, options),
    );
  });
}

/** The option of this name as a tensor. @param keys whose second axis the lengths must not go beyond */
function lengths(
  call: string,
  keyLengths: Int32Array | undefined,
  keys: NdArray,
  o: KernelOptions,
): { keyLengths?: Tensor } {
  if (!keyLengths) return {};
  const lengths = upload(
    'keyLengths',
    { data: keyLengths, shape: [keyLengths.length] },
    o,
    'Int32Array',
  );
  const N = keys.shape[1]!;
  const wrong = keyLengths.find((n) => n < 0 || n > N);
  if (wrong !== undefined)
    throw new ShapeError(`${call}: keyLengths must be in [0, ${N}] but one is ${wrong}`);
  return { keyLengths: lengths };
}

/**
 * Patches of uint8 images, scaled to [−1, 1] and projected, plus bias and position, in one pass from bytes.
 * @param images (B, H, W, 3)
 * @param weight (D, 3, P, P), or (D, P·P·3) with channels last
 * @param options.bias (D), zeros by default
 * @param options.position (N, D) for the N = floor(H/P)·floor(W/P) patches, zeros by default
 * @returns (B, N, D)
 */
export function patchEmbed(
  images: NdArray<Uint8Array>,
  weight: NdArray,
  options: KernelOptions & { patch: number; bias?: NdArray; position?: NdArray },
): Promise<NdArray> {
  return run(() => {
    checkOptions('patchEmbed', options, 'patch', 'bias', 'position');
    const { patch, dtype = 'f32' } = options,
      [, height = 0, width = 0] = checked('images', images, 'Uint8Array').shape;
    checkCount('patchEmbed: patch', patch);
    const [D = 1] = checked('weight', weight).shape,
      N = Math.floor(height / patch) * Math.floor(width / patch);
    if (N === 0)
      throw new ShapeError(`patchEmbed: images of ${height}×${width} hold no patch of ${patch}`);
    const { bias = constant(D, 0), position = { data: new Float32Array(N * D), shape: [N, D] } } =
      options;
    return patchEmbedOp(
      upload('images', images, options, 'Uint8Array'),
      active('weight', weight, options),
      upload('bias', bias, options),
      upload('position', position, options),
      { patch, dtype },
    );
  });
}

/**
 * Token embeddings plus learned positions.
 * @param ids (B, L)
 * @param table (V, D)
 * @param position (L, D)
 * @returns (B·L, D)
 */
export function embedding(
  ids: NdArray<Int32Array>,
  table: NdArray,
  position: NdArray,
  options: KernelOptions = {},
): Promise<NdArray> {
  return run(() => {
    checkOptions('embedding', options);
    return embeddingOp(
      upload('ids', ids, options, 'Int32Array'),
      upload('table', table, options),
      upload('position', position, options),
      options.dtype,
    );
  });
}

/** Rows of unit length. @param x (…, C) */
export function l2Normalize(x: NdArray, options: KernelOptions = {}): Promise<NdArray> {
  return run(() => {
    checkOptions('l2Normalize', options);
    return l2NormalizeOp(active('x', x, options));
  });
}

/**
 * Antialiased bilinear resizing with half-pixel centres; uint8 is bit-identical to PIL's BILINEAR.
 * @param x (B, H, W, C), uint8 or f32
 * @param size [height, width] of the result
 */
export function resizeBilinear<T extends Float32Array | Uint8Array>(
  x: NdArray<T>,
  size: readonly [number, number],
  options: Pick<KernelOptions, 'device'> = {},
): Promise<NdArray<T>> {
  return run<T>(() => {
    checkKeys('resizeBilinear', options, ['device']);
    if (!Array.isArray(size)) throw new ConfigError('resizeBilinear: size must be [height, width]');
    return resizeBilinearOp(upload('x', x, options, 'Uint8Array', 'Float32Array'), size);
  });
}

/** What `sigmoidLoss` gives: the loss and its gradients, all made in one pass. */
export interface SigmoidLoss {
  loss: number;
  /** (B, E) */
  dx: NdArray;
  /** (B, E) */
  dy: NdArray;
  dlogScale: number;
  dbias: number;
}

/**
 * Pairwise sigmoid loss of SigLIP and its gradients, fused: the B×B matrix is never in memory.
 * `L = 1/B · Σ_ij softplus(−z_ij (exp(logScale)·x_i·y_j + bias))`, z = +1 on the diagonal and −1 elsewhere.
 * @param x (B, E) unit rows
 * @param y (B, E) unit rows
 * @param options.logScale default log 10
 * @param options.bias default −10
 * @example
 * const x = { data: Float32Array.of(1, 0, 0, 1), shape: [2, 2] };
 * console.log((await sigmoidLoss(x, x)).loss.toFixed(4)); // 0.6932
 */
export async function sigmoidLoss(
  x: NdArray,
  y: NdArray,
  options: KernelOptions & { logScale?: number; bias?: number } = {},
): Promise<SigmoidLoss> {
  checkOptions('sigmoidLoss', options, 'logScale', 'bias');
  const { logScale = Math.log(10), bias = -10 } = options;
  for (const n of [logScale, bias])
    if (typeof n !== 'number')
      throw new ConfigError(
        `sigmoidLoss: logScale and bias must be numbers but one is ${kindOf(n)}`,
      );
  const made = scope(() => {
    const one = (value: number): Tensor =>
      requireGrad(upload('scalar', { data: Float32Array.of(value), shape: [1] }, options));
    const tx = requireGrad(active('x', x, options)),
      ty = requireGrad(active('y', y, options));
    const scale = one(logScale),
      b = one(bias);
    const loss = sigmoidLossOp(tx, ty, scale, b),
      grads = backward(loss);
    const f32 = (t: Tensor): Tensor => cast(grads.get(t)!, 'f32');
    return { loss, dx: f32(tx), dy: f32(ty), dlogScale: f32(scale), dbias: f32(b) };
  });
  try {
    const [loss, dx, dy, dlogScale, dbias] = (await Promise.all(
      [made.loss, made.dx, made.dy, made.dlogScale, made.dbias].map((t) => t.read()),
    )) as [Float32Array, Float32Array, Float32Array, Float32Array, Float32Array];
    return {
      loss: loss[0]!,
      dlogScale: dlogScale[0]!,
      dbias: dbias[0]!,
      dx: { data: dx as Float32Array, shape: made.dx.shape },
      dy: { data: dy as Float32Array, shape: made.dy.shape },
    };
  } finally {
    for (const t of Object.values(made)) t.dispose();
  }
}
