import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from '@jest/globals';
import { loadModel, loadModelInto, modelFiles } from '../../lib/checkpoints/load.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { SSL_HEAD, sslHead, sslShapes } from '../../lib/model/ssl_head.js';
import { visionTokens } from '../../lib/model/vision.js';
import { noGrad } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { errorOf, withFolder } from '../data/support.js';
import { normal } from '../harness.js';

afterEach(() => expect(liveCount()).toBe(0));

const HEAD = { hidden: 12, bottleneck: 6, prototypes: 20, patchPrototypes: 10 };
const config = modelConfig('test', { vocab: 9 });
const extra = sslShapes(config, HEAD);

test('the heads of the recipe have the published sizes; kernels decay, the rest does not', () => {
  const shapes = new Map(sslShapes(modelConfig('B/16')).map((s) => [s.name, s]));
  expect(shapes.get('ssl.image_head.fc1.weight')!.shape).toEqual([2048, 768]);
  expect(shapes.get('ssl.patch_head.fc3.weight')!.shape).toEqual([256, 2048]);
  expect(shapes.get('ssl.image_head.prototypes.weight')!.shape).toEqual([65536, 256]);
  expect(shapes.get('ssl.mask_token')!.shape).toEqual([768]);
  expect(shapes.size).toBe(15);
  for (const { name, decay } of shapes.values())
    expect({ name, decay }).toEqual({ name, decay: name.endsWith('.weight') });
  expect(SSL_HEAD.hidden).toBe(2048);
});

test('logits are cosines: within [−1, 1], and unchanged by the length of prototypes', async () => {
  using model = new Siglip2Model(config, { extra });
  model.initialize(1);
  const logits = async (): Promise<Float32Array> => {
    const y = noGrad(() =>
      scope(() => sslHead(model.params, 'ssl.image_head', tensor(normal(5 * 32, 2), [5, 32]))),
    );
    const data = (await y.read()) as Float32Array;
    y.dispose();
    return data;
  };
  const before = await logits();
  expect(before.length).toBe(5 * 20);
  expect(before.every((v) => Math.abs(v) <= 1)).toBe(true);
  const prototypes = model.params.get('ssl.image_head.prototypes.weight');
  prototypes.write(((await prototypes.read()) as Float32Array).map((v) => 3 * v));
  (await logits()).forEach((v, i) => expect(v).toBeCloseTo(before[i]!, 5));
});

test("a view smaller or larger than the model's image has a token for each of its patches", async () => {
  using model = new Siglip2Model(config);
  model.initialize(1);
  for (const [h, w] of [
    [16, 16],
    [8, 40],
    [64, 48],
  ] as const) {
    const y = noGrad(() =>
      scope(() =>
        visionTokens(
          model.params,
          config,
          tensor(new Uint8Array(2 * h * w * 3).fill(99), [2, h, w, 3]),
          model.options,
        ),
      ),
    );
    expect(y.shape).toEqual([2, (h * w) / 64, 32]);
    expect(((await y.read()) as Float32Array).every(Number.isFinite)).toBe(true);
    y.dispose();
  }
  expect(
    (
      await errorOf(() =>
        scope(() =>
          visionTokens(
            model.params,
            config,
            tensor(new Uint8Array(7 * 9 * 3), [1, 7, 9, 3]),
            model.options,
          ),
        ),
      )
    ).message,
  ).toMatch(/pixels \[1, 7, 9, 3\] hold no patch of 8×8/);
});

test('a checkpoint with heads opens as a plain model; one without heads starts a stage but resumes none', () =>
  withFolder(async (folder) => {
    const save = async (name: string, model: Siglip2Model): Promise<string> => {
      const to = join(folder, name);
      mkdirSync(to);
      await modelFiles(to, model, { vocab: null, tokenizer: null, lowercase: 'ascii', ema: null });
      return to;
    };
    using full = new Siglip2Model(config, { extra }),
      plain = new Siglip2Model(config),
      other = new Siglip2Model(config, { extra });
    full.initialize(1);
    plain.initialize(2);
    other.initialize(3);
    const withHeads = await save('with', full),
      without = await save('without', plain);

    const { model: opened } = await loadModel(withHeads);
    const want = await full.params.read(),
      got = await opened.params.read();
    for (const [name, t] of got) expect(t.data).toEqual(want.get(name)!.data);
    opened.dispose();

    expect((await errorOf(() => loadModelInto(other, without))).message).toMatch(
      /tensor "ssl\.image_head\.fc1\.weight" is missing/,
    );
    const heads = (await other.params.read()).get('ssl.patch_head.fc2.weight')!.data;
    await loadModelInto(other, without, { fresh: 'ssl.' });
    expect((await other.params.read()).get('ssl.patch_head.fc2.weight')!.data).toEqual(heads);
    expect((await other.params.read()).get('vision_model.head.probe')!.data).toEqual(
      (await plain.params.read()).get('vision_model.head.probe')!.data,
    );
    await loadModelInto(other, withHeads);
    expect((await other.params.read()).get('ssl.mask_token')!.data).toEqual(
      want.get('ssl.mask_token')!.data,
    );
  }));
