import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, test } from '@jest/globals';
import sharp from 'sharp';
import type { Batch } from '../../lib/data/batch.js';
import type { BuilderConfig } from '../../lib/data/batch_builder.js';
import { threadSite } from '../../lib/data/builder_worker.js';
import { DataLoader } from '../../lib/data/loader.js';
import type { LoaderOptions } from '../../lib/data/loader_options.js';
import type { SampleSource } from '../../lib/data/sample_source.js';
import { openSource } from '../../lib/data/source.js';
import { decodeInput } from '../../lib/image/input.js';
import { viewsConfig } from '../../lib/image/views.js';
import { errorOf, makeTar, withFolder } from './support.js';

const options: LoaderOptions = {
  batchSize: 8,
  seed: 5,
  size: 16,
  tokenizer: null,
  captions: { pick: ['en', 'other'] },
  uniqueBy: 'class',
  transforms: [{ name: 'place', scale: [0.4, 1] }, { name: 'flip' }],
  workers: 0,
};

/** All that a batch says, for comparing. */
function content(batch: Batch): unknown {
  const { images, ids, keys, langs, texts, samples, classes, index, epoch, size } = batch;
  return JSON.parse(
    JSON.stringify({
      images: Buffer.from(images).toString('base64'),
      ids: [...ids],
      keys,
      langs,
      texts,
      samples: [...samples],
      classes: [...(classes ?? [])],
      index,
      epoch,
      size,
    }),
  );
}

async function read(
  source: SampleSource,
  n: number,
  more: Partial<LoaderOptions> = {},
): Promise<unknown[]> {
  const loader = new DataLoader(source, { ...options, ...more });
  try {
    const out: unknown[] = [];
    for (let i = 0; i < n; i++) out.push(content(await loader.next()));
    return out;
  } finally {
    await loader.close();
  }
}

test(
  'views for self-distillation are the same with workers, damaged images included, and leave the rest alone',
  () =>
    withFolder(async (folder) => {
      await makeTar(path.join(folder, 'a.tar'), 20, 20, damage);
      const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
      const views = viewsConfig(32, 8, { locals: 3 });
      const batches = async (more: Partial<LoaderOptions>): Promise<Batch[]> => {
        await using loader = new DataLoader(source, { ...options, ...more });
        return [await loader.next(), await loader.next()];
      };
      const [none, two, without] = [
        await batches({ views }),
        await batches({ views, workers: 2 }),
        await batches({}),
      ];
      none.forEach((batch, i) => {
        expect(two[i]!.views).toEqual(batch.views);
        expect(content(batch)).toEqual(content(without[i]!));
        const { globalViews, localViews, masks } = batch.views!;
        const { size: s } = views.local;
        expect([globalViews.length, localViews.length, masks.length]).toEqual([
          8 * 32 * 32 * 3,
          3 * 8 * s * s * 3,
          8 * 16,
        ]);
        for (let b = 0; b < 8; b++)
          expect(masks.subarray(b * 16, (b + 1) * 16).reduce((x, y) => x + y)).toBe(8);
        // No view was left empty.
        for (let v = 0; v < 24; v++)
          expect(localViews.subarray(v * s * s * 3, (v + 1) * s * s * 3).some((x) => x > 0)).toBe(
            true,
          );
      });
      expect(without[0]!.views).toBeUndefined();
      expect(
        (
          await errorOf(
            () => new DataLoader(source, { ...options, views: { ...views, locals: 0 } }),
          )
        ).message,
      ).toMatch(/locals must be/);
    }),
  60000,
);

const damage = (i: number, members: { png?: Buffer }): void => {
  if (i % 9 === 4) members.png = Buffer.from('damaged');
};

