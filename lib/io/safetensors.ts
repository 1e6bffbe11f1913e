/**
 * The safetensors format: read lazily with every offset checked, write streaming and atomically.
 *
 * A file is an 8-byte little-endian header length, a JSON header (tensor name to dtype, shape and
 * byte range, and string-to-string `__metadata__`), then the tensors' bytes, row-major and
 * little-endian. The bytes of a file are untrusted: whatever they hold, the outcome is tensors or a
 * CheckpointError naming the file and the tensor. Format: the README of the safetensors project.
 */
import type { FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CheckpointError } from '../errors.js';
import { errorCode, ioError, openInput, readTextLimited, writeFileAtomic } from '../fs/files.js';
import type { FloatDtype } from './half.js';
import { decodeFloats } from './half.js';
import type { Dtype, Located, TensorInfo } from './safetensors_header.js';
import {
  ELEMENT_BYTES,
  isObject,
  isSize,
  MAX_HEADER_BYTES,
  parseObject,
  readExactly,
  readHeader,
} from './safetensors_header.js';

export type { Dtype, TensorInfo };

/** Elements converted at a time by `readFloat32`; bounds its scratch memory to 8 MiB. */
const CONVERT_ELEMENTS = 2 ** 20;

/** Tensors of one file or of a sharded set, read by name. */
export interface TensorReader {
  /** In the order of the header (sharded: file by file). */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The header's `__metadata__`; of a sharded set, that of its first file. */
  readonly metadata: Readonly<Record<string, string>>;
  /**
   * The raw bytes of a tensor, into `out` (exactly its size) or a new array whose buffer starts
   * with them.
   * @throws CheckpointError for an unknown name, an `out` of another size, or a file that has been
   *   cut.
   */
  read(name: string, out?: Uint8Array): Promise<Uint8Array>;
  /**
   * A floating-point tensor (F32, F16, BF16, F64) as 32-bit floats, into `out` or a new array.
   * @throws CheckpointError as `read`, and for other dtypes.
   */
  readFloat32(name: string, out?: Float32Array): Promise<Float32Array>;
  /**
   * The values of a floating-point tensor in order, a few MiB at a time; a piece is valid until the next is asked for.
   * @throws CheckpointError as `readFloat32`.
   */
  chunks(name: string): AsyncGenerator<Float32Array>;
  /** Where a tensor's values lie as they are, row-major and uncompressed; undefined when they must be decoded. */
  locate(name: string): FilePlace | undefined;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Values in an open file. */
export interface FilePlace {
  /** Descriptor of the reader's file: valid until the reader is closed. */
  fd: number;
  /** Of the first value, in bytes. */
  offset: number;
  dtype: 'F32' | 'F16' | 'BF16';
}

/** Options of the readers. */
export interface ReadOptions {
  /**
   * Refuse unused bytes between and after the tensors, as the reference implementation does.
   * Default true.
   */
  strict?: boolean;
}

/** A tensor to write. */
export interface TensorEntry {
  name: string;
  dtype: Dtype;
  shape: readonly number[];
  /**
   * Its bytes, or a function that makes them when their turn comes, so that one tensor is held at a
   * time.
   */
  data: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView>);
}

/** Bytes of one element of a dtype. */
export function elementBytes(dtype: Dtype): number {
  return ELEMENT_BYTES[dtype];
}

/** The bytes behind any typed array or view; no copy. */
function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/**
 * Opens `model.safetensors` of a folder, or its shards when there is
 * `model.safetensors.index.json`, or the file itself when `path` names a `.safetensors` or
 * `.index.json` file. Reads headers only.
 *
 * @throws CheckpointError when nothing is there or the contents are wrong; IoError when the disk
 *   says no.
 */
export async function openSafetensors(
  path: string,
  options: ReadOptions = {},
): Promise<TensorReader> {
  if (path.endsWith('.index.json')) return openShards(path, options);
  if (path.endsWith('.safetensors')) return SafetensorsFile.open(path, options);
  const single = join(path, 'model.safetensors');
  try {
    return await SafetensorsFile.open(single, options);
  } catch (error) {
    if (errorCode((error as Error).cause) !== 'ENOENT') throw error;
  }
  const index = `${single}.index.json`;
  try {
    return await openShards(index, options);
  } catch (error) {
    const { message, cause } = error as Error;
    // A shard that is missing is another matter than a missing index.
    if (errorCode(cause) !== 'ENOENT' || !message.includes(index)) throw error;
    throw new CheckpointError(
      `${path}: holds neither model.safetensors nor ` +
        'model.safetensors.index.json; check the path',
      { cause: error },
    );
  }
}

/** One open safetensors file. */
class SafetensorsFile implements TensorReader {
  readonly #path: string;
  readonly #handle: FileHandle;

  private constructor(
    path: string,
    handle: FileHandle,
    readonly tensors: ReadonlyMap<string, Located>,
    readonly metadata: Readonly<Record<string, string>>,
  ) {
    this.#path = path;
    this.#handle = handle;
  }

