import { expect, test } from '@jest/globals';
import type { EvaluationSet, ReportData } from '../../lib/eval/report/report.js';
import { renderReport } from '../../lib/eval/report/report.js';

const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC' +
    'hwGA60e6kgAAAABJRU5ErkJggg==',
  'base64',
);
const HOSTILE = '</style><script>alert("1")</script>\'&amp;';

const scores = (top1: number): EvaluationSet['languages'][string] => ({
  top1,
  top5: Math.min(1, 2 * top1),
  t2i_r1: top1 / 2,
  i2t_r1: top1 / 3,
});

function sample(): ReportData {
  const set = (top1: number, pixel: number): EvaluationSet => ({
    classes: 700,
    n: 2100,
    chance: 1 / 700,
    pixel_1nn: pixel,
    languages: { de: scores(0.1), en: scores(top1), ar: scores(0.2) },
  });
  return {
    title: 'A run',
    date: new Date('2026-01-02T03:04:05Z'),
    seed: 7,
    device: 'cpu',
    command: 'npm run quickstart',
    model: { name: 'micro', parameters: 5140354, imageSize: 64 },
    sets: {
      'seen-placed': set(0.4, 0.01),
      'unseen-studio-placed': set(0.09, 0.02),
      'unseen-studio-plain': set(0.1, 0.3),
    },
    train: {
      seconds: 124,
      images: 128000,
      images_per_second: 1032,
      steps: 2000,
      batch: 64,
      studios: ['Noto', 'Twemoji'],
      heldOut: 'FxEmojis',
    },
    curve: Array.from({ length: 2000 }, (_, i) => ({
      step: i + 1,
      loss: 1 + 9 * Math.exp(-i / 100),
      lr: 1e-3 * (1 - i / 2000),
    })),
    galleries: [
      {
        set: 'seen-placed',
        retrievals: [
          {
            query: 'dog',
            lang: 'en',
            results: [
              { png: PNG, correct: true, label: 'dog face' },
              { png: PNG, correct: false, label: 'cat' },
            ],
          },
          { query: 'كلب', lang: 'ar', results: [{ png: PNG, correct: true, label: 'dog face' }] },
        ],
      },
      {
        set: 'unseen-studio-placed',
        retrievals: [
          { query: 'Hund', lang: 'de', results: [{ png: PNG, correct: false, label: 'cat' }] },
        ],
      },
    ],
    attributions: [
      {
        name: 'Noto Emoji',
        license: 'Apache-2.0',
        author: 'Google',
        url: 'https://example.org/noto',
      },
    ],
  };
}

const VOID = new Set(['meta', 'img', 'input', 'br', 'path', 'polyline']);

/** Throws unless every element is closed in order. */
function checkNesting(html: string): void {
  const open: string[] = [];
  for (const [tag, slash, name] of html
    .replace(/<style>.*?<\/style>/s, '')
    .matchAll(/<(\/?)([a-z][a-z0-9]*)[^>]*>/g)) {
    if (slash) expect([tag, open.pop()]).toEqual([tag, name]);
    else if (!VOID.has(name!)) open.push(name!);
  }
  expect(open).toEqual([]);
}

