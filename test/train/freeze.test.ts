/** Frozen parameters: they keep their bits, cost no gradient, and the others learn as if nothing were frozen. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import type { Batch } from '../../lib/data/batch.js';
import { openSafetensors } from '../../lib/io/safetensors.js';
import { type ModelOverrides, modelConfig } from '../../lib/model/config.js';
import { parameterShapes } from '../../lib/model/shapes.js';
import { AdamW } from '../../lib/optim/optimizer.js';
import { liveCount, memory, resetPeak } from '../../lib/tensor.js';
import { checkTrainConfig, type TrainConfigInput } from '../../lib/train/config.js';
import { frozenNames, trainedModel } from '../../lib/train/freeze.js';
import { Objectives } from '../../lib/train/objectives.js';
import { planStep } from '../../lib/train/plan.js';
import { errorOf } from '../data/support.js';
import { temporaryFolder } from '../encoder_support.js';
import { generator } from '../harness.js';
import { colouredImages, runTraining } from './run.js';

const folder = temporaryFolder(),
  at = (name: string): string => join(folder, name);
beforeAll(() => colouredImages(at('images'), 24));
afterAll(() => expect(liveCount()).toBe(0));

function config(out: string, more: Partial<TrainConfigInput> = {}): TrainConfigInput {
  return {
    out: at(out),
    seed: 5,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test' },
    batch: 6,
    total: 20,
    checkpointEvery: 0,
    data: { source: { type: 'folder', path: at('images') }, trimVocabulary: true, workers: 0 },
    optimizer: { warmup: 1, weightDecay: 0.01, ema: 0.9 },
    ...more,
  };
}
const names = parameterShapes(modelConfig('test', { vocab: 61 })).map(({ name }) => name);
const frozenBy = (freeze: string[], lrScale: Record<string, number> = {}): string[] => [
  ...frozenNames(checkTrainConfig(config('x', { freeze, optimizer: { lrScale } })), names),
];

test('patterns are beginnings of names up to a dot, with * for anything; an lrScale of 0 freezes as well', async () => {
  const all = (test: (name: string) => boolean): string[] => names.filter(test);
  expect(frozenBy(['vision_model'])).toEqual(all((n) => n.startsWith('vision_model.')));
  expect(frozenBy(['text_model.encoder.layers.0.', 'logit_scale'])).toEqual(
    all((n) => n.startsWith('text_model.encoder.layers.0.') || n === 'logit_scale'),
  );
  expect(frozenBy(['vision_model.encoder.layers.*.mlp'])).toEqual(
    all((n) => /^vision_model\.encoder\.layers\.\d+\.mlp\./.test(n)),
  );
  expect(frozenBy([], { token_embedding: 0, vision_model: 2 })).toEqual([
    'text_model.embeddings.token_embedding.weight',
  ]);
  expect(frozenBy([], { 'vision_model.head': 3, vision_model: 0 })).toEqual(
    all((n) => n.startsWith('vision_model.') && !n.startsWith('vision_model.head')),
  );
  const refused = async (freeze: string[]): Promise<string> =>
    (await errorOf(() => frozenBy(freeze))).message;
  expect(await refused(['vision_modle'])).toBe(
    'freeze: no parameter is called or begins with "vision_modle" (did you mean ' +
      '"vision_model"?); the names begin with text_model, vision_model, logit_scale, logit_bias',
  );
  // A beginning ends at a dot.
  expect(await refused(['vision_model.enc'])).toMatch(
    /no parameter is called or begins with "vision_model\.enc"/,
  );
  expect(await refused(['*'])).toMatch(/every parameter is frozen/);
});

/** Gradients of one batch by parameter, the bytes at the worst moment, and the bytes of gradients and moments. */
async function gradients(
  freeze: string[],
  { overrides = {}, ...more }: Partial<TrainConfigInput> & { overrides?: ModelOverrides } = {},
) {
  const shape = modelConfig('test', { vocab: 61, ...overrides }),
    B = 6,
    S = shape.vision.imageSize,
    L = shape.text.length,
    r = generator(5);
  const run = checkTrainConfig(config('x', { freeze, ...more })),
    P = shape.vision.patch ** 2 * 3;
  const images = Uint8Array.from(
    { length: shape.naflex ? 0 : B * S * S * 3 },
    () => 127.5 * (1 + r()),
  );
  const ids = Int32Array.from({ length: B * L }, (_, i) =>
    i % L < 5 ? 2 + ((r() + 1) / 2) * 59 : 0,
  );
  const batch = {
    images,
    ids,
    size: B,
    index: 0,
    keys: Array(B).fill(''),
    texts: Array(B).fill(''),
    langs: Array(B).fill(''),
    samples: new Int32Array(B),
    ...(shape.naflex
      ? {
          naflex: {
            length: 9,
            patches: Uint8Array.from({ length: B * 9 * P }, () => 127.5 * (1 + r())),
            offsets: Int32Array.from({ length: B + 1 }, (_, i) => 9 * i),
            shapes: new Int32Array(2 * B).fill(3),
          },
        }
      : {}),
  } as unknown as Batch;
  const model = trainedModel(run, shape, 'cpu', run.dtype === 'bf16' ? 'bf16' : 'f32');
  model.initialize(3);
  const { warmup: _, schedule: __, ...adam } = run.optimizer,
    optimizer = new AdamW(model.params, adam);
  const objectives = new Objectives(run, model, optimizer);
  model.params.zeroGrad();
  resetPeak();
  const before = memory('cpu').live;
  const { total } = await objectives.run(batch);
  const result = {
    total,
    peak: memory('cpu').peak - before,
    fixed: [model.params.grads!, optimizer.m, optimizer.v].map((t) => t.bytes),
    grads: new Map(
      [...(await model.params.read(model.params.grads!))].map(([name, { data }]) => [
        name,
        data.slice(),
      ]),
    ),
  };
  for (const made of [objectives, optimizer, model]) made.dispose();
  return result;
}

