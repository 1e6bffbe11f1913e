/** All stages of the recipe in miniature: every loss is there and finite, and each stage resumes to the bit. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { loadModel } from '../../lib/checkpoints/load.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { liveCount } from '../../lib/tensor.js';
import { listCheckpoints } from '../../lib/train/checkpoint.js';
import { presets } from '../../lib/train/presets.js';
import {
  checkStages,
  type RecipeInput,
  readStages,
  type Stage,
  stageProgress,
  withStart,
} from '../../lib/train/recipe.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-recipe-'));
const tar = join(folder, 'scenes.tar');

beforeAll(async () => {
  const writer = new TarWriter(tar);
  for (let i = 0; i < 24; i++) {
    const colour = { r: (i * 53) % 256, g: (i * 97) % 256, b: (i * 31) % 256 };
    const image = await sharp({
      create: { width: 40 + i, height: 70 - 2 * i, channels: 3, background: colour },
    })
      .png()
      .toBuffer();
    const regions =
      i % 4 === 0
        ? []
        : [{ box: [0.1, 0.2, 0.5, 0.25 + i / 40], score: 0.9, phrase: `thing ${i % 5}` }];
    writer.add(`${i}.png`, image);
    writer.add(
      `${i}.json`,
      JSON.stringify({
        captions: [{ lang: 'en', text: `colour ${colour.r} ${colour.g}` }],
        regions,
      }),
    );
  }
  writer.finish();
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

function recipe(out: string): RecipeInput {
  return {
    out: join(folder, out),
    seed: 3,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test', decoder: { length: 40 } },
    batch: 6,
    total: 40,
    checkpointEvery: 3,
    data: { source: { type: 'webdataset', tars: tar }, trimVocabulary: true, workers: 0 },
    optimizer: { warmup: 2 },
    objectives: { caption: {} },
    stages: {
      base: { span: { to: '90%' } },
      ssl: {
        from: 'base@80%',
        span: { from: '80%' },
        optimizer: { ema: 0.9 },
        objectives: {
          distill: {
            views: { locals: 2 },
            head: { hidden: 16, bottleneck: 8, prototypes: 12, patchPrototypes: 10 },
          },
        },
      },
      resolution: {
        from: 'ssl@90%',
        span: { from: '90%' },
        optimizer: { ema: 0.9 },
        model: { imageSize: 48, vision: { patch: 12 } },
        objectives: {
          distill: {
            views: { locals: 2 },
            head: { hidden: 16, bottleneck: 8, prototypes: 12, patchPrototypes: 10 },
          },
        },
      },
      naflex: {
        from: 'base@90%',
        span: { from: '90%', stretch: 2 },
        model: { naflex: true },
        naflex: { lengths: [6, 12] },
      },
      acid: {
        from: 'ssl@100%',
        total: 5,
        optimizer: { lr: 1e-5, weightDecay: 0, warmup: 0 },
        model: { decoder: null },
        objectives: { caption: null },
        selection: {
          ratio: 0.5,
          chunks: 2,
          reference: join(folder, out, 'base', 'checkpoints', 'step-00000036'),
        },
      },
    },
  };
}

/** Trains one stage as the command does, or a part of it. */
async function run(stage: Stage, stages: Stage[], stopAt = Infinity): Promise<StepMetrics[]> {
  const resume = stageProgress(stage.config.out) === 'begun',
    stop = new AbortController();
  const trainer = await Trainer.open(resume ? stage.config : withStart(stage, stages), { resume });
  const metrics: StepMetrics[] = [];
  try {
    for await (const m of trainer.run(stop.signal)) {
      metrics.push(m);
      if (m.step === trainer.step && trainer.checkpointDue && m.step < trainer.totalSteps)
        await trainer.save();
      if (m.step >= stopAt) stop.abort();
    }
    await trainer.save();
    return metrics;
  } finally {
    await trainer.close();
  }
}

