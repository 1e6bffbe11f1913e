/**
 * `siglip2 plan` against training: the predicted peak of each config beside the one that the trainer's metrics report,
 * micro-batches beside whole batches, and what the command says.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { modelConfig } from '../../lib/model/config.js';
import { textFlops } from '../../lib/model/flops.js';
import { parameterShapes } from '../../lib/model/shapes.js';
import { liveCount, resetPeak } from '../../lib/tensor.js';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { waysToFit } from '../../lib/train/fit.js';
import { planStep } from '../../lib/train/plan.js';
import { type StepMetrics, Trainer } from '../../lib/train/trainer.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-plan-'));
const tar = join(folder, 'images.tar');
const main = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'lib', 'cli', 'main.js');

// A caption as long as the decoder reads, for the plan takes every token as scored.
const words = Array.from({ length: 60 }, () => 'a').join(' ');

beforeAll(async () => {
  const writer = new TarWriter(tar);
  for (let i = 0; i < 64; i++) {
    const background = { r: (i * 53) % 256, g: (i * 97) % 256, b: (i * 31) % 256 };
    writer.add(
      `${i}.png`,
      await sharp({ create: { width: 40, height: 40, channels: 3, background } })
        .png()
        .toBuffer(),
    );
    const regions = [{ box: [0.1, 0.2, 0.5, 0.75], score: 0.9, phrase: `thing ${i % 5} ${words}` }];
    writer.add(
      `${i}.json`,
      JSON.stringify({
        captions: [
          { lang: 'en', text: `${i} ${words}` },
          { lang: 'de', text: `${i}` },
        ],
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

const distill = {
  views: { locals: 2 },
  head: { hidden: 32, bottleneck: 16, prototypes: 128, patchPrototypes: 64 },
};

function config(out: string, more: Partial<TrainConfigInput> = {}): TrainConfigInput {
  return {
    out: join(folder, out),
    seed: 2,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test' },
    batch: 32,
    total: 3,
    data: { source: { type: 'webdataset', tars: tar }, workers: 0, trimVocabulary: true },
    optimizer: { warmup: 0 },
    ...more,
  };
}

async function train(
  input: TrainConfigInput,
  options: { resume?: boolean; stopAt?: number } = {},
): Promise<{ metrics: StepMetrics[]; folder: string; vocab: number }> {
  resetPeak();
  const stop = new AbortController(),
    metrics: StepMetrics[] = [];
  const trainer = await Trainer.open(checkTrainConfig(input), options);
  try {
    for await (const m of trainer.run(stop.signal)) {
      metrics.push(m);
      if (m.step === options.stopAt) stop.abort();
    }
    return { metrics, folder: await trainer.save(), vocab: trainer.vocab!.size };
  } finally {
    await trainer.close();
  }
}

// Width and depth enough for activations to weigh more than the weights.
const model = {
  variant: 'test',
  vision: { width: 64, heads: 4, mlp: 256, depth: 4 },
  text: { width: 64, heads: 4, mlp: 256, depth: 3 },
};
const ema = { warmup: 0, ema: 0.9 };
const CONFIGS: [string, Partial<TrainConfigInput>][] = [
  ['f32', {}],
  ['bf16', { dtype: 'bf16' }],
  ['checkpointed blocks', { checkpointBlocks: true }],
  ['decoder', { model: { ...model, decoder: { length: 48 } }, objectives: { caption: {} } }],
  ['distillation', { objectives: { distill }, optimizer: ema }],
  ['NaFlex, packed', { model: { ...model, naflex: true }, naflex: { lengths: [9, 25] } }],
  ['gradient caching', { microBatch: 8 }],
  ['frozen vision', { freeze: ['vision_model'] }],
  [
    'frozen in part',
    {
      freeze: ['text_model', 'vision_model.encoder.layers.0', 'vision_model.embeddings'],
      microBatch: 8,
      checkpointBlocks: true,
      dtype: 'bf16',
    },
  ],
  [
    'all together',
    {
      dtype: 'bf16',
      checkpointBlocks: true,
      microBatch: 8,
      model: { ...model, decoder: { length: 48 } },
      optimizer: ema,
      objectives: { caption: {}, distill },
    },
  ],
];

test.each(CONFIGS)(
  '%s: the peak is within 10 %% of the planned one',
  async (name, more) => {
    const input = config(name, { model, ...more });
    const { metrics, vocab } = await train(input);
    const peak = Math.max(...metrics.map((m) => m.peakBytes));
    const plan = await planStep(
      checkTrainConfig({ ...input, model: { ...input.model, vocab } }),
      'cpu',
    );
    console.info(
      `${name}: planned ${(plan.peak / 2 ** 20).toFixed(2)} MiB, measured ${(peak / 2 ** 20).toFixed(2)} ` +
        `(${(100 * (plan.peak / peak - 1)).toFixed(1)} %)`,
    );
    expect(Math.abs(plan.peak / peak - 1)).toBeLessThan(0.1);
    const {
      fixed,
      activations: { distillation = 0, ...pairs },
      transient,
      workspace,
    } = plan;
    const sum = (parts: object): number =>
      Object.values(parts).reduce((a: number, b: number) => a + b, 0);
    expect(sum(fixed) + Math.max(distillation, sum(pairs)) + transient + workspace).toBe(plan.peak);
  },
  240000,
);

/** Every objective, two captions per image, and micro-batches that don't divide the batch. */
const everything = (out: string, more: Partial<TrainConfigInput>): TrainConfigInput => {
  const base = config(out);
  return {
    ...base,
    batch: 21,
    total: 4,
    checkpointEvery: 2,
    data: { ...base.data, captions: { pick: ['en', 'de'] } },
    model: { variant: 'test', decoder: { length: 40 } },
    objectives: { caption: {}, distill },
    optimizer: { ...ema, lr: 1e-4 },
    ...more,
  };
};
const same = (a: string, b: string): void => {
  for (const file of ['model.safetensors', 'model_ema.safetensors', 'training_state.safetensors'])
    expect(readFileSync(join(a, file)).equals(readFileSync(join(b, file)))).toBe(true);
};