test('batches are the same for 0, 1 and 3 workers, damaged images included', () =>
  withFolder(async (folder) => {
    await makeTar(path.join(folder, 'a.tar'), 50, 25, damage);
    const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
    const [none, one, three] = [
      await read(source, 14),
      await read(source, 14, { workers: 1, prefetch: 1 }),
      await read(source, 14, { workers: 3 }),
    ];
    expect(one).toEqual(none);
    expect(three).toEqual(none);
    const batches = none as {
      samples: number[];
      classes: number[];
      langs: string[];
      index: number;
      epoch: number;
    }[];
    expect(batches.map(({ index }) => index)).toEqual([...Array(14).keys()]);
    for (const { samples, classes, langs } of batches) {
      expect(new Set(classes).size).toBe(8);
      expect(samples.some((i) => i % 9 === 4)).toBe(false);
      expect(langs.slice(0, 8)).toEqual(Array(8).fill('en'));
      expect(langs.slice(8)).not.toContain('en');
    }
    expect(batches.at(-1)?.epoch).toBeGreaterThan(0);
  }));

test('a resumed loader goes on with the very same batches', () =>
  withFolder(async (folder) => {
    await makeTar(path.join(folder, 'a.tar'), 50, 25, damage);
    const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
    const all = await read(source, 12);
    for (const [n, workers] of [
      [0, 0],
      [5, 2],
      [7, 0],
    ] as const) {
      const first = new DataLoader(source, { ...options, workers });
      for (let i = 0; i < n; i++) await first.next();
      const state = JSON.parse(JSON.stringify(first.state));
      await first.close();
      const second = new DataLoader(source, { ...options, workers });
      second.restore(state);
      for (let i = n; i < 12; i++) expect(content(await second.next())).toEqual(all[i]);
      expect((await errorOf(() => second.restore(state))).code).toBe('ERR_CONFIG');
      await second.close();
    }
  }));

test('unusable samples are counted once with their file, and too many are an error', () =>
  withFolder(async (folder) => {
    const tar = path.join(folder, 'a.tar');
    await makeTar(tar, 40, 40, damage);
    const source = await openSource({ type: 'webdataset', tars: tar });
    const loader = new DataLoader(source, options);
    for (let i = 0; i < 15; i++) await loader.next();
    const record = loader.skips.byReason.get('the image cannot be decoded');
    expect(record?.count).toBe(4);
    expect(record?.examples.sort()).toEqual(
      [4, 13, 22, 31].map((i) => `${tar}:sample-00${String(i).padStart(2, '0')}`),
    );
    expect(source.skips.total).toBe(0);
    await loader.close();

    const strict = new DataLoader(source, { ...options, workers: 1, maxSkips: 1 });
    const error = await errorOf(async () => {
      for (;;) await strict.next();
    });
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('more than maxSkips = 1');
    expect(error.message).toContain(tar);
    expect((await errorOf(() => strict.next())).message).toBe(error.message);
  }));

test('when nothing can stand in, the error says so', () =>
  withFolder(async (folder) => {
    const tar = path.join(folder, 'a.tar');
    await makeTar(tar, 9, 9, (i, members) => {
      if (i > 2) members.png = Buffer.from('x');
    });
    const source = await openSource({ type: 'webdataset', tars: tar });
    const error = await errorOf(() => new DataLoader(source, options).next());
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('no usable sample is left');
    expect(error.message).toContain(tar);
  }));

test('a shard that is cut short after indexing is noticed', () =>
  withFolder(async (folder) => {
    const tar = path.join(folder, 'a.tar');
    await makeTar(tar, 20);
    const source = await openSource({ type: 'webdataset', tars: tar });
    fs.truncateSync(tar, 4096);
    const error = await errorOf(() => new DataLoader(source, { ...options, maxSkips: 5 }).next());
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain(tar);
  }));

