/**
 * Arrays of numpy's .npz files (a zip of .npy members), read by ranges where they are stored uncompressed. The header
 * of every array is read and proved against its member's size when the file is opened. Format: numpy's NEP 1.
 */
import type { FileHandle } from 'node:fs/promises';
import { inflateRawSync, constants as zlib } from 'node:zlib';
import { CheckpointError } from '../errors.js';
import { errorCode, ioError, openInput, writeFileAtomic } from '../fs/files.js';
import type { FloatDtype } from './half.js';
import { decodeFloats } from './half.js';
import type { FilePlace } from './safetensors.js';
import { readExactly } from './safetensors_header.js';
import type { ZipMember } from './zip.js';
import { readMember, readZip, zipChunks } from './zip.js';

/** numpy's names; V2 is how a bfloat16 array is saved, which numpy has no type for. */
const DTYPES: Record<string, FloatDtype> = {
  '<f4': 'F32',
  '<f2': 'F16',
  '<f8': 'F64',
  '|V2': 'BF16',
  '<V2': 'BF16',
};
const BYTES: Record<FloatDtype, number> = { F32: 4, F16: 2, BF16: 2, F64: 8 };
/** More than any header of a plain array; longer ones belong to record types. */
const MOST_HEADER_BYTES = 4096;

interface ArrayPlace {
  shape: number[];
  dtype: FloatDtype;
  /** First axis fastest. */
  fortran: boolean;
  member: ZipMember;
  /** Of the first value, in bytes from the start of the (decompressed) member. */
  begin: number;
}

/** An open .npz file. */
export class NpzFile {
  /** The last member that had to be decompressed or reordered: scanned arrays are asked for layer by layer. */
  #decoded: { key: string; values: Float32Array } | null = null;

  readonly #handle: FileHandle;
  readonly #places: ReadonlyMap<string, ArrayPlace | CheckpointError>;

  private constructor(
    readonly path: string,
    handle: FileHandle,
    places: ReadonlyMap<string, ArrayPlace | CheckpointError>,
  ) {
    this.#handle = handle;
    this.#places = places;
  }

  /** @throws CheckpointError naming file and member; IoError when the disk says no */
  static async open(path: string): Promise<NpzFile> {
    let handle: FileHandle;
    try {
      handle = await openInput(path);
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw ioError('read', path, error);
      throw new CheckpointError(`${path}: does not exist; check the path`, { cause: error });
    }
    try {
      if (!(await handle.stat()).isFile())
        throw new CheckpointError(`${path}: is not a regular file; check the path`);
      const arrays = new Map<string, ArrayPlace | CheckpointError>();
      for (const member of (await readZip(path, handle)).values()) {
        if (!member.name.endsWith('.npy'))
          throw new CheckpointError(`${path}: member "${member.name}" is no .npy array`);
        arrays.set(member.name.slice(0, -4), await readHeader(path, handle, member));
      }
      return new NpzFile(path, handle, arrays);
    } catch (error) {
      await handle.close();
      throw ioError('read', path, error);
    }
  }

