/** One rule of what a collection holds, for training, scoring, embedding, filtering and de-biasing; archives and tables as others write them. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { deflateRawSync, gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { listImages } from '../../lib/cli/images.js';
import { chooseRows, writeKeys, writeTars } from '../../lib/curation/filter.js';
import { readRecords } from '../../lib/curation/labels.js';
import { mergeScores } from '../../lib/curation/merge.js';
import { scoreCollection } from '../../lib/curation/score.js';
import { scoreUnits } from '../../lib/curation/score_units.js';
import { collectionOf } from '../../lib/data/collection.js';
import { memberKey, parseMembers } from '../../lib/data/members.js';
import { readCaptions } from '../../lib/data/sample.js';
import { openSource, type SourceOptions } from '../../lib/data/source.js';
import type { SingleSourceSpec } from '../../lib/data/spec.js';
import { type Encoder, load } from '../../lib/encoder/encoder.js';
import { KeyList } from '../../lib/fs/keys.js';
import { SkipCounter } from '../../lib/fs/skips.js';
import { FileReader } from '../../lib/io/reader.js';
import { liveCount } from '../../lib/tensor.js';
import { smallCheckpoint } from '../encoder_support.js';
import { type Codec, PACKERS, pax, type TestMember, tableOf, tarOf } from './archives.js';
import { errorOf, picture, withFolder } from './support.js';

let pictures: Buffer[], learner: Encoder;
beforeAll(async () => {
  pictures = await Promise.all(Array.from({ length: 8 }, (_, i) => picture(i)));
  learner = await load(await smallCheckpoint());
});
afterAll(() => {
  learner.dispose();
  expect(liveCount()).toBe(0);
});

/** Key, which picture and which captions of every sample. */
async function contentOf(
  spec: SingleSourceSpec,
  options: SourceOptions = {},
): Promise<{ samples: string[]; skips: string }> {
  const source = await openSource(spec, options),
    reader = new FileReader();
  try {
    const samples = source.samples.map((sample) => {
      const bytes = reader.read(sample.image),
        { captions } = readCaptions(reader, sample);
      return `${sample.key} ${pictures.findIndex((one) => one.equals(bytes))} ${captions.map(({ text }) => text).join('|')}`;
    });
    return { samples, skips: source.skips.summary() };
  } finally {
    reader.close();
  }
}

const image = (i: number, suffix = 'png'): TestMember => ({
  name: `${i}.${suffix}`,
  data: pictures[i]!,
});
const caption = (i: number, suffix = 'txt'): TestMember => ({
  name: `${i}.${suffix}`,
  data: `cat ${i}`,
});
const plain = (n = 4, from = 0): TestMember[] =>
  Array.from({ length: n }, (_, i) => [image(from + i), caption(from + i)]).flat();
const others = (i: number): TestMember[] => [
  { ...image(7 - i), name: `${i}.depth.png` },
  { ...image(7 - i), name: `${i}.seg.v2.webp` },
  { name: `${i}.syn.txt`, data: 'synthetic' },
  { name: `${i}.face.json`, data: '{"caption": "a face"}' },
  { name: `${i}.cls`, data: '7' },
];
const utf16 = (text: string, big: boolean): Buffer => {
  const bytes = Buffer.from(`\ufeff${text}`, 'utf16le');
  return big ? bytes.swap16() : bytes;
};
const json = (i: number, rest: string): TestMember => ({
  name: `${i}.json`,
  data: `{"captions": {"en": ["cat ${i}"]}, ${rest}}`,
});

