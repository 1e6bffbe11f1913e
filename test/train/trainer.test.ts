/** Training end to end on a small folder of images: resume to the bit, order free of workers, interruption, bad input. */
import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { loadModel } from '../../lib/checkpoints/load.js';
import { liveCount } from '../../lib/tensor.js';
import { listCheckpoints } from '../../lib/train/checkpoint.js';
import { applySets, checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';
import { colouredImages, runTraining } from './run.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-train-'));
const main = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'lib', 'cli', 'main.js');
const images = join(folder, 'images');

beforeAll(() => colouredImages(images, 24));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

function config(out: string, more: Partial<TrainConfigInput> = {}): TrainConfigInput {
  return {
    out: join(folder, out),
    seed: 5,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test' },
    batch: 6,
    total: 12,
    checkpointEvery: 4,
    data: {
      source: { type: 'folder', path: images },
      transforms: [{ name: 'random-resized-crop', scale: [0.5, 1] }],
      trimVocabulary: true,
      workers: 1,
    },
    optimizer: { warmup: 2, ema: 0.9 },
    ...more,
  };
}

const weights = (dir: string): Buffer => readFileSync(join(dir, 'model.safetensors'));
const losses = (m: StepMetrics[]): number[] => m.map((x) => x.loss);

test('an interrupted run continues to the same bits, whatever the number of workers', async () => {
  const whole = await runTraining(config('whole'));
  expect(whole.metrics.map((m) => m.step)).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
  const first = await runTraining(config('parts'), { stopAt: 5 });
  const second = await runTraining(
    { ...config('parts'), data: { ...config('parts').data, workers: 0 } },
    { resume: true },
  );
  expect([...losses(first.metrics), ...losses(second.metrics)]).toEqual(losses(whole.metrics));
  for (const file of ['model.safetensors', 'model_ema.safetensors', 'training_state.safetensors'])
    expect(
      readFileSync(join(second.folder, file)).equals(readFileSync(join(whole.folder, file))),
    ).toBe(true);
  const lines = readFileSync(join(folder, 'parts', 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((l) => (JSON.parse(l) as StepMetrics).step);
  expect(lines).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
  expect(listCheckpoints(join(folder, 'whole'))).toHaveLength(1); // written by hand here; the command writes more
}, 120000);

test('what was resumed and how many texts were cut is said', async () => {
  const notes: string[] = [],
    long = join(folder, 'long'),
    text = 'one two three four five six seven eight nine ten';
  await colouredImages(long, 12);
  for (const i of [0, 1, 2]) writeFileSync(join(long, `${i}.txt`), text.repeat(3));
  const input: TrainConfigInput = {
    ...config('said'),
    data: { ...config('said').data, source: { type: 'folder', path: long } },
  };
  await runTraining(input, { stopAt: 4 });
  const trainer = await Trainer.open(input, { resume: true, note: (m) => notes.push(m) });
  for await (const _ of trainer.run()) {
    /* to the end */
  }
  expect(notes).toContainEqual(
    expect.stringMatching(/^going on from step \d of 12, .*said.checkpoints.step-0000000\d$/),
  );
  expect(trainer.loader.texts.all).toBe(
    6 * (12 - Number(/from step (\d)/.exec(notes.join('\n'))![1])),
  );
  expect(trainer.loader.texts.cut / trainer.loader.texts.all).toBeCloseTo(0.25, 1);
  await trainer.close();
}, 60000);

test('a checkpoint is a Hugging Face folder that loads again', async () => {
  const dir = listCheckpoints(join(folder, 'whole')).at(-1)!;
  for (const f of [
    'config.json',
    'model.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
    'preprocessor_config.json',
  ])
    expect(existsSync(join(dir, f))).toBe(true);
  const loaded = await loadModel(dir);
  expect(loaded.vocab!.size).toBe(loaded.model.config.text.vocab);
  expect(loaded.tokenizer).toBe(join(dir, 'tokenizer.json'));
  loaded.model.dispose();
  expect(readFileSync(join(dir, 'README.md'), 'utf8')).toMatch(
    /Other tools need a complete table first.*siglip2 export/s,
  );
}, 60000);

test('what cannot work is refused in one sentence', async () => {
  const refused = async (
    input: unknown,
    code: string,
    text: RegExp,
    options = {},
  ): Promise<void> => {
    await expect(
      (async () => runTraining(checkTrainConfig(input) as never, options))(),
    ).rejects.toMatchObject({ code, message: expect.stringMatching(text) as never });
  };
  await refused(
    { ...config('x'), bacth: 3 },
    'ERR_CONFIG',
    /unknown key "bacth" \(did you mean "batch"\?\)/,
  );
  await refused({ ...config('x'), optimizer: { lrate: 1 } }, 'ERR_CONFIG', /optimizer\.lrate/);
  await refused(
    { ...config('x'), data: { source: { type: 'folder', pth: images } } },
    'ERR_CONFIG',
    /unknown key "data.source.pth" \(did you mean "path"\?\)/,
  );
  await refused(
    {
      ...config('x'),
      data: {
        source: {
          type: 'mixture',
          sources: [{ source: { type: 'manifest', path: 'x', key: 'y' } }],
        },
      },
    },
    'ERR_CONFIG',
    /unknown key "data.source.sources.0.source.key" \(did you mean "keys"\?\); the keys there are type, path, language, keys/,
  );
  await refused(
    { ...config('x'), total: { step: 1 } },
    'ERR_CONFIG',
    /total is {"step":1}: accepted are a number of steps, "500 steps"/,
  );
  for (const set of ['__proto__.polluted=1', 'a..b=1'])
    expect(() => applySets({}, [set])).toThrow('--set expects a key such as optimizer.lr');
  await refused({ ...config('x'), model: { variant: 'B/61x' } }, 'ERR_CONFIG', /no variant/);
  await refused(config('whole'), 'ERR_CHECKPOINT', /already holds a run/);
  await refused(config('nowhere'), 'ERR_CHECKPOINT', /no checkpoint/, { resume: true });
  await refused(
    { ...config('x'), data: { source: { type: 'folder', path: join(folder, 'missing') } } },
    'ERR_DATA',
    /missing/,
  );
  await refused(
    { ...config('x'), data: { source: { type: 'webdataset', tars: join(folder, 'no.tar') } } },
    'ERR_DATA',
    /no\.tar/,
  );
  await refused(
    {
      ...config('x'),
      init: listCheckpoints(join(folder, 'whole')).at(-1)!,
      model: { variant: 'test', vision: { width: 64 } },
    },
    'ERR_CHECKPOINT',
    /tensor ".+" is \[.+\] but this model needs/,
  );
}, 120000);

test('a damaged checkpoint is refused, naming the file', async () => {
  const dir = listCheckpoints(join(folder, 'whole')).at(-1)!;
  const copy = join(folder, 'damaged');
  mkdirSync(copy);
  for (const f of ['config.json', 'model.safetensors', 'siglip2.json'])
    copyFileSync(join(dir, f), join(copy, f));
  truncateSync(join(copy, 'model.safetensors'), weights(dir).length - 10);
  await expect(loadModel(copy)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT',
    message: expect.stringContaining('model.safetensors') as never,
  });
}, 60000);

test('a corrupt image and a picture without caption are counted skips that name the file', async () => {
  writeFileSync(join(images, 'broken.png'), 'no picture');
  writeFileSync(join(images, 'broken.txt'), 'never seen');
  copyFileSync(join(images, '0.png'), join(images, 'mute.png'));
  const trainer = await Trainer.open(checkTrainConfig(config('skips', { total: 8 })));
  try {
    for await (const m of trainer.run()) expect(Number.isFinite(m.loss)).toBe(true);
    const said = trainer.loader.skips.summary();
    expect(said).toContain('broken.png');
    expect(said).toContain('mute');
  } finally {
    await trainer.close();
    rmSync(join(images, 'broken.png'));
    rmSync(join(images, 'broken.txt'));
    rmSync(join(images, 'mute.png'));
  }
}, 60000);

test('Ctrl-C saves and exits 130; --resume goes on', async () => {
  const file = join(folder, 'config.json');
  writeFileSync(
    file,
    JSON.stringify({ ...config('signal'), total: 100000, logEvery: 1, checkpointEvery: 0 }),
  );
  const child = spawn(process.execPath, [main, 'train', file], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let text = '';
  child.stderr.on('data', (d: Buffer) => {
    text += String(d);
    if (/"step":3,/.test(text) && !child.killed) child.kill('SIGINT');
  });
  const status = await new Promise((resolve) => child.once('exit', resolve));
  expect({ status, text: status === 130 ? '' : text }).toEqual({ status: 130, text: '' });
  const saved = listCheckpoints(join(folder, 'signal'));
  expect(saved).toHaveLength(1);
  const step = (
    JSON.parse(readFileSync(join(saved[0]!, 'training_state.json'), 'utf8')) as { step: number }
  ).step;
  const again = spawnSync(
    process.execPath,
    [main, 'train', file, '--resume', '--set', `total=${step + 3}`, '--set', 'optimizer.warmup=2'],
    { encoding: 'utf8' },
  );
  expect({ status: again.status, stderr: again.status === 0 ? '' : again.stderr }).toEqual({
    status: 0,
    stderr: '',
  });
  expect(listCheckpoints(join(folder, 'signal')).at(-1)).toContain(String(step + 3));
}, 120000);

test('a full disk is an error that names the file; the earlier checkpoint stays', async () => {
  const disk = join(folder, 'disk');
  mkdirSync(disk);
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=60m', 'tmpfs', disk]).status !== 0) {
    console.warn('skipped: a small tmpfs cannot be mounted here');
    return;
  }
  try {
    const trainer = await Trainer.open(
      checkTrainConfig({ ...config('x', { total: 40 }), out: join(disk, 'run') }),
    );
    try {
      for await (const m of trainer.run()) if (m.step === 2) break;
      const first = await trainer.save();
      const before = weights(first);
      for await (const m of trainer.run()) if (m.step === 4) break;
      writeFileSync(join(disk, 'filler'), Buffer.alloc(39 << 20));
      await expect(trainer.save()).rejects.toMatchObject({
        code: expect.stringMatching(/ERR_IO|ENOSPC/) as never,
      });
      expect(listCheckpoints(join(disk, 'run'))).toEqual([first]);
      expect(weights(first).equals(before)).toBe(true);
      spawnSync('dd', [
        'if=/dev/zero',
        `of=${join(disk, 'filler')}`,
        'bs=4k',
        'oflag=append',
        'conv=notrunc',
      ]);
      await expect(
        (async () => {
          for await (const _ of trainer.run());
        })(),
      ).rejects.toMatchObject({
        code: 'ERR_IO',
        message: expect.stringContaining('metrics.jsonl: the disk is full') as never,
      });
    } finally {
      await trainer.close();
    }
  } finally {
    spawnSync('umount', ['-l', disk]);
  }
}, 60000);

test('one process at a time trains into a folder, and what a killed one left half-written goes', async () => {
  const settings = config('shared', { total: 2 }),
    checkpoints = join(folder, 'shared', 'checkpoints');
  const file = join(folder, 'shared.json');
  writeFileSync(file, JSON.stringify(settings));
  mkdirSync(join(checkpoints, '.step-00000001.tmp-1-0'), { recursive: true });
  const trainer = await Trainer.open(settings);
  try {
    expect(readdirSync(checkpoints)).toEqual([]);
    symlinkSync(join(folder, 'shared'), join(folder, 'alias'));
    await expect(Trainer.open({ ...settings, out: join(folder, 'alias') })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT',
      message: expect.stringContaining('another process is training into this folder') as never,
    });
    const { status, stderr } = spawnSync(process.execPath, [main, 'train', file], {
      encoding: 'utf8',
    });
    expect([status, stderr]).toEqual([
      1,
      expect.stringContaining('another process is training into this folder'),
    ]);
  } finally {
    await trainer.close();
  }
  expect((await runTraining(settings)).metrics).toHaveLength(2);
}, 120000);

test('a step that spoils the weights is an error before they become a checkpoint', async () => {
  const spoilt = config('spoilt', { total: 1, optimizer: { lr: 1e20, warmup: 0 } });
  await expect(runTraining(spoilt)).rejects.toMatchObject({
    code: 'ERR_DATA',
    message: expect.stringContaining(
      'the logit scale is Infinity at step 1; start again with a lower learning rate',
    ) as never,
  });
  expect(listCheckpoints(spoilt.out)).toEqual([]);
}, 120000);

test('the event loop stays free while training', async () => {
  const { monitorEventLoopDelay } = await import('node:perf_hooks');
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const trainer = await Trainer.open(checkTrainConfig(config('loop', { total: 60 })));
  try {
    for await (const m of trainer.run()) if (m.step === 5) delay.enable();
    delay.disable();
    console.info(
      `event-loop delay while training: p99 ${(delay.percentile(99) / 1e6).toFixed(1)} ms`,
    );
    expect(delay.percentile(50) / 1e6).toBeLessThan(100);
  } finally {
    await trainer.close();
  }
}, 60000);
