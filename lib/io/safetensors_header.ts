/** The header of a safetensors file: read it and prove every statement against the file's size. */
import type { FileHandle } from 'node:fs/promises';
import { CheckpointError } from '../errors.js';
import { isSmallFloat, smallFloat } from './foreign.js';

/** Bytes of one element by dtype. */
export const ELEMENT_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

/** Element types of the format. */
export type Dtype = keyof typeof ELEMENT_BYTES;

/** The reference implementation refuses longer headers, so a file with one could not be shared. */
export const MAX_HEADER_BYTES = 100_000_000;

/** Largest single read: Node reads less than 2 GiB at once. */
const READ_BYTES = 2 ** 28;

/** Where one tensor lies. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Number of bytes. */
  readonly bytes: number;
}

/** A tensor and the offset of its first byte in the file. */
export type Located = TensorInfo & { begin: number };

/** What a header says. */
export interface Header {
  tensors: Map<string, Located>;
  metadata: Record<string, string>;
}

/** Reads and checks the header of an open file. Throws CheckpointError. */
export async function readHeader(
  path: string,
  handle: FileHandle,
  strict: boolean,
): Promise<Header> {
  const info = await handle.stat();
  if (!info.isFile()) throw new CheckpointError(`${path}: is not a regular file; check the path`);
  const cut = new CheckpointError(
    `${path}: has ${info.size} bytes, too few for its header; it ` +
      'is cut or not a safetensors file',
  );
  const prefix = Buffer.alloc(8);
  if (!(await readExactly(handle, prefix, 0))) throw cut;
  if (isLfsPointer(prefix.toString('latin1'))) throw lfsPointer(path);
  const length = prefix.readBigUInt64LE();
  if (length > MAX_HEADER_BYTES) {
    throw new CheckpointError(
      `${path}: states a header of ${length} bytes, more than ` +
        `${MAX_HEADER_BYTES}; it is damaged or not a safetensors file`,
    );
  }
  const end = 8 + Number(length);
  // The size is compared before allocating, so that a false length costs no memory.
  if (end > info.size) throw cut;
  const bytes = Buffer.alloc(Number(length));
  if (!(await readExactly(handle, bytes, 8))) throw cut;
  return checkHeader(path, bytes, end, info.size, strict);
}

/** Whether a file begins as what git-LFS leaves in the place of one that it has not fetched. */
export function isLfsPointer(head: string): boolean {
  return head.startsWith('version ');
}

/** The error for such a file. */
export function lfsPointer(path: string): CheckpointError {
  return new CheckpointError(
    `${path}: is a git-LFS pointer and not the file itself; fetch it with \`git lfs pull\`, or download the file`,
  );
}

/** Proves a header against the file's size. `base` is the offset of the first tensor byte. */
function checkHeader(
  path: string,
  bytes: Buffer,
  base: number,
  fileBytes: number,
  strict: boolean,
): Header {
  const text = decodeUtf8(path, bytes);
  const header = parseObject(path, text);
  const repeated = repeatedKey(text);
  if (repeated !== undefined) {
    throw new CheckpointError(`${path}: names tensor "${repeated}" twice`);
  }
  const tensors = new Map<string, Located>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') metadata = checkMetadata(path, value);
    else tensors.set(name, checkTensor(path, name, value, base, fileBytes));
  }
  checkLayout(path, tensors, base, fileBytes, strict);
  return { tensors, metadata };
}

function decodeUtf8(path: string, bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new CheckpointError(`${path}: its header is not UTF-8 text; the file is damaged`, {
      cause,
    });
  }
}

/** The object that a JSON text holds. Throws CheckpointError naming the file. */
export function parseObject(path: string, text: string): Record<string, unknown> {
  if (isLfsPointer(text)) throw lfsPointer(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(
      `${path}: is not valid JSON (${(cause as Error).message}); the ` + 'file is damaged',
      { cause },
    );
  }
  if (!isObject(value)) {
    throw new CheckpointError(`${path}: its JSON must be an object; the file is damaged`);
  }
  return value;
}