/** Archives that all hold samples 0 to 3 with the captions "cat 0" to "cat 3". */
const archives: Record<string, () => Buffer> = {
  plain: () => tarOf(plain()),
  'other members before': () =>
    tarOf([0, 1, 2, 3].flatMap((i) => [...others(i), image(i), caption(i)])),
  'other members behind': () =>
    tarOf([0, 1, 2, 3].flatMap((i) => [image(i), caption(i), ...others(i)])),
  'other members around': () =>
    tarOf([0, 1, 2, 3].flatMap((i) => [image(i), ...others(i), caption(i)])),
  'stand-ins alone': () =>
    tarOf([0, 1, 2, 3].flatMap((i) => [image(i, 'full.png'), caption(i, 'en.txt')])),
  'hidden files': () =>
    tarOf([
      ...plain(),
      { name: '._0.png', data: 'Mac' },
      { name: '.git/1.png', data: 'x' },
      { name: '.git/1.txt', data: 'x' },
    ]),
  'hard links': () =>
    tarOf([
      { name: 'pool', data: pictures[0]! },
      image(1),
      caption(1),
      image(2),
      caption(2),
      { name: '0.png', type: '1', link: 'pool' },
      caption(0),
      { name: '3.raw', data: pictures[3]! },
      { name: '3.png', type: '1', link: './3.raw' },
      caption(3),
    ]),
  'symbolic links': () =>
    tarOf([
      ...plain(3),
      { name: 'deep/pool', data: pictures[3]! },
      { name: '3.png', type: '2', link: './deep/../deep/pool' },
      caption(3),
    ]),
  'names that come twice': () =>
    tarOf([
      ...plain(),
      { ...image(0), data: pictures[6]! },
      { ...caption(1), data: 'no cat' },
      { ...image(0) },
      { ...caption(1) },
    ]),
  'joined with cat': () => Buffer.concat([tarOf(plain(2)), tarOf(plain(2, 2))]),
  'joined with cat, the first without a marker': () =>
    Buffer.concat([tarOf(plain(2), false), tarOf(plain(2, 2))]),
  'no end marker': () => tarOf(plain(), false),
  'one block of a marker': () => Buffer.concat([tarOf(plain(), false), Buffer.alloc(512)]),
  'sparse members of GNU': () =>
    tarOf([...plain(2), { name: 'hole.bin', type: 'S', data: 'some data' }, ...plain(2, 2)]),
  'sparse members of GNU with long maps': () =>
    tarOf([
      ...plain(2),
      { name: 'hole.bin', type: 'S', data: Buffer.alloc(1500, 1), extended: 3 },
      ...plain(2, 2),
    ]),
  'sparse members of pax 0.1': () =>
    tarOf([
      ...plain(2),
      pax({
        'GNU.sparse.size': '99999',
        'GNU.sparse.numblocks': '1',
        'GNU.sparse.map': '0,9',
        'GNU.sparse.name': 'hole.bin',
      }),
      { name: 'GNUSparseFile.1/hole.bin', data: 'some data' },
      ...plain(2, 2),
    ]),
  'sparse members of pax 1.0': () =>
    tarOf([
      ...plain(2),
      pax({
        'GNU.sparse.major': '1',
        'GNU.sparse.minor': '0',
        'GNU.sparse.name': 'hole.bin',
        'GNU.sparse.realsize': '99999',
      }),
      {
        name: 'GNUSparseFile.1/hole.bin',
        data: Buffer.concat([
          Buffer.from('1\n0\n9\n'),
          Buffer.alloc(506),
          Buffer.from('some data'),
        ]),
      },
      ...plain(2, 2),
    ]),
  'sizes and names in pax headers': () =>
    tarOf([
      ...plain(3),
      pax({ path: '3.png', size: String(pictures[3]!.length) }),
      { ...image(3), name: 'x' },
      caption(3),
    ]),
  'long names of GNU': () =>
    tarOf([
      ...plain(3),
      { name: '././@LongLink', type: 'L', data: '3.png\0' },
      { ...image(3), name: 'cut' },
      caption(3),
    ]),
  'notes of backup tools': () =>
    tarOf([
      { name: 'label', type: 'V' },
      pax({ comment: 'x' }),
      ...plain(),
      { name: 'folder/', type: '5' },
      { name: 'pipe', type: '6' },
    ]),
  'NaN and Infinity in JSON': () =>
    tarOf([
      ...plain(1),
      image(1),
      json(1, '"score": NaN'),
      image(2),
      json(2, '"scores": [Infinity, -Infinity], "note": "NaN and \\"Infinity"'),
      image(3),
      { name: '3.json', data: '{"similarity": NaN}' },
      caption(3),
    ]),
  'captions in UTF-16 and with a mark': () =>
    tarOf([
      image(0),
      { ...caption(0), data: utf16('cat 0', false) },
      image(1),
      { ...caption(1), data: utf16('cat 1\n', true) },
      image(2),
      { ...caption(2), data: '\ufeffcat 2' },
      image(3),
      { name: '3.json', data: utf16('{"caption": "cat 3"}', false) },
    ]),
};
const wanted = [0, 1, 2, 3].map((i) => `${i} ${i} cat ${i}`),
  keys = ['0', '1', '2', '3'];

