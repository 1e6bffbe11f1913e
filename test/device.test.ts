/** What a device says when it is full or meets bad values; runs on the CPU, or on SIGLIP2_TEST_DEVICE. */
import { afterAll, expect, test } from '@jest/globals';
import { embedding } from '../lib/ops/embedding.js';
import { softmaxCrossEntropy } from '../lib/ops/softmax_cross_entropy.js';
import {
  type DeviceName,
  deviceName,
  empty,
  liveCount,
  memory,
  setDebug,
  setMemoryLimit,
  synchronize,
  tensor,
  zeros,
} from '../lib/tensor.js';

const device = (process.env['SIGLIP2_TEST_DEVICE'] ?? 'cpu') as DeviceName;
afterAll(() => expect(liveCount()).toBe(0));

test('a full device names the largest tensors alive, and works on', async () => {
  const kept = [
    empty([1 << 20], 'f32', device),
    empty([1 << 20], 'f32', device),
    empty([1 << 20], 'bf16', device),
  ];
  const view = kept[0]!.reshape([1 << 10, 1 << 10]);
  setMemoryLimit(12 << 20, device);
  let error: unknown;
  try {
    empty([1 << 20], 'f32', device);
  } catch (e) {
    error = e;
  } finally {
    setMemoryLimit(0, device);
  }
  expect(error).toMatchObject({ code: 'ERR_MEMORY', name: 'DeviceError' });
  expect((error as Error).message).toContain(
    'largest live tensors: 2 × 4.00 MiB f32, 1 × 2.00 MiB bf16',
  );
  const more = zeros([3], 'f32', device);
  expect(Array.from(await more.read())).toEqual([0, 0, 0]);
  for (const t of [...kept, view, more]) t.dispose();
});

test('values from outside that would become addresses are errors that name them', async () => {
  const ids = tensor(Int32Array.of(0, 4, 1, 9), [2, 2], device),
    table = zeros([5, 3], 'f32', device),
    position = zeros([2, 3], 'f32', device);
  const y = embedding(ids, table, position);
  await expect(synchronize(device)).rejects.toThrow(
    'token id 9 at position 3 is outside the table of 5 rows',
  );
  const targets = tensor(Int32Array.of(1, 3), [2], device),
    logits = zeros([2, 3], 'f32', device);
  const loss = softmaxCrossEntropy(logits, targets);
  await expect(loss.item()).rejects.toThrow(
    'target 3 of row 1 is neither a class in [0, 3) nor -1',
  );
  await synchronize(device); // told once
  for (const t of [ids, table, position, y, targets, logits, loss]) t.dispose();
});

test('in test mode a freed tensor leaves the error of a kernel to whoever asks for it', async () => {
  setDebug(true, device);
  const before = memory(device).guardViolations;
  const ids = tensor(Int32Array.of(7), [1, 1], device),
    table = zeros([5, 3], 'f32', device),
    position = zeros([1, 3], 'f32', device);
  for (const t of [embedding(ids, table, position), ids, table, position]) t.dispose();
  await expect(synchronize(device)).rejects.toThrow(
    'token id 7 at position 0 is outside the table of 5 rows',
  );
  expect(memory(device).guardViolations).toBe(before);
  setDebug(false, device);
});

test('a device that is not there is one sentence', () => {
  expect(() => deviceName('cuda:15')).toThrow(
    /^(this build has no CUDA \(.*\)|this machine has no CUDA device|cuda-host has one device, with index 0, not 15|CUDA device 15 was asked for, but the devices are 0 to \d+)$/,
  );
});
