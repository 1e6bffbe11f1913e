/**
 * A training loop written by a user, of what the package exports and nothing else: with the package's losses it is the
 * Trainer to the bit; with a loss written by hand it trains as well.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import {
  ADAMW_DEFAULTS,
  AdamW,
  type Batch,
  backward,
  captionBatch,
  captionLoss,
  DataLoader,
  gradCache,
  linear,
  liveCount,
  loadModel,
  modelConfig,
  openSource,
  parameterShapes,
  piResize,
  resizePositions,
  type Schedule,
  SelfDistillation,
  type Siglip2Error,
  Siglip2Model,
  saveModel,
  scheduleMultiplier,
  scope,
  sigmoidLoss,
  softmaxCrossEntropy,
  sslShapes,
  type Tensor,
  type TrainConfigInput,
  Trainer,
  tensor,
  trimmedVocabulary,
  viewsConfig,
  zeros,
} from '../../lib/index.js';
import { colouredImages } from './run.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-loop-')),
  images = join(folder, 'images');
const STEPS = 10,
  BATCH = 6,
  SEED = 5,
  LR = 3e-3;
const SCHEDULE: Schedule = { kind: 'cosine', total: STEPS, warmup: 2 };
const HEAD = { hidden: 32, bottleneck: 8, prototypes: 24, patchPrototypes: 24, std: 0.1 };

beforeAll(() => colouredImages(images, 24));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

/** What the trainer makes of the same data, model, schedule and seed. */
async function trainer(
  out: string,
  more: Partial<TrainConfigInput> = {},
): Promise<{ losses: number[]; norms: number[]; weights: Float32Array }> {
  const run = await Trainer.open({
    out: join(folder, out),
    seed: SEED,
    dtype: 'f32',
    device: 'cpu',
    model: { variant: 'test' },
    batch: BATCH,
    total: STEPS,
    data: { source: { type: 'folder', path: images }, trimVocabulary: true, workers: 0 },
    optimizer: { lr: LR, warmup: 2 },
    ...more,
  });
  try {
    const losses: number[] = [],
      norms: number[] = [];
    for await (const m of run.run()) {
      losses.push(m.loss);
      norms.push(m.gradNorm);
    }
    return { losses, norms, weights: (await run.model.params.values.read()) as Float32Array };
  } finally {
    await run.close();
  }
}

/** The same run in a loop of one's own; `loss` adds a batch's gradients and tells the loss. */
async function ownLoop(
  make: (
    model: Siglip2Model,
    optimizer: AdamW,
  ) => { loss: (batch: Batch) => Promise<number>; afterUpdate?: () => void; dispose?: () => void },
  options: { decoder?: boolean; ssl?: boolean; ema?: number } = {},
) {
  const source = await openSource({ type: 'folder', path: images }),
    decoder = options.decoder ? { length: 24 } : undefined;
  const vocab = await trimmedVocabulary(source, { decoder: decoder !== undefined });
  const config = modelConfig('test', { vocab: vocab.size, ...(decoder ? { decoder } : {}) });
  const { imageSize: size, patch } = config.vision;
  const loader = new DataLoader(source, {
    batchSize: BATCH,
    seed: SEED,
    size,
    tokenizer: { length: config.text.length, vocab },
    workers: 0,
    ...(decoder ? { decoder } : {}),
    ...(options.ssl ? { views: viewsConfig(size, patch) } : {}),
  });
  const model = new Siglip2Model(config, {
    train: true,
    extra: options.ssl ? sslShapes(config, HEAD) : [],
  });
  model.initialize(SEED);
  const optimizer = new AdamW(model.params, { lr: LR, ema: options.ema ?? null });
  optimizer.resetEma();
  const own = make(model, optimizer);
  try {
    const losses: number[] = [],
      norms: number[] = [];
    for (let step = 0; step < STEPS; step++) {
      const batch = await loader.next();
      model.params.zeroGrad();
      losses.push(await own.loss(batch));
      optimizer.update(scheduleMultiplier(SCHEDULE, step));
      own.afterUpdate?.();
      norms.push(Math.sqrt(await optimizer.norm2.item()));
    }
    return { losses, norms, weights: (await model.params.values.read()) as Float32Array };
  } finally {
    await loader.close();
    own.dispose?.();
    optimizer.dispose();
    model.dispose();
  }
}

