import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, test } from '@jest/globals';
import {
  buildEmojiDataset,
  type EmojiOptions,
  type EmojiProgress,
  readClasses,
  readManifest,
} from '../../lib/data/datasets/emoji.js';
import { DataLoader } from '../../lib/data/loader.js';
import { readCaptions } from '../../lib/data/sample.js';
import { openSource } from '../../lib/data/source.js';
import { buildEvalSets, candidateNames, pixelNeighbour, thumbnails } from '../../lib/eval/sets.js';
import { decodeImage } from '../../lib/image/image.js';
import { FileReader } from '../../lib/io/reader.js';
import { errorOf, withFolder } from './support.js';

const options: EmojiOptions = {
  studios: [
    { name: 'twemoji', split: 'train' },
    { name: 'emojione', split: 'train' },
    { name: 'fxemoji', split: 'val' },
    { name: 'openmoji', split: 'test' },
  ],
  languages: ['en', 'de', 'ja', 'quz'],
  size: 32,
  maxClasses: 220,
  samplesPerShard: 100,
};

test(
  'the dataset: built once, read back, evaluated',
  () =>
    withFolder(async (folder) => {
      const steps: EmojiProgress[] = [];
      const manifest = await buildEmojiDataset(folder, {
        ...options,
        onProgress: (step) => steps.push(step),
      });
      expect(steps.at(-1)).toMatchObject({
        stage: 'done',
        done: manifest.samples,
        total: manifest.samples,
      });
      expect(manifest.classes).toBe(220);
      expect(manifest.studios.map(({ licence }) => licence)).toEqual([
        'CC-BY-4.0',
        'CC-BY-4.0',
        'Apache-2.0',
        'CC-BY-SA-4.0',
      ]);
      expect(manifest.captionSource.licence).toBe('Unicode-3.0');
      expect(manifest.studios.every(({ skipped }) => skipped.length === 0)).toBe(true);
      expect(readManifest(folder)).toEqual(manifest);

      // Building again does nothing; with a damaged shard it builds anew and leaves
      // nothing stale.
      const shard = path.join(folder, 'twemoji-00.tar');
      const before = [fs.statSync(shard).mtimeMs, fs.readFileSync(shard)] as const;
      await buildEmojiDataset(folder, options);
      expect(fs.statSync(shard).mtimeMs).toBe(before[0]);
      fs.truncateSync(shard, 1000);
      await buildEmojiDataset(folder, options);
      expect(fs.readFileSync(shard).equals(before[1])).toBe(true);
      expect(fs.readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);

      // Captions match the artwork: some code points whose pictures have a known colour.
      const reader = new FileReader();
      const classes = readClasses(folder);
      const source = await openSource({ type: 'emoji', path: folder, split: 'train' });
      expect(source.skips.total).toBe(0);
      const find = (studio: string, codePoints: string) =>
        source.samples.find(({ key }) => key === `${studio}-${codePoints}`);
      for (const studio of ['twemoji', 'emojione']) {
        const heart = find(studio, '2764');
        expect(heart).toBeDefined();
        if (heart === undefined) continue;
        expect(classes[heart.class ?? -1]?.names).toMatchObject({
          en: 'red heart',
          de: 'rotes Herz',
          ja: '赤いハート',
        });
        const { captions } = readCaptions(reader, heart);
        expect(captions.find(({ lang }) => lang === 'en')?.text).toBe('red heart');
        expect(captions.filter(({ lang }) => lang === 'ja').length).toBe(2);
        const { data } = await decodeImage(reader.read(heart.image), 'heart');
        let [red, green] = [0, 0];
        for (let i = 0; i < data.length; i += 3) {
          red += data[i] as number;
          green += data[i + 1] as number;
        }
        expect(red).toBeGreaterThan(green);
      }
      reader.close();

      const loader = new DataLoader(source, {
        batchSize: 16,
        seed: 1,
        size: 32,
        transforms: [{ name: 'place' }],
        captions: { pick: ['en', 'other'] },
        uniqueBy: 'class',
        workers: 1,
      });
      const batch = await loader.next();
      await loader.close();
      expect([batch.images.length, batch.ids.length, batch.texts.length]).toEqual([
        16 * 32 * 32 * 3,
        32 * 64,
        32,
      ]);
      expect(new Set(batch.classes).size).toBe(16);

      const make = () =>
        buildEvalSets(folder, { size: 32, seed: 4, minStudios: 2, perClass: 2, maxClasses: 60 });
      const suite = await make();
      const again = await make();
      expect(suite.sets.map(({ name }) => name)).toEqual([
        'seen-placed',
        'val-placed',
        'unseen-studio-placed',
        'unseen-studio-plain',
      ]);
      suite.sets.forEach((set, i) => {
        const n = set.classes.length;
        expect(set.images.length).toBe(n * 32 * 32 * 3);
        expect(
          Buffer.from(set.images).equals(Buffer.from(again.sets[i]?.images as Uint8Array)),
        ).toBe(true);
        expect(set.keys.length).toBe(n);
        const { ids, names } = candidateNames(suite, set, 'de');
        expect(names.length).toBe(ids.length);
        const accuracy = pixelNeighbour(set, suite.gallery);
        expect(accuracy).toBeGreaterThanOrEqual(0);
        expect(accuracy).toBeLessThan(0.9);
      });
      const [seen, , , plain] = suite.sets;
      expect(seen?.keys.filter((key) => key.startsWith('twemoji')).length).toBe(60);
      expect(plain?.keys.every((key) => key.startsWith('openmoji'))).toBe(true);
      expect([...(plain?.images.subarray(0, 3) ?? [])]).toEqual([255, 255, 255]);

      // The bounds never change the answer: the same by brute force.
      for (const set of suite.sets) {
        const { pixels, classes: owners } = suite.gallery;
        const queries = thumbnails(set.images, set.size, set.classes).pixels;
        const allowed = new Set(set.candidates);
        let right = 0;
        set.classes.forEach((id, i) => {
          let [best, winner] = [Infinity, -1];
          owners.forEach((owner, j) => {
            if (!allowed.has(owner)) return;
            let sum = 0;
            for (let k = 0; k < 768; k++)
              sum += ((queries[i * 768 + k] as number) - (pixels[j * 768 + k] as number)) ** 2;
            if (sum < best) [best, winner] = [sum, owner];
          });
          if (winner === id) right++;
        });
        expect(pixelNeighbour(set, suite.gallery)).toBe(right / set.classes.length);
      }
    }),
  60_000,
);

