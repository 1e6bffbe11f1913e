import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { bf16ToF32, f16ToF32, f32ToBf16 } from '../lib/io/half.js';
import { loadFile, type FileDtype } from '../lib/ops/load_file.js';
import { empty, liveCount, synchronize } from '../lib/tensor.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-load-file-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

async function load(bytes: Uint8Array, dtype: FileDtype, n: number, to: 'f32' | 'bf16', offset = 0): Promise<Uint32Array | Uint16Array> {
  const path = join(folder, 'values');
  writeFileSync(path, bytes);
  const file = await open(path), y = empty([n], to);
  try {
    loadFile(y, { fd: file.fd, offset, dtype });
    const values = await y.read();
    return to === 'f32' ? new Uint32Array(values.buffer, 0, n) : new Uint16Array(values.buffer, 0, n);
  } finally {
    y.dispose();
    await file.close();
  }
}

/** Bit patterns, with NaN as one: which of them a conversion gives is free. */
const bits = (x: Float32Array): number[] => Array.from(new Uint32Array(x.buffer), (u) => (u & 0x7fffffff) > 0x7f800000 ? -1 : u);
const plain = (u: Uint32Array | Uint16Array): number[] =>
  u instanceof Uint16Array ? Array.from(u, (v) => (v & 0x7fff) > 0x7f80 ? -1 : v) : Array.from(u, (v) => (v & 0x7fffffff) > 0x7f800000 ? -1 : v);
const narrow = (x: Float32Array): number[] => Array.from(f32ToBf16(x), (v) => (v & 0x7fff) > 0x7f80 ? -1 : v);

const every = Uint16Array.from({ length: 65536 }, (_, i) => i);
const many = Float32Array.from({ length: 300001 }, (_, i) => Math.sin(i) * 10 ** (i % 77 - 38));

test('every 16-bit value, into both types', async () => {
  const raw = new Uint8Array(every.buffer);
  expect(plain(await load(raw, 'F16', 65536, 'f32'))).toEqual(bits(f16ToF32(every)));
  expect(plain(await load(raw, 'F16', 65536, 'bf16'))).toEqual(narrow(f16ToF32(every)));
  expect(plain(await load(raw, 'BF16', 65536, 'f32'))).toEqual(bits(bf16ToF32(every)));
  expect(plain(await load(raw, 'BF16', 65536, 'bf16'))).toEqual(narrow(bf16ToF32(every)));
});

test('floats over several runs, from an odd offset', async () => {
  const raw = new Uint8Array(3 + many.byteLength);
  raw.set(new Uint8Array(many.buffer), 3);
  expect(plain(await load(raw, 'F32', many.length, 'f32', 3))).toEqual(bits(many));
  expect(plain(await load(raw, 'F32', many.length, 'bf16', 3))).toEqual(narrow(many));
});

test('a file that ends early, or is closed, rejects', async () => {
  await expect(load(new Uint8Array(1000), 'F32', 251, 'f32')).rejects.toThrow(/load_file: the file ended early/);
  const y = empty([4], 'f32');
  loadFile(y, { fd: 999999, offset: 0, dtype: 'F32' });
  await expect(synchronize()).rejects.toThrow(/cannot be read: Bad file descriptor/);
  y.dispose();
});
