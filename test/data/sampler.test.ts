import { expect, test } from '@jest/globals';
import { Sampler, type SamplerOptions } from '../../lib/data/sampler.js';
import { errorOf } from './support.js';

const take = (sampler: Sampler, n: number): number[][] =>
  Array.from({ length: n }, () => [...sampler.next().samples]);

test('an epoch has every sample once, less the rest, and epochs differ', () => {
  const sampler = new Sampler(103, { batchSize: 10, seed: 3 });
  expect(sampler.batchesPerEpoch).toBe(10);
  const first = take(sampler, 10).flat();
  const second = take(sampler, 10).flat();
  expect(new Set(first).size).toBe(100);
  expect(new Set(second).size).toBe(100);
  expect(first).not.toEqual(second);
  expect(sampler.state).toMatchObject({ epoch: 1, batch: 10, batches: 20 });
  expect(take(new Sampler(103, { batchSize: 10, seed: 3 }), 10).flat()).toEqual(first);
  expect(take(new Sampler(103, { batchSize: 10, seed: 4 }), 10).flat()).not.toEqual(first);
  expect(take(new Sampler(20, { batchSize: 10, seed: 4, shuffle: false }), 2).flat()).toEqual([
    ...Array(20).keys(),
  ]);
});

test('resuming from JSON goes on with the same batches, at every position', () => {
  for (const uniqueBy of [undefined, 'class'] as const) {
    const options: SamplerOptions = {
      batchSize: 4,
      seed: 9,
      ...(uniqueBy ? { uniqueBy, classes: Int32Array.from({ length: 30 }, (_, i) => i % 6) } : {}),
    };
    const all = take(new Sampler(30, options), 25);
    for (let n = 0; n < 25; n++) {
      const before = new Sampler(30, options);
      take(before, n);
      const after = new Sampler(30, options);
      after.restore(JSON.parse(JSON.stringify(before.state)));
      expect(take(after, 25 - n)).toEqual(all.slice(n));
    }
  }
});

test('uniqueBy: no class twice in a batch, nothing lost but the rest', () => {
  const classes = Int32Array.from({ length: 400 }, (_, i) => (i < 100 ? i % 4 : i < 390 ? i : -1));
  const sampler = new Sampler(400, { batchSize: 16, seed: 1, uniqueBy: 'class', classes });
  const batches = take(sampler, sampler.batchesPerEpoch);
  for (const batch of batches) {
    const ids = batch.map((i) => classes[i] as number).filter((id) => id >= 0);
    expect(new Set(ids).size).toBe(ids.length);
  }
  const used = batches.flat();
  expect(new Set(used).size).toBe(used.length);
  expect(used.length).toBeGreaterThan(384 - 16);
});

test('a stand-in is the next in order that fits, and never one in the batch', () => {
  const classes = Int32Array.from({ length: 40 }, (_, i) => i % 10);
  const sampler = new Sampler(40, { batchSize: 8, seed: 1, uniqueBy: 'class', classes });
  const { samples, epoch } = sampler.next();
  const unusable = samples[3] as number;
  const other = sampler.replacement(epoch, unusable, samples, new Set([unusable])) as number;
  expect(samples.includes(other)).toBe(false);
  const kept = [...samples].filter((i) => i !== unusable).map((i) => classes[i]);
  expect(kept).not.toContain(classes[other]);
  const all = new Set([...Array(40).keys()]);
  expect(sampler.replacement(epoch, unusable, samples, all)).toBeUndefined();
});

test('impossible batches and foreign states are errors that say what to change', async () => {
  const wrong: [number, SamplerOptions, string][] = [
    [5, { batchSize: 6, seed: 1 }, 'make it smaller'],
    [5, { batchSize: 0, seed: 1 }, 'batchSize'],
    [9, { batchSize: 4, seed: 1, uniqueBy: 'class', classes: new Int32Array(9) }, 'there are 1'],
    [9, { batchSize: 4, seed: 1, uniqueBy: 'class' }, 'needs a class'],
  ];
  for (const [n, options, text] of wrong) {
    const error = await errorOf(() => new Sampler(n, options));
    expect(error.code).toBe('ERR_CONFIG');
    expect(error.message).toContain(text);
  }
  const sampler = new Sampler(10, { batchSize: 2, seed: 1 });
  for (const change of [
    { samples: 11 },
    { seed: 2 },
    { batchSize: 3 },
    { epoch: -1 },
    { batch: 0.5 },
  ]) {
    expect((await errorOf(() => sampler.restore({ ...sampler.state, ...change }))).code).toBe(
      'ERR_DATA',
    );
  }
});
