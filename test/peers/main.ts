/**
 * Checkpoints here and in the field's own code, both ways, on small random models with the whole Gemma vocabulary: prints
 * the largest differences as a table and ends with 1 when one is too large. Run by scripts/peers.sh, which brings the code.
 *
 *   --run DIR      also compares clip_benchmark's zero-shot figure of a run's exported checkpoint with `siglip2 eval`'s
 *   --write-docs   puts the table into docs/checkpoints.md
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { loadModel, modelFiles } from '../../lib/checkpoints/load.js';
import { checkpointOf } from '../../lib/checkpoints/run.js';
import { tokenizerOf } from '../../lib/checkpoints/tokenizer.js';
import { dataOf, emojiSettings, runConfig } from '../../lib/cli/commands/eval.js';
import { type LoadOptions, load } from '../../lib/encoder/encoder.js';
import { buildEvalSets, candidateNames } from '../../lib/eval/sets.js';
import { evaluateSuite } from '../../lib/eval/zero_shot.js';
import { type ModelOverrides, modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { packageRoot } from '../../lib/native.js';

const home = process.env['SIGLIP2_PEERS'],
  python = process.env['SIGLIP2_PYTHON'];
if (!home || !python) throw new Error('run this by `npm run test:peers`');
const { values } = parseArgs({
  options: { run: { type: 'string' }, 'write-docs': { type: 'boolean' } },
});
const root = mkdtempSync(join(tmpdir(), 'siglip2-peers-'));
process.on('exit', () => rmSync(root, { recursive: true, force: true }));

const LENGTH = 64,
  LABELS = ['a red apple', 'Ein HUND im Garten', '猫の写真', 'the number 7.'];
const { rows } = JSON.parse(
  readFileSync(join(packageRoot(), 'test/goldens/token_ids.json'), 'utf8'),
) as { rows: { text: string | [string, number] }[] };
const TEXTS = rows.map(({ text }) =>
  typeof text === 'string' ? text : text[0].repeat(text[1]).trim(),
);

interface Answer {
  ids?: number[][] | undefined;
  text: number[][];
  image: number[][];
  logits: number[][];
  scores?: number[][] | undefined;
  version: string;
}
type Verb = 'hf' | 'save' | 'save_open_clip' | 'open_clip' | 'onnx' | 'benchmark';

function ask(
  verb: Verb,
  folder: string,
  args: string[],
  request: object,
  major: 4 | 5 = 5,
  out = join(root, 'answer.json'),
): unknown {
  const told = spawnSync(
    python!,
    [join(packageRoot(), 'test/peers/peers.py'), verb, folder, out, ...args],
    {
      input: JSON.stringify({ texts: TEXTS, labels: LABELS, length: LENGTH, ...request }),
      encoding: 'utf8',
      env: {
        ...process.env,
        HF_HUB_OFFLINE: '1',
        PYTHONDONTWRITEBYTECODE: '1',
        TOKENIZERS_PARALLELISM: 'false',
        ...(major === 4 ? { PYTHONPATH: join(home!, 'transformers4') } : {}),
      },
      maxBuffer: 2 ** 28,
    },
  );
  if (told.status !== 0)
    throw new Error(`${verb} ${folder}: ${told.stderr.trim().split('\n').slice(-6).join('\n')}`);
  return verb.startsWith('save') ? {} : JSON.parse(readFileSync(out, 'utf8'));
}

/** What the encoder makes of the same. */
async function ours(
  folder: string,
  images: readonly string[],
  options: LoadOptions = {},
): Promise<Answer> {
  using model = await load(folder, options);
  const [text, image] = [await model.encodeTexts(TEXTS), await model.encodeImages(images)];
  const { logits } = await model.similarity(image, text),
    list = (data: Float32Array, n: number): number[][] =>
      Array.from({ length: n }, (_, i) => [
        ...data.subarray((i * data.length) / n, ((i + 1) * data.length) / n),
      ]);
  const found = await model.zeroShot(images, LABELS, { templates: ['{label}'] });
  const loaded = await loadModel(folder);
  const ids = await (await tokenizerOf(loaded)).encodeBatch(TEXTS);
  loaded.model.dispose();
  return {
    version: '',
    ids: Array.from({ length: TEXTS.length }, (_, i) => [
      ...ids.subarray(i * LENGTH, (i + 1) * LENGTH),
    ]),
    text: list(text.data, text.rows),
    image: list(image.data, image.rows),
    logits: list(logits, image.rows),
    scores: found.map((row) =>
      LABELS.map((_, i) => row.find(({ index }) => index === i)!.probability),
    ),
  };
}

