/** Boxes as text, regions of a sample, queries for a detector, and the decoder's sequences. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Random } from '../../lib/random.js';
import { liveCount } from '../../lib/tensor.js';
import {
  type Box,
  checkBoxFormat,
  defaultBoxFormat,
  formatBox,
  iou,
  ngramQueries,
  parseBox,
  parseRegions,
  type Region,
  sampleRegions,
} from '../../lib/text/regions.js';
import { decoderSequences, sequenceVocabulary } from '../../lib/text/sequences.js';
import { collectIds, type GemmaTokenizer, loadTokenizer } from '../../lib/text/tokenizer.js';
import { VocabMap } from '../../lib/text/vocab.js';

afterAll(() => expect(liveCount()).toBe(0));

describe('boxes as text', () => {
  test('left, bottom, right, top in 500ths; clamped; read back', () => {
    expect(formatBox([0.1, 0.2, 0.55, 1])).toBe('[50, 500, 275, 100]');
    expect(formatBox([-3, 0, 2, 0.9991])).toBe('[0, 500, 500, 0]');
    expect(parseBox('aref: a dog : [50, 500, 275, 100]')).toEqual([0.1, 0.2, 0.55, 1]);
  });
  test('another order and other bins', () => {
    const format = { bins: 1000, order: [1, 0, 3, 2] as const };
    expect(formatBox([0.1, 0.2, 0.3, 0.4], format)).toBe('[200, 100, 400, 300]');
    expect(parseBox('[200, 100, 400, 300]', format)).toEqual([0.1, 0.2, 0.3, 0.4]);
    expect(() => checkBoxFormat({ bins: 0, order: [0, 1, 2, 3] })).toThrow(/bins/);
    expect(() => checkBoxFormat({ bins: 5, order: [0, 1, 2, 2] })).toThrow(/permutation/);
  });
  test('every box comes back to half a bin', () => {
    const r = new Random(1);
    for (let i = 0; i < 200; i++) {
      const [a, b, c, d] = [r.uniform(), r.uniform(), r.uniform(), r.uniform()];
      const box: Box = [Math.min(a, b), Math.min(c, d), Math.max(a, b), Math.max(c, d)];
      parseBox(formatBox(box))!.forEach((v, k) =>
        expect(Math.abs(v - box[k as 0])).toBeLessThanOrEqual(0.5 / 500 + 1e-12),
      );
    }
  });
  test('no box: other text, three numbers, corners out of order; numbers beyond the bins are clamped', () => {
    for (const text of [
      '',
      'a dog',
      '[1, 2, 3]',
      '[1, 2, 3, x]',
      '[400, 100, 300, 50]',
      '[1, 100, 300, 200]',
    ])
      expect(parseBox(text)).toBeUndefined();
    expect(parseBox('[0, 999999, 500, 0]')).toEqual([0, 0, 1, 1]);
  });
  test('iou', () => {
    expect(iou([0, 0, 1, 1], [0, 0, 1, 1])).toBe(1);
    expect(iou([0, 0, 0.5, 1], [0.25, 0, 0.75, 1])).toBeCloseTo(1 / 3);
    expect(iou([0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1])).toBe(0);
    expect(iou([0, 0, 0, 0], [0, 0, 0, 0])).toBe(0);
  });
});

describe('regions of a sample', () => {
  const region = (o: object = {}) => ({
    box: [0.1, 0.1, 0.5, 0.5],
    score: 0.9,
    phrase: 'a cat',
    ...o,
  });
  test('clamped to the image; outside, empty and blank ones are left out; a missing score is 1', () => {
    const got = parseRegions(
      {
        regions: [
          region(),
          region({ box: [-0.2, 0.5, 0.3, 1.4] }),
          region({ box: [1.2, 0, 1.5, 1] }),
          region({ box: [0.2, 0.2, 0.2, 0.9] }),
          region({ phrase: '  ' }),
          { box: [0, 0, 1, 1], phrase: ' all ', lang: 'en' },
        ],
      },
      'x',
    );
    expect(got).toEqual([
      region(),
      region({ box: [0, 0.5, 0.3, 1] }),
      { box: [0, 0, 1, 1], score: 1, phrase: 'all', lang: 'en' },
    ]);
    expect(parseRegions({}, 'x')).toEqual([]);
  });
  test.each([
    [{ box: [0, 0, 1] }],
    [{ box: [0, 0, 1, NaN] }],
    [{ box: 'all' }],
    [{ box: [0.5, 0, 0.1, 1] }],
    [{ score: 2 }],
    [{ score: 'high' }],
    [{ phrase: 3 }],
  ])('damaged: %j', (o) =>
    expect(() => parseRegions({ regions: [region(o)] }, 'shard.tar:7')).toThrow(
      /^shard\.tar:7: regions\[0\]: /,
    ),
  );
  test('not a list', () =>
    expect(() => parseRegions({ regions: 'no' }, 'x')).toThrow(/must be a list/));
  test('sampling: by score, seeded, each pair its own', () => {
    const all: Region[] = [0.1, 0.29, 0.3, 0.8].map((score) => ({
      box: [0, 0, 1, 1],
      score,
      phrase: String(score),
    }));
    const seen = new Set<string>();
    for (let i = 0; i < 60; i++) {
      const pair = sampleRegions(all, new Random(4, i))!;
      expect(sampleRegions(all, new Random(4, i))).toEqual(pair);
      seen.add(`${pair.aref.phrase} ${pair.gcap.phrase}`);
    }
    expect([...seen].sort()).toEqual(['0.3 0.3', '0.3 0.8', '0.8 0.3', '0.8 0.8']);
    expect(sampleRegions(all, new Random(1), 0.9)).toBeUndefined();
  });
});

describe('queries for a detector', () => {
  test('lower case, generic words and punctuation dropped, no stop-words alone, short ones first', () =>
    expect(ngramQueries('Photo of The Red-Brick House, free download')).toEqual([
      'red-brick',
      'house',
      'the red-brick',
      'red-brick house',
      'of the red-brick',
      'the red-brick house',
      'of the red-brick house',
    ]));
  test('at most ten words and 300 queries, also of 10,000 characters', () => {
    const words = Array.from({ length: 2000 }, (_, i) => `w${i}`)
      .join(' ')
      .slice(0, 10000);
    expect(ngramQueries(words)).toHaveLength(300);
    const twelve = ngramQueries(Array.from({ length: 12 }, (_, i) => `w${i}`).join(' '));
    expect(Math.max(...twelve.map((q) => q.split(' ').length))).toBe(10);
    expect(ngramQueries('')).toEqual([]);
    expect(ngramQueries('the a of and')).toEqual([]);
  });
});

describe('sequences', () => {
  let tokenizer: GemmaTokenizer;
  const box: Box = [0.1, 0.2, 0.5, 0.6];
  beforeAll(async () => {
    tokenizer = await loadTokenizer();
  });

  test('what the tasks say', async () => {
    const [cap, aref, gcap] = await decoderSequences(
      tokenizer,
      [
        { task: 'cap', text: 'A  Red Apple' },
        { task: 'aref', text: 'a dog', box },
        { task: 'gcap', text: 'a dog', box },
      ],
      64,
    );
    const text = (s: typeof cap) => tokenizer.decode(s!.ids);
    expect(await text(cap!)).toBe('cap: a red apple');
    expect(await text(aref!)).toBe('aref: a dog : [50, 300, 250, 100]');
    expect(await text(gcap!)).toBe('gcap: [50, 300, 250, 100] : a dog');
    for (const s of [cap, aref, gcap]) expect(s!.ids.at(-1)).toBe(1);
    expect(await tokenizer.decode(aref!.ids.subarray(0, aref!.prefix))).toBe('aref:');
    expect(parseBox(await text(aref!))).toEqual([0.1, 0.2, 0.5, 0.6]);
  });
  test('a query is the beginning of what was learnt', async () => {
    const [whole, where] = await decoderSequences(
      tokenizer,
      [
        { task: 'aref', text: 'two dogs', box },
        { task: 'gcap', text: 'two dogs', box },
      ],
      64,
    );
    const [asked, what] = await decoderSequences(
      tokenizer,
      [
        { task: 'aref', text: 'two dogs' },
        { task: 'gcap', box },
      ],
      64,
      { query: true },
    );
    expect([...whole!.ids.subarray(0, asked!.ids.length)]).toEqual([...asked!.ids]);
    expect([...where!.ids.subarray(0, what!.ids.length)]).toEqual([...what!.ids]);
    expect(await tokenizer.decode(asked!.ids)).toBe('aref: two dogs :');
  });
  test('a query that is too long leaves room for the box, as what was learnt did', async () => {
    const text = 'a very small dog beside '.repeat(20);
    for (const corner of [1, 0.418]) {
      const [learnt] = await decoderSequences(
        tokenizer,
        [{ task: 'aref', text, box: [corner, corner, 1, 1] }],
        64,
      );
      const [asked] = await decoderSequences(tokenizer, [{ task: 'aref', text }], 64, {
        query: true,
      });
      const [where] = await tokenizer.idsOf([` ${formatBox([corner, corner, 1, 1])}`]);
      expect(asked!.ids.length + where!.length).toBeLessThanOrEqual(64);
      expect(learnt!.ids.subarray(0, asked!.ids.length - 1)).toEqual(asked!.ids.subarray(0, -1));
    }
  });
  test('10,000 characters: the text is cut, box and end mark stay; blank texts and nulls are nulls', async () => {
    const long = 'banana '.repeat(1430);
    const all = await decoderSequences(
      tokenizer,
      [
        { task: 'aref', text: long, box },
        { task: 'gcap', text: long, box },
        { task: 'cap', text: long },
        { task: 'cap', text: ' ' },
        null,
      ],
      48,
    );
    for (const s of all.slice(0, 3)) expect([s!.ids.length, s!.ids.at(-1)]).toEqual([48, 1]);
    for (const s of all.slice(0, 2))
      expect(parseBox(await tokenizer.decode(s!.ids))).toEqual([0.1, 0.2, 0.5, 0.6]);
    expect(all.slice(3)).toEqual([null, null]);
  });
  test('no room for a box, no box, no phrase', async () => {
    await expect(
      decoderSequences(tokenizer, [{ task: 'aref', text: 'a', box }], 12),
    ).rejects.toThrow(/raise decoder\.length/);
    await expect(decoderSequences(tokenizer, [{ task: 'gcap', text: 'a' }], 64)).rejects.toThrow(
      /needs a box/,
    );
    await expect(decoderSequences(tokenizer, [{ task: 'aref', box }], 64)).rejects.toThrow(
      /needs a text/,
    );
  });
  test('a trimmed vocabulary with the fixed parts can write every box', async () => {
    const vocab = VocabMap.fromIds(await collectIds(tokenizer, sequenceVocabulary()));
    expect(vocab.size).toBeLessThan(100);
    const small = await loadTokenizer({ vocab });
    const [s] = await decoderSequences(
      small,
      [{ task: 'gcap', text: 'zebra', box: [0, 0.418, 0.738, 0.996] }],
      64,
    );
    expect(await small.decode(s!.ids)).toMatch(/^gcap: \[0, 498, 369, 209\] :/);
    expect(defaultBoxFormat.bins).toBe(500);
  });
});
