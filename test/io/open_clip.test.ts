/**
 * Folders of open_clip and timm, in and out. The models of goldens/open_clip_models.json are open_clip 3.3's and timm
 * 1.0.31's own, with weights by formula and run in float64; the formula stands in `weights`.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { hubFolder } from '../../lib/checkpoints/hub.js';
import { loadModel, modelFiles } from '../../lib/checkpoints/load.js';
import { toOpenClipConfig } from '../../lib/checkpoints/open_clip_config.js';
import { defaultProcessor } from '../../lib/checkpoints/processor_config.js';
import { load } from '../../lib/encoder/encoder.js';
import { CheckpointError, IoError } from '../../lib/errors.js';
import { packNaflex } from '../../lib/image/naflex.js';
import { f32ToBf16 } from '../../lib/io/half.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { type ModelOverrides, modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { noGrad } from '../../lib/tape.js';
import { batchInvariant, liveCount, scope, tensor } from '../../lib/tensor.js';
import { cleanText } from '../../lib/text/clean.js';
import {
  defaultTokenizerPath,
  type GemmaTokenizer,
  loadTokenizer,
} from '../../lib/text/tokenizer.js';
import { largestDifference } from './support.js';

const root = mkdtempSync(join(tmpdir(), 'siglip2-open-clip-'));
afterAll(() => {
  rmSync(root, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

interface Golden {
  config: {
    model_cfg: Record<string, unknown> & {
      vision_cfg: Record<string, unknown>;
      text_cfg: Record<string, unknown>;
    };
    preprocess_cfg: Record<string, unknown>;
  };
  tensors: [name: string, shape: number[]][];
  /** Unit rows: of the pixels, of the photo resized by open_clip, of the ids. */
  image: number[];
  photo?: number[];
  text: number[];
  /** Rows and columns of patches of NaFlex images. */
  shapes?: [number, number][];
}
const { ids, models, cleaned } = JSON.parse(
  readFileSync('test/goldens/open_clip_models.json', 'utf8'),
) as {
  ids: number[][];
  /** A text, and what open_clip makes of it by `whitespace`, `lower` and `canonicalize`. */
  cleaned: string[][];
  models: Record<'exact' | 'tanh' | 'naflex', Golden>;
};

function fnv(text: string): number {
  let hash = 2166136261;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 16777619) >>> 0;
  return hash;
}
function* lcg(n: number, seed: number): Generator<number> {
  for (let x = seed; n-- > 0; ) {
    x = (Math.imul(1664525, x) + 1013904223) >>> 0;
    yield x / 2 ** 31 - 1;
  }
}
const bytes = (name: string, n: number): Uint8Array =>
  Uint8Array.from(lcg(n, fnv(name)), (v) => Math.floor((v + 1) * 128));

function weights(name: string, shape: readonly number[]): Float32Array {
  const n = shape.reduce((a, b) => a * b, 1),
    scale = Math.sqrt(3 / (n / (shape[0] ?? 1)));
  if (name === 'logit_scale') return Float32Array.of(1.5);
  if (name === 'logit_bias') return Float32Array.of(-3);
  return Float32Array.from(lcg(n, fnv(name)), (v) =>
    /norm|\.ln_/.test(name) && name.endsWith('weight')
      ? 1 + 0.3 * v
      : shape.length === 1
        ? 0.1 * v
        : /embedding|pos_embed|latent/.test(name)
          ? 0.5 * v
          : v * scale,
  );
}

let folders = 0;
/** A folder as open_clip writes it. */
async function folderOf(
  golden: Golden,
  change: (json: Golden['config']) => void = () => undefined,
  dtype: 'F32' | 'BF16' = 'F32',
): Promise<string> {
  const folder = join(root, `folder-${folders++}`),
    json = structuredClone(golden.config);
  change(json);
  await mkdir(folder);
  await writeFile(join(folder, 'open_clip_config.json'), JSON.stringify(json));
  await writeSafetensors(
    join(folder, 'open_clip_model.safetensors'),
    [...golden.tensors]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, shape]) => {
        const values = weights(name, shape);
        return { name, shape, dtype, data: dtype === 'F32' ? values : f32ToBf16(values) };
      }),
  );
  return folder;
}

