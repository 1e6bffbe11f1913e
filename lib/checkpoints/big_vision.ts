/**
 * big_vision's .npz checkpoints of two-tower models: the same tensors as the Hugging Face layout, under flax names,
 * dense kernels transposed, layers stacked along a leading axis (the released files) or one by one. Names as in
 * big_vision's models/vit.py, models/proj/image_text/{two_towers,text_transformer,naflex_vit}.py.
 */
import { basename } from 'node:path';
import { CheckpointError, ConfigError } from '../errors.js';
import type { NpzEntry } from '../io/npz.js';
import { NpzFile, writeNpz } from '../io/npz.js';
import type { FilePlace, TensorInfo, TensorReader } from '../io/safetensors.js';
import type { ModelConfig } from '../model/config.js';
import { modelConfig, VARIANTS } from '../model/config.js';
import { parameterShapes } from '../model/shapes.js';

/** Where a tensor of the Hugging Face layout comes from. */
interface Origin {
  /** Flax name without `params/`; that of a block has `{}` for its layer, when it is in one. */
  key: string;
  layer: number | null;
  /** `kernel`: (in, out) to [out, in]; `conv`: (P, P, 3, D) to [D, 3, P, P]; `copy`: the same values in the same order. */
  kind: 'copy' | 'kernel' | 'conv';
  /** Of q, k, v stacked in one tensor: the names of all three, in order. */
  stack?: string[];
}

/** Deeper than any tower; bounds what a damaged shape makes us lay out. */
const MOST_LAYERS = 1024;
const ATTENTION = 'MultiHeadDotProductAttention_0';
const HALF: Record<string, string> = { weight: 'kernel', bias: 'bias' };
const PROJECTION: Record<string, string> = {
  q_proj: 'query',
  k_proj: 'key',
  v_proj: 'value',
  out_proj: 'out',
  fc1: 'Dense_0',
  fc2: 'Dense_1',
};

