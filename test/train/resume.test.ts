/** What --resume takes and what it does not: other data, damaged checkpoints, other settings. */
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openSource } from '../../lib/data/source.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { liveCount } from '../../lib/tensor.js';
import { listCheckpoints, stateOf } from '../../lib/train/checkpoint.js';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { stageProgress } from '../../lib/train/recipe.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';
import { errorOf } from '../data/support.js';
import { temporaryFolder } from '../encoder_support.js';
import { colouredImages, runTraining } from './run.js';

const folder = temporaryFolder(),
  at = (name: string): string => join(folder, name);

beforeAll(async () => {
  await colouredImages(at('images'), 24);
  // Keys repeat from tar to tar, as those of tools that number within a shard do.
  for (const [name, from] of [
    ['a', 0],
    ['b', 12],
  ] as const) {
    const writer = new TarWriter(at(`${name}.tar`));
    for (let i = 0; i < 12; i++) {
      writer.add(`${i}.png`, readFileSync(join(at('images'), `${from + i}.png`)));
      writer.add(`${i}.txt`, readFileSync(join(at('images'), `${from + i}.txt`)));
    }
    writer.finish();
  }
});
afterAll(() => expect(liveCount()).toBe(0));

const tars = (...names: string[]) => ({
  source: { type: 'webdataset' as const, tars: names.map((n) => at(`${n}.tar`)) },
  trimVocabulary: true,
  workers: 0,
});
function config(out: string, more: Partial<TrainConfigInput> = {}): TrainConfigInput {
  return {
    out: at(out),
    seed: 5,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test' },
    batch: 6,
    total: 8,
    checkpointEvery: 0,
    data: tars('a', 'b'),
    optimizer: { warmup: 1 },
    ...more,
  };
}

/** Opens a resumed run and closes it again; what it said. */
async function resumed(
  input: TrainConfigInput,
  options: { acceptChanges?: boolean } = {},
): Promise<{ notes: string[]; step: number; epoch: number }> {
  const notes: string[] = [];
  const trainer = await Trainer.open(checkTrainConfig(input), {
    resume: true,
    note: (m) => notes.push(m),
    ...options,
  });
  const {
    step,
    loader: {
      state: { epoch },
    },
  } = trainer;
  await trainer.close();
  return { notes, step, epoch };
}

test('data in another order, other data, other captions and other choices among them are refused', async () => {
  await runTraining(config('order'), { stopAt: 2 });
  cpSync(at('images'), at('relabelled'), { recursive: true });
  const refused = async (more: Partial<TrainConfigInput>, says: RegExp): Promise<void> => {
    const { code, message } = await errorOf(() => resumed(config('order', more)));
    expect([code, message]).toEqual(['ERR_CHECKPOINT', expect.stringMatching(says)]);
    expect(message).toContain('--accept-changes');
  };
  // The keys are the same in this order too; the captions are not.
  await refused(
    { data: tars('b', 'a') },
    /the captions, their languages or classes are others than before/,
  );
  await refused({ data: tars('a') }, /the samples are not those.* \(24 then, 12 now\)/);
  await refused(
    { data: { ...tars('a', 'b'), captions: { pick: ['other'] } } },
    /data\.captions \{"pick":\["any"\]\} → \{"pick":\["other"\]\}/,
  );
  await refused(
    { data: { ...tars('a', 'b'), noise: { swapped: 0.5 } } },
    /data\.noise nothing → \{"swapped":0\.5,"seed":0\}/,
  );
  await refused({ seed: 6 }, /seed 5 → 6/);
  await refused({ batch: 8 }, /batch 6 → 8/);
  const same = await resumed(config('order'));
  expect(same.step).toBe(3);
  expect(same.notes.at(-1)).toMatch(/^going on from step 3 of 8, .*step-00000003$/);
  expect(same.notes.join()).not.toMatch(/changed|accepted/);
  // With the word it goes on, where the position among the old samples has no meaning any more.
  const accepted = await resumed(config('order', { data: tars('a') }), { acceptChanges: true });
  expect([accepted.step, accepted.epoch]).toEqual([3, same.epoch + 1]);
  expect(accepted.notes.join()).toMatch(/accepted: the samples are not those/);
}, 120000);