/** Embeddings of the golden's pixels (or patches) and ids. */
async function embed(
  source: string,
  golden: Golden,
): Promise<{ image: Float32Array; text: Float32Array }> {
  const { model } = await loadModel(source);
  using loaded = model;
  const { vision } = loaded.config,
    S = vision.imageSize,
    P = vision.patch;
  const [image, text] = scope(() =>
    noGrad(() =>
      batchInvariant('cpu', () => {
        const pixels = golden.shapes
          ? loaded.encodeNaflex(
              packNaflex(
                golden.shapes.map(([rows, columns], b) => ({
                  rows,
                  columns,
                  patches: bytes(`patches${b}`, rows * columns * P * P * 3),
                })),
              ),
            )
          : loaded.encodeImages(tensor(bytes('pixels', 3 * S * S * 3), [3, S, S, 3]));
        return [pixels, loaded.encodeTexts(tensor(Int32Array.from(ids.flat()), [3, 7]))].map(
          (t) => t.read() as Promise<Float32Array>,
        );
      }),
    ),
  );
  return { image: await image!, text: await text! };
}

test.each(['exact', 'tanh', 'naflex'] as const)(
  "open_clip's embeddings of its own folder: %s",
  async (name) => {
    const golden = models[name],
      { image, text } = await embed(await folderOf(golden), golden);
    expect(largestDifference(image, golden.image)).toBeLessThan(2e-6);
    expect(largestDifference(text, golden.text)).toBeLessThan(2e-6);
  },
);

test('a photo is resized as open_clip resizes it', async () => {
  for (const name of ['exact', 'tanh'] as const) {
    const golden = models[name],
      encoder = await load(await folderOf(golden));
    const { data } = await encoder.encodeImages({
      data: bytes('photo', 17 * 23 * 3),
      width: 23,
      height: 17,
      channels: 3,
    });
    expect(largestDifference(data, golden.photo!)).toBeLessThan(2e-6);
    encoder.dispose();
  }
});

test('the config says what the towers are and how inputs are made', async () => {
  const open = async (golden: Golden, change?: Parameters<typeof folderOf>[1]) => {
    const from = await openCheckpoint(await folderOf(golden, change));
    await from.reader.close();
    return from;
  };
  const exact = await open(models.exact);
  expect(exact.config).toEqual({
    name: 'custom/4',
    naflex: false,
    embed: 128,
    layerNormEps: 1e-6,
    initLogitScale: Math.log(10),
    initLogitBias: -10,
    vision: { width: 128, depth: 2, heads: 2, mlp: 200, patch: 4, imageSize: 14, gelu: 'exact' },
    text: {
      width: 48,
      depth: 2,
      heads: 3,
      mlp: 120,
      vocab: 61,
      length: 7,
      pool: 'last',
      gelu: 'exact',
    },
  });
  expect(exact).toMatchObject({
    resample: 3,
    lowercase: 'unicode',
    clean: 'canonicalize',
    generation: 2,
    folder: null,
    vocabulary: null,
  });
  expect((await open(models.tanh)).config.vision).toMatchObject({ heads: 16 });
  expect((await open(models.tanh)).config.vision).not.toHaveProperty('gelu');
  expect(await open(models.naflex)).toMatchObject({
    config: { naflex: true, vision: { imageSize: 16, patch: 4, heads: 1 } },
  });
  expect(
    await open(models.exact, (c) => {
      c.preprocess_cfg['interpolation'] = 'bilinear';
      delete c.model_cfg.text_cfg['tokenizer_kwargs'];
    }),
  ).toMatchObject({ resample: 2, clean: 'whitespace', lowercase: 'none' });
  expect(
    await open(models.tanh, (c) => {
      c.model_cfg.vision_cfg['timm_model_name'] = 'vit_large_patch16_siglip_512.v2_webli';
    }),
  ).toMatchObject({ config: { vision: { heads: 1 } } });
});

