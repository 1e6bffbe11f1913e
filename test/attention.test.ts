/** Packed sequences: the same numbers as one call for each sample, and layouts that do not fit the rows. */
import { afterAll, expect, test } from '@jest/globals';
import { ShapeError } from '../lib/errors.js';
import { attention, crossAttention, packed } from '../lib/ops/attention.js';
import { backward, requireGrad } from '../lib/tape.js';
import { liveCount, scope, synchronize, type Tensor, tensor, zeros } from '../lib/tensor.js';
import { normal, toBf16 } from './harness.js';

afterAll(() => expect(liveCount()).toBe(0));

const lengths = [0, 1, 63, 64, 65, 130],
  H = 2,
  D = 24,
  C = H * D,
  T = lengths.reduce((a, b) => a + b, 0);
const starts = lengths.map((_, s) => lengths.slice(0, s).reduce((a, b) => a + b, 0));
const bits = async (t: Tensor): Promise<number[]> => [...(await t.read())];

for (const dtype of ['f32', 'bf16'] as const) {
  const make = (x: Float32Array, shape: number[]) =>
    requireGrad(tensor(dtype === 'bf16' ? Uint16Array.from(x, toBf16) : x, shape));
  /** Output and gradient of attention over these rows, packed or as one dense sample. */
  const self = async (
    x: Float32Array,
    dy: Float32Array,
    sequences: number[] | null,
    causal: boolean,
  ) => {
    const made = scope(() => {
      const n = x.length / (3 * C),
        dense = sequences ? [] : [1];
      const qkv = make(x, [...dense, n, 3 * C]),
        layout = sequences && packed(sequences);
      const o = attention(qkv, H, { causal, packed: layout });
      return { o, dqkv: backward([[o, make(dy, [...dense, n, C])]]).get(qkv)! };
    });
    const result = [await bits(made.o), await bits(made.dqkv)];
    made.o.dispose();
    made.dqkv.dispose();
    return result;
  };

  test.each([false, true])(
    `packed self-attention gives each sample's own bits (${dtype}, causal %p)`,
    async (causal) => {
      const x = normal(T * 3 * C, 1),
        dy = normal(T * C, 2),
        all = await self(x, dy, lengths, causal),
        alone: number[][] = [[], []];
      for (const [s, n] of lengths.entries()) {
        const at = starts[s]!;
        const one = await self(
          x.slice(at * 3 * C, (at + n) * 3 * C),
          dy.slice(at * C, (at + n) * C),
          null,
          causal,
        );
        one.forEach((v, i) => alone[i]!.push(...v));
      }
      expect(all).toEqual(alone);
    },
  );

  test.each([1, 5])(
    `%i queries over packed keys give each sample's own bits (${dtype})`,
    async (Nq) => {
      const B = lengths.length,
        x = normal(T * 2 * C, 3),
        y = normal(B * Nq * C, 4),
        dy = normal(B * Nq * C, 5);
      const cross = async (
        q: Float32Array,
        kv: Float32Array,
        w: Float32Array,
        sequences: number[] | null,
      ) => {
        const made = scope(() => {
          const b = q.length / (Nq * C),
            n = kv.length / (2 * C),
            qs = make(q, [b, Nq, C]);
          const kvs = make(kv, sequences ? [n, 2 * C] : [1, n, 2 * C]);
          const o = crossAttention(qs, kvs, H, { packedKeys: sequences && packed(sequences) });
          const grads = backward([[o, make(w, [b, Nq, C])]]);
          return [o, grads.get(qs)!, grads.get(kvs)!];
        });
        const result = await Promise.all(made.map(bits));
        for (const t of made) t.dispose();
        return result;
      };
      const all = await cross(y, x, dy, lengths),
        alone: number[][] = [[], [], []];
      for (const [s, n] of lengths.entries()) {
        const rows = (v: Float32Array) => v.slice(s * Nq * C, (s + 1) * Nq * C);
        const one = await cross(
          rows(y),
          x.slice(starts[s]! * 2 * C, (starts[s]! + n) * 2 * C),
          rows(dy),
          null,
        );
        one.forEach((v, i) => alone[i]!.push(...v));
      }
      expect(all).toEqual(alone);
    },
  );
}

test.each([
  [[0, 3, 2, 8], 'number 1 has -1'],
  [[1, 3, 8], 'the first begins at row 1'],
  [[0, 3, 7], 'the last ends at row 7'],
  [[0, 3, 9], 'number 1 has 6'],
  [[0, -5, 8], 'number 0 has -5'],
  [[0, 8], 'number 0 has 8'],
  [[0, 2147483647, 8], 'number 0 has 2147483647'],
  [[3], 'the first begins at row 3'],
  [[0], 'the last ends at row 0'],
])('offsets %p over 8 rows are an error that says why', async (offsets, why) => {
  for (const run of [
    (o: Tensor) =>
      attention(tensor(normal(8 * 24, 1), [8, 24]), 1, { packed: { offsets: o, longest: 5 } }),
    (o: Tensor) =>
      crossAttention(zeros([1, 1, 8]), zeros([8, 16]), 1, {
        packedKeys: { offsets: o, longest: 5 },
      }),
  ]) {
    scope(() => {
      run(tensor(Int32Array.from(offsets), [offsets.length]));
    });
    await expect(synchronize()).rejects.toThrow(why);
  }
  await synchronize();
});

test('layouts of the wrong kind are refused at once', () =>
  scope(() => {
    const rows = zeros([6, 24]),
      { offsets, longest } = packed([4, 2]),
      keyLengths = tensor(Int32Array.of(1, 1), [2]);
    const refuse = (f: () => unknown, what: string) => {
      expect(f).toThrow(ShapeError);
      expect(f).toThrow(what);
    };
    refuse(
      () => attention(rows, 1, { packed: { offsets, longest }, keyLengths }),
      'exclude each other',
    );
    refuse(
      () => attention(zeros([1, 6, 24]), 1, { packed: { offsets, longest } }),
      'must have 2 axes',
    );
    refuse(() => attention(rows, 1), 'must have 3 axes');
    refuse(
      () => attention(rows, 1, { packed: { offsets, longest: 7 } }),
      'longest must be from 0 to 6',
    );
    refuse(
      () => attention(rows, 1, { packed: { offsets, longest: 1.5 } }),
      'longest must be from 0 to 6',
    );
    refuse(
      () => attention(rows, 1, { packed: { offsets: zeros([3]), longest } }),
      'offsets must be i32',
    );
    refuse(
      () => attention(rows, 1, { packed: { offsets: offsets.reshape([3, 1]), longest } }),
      'offsets must have 1 axes',
    );
    refuse(
      () => attention(rows, 1, { packed: { offsets: offsets.view(0, [0]), longest } }),
      'one entry more',
    );
    refuse(
      () =>
        crossAttention(zeros([3, 1, 8]), zeros([6, 16]), 1, { packedKeys: { offsets, longest } }),
      'q must be [1 or a multiple of 2',
    );
    refuse(() => packed([3, -1]), 'lengths must be integers');
    refuse(() => packed([2 ** 30, 2 ** 30]), 'less than 2³¹ rows');
  }));

test('packed() lays the sequences out', async () => {
  const layout = packed([3, 0, 5]);
  expect([...(await layout.offsets.read())]).toEqual([0, 3, 3, 8]);
  expect(layout.longest).toBe(5);
  layout.offsets.dispose();
});
