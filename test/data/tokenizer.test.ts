import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, test } from '@jest/globals';
import { packageFolder } from '../../lib/fs/packages.js';
import {
  collectIds,
  defaultTokenizerPath,
  EOS,
  GemmaTokenizer,
  type LowerMode,
  loadTokenizer,
  lowerCase,
} from '../../lib/text/tokenizer.js';
import { VocabMap } from '../../lib/text/vocab.js';
import { errorOf, withFolder } from './support.js';

/**
 * Short names and keywords in languages of more than twenty scripts, and what tends to go wrong.
 */
function captions(): string[] {
  const languages = [
    'en',
    'am',
    'ar',
    'as',
    'bn',
    'chr',
    'el',
    'gu',
    'he',
    'hi',
    'hy',
    'ja',
    'ka',
    'km',
    'kn',
    'ko',
    'lo',
    'ml',
    'mn',
    'my',
    'or',
    'pa',
    'ru',
    'si',
    'ta',
    'te',
    'th',
    'ug',
    'zh',
    'zh-Hant',
    'vi',
    'tr',
    'quc',
  ];
  const folder = packageFolder('cldr-annotations-full');
  const out = [
    '',
    ' ',
    '  two  spaces ',
    'A RED Cat',
    'ÄÖÜ İstanbul ΣΊΣΥΦΟΣ',
    '\n\ttab',
    'e\u0301 \u00e9 ﬁ Å',
    '\u0000',
    '\ud800 lone',
    '😀',
    '👩‍🚀🏽 family 👨‍👩‍👧‍👦',
    '🇩🇪🏴󠁧󠁢󠁥󠁮󠁧󠁿',
    '<pad> <eos> <bos> <unk> <start_of_turn>',
    '▁▁ marks',
    '1234567890 3.14 -7e10',
    '\u200f\u200b\ufeff',
    '𐍈𐌰 𒀀 𓀀',
    'a'.repeat(500),
    'word '.repeat(100),
    '猫'.repeat(90),
  ];
  for (const language of languages) {
    const file = path.join(folder, 'annotations', language, 'annotations.json');
    const { annotations } = (
      JSON.parse(fs.readFileSync(file, 'utf8')) as {
        annotations: { annotations: Record<string, { default?: string[]; tts?: string[] }> };
      }
    ).annotations;
    for (const item of Object.values(annotations)
      .slice(40, 640)
      .filter((_, i) => i % 60 === 0)) {
      out.push(item.tts?.[0] ?? '', item.default?.join(', ') ?? '');
    }
  }
  return out;
}

test('both libraries give the same ids on hundreds of captions in 30 scripts', async () => {
  const list = captions();
  expect(list.length).toBeGreaterThan(500);
  const rust = await loadTokenizer({ backend: 'tokenizers' });
  const plain = await loadTokenizer({ backend: '@huggingface/tokenizers' });
  const [a, b] = [await rust.encodeBatch(list), await plain.encodeBatch(list)];
  expect(a.length).toBe(list.length * 64);
  list.forEach((caption, i) => {
    expect([caption, ...a.subarray(i * 64, (i + 1) * 64)]).toEqual([
      caption,
      ...b.subarray(i * 64, (i + 1) * 64),
    ]);
  });
  const [empty, , , cat] = await rust.idsOf(list.slice(0, 4));
  expect([...(empty as Int32Array)]).toEqual([EOS]);
  expect([...(cat as Int32Array)]).toEqual([235250, 3118, 4401, 1]);
  const [long] = await rust.idsOf(['word '.repeat(100)]);
  expect([long?.length, long?.at(-1), long?.includes(2)]).toEqual([64, EOS, false]);

  // The same caption comes from the cache, and a batch with repeats is as one by one.
  expect(await rust.encodeBatch(['a cat', 'a cat'])).toEqual(
    Int32Array.from([
      ...(await rust.encodeBatch(['a cat'])),
      ...(await rust.encodeBatch(['a cat'])),
    ]),
  );

  const kept = await collectIds(rust, ['a red cat', 'rotes Auto']);
  const vocab = VocabMap.fromIds(kept);
  const encode = async (texts: string[]): Promise<Int32Array[]> =>
    (await rust.idsOf(texts)).map((ids) => ids.slice(0, -1));
  const copy = VocabMap.fromJSON(JSON.parse(JSON.stringify(vocab)));
  const small = new GemmaTokenizer(
    'tokenizers',
    { encode },
    { length: 16, vocab: copy, cacheSize: 100 },
  );
  const full = await rust.idsOf(['a red cat', 'rotes Auto', 'a zebra']);
  const dense = await small.idsOf(['a red cat', 'rotes Auto', 'a zebra']);
  for (const k of [0, 1])
    expect(Array.from(dense[k] as Int32Array, (id) => vocab.toFull(id))).toEqual([
      ...(full[k] as Int32Array),
    ]);
  expect(dense[2]?.includes(3)).toBe(true);
}, 60_000);