test.each<[(c: Golden['config']) => void, RegExp]>([
  [
    (c) => {
      c.model_cfg.vision_cfg['timm_model_name'] = 'vit_base_patch16_siglip_gap_224';
    },
    /timm_model_name" is "vit_base_patch16_siglip_gap_224", but the vision towers of SigLIP in timm are vit_base_patch32_siglip_256, /,
  ],
  [
    (c) => {
      c.model_cfg.vision_cfg['timm_model_name'] = 'vit_base_patch16_siglip_320';
    },
    /is "vit_base_patch16_siglip_320", but/,
  ],
  [
    (c) => {
      delete c.model_cfg.vision_cfg['timm_model_name'];
    },
    /timm_model_name" is missing: must name a vision tower of timm/,
  ],
  [
    (c) => {
      c.model_cfg.vision_cfg['timm_pool'] = 'avg';
    },
    /timm_pool" is "avg": must be map/,
  ],
  [
    (c) => {
      delete c.model_cfg.vision_cfg['timm_proj'];
    },
    /timm_proj" is missing: must be none/,
  ],
  [
    (c) => {
      c.model_cfg.vision_cfg['image_size'] = 224;
    },
    /image_size" is 224, but the weights' positions are of 3 × 3 patches of 4 px/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['no_causal_mask'] = false;
    },
    /no_causal_mask" is false: must be true/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['pool_type'] = 'argmax';
    },
    /pool_type" is "argmax": must be last/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['qk_norm'] = true;
    },
    /qk_norm" is true: SigLIP has no such thing/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['hf_model_name'] = 'roberta-base';
    },
    /hf_model_name" is "roberta-base": must be absent/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['norm_kwargs'] = {};
    },
    /norm_kwargs.eps" is 0.00001, but timm's vision tower has 0.000001/,
  ],
  [
    (c) => {
      c.model_cfg['quick_gelu'] = true;
    },
    /quick_gelu" is true/,
  ],
  [
    (c) => {
      c.model_cfg['embed_dim'] = 512;
    },
    /embed must equal vision.width 128/,
  ],
  [
    (c) => {
      c.preprocess_cfg['mean'] = [0.48, 0.46, 0.41];
    },
    /preprocess_cfg.mean/,
  ],
  [
    (c) => {
      delete c.preprocess_cfg['resize_mode'];
    },
    /resize_mode" is missing: must be squash/,
  ],
  [
    (c) => {
      c.preprocess_cfg['interpolation'] = 'random';
    },
    /interpolation" is "random": must be bicubic or bilinear/,
  ],
  [
    (c) => {
      c.model_cfg.text_cfg['heads'] = 5;
    },
    /text.width 48 must be a multiple of text.heads 5/,
  ],
])('another model is refused by name: %s', async (change, message) => {
  await expect(openCheckpoint(await folderOf(models.exact, change))).rejects.toThrow(message);
});

test('tensors that do not fit are refused by name', async () => {
  const { exact } = models,
    without = (name: string) => ({ ...exact, tensors: exact.tensors.filter(([n]) => n !== name) });
  await expect(
    openCheckpoint(await folderOf(without('visual.trunk.blocks.1.attn.qkv.bias'))),
  ).rejects.toThrow(/holds no tensor "visual.trunk.blocks.1.attn.qkv.bias"/);
  await expect(openCheckpoint(await folderOf(without('visual.trunk.pos_embed')))).rejects.toThrow(
    /hold no tensor "visual.trunk.pos_embed", which vit_base_patch16_siglip_224 needs/,
  );
  await expect(
    openCheckpoint(
      await folderOf({
        ...exact,
        tensors: [...exact.tensors, ['visual.head.proj.weight', [128, 128]]],
      }),
    ),
  ).rejects.toThrow(/tensor "visual.head.proj.weight" belongs to no custom\/4/);
  await expect(
    openCheckpoint(
      await folderOf({
        ...exact,
        tensors: exact.tensors.map(([n, s]) =>
          n === 'text.text_projection.weight' ? [n, [48, 128]] : [n, s],
        ),
      }),
    ),
  ).rejects.toThrow(/tensor "text.text_projection.weight" must be \[128, 48\] but is \[48, 128\]/);
});