/** The flax names of a tensor. */
function origin(name: string): Origin {
  const copy = (key: string): Origin => ({ key, layer: null, kind: 'copy' });
  const dense = (key: string, part: string, layer: number | null = null): Origin => ({
    key: `${key}/${HALF[part]!}`,
    layer,
    kind: part === 'weight' ? 'kernel' : 'copy',
  });
  if (name === 'logit_scale') return copy('t');
  if (name === 'logit_bias') return copy('b');
  const tower = name.startsWith('vision_model.') ? 'img' : 'txt',
    rest = name.slice(name.indexOf('.') + 1).split('.');
  const part = rest.at(-1)!,
    encoder = tower === 'img' ? 'img/Transformer' : 'txt/Encoder_0';
  const scale = part === 'weight' ? 'scale' : 'bias';
  if (rest[0] === 'embeddings') {
    if (rest[1] === 'position_embedding') return copy(`${tower}/pos_embedding`);
    if (rest[1] === 'token_embedding') return copy('txt/Embed_0/embedding');
    return part === 'weight'
      ? { key: 'img/embedding/kernel', layer: null, kind: 'conv' }
      : copy('img/embedding/bias');
  }
  if (rest[0] === 'encoder') {
    const layer = Number(rest[2]),
      block = `${encoder}/encoderblock{}`;
    if (rest[3]!.startsWith('layer_norm'))
      return {
        key: `${block}/LayerNorm_${Number(rest[3]!.at(-1)) - 1}/${scale}`,
        layer,
        kind: 'copy',
      };
    return dense(
      `${block}/${rest[3] === 'mlp' ? 'MlpBlock_0' : ATTENTION}/${PROJECTION[rest[4]!]!}`,
      part,
      layer,
    );
  }
  if (rest[0] === 'post_layernorm' || rest[0] === 'final_layer_norm')
    return copy(`${encoder}/encoder_norm/${scale}`);
  if (rest[0] === 'head' && tower === 'txt') return dense('txt/head', part);
  const pool = `${tower}/MAPHead_0`;
  if (rest[1] === 'probe') return copy(`${pool}/probe`);
  if (rest[1] === 'layernorm') return copy(`${pool}/LayerNorm_0/${scale}`);
  if (rest[1] === 'mlp') return dense(`${pool}/MlpBlock_0/${PROJECTION[rest[2]!]!}`, part);
  if (rest[2] === 'out_proj') return dense(`${pool}/${ATTENTION}/out`, part);
  const kind = rest[2] === 'in_proj_weight' ? 'weight' : 'bias';
  const stack = ['query', 'key', 'value'].map((p) => `${pool}/${ATTENTION}/${p}/${HALF[kind]!}`);
  return { key: stack[0]!, layer: null, kind: kind === 'weight' ? 'kernel' : 'copy', stack };
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** A (rows, columns) matrix, transposed. In tiles, so that both sides stay in the cache. */
function transposed(x: Float32Array, rows: number, columns: number): Float32Array {
  const y = new Float32Array(x.length),
    tile = 64;
  for (let r0 = 0; r0 < rows; r0 += tile) {
    for (let c0 = 0; c0 < columns; c0 += tile) {
      for (let c = c0; c < Math.min(columns, c0 + tile); c++) {
        for (let r = r0; r < Math.min(rows, r0 + tile); r++) y[c * rows + r] = x[r * columns + c]!;
      }
    }
  }
  return y;
}

/** Patches as (values, channels) to (channels, values), rows of every filter; used per filter. */
function filters(x: Float32Array, D: number, rows: number, columns: number): Float32Array {
  const y = new Float32Array(x.length),
    n = rows * columns;
  for (let d = 0; d < D; d++)
    y.set(transposed(x.subarray(d * n, (d + 1) * n), rows, columns), d * n);
  return y;
}

/** Converts a tensor's values from the flax layout; `shape` is that of the Hugging Face tensor. */
function fromFlax(kind: Origin['kind'], x: Float32Array, shape: readonly number[]): Float32Array {
  if (kind === 'copy') return x;
  const out = shape[0]!,
    inputs = x.length / out,
    y = transposed(x, inputs, out);
  // NaFlex kernels keep (y, x, channel); convolutions have (channel, y, x).
  return kind === 'conv' && shape.length === 4 ? filters(y, out, inputs / 3, 3) : y;
}

function toFlax(kind: Origin['kind'], x: Float32Array, shape: readonly number[]): Float32Array {
  if (kind === 'copy') return x;
  const out = shape[0]!,
    inputs = x.length / out;
  return transposed(
    kind === 'conv' && shape.length === 4 ? filters(x, out, 3, inputs / 3) : x,
    out,
    inputs,
  );
}

/** The tensors of a .npz under their Hugging Face names. */
class BigVisionReader implements TensorReader {
  readonly tensors = new Map<string, TensorInfo>();
  readonly metadata = {};
  readonly #origins = new Map<string, Origin>();

  readonly #npz: NpzFile;
  readonly #keys: Keys;

  constructor(npz: NpzFile, config: ModelConfig, keys: Keys) {
    this.#npz = npz;
    this.#keys = keys;
    const origins = parameterShapes(config).map(({ name, shape }) => ({
      name,
      shape,
      from: origin(name),
    }));
    // Array by array, so that one which must be decompressed is decompressed once.
    const order = new Map<string, typeof origins>();
    for (const o of origins) order.set(o.from.key, [...(order.get(o.from.key) ?? []), o]);
    const used = new Set<string>();
    for (const { name, shape, from } of [...order.values()].flat()) {
      const size = product(shape),
        parts = from.stack ?? [from.key];
      for (const part of parts) {
        const { key, stacked } = keys.find(part, from.layer);
        used.add(key);
        const one = flaxShape(config, name, from, [shape[0]! / parts.length, ...shape.slice(1)]);
        const want = stacked === null ? one : [stacked, ...one],
          have = npz.array(key).shape;
        // A position grid may be kept flat.
        const same = from.key.endsWith('pos_embedding')
          ? product(have) === product(want) && have.at(-1) === want.at(-1)
          : have.join() === want.join();
        if (!same || (stacked !== null && stacked <= from.layer!)) {
          throw new CheckpointError(
            `${npz.path}: array "${key}" must be [${want.join(', ')}] but is [${have.join(', ')}]`,
          );
        }
      }
      this.#origins.set(name, from);
      this.tensors.set(name, { name, dtype: 'F32', shape, bytes: 4 * size });
    }
    for (const key of keys.own) {
      if (!used.has(key))
        throw new CheckpointError(
          `${npz.path}: array "${key}" belongs to no two-tower model; is it a checkpoint of another model?`,
        );
    }
  }

  async readFloat32(name: string, out?: Float32Array): Promise<Float32Array> {
    const { shape, bytes } = this.#info(name),
      from = this.#origins.get(name)!;
    if (out && out.length * 4 !== bytes) {
      throw new CheckpointError(
        `${this.#npz.path}: tensor "${name}" has ${bytes / 4} values but the destination has ${out.length}; give one of the same size`,
      );
    }
    const parts = from.stack ?? [from.key],
      n = bytes / 4 / parts.length;
    const one = parts.length === 1 ? shape : [shape[0]! / parts.length, ...shape.slice(1)];
    const values = out ?? new Float32Array(bytes / 4);
    for (const [i, part] of parts.entries()) {
      const { key, stacked } = this.#keys.find(part, from.layer);
      values.set(
        fromFlax(
          from.kind,
          await this.#npz.values(key, stacked !== null ? from.layer! * n : 0, n),
          one,
        ),
        i * n,
      );
    }
    return values;
  }

  async read(name: string, out?: Uint8Array): Promise<Uint8Array> {
    const values = await this.readFloat32(
      name,
      out && out.byteOffset % 4 === 0
        ? new Float32Array(out.buffer, out.byteOffset, out.byteLength / 4)
        : undefined,
    );
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    if (out && out.byteOffset % 4 !== 0) out.set(bytes);
    return out ?? bytes;
  }

  async *chunks(name: string): AsyncGenerator<Float32Array> {
    const size = this.#info(name).bytes / 4,
      from = this.#origins.get(name)!;
    if (from.kind !== 'copy' || from.stack) {
      yield await this.readFloat32(name);
      return;
    }
    const { key, stacked } = this.#keys.find(from.key, from.layer);
    const begin = stacked !== null ? from.layer! * size : 0,
      piece = 2 ** 20;
    for (let at = 0; at < size; at += piece)
      yield await this.#npz.values(key, begin + at, Math.min(piece, size - at));
  }

  locate(name: string): FilePlace | undefined {
    const size = this.#info(name).bytes / 4,
      from = this.#origins.get(name)!;
    if (from.kind !== 'copy' || from.stack) return undefined;
    const { key, stacked } = this.#keys.find(from.key, from.layer);
    return this.#npz.locate(key, stacked !== null ? from.layer! * size : 0);
  }

  close(): Promise<void> {
    return this.#npz.close();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (!info)
      throw new CheckpointError(
        `${this.#npz.path}: holds no tensor "${name}"; is it a checkpoint of another model?`,
      );
    return info;
  }
}

/** Finds arrays by flax name, in either layout, with or without `params/`. */
class Keys {
  /** Every array of the model, by its name in the file; the optimizer's state and counters beside it are not. */
  readonly own: readonly string[];
  readonly #prefix: string;

  readonly #npz: NpzFile;

  constructor(npz: NpzFile) {
    this.#npz = npz;
    this.#prefix = npz.keys.some((k) => k.startsWith('params/')) ? 'params/' : '';
    this.own = npz.keys.filter((k) =>
      this.#prefix ? k.startsWith(this.#prefix) : /^(?:(?:img|txt)\/.*|t|b)$/.test(k),
    );
  }

  has(key: string): boolean {
    return this.#npz.has(this.#prefix + key);
  }

  /** The array that holds a tensor, and how many layers it stacks, if it does. */
  find(key: string, layer: number | null): { key: string; stacked: number | null } {
    const scanned = this.#prefix + key.replace('{}', '');
    if (layer === null) return { key: scanned, stacked: null };
    const single = this.#prefix + key.replace('{}', `_${layer}`);
    if (this.#npz.has(single)) return { key: single, stacked: null };
    return { key: scanned, stacked: this.#npz.array(scanned).shape[0] ?? 0 };
  }

  shape(key: string): number[] {
    return this.#npz.array(this.#prefix + key).shape;
  }

  depth(block: string, array: string): number {
    if (this.has(`${block}/${array}`)) return this.shape(`${block}/${array}`)[0] ?? 0;
    let n = 0;
    while (this.has(`${block}_${n}/${array}`)) n++;
    return n;
  }
}

/** The config that the arrays' shapes imply. The side of the image is the file name's, when that fits the patches. */
function inferConfig(path: string, keys: Keys): ModelConfig {
  const fail = (what: string): CheckpointError =>
    new CheckpointError(`${path}: ${what}; is it a two-tower checkpoint?`);
  const tower = (root: string) => {
    const block = `${root}/encoderblock`,
      depth = keys.depth(block, 'LayerNorm_0/scale');
    if (depth < 1 || depth > MOST_LAYERS) throw fail(`holds ${depth} layers of ${block}`);
    const last = (key: string, axes: number): number[] =>
      keys
        .shape(keys.has(`${block}/${key}`) ? `${block}/${key}` : `${block}_0/${key}`)
        .slice(-axes);
    const [width = 0, heads = 0] = last(`${ATTENTION}/query/kernel`, 3);
    return { width, depth, heads, mlp: last('MlpBlock_0/Dense_0/kernel', 2)[1] ?? 0 };
  };
  const vision = tower('img/Transformer'),
    text = tower('txt/Encoder_0');
  const kernel = keys.shape('img/embedding/kernel'),
    naflex = kernel.length === 2;
  const patch = naflex ? Math.sqrt((kernel[0] ?? 0) / 3) : (kernel[0] ?? 0);
  const cells = product(keys.shape('img/pos_embedding').slice(0, -1)),
    side = Math.sqrt(cells);
  if (!Number.isInteger(patch) || !Number.isInteger(side))
    throw fail(`has patches of ${patch} px in a grid of ${side}`);
  const [, hint] = /_(\d+)\.npz$/.exec(basename(path)) ?? [];
  const imageSize =
    !naflex && Math.floor(Number(hint) / patch) === side ? Number(hint) : side * patch;
  const [vocab = 0] = keys.shape('txt/Embed_0/embedding'),
    length = keys.shape('txt/pos_embedding').at(-2) ?? 0;
  const name = VARIANTS.find((v) => {
    const c = modelConfig(v).vision;
    return c.width === vision.width && c.depth === vision.depth && c.patch === patch;
  });
  try {
    return modelConfig(name ?? 'B/16', {
      name: name ?? `custom/${patch}`,
      naflex,
      vision: { ...vision, patch, imageSize },
      embed: keys.shape('txt/head/kernel')[1] ?? 0,
      text: { ...text, vocab, length, pool: keys.has('txt/MAPHead_0/probe') ? 'map' : 'last' },
    });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new CheckpointError(`${path}: ${error.message}`, { cause: error });
  }
}

/**
 * Opens a two-tower .npz. Reads no weights.
 * @throws CheckpointError naming the file and the array; IoError when the disk says no
 */
export async function openBigVision(
  path: string,
): Promise<{ config: ModelConfig; reader: TensorReader }> {
  const npz = await NpzFile.open(path);
  try {
    const keys = new Keys(npz),
      config = inferConfig(path, keys);
    return { config, reader: new BigVisionReader(npz, config, keys) };
  } catch (error) {
    await npz.close();
    throw error;
  }
}

/** The shape an array of one tensor (without stacking) has in flax. */
function flaxShape(
  config: ModelConfig,
  name: string,
  from: Origin,
  shape: readonly number[],
): number[] {
  const { width, heads, patch } = {
    ...config.vision,
    ...(name.startsWith('text_model.') ? config.text : {}),
  };
  const side = Math.floor(config.vision.imageSize / config.vision.patch),
    head = width / heads;
  if (name.endsWith('position_embedding.weight'))
    return config.naflex && name.startsWith('vision') ? [side, side, width] : [1, ...shape];
  if (from.kind === 'conv')
    return shape.length === 4 ? [patch, patch, 3, width] : [shape[1]!, width];
  if (from.key.includes(`${ATTENTION}/out/kernel`)) return [heads, head, width];
  if (from.key.includes(ATTENTION) && !from.key.endsWith('out/bias'))
    return from.kind === 'kernel' ? [width, heads, head] : [heads, head];
  return from.kind === 'kernel' ? [shape[1]!, shape[0]!] : [...shape];
}

/**
 * Writes big_vision's released layout: f32, stacked layers, keys under `params/`.
 * @throws IoError, or what the reader throws
 */
export async function saveBigVision(
  path: string,
  config: ModelConfig,
  reader: TensorReader,
): Promise<void> {
  const arrays = new Map<string, { shape: number[]; parts: (() => Promise<Float32Array>)[] }>();
  for (const { name, shape } of parameterShapes(config)) {
    const from = origin(name),
      stack = from.stack ?? [from.key];
    const one = [shape[0]! / stack.length, ...shape.slice(1)],
      size = product(one);
    for (const [i, key] of stack.entries()) {
      const part = async (): Promise<Float32Array> =>
        toFlax(from.kind, (await reader.readFloat32(name)).subarray(i * size, (i + 1) * size), one);
      const known = arrays.get(key);
      if (known) known.parts.push(part);
      else arrays.set(key, { shape: flaxShape(config, name, from, one), parts: [part] });
    }
  }
  const entries: NpzEntry[] = [...arrays].map(([key, { shape, parts }]) => ({
    key: `params/${key.replace('{}', '')}`,
    shape: key.includes('{}') ? [parts.length, ...shape] : shape,
    data: async () => {
      if (parts.length === 1) return parts[0]!();
      const n = product(shape),
        all = new Float32Array(parts.length * n);
      for (const [i, part] of parts.entries()) all.set(await part(), i * n);
      return all;
    },
  }));
  await writeNpz(path, entries);
}