test.each(Object.keys(archives))(
  '%s: train, score, embed, filter and debias take the same samples',
  (name) =>
    withFolder(async (folder) => {
      const tar = path.join(folder, 'a.tar'),
        out = path.join(folder, 'scored'),
        chosen = path.join(folder, 'chosen');
      fs.writeFileSync(tar, archives[name]!());
      const spec = collectionOf(tar) as SingleSourceSpec,
        sorted = (list: Iterable<string>): string[] => [...list].sort();
      const { samples, skips } = await contentOf(spec);
      expect([sorted(samples), skips]).toEqual([wanted, '']);

      const images = await listImages([tar]);
      expect(sorted(images.map((one) => memberKey(one.name.slice(tar.length + 1))!))).toEqual(keys);
      expect(
        sorted(
          images.map((one) =>
            String(
              pictures.findIndex((p) => p.equals((one.open() as { bytes: Uint8Array }).bytes)),
            ),
          ),
        ),
      ).toEqual(keys);

      const records: string[] = [],
        counter = new SkipCounter();
      for await (const record of readRecords(spec, counter))
        records.push(`${record.key} ${record.captions.join('|')}`);
      expect([sorted(records), counter.total]).toEqual([
        wanted.map((line) => line.slice(2).replace(/^(\d)/, '$1')),
        0,
      ]);

      const { rows } = await scoreCollection(await scoreUnits([tar]), out, { learner });
      await mergeScores(out, { near: 1 });
      const all = await chooseRows(out, {});
      expect([rows, sorted(all.kept.map(({ key }) => key))]).toEqual([4, keys]);
      await writeTars(out, chosen, all);
      const copy = await contentOf({ type: 'webdataset', tars: path.join(chosen, 'a.tar') });
      expect([sorted(copy.samples), copy.skips]).toEqual([wanted, '']);
    }),
);

test('what is lost of an archive is counted alike, and named', () =>
  withFolder(async (folder) => {
    const tar = path.join(folder, 'a.tar');
    fs.writeFileSync(
      tar,
      tarOf([
        ...plain(2),
        { ...image(2), type: 'S' },
        caption(2),
        image(3),
        { ...caption(3), data: Buffer.from('caf\xe9', 'latin1') },
        { name: '4.png', type: '2', link: 'elsewhere.png' },
        caption(4),
        { name: '5.heic', data: 'x' },
        caption(5),
        image(6),
        { ...caption(6), data: 'cat\0' },
        image(7),
        { ...caption(7), data: Buffer.from([0xff, 0xfe, 0x63]) },
      ]),
    );
    const source = await openSource({ type: 'webdataset', tars: tar });
    expect(source.samples.map(({ key }) => key)).toEqual(['0', '1']);
    expect(
      Object.fromEntries(
        [...source.skips.byReason].map(([reason, { examples }]) => [reason, examples]),
      ),
    ).toEqual({
      'the image is a sparse member of a tar': [`${tar}:2`],
      'captions are not UTF-8': [`${tar}:3`, `${tar}:6`, `${tar}:7`],
      'the image is a link to a file that is not in the tar': [`${tar}:4`],
      '.heic images are not read; convert them to JPEG or PNG': [`${tar}:5`],
    });
    const summary = await scoreCollection(await scoreUnits([tar]), path.join(folder, 'scored'), {
      learner,
    });
    expect([summary.rows, summary.skips.summary()]).toEqual([2, source.skips.summary()]);
  }));

