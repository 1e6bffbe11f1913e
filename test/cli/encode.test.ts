/** embed, classify and search as programs: what they write and what they print. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { parquetReadObjects } from 'hyparquet';
import sharp from 'sharp';
import { drawBox } from '../../lib/cli/commands/locate.js';
import { load } from '../../lib/encoder/encoder.js';
import { openSafetensors } from '../../lib/io/safetensors.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { liveCount } from '../../lib/tensor.js';
import { picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder } from '../encoder_support.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(),
  pictures = join(folder, 'pictures'),
  at = (name: string): string => join(folder, name);
let model: string, want: Float32Array, files: string[];

function siglip2(
  args: string[],
  input = '',
): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
    input,
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', XDG_CACHE_HOME: at('cache') },
  });
  return { status, stdout, stderr };
}

function readNpy(file: string): { shape: string; data: Float32Array } {
  const bytes = readFileSync(file),
    length = bytes.readUInt16LE(8);
  expect([bytes.toString('latin1', 1, 6), (10 + length) % 64]).toEqual(['NUMPY', 0]);
  const body = bytes.subarray(10 + length);
  return {
    shape: /\(.*?\)/.exec(bytes.toString('latin1', 10, 10 + length))![0],
    data: new Float32Array(body.buffer.slice(body.byteOffset, body.byteOffset + body.length)),
  };
}

beforeAll(async () => {
  model = await smallCheckpoint();
  mkdirSync(join(pictures, 'more'), { recursive: true });
  files = ['b.png', 'a.png', 'more/c.png'].map((name) => join(pictures, name));
  const tar = new TarWriter(at('shard.tar'));
  for (const [i, file] of files.entries()) {
    writeFileSync(file, await picture(i));
    tar.add(`${i}.png`, await picture(i));
  }
  tar.add('0.txt', 'not an image');
  tar.finish();
  using encoder = await load(model);
  want = (await encoder.encodeImages([files[1]!, files[0]!, files[2]!])).data as Float32Array;
});
afterAll(() => expect(liveCount()).toBe(0));

test('embed: transparency is laid on white, or forgotten', async () => {
  const clear = at('clear.png');
  writeFileSync(
    clear,
    await sharp({
      create: { width: 20, height: 20, channels: 4, background: { r: 200, g: 0, b: 0, alpha: 0 } },
    })
      .png()
      .toBuffer(),
  );
  using encoder = await load(model);
  const solid = (r: number, g: number, b: number): Promise<Buffer> =>
    sharp({ create: { width: 20, height: 20, channels: 3, background: { r, g, b } } })
      .png()
      .toBuffer();
  for (const [args, bytes] of [
    [[], await solid(255, 255, 255)],
    [['--alpha', 'drop'], await solid(200, 0, 0)],
  ] as const) {
    expect(
      siglip2(['embed', '--model', model, '--images', clear, '--out', at('clear.npy'), ...args])
        .status,
    ).toBe(0);
    expect(readNpy(at('clear.npy')).data).toEqual((await encoder.encodeImages(bytes)).data);
  }
  const bad = siglip2(['classify', '--model', model, '--labels', 'a', '--alpha', 'x', clear]);
  expect([bad.status, bad.stderr.includes('alpha must be drop or white')]).toEqual([1, true]);
});

test('embed: a folder to npy, a tar to safetensors, texts to parquet', async () => {
  const npy = siglip2(['embed', '--model', model, '--images', pictures, '--out', at('x.npy')]);
  expect(npy).toMatchObject({ status: 0, stdout: '' });
  expect(JSON.parse(npy.stderr.trim().split('\n').at(-1)!)).toMatchObject({
    task: 'embed',
    done: 3,
    total: 3,
  });
  expect(readNpy(at('x.npy'))).toEqual({ shape: '(3, 32)', data: want });

  expect(
    siglip2([
      'embed',
      '--model',
      model,
      '--images',
      at('shard.tar'),
      '--out',
      at('x.safetensors'),
      '--batch',
      '1',
    ]).status,
  ).toBe(0);
  const reader = await openSafetensors(at('x.safetensors'));
  const rows = await reader.readFloat32('embeddings');
  await reader.close();
  for (const [row, from] of [
    [0, 1],
    [1, 0],
    [2, 2],
  ] as const)
    expect(rows.slice(row * 32, row * 32 + 32)).toEqual(want.slice(from * 32, from * 32 + 32));

  const texts = ['a red apple', '', '赤い車'];
  writeFileSync(at('texts.txt'), `${texts.join('\r\n')}\n`);
  expect(
    siglip2(['embed', '--model', model, '--texts', at('texts.txt'), '--out', at('x.parquet')])
      .status,
  ).toBe(0);
  const bytes = readFileSync(at('x.parquet'));
  const table = await parquetReadObjects({
    file: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer,
  });
  using encoder = await load(model);
  const expected = await encoder.encodeTexts(texts);
  expect(table.map((r) => r['name'])).toEqual(texts);
  table.forEach((r, i) =>
    expect(Float32Array.from(r['embedding'] as number[])).toEqual(expected.row(i)),
  );
});

test('embed: a bad image is an error, or a row of NaN', () => {
  const bad = join(pictures, 'a2.jpg');
  writeFileSync(bad, 'no image');
  try {
    const args = [
      'embed',
      '--model',
      model,
      '--images',
      join(pictures, '*.*'),
      '--out',
      at('y.npy'),
    ];
    const error = siglip2(args);
    expect([
      error.status,
      existsSync(at('y.npy')),
      error.stderr.includes(bad),
      error.stderr.includes('ERR_DATA'),
    ]).toEqual([1, false, true, true]);
    expect(siglip2([...args, '--skip-bad']).status).toBe(0);
    const { shape, data } = readNpy(at('y.npy'));
    expect([shape, data.slice(0, 32), data.slice(64)]).toEqual([
      '(3, 32)',
      want.slice(0, 32),
      want.slice(32, 64),
    ]);
    expect(data.slice(32, 64).every(Number.isNaN)).toBe(true);
    expect(readFileSync(at('y.npy.skipped.txt'), 'utf8')).toContain(`1\t${bad}\t`);
  } finally {
    writeFileSync(bad, '');
  }
});

test('classify prints probabilities, most probable first', () => {
  const { status, stdout } = siglip2([
    'classify',
    '--model',
    model,
    '--labels',
    'cat, dog',
    '--json',
    '--top',
    '1',
    files[0]!,
    files[1]!,
  ]);
  expect(status).toBe(0);
  const lines = stdout
    .trim()
    .split('\n')
    .map(
      (l) => JSON.parse(l) as { image: string; labels: { label: string; probability: number }[] },
    );
  expect(lines.map((l) => l.image)).toEqual([files[0], files[1]]);
  for (const { labels } of lines)
    expect([labels.length, labels[0]!.probability > 0 && labels[0]!.probability < 1]).toEqual([
      1,
      true,
    ]);
  expect(siglip2(['classify', '--model', model, files[0]!]).stderr).toContain('--labels');
});

test('caption and locate: a line per image; without a decoder an error', async () => {
  const describing = await smallCheckpoint({ decoder: { length: 24 } });
  const { status, stdout } = siglip2([
    'caption',
    '--model',
    describing,
    '--json',
    '--beams',
    '2',
    files[0]!,
    files[1]!,
  ]);
  const named = stdout
    .trim()
    .split('\n')
    .map((l) => (JSON.parse(l) as { image: string }).image);
  expect([status, named]).toEqual([0, [files[0], files[1]]]);
  const located = siglip2(['locate', '--model', describing, '--phrase', 'a cat', files[0]!]);
  expect(located).toMatchObject({ status: 0, stdout: `${files[0]}\n  no box\n` });
  const without = siglip2(['caption', '--model', model, files[0]!]);
  expect([without.status, without.stderr.includes('no caption decoder')]).toEqual([1, true]);
  expect(siglip2(['locate', '--model', describing, files[0]!]).stderr).toContain('--phrase');
});

test('locate draws a box where it is', async () => {
  const data = new Uint8Array(60 * 40 * 3).fill(200);
  const place = { box: [0.25, 0.25, 0.75, 0.75], pixels: [15, 10, 45, 30] } as const;
  await drawBox(
    at('box.png'),
    { data, width: 60, height: 40, channels: 3 },
    { ...place, pixels: [...place.pixels] },
  );
  const { data: drawn, info } = await sharp(at('box.png'))
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  const pixel = (x: number, y: number): number[] => [
    ...drawn.subarray((y * 60 + x) * 3, (y * 60 + x) * 3 + 3),
  ];
  expect([
    info.width,
    info.height,
    pixel(30, 20),
    pixel(2, 2),
    pixel(15, 20),
    pixel(30, 30),
  ]).toEqual([60, 40, [200, 200, 200], [200, 200, 200], [230, 0, 126], [230, 0, 126]]);
});

test('search embeds once and answers typed queries with a page', () => {
  const args = ['search', pictures, '--model', model, '--out', at('page.html'), '--top', '2'];
  const first = siglip2(args, 'a red <apple>\n\nHund\n');
  expect(first.status).toBe(0);
  expect(first.stderr).toContain('"task":"index"');
  expect(first.stdout.match(/ % {2}/g)!.length).toBe(4);
  const page = readFileSync(at('page.html'), 'utf8');
  expect(page.match(/data:image\/webp/g)!.length).toBe(4);
  expect(page.includes('a red <apple>')).toBe(false);
  const second = siglip2([...args, 'Hund']);
  expect(second.status).toBe(0);
  // Nothing is embedded again but what could not be decoded before.
  expect(second.stdout).toBe(first.stdout.slice(first.stdout.indexOf('Hund')));
});

test('a cache proves whose rows it holds', async () => {
  const other = await smallCheckpoint({}, (m) => m.initialize(77)),
    cache = at('rows.safetensors');
  const search = (checkpoint: string, file: string, ...more: string[]) =>
    siglip2([
      'search',
      pictures,
      '--model',
      checkpoint,
      '--out',
      at('other.html'),
      '--cache',
      file,
      ...more,
      'Hund',
    ]);
  expect(search(model, cache).status).toBe(0);
  const foreign = search(other, cache),
    fresh = search(other, at('fresh.safetensors'));
  expect(foreign.stderr).toContain(
    `the cache ${cache} holds rows of another model or other settings, and is made anew`,
  );
  expect(foreign.stdout).toBe(fresh.stdout);
  for (const more of [
    ['--alpha', 'drop'],
    ['--dtype', 'bf16'],
    ['--processor', 'big_vision'],
  ])
    expect(search(other, cache, ...more).stderr).toContain('other settings');
  expect(search(other, cache, '--processor', 'big_vision').stderr).not.toContain('other settings');
}, 120_000);