test('a missing package names the command that installs it', () =>
  withFolder(async (folder) => {
    const error = await errorOf(() =>
      buildEmojiDataset(folder, { ...options, studios: [{ name: 'no-such-set', split: 'train' }] }),
    );
    expect(error.code).toBe('ERR_DATA');
    expect(error.message).toContain('npm install @iconify-json/no-such-set');
    expect((await errorOf(() => buildEmojiDataset(folder, { languages: ['de'] }))).code).toBe(
      'ERR_CONFIG',
    );
  }));

test('an aborted build leaves no manifest and no temporary file, and can be built again', () =>
  withFolder(async (folder) => {
    const control = new AbortController();
    const error = await errorOf(() =>
      buildEmojiDataset(folder, {
        ...options,
        signal: control.signal,
        onProgress: ({ done }) => {
          if (done > 50) control.abort(new Error('enough'));
        },
      }),
    );
    expect(error.message).toBe('enough');
    expect(fs.readdirSync(folder)).toEqual([]);
    expect((await errorOf(() => readManifest(folder))).code).toBe('ERR_DATA');
  }));

test('a full disk while building is an error, with no manifest', () =>
  withFolder(async (folder) => {
    const { execFileSync } = await import('node:child_process');
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', folder], {
        stdio: 'ignore',
      });
    } catch {
      console.warn('skipped: a small tmpfs cannot be mounted here');
      return;
    }
    try {
      const error = await errorOf(() => buildEmojiDataset(folder, options));
      expect(error.code).toBe('ERR_IO');
      expect(error.message).toContain('disk is full');
      expect(fs.existsSync(path.join(folder, 'manifest.json'))).toBe(false);
      expect(fs.readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    } finally {
      execFileSync('umount', [folder]);
    }
  }));