test('data may move', async () => {
  await runTraining(config('moved'), { stopAt: 1 });
  mkdirSync(at('elsewhere'));
  for (const name of ['a.tar', 'b.tar']) copyFileSync(at(name), join(at('elsewhere'), name));
  expect((await resumed(config('moved', { data: tars('elsewhere/a', 'elsewhere/b') }))).step).toBe(
    2,
  );
}, 60000);

test('the fingerprint of a mixture follows from its sources in their order', async () => {
  const source = (...names: string[]) => ({
    type: 'mixture' as const,
    languages: { quotas: { en: 1 } },
    sources: names.map((name) => ({
      name,
      source: { type: 'webdataset' as const, tars: at(`${name}.tar`) },
    })),
  });
  const mark = async (...names: string[]): Promise<unknown> =>
    (await openSource(source(...names))).fingerprint.mark;
  expect(await mark('a', 'b')).toEqual(await mark('a', 'b'));
  expect(await mark('a', 'b')).not.toEqual(await mark('b', 'a'));
});

test('other settings are named, and a longer run says where the schedule goes', async () => {
  const checkpoint = (await runTraining(config('settings'), { stopAt: 3 })).folder;
  const { notes } = await resumed(
    config('settings', { total: 16, init: at('nothing'), optimizer: { warmup: 1, lr: 2e-3 } }),
  );
  expect(notes.join('\n')).toContain(
    `changed since the checkpoint: optimizer.lr 0.001 → 0.002, init nothing → ${JSON.stringify(at('nothing'))}`,
  );
  // cos² of π/2 · (4 − 1) / (total − 1), times the peak.
  const rate = (peak: number, total: number): string =>
    String(Number((peak * Math.cos(((Math.PI / 2) * 3) / (total - 1)) ** 2).toPrecision(3)));
  expect(notes.join('\n')).toContain(
    `the run has 16 steps and had 8, which moves the schedule: the learning rate goes on at ${rate(2e-3, 16)} instead of ${rate(1e-3, 8)}`,
  );
  expect((await resumed(config('settings', { dtype: 'bf16' }))).notes.join('\n')).toContain(
    'dtype "f32" → "bf16"',
  );
  const other = await errorOf(() => resumed(config('settings', { freeze: ['vision_model'] })));
  expect([other.code, other.message]).toEqual([
    'ERR_CHECKPOINT',
    expect.stringMatching(
      /vision_model\.embeddings\.patch_embedding\.weight was trained before and is not now; .*freeze/,
    ),
  ]);
  // States of earlier versions do not say these things.
  const file = join(checkpoint, 'training_state.json'),
    { collection: _, config: __, dtype: ___, ...old } = stateOf(checkpoint);
  writeFileSync(file, JSON.stringify(old));
  expect((await resumed(config('settings'))).notes.join('\n')).toContain(
    'does not say what data it was trained on',
  );
}, 120000);