test.each<[string, string[], Partial<TrainConfigInput>]>([
  ['every objective', ['sigmoid', 'aref', 'gcap', 'caption', 'distill', 'masked'], {}],
  [
    'NaFlex',
    ['sigmoid', 'aref', 'gcap', 'caption'],
    {
      model: { variant: 'test', naflex: true, decoder: { length: 40 } },
      naflex: { lengths: [9, 16] },
      objectives: { caption: {} },
    },
  ],
])(
  'micro-batches train as the whole batch does: %s',
  async (name, losses, more) => {
    const whole = await train(everything(`${name} whole`, more)),
      parts = await train(everything(`${name} parts`, { ...more, microBatch: 8 }));
    whole.metrics.forEach((m, i) => {
      const got = parts.metrics[i]!,
        apart = (a: number, b: number): number => Math.abs(a / b - 1);
      expect(Object.keys(got.losses)).toEqual(losses);
      for (const [name, loss] of Object.entries(m.losses))
        expect([name, apart(got.losses[name]!, loss) < 1e-5]).toEqual([name, true]);
      expect(apart(got.gradNorm, m.gradNorm)).toBeLessThan(1e-5);
    });
    expect(Math.max(...parts.metrics.map((m) => m.peakBytes))).toBeLessThan(
      Math.max(...whole.metrics.map((m) => m.peakBytes)),
    );
  },
  240000,
);

test('a run in micro-batches resumes to the bit', async () => {
  const whole = await train(everything('bits', { microBatch: 8 }));
  const first = await train(everything('halves', { microBatch: 8 }), { stopAt: 1 });
  const second = await train(everything('halves', { microBatch: 8 }), { resume: true });
  expect([...first.metrics, ...second.metrics].map((m) => m.loss)).toEqual(
    whole.metrics.map((m) => m.loss),
  );
  same(second.folder, whole.folder);
}, 240000);

test('a step far larger than this machine is planned, and fits once the advice is followed', async () => {
  const big = checkTrainConfig({
    ...config('big'),
    dtype: 'f32',
    batch: 4096,
    model: { variant: 'B/16', decoder: {} },
    objectives: { caption: {} },
  });
  const plan = await planStep(big, 'cuda'),
    limit = 80e9;
  expect(plan.peak).toBeGreaterThan(2 ** 40);
  const ways = await waysToFit(big, 'cuda', limit, plan);
  expect(ways.length).toBeGreaterThan(0);
  for (const { changes, plan: way, cost } of ways) {
    expect(way.peak).toBeLessThanOrEqual(limit);
    expect(cost).toBeGreaterThan(1);
    expect((await planStep({ ...big, ...changes }, 'cuda')).peak).toBe(way.peak);
    expect(
      (await planStep({ ...big, ...changes, microBatch: 2 * way.microBatch }, 'cuda')).peak,
    ).toBeGreaterThan(limit);
  }
  expect(await waysToFit(big, 'cuda', 1e9, plan)).toEqual([]);
}, 240000);

test('FLOPs of a dense layer stack are two for every weight and token, plus attention', () => {
  const c = modelConfig('B/16', { pool: 'map' }),
    {
      text: { width, length, depth },
    } = c;
  const weights = parameterShapes(c)
    .filter(({ name, decay }) => decay && name.startsWith('text_model.encoder'))
    .reduce((n, { shape }) => n + shape.reduce((a, b) => a * b, 1), 0);
  const blocks = 2 * weights * length + 4 * length * length * width * depth;
  expect(textFlops(c) / blocks).toBeGreaterThan(1);
  expect(textFlops(c) / blocks).toBeLessThan(1.1); // and the pooling head
});

test('the command: a table, JSON, and what it refuses', () => {
  const run = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, [main, 'plan', ...args], { encoding: 'utf8' });
  const small = run('--preset', 'home', '--device', 'cpu', '--memory', '64GB');
  expect(small.status).toBe(0);
  for (const line of [
    /^micro, batch 64, .* on cpu; .* M parameters$/m,
    /^ {2}peak .* MiB/m,
    /^ {2}FLOPs of a step/m,
    /^ {2}It fits .* as it is\.$/m,
  ])
    expect(small.stdout).toMatch(line);
  const [record] = JSON.parse(
    run('--preset', 'B/16-384', '--stage', 'resolution', '--batch', '64', '--json').stdout,
  ) as { stage: string; plan: { batch: number; device: string; activations: object } }[];
  expect(record).toMatchObject({ stage: 'resolution', plan: { batch: 64, device: 'cuda' } });
  expect(Object.keys(record!.plan.activations)).toEqual([
    'vision',
    'text',
    'decoder',
    'distillation',
  ]);
  expect(run('--preset', 'home', '--memory', '10MB')).toMatchObject({
    status: 1,
    stdout: expect.stringContaining('It does not fit') as never,
  });
  expect(run('--preset', 'home', '--memory', 'much').stderr).toContain(
    '--memory must be a size such as 80GB or 24GiB but is "much"',
  );
  expect(run('--preset', 'B/16-256', '--stage', 'x').stderr).toContain(
    'no stage is called "x"; the stages are base, ssl',
  );
}, 240000);
