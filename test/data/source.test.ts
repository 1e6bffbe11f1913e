import * as fs from 'node:fs';
import * as path from 'node:path';
import { gzipSync } from 'node:zlib';
import { expect, test } from '@jest/globals';
import sharp from 'sharp';
import { readCaptions } from '../../lib/data/sample.js';
import { openSource } from '../../lib/data/source.js';
import { expandPaths } from '../../lib/fs/paths.js';
import { FileReader } from '../../lib/io/reader.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { Random } from '../../lib/random.js';
import {
  type Caption,
  type CaptionChoice,
  captionsFromObject,
  chooseCaptions,
  groupCaptions,
} from '../../lib/text/captions.js';
import { errorOf, makeTar, picture, withFolder } from './support.js';

test('WebDataset tars: keys, captions, classes, languages; skips are counted and named', () =>
  withFolder(async (folder) => {
    await makeTar(path.join(folder, 'a-000.tar'), 6, 3, (i, members) => {
      if (i === 1) delete members.json;
      if (i === 2) members.json = '{"captions": {"en": ["  "]}}';
      if (i === 3) members.json = '{broken';
      if (i === 4) delete members.png;
      if (i === 5) members.png = Buffer.alloc(0);
    });
    const writer = new TarWriter(path.join(folder, 'a-001.tar'));
    writer.add('b/x.one.jpg', await picture(1));
    writer.add('b/x.txt', ' ein Bild \n');
    writer.add('b/x.json', '{"url": "none"}');
    writer.finish();

    const source = await openSource({
      type: 'webdataset',
      tars: path.join(folder, 'a-{000..001}.tar'),
      language: 'de',
    });
    expect(source.samples.map(({ key }) => key)).toEqual(['sample-0000', 'b/x']);
    expect(source.at(0).class).toBe(0);
    expect(source.at(1).class).toBeUndefined();
    expect(Object.fromEntries(source.languages)).toEqual({ en: 2, de: 2, ja: 1 });
    expect(source.captionCount).toBe(5);
    const reader = new FileReader();
    expect(readCaptions(reader, source.at(1)).captions).toEqual([{ lang: 'de', text: 'ein Bild' }]);
    reader.close();
    const tar = path.join(folder, 'a-000.tar');
    expect(Object.fromEntries(source.skips.byReason)).toEqual({
      'no caption': { count: 2, examples: [`${tar}:sample-0001`, `${tar}:sample-0002`] },
      'captions are not valid JSON': { count: 1, examples: [`${tar}:sample-0003`] },
      'no image': { count: 1, examples: [`${tar}:sample-0004`] },
      'empty image': { count: 1, examples: [`${tar}:sample-0005`] },
    });

    const error = await errorOf(() =>
      openSource({ type: 'webdataset', tars: tar }, { maxSkips: 2 }),
    );
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('5 of 6 samples');
    expect(error.message).toContain(`${tar}:sample-0003`);
  }));

test('a folder and a manifest of the same images give the same captions', () =>
  withFolder(async (folder) => {
    fs.mkdirSync(path.join(folder, 'sub'));
    for (let i = 0; i < 4; i++)
      fs.writeFileSync(path.join(folder, 'sub', `${i}.png`), await picture(i));
    fs.writeFileSync(path.join(folder, 'sub', '0.txt'), 'zero');
    fs.writeFileSync(
      path.join(folder, 'sub', '1.json'),
      '{"caption": ["one", "uno"], "lang": "it", "class": 7}',
    );
    fs.writeFileSync(path.join(folder, 'sub', '2.json'), '{"text": "two"}');
    const lines = [
      '{"image": "sub/0.png", "caption": "zero"}',
      '',
      '{"image": "sub/1.png", "captions": {"it": ["one", "uno"]}, "class": 7}\r',
      '{"image": "sub/2.png", "text": "two"}',
      '{"image": "sub/3.png"}',
      '{"image": "sub/9.png", "text": "x"}',
      'nonsense',
    ];
    fs.writeFileSync(path.join(folder, 'list.jsonl'), lines.join('\n'));

    const reader = new FileReader();
    const fromFolder = await openSource({ type: 'folder', path: folder });
    const fromManifest = await openSource({
      type: 'manifest',
      path: path.join(folder, 'list.jsonl'),
    });
    const captions = [fromFolder, fromManifest].map((source) =>
      source.samples.map((sample) => [
        sample.key,
        sample.class,
        readCaptions(reader, sample).captions,
      ]),
    );
    expect(captions[0]).toEqual(captions[1]);
    expect(
      captions[0]?.map(([, , list]) =>
        (list as Caption[]).map(({ lang, text }) => `${lang}:${text}`),
      ),
    ).toEqual([['en:zero'], ['it:one', 'it:uno'], ['en:two']]);
    expect(fromFolder.skips.byReason.get('no caption')?.examples).toEqual([
      path.join(folder, 'sub', '3.png'),
    ]);
    expect(fromManifest.skips.byReason.get('the image is missing')?.examples).toEqual([
      path.join(folder, 'sub', '9.png'),
    ]);
    expect(fromManifest.skips.byReason.get('the line is not valid JSON')?.count).toBe(1);
    reader.close();
  }));