test('every stage has its losses, and goes on to the same bits after an interruption', async () => {
  const whole = readStages(recipe('whole')),
    parts = readStages(recipe('parts'));
  const caption = ['sigmoid', 'aref', 'gcap', 'caption'],
    all = [...caption, 'distill', 'masked'];
  const expected: Record<string, { keys: string[]; steps: number }> = {
    base: { keys: caption, steps: 36 },
    ssl: { keys: all, steps: 8 },
    resolution: { keys: all, steps: 4 },
    naflex: { keys: caption, steps: 8 },
    acid: { keys: ['sigmoid'], steps: 5 },
  };
  for (const [i, stage] of whole.entries()) {
    const { keys, steps } = expected[stage.name]!;
    const metrics = await run(stage, whole);
    expect({ stage: stage.name, steps: metrics.map((m) => m.step) }).toEqual({
      stage: stage.name,
      steps: Array.from({ length: steps }, (_, s) => s + 1),
    });
    for (const m of metrics) {
      expect(Object.keys(m.losses).sort()).toEqual([...keys].sort());
      for (const value of Object.values(m.losses)) expect(Number.isFinite(value)).toBe(true);
    }
    const first = await run(parts[i]!, parts, 2);
    expect(stageProgress(parts[i]!.config.out)).toBe('begun');
    const second = await run(parts[i]!, parts);
    expect([...first, ...second].map((m) => m.losses)).toEqual(metrics.map((m) => m.losses));
    const [a, b] = [whole, parts].map((s) => listCheckpoints(s[i]!.config.out).at(-1)!) as [
      string,
      string,
    ];
    for (const file of ['model.safetensors', 'model_ema.safetensors', 'training_state.safetensors'])
      if (existsSync(join(a, file)))
        expect(readFileSync(join(b, file)).equals(readFileSync(join(a, file)))).toBe(true);
    const line = JSON.parse(
      readFileSync(join(stage.config.out, 'metrics.jsonl'), 'utf8').split('\n')[0]!,
    ) as Record<string, unknown>;
    for (const key of keys) expect(typeof line[`loss/${key}`]).toBe('number');
    // The targets' entropy and the divergence from them are the loss.
    if (keys === all) {
      const of = (name: string): number => line[name] as number;
      expect(of('ssl/entropy') + of('ssl/divergence')).toBeCloseTo(of('loss/distill'), 5);
      expect(of('ssl/patchEntropy') + of('ssl/patchDivergence')).toBeCloseTo(of('loss/masked'), 5);
      expect(of('ssl/divergence')).toBeGreaterThanOrEqual(-1e-5);
    }
    expect(stageProgress(stage.config.out)).toBe('finished');
  }
  // A stage begins with the learning rate, the moments and the weights that its parent had.
  const [base, ssl] = ['base', 'ssl'].map((n) =>
    readFileSync(join(folder, 'whole', n, 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((l) => JSON.parse(l) as StepMetrics),
  ) as [StepMetrics[], StepMetrics[]];
  expect(ssl[0]!.lr).toBe(base[32]!.lr);
}, 240000);

test('mistakes in the stages are refused in one sentence', () => {
  const refused = (change: (r: RecipeInput) => void, text: RegExp): void => {
    const input = recipe('x');
    change(input);
    expect(() => readStages(input)).toThrow(text);
  };
  refused((r) => {
    r.stages['ssl']!.from = 'bsae@80%';
  }, /no stage before it is called "bsae" \(did you mean "base"\?\)/);
  refused((r) => {
    (r.stages['ssl'] as Record<string, unknown>)['bacth'] = 3;
  }, /stage ssl: config: unknown key "bacth" \(did you mean "batch"\?\)/);
  refused((r) => {
    r.stages['ssl']!.objectives = { distil: {} } as never;
  }, /stage ssl: config: unknown key "objectives\.distil"/);
  refused((r) => {
    r.stages['ssl']!.span = { from: 'soon' };
  }, /span\.from is "soon": must be a percentage/);
  refused((r) => {
    r.stages = {};
  }, /at least one named stage/);
});

test('the folder of a recipe without a checkpoint is none, and the error says so', async () => {
  mkdirSync(join(folder, 'staged', 'base', 'checkpoints'), { recursive: true });
  await expect(loadModel(join(folder, 'staged'))).rejects.toThrow(
    `${join(folder, 'staged')}: is the folder of a training run that has no checkpoint yet`,
  );
});

test('objectives that the model cannot have are refused', async () => {
  const open = async (name: string, change: (r: RecipeInput) => void): Promise<unknown> => {
    const input = recipe(`refused-${name}`);
    change(input);
    const stages = readStages(input);
    return Trainer.open(stages.find((s) => s.name === name)!.config);
  };
  await expect(
    open('base', (r) => {
      r.model = { variant: 'test' };
    }),
  ).rejects.toThrow(/objectives\.caption needs a decoder/);
  await expect(
    open('ssl', (r) => {
      r.stages['ssl']!.optimizer = {};
    }),
  ).rejects.toThrow(/set optimizer\.ema/);
  await expect(
    open('naflex', (r) => {
      r.objectives = { distill: {} };
    }),
  ).rejects.toThrow(/leave it out of NaFlex/);
});

test('a mistake in a later stage is found before the first is trained', () => {
  const wrong = (stage: string, changes: object): unknown => {
    const { stages, ...base } = recipe('early');
    const changed = { ...stages, [stage]: { ...stages[stage], ...changes } };
    return { ...base, stages: changed };
  };
  const refused: [stage: string, changes: object, says: string][] = [
    ['ssl', { optimizer: {} }, 'stage ssl: self-distillation needs a moving average'],
    [
      'resolution',
      { model: { vision: { heads: 7 } } },
      'stage resolution: model: vision.width 32 must be a multiple of vision.heads 7',
    ],
    [
      'naflex',
      { data: { transforms: [{ name: 'flip' }, { name: 'resize' }] } },
      'stage naflex: decoder: boxes do not follow the transform "flip"',
    ],
    [
      'naflex',
      { objectives: { distill: {} }, optimizer: { ema: 0.9 } },
      'stage naflex: objectives.distill needs a model of fixed resolution',
    ],
    [
      'acid',
      { selection: { ratio: 0.5, chunks: 9, reference: 'x' } },
      'stage acid: selection.chunks must be at most the batch of 6',
    ],
    [
      'acid',
      { optimizer: { warmup: 6 } },
      'stage acid: optimizer.warmup: the warm-up must be between 0 and the 5 steps',
    ],
    [
      'acid',
      { optimizer: { warmup: 0, lrScale: { tokens: 2 } } },
      'stage acid: lrScale: no parameter\'s name contains "tokens"',
    ],
    [
      'acid',
      { from: 'ssl' },
      'stages.acid.from is "ssl", a stage; say where in it, such as "ssl@100%"',
    ],
    ['acid', { from: 'no/folder' }, 'stage acid begins at no/folder, which does not exist'],
  ];
  checkStages(readStages(recipe('early')));
  for (const [stage, changes, says] of refused)
    expect(() => checkStages(readStages(wrong(stage, changes)))).toThrow(says);
  for (const name of ['tiny-recipe', 'B/16-384', 'B/16-naflex'])
    checkStages(readStages(presets[name]));
});

test('the presets with stages are sound; released B models of fixed resolution end with curation', () => {
  const acid = (name: string): unknown =>
    readStages(presets[name]).find((s) => s.name === 'acid')?.config;
  expect(acid('B/16-256')).toMatchObject({
    batch: 32768,
    total: { examples: 4e9 },
    optimizer: { lr: 1e-5, weightDecay: 0 },
    selection: { ratio: 0.5 },
  });
  expect(acid('B/32-256')).toMatchObject({
    selection: { ratio: 0.75 },
    model: { vision: { patch: 32 } },
    objectives: {},
  });
  for (const name of ['B/16-naflex', 'L/16-256', 'So400m/16-256'])
    expect(acid(name)).toBeUndefined();
  for (const preset of Object.values(presets))
    if ('stages' in preset) expect(readStages(preset).length).toBeGreaterThan(1);
  mkdirSync(join(folder, 'none'));
  expect(stageProgress(join(folder, 'none'))).toBe('new');
});