test('one self-contained file with every part', () => {
  const html = renderReport(sample());
  checkNesting(html);
  expect(html).toMatch(/^<!doctype html>/);
  expect(html).not.toMatch(/<script|<link|@import|url\(|\son[a-z]+=/i);
  expect(html).not.toMatch(/src="(?!data:image\/png;base64,)/i);
  expect(html).toContain('2026-01-02 03:04 UTC');
  expect(html).toContain('5.1 M parameters');
  expect(html).toContain('2 min 4 s: 2,000 steps of 64, 128,000 images, 1,032 images/s');
  expect(html).toContain(`data:image/png;base64,${PNG.toString('base64')}`);
  expect(html).toContain('<bdi lang="ar" dir="rtl">كلب</bdi>');
  expect(html).toContain(
    '<bdi lang="en" dir="ltr">dog</bdi>\n<small>English · 1 of 2 ' + 'right</small>',
  );
  expect(html).toMatch(
    /What typed words find: seen studios, placed<\/h2>[^§]*best first, of 2,100\.[^§]*<b>2 of 3<\/b>/,
  );
  expect(html).toMatch(/What typed words find: unseen studio, placed<\/h2>[^§]*<b>0 of 1<\/b>/);
  expect(html).toContain(
    '<a href="https://example.org/noto" rel="noreferrer">Noto Emoji</a> by ' + 'Google: Apache-2.0',
  );
  expect(html).toContain('40.0\u00a0%');
  expect(html).toContain('40× the pixel neighbour.<br>280× chance.');
  expect(html).toContain('0.14\u00a0%');
  expect(html.match(/<table>/g)).toHaveLength(3);
  expect(html).toContain('<code>npm run quickstart</code>');
});

test('languages are sorted by top-1', () => {
  const table = /<tbody>(.*?)<\/tbody>/s.exec(renderReport(sample()))![1]!;
  expect([...table.matchAll(/<th scope="row">(\w+)/g)].map(([, name]) => name)).toEqual([
    'English',
    'Arabic',
    'German',
  ]);
});

test('a better pixel neighbour is said plainly', () => {
  const html = renderReport(sample());
  expect(html).toContain('Below the pixel neighbour, which is 3.0× as good here.');
  expect(html).toContain('The pixel neighbour beats the model on: unseen studio, plain.');
  const { sets, ...rest } = sample();
  const good = renderReport({ ...rest, sets: { 'seen-placed': sets['seen-placed']! } });
  expect(good).not.toContain('beats the model');
});

test('hostile text stays text', () => {
  const data = sample();
  const plain = data.sets['seen-placed']!;
  const html = renderReport({
    ...data,
    title: HOSTILE,
    device: HOSTILE,
    command: HOSTILE,
    model: { ...data.model, name: HOSTILE },
    train: { ...data.train, studios: [HOSTILE], heldOut: HOSTILE },
    sets: {
      ...data.sets,
      [HOSTILE]: { ...plain, pixel_1nn: 1, languages: { [HOSTILE]: scores(0.5) } },
    },
    galleries: [
      {
        set: HOSTILE,
        retrievals: [
          {
            query: HOSTILE,
            lang: HOSTILE,
            results: [{ png: PNG, correct: false, label: HOSTILE }],
          },
        ],
      },
    ],
    attributions: [
      { name: HOSTILE, license: HOSTILE, author: HOSTILE, url: 'javascript:alert(1)' },
      { name: 'x', license: 'y', url: `https://x/${HOSTILE}` },
    ],
  });
  checkNesting(html);
  expect(html).not.toContain('<script');
  expect(html).not.toContain('javascript:');
  expect(html.match(/<\/style>/g)).toHaveLength(1);
  expect(html).toContain(
    '&lt;/style&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39;&amp;amp;',
  );
  expect(html).toContain('<bdi dir="auto">');
});

test('missing parts are left out', () => {
  const { command: _command, ...data } = sample();
  for (const curve of [
    [],
    [{ step: 0, loss: 1, lr: 0 }],
    [
      { step: 0, loss: NaN, lr: 0 },
      { step: 1, loss: 1, lr: 1 },
    ],
  ]) {
    const html = renderReport({ ...data, curve, sets: {}, galleries: [], attributions: [] });
    checkNesting(html);
    expect(html).not.toMatch(/NaN|Infinity|undefined|<svg|<table/);
  }
  const flat = renderReport({
    ...data,
    curve: [
      { step: 5, loss: 2, lr: 0 },
      { step: 5, loss: 2, lr: 0 },
    ],
    sets: {
      odd: { classes: 0, n: 0, chance: 0, pixel_1nn: 0, languages: { fr: scores(0) } },
      empty: { classes: 0, n: 0, chance: 0, pixel_1nn: 0, languages: {} },
    },
    galleries: [{ set: 'other', retrievals: [{ query: '', lang: 'fr', results: [] }] }],
  });
  checkNesting(flat);
  expect(flat).not.toMatch(/NaN|Infinity|undefined/);
});

test('a long curve is thinned', () => {
  const curve = Array.from({ length: 100_000 }, (_, i) => ({
    step: i,
    loss: 2 + Math.sin(i),
    lr: 1e-3,
  }));
  expect(renderReport({ ...sample(), curve }).length).toBeLessThan(80_000);
});