test('one option names other members, in tars, folders and manifests', () =>
  withFolder(async (folder) => {
    const tar = path.join(folder, 'a.tar'),
      below = path.join(folder, 'files');
    const list = [0, 1].flatMap((i) => [image(i), caption(i), ...others(i)]);
    fs.writeFileSync(tar, tarOf(list));
    fs.mkdirSync(below);
    for (const { name, data } of list) fs.writeFileSync(path.join(below, name), data!);
    fs.writeFileSync(
      path.join(folder, 'm.jsonl'),
      [0, 1]
        .map(
          (i) =>
            `${JSON.stringify({ image: `files/${i}.png`, caption: `cat ${i}`, depth: `files/${i}.depth.png`, blip: `blip ${i}` })}\n`,
        )
        .join(''),
    );
    const names = parseMembers('image=depth.png, caption=.syn.txt'),
      expected = ['7 synthetic', '6 synthetic'];
    expect((await contentOf({ type: 'webdataset', tars: tar, members: names })).samples).toEqual(
      expected.map((e, i) => `${i} ${e}`),
    );
    expect((await contentOf({ type: 'folder', path: below, members: names })).samples).toEqual(
      expected.map((e, i) => `${i}.depth.png ${e}`),
    );
    expect(
      (await contentOf({ type: 'webdataset', tars: tar, members: { caption: 'face.json' } }))
        .samples,
    ).toEqual(['0 0 a face', '1 1 a face']);
    expect(
      (
        await contentOf({
          type: 'manifest',
          path: path.join(folder, 'm.jsonl'),
          members: { image: 'depth', caption: 'blip' },
        })
      ).samples,
    ).toEqual(['files/0.depth.png 7 blip 0', 'files/1.depth.png 6 blip 1']);
    // Without it the folder's samples are those of the tar.
    expect((await contentOf({ type: 'folder', path: below })).samples).toEqual([
      '0.png 0 cat 0',
      '1.png 1 cat 1',
    ]);
    for (const given of [tar, below]) {
      const plainly = await listImages([given]),
        other = await listImages([given], { members: 'image=depth.png' });
      expect(
        [plainly, other].map((l) =>
          l.map((one) => path.basename(one.name).replace(/^a\.tar:/, '')),
        ),
      ).toEqual([
        ['0.png', '1.png'],
        ['0.depth.png', '1.depth.png'],
      ]);
    }
    const units = await scoreUnits([tar], { members: names });
    expect((await units[0]!.open()).samples.map((sample) => sample.image.size)).toEqual([
      pictures[7]!.length,
      pictures[6]!.length,
    ]);
    expect((await errorOf(() => parseMembers('depth.png'))).message).toContain(
      'image=depth.png,caption=syn.txt',
    );
  }));

test('other kinds of files named as collections are called what they are, in every command', () =>
  withFolder(async (folder) => {
    const zip = Buffer.concat([Buffer.from('PK\x03\x04'), deflateRawSync(Buffer.alloc(2000))]);
    const kinds: [content: Buffer, name: string][] = [
      [zip, 'a ZIP archive'],
      [Buffer.from(`070701${'0'.repeat(600)}`), 'a cpio archive'],
      [Buffer.from('\xc7\x71'.padEnd(700, '\0'), 'latin1'), 'a cpio archive'],
      [
        Buffer.from('{"__kind__": "wids-shard-index-v1", "shardlist": []}'),
        'an index of shards (JSON)',
      ],
      [Buffer.from('[{"url": "a.tar"}]'), 'JSON text'],
      [Buffer.from(tableOf([{ name: 'a', data: ['b'] }])), 'a Parquet table'],
      [Buffer.from('<!DOCTYPE html><html></html>'), 'a web page'],
      [Buffer.from(PACKERS.ZSTD(Buffer.alloc(2000))), 'compressed'],
      [gzipSync(tarOf(plain(1))), 'compressed'],
      [Buffer.from('BZh91AY&SY'.padEnd(600)), 'compressed'],
      [Buffer.from('\xfd7zXZ\0'.padEnd(600), 'latin1'), 'compressed'],
      [Buffer.from('7z\xbc\xaf\x27\x1c'.padEnd(600), 'latin1'), 'a 7-Zip archive'],
      [
        Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'),
        'a Git LFS pointer',
      ],
    ];
    for (const [k, [content, name]] of kinds.entries()) {
      const tar = path.join(folder, `${k}.tar`),
        bare = path.join(folder, `${k}.bin`);
      fs.writeFileSync(tar, content);
      fs.writeFileSync(bare, content);
      for (const run of [
        () => openSource({ type: 'webdataset', tars: tar }),
        async () => (await scoreUnits([tar]))[0]!.open(),
        () => listImages([tar]),
        () => scoreUnits([bare]),
        () => listImages([bare]),
        () => collectionOf(bare),
        () => openSource({ type: 'webdataset', tars: bare }, { maxSkips: '100%' }),
      ]) {
        const { code, message } = await errorOf(run);
        expect([code, message, message.includes('damaged')]).toEqual([
          'ERR_DATA',
          expect.stringContaining(`is ${name}`),
          false,
        ]);
      }
    }
    // A tar by another name is one.
    fs.writeFileSync(path.join(folder, 'shard.part'), tarOf(plain(2)));
    expect(collectionOf(path.join(folder, 'shard.part')).type).toBe('webdataset');
    expect(await listImages([path.join(folder, 'shard.part')])).toHaveLength(2);
  }));