test.each<[what: string, damage: (checkpoint: string) => void, says: RegExp]>([
  ['weights cut', (c) => truncateSync(join(c, 'model.safetensors'), 5000), /model\.safetensors/],
  ['weights empty', (c) => truncateSync(join(c, 'model.safetensors'), 0), /model\.safetensors/],
  [
    'state cut',
    (c) => truncateSync(join(c, 'training_state.json'), 40),
    /training_state\.json: cannot be read/,
  ],
  [
    'state empty',
    (c) => truncateSync(join(c, 'training_state.json'), 0),
    /training_state\.json: cannot be read/,
  ],
  [
    'moments cut',
    (c) => truncateSync(join(c, 'training_state.safetensors'), 3000),
    /training_state\.safetensors/,
  ],
  ['config gone', (c) => rmSync(join(c, 'config.json')), /config\.json/],
])(
  'a damaged newest checkpoint is put aside: %s',
  async (what, damage, says) => {
    const out = what.replace(' ', '-'),
      input = config(out, { keepCheckpoints: 1, total: 6 });
    await runTraining({ ...input, keepCheckpoints: 2 }, { stopAt: 1 });
    const whole = await runTraining({ ...input, keepCheckpoints: 2 }, { resume: true });
    damage(whole.folder);
    const expected = what.startsWith('state') ? 'begun' : 'finished';
    expect(stageProgress(at(out))).toBe(expected);
    const notes: string[] = [],
      trainer = await Trainer.open(checkTrainConfig(input), {
        resume: true,
        note: (m) => notes.push(m),
      });
    const metrics: StepMetrics[] = [];
    for await (const m of trainer.run()) metrics.push(m);
    await trainer.save();
    await trainer.close();
    expect(notes.find((n) => says.test(n))).toMatch(
      /that checkpoint is now .*damaged-step-00000006.*, and the run goes on from step 2, .*step-00000002/,
    );
    expect(metrics.map((m) => m.loss)).toEqual(whole.metrics.map((m) => m.loss));
    expect(listCheckpoints(at(out)).map((c) => stateOf(c).step)).toEqual([6]);
    expect(readdirSync(join(at(out), 'checkpoints'))).toHaveLength(2);
  },
  120000,
);

test('when no checkpoint is whole nothing is moved', async () => {
  const { folder: checkpoint } = await runTraining(config('none', { total: 2 }));
  truncateSync(join(checkpoint, 'model.safetensors'), 10);
  expect(await errorOf(() => resumed(config('none', { total: 2 })))).toMatchObject({
    code: 'ERR_CHECKPOINT',
    message: expect.stringMatching(
      /none of the 1 checkpoints .* can be read: .*model\.safetensors/,
    ) as never,
  });
  expect(listCheckpoints(at('none'))).toEqual([checkpoint]);
}, 60000);

test('a run ended while it waits for data loses no batch; the time of a step holds its data and no checkpoint', async () => {
  const whole = await runTraining(config('waiting whole'));
  const trainer = await Trainer.open(checkTrainConfig(config('waiting', { checkpointEvery: 3 })));
  const { loader } = trainer,
    next = loader.next.bind(loader),
    stop = new AbortController(),
    metrics: StepMetrics[] = [];
  let asked = 0;
  loader.next = async () => {
    if (++asked === 6) setTimeout(() => stop.abort(), 50);
    await new Promise((resolve) => setTimeout(resolve, asked === 6 ? 1000 : 200));
    return next();
  };
  const began = performance.now();
  let paused = 0;
  for await (const m of trainer.run(stop.signal)) {
    metrics.push(m);
    if (m.step !== trainer.step || !trainer.checkpointDue) continue;
    const since = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 300));
    paused += performance.now() - since;
  }
  expect(metrics).toHaveLength(5);
  expect(paused).toBeGreaterThan(0);
  for (const { imagesPerSecond } of metrics) expect(imagesPerSecond).toBeLessThan(6 / 0.1);
  expect(metrics.at(-1)!.seconds).toBeLessThanOrEqual((performance.now() - began - paused) / 1000);
  expect(metrics.reduce((sum, m) => sum + 6 / m.imagesPerSecond, 0)).toBeCloseTo(
    metrics.at(-1)!.seconds,
    6,
  );
  await trainer.save();
  await trainer.close();
  const rest = await runTraining(config('waiting', { checkpointEvery: 3 }), { resume: true });
  expect([...metrics, ...rest.metrics].map((m) => m.loss)).toEqual(
    whole.metrics.map((m) => m.loss),
  );
}, 120000);
