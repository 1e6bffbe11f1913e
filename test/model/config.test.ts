import { expect, test } from '@jest/globals';
import { ConfigError } from '../../lib/errors.js';
import type { ModelOverrides } from '../../lib/model/config.js';
import { didYouMean, gridSide, modelConfig, patchCount, VARIANTS } from '../../lib/model/config.js';
import type { ParameterShape } from '../../lib/model/params.js';
import { parameterCounts, parameterShapes } from '../../lib/model/shapes.js';

// Variant, image size (0: NaFlex), patches, vision, vision without the pooling head, text, total,
// tensors.
const RELEASED: [string, number, number, number, number, number, number, number][] = [
  ['B/32', 256, 64, 94552320, 87465216, 282303744, 376856066, 408],
  ['B/16', 224, 196, 92884224, 85797120, 282303744, 375187970, 408],
  ['B/16', 256, 256, 92930304, 85843200, 282303744, 375234050, 408],
  ['B/16', 384, 576, 93176064, 86088960, 282303744, 375479810, 408],
  ['B/16', 512, 1024, 93520128, 86433024, 282303744, 375823874, 408],
  ['B/16', 0, 256, 92930304, 85843200, 282303744, 375234050, 408],
  ['L/16', 256, 256, 315956224, 303361024, 565570560, 881526786, 792],
  ['L/16', 384, 576, 316283904, 303688704, 565570560, 881854466, 792],
  ['L/16', 512, 1024, 316742656, 304147456, 565570560, 882313218, 792],
  ['So400m/14', 224, 256, 427680704, 412442352, 707782896, 1135463602, 888],
  ['So400m/14', 384, 729, 428225600, 412987248, 707782896, 1136008498, 888],
  ['So400m/16', 256, 256, 427888064, 412649712, 707782896, 1135670962, 888],
  ['So400m/16', 384, 576, 428256704, 413018352, 707782896, 1136039602, 888],
  ['So400m/16', 512, 1024, 428772800, 413534448, 707782896, 1136555698, 888],
  ['So400m/16', 0, 256, 427888064, 412649712, 707782896, 1135670962, 888],
  ['g-opt/16', 256, 256, 1163168256, 1134838272, 708225648, 1871393906, 1096],
  ['g-opt/16', 384, 576, 1163659776, 1135329792, 708225648, 1871885426, 1096],
];

test.each(RELEASED)(
  '%s at %d px: %d patches, released parameter counts',
  (name, imageSize, patches, vision, visionWithoutMap, text, total, tensors) => {
    const config = modelConfig(name, imageSize === 0 ? { naflex: true } : { imageSize });
    expect(patchCount(config)).toBe(patches);
    expect(parameterCounts(config)).toEqual({
      vision,
      visionWithoutMap,
      text,
      total,
      tensors,
      decoder: 0,
    });
  },
);

const byName = (list: ParameterShape[]): Map<string, ParameterShape> =>
  new Map(list.map((p) => [p.name, p]));

test('names, shapes, initialisers and decay of B/16', () => {
  const list = parameterShapes(modelConfig('B/16', { imageSize: 224 }));
  const all = byName(list);
  expect(all.size).toBe(list.length);
  const layer = 'vision_model.encoder.layers.11';
  expect(all.get('vision_model.embeddings.patch_embedding.weight')).toEqual({
    name: 'vision_model.embeddings.patch_embedding.weight',
    shape: [768, 3, 16, 16],
    init: { kind: 'lecunNormal', fanIn: 768 },
    decay: true,
  });
  expect(all.get(`${layer}.mlp.fc1.weight`)).toMatchObject({
    shape: [3072, 768],
    init: { kind: 'xavierUniform', fanIn: 768, fanOut: 3072 },
    decay: true,
  });
  expect(all.get(`${layer}.mlp.fc2.bias`)).toMatchObject({
    shape: [768],
    init: { kind: 'normal', std: 1e-6 },
    decay: false,
  });
  expect(all.get('vision_model.head.attention.in_proj_weight')).toMatchObject({
    shape: [2304, 768],
    init: { kind: 'xavierUniform', fanIn: 768, fanOut: 768 },
    decay: true,
  });
  expect(all.get('vision_model.head.probe')).toMatchObject({
    shape: [1, 1, 768],
    init: { kind: 'xavierUniform', fanIn: 1, fanOut: 768 },
    decay: false,
  });
  expect(all.get('text_model.embeddings.token_embedding.weight')).toMatchObject({
    shape: [256000, 768],
    init: { kind: 'normal', std: 768 ** -0.5 },
    decay: false,
  });
  expect(all.get('text_model.head.weight')).toMatchObject({
    shape: [768, 768],
    init: { kind: 'lecunNormal', fanIn: 768 },
    decay: true,
  });
  expect(all.get('logit_scale')).toMatchObject({
    shape: [1],
    init: { kind: 'constant', value: Math.log(10) },
    decay: false,
  });
  expect(all.get('logit_bias')).toMatchObject({
    shape: [1],
    init: { kind: 'constant', value: -10 },
  });
  // Decayed tensors are exactly the kernels: every two- or four-dimensional tensor but the three
  // tables.
  for (const { name, shape, decay } of list) {
    expect([name, decay]).toEqual([
      name,
      [2, 4].includes(shape.length) && !/(token|position)_embedding/.test(name),
    ]);
  }
});