test.each(['exact', 'tanh', 'naflex'] as const)(
  'through a Hugging Face folder nothing changes: %s',
  async (name) => {
    const golden = models[name],
      source = await folderOf(golden),
      hf = join(root, `hf-${name}`);
    await convertCheckpoint(source, hf, { format: 'hf' });
    const { image, text } = await embed(hf, golden);
    expect(largestDifference(image, golden.image)).toBeLessThan(2e-6);
    expect(largestDifference(text, golden.text)).toBeLessThan(2e-6);
    const json = JSON.parse(await readFile(join(hf, 'config.json'), 'utf8')) as {
      vision_config: { hidden_act: string };
    };
    expect(json.vision_config.hidden_act).toBe(name === 'exact' ? 'gelu' : 'gelu_pytorch_tanh');
    expect(JSON.parse(await readFile(join(hf, 'preprocessor_config.json'), 'utf8'))).toMatchObject({
      resample: 3,
    });
  },
);

test('bf16 weights come piece by piece and as they are', async () => {
  const source = await folderOf(models.exact, undefined, 'BF16'),
    to = join(root, 'hf-bf16'),
    from = await openCheckpoint(source);
  const name = 'vision_model.encoder.layers.1.self_attn.k_proj.weight',
    values = await from.reader.readFloat32(name),
    parts: number[] = [];
  for await (const part of from.reader.chunks(name)) parts.push(...part);
  expect(parts).toEqual([...values]);
  await expect(from.reader.read('nothing')).rejects.toThrow(/holds no tensor "nothing"/);
  await from.reader.close();
  await convertCheckpoint(source, to, { format: 'hf' });
  const written = await openSafetensors(to);
  expect(written.tensors.get(name)!.dtype).toBe('BF16');
  expect(await written.readFloat32(name)).toEqual(values);
  await written.close();
});

test('damaged folders give a sentence or a model, whatever is damaged', async () => {
  const folder = await folderOf(models.tanh),
    random = lcg(1e6, 7),
    next = (n: number): number =>
      Math.min(n - 1, Math.floor((((random.next().value as number) + 1) / 2) * n));
  const files = ['open_clip_config.json', 'open_clip_model.safetensors'].map((name) => ({
    path: join(folder, name),
    whole: readFileSync(join(folder, name)),
  }));
  let refused = 0;
  for (let i = 0; i < 200; i++) {
    const { path, whole } = files[i % 2]!,
      bytes = Buffer.from(whole),
      header = i % 2 ? Math.min(bytes.length, 9000) : bytes.length;
    for (let n = 1 + next(3); n > 0; n--)
      bytes[next(header)] = next(2) ? 0x30 + next(10) : next(256);
    writeFileSync(path, next(8) === 0 ? bytes.subarray(0, next(bytes.length)) : bytes);
    await openCheckpoint(folder).then(
      ({ reader }) => reader.close(),
      (error: unknown) => {
        expect(error instanceof CheckpointError || error instanceof IoError ? '' : error).toBe('');
        refused++;
      },
    );
    writeFileSync(path, whole);
  }
  expect(refused).toBeGreaterThan(50);
});

// ---- export -------------------------------------------------------------------------------------

/** A model that open_clip has a name for, with as little text tower as can be. */
const b32 = (overrides: ModelOverrides = {}) =>
  modelConfig('B/32', {
    vocab: 9,
    length: 5,
    text: { width: 16, depth: 1, heads: 2, mlp: 41 },
    ...overrides,
  });