/** Embeddings of a batch's images and texts, (B, E) each, recorded for backward(). */
function embed(model: Siglip2Model, batch: Batch): [images: Tensor, texts: Tensor] {
  const {
    vision: { imageSize: S },
    text: { length: L },
  } = model.config;
  return scope(() => [
    model.encodeImages(tensor(batch.images, [batch.size, S, S, 3])),
    model.encodeTexts(tensor(batch.ids, [batch.size, L])),
  ]);
}

/** The package's loss on embeddings. */
const packageLoss = (model: Siglip2Model) => ({
  async loss(batch: Batch): Promise<number> {
    const loss = scope(() => {
      const [x, y] = embed(model, batch),
        loss = sigmoidLoss(x, y, model.logitScale, model.logitBias);
      backward(loss);
      return loss;
    });
    const value = await loss.item();
    loss.dispose();
    return value;
  },
});

/** SigLIP's loss (eq. 1) and its gradients by hand, in double precision; `dt` is that of log t, which is the parameter. */
function sigmoidByHand(
  x: Float32Array,
  y: Float32Array,
  B: number,
  logScale: number,
  bias: number,
) {
  const E = x.length / B,
    t = Math.exp(logScale),
    dx = new Float64Array(x.length),
    dy = new Float64Array(y.length);
  let value = 0,
    dt = 0,
    db = 0;
  for (let i = 0; i < B; i++) {
    for (let j = 0; j < B; j++) {
      let cosine = 0;
      for (let e = 0; e < E; e++) cosine += x[i * E + e]! * y[j * E + e]!;
      const sign = i === j ? 1 : -1,
        margin = sign * (t * cosine + bias);
      value += (Math.log1p(Math.exp(-Math.abs(margin))) + Math.max(0, -margin)) / B;
      const g = -sign / (1 + Math.exp(margin)) / B;
      for (let e = 0; e < E; e++) {
        dx[i * E + e]! += g * t * y[j * E + e]!;
        dy[j * E + e]! += g * t * x[i * E + e]!;
      }
      dt += g * t * cosine;
      db += g;
    }
  }
  return {
    value,
    dx: Float32Array.from(dx),
    dy: Float32Array.from(dy),
    dt: Float32Array.of(dt),
    db: Float32Array.of(db),
  };
}

const handLoss = (model: Siglip2Model) => ({
  async loss(batch: Batch): Promise<number> {
    const [x, y] = embed(model, batch);
    const [xs, ys, logScale, bias] = await Promise.all([
      x.read(),
      y.read(),
      model.logitScale.item(),
      model.logitBias.item(),
    ]);
    const own = sigmoidByHand(xs as Float32Array, ys as Float32Array, batch.size, logScale, bias);
    scope(() =>
      backward([
        [x, tensor(own.dx, x.shape)],
        [y, tensor(own.dy, y.shape)],
        [model.logitScale, tensor(own.dt, [1])],
        [model.logitBias, tensor(own.db, [1])],
      ]),
    );
    x.dispose();
    y.dispose();
    return own.value;
  },
});

/** Largest |a − b| against the largest |b|. */
function relative(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let worst = 0,
    size = 0;
  for (let i = 0; i < b.length; i++) {
    worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
    size = Math.max(size, Math.abs(b[i]!));
  }
  return worst / size;
}

test('ten steps of an own loop are those of the Trainer, to the bit', async () => {
  const theirs = await trainer('plain'),
    own = await ownLoop(packageLoss);
  expect(own.losses).toEqual(theirs.losses);
  expect(own.norms).toEqual(theirs.norms);
  expect(Buffer.from(own.weights.buffer).equals(Buffer.from(theirs.weights.buffer))).toBe(true);
  expect(own.losses.at(-1)!).toBeLessThan(own.losses[0]!);
}, 120000);

test('a loss written by hand gives its gradients to the embeddings and trains to the same losses', async () => {
  const own = await ownLoop(packageLoss),
    hand = await ownLoop(handLoss);
  expect(relative(hand.losses, own.losses)).toBeLessThan(1e-6);
  expect(relative(hand.norms, own.norms)).toBeLessThan(1e-6);
  expect(hand.losses.at(-1)!).toBeLessThan(hand.losses[0]!);
}, 120000);