test('q, k and v kernels are neighbours, then their biases', () => {
  const names = parameterShapes(modelConfig('test')).map(({ name }) => name);
  const layers = names.filter((name) => name.endsWith('self_attn.q_proj.weight'));
  expect(layers).toHaveLength(4);
  for (const first of layers) {
    const prefix = first.slice(0, -'q_proj.weight'.length);
    const at = names.indexOf(first);
    expect(names.slice(at, at + 8).map((name) => name.slice(prefix.length))).toEqual([
      'q_proj.weight',
      'k_proj.weight',
      'v_proj.weight',
      'q_proj.bias',
      'k_proj.bias',
      'v_proj.bias',
      'out_proj.weight',
      'out_proj.bias',
    ]);
  }
});

test('NaFlex, attention pooling of text, and overrides', () => {
  const naflex = byName(parameterShapes(modelConfig('B/16', { naflex: true })));
  expect(naflex.get('vision_model.embeddings.patch_embedding.weight')?.shape).toEqual([768, 768]);
  expect(naflex.get('vision_model.embeddings.position_embedding.weight')?.shape).toEqual([
    256, 768,
  ]);
  const map = modelConfig('test', { pool: 'map', vocab: 99, text: { depth: 1 } });
  expect(parameterCounts(map).tensors).toBe(parameterCounts(modelConfig('test')).tensors - 16 + 11);
  const table = 'text_model.embeddings.token_embedding.weight';
  expect(byName(parameterShapes(map)).get(table)?.shape).toEqual([99, 32]);
  expect(modelConfig('g-opt/16')).toMatchObject({ embed: 1536, text: { width: 1152 } });
  expect(modelConfig('micro')).toMatchObject({
    naflex: false,
    embed: 128,
    layerNormEps: 1e-6,
    initLogitBias: -10,
  });
  expect(modelConfig('So400m/14').vision.imageSize).toBe(224);
  expect(gridSide(modelConfig('B/8', { imageSize: 70 }))).toBe(8);
  // The tables are shared between calls, so a caller must be able to change its own copy.
  const mine = modelConfig('micro');
  mine.vision.width = 1;
  expect(modelConfig('micro').vision.width).toBe(128);
  for (const name of VARIANTS) expect(modelConfig(name).name).toBe(name);
});

test.each<[string, ModelOverrides, RegExp]>([
  ['b16', {}, /is called "b16" \(did you mean "B\/16"\?\); the variants are B\/32, B\/16, /],
  ['So400M/14', {}, /did you mean "So400m\/14"/],
  ['constructor', {}, /no variant is called "constructor"; the variants/],
  ['B/0', {}, /no variant is called "B\/0"/],
  [
    'B/16',
    { imagesize: 3 } as ModelOverrides,
    /unknown key "imagesize" \(did you mean "imageSize"\?\)/,
  ],
  ['B/16', { vision: { widht: 3 } as object }, /unknown key "vision.widht"/],
  ['B/16', { imageSize: 8 }, /imageSize 8 must be at least one patch of 16 px/],
  ['B/16', { imageSize: 100, naflex: true }, /multiple of the patch 16 but is 100/],
  ['B/16', { text: { heads: 7 } }, /text.width 768 must be a multiple of text.heads 7/],
  ['B/16', { vision: { width: 1.5 } }, /vision.width is 1.5/],
  ['B/16', { vocab: 0 }, /text.vocab is 0/],
  ['B/16', { embed: 512 }, /embed must equal vision.width 768/],
  ['B/16', { layerNormEps: -1 }, /layerNormEps is -1/],
  ['B/16', { pool: 'mean' as 'map' }, /text.pool is "mean"/],
])('%s %j is a ConfigError', (name, overrides, message) => {
  const make = (): unknown => modelConfig(name, overrides);
  expect(make).toThrow(ConfigError);
  expect(make).toThrow(message);
});

test('didYouMean keeps quiet when nothing is near', () => {
  expect(didYouMean('zzzzzzzz', ['abc'])).toBe('');
  expect(didYouMean('x'.repeat(1e6), ['abc'])).toBe('');
});