const largest = (a: number[][], b: number[][]): number =>
  a.length !== b.length
    ? Infinity
    : Math.max(
        ...a.map((row, i) =>
          row.length !== b[i]!.length
            ? Infinity
            : Math.max(...row.map((v, j) => Math.abs(v - b[i]![j]!))),
        ),
      );

const table: string[][] = [];
let failed = 0;
function compare(name: string, a: Answer, b: Answer, bound = 1e-5): void {
  const cell = (x: number[][] | undefined, y: number[][] | undefined, scale = 1): string => {
    if (!x || !y) return '–';
    const d = largest(x, y);
    if (!(d <= bound * scale)) failed++;
    return d === 0 ? 'equal' : `${d.toExponential(1)}${d <= bound * scale ? '' : ' **'}`;
  };
  // Logits are cosines times the scale.
  const row = [
    name,
    cell(a.ids, b.ids, 0),
    cell(a.text, b.text),
    cell(a.image, b.image),
    cell(a.logits, b.logits, 10),
    cell(a.scores, b.scores),
  ];
  table.push(row);
  console.log(row.join(' | '));
}

async function images(
  sizes: readonly (readonly [width: number, height: number])[],
): Promise<string[]> {
  return Promise.all(
    sizes.map(async ([width, height], k) => {
      const path = join(root, `${width}x${height}-${k}.png`);
      const data = Uint8Array.from(
        { length: width * height * 3 },
        (_, i) => ((i * 2654435761 + k * 40503) >>> 13) & 255,
      );
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(path);
      return path;
    }),
  );
}

/**
 * A random model as training writes it. NaFlex images have just as many patches as the budget, so that nothing is
 * resized.
 */
async function random(name: string, overrides: ModelOverrides, variant = 'test'): Promise<string> {
  const folder = join(root, name);
  mkdirSync(folder);
  using model = new Siglip2Model(
    modelConfig(variant, { vocab: 256000, length: LENGTH, initLogitBias: -1, ...overrides }),
  );
  model.initialize(4);
  await modelFiles(folder, model, {
    vocab: null,
    tokenizer: null,
    lowercase: 'unicode',
    ema: null,
    processor: { resample: 2, maxPatches: 24 },
  });
  return folder;
}

console.log('checkpoint | ids | text | image | logits | pipeline');
for (const naflex of [false, true]) {
  const kind = naflex ? 'NaFlex' : 'fixed',
    folder = await random(kind, { naflex });
  const files = await images(
      naflex
        ? [
            [48, 32],
            [32, 48],
          ]
        : [
            [32, 32],
            [32, 32],
            [32, 32],
          ],
    ),
    own = await ours(folder, files);
  for (const major of [4, 5] as const) {
    const theirs = ask('hf', folder, files, {}, major) as Answer;
    compare(`${kind}: ours → transformers ${theirs.version}`, own, theirs);
    for (const [dtype, shard, bound] of [
      ['float32', '20MB', 1e-5],
      ['bfloat16', '5GB', 1e-5],
      ['float16', '5GB', 1e-5],
    ] as const) {
      const saved = join(root, `${kind}-${major}-${dtype}`);
      mkdirSync(saved);
      ask('save', folder, [dtype, shard], {}, major, saved);
      compare(
        `${kind}: transformers ${theirs.version}, ${dtype}${shard === '20MB' ? ' in shards' : ''}, saved after a padded call → ours`,
        await ours(saved, files),
        ask('hf', saved, files, {}, major) as Answer,
        bound,
      );
    }
  }
  const npz = join(root, `${kind}.npz`),
    back = join(root, `${kind}-back`),
    onnx = join(root, `${kind}-onnx`);
  await convertCheckpoint(folder, npz, { format: 'npz' });
  await convertCheckpoint(npz, back, { format: 'hf' });
  // An .npz does not say how its texts are lower-cased, nor how many patches an image has.
  const returned = await ours(back, files, {
    lowercase: 'unicode',
    ...(naflex ? { maxPatches: 24 } : {}),
  });
  compare(`${kind}: ours → .npz → ours`, own, { ...returned, ids: undefined });
  await convertCheckpoint(folder, onnx, { format: 'onnx' });
  const graph = ask('onnx', onnx, files, { ids: own.ids }) as Answer;
  compare(`${kind}: ours → ONNX, onnxruntime ${graph.version}`, own, graph);
}