test('damage counts by the samples that it costs', () =>
  withFolder(async (folder) => {
    const list = Array.from({ length: 300 }, (_, i): TestMember[] => [
      { name: `${i}.png`, data: pictures[0]! },
      { name: `${i}.txt`, data: 'cat' },
    ]).flat();
    const sound = tarOf(list),
      at = sound.indexOf('40.png'),
      tar = path.join(folder, 'a.tar');
    const hurt = Buffer.from(sound);
    hurt.fill('X', at, at + 6);
    fs.writeFileSync(tar, hurt);
    const error = await errorOf(() => openSource({ type: 'webdataset', tars: tar }));
    expect([error.code, error.message]).toEqual([
      'ERR_DATA',
      expect.stringContaining('260 of 300 samples cannot be used'),
    ]);
    for (const maxSkips of [260, '90%'])
      expect((await openSource({ type: 'webdataset', tars: tar }, { maxSkips })).length).toBe(40);
    expect(
      (await errorOf(() => openSource({ type: 'webdataset', tars: tar }, { maxSkips: 259 }))).code,
    ).toBe('ERR_DATA');
    expect(
      (
        await errorOf(async () =>
          scoreCollection(await scoreUnits([tar]), path.join(folder, 'a'), { learner }),
        )
      ).message,
    ).toContain('260 of 300');

    // Of a tar that ends too soon nobody knows how many went with its end.
    fs.writeFileSync(tar, sound.subarray(0, sound.length - 20_000));
    expect((await errorOf(() => openSource({ type: 'webdataset', tars: tar }))).message).toContain(
      'nobody can say',
    );
    expect(
      (
        await errorOf(async () =>
          scoreCollection(await scoreUnits([tar]), path.join(folder, 'b'), { learner }),
        )
      ).message,
    ).toContain('nobody can say');
    expect(
      (await openSource({ type: 'webdataset', tars: tar }, { maxSkips: '1%' })).length,
    ).toBeGreaterThan(280);
  }));

test('skips are told when they happen, the first of a kind and then ever fewer', () => {
  const told: string[] = [],
    skips = new SkipCounter('10%', (message) => told.push(message));
  for (let i = 0; i < 250; i++) skips.add('no caption', `a.tar:${i}`);
  skips.add('empty image', 'a.tar:999');
  expect(told).toEqual([
    'skipped: no caption: a.tar:0',
    'skipped so far: no caption: 10',
    'skipped so far: no caption: 100',
    'skipped: empty image: a.tar:999',
  ]);
  expect(() => skips.check(2510, 'a.tar')).not.toThrow();
  expect(() => skips.check(2509, 'a.tar')).toThrow(
    '251 of 2509 samples cannot be used, more than maxSkips = 10% (250)',
  );
  expect(() => new SkipCounter('101%')).toThrow('a share such as "2%"');
});