/** Whether a JSON value is an object and no array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The first key that a valid JSON object has twice at its top level, if any. JSON.parse keeps the
 * last one silently, which would hide a tensor.
 */
function repeatedKey(text: string): string | undefined {
  const seen = new Set<string>();
  let depth = 0;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/gs)) {
    if (token === '{' || token === '[') depth++;
    else if (token === '}' || token === ']') depth--;
    else if (depth === 1 && token.endsWith(':')) {
      const key = JSON.parse(token.slice(0, token.lastIndexOf('"') + 1)) as string;
      if (seen.has(key)) return key;
      seen.add(key);
    }
  }
  return undefined;
}

function checkMetadata(path: string, value: unknown): Record<string, string> {
  if (!isObject(value) || !Object.values(value).every((entry) => typeof entry === 'string')) {
    throw new CheckpointError(`${path}: __metadata__ must map names to texts; the file is damaged`);
  }
  return value as Record<string, string>;
}

/** Whether a value can be a size or an offset. */
export function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function checkTensor(
  path: string,
  name: string,
  value: unknown,
  base: number,
  fileBytes: number,
): Located {
  const fail = (what: string): CheckpointError =>
    new CheckpointError(`${path}: tensor "${name}" ${what}`);
  if (!isObject(value)) throw fail('must be described by an object; the file is damaged');
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string' || !Object.hasOwn(ELEMENT_BYTES, dtype)) {
    if (isSmallFloat(dtype)) throw fail(`is ${String(dtype)}: ${smallFloat(path, [])}`);
    throw fail(
      `has dtype ${JSON.stringify(dtype)}; known are ` + `${Object.keys(ELEMENT_BYTES).join(', ')}`,
    );
  }
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw fail(`has no valid shape: ${JSON.stringify(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw fail(`has no valid data_offsets: ${JSON.stringify(offsets)}`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end || end > fileBytes - base) {
    throw fail(
      `lies at bytes ${begin} to ${end} of ${fileBytes - base}; the file is cut or ` + 'damaged',
    );
  }
  const bytes = (shape as number[]).reduce((a, b) => a * b, ELEMENT_BYTES[dtype as Dtype]);
  if (bytes !== end - begin) {
    throw fail(`of ${dtype} ${JSON.stringify(shape)} needs ${bytes} bytes but has ${end - begin}`);
  }
  return { name, dtype: dtype as Dtype, shape: shape as number[], bytes, begin: base + begin };
}

/** No two tensors may share bytes; in strict mode they must also fill the file. */
function checkLayout(
  path: string,
  tensors: ReadonlyMap<string, Located>,
  base: number,
  fileBytes: number,
  strict: boolean,
): void {
  const sorted = [...tensors.values()].sort((a, b) => a.begin - b.begin || a.bytes - b.bytes);
  let at = base;
  let last = '';
  for (const { name, begin, bytes } of sorted) {
    if (begin < at) throw new CheckpointError(`${path}: tensors "${last}" and "${name}" overlap`);
    if (strict && begin > at) {
      throw new CheckpointError(
        `${path}: ${begin - at} unused bytes before tensor "${name}"; ` +
          'the file is damaged, or not written by safetensors',
      );
    }
    at = begin + bytes;
    last = name;
  }
  if (strict && at !== fileBytes) {
    throw new CheckpointError(
      `${path}: ${fileBytes - at} unused bytes after the last tensor ` +
        `"${last}"; the file is damaged, or not written by safetensors`,
    );
  }
}

/** Fills `bytes` from `position`; false when the file ends before. */
export async function readExactly(
  handle: FileHandle,
  bytes: Uint8Array,
  position: number,
): Promise<boolean> {
  for (let at = 0; at < bytes.byteLength; ) {
    const { bytesRead } = await handle.read(
      bytes,
      at,
      Math.min(bytes.byteLength - at, READ_BYTES),
      position + at,
    );
    if (bytesRead === 0) return false;
    at += bytesRead;
  }
  return true;
}
