/** Mixtures from files to batches: what is drawn, exact continuation, identified languages, captions in none. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect, test } from '@jest/globals';
import type { Batch } from '../../lib/data/batch.js';
import { DataLoader } from '../../lib/data/loader.js';
import type { LoaderOptions } from '../../lib/data/loader_options.js';
import type { SampleSource } from '../../lib/data/sample_source.js';
import { openSource } from '../../lib/data/source.js';
import type { MixtureSpec, SourceSpec } from '../../lib/data/spec.js';
import { liveCount } from '../../lib/tensor.js';
import { languageDetector } from '../../lib/text/language.js';
import { checkTrainConfig } from '../../lib/train/config.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';
import { errorOf, makeTar, picture, withFolder } from './support.js';

/** 60 pictures with captions in en, de and ja; 20 in en; 10 in fr. */
async function files(folder: string): Promise<MixtureSpec> {
  await makeTar(path.join(folder, 'web.tar'), 60, 60, (i, members) => {
    if (i % 20 === 7) members.png = Buffer.from('damaged');
  });
  await makeTar(path.join(folder, 'clean.tar'), 20, 20, (i, members) => {
    members.json = JSON.stringify({ class: i, caption: `clean ${i}` });
  });
  await makeTar(path.join(folder, 'small.tar'), 10, 10, (i, members) => {
    members.json = JSON.stringify({ lang: 'fr', text: `petit ${i}` });
  });
  return {
    type: 'mixture',
    sources: [
      ['web', 5],
      ['clean', 4],
      ['small', 1],
    ].map(([name, weight]) => ({
      name: String(name),
      weight: Number(weight),
      source: { type: 'webdataset', tars: path.join(folder, `${name}.tar`) },
    })),
    languages: { quotas: { en: 0.7, fr: 0.1, other: 0.2 } },
  };
}

const options: LoaderOptions = {
  batchSize: 10,
  seed: 3,
  size: 8,
  tokenizer: null,
  transforms: [{ name: 'random-resized-crop', scale: [0.5, 1] }],
  workers: 0,
};

/** A batch as JSON, without the time it took. */
const plain = ({ images, samples, classes, ids: _, waitMs: __, ...rest }: Batch): unknown =>
  JSON.parse(
    JSON.stringify({
      ...rest,
      images: [...images],
      samples: [...samples],
      classes: [...(classes ?? [])],
    }),
  );

async function take(
  source: SampleSource,
  n: number,
  more: Partial<LoaderOptions> = {},
  state?: unknown,
): Promise<{ batches: unknown[]; state: unknown }> {
  await using loader = new DataLoader(source, { ...options, ...more });
  if (state) loader.restore(state as never);
  const batches: unknown[] = [];
  for (let i = 0; i < n; i++) batches.push(plain(await loader.next()));
  return { batches, state: JSON.parse(JSON.stringify(loader.state)) };
}

test(
  'batches have the shares, captions in the language drawn, no sample twice, and the account is exact',
  () =>
    withFolder(async (folder) => {
      const source = await openSource(await files(folder));
      expect(source.length).toBe(90);
      const { batches } = await take(source, 60);
      const bySource: Record<string, number> = { web: 0, clean: 0, small: 0 },
        byLanguage: Record<string, number> = {};
      for (const b of batches as Batch[]) {
        expect(new Set(b.samples).size).toBe(10);
        b.samples.forEach((s, i) => {
          bySource[s < 60 ? 'web' : s < 80 ? 'clean' : 'small']!++;
          byLanguage[b.langs[i]!] = (byLanguage[b.langs[i]!] ?? 0) + 1;
          expect(s % 20 === 7 && s < 60).toBe(false);
          expect(b.texts[i]).toMatch(
            { en: /^(picture|word|clean)/, de: /^Bild/, ja: /^絵/, fr: /^petit/ }[b.langs[i]!]!,
          );
        });
        expect(b.drawn).toEqual({ sources: bySource, languages: byLanguage });
      }
      // 600 draws: 50 % web, 40 % clean, 10 % small; 70 % en, 10 % fr, 20 % de and ja.
      expect(Math.abs(bySource['web']! - 300)).toBeLessThan(6);
      expect(Math.abs(bySource['small']! - 60)).toBeLessThan(6);
      expect(Math.abs(byLanguage['en']! - 420)).toBeLessThan(6);
      expect(Math.abs(byLanguage['de']! - 60)).toBeLessThan(6);
    }),
  120000,
);

test(
  'the stream goes on exactly, whatever the number of workers',
  () =>
    withFolder(async (folder) => {
      const source = await openSource(await files(folder));
      const whole = await take(source, 24);
      const first = await take(source, 5, { workers: 1 });
      const second = await take(source, 19, {}, first.state);
      expect([...first.batches, ...second.batches]).toEqual(whole.batches);
      expect(second.state).toEqual(whole.state);
      const other = await openSource({
        ...(await files(folder)),
        languages: { quotas: { en: 0.75, fr: 0.1, other: 0.15 } },
      });
      expect((await errorOf(() => take(other, 1, {}, whole.state))).message).toMatch(
        /another mixture: .* had a share of/,
      );
    }),
  120000,
);