test('images that are named by their bytes, and links to nothing, are counted skips', () =>
  withFolder(async (folder) => {
    const png = await picture(1),
      rows = [png.toString('latin1'), png.toString('base64').repeat(100), 'there.png'];
    fs.writeFileSync(path.join(folder, 'there.png'), png);
    fs.writeFileSync(
      path.join(folder, 'm.jsonl'),
      rows.map((image) => JSON.stringify({ image, caption: 'a' })).join('\n'),
    );
    const manifest = await openSource({ type: 'manifest', path: path.join(folder, 'm.jsonl') });
    expect([
      manifest.length,
      manifest.skips.byReason.get('the image is no path of a file')?.examples,
    ]).toEqual([1, [1, 2].map((n) => `${path.join(folder, 'm.jsonl')} line ${n}`)]);
    for (const [to, name] of [
      ['nowhere', 'dangling'],
      ['loop.png', 'loop'],
    ] as const)
      fs.symlinkSync(to, path.join(folder, `${name}.png`));
    fs.writeFileSync(path.join(folder, 'there.txt'), 'a');
    const { length, skips } = await openSource({ type: 'folder', path: folder });
    expect([length, skips.byReason.get('the image is missing')?.count]).toEqual([1, 2]);
    const error = await errorOf(() =>
      openSource({ type: 'folder', path: path.join(folder, 'there.png') }),
    );
    expect(error).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringContaining('is a file and no folder'),
    });
  }));

test('a folder takes TIFF, and extensions in any case', () =>
  withFolder(async (folder) => {
    const put = (name: string, data: Buffer | string): void =>
      fs.writeFileSync(path.join(folder, name), data);
    put('A.PNG', await picture(1));
    put('A.TXT', 'capitals');
    put(
      'b.tiff',
      await sharp(await picture(2))
        .tiff()
        .toBuffer(),
    );
    put('b.Json', '{"caption": "mixed"}');
    const source = await openSource({ type: 'folder', path: folder });
    expect(source.samples.map((s) => readCaptions(new FileReader(), s).captions[0]!.text)).toEqual([
      'capitals',
      'mixed',
    ]);
  }));

test('a compressed tar is called that', () =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'a.tar.gz');
    fs.writeFileSync(file, gzipSync(Buffer.alloc(2048, 'a.png'), { level: 0 }));
    expect((await errorOf(() => openSource({ type: 'webdataset', tars: file }))).message).toContain(
      'is compressed; ',
    );
  }));

test('missing files and empty collections are errors that name them', () =>
  withFolder(async (folder) => {
    const specs = [
      { type: 'webdataset', tars: path.join(folder, 'none.tar') },
      { type: 'webdataset', tars: path.join(folder, '*.tar') },
      { type: 'folder', path: path.join(folder, 'nowhere') },
      { type: 'manifest', path: path.join(folder, 'none.jsonl') },
      { type: 'emoji', path: path.join(folder, 'emoji') },
      { type: 'folder', path: folder },
    ] as const;
    for (const spec of specs) {
      const error = await errorOf(() => openSource(spec));
      expect(error.code).toBe('ERR_DATA');
      expect(error.message).toContain(folder);
    }
  }));