test('a folder for open_clip has its names, shapes and config, and comes back as it was', async () => {
  const folder = join(root, 'ours'),
    out = join(root, 'ours-open-clip'),
    back = join(root, 'ours-back');
  await mkdir(folder);
  const config = b32();
  using model = new Siglip2Model(config);
  model.initialize(3);
  await modelFiles(folder, model, {
    vocab: null,
    tokenizer: null,
    lowercase: 'unicode',
    ema: null,
  });
  const notes: string[] = [];
  await convertCheckpoint(folder, out, { format: 'open_clip', onNote: (note) => notes.push(note) });
  expect(notes).toEqual([]);
  expect((await readdir(out)).sort()).toEqual([
    'open_clip_config.json',
    'open_clip_model.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
  ]);
  expect(JSON.parse(await readFile(join(out, 'open_clip_config.json'), 'utf8'))).toEqual({
    model_cfg: {
      embed_dim: 768,
      init_logit_bias: -10,
      custom_text: true,
      vision_cfg: {
        image_size: 256,
        timm_model_name: 'vit_base_patch32_siglip_256',
        timm_model_pretrained: false,
        timm_pool: 'map',
        timm_proj: 'none',
      },
      text_cfg: {
        context_length: 5,
        vocab_size: 9,
        hf_tokenizer_name: 'google/siglip2-base-patch16-naflex',
        tokenizer_kwargs: { clean: 'whitespace' },
        width: 16,
        heads: 2,
        layers: 1,
        mlp_ratio: 41 / 16,
        no_causal_mask: true,
        proj_bias: true,
        pool_type: 'last',
        norm_kwargs: { eps: 1e-6 },
        act_kwargs: { approximate: 'tanh' },
      },
    },
    preprocess_cfg: {
      size: [256, 256],
      mode: 'RGB',
      mean: [0.5, 0.5, 0.5],
      std: [0.5, 0.5, 0.5],
      interpolation: 'bilinear',
      resize_mode: 'squash',
      fill_color: 0,
    },
  });
  const written = await openSafetensors(join(out, 'open_clip_model.safetensors'));
  // The names and shapes of open_clip's own state dict, with this model's sizes in place of the golden's.
  const names = models.exact.tensors
    .map(([name]) => name)
    .filter((name) => !name.includes('resblocks.1'))
    .flatMap((name) =>
      name.startsWith('visual.trunk.blocks.1')
        ? Array.from({ length: 11 }, (_, i) => name.replace('blocks.1', `blocks.${i + 1}`))
        : [name],
    );
  expect([...written.tensors.keys()].sort()).toEqual(names.sort());
  expect(written.tensors.get('logit_scale')!.shape).toEqual([]);
  expect(written.tensors.get('visual.trunk.blocks.3.attn.qkv.weight')!.shape).toEqual([2304, 768]);
  await written.close();
  await convertCheckpoint(out, back, { format: 'hf' });
  expect(
    (await readFile(join(back, 'model.safetensors'))).equals(
      await readFile(join(folder, 'model.safetensors')),
    ),
  ).toBe(true);
});