test('captioning, self-distillation and masked prediction in an own loop are the Trainer, to the bit', async () => {
  const theirs = await trainer('all', {
    model: { variant: 'test', decoder: { length: 24 } },
    optimizer: { lr: LR, warmup: 2, ema: 0.9 },
    objectives: { caption: { parallel: 0 }, distill: { head: HEAD } },
  });
  const own = await ownLoop(
    (model, optimizer) => {
      const ssl = new SelfDistillation(model, optimizer),
        {
          vision: { imageSize },
          decoder,
          text,
        } = model.config;
      return {
        async loss(batch) {
          const pairs = scope(() => {
            const tokens = model.imageTokens(
              tensor(batch.images, [batch.size, imageSize, imageSize, 3]),
            );
            const x = model.poolTokens(tokens);
            const caption = captionLoss(
              model,
              tokens,
              captionBatch(batch.sequences!, { length: decoder!.length, mask: text.vocab }),
            );
            const y = model.encodeTexts(tensor(batch.ids, [batch.size, text.length]));
            const sigmoid = sigmoidLoss(x, y, model.logitScale, model.logitBias);
            backward([
              [sigmoid, 1],
              [caption, 1],
            ]);
            return { sigmoid, caption };
          });
          const views = scope(() => {
            const { distill, masked, roots } = ssl.losses(batch.views!);
            backward(roots);
            return { distill, masked };
          });
          const { distillWeight, maskedWeight } = ssl.options;
          const [sigmoid, tasks, distill, masked] = await Promise.all([
            pairs.sigmoid.item(),
            pairs.caption.read(),
            views.distill.item(),
            views.masked.item(),
          ]);
          for (const t of [...Object.values(pairs), ...Object.values(views)]) t.dispose();
          return (
            [...tasks].reduce((sum, v) => sum + v, sigmoid) +
            (distillWeight * distill + maskedWeight * masked)
          );
        },
        afterUpdate: () => ssl.afterUpdate(),
        dispose: () => ssl.dispose(),
      };
    },
    { decoder: true, ssl: true, ema: 0.9 },
  );
  expect(own.norms).toEqual(theirs.norms);
  expect(relative(own.losses, theirs.losses)).toBeLessThan(1e-12); // their sum in another order
  expect(Buffer.from(own.weights.buffer).equals(Buffer.from(theirs.weights.buffer))).toBe(true);
}, 120000);

test('gradients come by parameter name, and in parts they are those of the whole batch', async () => {
  const config = modelConfig('test', { vocab: 61 }),
    { imageSize: S } = config.vision,
    L = config.text.length,
    B = 6;
  const pixels = Uint8Array.from({ length: B * S * S * 3 }, (_, i) => (i * 37) % 251);
  const ids = Int32Array.from({ length: B * L }, (_, i) => (i % L < 4 ? 2 + ((i * 11) % 59) : 0));
  const model = new Siglip2Model(config, { train: true });
  model.initialize(1);
  const images = (from: number, to: number): Tensor =>
    model.encodeImages(
      tensor(pixels.subarray(from * S * S * 3, to * S * S * 3), [to - from, S, S, 3]),
    );
  const texts = (from: number, to: number): Tensor =>
    model.encodeTexts(tensor(ids.subarray(from * L, to * L), [to - from, L]));
  const loss = (x: Tensor, y: Tensor): [Tensor, number][] => [
    [sigmoidLoss(x, y, model.logitScale, model.logitBias), 0.5],
  ];
  scope(() => backward(loss(images(0, B), texts(0, B))));
  const whole = await model.params.read(model.params.grads!);
  expect([...whole.keys()]).toEqual(parameterShapes(config).map((p) => p.name));
  expect(whole.get('logit_scale')!.data).toHaveLength(1);
  expect(whole.get('text_model.head.weight')).toMatchObject({
    shape: [config.vision.width, config.vision.width],
  });
  model.params.zeroGrad();
  scope(() => void gradCache(B, 2, [images, texts], loss));
  for (const [name, { data }] of await model.params.read(model.params.grads!)) {
    const want = whole.get(name)!.data;
    if (want.some((v) => Math.abs(v) > 1e-6))
      expect({ name, close: relative(data, want) < 1e-4 }).toEqual({ name, close: true });
  }
  model.dispose();
});