// open_clip makes vision towers of timm's sizes alone; its text towers may have any.
for (const [name, variant, side] of [
  ['B/32 at 256 px', 'B/32', 256],
  ['B/16 at 224 px', 'B/16', 224],
] as const) {
  const folder = await random(
    `open_clip-${side}`,
    { imageSize: side, text: { width: 64, depth: 2, heads: 1, mlp: 96 } },
    variant,
  );
  const clip = `${folder}-clip`,
    files = await images([
      [side, side],
      [side, side],
    ]);
  await convertCheckpoint(folder, clip, { format: 'open_clip' });
  const theirs = ask('open_clip', clip, files, {}) as Answer;
  compare(`${name}: ours → open_clip ${theirs.version}`, await ours(clip, files), theirs);
  const saved = `${folder}-saved`;
  mkdirSync(saved);
  ask('save_open_clip', clip, [], {}, 5, saved);
  compare(`${name}: open_clip ${theirs.version}, saved → ours`, await ours(saved, files), theirs);
}

if (values.run !== undefined) {
  const checkpoint = checkpointOf(values.run),
    config = runConfig(checkpoint),
    exported = join(root, 'exported');
  await convertCheckpoint(checkpoint, exported, { format: 'hf' });
  const loaded = await loadModel(checkpoint),
    size = loaded.model.config.vision.imageSize;
  const suite = await buildEvalSets(dataOf(config, 'emoji') ?? 'data/emoji', {
    size,
    ...emojiSettings(config),
    sets: ['seen-placed'],
  });
  const [set] = suite.sets,
    { ids, names } = candidateNames(suite, set!, 'en'),
    place = new Map(Array.from(ids, (id, i) => [id, i]));
  for await (const [, result] of evaluateSuite(loaded, suite, await tokenizerOf(loaded))) {
    const path = join(root, 'images.raw');
    writeFileSync(path, set!.images);
    const { top1 } = ask('benchmark', exported, [], {
      size,
      names,
      images: path,
      targets: Array.from(set!.classes, (c) => place.get(c)!),
      length: loaded.model.config.text.length,
    }) as { top1: number };
    const own = (result.languages['en'] as unknown as { top1: number }).top1,
      same = Math.abs(own - top1) < 1e-4;
    if (!same) failed++;
    console.log(
      `zero-shot of ${exported}, ${set!.name}, en: siglip2 eval ${own.toFixed(4)}, clip_benchmark ${top1.toFixed(4)}${same ? '' : ' **'}`,
    );
  }
  loaded.model.dispose();
}

if (values['write-docs']) {
  const path = join(packageRoot(), 'docs', 'checkpoints.md'),
    text = readFileSync(path, 'utf8');
  const [begin, end] = ['<!-- peers -->\n', '<!-- /peers -->\n'],
    lines = [
      ['checkpoint', 'ids', 'text', 'image', 'logits', 'pipeline'],
      Array<string>(6).fill('---'),
      ...table,
    ];
  writeFileSync(
    path,
    text.slice(0, text.indexOf(begin) + begin.length) +
      lines.map((row) => `| ${row.join(' | ')} |\n`).join('') +
      text.slice(text.indexOf(end)),
  );
}
console.log(failed ? `${failed} differences are too large (**)` : `all ${table.length} rows agree`);
process.exitCode = failed ? 1 : 0;