test('ids are those of the two libraries by the published recipe, without our own code in between', async () => {
  // The recipe, written out: lower-case, no BOS, EOS last even when cut to 64, zeros behind.
  const list = captions();
  const scripts = [
    'Arab',
    'Armn',
    'Beng',
    'Cher',
    'Cyrl',
    'Deva',
    'Ethi',
    'Geor',
    'Grek',
    'Gujr',
    'Guru',
    'Hang',
    'Hani',
    'Hebr',
    'Hira',
    'Kana',
    'Khmr',
    'Knda',
    'Laoo',
    'Latn',
    'Mlym',
    'Mymr',
    'Orya',
    'Sinh',
    'Taml',
    'Telu',
    'Thai',
  ];
  const text = list.join('');
  expect(scripts.filter((s) => !new RegExp(`\\p{Script=${s}}`, 'u').test(text))).toEqual([]);
  // Released files list the symbols of the SentencePiece model; this copy has them in the vocabulary alone.
  const file = JSON.parse(fs.readFileSync(defaultTokenizerPath(), 'utf8')) as {
    added_tokens: object[];
    model: { vocab: Record<string, number> };
  };
  const symbols = Object.entries(file.model.vocab).filter(
    ([, id]) => (id >= 4 && id <= 216) || id >= 255968,
  );
  const rest = {
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: false,
  };
  file.added_tokens.push(...symbols.map(([content, id]) => ({ id, content, ...rest })));
  const json = JSON.stringify(file);
  const pad = (ids: ArrayLike<number>): number[] => {
    const kept = [...Array.from(ids).slice(0, 63), EOS];
    return [...kept, ...new Array<number>(64 - kept.length).fill(0)];
  };
  const whole = (caption: string): string => caption.replace(/\p{Surrogate}/gu, '\ufffd');
  const { Tokenizer: Rust } = await import('tokenizers');
  const { Tokenizer: Plain } = await import('@huggingface/tokenizers');
  const rust = Rust.fromString(json),
    plain = new Plain(JSON.parse(json) as object, {});
  for (const lower of ['unicode', 'none'] as const) {
    const ours = await (await loadTokenizer({ lower })).encodeBatch(list);
    for (const [i, caption] of list.entries()) {
      const input =
        lower === 'unicode'
          ? [...whole(caption)].map((c) => c.toLowerCase()).join('')
          : whole(caption);
      const row = [...ours.subarray(i * 64, (i + 1) * 64)];
      expect([caption, row]).toEqual([
        caption,
        pad(plain.encode(input, { add_special_tokens: false }).ids),
      ]);
      expect([caption, row]).toEqual([
        caption,
        pad((await rust.encode(input, null, { addSpecialTokens: false })).getIds()),
      ]);
    }
  }
}, 120_000);

test('lower-casing is character by character', () => {
  expect(lowerCase('ABC ÄÖ Σ', 'ascii')).toBe('abc ÄÖ Σ');
  expect(lowerCase('ΟΔΟΣ ΣΑΣ İß', 'unicode')).toBe(
    [...'ΟΔΟΣ ΣΑΣ İß'].map((c) => c.toLowerCase()).join(''),
  );
  expect(lowerCase('ABC ÄÖ Σ', 'none')).toBe('ABC ÄÖ Σ');
});

/** A vocabulary of single characters, with the special tokens where Gemma has them. */
function tinyJson(more: object = {}): string {
  const special = ['<pad>', '<eos>', '<bos>', '<unk>'];
  const characters = [...'▁abcdefghijklmnopqrstuvwxyz<>ABCDEOSδοσςΔΟΣä'];
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [
        { SpecialToken: { id: '<bos>', type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
      ],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 0 } }],
      special_tokens: { '<bos>': { id: '<bos>', ids: [2], tokens: ['<bos>'] } },
    },
    decoder: null,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: false,
      vocab: Object.fromEntries([...special, ...characters].map((piece, id) => [piece, id])),
      merges: [],
    },
    ...more,
  });
}

const BACKENDS = ['tokenizers', '@huggingface/tokenizers'] as const;

