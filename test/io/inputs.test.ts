/** What checkpoints say of their inputs: processors and tokenizers, as others write them and as we do. */
import { mkdtempSync, rmSync } from 'node:fs';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { hfJson } from '../../lib/checkpoints/hf_config.js';
import { modelFiles } from '../../lib/checkpoints/load.js';
import { readProcessor } from '../../lib/checkpoints/processor_config.js';
import { load } from '../../lib/encoder/encoder.js';
import { type ModelOverrides, modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { liveCount } from '../../lib/tensor.js';
import { defaultTokenizerPath, loadTokenizer } from '../../lib/text/tokenizer.js';
import { tokenizerFile } from '../../lib/text/tokenizer_file.js';

const root = mkdtempSync(join(tmpdir(), 'siglip2-inputs-'));
afterAll(() => {
  rmSync(root, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

/** A random model of few values in a folder as training writes it. */
async function checkpoint(
  name: string,
  overrides: ModelOverrides = {},
  lowercase: 'unicode' | 'ascii' | 'none' = 'unicode',
): Promise<string> {
  const folder = join(root, name);
  await mkdir(folder);
  using model = new Siglip2Model(modelConfig('test', { vocab: 300, ...overrides }));
  model.initialize(1);
  await modelFiles(folder, model, { vocab: null, tokenizer: null, lowercase, ema: null });
  return folder;
}

let fixed: string, naflex: string;
beforeAll(async () => {
  [fixed, naflex] = [await checkpoint('fixed'), await checkpoint('naflex', { naflex: true })];
});

const halves = [0.5, 0.5, 0.5];
/** What transformers 5 saves, in processor_config.json alone. */
const nested = (more: object) => ({
  image_processor: {
    do_convert_rgb: true,
    do_normalize: true,
    do_rescale: true,
    do_resize: true,
    image_mean: halves,
    image_std: halves,
    image_processor_type: 'SiglipImageProcessor',
    rescale_factor: 0.00392156862745098,
    ...more,
  },
  processor_class: 'SiglipProcessor',
});

async function processorOf(json: Record<string, unknown>, config = modelConfig('test')) {
  const folder = mkdtempSync(join(root, 'processor-'));
  for (const [name, value] of Object.entries(json))
    await writeFile(join(folder, `${name}.json`), JSON.stringify(value));
  return readProcessor(folder, config);
}

test('processors of either version of transformers say the same', async () => {
  const NAFLEX = modelConfig('test', { naflex: true }),
    size = { height: 32, width: 32 };
  expect(await processorOf({})).toEqual({ resample: 2, generation: 2, maxPatches: 256 });
  expect(await processorOf({ processor_config: nested({ resample: 3, size }) })).toMatchObject({
    resample: 3,
  });
  expect(await processorOf({ processor_config: nested({ resample: 2 }) })).toMatchObject({
    resample: 2,
  });
  expect(
    await processorOf({ processor_config: nested({ max_num_patches: 64, patch_size: 8 }) }, NAFLEX),
  ).toMatchObject({ resample: 2, maxPatches: 64 });
  expect(
    await processorOf(
      {
        preprocessor_config: {
          resample: 2,
          max_num_patches: 1024,
          patch_size: [8, 8],
          do_convert_rgb: null,
        },
      },
      NAFLEX,
    ),
  ).toMatchObject({ resample: 2, maxPatches: 1024 });
  // The nested one wins; a processor_config.json of version 4 holds none.
  expect(
    await processorOf({
      processor_config: nested({ resample: 3 }),
      preprocessor_config: { resample: 2 },
    }),
  ).toMatchObject({ resample: 3 });
  expect(
    await processorOf({
      processor_config: { processor_class: 'SiglipProcessor' },
      preprocessor_config: { resample: 3 },
    }),
  ).toMatchObject({ resample: 3 });
  // Numbers for all channels, null for what is not said, and the classes' own defaults of the filter.
  expect(
    await processorOf({
      preprocessor_config: { image_mean: 0.5, image_std: [0.5], size: 32, resample: null },
    }),
  ).toMatchObject({ resample: 3 });
  expect(
    await processorOf(
      { preprocessor_config: { resample: null, size: { height: 999, width: 1 } } },
      NAFLEX,
    ),
  ).toMatchObject({ resample: 2 });
});

test.each<[Record<string, unknown>, RegExp]>([
  [
    { image_mean: [0.48, 0.46, 0.41] },
    /key "AT?image_mean[^"]*": must be 0.5; this is no SigLIP preprocessor/,
  ],
  [{ image_std: 0.26 }, /key "AT?image_std": must be 0.5/],
  [{ resample: 0 }, /key "AT?resample": the filter is nearest but must be bilinear/],
  [{ resample: 1 }, /the filter is Lanczos/],
  [{ resample: 'x' }, /must be 2 \(bilinear\) or 3/],
  [{ size: { height: 64, width: 64 } }, /64×64 px is not the 32×32 px of the model/],
  [{ size: 64 }, /64×64 px is not the 32×32/],
  [{ size: { shortest_edge: 32 } }, /key "AT?size": must be one of height and width/],
  [{ patch_size: 16 }, /16 is not the 8 of the model/],
  [{ rescale_factor: 1 }, /key "AT?rescale_factor": must be 0.0039/],
  [{ do_normalize: false }, /do_normalize": must be true/],
  [{ do_center_crop: true }, /do_center_crop": must be false/],
  [{ max_num_patches: 0 }, /max_num_patches/],
])('a processor that does something else is refused by name: %j', async (json, message) => {
  const at = (text: string): RegExp => new RegExp(message.source.replace('AT?', text));
  await expect(processorOf({ preprocessor_config: json })).rejects.toThrow(at(''));
  await expect(processorOf({ processor_config: nested(json) })).rejects.toThrow(
    at('image_processor.'),
  );
});

test('damaged processors are errors that name the file', async () => {
  const folder = mkdtempSync(join(root, 'processor-'));
  for (const [text, message] of [
    ['{', /processor_config.json: is not valid JSON/],
    ['[]', /must be an object/],
    ['{"image_processor":[]}', /"image_processor" must be an object/],
  ] as const) {
    await writeFile(join(folder, 'processor_config.json'), text);
    await expect(readProcessor(folder, modelConfig('test'))).rejects.toThrow(message);
  }
});

test('the budget of patches is written, read, and used', async () => {
  const path = join(naflex, 'preprocessor_config.json'),
    json = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
  expect(json['max_num_patches']).toBe(256);
  await writeFile(path, hfJson({ ...json, max_num_patches: 9 }));
  using model = await load(naflex);
  const [features] = await model.tokens({
    data: new Uint8Array(64 * 64 * 3),
    width: 64,
    height: 64,
    channels: 3,
  });
  expect([features!.rows, features!.columns]).toEqual([3, 3]);
  using more = await load(naflex, { maxPatches: 16 });
  const [finer] = await more.tokens({
    data: new Uint8Array(64 * 64 * 3),
    width: 64,
    height: 64,
    channels: 3,
  });
  expect([finer!.rows, finer!.columns]).toEqual([4, 4]);
});

/** ids that the official library gives for a text when it applies all that a file says. */
async function libraryIds(folder: string, text: string): Promise<number[]> {
  const { Tokenizer } = await import('tokenizers');
  return (await Tokenizer.fromFile(join(folder, 'tokenizer.json')).encode(text)).getIds();
}

test('the tokenizer that we write gives any reader the right ids', async () => {
  const path = await checkpoint('full', { vocab: 256000 });
  const onnx = join(root, 'full-onnx'),
    converted = join(root, 'full-hf');
  await convertCheckpoint(path, onnx, { format: 'onnx' });
  await convertCheckpoint(path, converted, { format: 'hf' });
  for (const folder of [path, onnx, converted]) {
    expect(await libraryIds(folder, 'Red Circle')).toEqual([854, 11698, 1]);
    expect(await libraryIds(folder, 'a dog')).toEqual([235250, 5929, 1]);
    expect(await libraryIds(folder, '<mask> <EOS>')).toEqual([4, 968, 96396, 235313, 1]);
    expect(JSON.parse(await readFile(join(folder, 'tokenizer_config.json'), 'utf8'))).toMatchObject(
      { model_input_names: ['input_ids'], padding_side: 'right', model_max_length: 16 },
    );
    expect(JSON.parse(await readFile(join(folder, 'tokenizer.json'), 'utf8'))).toMatchObject({
      padding: null,
      truncation: null,
    });
    // Through our own reader the same, which knows of lower-casing by itself.
    const ours = await loadTokenizer({ path: join(folder, 'tokenizer.json'), lower: 'unicode' });
    expect([...(await ours.idsOf(['Red Circle']))[0]!]).toEqual([854, 11698, 1]);
  }
  // A folder of an older version, whose tokenizer began texts with BOS, is mended on the way; what it says of itself too.
  const old = await readFile(defaultTokenizerPath(), 'utf8'),
    mended = join(root, 'mended');
  await writeFile(join(path, 'tokenizer.json'), old);
  await writeFile(
    join(path, 'config.json'),
    (await readFile(join(path, 'config.json'), 'utf8')).replace(
      '{',
      '{\n  "initializer_factor": 1,',
    ),
  );
  await convertCheckpoint(path, mended, { format: 'hf' });
  expect(await libraryIds(mended, 'Red Circle')).toEqual([854, 11698, 1]);
  expect(await readFile(join(mended, 'config.json'), 'utf8')).toMatch(/"initializer_factor": 1.0,/);
}, 60_000);

test.each(['ascii', 'none'] as const)(
  'lower-casing %s is in the file too, once',
  async (lower) => {
    const file = join(root, `${lower}.json`);
    await writeFile(file, await tokenizerFile(defaultTokenizerPath(), lower));
    const again = await tokenizerFile(file, lower);
    expect(again).toBe(await readFile(file, 'utf8'));
    const { Tokenizer } = await import('tokenizers');
    const ids = async (text: string) => (await Tokenizer.fromString(again).encode(text)).getIds();
    expect(await ids('Red ÉТ')).toEqual(
      lower === 'ascii' ? await ids('red ÉТ') : await ids('Red ÉТ'),
    );
    expect(await ids('Red')).not.toEqual(await ids(lower === 'ascii' ? 'RÉd' : 'red'));
  },
  60_000,
);

test('a conversion keeps the wording of what it does not change', async () => {
  const folder = await checkpoint('wording'),
    target = join(root, 'wording-f32');
  const config = await readFile(join(folder, 'config.json'), 'utf8');
  const theirs = config
    .replace('"torch_dtype": "float32",', '"initializer_factor": 1.0,\n  "x": [1.0, 2],')
    .replace('"hidden_act"', '"dtype": "float32", "hidden_act"');
  await writeFile(join(folder, 'config.json'), theirs);
  await rm(join(folder, 'siglip2.json'));
  await writeFile(join(folder, 'processor_config.json'), JSON.stringify(nested({ resample: 3 })));
  await rm(join(folder, 'preprocessor_config.json'));
  await convertCheckpoint(folder, target, { format: 'hf' });
  for (const name of (await readdir(folder)).filter((n) => n !== 'model.safetensors'))
    expect([name, await readFile(join(target, name), 'utf8')]).toEqual([
      name,
      await readFile(join(folder, name), 'utf8'),
    ]);
  expect(await readdir(target)).not.toContain('preprocessor_config.json');
  // Another type of weights is named wherever one is.
  const bf16 = join(root, 'wording-bf16');
  await convertCheckpoint(folder, bf16, { format: 'hf', dtype: 'bf16' });
  expect(await readFile(join(bf16, 'config.json'), 'utf8')).toBe(
    theirs.replaceAll('"float32"', '"bfloat16"'),
  );
  await writeFile(
    join(folder, 'config.json'),
    theirs.replaceAll(/ *"(torch_)?dtype": "float32",/g, ''),
  );
  await rm(bf16, { recursive: true });
  await convertCheckpoint(folder, bf16, { format: 'hf', dtype: 'bf16' });
  const { reader } = await openCheckpoint(bf16);
  await reader.close();
  expect(JSON.parse(await readFile(join(bf16, 'config.json'), 'utf8'))).toMatchObject({
    dtype: 'bfloat16',
    torch_dtype: 'bfloat16',
    initializer_factor: 1,
  });
});

test('how a folder of others lower-cases', async () => {
  const lowercase = async (folder: string, json: object): Promise<string> => {
    await rm(join(folder, 'siglip2.json'), { force: true });
    await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(json));
    const from = await openCheckpoint(folder);
    await from.reader.close();
    return from.lowercase;
  };
  expect(await lowercase(fixed, { tokenizer_class: 'GemmaTokenizer', do_lower_case: true })).toBe(
    'ascii',
  );
  expect(await lowercase(fixed, { tokenizer_class: 'GemmaTokenizer' })).toBe('ascii');
  expect(await lowercase(fixed, { tokenizer_class: 'Siglip2Tokenizer' })).toBe('unicode');
  expect(await lowercase(fixed, { do_lower_case: false })).toBe('none');
  expect(await lowercase(naflex, { tokenizer_class: 'GemmaTokenizer' })).toBe('unicode');
});

test.each([
  ['of SigLIP 1, English', 32000],
  ['of SigLIP 1, multilingual', 250000],
  ['of something else', 777],
])(
  'a checkpoint %s without its tokenizer encodes images and refuses texts',
  async (name, vocab) => {
    const folder = await checkpoint(`no-tokenizer-${vocab}`, { vocab });
    await rm(join(folder, 'tokenizer.json'));
    using model = await load(folder);
    await expect(model.encodeTexts('a cat')).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT',
      message: expect.stringMatching(
        /no-tokenizer-\d+: texts need the model's own tokenizer .* there is no tokenizer.json; write one/,
      ),
    });
    await expect(
      model.zeroShot({ data: new Uint8Array(3), width: 1, height: 1, channels: 3 }, ['a cat']),
    ).rejects.toThrow(name === '' ? '' : /own tokenizer/);
    expect(
      (await model.encodeImages({ data: new Uint8Array(3), width: 1, height: 1, channels: 3 }))
        .rows,
    ).toBe(1);
  },
);

test("Gemma's tokenizer stands in where nothing speaks against it", async () => {
  const folder = await checkpoint('gemma', { vocab: 256000 });
  await rm(join(folder, 'tokenizer.json'));
  using model = await load(folder);
  expect((await model.encodeTexts('a cat')).rows).toBe(1);
  for (const other of ['spiece.model', 'tokenizer.model']) {
    await writeFile(join(folder, other), 'x');
    using refused = await load(folder);
    await expect(refused.encodeTexts('a cat')).rejects.toThrow(
      new RegExp(`there is ${other} but no tokenizer.json`),
    );
    await rm(join(folder, other));
  }
}, 60_000);

test('a tokenizer of another model is no error of the device', async () => {
  using model = await load(fixed);
  await expect(model.encodeTexts('a photo of a cat')).rejects.toMatchObject({
    code: 'ERR_DATA',
    message: expect.stringMatching(
      /gives id \d+ but the model's token table has 300 rows; its tokenizer.json is of another model/,
    ),
  });
}, 60_000);