  /** Names of all arrays, of whatever type. */
  get keys(): string[] {
    return [...this.#places.keys()];
  }
  has(key: string): boolean {
    return this.#places.has(key);
  }

  /** @throws CheckpointError when there is none, or it holds no floats: counters, flags and objects are left alone until asked for */
  array(key: string): ArrayPlace {
    const array = this.#places.get(key);
    if (array instanceof CheckpointError) throw array;
    if (!array)
      throw new CheckpointError(
        `${this.path}: holds no array "${key}"; is it a checkpoint of another model?`,
      );
    return array;
  }

  /** Values `from` to `from + n` of an array in row-major order. */
  async values(key: string, from: number, n: number): Promise<Float32Array> {
    const { member, dtype, begin, fortran } = this.array(key);
    if (!member.stored || fortran) return (await this.#decode(key)).subarray(from, from + n);
    const raw = new ArrayBuffer(n * BYTES[dtype]);
    if (
      !(await readExactly(
        this.#handle,
        new Uint8Array(raw),
        member.offset + begin + from * BYTES[dtype],
      ))
    ) {
      throw new CheckpointError(
        `${this.path}: array "${key}": the file ended early; it was cut while open`,
      );
    }
    return dtype === 'F32' ? new Float32Array(raw) : decodeFloats(dtype, raw, new Float32Array(n));
  }

  /** Where values from `from` on lie as they are; undefined when they must be decompressed or reordered. */
  locate(key: string, from: number): FilePlace | undefined {
    const { member, dtype, begin, fortran } = this.array(key);
    if (!member.stored || fortran || dtype === 'F64') return undefined;
    return { fd: this.#handle.fd, offset: member.offset + begin + from * BYTES[dtype], dtype };
  }

  async close(): Promise<void> {
    this.#decoded = null;
    await this.#handle.close();
  }

  async #decode(key: string): Promise<Float32Array> {
    if (this.#decoded?.key === key) return this.#decoded.values;
    this.#decoded = null;
    const { member, dtype, begin, fortran, shape } = this.array(key);
    const bytes = await readMember(this.path, this.#handle, member);
    const n = (member.size - begin) / BYTES[dtype],
      at = bytes.byteOffset + begin;
    // The header is padded so that the values are aligned; an array written otherwise is copied.
    const raw = bytes.buffer as ArrayBuffer;
    const values =
      dtype === 'F32' && at % 4 === 0
        ? new Float32Array(raw, at, n)
        : decodeFloats(dtype, raw.slice(at, at + n * BYTES[dtype]), new Float32Array(n));
    this.#decoded = { key, values: fortran ? toRowMajor(values, shape) : values };
    return this.#decoded.values;
  }
}

/** Where an array lies, or why it is none of floats, which matters only if it is needed. @throws CheckpointError for no array at all */
async function readHeader(
  path: string,
  handle: FileHandle,
  member: ZipMember,
): Promise<ArrayPlace | CheckpointError> {
  const fail = (what: string): CheckpointError =>
    new CheckpointError(`${path}: member "${member.name}" ${what}`);
  const packed = new Uint8Array(Math.min(member.packed, MOST_HEADER_BYTES));
  if (!(await readExactly(handle, packed, member.offset)))
    throw fail('ends early; the file is cut');
  let head = Buffer.from(packed.buffer);
  if (!member.stored) {
    try {
      head = inflateRawSync(packed, { finishFlush: zlib.Z_SYNC_FLUSH }).subarray(
        0,
        MOST_HEADER_BYTES,
      );
    } catch (cause) {
      throw new CheckpointError(
        fail(`cannot be decompressed (${(cause as Error).message})`).message,
        { cause },
      );
    }
  }
  if (head.length < 12 || head.toString('latin1', 0, 6) !== '\x93NUMPY')
    throw fail('is no .npy array; the file is damaged');
  const [start, length] = head[6] === 1 ? [10, head.readUInt16LE(8)] : [12, head.readUInt32LE(8)];
  const begin = start + length;
  if (begin > head.length)
    return fail(
      `has a header of ${length} bytes; a plain array needs fewer than ${MOST_HEADER_BYTES}`,
    );
  const text = head.toString('latin1', start, begin);
  const [, descr] = /'descr': *'([^']*)'/.exec(text) ?? [],
    [, order] = /'fortran_order': *(True|False)/.exec(text) ?? [];
  const [, dims] = /'shape': *\(([\d, ]*)\)/.exec(text) ?? [];
  if (descr === undefined || order === undefined || dims === undefined)
    return fail('has a header that is not one of a plain array');
  const dtype = Object.hasOwn(DTYPES, descr) ? DTYPES[descr] : undefined;
  if (!dtype)
    return fail(
      `has values of type ${JSON.stringify(descr)}; known are ${Object.keys(DTYPES).join(', ')}`,
    );
  const shape = dims
    .split(',')
    .map((d) => d.trim())
    .filter((d) => d !== '')
    .map(Number);
  const bytes = shape.reduce((a, b) => a * b, BYTES[dtype]);
  if (bytes !== member.size - begin)
    throw fail(
      `of ${dtype} [${shape.join(', ')}] needs ${bytes} bytes but has ${member.size - begin}`,
    );
  return { shape, dtype, fortran: order === 'True' && shape.length > 1, member, begin };
}

/** First-axis-fastest values of this shape in row-major order. */
function toRowMajor(values: Float32Array, shape: readonly number[]): Float32Array {
  const out = new Float32Array(values.length),
    index = shape.map(() => 0);
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((a, b) => a * b, 1));
  for (let i = 0, at = 0; i < out.length; i++) {
    out[i] = values[at]!;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += strides[axis]!;
      if (++index[axis]! < shape[axis]!) break;
      at -= strides[axis]! * shape[axis]!;
      index[axis] = 0;
    }
  }
  return out;
}

/** An f32 array to write; `data` makes its row-major values when their turn comes. */
export interface NpzEntry {
  key: string;
  shape: readonly number[];
  data: () => Promise<Float32Array>;
}

/** Writes a .npz of uncompressed arrays atomically, one array in memory at a time. @throws IoError */
export async function writeNpz(path: string, entries: Iterable<NpzEntry>): Promise<void> {
  await writeFileAtomic(
    path,
    zipChunks(
      [...entries].map(({ key, shape, data }) => ({
        name: `${key}.npy`,
        data: async () => {
          const values = await data();
          const dims = `(${shape.join(', ')}${shape.length === 1 ? ',' : ''})`;
          const text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${dims}, }`;
          const begin = Math.ceil((10 + text.length + 1) / 64) * 64,
            bytes = Buffer.alloc(begin + values.byteLength, ' ');
          bytes.write('\x93NUMPY\x01\x00', 'latin1');
          bytes.writeUInt16LE(begin - 10, 8);
          bytes.write(text, 10, 'latin1');
          bytes[begin - 1] = 0x0a;
          bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), begin);
          return bytes;
        },
      })),
    ),
  );
}
