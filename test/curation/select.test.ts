/** Joint selection against an independent numpy implementation, and what it promises about memory and repeatability. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { packageRoot } from '../../lib/native.js';
import type { PairEmbeddings } from '../../lib/ops/pair_scores.js';
import { liveCount, memory, resetPeak, synchronize, tensor } from '../../lib/tensor.js';
import {
  type SelectionOptions,
  type SelectionScore,
  selectBatch,
  selectionUniforms,
} from '../../lib/train/selection/select.js';
import { normal } from '../harness.js';
import { answer } from '../oracle.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-select-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

/** Unit rows: (2, B, D), images then texts; a text is its image plus noise. */
function unitRows(B: number, D: number, seed: number, noise: number): Float32Array {
  const rows = normal(2 * B * D, seed);
  for (let i = 0; i < B * D; i++) rows[B * D + i] = rows[i]! + noise * rows[B * D + i]!;
  for (let r = 0; r < 2 * B; r++) {
    const row = rows.subarray(r * D, (r + 1) * D),
      norm = Math.hypot(...row);
    row.forEach((v, d) => {
      row[d] = v / norm;
    });
  }
  return rows;
}

function embeddings(
  rows: Float32Array,
  B: number,
  D: number,
  [t, b]: readonly [number, number],
): PairEmbeddings {
  return {
    x: tensor(rows.subarray(0, B * D), [B, D]),
    y: tensor(rows.subarray(B * D), [B, D]),
    logScale: tensor(Float32Array.of(Math.log(t)), [1]),
    bias: tensor(Float32Array.of(b), [1]),
  };
}
function dispose(e: PairEmbeddings): void {
  for (const t of [e.x, e.y, e.logScale, e.bias]) t.dispose();
}
const options = (o: Partial<SelectionOptions> = {}): SelectionOptions => ({
  filterRatio: 0.5,
  chunks: 4,
  gain: 1,
  score: 'learnability',
  seed: 1,
  step: 0,
  ...o,
});
const bytes = (a: Float32Array | Float64Array): Uint8Array =>
  new Uint8Array(a.buffer, a.byteOffset, a.byteLength);

const cases: [SelectionScore, number, number, number, number][] = [
  ['learnability', 96, 0.5, 16, 100],
  ['learnability', 60, 0.8, 5, 20],
  ['easy-reference', 61, 0.75, 4, 20],
  ['learner', 64, 0.5, 1, 20],
];
test.each(cases)(
  '%s, super-batch %i, filter ratio %f, %i chunks: numpy chooses the same indices in %i super-batches',
  async (score, B, filterRatio, chunks, rounds) => {
    const D = [24, 40] as const,
      scales = [
        [12, -6],
        [20, -9],
      ] as const,
      gain = 1.5;
    const learner: Float32Array[] = [],
      reference: Float32Array[] = [],
      uniforms: Float64Array[] = [],
      got: number[] = [];
    for (let step = 0; step < rounds; step++) {
      learner.push(unitRows(B, D[0], 2 * step + 1, 1.5));
      reference.push(unitRows(B, D[1], 2 * step + 2, 0.7));
      for (let c = 0; c < chunks; c++) uniforms.push(selectionUniforms(B, 7, step, c));
      const l = embeddings(learner[step]!, B, D[0], scales[0]),
        r = embeddings(reference[step]!, B, D[1], scales[1]);
      got.push(
        ...(await selectBatch(l, r, options({ filterRatio, chunks, gain, score, seed: 7, step }))),
      );
      for (const e of [l, r]) dispose(e);
    }
    for (const [name, parts] of Object.entries({
      'learner.f32': learner,
      'reference.f32': reference,
      'uniforms.f64': uniforms,
    }))
      writeFileSync(join(folder, name), Buffer.concat(parts.map(bytes)));
    writeFileSync(
      join(folder, 'scale.f64'),
      bytes(
        Float64Array.from(
          scales.flat().map((v, i) => (i % 2 ? v : Math.exp(Math.fround(Math.log(v))))),
        ),
      ),
    );
    answer(`select-${score}-${B}`, {
      args: [
        join(packageRoot(), 'test/curation/select.py'),
        folder,
        ...[rounds, B, ...D, got.length / rounds, chunks, gain].map(String),
        score,
      ],
      writes: [join(folder, 'selected.i32')],
    });
    const file = readFileSync(join(folder, 'selected.i32'));
    expect(got).toEqual(Array.from({ length: file.length / 4 }, (_, i) => file.readInt32LE(4 * i)));
  },
);

test('a selection has no sample twice, repeats with its seed and step, and changes with either', async () => {
  const B = 64,
    e = embeddings(unitRows(B, 16, 5, 1), B, 16, [10, -5]),
    base = options({ score: 'learner' });
  const first = await selectBatch(e, null, base);
  expect(first.length).toBe(32);
  expect(new Set(first).size).toBe(32);
  expect(await selectBatch(e, null, base)).toEqual(first);
  expect(await selectBatch(e, null, { ...base, step: 1 })).not.toEqual(first);
  expect(await selectBatch(e, null, { ...base, seed: 2 })).not.toEqual(first);
  dispose(e);
});

test('memory: tiles, whatever the super-batch', async () => {
  const B = 8192,
    D = 32,
    e = embeddings(unitRows(B, D, 9, 1), B, D, [10, -10]);
  await synchronize();
  resetPeak();
  const before = memory().live;
  await selectBatch(e, null, options({ score: 'learner', filterRatio: 0.96, chunks: 2 }));
  const { peak, scratchPeak } = memory();
  expect(peak - before + scratchPeak).toBeLessThan(16 << 20); // the pair matrix has 256 MiB
  dispose(e);
});

test('options out of range and damaged embeddings are refused', async () => {
  const e = embeddings(unitRows(8, 4, 3, 1), 8, 4, [10, -5]),
    small = embeddings(unitRows(4, 4, 3, 1), 4, 4, [10, -5]);
  await expect(selectBatch(e, null, options())).rejects.toThrow(
    "the score learnability needs the reference's embeddings",
  );
  await expect(selectBatch(e, small, options())).rejects.toThrow('have 8 and 4 rows');
  await expect(selectBatch(e, e, options({ filterRatio: 1 }))).rejects.toThrow(
    'filterRatio must be in [0, 1) but is 1',
  );
  await expect(selectBatch(e, e, options({ chunks: 5 }))).rejects.toThrow(
    'from 1 to the batch of 4 but is 5',
  );
  await expect(selectBatch(e, e, options({ gain: NaN }))).rejects.toThrow('gain must be');
  await expect(selectBatch(e, e, options({ score: 'hard' as SelectionScore }))).rejects.toThrow(
    'but is hard',
  );
  e.x.write(new Float32Array(32).fill(NaN));
  await expect(selectBatch(e, null, options({ score: 'learner' }))).rejects.toThrow(
    'the score of sample 0 is NaN',
  );
  for (const t of [e, small]) dispose(t);
});
