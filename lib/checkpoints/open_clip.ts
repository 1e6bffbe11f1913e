/**
 * Folders of open_clip: open_clip_model.safetensors with open_clip_config.json (open_clip_config.ts) and a tokenizer. The
 * tensors are those of the Hugging Face layout under other names; q, k and v of a block lie in one tensor, and those of
 * the pooling head in two where Hugging Face has one.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { CheckpointError } from '../errors.js';
import { writeFileAtomic } from '../fs/files.js';
import { decodeFloats, type FloatDtype } from '../io/half.js';
import type { FilePlace, TensorEntry, TensorInfo, TensorReader } from '../io/safetensors.js';
import { elementBytes, openSafetensors, writeSafetensors } from '../io/safetensors.js';
import type { ModelConfig } from '../model/config.js';
import { gridSide } from '../model/config.js';
import { parameterShapes } from '../model/shapes.js';
import { missingTokenizer } from '../text/tokenizer_file.js';
import type { HfFolder } from './hf.js';
import { readJson, type TensorData } from './hf.js';
import { checkFloat } from './hf_tensors.js';
import { fromOpenClipConfig, toOpenClipConfig } from './open_clip_config.js';

export const OPEN_CLIP_CONFIG = 'open_clip_config.json';
/** Names of the weights, the first that is there; we write the first of all. */
const WEIGHTS = [
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.safetensors',
  'model.safetensors',
];

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** A part of a Hugging Face tensor: `n` values from value `at` of the tensor `name` of open_clip, which has this shape. */
interface Part {
  name: string;
  shape: readonly number[];
  at: number;
  n: number;
}

/** The last piece of a name there, by the one here. */
const PIECES: Record<string, string> = { out_proj: 'proj', layernorm: 'norm' };
const TEXT_PIECES: Record<string, string> = { fc1: 'c_fc', fc2: 'c_proj' };

/** Where the values of a parameter come from, in order. */
function parts(config: ModelConfig, name: string, shape: readonly number[]): Part[] {
  const whole = (there: string, as: readonly number[] = shape): Part[] => [
    { name: there, shape: as, at: 0, n: product(as) },
  ];
  /** Part `i` of three along the first axis. */
  const third = (there: string, i: number): Part[] => [
    {
      name: there,
      shape: [3 * shape[0]!, ...shape.slice(1)],
      at: i * product(shape),
      n: product(shape),
    },
  ];
  const [tower, group, ...rest] = name.split('.') as [string, string, ...string[]],
    kind = rest.at(-1)!;
  if (!tower.endsWith('_model')) return whole(name);
  const text = tower === 'text_model';
  if (group === 'encoder') {
    const [, layer, what, proj] = rest as [string, string, string, string];
    const block = text ? `text.transformer.resblocks.${layer}` : `visual.trunk.blocks.${layer}`;
    if (what.startsWith('layer_norm'))
      return whole(`${block}.${text ? 'ln_' : 'norm'}${what.at(-1)!}.${kind}`);
    if (what === 'mlp') return whole(`${block}.mlp.${text ? TEXT_PIECES[proj]! : proj}.${kind}`);
    if (proj === 'out_proj') return whole(`${block}.attn.${text ? 'out_proj' : 'proj'}.${kind}`);
    return third(
      text ? `${block}.attn.in_proj_${kind}` : `${block}.attn.qkv.${kind}`,
      ['q_proj', 'k_proj', 'v_proj'].indexOf(proj),
    );
  }
  if (text) {
    if (group === 'embeddings')
      return whole(
        rest[0] === 'position_embedding'
          ? 'text.positional_embedding'
          : 'text.token_embedding.weight',
      );
    return whole(`text.${group === 'head' ? 'text_projection' : 'ln_final'}.${rest[0]!}`);
  }
  if (group === 'embeddings') {
    const embed = config.naflex ? 'visual.trunk.embeds' : 'visual.trunk.patch_embed',
      side = gridSide(config);
    if (rest[0] === 'patch_embedding') return whole(`${embed}.proj.${kind}`);
    return config.naflex
      ? whole(`${embed}.pos_embed`, [1, side, side, shape[1]!])
      : whole('visual.trunk.pos_embed', [1, ...shape]);
  }
  if (group === 'post_layernorm') return whole(`visual.trunk.norm.${kind}`);
  const pool = 'visual.trunk.attn_pool',
    [what, proj] = rest as [string, string];
  if (what === 'probe') return whole(`${pool}.latent`);
  if (what === 'mlp') return whole(`${pool}.mlp.${proj}.${kind}`);
  if (what === 'layernorm' || proj === 'out_proj')
    return whole(`${pool}.${PIECES[what === 'layernorm' ? what : proj]!}.${kind}`);
  const [D, ...columns] = [shape[0]! / 3, ...shape.slice(1)],
    end = proj.slice('in_proj_'.length);
  return [
    ...whole(`${pool}.q.${end}`, [D, ...columns]),
    ...whole(`${pool}.kv.${end}`, [2 * D, ...columns]),
  ];
}

