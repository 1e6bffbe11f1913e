import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import type { HfModel, TensorData } from '../../lib/checkpoints/hf.js';
import {
  loadHfFolder,
  preprocessorConfig,
  saveHfFolder,
  tokenizerConfig,
} from '../../lib/checkpoints/hf.js';
import { fromHfConfig, hfJson, toHfConfig, withFloats } from '../../lib/checkpoints/hf_config.js';
import { CheckpointError } from '../../lib/errors.js';
import { writeSafetensors } from '../../lib/io/safetensors.js';
import type { ModelConfig } from '../../lib/model/config.js';
import { modelConfig } from '../../lib/model/config.js';
import { parameterCounts, parameterShapes } from '../../lib/model/shapes.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'siglip2-hf-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

function tensorsOf(config: ModelConfig): Map<string, TensorData> {
  return new Map(
    parameterShapes(config).map(({ name, shape }, k) => [
      name,
      {
        shape,
        dtype: 'F32',
        data: Float32Array.from(
          { length: shape.reduce((a, b) => a * b, 1) },
          (_, i) => k + i / 1024,
        ),
      },
    ]),
  );
}

test.each([
  ['B/16', {}],
  ['B/32', {}],
  ['L/16', { imageSize: 512 }],
  ['So400m/14', { imageSize: 384 }],
  ['So400m/16', { naflex: true }],
  ['g-opt/16', { imageSize: 384 }],
  ['micro', { vocab: 777 }],
  ['B/16', { vision: { gelu: 'exact' } }],
  ['test', { text: { gelu: 'exact' } }],
] as const)('%s %j goes to config.json and back', (name, overrides) => {
  const config = modelConfig(name, overrides);
  const json = JSON.parse(JSON.stringify(toHfConfig(config))) as Record<string, unknown>;
  expect(fromHfConfig(json)).toEqual(config);
  expect(json.model_type).toBe(config.naflex ? 'siglip2' : 'siglip');
});

test('a sparse config is filled in with the class defaults', () => {
  // The form of the published config.json of the base model at 224 px.
  const sparse = fromHfConfig({
    architectures: ['SiglipModel'],
    model_type: 'siglip',
    initializer_factor: 1.0,
    torch_dtype: 'float32',
    text_config: { model_type: 'siglip_text_model', vocab_size: 256000, projection_size: 768 },
    vision_config: { model_type: 'siglip_vision_model' },
  });
  expect(sparse).toEqual(modelConfig('B/16', { imageSize: 224 }));
  expect(parameterCounts(sparse).total).toBe(375187970);
  expect(fromHfConfig({ model_type: 'siglip' }).text.vocab).toBe(32000);
  expect(fromHfConfig({ model_type: 'siglip2', vision_config: { image_size: 999 } })).toMatchObject(
    { naflex: true, vision: { imageSize: 256 } },
  );
  expect(fromHfConfig({ model_type: 'siglip', vision_config: { patch_size: 14 } }).name).toBe(
    'custom/14',
  );
});

test('null means not given, and both axes may be named', () => {
  const json = {
    model_type: 'siglip',
    initializer_factor: null,
    text_config: { vocab_size: 256000, projection_size: null, layer_norm_eps: null },
    vision_config: { patch_size: [16, 16], image_size: [256, 256], num_channels: null },
  };
  expect(fromHfConfig(json)).toEqual(modelConfig('B/16'));
  expect(
    fromHfConfig({
      ...json,
      text_config: { vocab_size: 256000, projection_size: null },
      vision_config: null,
    }).vision.imageSize,
  ).toBe(224);
  expect(() => fromHfConfig({ ...json, vision_config: { patch_size: [16, 14] } })).toThrow(
    /patch_size.* must be a whole number, the same for both axes/,
  );
});

test('what transformers declares as a float is written as one', () => {
  const numbers = [
    ...hfJson(toHfConfig({ ...modelConfig('B/16'), layerNormEps: 1 })).matchAll(
      /"layer_norm_eps": (.*),/g,
    ),
  ];
  expect(numbers.map(([, text]) => text)).toEqual(['1.0', '1.0']);
  expect(hfJson(toHfConfig(modelConfig('B/16')))).toMatch(/"layer_norm_eps": 0.000001,/);
  // The rest of somebody else's wording stays.
  const text =
    '{"initializer_factor":1, "a":1,\n "x":{"layer_norm_eps" : 2 },"hidden_size":768, "attention_dropout": 0.0,"initializer_range": 0}';
  expect(withFloats(text)).toBe(
    text
      .replace('factor":1', 'factor":1.0')
      .replace('eps" : 2', 'eps" : 2.0')
      .replace('range": 0', 'range": 0.0'),
  );
  expect(JSON.parse(withFloats(text))).toEqual(JSON.parse(text));
});