test('an aborted signal and close end loading', () =>
  withFolder(async (folder) => {
    await makeTar(path.join(folder, 'a.tar'), 30);
    const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
    const control = new AbortController();
    const loader = new DataLoader(source, { ...options, workers: 2, signal: control.signal });
    await loader.next();
    control.abort(new Error('stopped by the user'));
    expect((await errorOf(() => loader.next())).message).toBe('stopped by the user');
    await loader.close();

    let n = 0;
    for await (const batch of new DataLoader(source, { ...options, workers: 1 })) {
      expect(batch.waitMs).toBeGreaterThanOrEqual(0);
      if (++n === 3) break;
    }
    const closed = new DataLoader(source, options);
    await closed.close();
    expect((await errorOf(() => closed.next())).code).toBe('ERR_DATA');
  }));

test('a worker that hangs is an error that names sample and stage', () =>
  withFolder(async (folder) => {
    // An open pipe that nobody writes to blocks whoever reads it, as a dead network disk does.
    const fifo = path.join(folder, 'stuck.png');
    let fd: number, pipe: string;
    try {
      const { execFileSync } = await import('node:child_process');
      execFileSync('mkfifo', [fifo]);
      fd = fs.openSync(fifo, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
      pipe = `/proc/self/fd/${fd}`;
      fs.accessSync(pipe);
    } catch {
      console.warn('skipped: named pipes cannot be made here');
      return;
    }
    await makeTar(path.join(folder, 'a.tar'), 4);
    const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
    for (const sample of source.samples) sample.image = { path: pipe, offset: 0, size: -1 };
    const loader = new DataLoader(source, {
      ...options,
      batchSize: 2,
      workers: 1,
      prefetch: 0,
      timeoutMs: 3000,
    });
    const error = await errorOf(() => loader.next());
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('no data for 3 s');
    expect(error.message).toContain(`reading the image of ${pipe}`);
    // Without any writer the blocked thread can finish.
    fs.closeSync(fd);
    await loader.close();
  }));

test('options out of range are config errors', () =>
  withFolder(async (folder) => {
    await makeTar(path.join(folder, 'a.tar'), 10);
    const source = await openSource({ type: 'webdataset', tars: path.join(folder, 'a.tar') });
    const wrong: Partial<LoaderOptions>[] = [
      { size: 0 },
      { workers: -1 },
      { prefetch: 0.5 },
      { batchSize: 11 },
      { captions: { pick: [] } },
      { captions: { primaryProbability: 2 } },
      { captions: { pick: ['en'], languages: ['de'] } },
      { transforms: [] },
    ];
    for (const more of wrong) {
      expect((await errorOf(() => new DataLoader(source, { ...options, ...more }))).code).toBe(
        'ERR_CONFIG',
      );
    }
  }));

test('a worker that dies is noticed', async () => {
  // A config without its parts makes the thread throw as soon as it starts.
  const what = await new Promise<string>((resolve) => {
    threadSite(
      {} as BuilderConfig,
      () => undefined,
      (_, ending) => resolve(ending),
    );
  });
  expect(what).toMatch(/^crashed \(.+\)$/);
});

test('training sees the pixels that the encoder sees: colour profiles are ignored, CMYK is converted without one', () =>
  withFolder(async (folder) => {
    const plain = sharp({ create: { width: 16, height: 16, channels: 3, background: '#30c040' } });
    const files = [
      await plain.clone().withIccProfile('p3').png().toBuffer(),
      await plain.clone().toColourspace('cmyk').jpeg().toBuffer(),
    ];
    files.forEach((bytes, i) => {
      fs.writeFileSync(path.join(folder, `${i}.${i === 0 ? 'png' : 'jpg'}`), bytes);
      fs.writeFileSync(path.join(folder, `${i}.txt`), 'green');
    });
    const loader = new DataLoader(await openSource({ type: 'folder', path: folder }), {
      batchSize: 2,
      seed: 1,
      size: 16,
      shuffle: false,
      workers: 0,
    });
    try {
      const { images } = await loader.next();
      const want = await Promise.all(files.map(async (bytes) => (await decodeInput(bytes)).data));
      want.forEach((data, i) =>
        expect(images.subarray(i * 768, (i + 1) * 768)).toEqual(new Uint8Array(data)),
      );
    } finally {
      await loader.close();
    }
  }));
