import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { bf16ToF32, f16ToF32, f32ToBf16 } from '../lib/io/half.js';
import { type FileDtype, loadFile } from '../lib/ops/load_file.js';
import { empty, liveCount, synchronize } from '../lib/tensor.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-load-file-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

async function load(
  bytes: Uint8Array,
  dtype: FileDtype,
  n: number,
  to: 'f32' | 'bf16',
  offset = 0,
): Promise<Words> {
  const path = join(folder, 'values');
  writeFileSync(path, bytes);
  const file = await open(path),
    y = empty([n], to);
  try {
    loadFile(y, { fd: file.fd, offset, dtype });
    const values = await y.read();
    return to === 'f32'
      ? new Uint32Array(values.buffer, 0, n)
      : new Uint16Array(values.buffer, 0, n);
  } finally {
    y.dispose();
    await file.close();
  }
}

type Words = Uint32Array | Uint16Array;

/** Positions at which bit patterns differ, all NaN being one: which of them a conversion gives is free. */
function differences(got: Words, want: Words): number {
  const infinity = got instanceof Uint16Array ? 0x7f80 : 0x7f800000,
    magnitude = got instanceof Uint16Array ? 0x7fff : 0x7fffffff;
  const nan = (v: number): boolean => (v & magnitude) > infinity;
  if (got.length !== want.length) return Infinity;
  let n = 0;
  for (let i = 0; i < got.length; i++)
    if (got[i] !== want[i] && !(nan(got[i]!) && nan(want[i]!))) n++;
  return n;
}
const words = (x: Float32Array): Uint32Array => new Uint32Array(x.buffer);

const every = Uint16Array.from({ length: 65536 }, (_, i) => i);
const many = Float32Array.from({ length: 300001 }, (_, i) => Math.sin(i) * 10 ** ((i % 77) - 38));

test('every 16-bit value, into both types', async () => {
  const raw = new Uint8Array(every.buffer);
  expect(differences(await load(raw, 'F16', 65536, 'f32'), words(f16ToF32(every)))).toBe(0);
  expect(differences(await load(raw, 'F16', 65536, 'bf16'), f32ToBf16(f16ToF32(every)))).toBe(0);
  expect(differences(await load(raw, 'BF16', 65536, 'f32'), words(bf16ToF32(every)))).toBe(0);
  expect(differences(await load(raw, 'BF16', 65536, 'bf16'), f32ToBf16(bf16ToF32(every)))).toBe(0);
});

test('floats over several runs, from an odd offset', async () => {
  const raw = new Uint8Array(3 + many.byteLength);
  raw.set(new Uint8Array(many.buffer), 3);
  expect(differences(await load(raw, 'F32', many.length, 'f32', 3), words(many))).toBe(0);
  expect(differences(await load(raw, 'F32', many.length, 'bf16', 3), f32ToBf16(many))).toBe(0);
});

test('a file that ends early, or is closed, rejects', async () => {
  await expect(load(new Uint8Array(1000), 'F32', 251, 'f32')).rejects.toThrow(
    /load_file: the file ended early/,
  );
  const y = empty([4], 'f32');
  loadFile(y, { fd: 999999, offset: 0, dtype: 'F32' });
  await expect(synchronize()).rejects.toThrow(/cannot be read: Bad file descriptor/);
  y.dispose();
});
