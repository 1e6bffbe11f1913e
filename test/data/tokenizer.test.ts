import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, test } from '@jest/globals';
import { packageFolder } from '../../lib/data/packages.js';
import {
  collectIds,
  defaultTokenizerPath,
  GemmaTokenizer,
  kEos,
  loadTokenizer,
  lowerAscii,
} from '../../lib/data/tokenizer.js';
import { VocabMap } from '../../lib/data/vocab.js';
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
  expect([...(empty as Int32Array)]).toEqual([kEos]);
  expect([...(cat as Int32Array)]).toEqual([235250, 3118, 4401, 1]);
  const [long] = await rust.idsOf(['word '.repeat(100)]);
  expect([long?.length, long?.at(-1), long?.includes(2)]).toEqual([64, kEos, false]);

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
  const small = new GemmaTokenizer('tokenizers', encode, 16, 'ascii', copy, 100);
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
  const scripts = ['Arab', 'Armn', 'Beng', 'Cher', 'Cyrl', 'Deva', 'Ethi', 'Geor', 'Grek', 'Gujr', 'Guru', 'Hang', 'Hani', 'Hebr',
    'Hira', 'Kana', 'Khmr', 'Knda', 'Laoo', 'Latn', 'Mlym', 'Mymr', 'Orya', 'Sinh', 'Taml', 'Telu', 'Thai'];
  const text = list.join('');
  expect(scripts.filter((s) => !new RegExp(`\\p{Script=${s}}`, 'u').test(text))).toEqual([]);
  const json = fs.readFileSync(defaultTokenizerPath(), 'utf8');
  const pad = (ids: ArrayLike<number>): number[] => {
    const kept = [...Array.from(ids).slice(0, 63), kEos];
    return [...kept, ...new Array<number>(64 - kept.length).fill(0)];
  };
  const whole = (caption: string): string => caption.replace(/\p{Surrogate}/gu, '\ufffd');
  const { Tokenizer: Rust } = await import('tokenizers');
  const { Tokenizer: Plain } = await import('@huggingface/tokenizers');
  const rust = Rust.fromString(json), plain = new Plain(JSON.parse(json) as object, {});
  for (const lower of ['unicode', 'none'] as const) {
    const ours = await (await loadTokenizer({ lower })).encodeBatch(list);
    for (const [i, caption] of list.entries()) {
      const input = lower === 'unicode' ? whole(caption).toLowerCase() : whole(caption);
      const row = [...ours.subarray(i * 64, (i + 1) * 64)];
      expect([caption, row]).toEqual([caption, pad(plain.encode(input, { add_special_tokens: false }).ids)]);
      expect([caption, row]).toEqual([caption, pad((await rust.encode(input, null, { addSpecialTokens: false })).getIds())]);
    }
  }
}, 120_000);

test('lower-casing modes', async () => {
  expect(lowerAscii('ABC ÄÖ Σ')).toBe('abc ÄÖ Σ');
  const seen: string[] = [];
  const echo = async (texts: string[]): Promise<number[][]> =>
    texts.map((text) => (seen.push(text), [7]));
  for (const mode of ['ascii', 'unicode', 'none'] as const) {
    await new GemmaTokenizer('tokenizers', echo, 4, mode, undefined, 10).idsOf(['AÄ']);
  }
  expect(seen).toEqual(['aÄ', 'aä', 'AÄ']);
});

test('the cache is bounded', async () => {
  let calls = 0;
  const count = async (texts: string[]): Promise<number[][]> =>
    texts.map((text) => (calls++, [text.length]));
  const tokenizer = new GemmaTokenizer('tokenizers', count, 4, 'none', undefined, 2);
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