test.each<[string, Parameters<typeof gradients>[1]]>([
  ['f32', {}],
  ['bf16', { dtype: 'bf16' }],
  ['checkpointed blocks', { checkpointBlocks: true }],
  ['micro-batches', { microBatch: 4 }],
  ['micro-batches, checkpointed', { microBatch: 4, checkpointBlocks: true }],
  ['NaFlex', { overrides: { naflex: true } }],
  ['pooled text', { overrides: { text: { pool: 'map' } } }],
])(
  'what is not frozen gets the gradients it would get: %s',
  async (_, more) => {
    const whole = await gradients([], more);
    for (const freeze of [
      ['vision_model'],
      ['text_model'],
      ['vision_model', 'text_model'],
      ['vision_model.embeddings', 'vision_model.encoder.layers.0'],
      ['text_model.encoder.layers.1', 'text_model.final_layer_norm'],
      ['*.bias'],
      ['*_proj.weight', 'vision_model.head'],
      [
        'text_model.embeddings.token_embedding',
        'vision_model.embeddings.position_embedding',
        'logit_scale',
        'logit_bias',
      ],
    ]) {
      const part = await gradients(freeze, more),
        left = [...part.grads.keys()];
      const every = [...whole.grads.keys()],
        frozen = frozenNames(checkTrainConfig(config('x', { freeze })), every);
      expect(left).toEqual(every.filter((name) => !frozen.has(name)));
      expect([freeze, part.total]).toEqual([freeze, whole.total]);
      for (const [name, data] of part.grads)
        expect([freeze, name, data]).toEqual([freeze, name, whole.grads.get(name)]);
      part.fixed.forEach((bytes, i) => expect(bytes).toBeLessThan(whole.fixed[i]!));
      expect(part.peak).toBeLessThanOrEqual(whole.peak);
    }
    // A frozen tower leaves nothing but its embeddings behind.
    expect((await gradients(['vision_model', 'text_model'], more)).peak).toBeLessThan(whole.peak);
  },
  120000,
);

test('parts of one matrix are frozen together', async () => {
  expect(
    (await errorOf(() => gradients(['vision_model.encoder.layers.0.self_attn.k_proj.weight'])))
      .message,
  ).toMatch(
    /self_attn\.q_proj\.weight and .*self_attn\.k_proj\.weight are parts of one matrix; freeze both or none of them/,
  );
});

/** Values of a safetensors file by name. */
async function values(file: string): Promise<Map<string, Uint8Array>> {
  const reader = await openSafetensors(file),
    all = new Map<string, Uint8Array>();
  for (const name of reader.tensors.keys()) all.set(name, (await reader.read(name)).slice());
  await reader.close();
  return all;
}

const distill = {
  views: { locals: 2 },
  head: { hidden: 32, bottleneck: 16, prototypes: 128, patchPrototypes: 64 },
};
const half = ['vision_model.embeddings', 'vision_model.encoder.layers.0', 'text_model'];
const CASES: [string, Partial<TrainConfigInput>, frozen: RegExp][] = [
  ['f32', { freeze: ['vision_model'] }, /^vision_model\./],
  ['bf16', { freeze: ['vision_model'], dtype: 'bf16' }, /^vision_model\./],
  [
    'lrScale 0',
    { optimizer: { warmup: 1, weightDecay: 0.01, ema: 0.9, lrScale: { text_model: 0 } } },
    /^text_model\./,
  ],
  ['micro-batches', { freeze: ['text_model', '*.bias'], microBatch: 4 }, /^text_model\.|\.bias$/],
  [
    'selection',
    { freeze: ['vision_model'], selection: { ratio: 0.5, score: 'learner', chunks: 2 } },
    /^vision_model\./,
  ],
  [
    'captions',
    {
      freeze: ['vision_model', 'decoder.embeddings'],
      model: { variant: 'test', decoder: { length: 40 } },
      objectives: { caption: {} },
    },
    /^(vision_model|decoder\.embeddings)\./,
  ],
  [
    'captions in micro-batches',
    {
      freeze: ['vision_model', 'text_model'],
      microBatch: 4,
      dtype: 'bf16',
      model: { variant: 'test', decoder: { length: 40 } },
      objectives: { caption: {} },
    },
    /^(vision_model|text_model)\./,
  ],
  [
    'distillation',
    { freeze: half, objectives: { distill } },
    /^(vision_model\.(embeddings|encoder\.layers\.0)|text_model)\./,
  ],
];