test('names of timm and forms of GELU', () => {
  const named = (name: string, overrides: ModelOverrides = {}) => {
    const config = modelConfig(name, overrides),
      { json, note } = toOpenClipConfig(config, defaultProcessor(config));
    const {
      model_cfg: { vision_cfg, text_cfg },
    } = json as unknown as Golden['config'];
    return {
      name: vision_cfg['timm_model_name'],
      ratio: text_cfg['mlp_ratio'] as number,
      act: text_cfg['act_kwargs'],
      note,
    };
  };
  expect(named('So400m/14', { imageSize: 384 })).toMatchObject({
    name: 'vit_so400m_patch14_siglip_384',
    note: expect.stringMatching(
      /^timm's vit_so400m_patch14_siglip_384 computes GELU in its exact form but this model in its tanh form/,
    ),
  });
  expect(
    named('So400m/14', { imageSize: 384, vision: { gelu: 'exact' }, text: { gelu: 'exact' } }),
  ).toMatchObject({ note: undefined, act: undefined });
  expect(named('g-opt/16', { imageSize: 384 })).toMatchObject({
    name: 'vit_giantopt_patch16_siglip_384',
    note: undefined,
    act: { approximate: 'tanh' },
  });
  expect(Math.trunc(1152 * named('g-opt/16').ratio)).toBe(4304);
  expect(named('L/16', { imageSize: 512 })).toMatchObject({
    name: 'vit_large_patch16_siglip_512',
    note: undefined,
  });
  expect(named('B/16', { naflex: true })).toMatchObject({
    name: 'naflexvit_base_patch16_siglip',
    note: undefined,
  });
  expect(() => named('B/16', { imageSize: 320 })).toThrow(
    /none for one of width 768, depth 12, 12 heads, MLP 3072, patch 16 and 320 px; it has vit_base_patch32_siglip_256, /,
  );
  expect(() => named('L/16', { naflex: true })).toThrow(/none for a NaFlex tower of width 1024/);
  expect(() => named('B/16', { pool: 'map' })).toThrow(/pools no text by attention/);
  expect(() => named('B/16', { layerNormEps: 1e-5 })).toThrow(/layer_norm_eps 0.000001/);
});

// ---- texts --------------------------------------------------------------------------------------

test.each(cleaned)('a text is cleaned as open_clip cleans it: %j', (text, ...want) => {
  expect(
    (['whitespace', 'lower', 'canonicalize'] as const).map((clean) => cleanText(text!, clean)),
  ).toEqual(want);
});

test('the tokenizer gets cleaned texts', async () => {
  const idsOf = async (tokenizer: GemmaTokenizer, text: string): Promise<number[]> => [
    ...(await tokenizer.idsOf([text]))[0]!,
  ];
  const plain = await loadTokenizer(),
    canonical = await loadTokenizer({ clean: 'canonicalize' }),
    spaces = await loadTokenizer({ clean: 'whitespace', lower: 'none' });
  expect(await idsOf(canonical, ' A photo_of: a "CAT",\n really! <eos> ')).toEqual(
    await idsOf(plain, 'a photo of a cat really eos'),
  );
  expect(await idsOf(spaces, '  Two\t words. ')).toEqual(
    await idsOf(await loadTokenizer({ lower: 'none' }), 'Two words.'),
  );
});

// ---- what is refused ----------------------------------------------------------------------------

test.each<[string, RegExp]>([
  [
    'model.pt',
    /model.pt: is a pickle of PyTorch.* python3 -c "import sys, torch; .*" \S*model.pt \S*model.safetensors/,
  ],
  ['last.ckpt', /is a pickle of PyTorch/],
  ['weights.PTH', /is a pickle of PyTorch/],
  [
    'flax_model.msgpack',
    /is flax's msgpack; write it as .npz with Python: python3 -c .* \S*flax_model.npz/,
  ],
  ['tf_model.h5', /is an HDF5 file/],
  ['model.Q4.gguf', /is GGUF.*take the checkpoint that it was made from/],
  ['vision.onnx', /is an ONNX graph/],
  ['model.safetensors', /is the weights alone; give the folder/],
  ['notes.txt', /is a file of another kind; give a folder/],
])('a file of another kind says what it is: %s', async (name, message) => {
  const path = join(mkdtempSync(join(root, 'file-')), name);
  await writeFile(path, 'x');
  await expect(openCheckpoint(path)).rejects.toThrow(message);
});