test(
  'what cannot work is refused in one sentence',
  () =>
    withFolder(async (folder) => {
      const spec = await files(folder),
        source = await openSource(spec);
      fs.writeFileSync(path.join(folder, 'a.png'), await picture(1));
      fs.writeFileSync(path.join(folder, 'a.txt'), 'a picture');
      const refused = async (run: () => unknown, text: RegExp): Promise<void> => {
        expect(await errorOf(run)).toMatchObject({
          code: 'ERR_CONFIG',
          message: expect.stringMatching(text) as never,
        });
      };
      await refused(
        () => take(source, 1, { captions: { pick: ['en'] } }),
        /pick can only be "any"/,
      );
      const classless = await openSource({
        type: 'mixture',
        sources: [{ source: { type: 'folder', path: folder } }],
        languages: { quotas: { en: 1 } },
      });
      await refused(
        () => take(classless, 1, { batchSize: 1, uniqueBy: 'class' }),
        /needs samples with classes/,
      );
      await refused(
        () => take(source, 1, { batchSize: 70 }),
        /a batch of 70 needs 28\.0 samples in en from clean but there are 20/,
      );
      await refused(
        () => openSource({ ...spec, sources: [...spec.sources, spec.sources[0]!] }),
        /called "web"/,
      );
      await refused(() => openSource({ ...spec, sources: [] }), /at least one source/);
      await refused(
        () => openSource({ ...spec, sources: spec.sources.slice(0, 2) }),
        /quota of "fr"/,
      );
    }),
  120000,
);

const CAPTIONS: [text: string, language: string | undefined][] = [
  ['A brown dog is running across the green grass in the park', 'en'],
  ['Ein brauner Hund läuft im Park über die grüne Wiese', 'de'],
  ['Un chien brun court dans le parc sur la pelouse verte', 'fr'],
  ['公園の芝生の上を茶色い犬が走っています', 'ja'],
  ['20231104_183015', undefined],
  ['🐶🐶🐶 !!! 100 %', undefined],
  ['qzx', 'und'],
];

test(
  'languages are identified, and captions in none are skips that are counted and named',
  () =>
    withFolder(async (folder) => {
      const detect = await languageDetector();
      for (const [text, language] of CAPTIONS)
        expect([text, detect(text)]).toEqual([text, language]);
      const lines: string[] = [];
      for (const [i, [text]] of CAPTIONS.entries()) {
        fs.writeFileSync(path.join(folder, `${i}.png`), await picture(i));
        lines.push(JSON.stringify({ image: `${i}.png`, caption: text }));
      }
      fs.writeFileSync(path.join(folder, '8.png'), await picture(8));
      lines.push(JSON.stringify({ image: '8.png', captions: [{ lang: 'sv', text: '12' }, '13'] })); // said, so believed
      fs.writeFileSync(path.join(folder, 'list.jsonl'), lines.join('\n'));
      const spec: SourceSpec = {
        type: 'manifest',
        path: path.join(folder, 'list.jsonl'),
        language: 'detect',
      };
      const source = await openSource(spec);
      expect(Object.fromEntries(source.languages)).toEqual({
        en: 1,
        de: 1,
        fr: 1,
        ja: 1,
        und: 2,
        sv: 1,
      });
      expect(source.skips.byReason.get('captions in no language')).toEqual({
        count: 2,
        examples: [4, 5].map((i) => path.join(folder, `${i}.png`)),
      });
      expect((await errorOf(() => openSource(spec, { maxSkips: 1 }))).message).toMatch(
        /more than maxSkips = 1: captions in no language \(2: /,
      );

      const mixed = await openSource({
        type: 'mixture',
        sources: [{ source: spec }],
        languages: { quotas: { und: 0, en: 0.2, other: 0.8 } },
      });
      expect(mixed.skips.total).toBe(2);
      const { batches } = await take(mixed, 10, { batchSize: 3, transforms: [{ name: 'resize' }] });
      const { languages } = (batches.at(-1) as Batch).drawn!;
      expect(languages['und']).toBeUndefined();
      expect(Math.abs(languages['en']! - 6)).toBeLessThanOrEqual(2); // 30 draws of 6 samples, none twice in a batch
    }),
  120000,
);

test(
  'a training run on a mixture keeps its account, and resumes to the same batches and bits',
  () =>
    withFolder(async (folder) => {
      const source = await files(folder);
      const run = async (out: string, stopAt: number, resume: boolean): Promise<StepMetrics[]> => {
        const stop = new AbortController(),
          metrics: StepMetrics[] = [];
        const trainer = await Trainer.open(
          checkTrainConfig({
            out: path.join(folder, out),
            seed: 5,
            dtype: 'f32',
            device: 'cpu',
            model: { variant: 'test' },
            batch: 6,
            total: 8,
            logEvery: 2,
            checkpointEvery: 0,
            data: { source, trimVocabulary: true, workers: 0 },
            optimizer: { warmup: 2 },
          }),
          { resume },
        );
        for await (const m of trainer.run(stop.signal)) {
          metrics.push(m);
          if (m.step === stopAt) stop.abort();
        }
        await trainer.save();
        await trainer.close();
        return metrics;
      };
      const whole = await run('whole', 8, false);
      const parts = [...(await run('parts', 3, false)), ...(await run('parts', 8, true))];
      expect(parts.map((m) => [m.step, m.loss, m.drawn])).toEqual(
        whole.map((m) => [m.step, m.loss, m.drawn]),
      );
      const last = JSON.parse(
        fs
          .readFileSync(path.join(folder, 'parts', 'metrics.jsonl'), 'utf8')
          .trim()
          .split('\n')
          .at(-1)!,
      ) as StepMetrics;
      for (const counts of [last.drawn!.sources, last.drawn!.languages])
        expect(Object.values(counts).reduce((a, b) => a + b, 0)).toBe(48);
    }),
  300000,
);

test('nothing is left alive', () => expect(liveCount()).toBe(0));