  static async open(path: string, { strict = true }: ReadOptions): Promise<SafetensorsFile> {
    const handle = await openToRead(path);
    try {
      const { tensors, metadata } = await readHeader(path, handle, strict);
      return new SafetensorsFile(path, handle, tensors, metadata);
    } catch (error) {
      await handle.close();
      throw ioError('read', path, error);
    }
  }

  async read(name: string, out?: Uint8Array): Promise<Uint8Array> {
    const info = find(this.tensors, name, this.#path);
    const bytes = out ?? new Uint8Array(info.bytes);
    if (bytes.byteLength !== info.bytes) {
      throw new CheckpointError(
        `${this.#path}: tensor "${name}" has ${info.bytes} bytes but the ` +
          `destination has ${bytes.byteLength}; give one of the same size`,
      );
    }
    await this.#fill(info, 0, bytes);
    return bytes;
  }

  async readFloat32(name: string, out?: Float32Array): Promise<Float32Array> {
    const info = find(this.tensors, name, this.#path);
    const size = ELEMENT_BYTES[info.dtype];
    const length = info.bytes / size;
    const values = out ?? new Float32Array(length);
    if (values.length !== length) {
      throw new CheckpointError(
        `${this.#path}: tensor "${name}" has ${length} values but the ` +
          `destination has ${values.length}; give one of the same size`,
      );
    }
    const dtype = this.#floatDtype(info);
    if (dtype === 'F32') {
      await this.#fill(info, 0, bytesOf(values));
      return values;
    }
    const scratch = new ArrayBuffer(Math.min(length, CONVERT_ELEMENTS) * size);
    for (let at = 0; at < length; at += CONVERT_ELEMENTS) {
      const part = values.subarray(at, at + CONVERT_ELEMENTS);
      await this.#fill(info, at * size, new Uint8Array(scratch, 0, part.length * size));
      decodeFloats(dtype, scratch, part);
    }
    return values;
  }

  async *chunks(name: string): AsyncGenerator<Float32Array> {
    const info = find(this.tensors, name, this.#path);
    const [dtype, size] = [this.#floatDtype(info), ELEMENT_BYTES[info.dtype]];
    const length = info.bytes / size;
    const scratch = new ArrayBuffer(Math.min(length, CONVERT_ELEMENTS) * size);
    const values = new Float32Array(Math.min(length, CONVERT_ELEMENTS));
    for (let at = 0; at < length; at += CONVERT_ELEMENTS) {
      const part = values.subarray(0, length - at);
      await this.#fill(info, at * size, new Uint8Array(scratch, 0, part.length * size));
      yield decodeFloats(dtype, scratch, part);
    }
  }

  locate(name: string): FilePlace | undefined {
    const { dtype, begin } = find(this.tensors, name, this.#path);
    return dtype === 'F32' || dtype === 'F16' || dtype === 'BF16'
      ? { fd: this.#handle.fd, offset: begin, dtype }
      : undefined;
  }

  #floatDtype({ name, dtype }: Located): FloatDtype {
    if (dtype === 'F32' || dtype === 'F16' || dtype === 'BF16' || dtype === 'F64') return dtype;
    throw new CheckpointError(
      `${this.#path}: tensor "${name}" has dtype ${dtype} but ` +
        'floating-point values are needed (F32, F16, BF16 or F64)',
    );
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #fill({ name, begin }: Located, offset: number, bytes: Uint8Array): Promise<void> {
    try {
      if (await readExactly(this.#handle, bytes, begin + offset)) return;
    } catch (error) {
      throw ioError('read', this.#path, error);
    }
    throw new CheckpointError(
      `${this.#path}: tensor "${name}": the file ended early; it was cut ` + 'while open',
    );
  }
}

async function openToRead(path: string): Promise<FileHandle> {
  try {
    return await openInput(path);
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw ioError('read', path, error);
    throw new CheckpointError(`${path}: does not exist; check the path`, { cause: error });
  }
}

function find<T extends TensorInfo>(
  tensors: ReadonlyMap<string, T>,
  name: string,
  path: string,
): T {
  const info = tensors.get(name);
  if (info === undefined) {
    throw new CheckpointError(
      `${path}: holds no tensor "${name}"; is it a checkpoint of another ` + 'model?',
    );
  }
  return info;
}

/** Several files behind one index. */
class Shards implements TensorReader {
  readonly metadata: Readonly<Record<string, string>>;

  readonly #path: string;
  readonly #files: ReadonlyMap<string, TensorReader>;
  readonly #owner: ReadonlyMap<string, TensorReader>;

  constructor(
    path: string,
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    files: ReadonlyMap<string, TensorReader>,
    owner: ReadonlyMap<string, TensorReader>,
  ) {
    this.#path = path;
    this.#files = files;
    this.#owner = owner;
    this.metadata = [...files.values()][0]?.metadata ?? {};
  }

  async read(name: string, out?: Uint8Array): Promise<Uint8Array> {
    return this.#file(name).read(name, out);
  }

  async readFloat32(name: string, out?: Float32Array): Promise<Float32Array> {
    return this.#file(name).readFloat32(name, out);
  }

  chunks(name: string): AsyncGenerator<Float32Array> {
    return this.#file(name).chunks(name);
  }

  locate(name: string): FilePlace | undefined {
    return this.#file(name).locate(name);
  }

  async close(): Promise<void> {
    for (const file of this.#files.values()) await file.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #file(name: string): TensorReader {
    find(this.tensors, name, this.#path);
    return this.#owner.get(name)!;
  }
}

async function openShards(path: string, options: ReadOptions): Promise<TensorReader> {
  const weightMap = await readIndex(path);
  const files = new Map<string, TensorReader>();
  try {
    for (const file of new Set(weightMap.values())) {
      files.set(file, await SafetensorsFile.open(join(dirname(path), file), options));
    }
    const tensors = new Map<string, TensorInfo>();
    const owner = new Map<string, TensorReader>();
    for (const [file, reader] of files) {
      for (const [name, info] of reader.tensors) {
        if (weightMap.get(name) === file) {
          tensors.set(name, info);
          owner.set(name, reader);
        } else if (options.strict ?? true) {
          throw new CheckpointError(
            `${path}: does not list tensor "${name}" of ${file}; the ` +
              'files do not belong together',
          );
        }
      }
    }
    for (const [name, file] of weightMap) {
      if (!tensors.has(name)) {
        throw new CheckpointError(
          `${path}: tensor "${name}" should be in ${file} but is not ` +
            'there; the files do not belong together',
        );
      }
    }
    return new Shards(path, tensors, files, owner);
  } catch (error) {
    for (const file of files.values()) await file.close();
    throw error;
  }
}

/** The index's map from tensor name to file name; names of files may not leave the folder. */
async function readIndex(path: string): Promise<Map<string, string>> {
  let text: string;
  try {
    text = await readTextLimited(path, MAX_HEADER_BYTES);
  } catch (error) {
    const { message, cause } = error as Error;
    if (!['ENOENT', undefined].includes(errorCode(cause))) throw error;
    throw new CheckpointError(message, { cause });
  }
  const { weight_map: weightMap } = parseObject(path, text);
  if (!isObject(weightMap)) {
    throw new CheckpointError(`${path}: has no weight_map; it is not a shard index`);
  }
  return new Map(
    Object.entries(weightMap).map(([name, file]) => {
      if (typeof file !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(file)) {
        throw new CheckpointError(
          `${path}: tensor "${name}" must be in a .safetensors file of the ` +
            `same folder but is in ${JSON.stringify(file)}`,
        );
      }
      return [name, file];
    }),
  );
}

/**
 * Writes a safetensors file atomically, one tensor at a time. Wider elements come first (in the
 * given order among equals), so that with the header padded to 8 bytes every tensor is aligned to
 * its element.
 *
 * @param metadata Texts for `__metadata__`; `format: 'pt'` is what transformers looks for.
 * @throws CheckpointError for a repeated name, an unknown dtype, or bytes that do not match the
 *   shape; the old file is then untouched. IoError when the disk says no.
 */
export async function writeSafetensors(
  path: string,
  entries: Iterable<TensorEntry>,
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  const sorted = [...entries].sort((a, b) => ELEMENT_BYTES[b.dtype] - ELEMENT_BYTES[a.dtype]);
  const header = new Map<string, unknown>([['__metadata__', metadata]]);
  let at = 0;
  for (const { name, dtype, shape } of sorted) {
    if (header.has(name)) throw new CheckpointError(`${path}: tensor "${name}" is given twice`);
    const bytes = shape.reduce((a, b) => a * b, ELEMENT_BYTES[dtype]);
    if (!isSize(bytes)) {
      throw new CheckpointError(
        `${path}: tensor "${name}" of ${dtype} [${shape.join(', ')}] has ` + 'no valid size',
      );
    }
    header.set(name, { dtype, shape, data_offsets: [at, at + bytes] });
    at += bytes;
  }
  await writeFileAtomic(path, fileChunks(path, header, sorted));
}

async function* fileChunks(
  path: string,
  header: Map<string, unknown>,
  entries: readonly TensorEntry[],
): AsyncGenerator<Uint8Array> {
  // Built pair by pair, because an object would lose a tensor called "__proto__".
  const pairs = [...header].map(
    ([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`,
  );
  const json = Buffer.from(`{${pairs.join(',')}}`);
  const head = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  head.writeBigUInt64LE(BigInt(head.length - 8));
  head.set(json, 8);
  yield head;
  for (const { name, dtype, shape, data } of entries) {
    const bytes = bytesOf(typeof data === 'function' ? await data() : data);
    const expected = shape.reduce((a, b) => a * b, ELEMENT_BYTES[dtype]);
    if (bytes.byteLength !== expected) {
      throw new CheckpointError(
        `${path}: tensor "${name}" of ${dtype} [${shape.join(', ')}] ` +
          `needs ${expected} bytes but ${bytes.byteLength} came`,
      );
    }
    yield bytes;
  }
}