test.each<[Record<string, string>, RegExp]>([
  [
    { 'open_clip_config.json': '{}', 'open_clip_pytorch_model.bin': '' },
    /no safetensors weights but open_clip_pytorch_model.bin, a pickle .*open_clip_model.safetensors/,
  ],
  [
    { 'config.json': '{"model_type":"siglip"}', 'pytorch_model.bin': '' },
    /but pytorch_model.bin, .* let transformers write it .*save_pretrained/,
  ],
  [
    {
      'config.json': '{"model_type":"siglip"}',
      'pytorch_model-00001-of-00002.bin': '',
      'optimizer.bin': '',
    },
    /but pytorch_model-00001-of-00002.bin/,
  ],
  [
    { 'config.json': '{"model_type":"siglip"}', 'flax_model.msgpack': '' },
    /but flax_model.msgpack, flax's msgpack/,
  ],
  [{ 'model.gguf': '' }, /but model.gguf, GGUF/],
  [
    { 'vision.onnx': '', 'config.json': '{"model_type":"siglip"}' },
    /but vision.onnx, an ONNX graph/,
  ],
  [
    {
      'config.json': '{"architecture":"vit_base_patch16_siglip_256","pretrained_cfg":{}}',
      'model.safetensors': '',
    },
    /an image tower of timm alone \(vit_base_patch16_siglip_256\).*both towers are needed/,
  ],
  [
    { 'config.json': '{"model_type":"siglip"}', 'model.safetensors.index.json': '{}' },
    /no weight_map/,
  ],
])('a folder of other weights says what it holds: %j', async (files, message) => {
  const folder = mkdtempSync(join(root, 'other-'));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  await expect(openCheckpoint(folder)).rejects.toThrow(message);
});

test('8-bit floats say how they become weights', async () => {
  const folder = join(root, 'float8'),
    tensors = models.exact.tensors
      .slice(0, 3)
      .map(([name, shape]) => ({
        name,
        shape,
        dtype: 'F8_E4M3' as const,
        data: new Uint8Array(shape.reduce((a, b) => a * b, 1)),
      }));
  await copyFile(
    join(await folderOf(models.exact), 'open_clip_config.json'),
    join((await mkdir(folder, { recursive: true })) ?? folder, 'open_clip_config.json'),
  );
  const all = models.exact.tensors.map(
    ([name, shape]) =>
      tensors.find((t) => t.name === name) ?? {
        name,
        shape,
        dtype: 'F32' as const,
        data: weights(name, shape),
      },
  );
  await writeSafetensors(join(folder, 'open_clip_model.safetensors'), all);
  await expect(openCheckpoint(folder)).rejects.toThrow(
    /is F8_E4M3: a float of so few bits is for inference engines; write it as bf16 with Python: python3 -c/,
  );
  await writeSafetensors(join(folder, 'open_clip_model.safetensors'), [
    ...all,
    { name: 'text.x.weight_scale', shape: [1], dtype: 'F32', data: new Float32Array(1) },
  ]);
  await expect(openCheckpoint(folder)).rejects.toThrow(
    /needs its scales \(text.x.weight_scale\); take the checkpoint that it was quantised from/,
  );
});

test("a folder of open_clip in the hub's cache needs no network", async () => {
  const cache = join(root, 'hub'),
    at = join(cache, 'models--timm--ViT-X', 'snapshots'),
    before = process.env['HF_HUB_CACHE'];
  await mkdir(at, { recursive: true });
  await mkdir(join(at, '..', 'refs'));
  await writeFile(join(at, '..', 'refs', 'main'), 'abc');
  await symlink(await folderOf(models.tanh), join(at, 'abc'));
  process.env['HF_HUB_CACHE'] = cache;
  try {
    expect(await hubFolder('timm/ViT-X')).toBe(join(at, 'abc'));
  } finally {
    if (before === undefined) delete process.env['HF_HUB_CACHE'];
    else process.env['HF_HUB_CACHE'] = before;
  }
});

test('the tokenizer of the folder is used', async () => {
  const folder = await folderOf(models.exact);
  await copyFile(defaultTokenizerPath(), join(folder, 'tokenizer.json'));
  const from = await openCheckpoint(folder);
  await from.reader.close();
  expect(from).toMatchObject({ tokenizer: join(folder, 'tokenizer.json'), noTokenizer: undefined });
});