test('braces and wildcards expand in order', () =>
  withFolder((folder) => {
    for (const name of ['b1.tar', 'a1.tar', 'a10.tar'])
      fs.writeFileSync(path.join(folder, name), '');
    expect(expandPaths('x-{08..11}-{a,b}.tar').slice(0, 3)).toEqual([
      'x-08-a.tar',
      'x-08-b.tar',
      'x-09-a.tar',
    ]);
    expect(expandPaths(path.join(folder, 'a*.tar')).map((file) => path.basename(file))).toEqual([
      'a1.tar',
      'a10.tar',
    ]);
    expect(expandPaths(path.join(folder, '?1.tar')).length).toBe(2);
  }));

test('captions in every JSON form', () => {
  const forms: [unknown, string[]][] = [
    [{ captions: { en: ['a', ' b '], de: 'c' } }, ['en:a', 'en:b', 'de:c']],
    [{ captions: ['a', { lang: 'fr', text: 'b' }] }, ['xx:a', 'fr:b']],
    [{ caption: 'a', language: 'sv' }, ['sv:a']],
    [{ text: ['a', 3, null, ''] }, ['xx:a']],
    [{ captions: [], caption: 'a' }, ['xx:a']],
    [['a'], []],
    [null, []],
    [{ captions: { en: { no: 1 } } }, []],
  ];
  for (const [object, expected] of forms) {
    expect(
      captionsFromObject(object, 'xx').captions.map(({ lang, text }) => `${lang}:${text}`),
    ).toEqual(expected);
  }
});

test('captions are chosen as asked for', () => {
  const captions = ['en:cat', 'en:pet', 'de:Katze', 'de:Tier', 'ja:猫'].map((c) => {
    const [lang, text] = c.split(':') as [string, string];
    return { lang, text };
  });
  const choose = (choice: CaptionChoice, seed: number): Caption[] | undefined =>
    chooseCaptions(groupCaptions(captions, choice), choice, new Random(seed));
  const counts = new Map<string, number>();
  for (let i = 0; i < 4000; i++) {
    const chosen = choose({ pick: ['en', 'other'], primaryProbability: 0.9 }, i);
    for (const { lang, text } of chosen ?? [])
      counts.set(`${lang}:${text}`, (counts.get(`${lang}:${text}`) ?? 0) + 1);
    expect(chosen?.map(({ lang }) => lang === 'en')).toEqual([true, false]);
  }
  const near = (key: string, expected: number): void => {
    expect(Math.abs((counts.get(key) ?? 0) / 4000 - expected)).toBeLessThan(0.03);
  };
  near('en:cat', 0.9);
  near('ja:猫', 0.5);
  near('de:Katze', 0.45);
  near('de:Tier', 0.05);
  expect(choose({ pick: ['other', 'other'] }, 1)?.length).toBe(2);
  expect(choose({ pick: ['fi'] }, 1)?.length).toBe(1);
  expect(choose({ languages: ['fi'] }, 1)).toBeUndefined();
});

test('files with a byte order mark are read like those without', () =>
  withFolder(async (folder) => {
    const at = (name: string): string => path.join(folder, name),
      bom = '\ufeff';
    for (const name of ['a.png', 'b.png']) fs.writeFileSync(at(name), await picture(1));
    fs.writeFileSync(at('a.json'), `${bom}{"caption": "red thing"}`);
    fs.writeFileSync(at('b.txt'), `${bom}blue thing\r\n`);
    fs.writeFileSync(
      at('m.jsonl'),
      `${bom}{"image": "a.png", "caption": "red thing"}\r\n{"image": "b.png", "caption": "blue thing"}\r\n`,
    );
    fs.writeFileSync(at('keys.txt'), `${bom}a.png\r\n`);
    const reader = new FileReader();
    for (const spec of [
      { type: 'folder', path: folder },
      { type: 'manifest', path: at('m.jsonl') },
    ] as const) {
      const source = await openSource(spec);
      expect(source.samples.map((s) => readCaptions(reader, s).captions[0]!.text)).toEqual([
        'red thing',
        'blue thing',
      ]);
      expect(
        (await openSource({ ...spec, keys: at('keys.txt') })).samples.map(({ key }) => key),
      ).toEqual(['a.png']);
    }
    reader.close();
  }));