test('folders follow links to files and folders, once', () =>
  withFolder(async (folder) => {
    const data = path.join(folder, 'data'),
      outside = path.join(folder, 'outside'),
      write = (at: string, i: number, ending = 'png'): void => {
        fs.mkdirSync(path.dirname(path.join(folder, at)), { recursive: true });
        fs.writeFileSync(path.join(folder, `${at}.${ending}`), pictures[i]!);
        fs.writeFileSync(path.join(folder, `${at}.txt`), `cat ${i}`);
      };
    write('data/0', 0);
    write('data/sub/1', 1, 'JPE');
    write('outside/2', 2, 'jfif');
    write('outside/deep/3', 3);
    write('data/.hidden/4', 4);
    fs.writeFileSync(path.join(data, '5.HEIC'), 'x');
    fs.writeFileSync(path.join(data, '5.txt'), 'cat 5');
    fs.symlinkSync(outside, path.join(data, 'linked'));
    fs.symlinkSync(path.join(outside, 'deep'), path.join(data, 'again'));
    fs.symlinkSync(data, path.join(data, 'circle'));
    fs.symlinkSync(path.join(folder, 'nowhere.png'), path.join(data, '6.png'));
    fs.writeFileSync(path.join(data, '6.txt'), 'cat 6');
    fs.symlinkSync(path.join(folder, 'pool'), path.join(data, '7.png'));
    fs.writeFileSync(path.join(folder, 'pool'), pictures[7]!);
    fs.writeFileSync(path.join(data, '7.txt'), 'cat 7');
    const { samples, skips } = await contentOf({ type: 'folder', path: data });
    expect(samples).toEqual([
      '0.png 0 cat 0',
      '7.png 7 cat 7',
      'again/3.png 3 cat 3',
      'linked/2.jfif 2 cat 2',
      'sub/1.JPE 1 cat 1',
    ]);
    expect(skips).toBe(
      `.heic images are not read; convert them to JPEG or PNG (1: ${path.join(data, '5.HEIC')}); the image is missing (1: ${path.join(data, '6.png')})`,
    );
    expect((await listImages([data])).map(({ name }) => path.relative(data, name))).toEqual([
      '0.png',
      '6.png',
      '7.png',
      'again/3.png',
      'linked/2.jfif',
      'sub/1.JPE',
    ]);
  }));

test('manifests in every form give the same samples', () =>
  withFolder(async (folder) => {
    pictures
      .slice(0, 4)
      .forEach((bytes, i) => fs.writeFileSync(path.join(folder, `${i}.png`), bytes));
    const four = [0, 1, 2, 3],
      lines = (row: (i: number) => object): string =>
        four.map((i) => `${JSON.stringify(row(i))}\n`).join('');
    const files: Record<string, string | Uint8Array> = {
      'ok.jsonl': lines((i) => ({ image: `${i}.png`, caption: `cat, ${i}` })),
      'metadata.jsonl': lines((i) => ({ file_name: `${i}.png`, text: `cat, ${i}` })),
      'marked.JSONL': `\ufeff${lines((i) => ({ image: `./${i}.png`, caption: `cat, ${i}` })).replaceAll('\n', '\r\n')}\r\n\r\n`,
      'nan.ndjson': lines((i) => ({ image: `${i}.png`, caption: `cat, ${i}`, score: 'X' })).replace(
        /"X"/g,
        'NaN',
      ),
      'url.jsonl': lines((i) => ({ image: `file://${folder}/${i}.png`, caption: `cat, ${i}` })),
      'metadata.csv': `file_name,text\n${four.map((i) => `${i}.png,"cat, ${i}"\n`).join('')}`,
      'semicolons.csv': `image;caption\r\n${four.map((i) => `${i}.png;cat, ${i}\r\n`).join('')}`,
      'cc3m.csv': `filepath\ttitle\n${four.map((i) => `${i}.png\tcat, ${i}\n`).join('')}`,
      'table.tsv': `caption\timage\tlang\n${four.map((i) => `cat, ${i}\t${i}.png\tde\n`).join('')}`,
      'utf16.csv': utf16(
        `image,caption\n${four.map((i) => `${i}.png,"cat, ${i}"\n`).join('')}`,
        false,
      ),
      'quotes.csv': `image,caption\n${four.map((i) => `"${i}.png","cat, ${i}"`).join('\n')}`,
      'UPPER.PARQUET': tableOf([
        { name: 'image', data: four.map((i) => `${i}.png`) },
        { name: 'caption', data: four.map((i) => `cat, ${i}`) },
      ]),
    };
    for (const [name, content] of Object.entries(files)) {
      const file = path.join(folder, name);
      fs.writeFileSync(file, content);
      const { samples, skips } = await contentOf({ type: 'manifest', path: file });
      expect([name, samples.map((line) => line.replace(/^\S+/, '')), skips]).toEqual([
        name,
        four.map((i) => ` ${i} cat, ${i}`),
        '',
      ]);
      expect((await scoreUnits([file])).map((unit) => unit.spec.type)).toEqual(['manifest']);
    }
  }));