test.each(BACKENDS)(
  '%s: what a file says of padding and truncation changes nothing',
  (backend) =>
    withFolder(async (folder) => {
      const texts = ['', 'a dog', 'a dog runs far a dog runs far', 'a'.repeat(90)],
        file = path.join(folder, 'tokenizer.json');
      const ids = async (json: string): Promise<number[][]> => {
        fs.writeFileSync(file, json);
        const tokenizer = await loadTokenizer({ path: file, backend, length: 12 });
        const together = await tokenizer.encodeBatch(texts),
          alone: number[] = [];
        tokenizer.withLength(13);
        for (const text of texts)
          alone.push(
            ...(await (
              await loadTokenizer({ path: file, backend, length: 12 })
            ).encodeBatch([text])),
          );
        expect(alone).toEqual([...together]);
        return texts.map((_, i) => [...together.subarray(i * 12, (i + 1) * 12)]);
      };
      const want = await ids(tinyJson());
      expect(want[1]).toEqual([5, 4, 8, 19, 11, 1, 0, 0, 0, 0, 0, 0]);
      expect(want.map((row) => [row.filter((id) => id === 1).length, row.indexOf(1)])).toEqual([
        [1, 0],
        [1, 5],
        [1, 11],
        [1, 11],
      ]);
      const paddings = ['BatchLongest', { Fixed: 64 }, { Fixed: 3 }].flatMap((strategy) =>
        ['Left', 'Right'].map((direction) => ({
          strategy,
          direction,
          pad_to_multiple_of: direction === 'Left' ? 8 : null,
          pad_id: 3,
          pad_type_id: 0,
          pad_token: '<unk>',
        })),
      );
      const truncations = ['LongestFirst', 'OnlyFirst', 'OnlySecond'].flatMap((strategy) =>
        ['Left', 'Right'].flatMap((direction) =>
          [2, 64].map((max_length) => ({ strategy, direction, max_length, stride: 0 })),
        ),
      );
      for (const padding of [null, ...paddings]) {
        for (const truncation of [null, ...truncations])
          expect({
            padding,
            truncation,
            ids: await ids(tinyJson({ padding, truncation })),
          }).toEqual({ padding, truncation, ids: want });
      }
    }),
  60_000,
);

test.each(BACKENDS)('%s: lower-casing comes after special tokens are split off', (backend) =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'tokenizer.json');
    const pieces = async (text: string, lower: LowerMode, more: object = {}): Promise<string> => {
      fs.writeFileSync(file, tinyJson(more));
      const vocab = Object.entries(
        (JSON.parse(tinyJson()) as { model: { vocab: Record<string, number> } }).model.vocab,
      );
      const [ids] = await (await loadTokenizer({ path: file, backend, lower })).idsOf([text]);
      return [...ids!].map((id) => vocab.find(([, i]) => i === id)![0]).join(' ');
    };
    expect(await pieces('a <EOS> DOG', 'unicode')).toBe('a ▁ < e o s > ▁ d o g <eos>');
    expect(await pieces('a <EOS> DOG', 'ascii')).toBe('a ▁ < e o s > ▁ d o g <eos>');
    expect(await pieces('a <EOS> D', 'none')).toBe('a ▁ < E O S > ▁ D <eos>');
    expect(await pieces('<eos>A<Bos>', 'unicode')).toBe('<eos> a < b o s > <eos>');
    expect(await pieces('<EOS>', 'unicode')).toBe('< e o s > <eos>');
    expect(await pieces('<eos><EOS><eos>', 'ascii')).toBe('<eos> < e o s > <eos> <eos>');
    expect(await pieces('ΟΔΟΣ', 'unicode')).toBe('ο δ ο σ <eos>');
    expect(await pieces('ΟΔΟΣ B', 'ascii')).toBe('Ο Δ Ο Σ ▁ b <eos>');
    expect(await pieces('Ä', 'unicode')).toBe('ä <eos>');
    // Without a normaliser of its own, and with one that lower-cases already.
    expect(await pieces('AB', 'unicode', { normalizer: null })).toBe('a b <eos>');
    expect(
      await pieces('ΟΔΟΣ B', 'unicode', {
        normalizer: {
          type: 'Sequence',
          normalizers: [
            { type: 'Lowercase' },
            { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
          ],
        },
      }),
    ).toBe('ο δ ο σ ▁ b <eos>');
  }),
);

