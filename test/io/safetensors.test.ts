import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { CheckpointError } from '../../lib/errors.js';
import { f32ToBf16, f32ToF16 } from '../../lib/io/half.js';
import type { TensorEntry, TensorReader } from '../../lib/io/safetensors.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'siglip2-safetensors-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const FLOATS = Float32Array.from({ length: 35 }, (_, i) => Math.sin(i) * 2 ** (i % 9));

function sample(): TensorEntry[] {
  return [
    { name: 'odd.bytes', dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 3) },
    { name: 'a.half', dtype: 'F16', shape: [5, 7], data: f32ToF16(FLOATS) },
    { name: 'a.float', dtype: 'F32', shape: [7, 5], data: () => FLOATS },
    { name: 'brain', dtype: 'BF16', shape: [35], data: () => Promise.resolve(f32ToBf16(FLOATS)) },
    { name: 'empty', dtype: 'F32', shape: [0, 4], data: new Uint8Array(0) },
    { name: 'scalar', dtype: 'F64', shape: [], data: Float64Array.of(Math.PI) },
    { name: 'long', dtype: 'I64', shape: [2], data: BigInt64Array.of(-1n, 2n ** 62n) },
    { name: 'ints "é\n', dtype: 'I32', shape: [1, 2], data: Int32Array.of(-5, 7) },
    { name: '__proto__', dtype: 'BOOL', shape: [1], data: Uint8Array.of(1) },
  ];
}

async function withFile<T>(path: string, use: (reader: TensorReader) => Promise<T>): Promise<T> {
  const reader = await openSafetensors(path);
  try {
    return await use(reader);
  } finally {
    await reader.close();
  }
}

test('writes and reads every dtype, lazily and into given arrays', async () => {
  const path = join(folder, 'sample.safetensors');
  await writeSafetensors(path, sample(), { format: 'pt', note: 'ünï' });
  await withFile(path, async (file) => {
    expect(file.metadata).toEqual({ format: 'pt', note: 'ünï' });
    expect([...file.tensors.keys()].sort()).toEqual(
      sample()
        .map(({ name }) => name)
        .sort(),
    );
    expect(file.tensors.get('a.half')).toMatchObject({ dtype: 'F16', shape: [5, 7], bytes: 70 });
    for (const { name, data } of sample()) {
      const view = await (typeof data === 'function' ? data() : data);
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      expect([name, await file.read(name)]).toEqual([name, bytes]);
    }
    expect(await file.readFloat32('a.float')).toEqual(FLOATS);
    const out = new Float32Array(37).subarray(1, 36);
    expect(await file.readFloat32('brain', out)).toBe(out);
    const wrong = FLOATS.filter((x, i) => !(Math.abs(out[i]! - x) <= Math.abs(x) / 256));
    expect(wrong).toHaveLength(0);
    expect((await file.readFloat32('a.half'))[1]).toBeCloseTo(FLOATS[1]!, 2);
    expect(await file.readFloat32('scalar')).toEqual(Float32Array.of(Math.PI));
    expect(await file.readFloat32('empty')).toHaveLength(0);
    await expect(file.readFloat32('long')).rejects.toThrow(
      /"long" has dtype I64 but floating-point/,
    );
    await expect(file.read('nope')).rejects.toThrow(/sample.safetensors: holds no tensor "nope"/);
    await expect(file.read('long', new Uint8Array(3))).rejects.toThrow(
      /has 16 bytes but the destination has 3/,
    );
    await expect(file.readFloat32('brain', new Float32Array(3))).rejects.toThrow(CheckpointError);
  });
});

test('a conversion longer than its scratch memory', async () => {
  const path = join(folder, 'long.safetensors');
  const values = Float32Array.from({ length: 2 ** 20 + 3 }, (_, i) => i % 251);
  await writeSafetensors(path, [
    { name: 'x', dtype: 'BF16', shape: [values.length], data: f32ToBf16(values) },
  ]);
  const read = await withFile(path, (file) => file.readFloat32('x'));
  expect(Buffer.from(values.buffer).equals(Buffer.from(read.buffer))).toBe(true);
});