const codecs: Codec[] = [
  'UNCOMPRESSED',
  'SNAPPY',
  ...(Object.keys(PACKERS) as (keyof typeof PACKERS)[]),
];
test.each(codecs)(
  'Parquet packed with %s: paths, images as bytes, structs of bytes and path, integers of 64 bits',
  (codec) =>
    withFolder(async (folder) => {
      const four = [0, 1, 2, 3],
        text = four.map((i) => `cat ${i}`),
        write = (name: string, bytes: Uint8Array): string => {
          fs.writeFileSync(path.join(folder, name), bytes);
          return path.join(folder, name);
        };
      four.forEach((i) => write(`${i}.png`, pictures[i]!));
      const schema: NonNullable<Parameters<typeof tableOf>[2]>['schema'] = [
        { name: 'root', num_children: 2 },
        { name: 'image', repetition_type: 'OPTIONAL', num_children: 2 },
        { name: 'bytes', type: 'BYTE_ARRAY', repetition_type: 'OPTIONAL' },
        { name: 'path', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'OPTIONAL' },
        { name: 'captions', converted_type: 'LIST', repetition_type: 'OPTIONAL', num_children: 1 },
        { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
        { name: 'element', repetition_type: 'OPTIONAL', num_children: 2 },
        { name: 'id', type: 'INT64', repetition_type: 'OPTIONAL' },
        { name: 'text', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'OPTIONAL' },
      ];
      const files = [
        write(
          'paths.parquet',
          tableOf(
            [
              { name: 'image', data: four.map((i) => `${i}.png`) },
              { name: 'text', data: text },
              { name: 'n', data: four.map(BigInt) },
            ],
            codec,
          ),
        ),
        write(
          'bytes.parquet',
          tableOf(
            [
              { name: 'image', data: pictures.slice(0, 4), type: 'BYTE_ARRAY', encoding: 'PLAIN' },
              { name: 'text', data: text },
            ],
            codec,
          ),
        ),
        write(
          'structs.parquet',
          tableOf(
            [
              {
                name: 'image',
                data: four.map((i) => ({ bytes: pictures[i]!, path: i === 0 ? null : `${i}.png` })),
                encoding: 'PLAIN',
              },
              {
                name: 'captions',
                data: four.map((i) => [{ id: 2n ** 60n + BigInt(i), text: text[i] }]),
              },
            ],
            codec,
            { schema, rowGroupSize: 3 },
          ),
        ),
      ];
      for (const file of files) {
        const { samples, skips } = await contentOf({ type: 'manifest', path: file });
        expect([samples.map((line) => line.replace(/^\S+/, '')), skips]).toEqual([
          four.map((i) => ` ${i} cat ${i}`),
          '',
        ]);
        const found: string[] = [];
        for await (const { captions } of readRecords(collectionOf(file), new SkipCounter()))
          found.push(...captions);
        expect(found).toEqual(text);
      }
      // What was chosen of it is a tar that trains.
      const out = path.join(folder, 'scored');
      await scoreCollection(await scoreUnits(files.slice(2)), out, { learner });
      await mergeScores(out, { near: 1 });
      await writeTars(out, path.join(folder, 'chosen'), await chooseRows(out, {}));
      const copy = await contentOf({
        type: 'webdataset',
        tars: path.join(folder, 'chosen', '*.tar'),
      });
      expect(copy.samples.map((line) => line.replace(/^\S+/, '')).sort()).toEqual(
        four.map((i) => ` ${i} cat ${i}`),
      );
    }),
);

test('patterns and folders of parts are one manifest; near misses name what is wanted', () =>
  withFolder(async (folder) => {
    const parts = path.join(folder, 'data'),
      part = (i: number): Uint8Array =>
        tableOf([
          { name: 'image', data: [`../${i}.png`] },
          { name: 'caption', data: [`cat ${i}`] },
        ]);
    fs.mkdirSync(parts);
    for (let i = 0; i < 4; i++) {
      fs.writeFileSync(path.join(folder, `${i}.png`), pictures[i]!);
      fs.writeFileSync(path.join(parts, `train-0000${i}-of-00004.parquet`), part(i));
    }
    fs.writeFileSync(path.join(parts, '_metadata.parquet'), 'x');
    for (const given of [
      parts,
      path.join(parts, 'train-*.parquet'),
      path.join(parts, 'train-0000{0..3}-of-00004.parquet'),
    ])
      expect(
        (await contentOf({ type: 'manifest', path: given })).samples.map((line) => line.slice(-5)),
      ).toEqual([0, 1, 2, 3].map((i) => `cat ${i}`));

    const misses: [name: string, content: string | Uint8Array, says: RegExp][] = [
      [
        'a.csv',
        'url,alt\nx,y\n',
        /needs a column "image" or "file_name".*"captions" or "caption" or "text".*the columns are url, alt/,
      ],
      [
        'a.parquet',
        tableOf([
          { name: 'url', data: ['x'] },
          { name: 'alt', data: ['y'] },
        ]),
        /the columns are url, alt/,
      ],
      [
        'a.jsonl',
        '{"url": "x", "alt": "y"}\n',
        /no image \(1: .*a\.jsonl line 1\); a manifest needs "image" or "file_name"/,
      ],
      [
        'array.jsonl',
        '[{"image": "x"}]',
        /JSON array; a manifest has one object a line, which `jq -c/,
      ],
      [
        'web.jsonl',
        '{"image": "https://example.org/a.jpg", "caption": "x"}\n',
        /the image is an address, which is not fetched/,
      ],
      ['gz.jsonl', gzipSync('{}'), /is compressed/],
      ['header.csv', 'image,caption\n', /has no row behind a header/],
    ];
    for (const [name, content, says] of misses) {
      const file = path.join(folder, name);
      fs.writeFileSync(file, content);
      const { code, message } = await errorOf(() => openSource({ type: 'manifest', path: file }));
      expect([code, message]).toEqual(['ERR_DATA', expect.stringMatching(says)]);
    }
  }));

test('key lists: names with tabs, line breaks and quotation marks come back', () =>
  withFolder(async (folder) => {
    const names = ['a\tb', 'line\nbreak', '"quoted"', 'plain', 'naïve'],
      file = path.join(folder, 'keys.txt'),
      tar = path.join(folder, 'a.tar');
    fs.writeFileSync(
      tar,
      tarOf(
        names.flatMap((name, i) => [
          { ...image(i), name: `${name}.png` },
          { ...caption(i), name: `${name}.txt` },
        ]),
      ),
    );
    await scoreCollection(await scoreUnits([tar]), path.join(folder, 'scored'), { learner });
    await mergeScores(path.join(folder, 'scored'), { near: 1 });
    await writeKeys(file, await chooseRows(path.join(folder, 'scored'), {}));
    const list = await KeyList.read(file);
    expect([list.size, names.every((name) => list.has(tar, name)), list.has(tar, 'a')]).toEqual([
      5,
      true,
      false,
    ]);
    expect(
      (await openSource({ type: 'webdataset', tars: tar, keys: file })).samples.map(
        ({ key }) => key,
      ),
    ).toEqual(names);
  }));