test(
  'ids of transformers for texts in many languages, and a tokenizer that transformers saved after a padded call',
  () =>
    withFolder(async (folder) => {
      type Golden = {
        length: number;
        rows: { text: string | [string, number]; siglip2: number[]; gemma?: number[] }[];
      };
      const { length, rows } = JSON.parse(
        fs.readFileSync('test/goldens/token_ids.json', 'utf8'),
      ) as Golden;
      const texts = rows.map(({ text }) =>
        typeof text === 'string' ? text : text[0].repeat(text[1]).trim(),
      );
      expect(texts.length).toBeGreaterThan(90);
      const padded = path.join(folder, 'tokenizer.json');
      fs.writeFileSync(
        padded,
        JSON.stringify({
          ...(JSON.parse(fs.readFileSync(defaultTokenizerPath(), 'utf8')) as object),
          truncation: { direction: 'Right', max_length: 64, strategy: 'LongestFirst', stride: 0 },
          padding: {
            strategy: { Fixed: 64 },
            direction: 'Right',
            pad_to_multiple_of: null,
            pad_id: 0,
            pad_type_id: 0,
            pad_token: '<pad>',
          },
        }),
      );
      for (const file of [defaultTokenizerPath(), padded]) {
        for (const backend of BACKENDS) {
          for (const [lower, column] of [
            ['unicode', 'siglip2'],
            ['none', 'gemma'],
          ] as const) {
            const ids = await (
              await loadTokenizer({ path: file, backend, lower, length })
            ).encodeBatch(texts);
            rows.forEach((row, i) => {
              const want = row[column];
              if (want)
                expect([texts[i], ...ids.subarray(i * length, (i + 1) * length)]).toEqual([
                  texts[i],
                  ...want,
                  ...Array<number>(length - want.length).fill(0),
                ]);
            });
          }
        }
      }
    }),
  120_000,
);

test('an id beyond the rows of the token table is an error that says whose fault it is', async () => {
  const tokenizer = new GemmaTokenizer(
    'tokenizers',
    { encode: async (texts) => texts.map(() => [7, 61]) },
    { length: 4, rows: 61 },
  );
  expect(await errorOf(() => tokenizer.idsOf(['a']))).toMatchObject({
    code: 'ERR_DATA',
    message: expect.stringMatching(/id 61 .* 61 rows; its tokenizer.json is of another model/),
  });
});

test('the cache is bounded', async () => {
  let calls = 0;
  const count = async (texts: string[]): Promise<number[][]> =>
    texts.map((text) => (calls++, [text.length]));
  const tokenizer = new GemmaTokenizer(
    'tokenizers',
    { encode: count },
    { length: 4, cacheSize: 2 },
  );
  for (const text of ['a', 'b', 'a', 'c', 'a', 'b']) await tokenizer.idsOf([text]);
  expect(calls).toBe(4);
});

test('a trimmed vocabulary maps there and back, and refuses damaged tables', async () => {
  const map = VocabMap.fromIds([900, 17, 17, 4]);
  expect([...map.inverse()]).toEqual([0, 1, 2, 3, 4, 17, 900]);
  expect([map.size, map.toDense(17), map.toDense(18), map.toDense(1e6), map.toFull(6)]).toEqual([
    7, 5, 3, 3, 900,
  ]);
  expect([...VocabMap.fromJSON(JSON.parse(JSON.stringify(map))).inverse()]).toEqual([
    ...map.inverse(),
  ]);
  for (const bad of [
    null,
    {},
    { ids: [5, 6] },
    { ids: [0, 1, 2, 3, 9, 8] },
    { ids: [0, 1, 2, 3, 3] },
    { ids: [0, 1, 2, 3, 1e9] },
    { ids: [0, 1, 2, 3, '4'] },
  ]) {
    expect((await errorOf(() => VocabMap.fromJSON(bad))).code).toBe('ERR_DATA');
  }
  expect((await errorOf(() => map.toFull(7))).code).toBe('ERR_DATA');
});

test('a missing or foreign tokenizer.json is an error that names it', () =>
  withFolder(async (folder) => {
    expect(defaultTokenizerPath()).toMatch(/tokenizer\.json$/);
    const missing = path.join(folder, 'tokenizer.json');
    expect((await errorOf(() => loadTokenizer({ path: missing }))).message).toContain(missing);
    fs.writeFileSync(missing, '{"model": 1}');
    const error = await errorOf(() => loadTokenizer({ path: missing }));
    expect([error.code, error.message.includes(missing)]).toEqual(['ERR_DATA', true]);
    expect((await errorOf(() => loadTokenizer({ length: 0 }))).code).toBe('ERR_CONFIG');
    expect((await errorOf(() => packageFolder('no-such-package'))).message).toContain(
      'npm install no-such-package',
    );
  }));