// An independent reading of the format: Python's standard library only.
/** The layout as it is published, read without any code of the package: dtype, shape and bytes by name. */
function published(raw: Buffer): { meta: unknown; tensors: Map<string, unknown> } {
  const n = Number(raw.readBigUInt64LE(0)),
    bytes: Record<string, number> = {
      U8: 1,
      BOOL: 1,
      F16: 2,
      BF16: 2,
      F32: 4,
      I32: 4,
      F64: 8,
      I64: 8,
    };
  expect(n % 8).toBe(0);
  const { __metadata__: meta, ...head } = JSON.parse(raw.toString('utf8', 8, 8 + n)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  return {
    meta,
    tensors: new Map(
      Object.entries(head).map(
        ([
          name,
          {
            dtype,
            shape,
            data_offsets: [begin, end],
          },
        ]) => {
          expect(end - begin).toBe(shape.reduce((a, b) => a * b, 1) * bytes[dtype]!);
          expect(begin % bytes[dtype]!).toBe(0);
          return [name, [dtype, shape, raw.toString('hex', 8 + n + begin, 8 + n + end)]];
        },
      ),
    ),
  };
}

test('a reader of the published layout sees the same bytes', async () => {
  const path = join(folder, 'published.safetensors');
  await writeSafetensors(path, sample());
  const { meta, tensors } = published(await readFile(path));
  expect(meta).toEqual({ format: 'pt' });
  const expected = new Map<string, unknown>();
  for (const { name, dtype, shape, data } of sample()) {
    const view = await (typeof data === 'function' ? data() : data);
    const hex = Buffer.from(view.buffer, view.byteOffset, view.byteLength).toString('hex');
    expected.set(name, [dtype, shape, hex]);
  }
  expect(tensors).toEqual(expected);
});

test('writing refuses what cannot be read back, and keeps the old file', async () => {
  const path = join(folder, 'refused.safetensors');
  await writeSafetensors(path, sample());
  const before = await readFile(path);
  const one = { name: 'x', dtype: 'F32', shape: [2], data: new Float32Array(2) } as const;
  await expect(writeSafetensors(path, [one, one])).rejects.toThrow(/tensor "x" is given twice/);
  await expect(writeSafetensors(path, [{ ...one, name: '__metadata__' }])).rejects.toThrow(
    CheckpointError,
  );
  await expect(writeSafetensors(path, [{ ...one, shape: [3] }])).rejects.toThrow(
    /needs 12 bytes but 8 came/,
  );
  await expect(writeSafetensors(path, [{ ...one, shape: [-1] }])).rejects.toThrow(
    /has no valid size/,
  );
  await expect(writeSafetensors(path, [{ ...one, dtype: 'F31' as 'F32' }])).rejects.toThrow(
    CheckpointError,
  );
  expect(await readFile(path)).toEqual(before);
  expect((await readdir(folder)).filter((name) => name.includes('tmp'))).toEqual([]);
});

/** A file from a header object or text and a number of data bytes. */
function build(header: unknown, dataBytes = 16): Buffer {
  const json = Buffer.isBuffer(header)
    ? header
    : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([head, json, Buffer.alloc(dataBytes)]);
}
const F32 = (shape: unknown, begin: unknown, end: unknown): unknown => ({
  dtype: 'F32',
  shape,
  data_offsets: [begin, end],
});
const pair = '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}';

test.each<[string, Buffer, RegExp]>([
  ['empty', Buffer.alloc(0), /has 0 bytes, too few for its header/],
  ['short', Buffer.alloc(7), /too few/],
  ['long header', build({}).fill(0xff, 0, 8), /states a header of 18446744073709551615 bytes/],
  ['cut header', build({ a: F32([4], 0, 16) }).subarray(0, 20), /too few for its header/],
  ['no JSON', build('{"a":'), /is not valid JSON/],
  ['no UTF-8', build(Buffer.from([0x7b, 0xff, 0x7d])), /not UTF-8/],
  ['array', build([]), /must be an object/],
  ['null', build('null'), /must be an object/],
  ['metadata', build({ __metadata__: { a: 1 } }, 0), /__metadata__ must map names to texts/],
  ['twice', build(`{${pair},${pair}}`), /names tensor "a" twice/],
  ['twice, escaped', build(`{${pair},${pair.replace('a', '\\u0061')}}`), /"a" twice/],
  ['no object', build({ a: 3 }), /tensor "a" must be described by an object/],
  [
    'dtype',
    build({ a: { dtype: 'F31', shape: [4], data_offsets: [0, 16] } }),
    /tensor "a" has dtype "F31"; known are /,
  ],
  [
    'dtype of the prototype',
    build({ a: { dtype: 'toString', shape: [4], data_offsets: [0, 16] } }),
    /has dtype/,
  ],
  ['no dtype', build({ a: { shape: [4], data_offsets: [0, 16] } }), /has dtype undefined/],
  ['shape', build({ a: F32([2, -2], 0, 16) }), /"a" has no valid shape: \[2,-2\]/],
  ['shape text', build({ a: F32('4', 0, 16) }), /no valid shape/],
  ['fraction', build({ a: F32([1.5], 0, 16) }), /no valid shape/],
  ['huge shape', build({ a: F32([2 ** 50, 2 ** 50], 0, 16) }), /needs .* bytes but has 16/],
  ['infinite shape', build({ a: F32(Array(40).fill(2 ** 52), 0, 16) }), /needs Infinity bytes/],
  ['offsets', build({ a: F32([4], 0, undefined) }), /no valid data_offsets/],
  ['negative', build({ a: F32([4], -16, 0) }), /no valid data_offsets/],
  ['reversed', build({ a: F32([4], 16, 0) }), /lies at bytes 16 to 0 of 16/],
  ['outside', build({ a: F32([8], 0, 32) }), /lies at bytes 0 to 32 of 16; the file is cut/],
  ['size', build({ a: F32([3], 0, 16) }), /needs 12 bytes but has 16/],
  ['overlap', build({ a: F32([3], 0, 12), b: F32([2], 8, 16) }), /tensors "a" and "b" overlap/],
  ['hole', build({ a: F32([1], 0, 4), b: F32([2], 8, 16) }), /4 unused bytes before tensor "b"/],
  ['tail', build({ a: F32([3], 0, 12) }), /4 unused bytes after the last tensor "a"/],
])('%s: a CheckpointError that names the file', async (name, bytes, message) => {
  const path = join(folder, 'bad.safetensors');
  await writeFile(path, bytes);
  const error: unknown = await openSafetensors(path).catch((e: unknown) => e);
  expect(error).toBeInstanceOf(CheckpointError);
  expect((error as Error).message).toMatch(message);
  expect((error as Error).message).toContain(path);
  if (name === 'hole' || name === 'tail')
    await (await openSafetensors(path, { strict: false })).close();
});

test('a file cut after opening', async () => {
  const path = join(folder, 'cut.safetensors');
  await writeSafetensors(path, sample());
  await withFile(path, async (file) => {
    await truncate(path, 600);
    await expect(
      Promise.all([...file.tensors.keys()].map((name) => file.read(name))),
    ).rejects.toThrow(/the file ended early/);
  });
});

test('shards: by folder, by index, and what does not fit together', async () => {
  const set = join(folder, 'set');
  const [first, second] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
  const entries = sample();
  await writeSafetensors(join(set, first!), entries.slice(0, 4));
  await writeSafetensors(join(set, second!), entries.slice(4));
  const map = Object.fromEntries(
    entries
      .filter(({ name }) => name !== '__proto__')
      .map(({ name }, i) => [name, i < 4 ? first : second]),
  );
  const index = join(set, 'model.safetensors.index.json');
  const save = (value: unknown): Promise<void> => writeFile(index, JSON.stringify(value));
  await save({ metadata: {}, weight_map: map });
  await expect(openSafetensors(set)).rejects.toThrow(
    /does not list tensor "__proto__" of model-00002/,
  );
  await writeSafetensors(join(set, second!), entries.slice(4, 8));
  for (const path of [set, index]) {
    await withFile(path, async (file) => {
      expect(file.tensors.size).toBe(8);
      expect(file.metadata).toEqual({ format: 'pt' });
      expect(await file.readFloat32('a.float')).toEqual(FLOATS);
      expect(await file.read('long')).toHaveLength(16);
      await expect(file.read('nope')).rejects.toThrow(/index.json: holds no tensor "nope"/);
    });
  }
  const bad: [unknown, RegExp][] = [
    [
      { weight_map: { ...map, more: first } },
      /tensor "more" should be in model-00001.* but is not there/,
    ],
    [{ weight_map: { x: '../out.safetensors' } }, /same folder but is in "..\/out.safetensors"/],
    [{ weight_map: { x: 3 } }, /same folder but is in 3/],
    [{ weight_map: { x: 'absent.safetensors' } }, /absent.safetensors: does not exist/],
    [{ weight_map: [] }, /has no weight_map/],
    [[], /must be an object/],
  ];
  for (const [value, message] of bad) {
    await save(value);
    await expect(openSafetensors(set)).rejects.toThrow(CheckpointError);
    await expect(openSafetensors(set)).rejects.toThrow(message);
  }
});

test('a folder or file that is not there', async () => {
  await expect(openSafetensors(join(folder, 'no'))).rejects.toThrow(
    /no: holds neither model.safetensors nor/,
  );
  await expect(openSafetensors(join(folder, 'no.safetensors'))).rejects.toThrow(
    /does not exist; check the path/,
  );
  await expect(openSafetensors(join(folder, 'no.index.json'))).rejects.toThrow(CheckpointError);
});

test('3,000 mutations: tensors or a CheckpointError, nothing else', async () => {
  const good = join(folder, 'good.safetensors');
  await writeSafetensors(good, sample());
  const original = await readFile(good);
  const headerEnd = 8 + Number(original.readBigUInt64LE());
  let seed = 12345;
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return Math.floor(((seed >>> 8) / 2 ** 24) * n);
  };
  const tokens = [
    '-',
    '1e400',
    '9007199254740993',
    'null',
    '[',
    '}',
    '"',
    '0.5',
    '\\u0000',
    '{"a":1}',
    ',',
  ];
  const mutate = (): Buffer => {
    let bytes = Buffer.from(original);
    for (let times = 1 + random(3); times > 0; times--) {
      const at = random(Math.min(headerEnd, bytes.length));
      switch (random(6)) {
        case 0:
          bytes[random(bytes.length)]! ^= 1 << random(8);
          break;
        case 1:
          bytes[at] = random(256);
          break;
        case 2:
          bytes = bytes.subarray(0, random(bytes.length + 1));
          break;
        case 3:
          bytes = Buffer.concat([
            bytes.subarray(0, at),
            Buffer.from(tokens[random(tokens.length)]!),
            bytes.subarray(at),
          ]);
          break;
        case 4:
          bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(9))]);
          break;
        // A digit for a digit keeps the JSON valid and reaches the checks of shapes and offsets.
        default:
          for (let i = at; i < bytes.length; i++) {
            if (bytes[i]! >= 48 && bytes[i]! <= 57) {
              bytes[i] = 48 + random(10);
              break;
            }
          }
      }
      if (bytes.length === 0) break;
    }
    return bytes;
  };
  const path = join(folder, 'mutant.safetensors');
  let refused = 0;
  for (let i = 0; i < 3000; i++) {
    const bytes = mutate();
    await writeFile(path, bytes);
    try {
      await withFile(path, async (file) => {
        let total = 0;
        for (const [name, info] of file.tensors) {
          total += (await file.read(name)).byteLength - info.bytes;
        }
        expect(total).toBe(0);
      });
    } catch (error) {
      if (!(error instanceof CheckpointError))
        throw new Error(`mutation ${i}: ` + `${bytes.toString('latin1')}`, { cause: error });
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(1500);
  expect(refused).toBeLessThan(3000);
});

test('a pointer of git-LFS is called one', async () => {
  const path = join(folder, 'pointer.safetensors');
  await writeFile(
    path,
    'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1500000000\n',
  );
  await expect(openSafetensors(path)).rejects.toThrow(
    /pointer.safetensors: is a git-LFS pointer and not the file itself; fetch it with `git lfs pull`/,
  );
});