/** The tensors of an open_clip file under their Hugging Face names. */
class OpenClipReader implements TensorReader {
  readonly tensors = new Map<string, TensorInfo>();
  readonly metadata = {};
  readonly #parts = new Map<string, Part[]>();
  /** The tensor that was cut last: q, k and v are asked for one after the other. */
  #last: { name: string; bytes: Uint8Array } | undefined;

  readonly #path: string;
  readonly #file: TensorReader;

  constructor(path: string, file: TensorReader, config: ModelConfig) {
    this.#path = path;
    this.#file = file;
    const order = new Map([...file.tensors.keys()].map((name, i) => [name, i])),
      used = new Set<string>();
    const found = parameterShapes(config).map(({ name, shape }) => {
      const from = parts(config, name, shape);
      for (const { name: there, shape: want } of from) {
        const have = file.tensors.get(there),
          scalar = want.length === 1 && want[0] === 1 && have?.shape.length === 0;
        if (!have)
          throw new CheckpointError(
            `${path}: holds no tensor "${there}", which ${config.name} needs; is it a checkpoint of another model?`,
          );
        if (!scalar && have.shape.join() !== want.join())
          throw new CheckpointError(
            `${path}: tensor "${there}" must be [${want.join(', ')}] but is [${have.shape.join(', ')}]; the config is of another model`,
          );
        checkFloat(path, have, file.tensors.keys());
        if (have.dtype !== file.tensors.get(from[0]!.name)!.dtype)
          throw new CheckpointError(
            `${path}: tensor "${there}" is ${have.dtype} but "${from[0]!.name}" is not; both are parts of one tensor`,
          );
        used.add(there);
      }
      this.#parts.set(name, from);
      const { dtype } = file.tensors.get(from[0]!.name)!;
      return { name, dtype, shape, bytes: product(shape) * elementBytes(dtype) };
    });
    for (const name of file.tensors.keys())
      if (!used.has(name))
        throw new CheckpointError(
          `${path}: tensor "${name}" belongs to no ${config.name}; is it a checkpoint of another model?`,
        );
    // In the order of the file, which is the fastest to read.
    const first = ({ name }: TensorInfo): number => order.get(this.#parts.get(name)![0]!.name)!;
    for (const info of found.sort((a, b) => first(a) - first(b))) this.tensors.set(info.name, info);
  }

  /** The tensor that is all of a Hugging Face tensor, where there is one. */
  #whole(name: string): string | undefined {
    const [part, ...more] = this.#of(name);
    return more.length === 0 && part!.n === product(part!.shape) ? part!.name : undefined;
  }
  #of(name: string): Part[] {
    const found = this.#parts.get(name);
    if (!found)
      throw new CheckpointError(
        `${this.#path}: holds no tensor "${name}"; is it a checkpoint of another model?`,
      );
    return found;
  }

  async read(name: string, out?: Uint8Array): Promise<Uint8Array> {
    const whole = this.#whole(name);
    if (whole !== undefined) return this.#file.read(whole, out);
    const { bytes, dtype } = this.tensors.get(name)!,
      size = elementBytes(dtype);
    if (out && out.byteLength !== bytes)
      throw new CheckpointError(
        `${this.#path}: tensor "${name}" has ${bytes} bytes but the destination has ${out.byteLength}; give one of the same size`,
      );
    const values = out ?? new Uint8Array(bytes);
    let to = 0;
    for (const part of this.#of(name)) {
      if (this.#last?.name !== part.name)
        this.#last = { name: part.name, bytes: await this.#file.read(part.name) };
      values.set(this.#last.bytes.subarray(part.at * size, (part.at + part.n) * size), to);
      to += part.n * size;
    }
    return values;
  }

  async readFloat32(name: string, out?: Float32Array): Promise<Float32Array> {
    const whole = this.#whole(name);
    if (whole !== undefined) return this.#file.readFloat32(whole, out);
    const { bytes, dtype } = this.tensors.get(name)!,
      n = bytes / elementBytes(dtype),
      values = out ?? new Float32Array(n);
    if (values.length !== n)
      throw new CheckpointError(
        `${this.#path}: tensor "${name}" has ${n} values but the destination has ${values.length}; give one of the same size`,
      );
    const raw = await this.read(name);
    if (dtype === 'F32') values.set(new Float32Array(raw.buffer, raw.byteOffset, n));
    else decodeFloats(dtype as FloatDtype, raw.buffer as ArrayBuffer, values);
    return values;
  }

  async *chunks(name: string): AsyncGenerator<Float32Array> {
    const whole = this.#whole(name);
    if (whole === undefined) yield await this.readFloat32(name);
    else yield* this.#file.chunks(whole);
  }

  locate(name: string): FilePlace | undefined {
    const [part, ...more] = this.#of(name),
      place = more.length > 0 ? undefined : this.#file.locate(part!.name);
    return place && { ...place, offset: place.offset + part!.at * elementBytes(place.dtype) };
  }

  close(): Promise<void> {
    this.#last = undefined;
    return this.#file.close();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Opens a folder of open_clip and proves that its tensors fit its config. Reads no weights.
 * @throws CheckpointError naming the file and key or tensor; IoError when the disk says no
 */
export async function loadOpenClip(folder: string): Promise<HfFolder> {
  const file = join(folder, OPEN_CLIP_CONFIG),
    weights = join(folder, WEIGHTS.find((name) => existsSync(join(folder, name))) ?? WEIGHTS[0]!);
  const json = await readJson(file),
    reader = await openSafetensors(weights);
  try {
    const { config, processor, lowercase } = fromOpenClipConfig(json, file, reader.tensors);
    const path = join(folder, 'tokenizer.json'),
      tokenizer = existsSync(path) ? path : undefined;
    const noTokenizer = tokenizer
      ? undefined
      : missingTokenizer(folder, folder, config.text.vocab, false);
    return {
      ...processor,
      folder: null,
      config,
      reader: new OpenClipReader(weights, reader, config),
      vocabulary: null,
      lowercase,
      tokenizer,
      noTokenizer,
    };
  } catch (error) {
    await reader.close();
    throw error;
  }
}

/**
 * Fills a folder with open_clip's config and weights of a model.
 * @param tensors by Hugging Face name; those that only training uses are left out
 * @returns a sentence on how open_clip's embeddings will differ, if they will
 * @throws ConfigError when open_clip has no model of this shape
 */
export async function saveOpenClip(
  folder: string,
  from: HfFolder,
  tensors: ReadonlyMap<string, TensorData>,
): Promise<string | undefined> {
  const config = { ...from.config, decoder: null },
    { json, note } = toOpenClipConfig(config, from);
  const pieces = new Map<string, (Part & { of: TensorData; from: number })[]>();
  for (const { name, shape } of parameterShapes(config)) {
    let begin = 0;
    for (const part of parts(config, name, shape)) {
      pieces.set(part.name, [
        ...(pieces.get(part.name) ?? []),
        { ...part, of: tensors.get(name)!, from: begin },
      ]);
      begin += part.n;
    }
  }
  const entries = [...pieces].map(([name, list]): TensorEntry => {
    const {
        of: { dtype },
        shape,
      } = list[0]!,
      size = elementBytes(dtype);
    if (list.some((piece) => piece.of.dtype !== dtype))
      throw new CheckpointError(
        `${name} is made of tensors of different types; choose one with --dtype`,
      );
    const data = async (): Promise<Uint8Array> => {
      const bytes = new Uint8Array(product(shape) * size);
      for (const piece of list) {
        const view = await (typeof piece.of.data === 'function' ? piece.of.data() : piece.of.data);
        bytes.set(
          new Uint8Array(view.buffer, view.byteOffset + piece.from * size, piece.n * size),
          piece.at * size,
        );
      }
      return bytes;
    };
    return { name, dtype, shape: name.startsWith('logit_') ? [] : shape, data };
  });
  await writeSafetensors(join(folder, WEIGHTS[0]!), entries);
  await writeFileAtomic(join(folder, OPEN_CLIP_CONFIG), `${JSON.stringify(json, null, 2)}\n`);
  return note;
}