test('a loss of ops: a linear probe on embeddings', async () => {
  const model = new Siglip2Model(modelConfig('test', { vocab: 61 }), { train: true }),
    { imageSize: S } = model.config.vision;
  model.initialize(1);
  const loss = scope(() => {
    const x = model.encodeImages(zeros([3, S, S, 3], 'u8')),
      width = x.shape[1]!;
    const loss = softmaxCrossEntropy(
      linear(x, tensor(new Float32Array(4 * width).fill(0.1), [4, width]), null),
      tensor(Int32Array.of(0, 3, 1), [3]),
    );
    backward(loss);
    return loss;
  });
  expect(await loss.item()).toBeCloseTo(Math.log(4), 5); // all logits are equal
  loss.dispose();
  model.dispose();
});

test('what cannot be is refused in a sentence, and leaves nothing behind', async () => {
  const config = modelConfig('test', { vocab: 61 }),
    frozen = new Siglip2Model(config),
    model = new Siglip2Model(config, { train: true });
  model.initialize(1);
  const message = (fn: () => unknown): string => {
    try {
      scope(() => void fn());
    } catch (e) {
      return `${(e as Siglip2Error).code}: ${(e as Error).message}`;
    }
    return 'no error';
  };
  const { imageSize: S } = config.vision,
    embedOne = (): Tensor => model.encodeImages(zeros([2, S, S, 3], 'u8'));
  const E = config.vision.width;
  expect(message(() => backward(embedOne()))).toMatch(
    /^ERR_SHAPE: backward: a root that is no loss, this f32 \[2, \d+\] say, needs its gradient/,
  );
  expect(message(() => backward([[embedOne(), tensor(new Float32Array(E), [1, E])]]))).toMatch(
    /a gradient must be \[2, \d+\] but is \[1, \d+\]/,
  );
  expect(message(() => backward([[embedOne(), tensor(new Uint16Array(2 * E), [2, E])]]))).toMatch(
    /a gradient must be f32 but is bf16/,
  );
  expect(message(() => backward([[model.logitScale, 1]]))).toMatch(/needs its gradient/);
  expect(message(() => backward([[frozen.logitScale, tensor(Float32Array.of(1), [1])]]))).toMatch(
    /logit_scale has no gradient; make the model with train: true/,
  );
  expect(message(() => new AdamW(frozen.params))).toMatch(
    /^ERR_CONFIG: .*no gradients; make the model with train: true/,
  );
  expect(message(() => new AdamW(model.params, { lr: -1 }))).toMatch(
    /lr must be a number from 0 on but is -1/,
  );
  expect(message(() => new AdamW(model.params, { beta2: 2 }))).toMatch(
    /beta2 must be in \[0, 1\] but is 2/,
  );
  await expect(frozen.params.read(frozen.params.grads as never)).rejects.toMatchObject({
    code: 'ERR_SHAPE',
    message: expect.stringContaining('params.grads of a model made with train: true') as never,
  });
  const other = zeros([3]);
  await expect(frozen.params.read(other)).rejects.toMatchObject({ code: 'ERR_SHAPE' });
  other.dispose();
  for (const m of [frozen, model]) m.dispose();
}, 60000);

test('resizing tables by hand, and saving what was trained', async () => {
  expect(resizePositions(Float32Array.of(0, 1, 2, 3), [2, 2], [1, 1])).toEqual(
    Float32Array.of(1.5),
  );
  // A constant kernel on an enlarged constant patch gives what it gave before.
  const small = piResize(new Float32Array(16 * 16).fill(1), 16, 8);
  expect(small.reduce((a, b) => a + b, 0)).toBeCloseTo(256, 1);
  expect(() => resizePositions(new Float32Array(5), [2, 2], [1, 1])).toThrow(
    'resizePositions: 5 values',
  );
  expect(() => piResize(new Float32Array(5), 2, 4)).toThrow('piResize: 5 values');
  const model = new Siglip2Model(modelConfig('test'), { train: true });
  model.initialize(2);
  await saveModel(join(folder, 'saved'), model);
  const again = await loadModel(join(folder, 'saved'));
  expect(await again.model.params.read()).toEqual(await model.params.read());
  for (const m of [model, again.model]) m.dispose();
  expect(ADAMW_DEFAULTS.lr).toBe(1e-3);
}, 60000);