test.each(CASES)(
  'frozen parameters keep their bits over 20 steps: %s',
  async (name, more, frozen) => {
    const input = { ...config(name, more), keepCheckpoints: 2 };
    const begun = await runTraining(input, { stopAt: 1 }),
      ended = await runTraining(input, { resume: true });
    const [before, after] = [
      await values(join(begun.folder, 'model.safetensors')),
      await values(join(ended.folder, 'model.safetensors')),
    ];
    const average = await values(join(ended.folder, 'model_ema.safetensors'));
    expect(ended.metrics.at(-1)!.step).toBe(20);
    let kept = 0;
    for (const [key, data] of before) {
      const same = Buffer.from(after.get(key)!).equals(data);
      if (frozen.test(key))
        expect([key, same, Buffer.from(average.get(key)!).equals(data), ++kept]).toEqual([
          key,
          true,
          true,
          kept,
        ]);
      // A gradient may be 0 in places, a bias of keys has none, but no matrix stays.
      else if (/\.weight$/.test(key) && !/norm/.test(key))
        expect([key, same]).toEqual([key, false]);
    }
    expect(kept).toBeGreaterThan(0);
  },
  120000,
);

test('a frozen run resumes to the bit, and a stage that thaws starts its moments anew', async () => {
  const frozen = { freeze: ['vision_model'], total: 6 };
  const whole = await runTraining(config('frozen whole', frozen));
  await runTraining(config('frozen halves', frozen), { stopAt: 2 });
  const second = await runTraining(config('frozen halves', frozen), { resume: true });
  for (const file of ['model.safetensors', 'model_ema.safetensors', 'training_state.safetensors'])
    expect(
      readFileSync(join(second.folder, file)).equals(readFileSync(join(whole.folder, file))),
    ).toBe(true);
  const state = JSON.parse(readFileSync(join(whole.folder, 'training_state.json'), 'utf8')) as {
    layout: [string, number, number][];
  };
  expect(
    state.layout.map(([name]) => name).filter((name) => name.startsWith('vision_model')),
  ).toEqual([]);

  const thawed = await runTraining(config('thawed', { total: 3, start: whole.folder }));
  const next = JSON.parse(readFileSync(join(thawed.folder, 'training_state.json'), 'utf8')) as {
    layout: [string][];
    since: Record<string, number>;
    optimizerStep: number;
  };
  expect(next.optimizerStep).toBe(9);
  expect(next.layout.some(([name]) => name.startsWith('vision_model'))).toBe(true);
  for (const [name] of next.layout)
    expect([name, next.since[name] ?? 0]).toEqual([name, name.startsWith('vision_model.') ? 6 : 0]);
  // And one that freezes more begins where the last one ended.
  const more = await runTraining(
    config('more', { total: 2, start: thawed.folder, freeze: ['text_model'] }),
  );
  const [before, after] = [
    await values(join(thawed.folder, 'model.safetensors')),
    await values(join(more.folder, 'model.safetensors')),
  ];
  for (const [name, data] of before)
    if (name.startsWith('text_model.'))
      expect(Buffer.from(after.get(name)!).equals(data)).toBe(true);
}, 120000);

test('a run whose vision tower is frozen has no use for self-distillation', async () => {
  expect(
    (
      await errorOf(() =>
        runTraining(config('useless', { freeze: ['vision_model'], objectives: { distill } })),
      )
    ).message,
  ).toBe(
    'objectives.distill trains the vision tower, but all of it is frozen; remove one of the two',
  );
});

test('a plan knows what is frozen', async () => {
  const plan = (more: Partial<TrainConfigInput>) =>
    planStep(
      checkTrainConfig(config('x', { model: { variant: 'B/16' }, batch: 32, ...more })),
      'cuda',
    );
  const whole = await plan({}),
    part = await plan({ freeze: ['vision_model'] });
  expect(part.parameters).toBe(whole.parameters);
  const vision = whole.parameters - part.trained;
  expect(vision).toBe(
    parameterShapes(modelConfig('B/16'))
      .filter(({ name }) => name.startsWith('vision_model.'))
      .reduce((n, { shape }) => n + shape.reduce((a, b) => a * b, 1), 0),
  );
  expect(whole.fixed.gradients - part.fixed.gradients).toBe(4 * vision);
  expect(whole.fixed.moments - part.fixed.moments).toBe(8 * vision);
  // What is left of the vision tower is the pixels and the embeddings.
  expect(part.activations.vision).toBe(32 * (256 * 256 * 3 + 768 * 4));
  expect(part.flops.vision! * 3).toBe(whole.flops.vision!);
  expect(part.flops.text).toBe(whole.flops.text);
}, 60000);