test.each([
  ['siglip_vision_model', 'SiglipVisionModel', 'the vision tower alone'],
  ['siglip2_vision_model', undefined, 'the vision tower alone'],
  ['siglip_text_model', 'SiglipTextModel', 'the text tower alone'],
  ['siglip', 'SiglipForImageClassification', 'the vision tower with a classifier'],
  ['siglip2', 'Siglip2ForImageClassification', 'the vision tower with a classifier'],
  ['siglip', 'SiglipVisionModel', 'the vision tower alone'],
])('%s of %s is called what it is', (type, name, what) => {
  expect(() => fromHfConfig({ model_type: type, architectures: name ? [name] : null })).toThrow(
    new RegExp(`this folder holds ${what}`),
  );
});

test.each<[unknown, RegExp]>([
  [null, /config.json: the contents is null/],
  [[], /the contents/],
  ['x', /the contents/],
  [{}, /key "model_type" is missing/],
  [{ model_type: 'clip' }, /key "model_type" is "clip"/],
  [
    { model_type: 'siglip', text_config: { hidden_size: '768' } },
    /key "text_config.hidden_size" is "768"/,
  ],
  [{ model_type: 'siglip', text_config: { hidden_size: 0 } }, /key "text_config.hidden_size" is 0/],
  [
    { model_type: 'siglip', vision_config: { hidden_act: 'quick_gelu' } },
    /key "vision_config.hidden_act" is "quick_gelu"/,
  ],
  [{ model_type: 'siglip', vision_config: { num_channels: 1 } }, /num_channels" is 1/],
  [
    { model_type: 'siglip', vision_config: { vision_use_head: false } },
    /vision_use_head" is false/,
  ],
  [
    { model_type: 'siglip', vision_config: { layer_norm_eps: 1e-5 } },
    /layer_norm_eps must be the same in both/,
  ],
  [
    { model_type: 'siglip', vision_config: { hidden_size: 1152 } },
    /embed must equal vision.width|multiple of/,
  ],
  [
    { model_type: 'siglip', text_config: { num_attention_heads: 7 } },
    /text.width 768 must be a multiple/,
  ],
  [{ model_type: 'siglip', vision_config: { image_size: 8 } }, /at least one patch/],
  [
    { model_type: 'siglip2', vision_config: { num_patches: 250 } },
    /num_patches" is 250: it must be a square/,
  ],
])('config %j is a CheckpointError', (json, message) => {
  expect(() => fromHfConfig(json)).toThrow(CheckpointError);
  expect(() => fromHfConfig(json)).toThrow(message);
});

test('processor files', () => {
  expect(preprocessorConfig(modelConfig('B/16', { imageSize: 384 }))).toMatchObject({
    image_processor_type: 'SiglipImageProcessor',
    size: { height: 384, width: 384 },
    resample: 2,
    rescale_factor: 1 / 255,
    image_mean: [0.5, 0.5, 0.5],
  });
  const naflex = preprocessorConfig(modelConfig('B/16', { naflex: true }));
  expect(naflex).toMatchObject({
    image_processor_type: 'Siglip2ImageProcessor',
    patch_size: 16,
    max_num_patches: 256,
  });
  expect(naflex).not.toHaveProperty('size');
  expect(
    preprocessorConfig(modelConfig('B/16', { naflex: true }), { resample: 3, maxPatches: 1024 }),
  ).toMatchObject({ resample: 3, max_num_patches: 1024 });
  expect(tokenizerConfig(modelConfig('B/16'))).toMatchObject({
    model_input_names: ['input_ids'],
    padding_side: 'right',
    model_max_length: 64,
    do_lower_case: true,
  });
  expect(tokenizerConfig(modelConfig('B/16'), 'none').do_lower_case).toBe(false);
});

test('how a decoder writes boxes is kept, and checked', async () => {
  const config = modelConfig('test', { vocab: 6, decoder: { depth: 1, length: 9 } });
  const boxes = { bins: 100, order: [0, 1, 2, 3] as const },
    path = join(folder, 'boxes');
  await saveHfFolder(path, { config, tensors: tensorsOf(config), boxes });
  const loaded = await loadHfFolder(path);
  await loaded.reader.close();
  expect(loaded.boxes).toEqual(boxes);
  const file = join(path, 'siglip2.json'),
    json = JSON.parse(await readFile(file, 'utf8')) as object;
  await writeFile(file, JSON.stringify({ ...json, boxes: { bins: 100, order: [0, 0, 2, 3] } }));
  await expect(loadHfFolder(path)).rejects.toThrow(
    /siglip2.json: boxes.order must be a permutation/,
  );
});

test('a folder is saved, loaded, and exported with the complete token table', async () => {
  const config = modelConfig('test', { vocab: 6, pool: 'map', initLogitBias: -4 });
  const vocabulary = [0, 1, 2, 3, 7, 9];
  const tensors = tensorsOf(config);
  const own = join(folder, 'own');
  const model: HfModel = {
    config,
    tensors,
    vocabulary,
    tokenizer: '{"x":1}',
    lowercase: 'unicode',
  };
  await saveHfFolder(own, model);
  const loaded = await loadHfFolder(own);
  expect(loaded).toMatchObject({
    config,
    vocabulary,
    lowercase: 'unicode',
    tokenizer: join(own, 'tokenizer.json'),
  });
  for (const [name, { data }] of tensors)
    expect([name, await loaded.reader.readFloat32(name)]).toEqual([name, data]);
  await loaded.reader.close();
  expect(JSON.parse(await readFile(join(own, 'preprocessor_config.json'), 'utf8'))).toEqual(
    preprocessorConfig(config),
  );

  const out = join(folder, 'export');
  await saveHfFolder(out, { ...model, expandVocabulary: 11 });
  const exported = await loadHfFolder(out);
  expect(exported.config.text.vocab).toBe(11);
  expect(exported.vocabulary).toBeNull();
  const name = 'text_model.embeddings.token_embedding.weight';
  const full = await exported.reader.readFloat32(name);
  await exported.reader.close();
  const trimmed = tensors.get(name)!.data as Float32Array;
  for (let id = 0; id < 11; id++) {
    const row = vocabulary.includes(id) ? vocabulary.indexOf(id) : 3;
    expect(full.slice(id * 32, (id + 1) * 32)).toEqual(trimmed.slice(row * 32, (row + 1) * 32));
  }
});

test('a folder without siglip2.json, with scalars and position ids, as older tools write it', async () => {
  const config = modelConfig('test');
  const path = join(folder, 'plain');
  const entries = [...tensorsOf(config)].map(([name, t]) => ({
    name,
    ...t,
    shape: name.startsWith('logit') ? [] : t.shape,
  }));
  await writeSafetensors(join(path, 'model.safetensors'), [
    ...entries,
    {
      name: 'text_model.embeddings.position_ids',
      dtype: 'I64',
      shape: [1, 1],
      data: BigInt64Array.of(0n),
    },
  ]);
  await writeFile(join(path, 'config.json'), JSON.stringify(toHfConfig(config)));
  const loaded = await loadHfFolder(path);
  await loaded.reader.close();
  expect(loaded).toMatchObject({
    config,
    vocabulary: null,
    tokenizer: undefined,
    lowercase: 'ascii',
  });
});

test('what does not fit is refused, naming file and tensor or key', async () => {
  const config = modelConfig('test');
  const tensors = tensorsOf(config);
  const path = join(folder, 'bad');
  const save = (model: Partial<HfModel>): Promise<void> =>
    saveHfFolder(path, { config, tensors, ...model });
  const without = new Map(tensors);
  without.delete('logit_bias');
  await expect(save({ tensors: without })).rejects.toThrow(
    /holds no tensor "logit_bias", which test needs/,
  );
  const probe = 'vision_model.head.probe';
  const changed = (name: string, tensor: Partial<TensorData>): Map<string, TensorData> =>
    new Map(tensors).set(name, { ...tensors.get(probe)!, ...tensor });
  await expect(save({ tensors: changed(probe, { shape: [1, 32] }) })).rejects.toThrow(
    /"vision_model.head.probe" must be \[1, 1, 32\] but is \[1, 32\]/,
  );
  await expect(save({ tensors: changed(probe, { dtype: 'I32' }) })).rejects.toThrow(
    /must be floating-point but is I32/,
  );
  await expect(save({ tensors: changed('more', {}) })).rejects.toThrow(
    /tensor "more" belongs to no test/,
  );
  await expect(save({ vocabulary: [1, 2] })).rejects.toThrow(
    /has 2 ids but the token table has 256 rows/,
  );
  await expect(save({ vocabulary: Array<number>(256).fill(5) })).rejects.toThrow(
    /must ascend but has 5 after 5/,
  );
  const long = Array.from({ length: 256 }, (_, i) => i);
  await expect(save({ vocabulary: long, expandVocabulary: 100 })).rejects.toThrow(
    /has id 100 but the complete table/,
  );

  await expect(loadHfFolder(join(folder, 'no'))).rejects.toThrow(
    /no\/config.json: it does not exist/,
  );
  await save({});
  for (const [file, text, message] of [
    ['siglip2.json', '{"version":2}', /siglip2.json: key "version" is 2/],
    ['siglip2.json', 'null', /siglip2.json: the contents is null/],
    ['config.json', '{', /config.json: is not valid JSON/],
    [
      'config.json',
      JSON.stringify(toHfConfig(modelConfig('micro'))),
      /model.safetensors|must be \[/,
    ],
  ] as const) {
    await save({});
    await writeFile(join(path, file), text);
    await expect(loadHfFolder(path)).rejects.toThrow(CheckpointError);
    await expect(loadHfFolder(path)).rejects.toThrow(message);
  }
});
