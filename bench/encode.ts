/**
 * The encoder as users meet it: time to the first embedding of a new process, images/s of decoding and resizing beside
 * sharp's decoding alone, captions/s of the tokenizer, images/s and texts/s of the model and its peak memory; with
 * `--peer ort` beside onnxruntime-node on an ONNX export of the same model: speeds alternating in one process, memory in
 * a process for each. Without `--model` the weights are random ones of `--variant`.
 */
import { execFileSync } from 'node:child_process';
import { createReadStream, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { convertCheckpoint } from '../lib/checkpoints/convert.js';
import { loadModel } from '../lib/checkpoints/load.js';
import { type Encoder, load } from '../lib/encoder/encoder.js';
import { modelConfig } from '../lib/model/config.js';
import { native } from '../lib/native.js';
import { noGrad } from '../lib/tape.js';
import { batchInvariant, type DeviceName, scope, type Tensor, tensor } from '../lib/tensor.js';
import { GEMMA_VOCAB } from '../lib/text/vocab.js';
import { inputs } from './encode_inputs.js';
import { circumstances, median, peakMemory, save } from './measure.js';
import { openOrt, type Towers } from './peers/ort.js';
import { writeRandom } from './random_checkpoint.js';

type Dtype = 'f32' | 'bf16';

interface First {
  image: number;
  text: number;
}
interface Memory {
  loaded: number;
  peak: number;
}

/** In a process of its own: milliseconds from its start to the first image embedding, then to the first text embedding. */
async function firstEmbedding(model: string, dtype: Dtype): Promise<First> {
  const encoder = await load(model, { dtype });
  await encoder.encodeImages({
    data: new Uint8Array(640 * 427 * 3),
    width: 640,
    height: 427,
    channels: 3,
  });
  const image = performance.now(); // counts from the start of the process
  await encoder.encodeTexts('a cat');
  return { image, text: performance.now() };
}

/** In a process of its own: resident bytes with both towers loaded, and the most while both encoded batches. */
async function memoryOf(towers: Towers): Promise<Memory> {
  const loaded = process.memoryUsage.rss();
  for (let i = 0; i < 2; i++) {
    await towers.images();
    await towers.texts();
  }
  return { loaded, peak: peakMemory() };
}

/** What a process of its own with these arguments measures. */
function inChild<T>(args: string[]): T {
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  const printed = execFileSync(process.execPath, [main, 'encode', ...args], { encoding: 'utf8' });
  return JSON.parse(printed.trim().split('\n').at(-1)!) as T;
}

/** The towers on pixels and ids, as the peer gets them: without the tokenizer, which is not in its process either. */
async function bareTowers(
  source: string,
  dtype: Dtype,
  device: DeviceName,
  batch: number,
): Promise<Towers> {
  const { model } = await loadModel(source, { dtype, device }),
    { vision, text } = model.config;
  const S = vision.imageSize,
    pixels = new Uint8Array(batch * S * S * 3).fill(90),
    ids = new Int32Array(batch * text.length).fill(1);
  const run = async (encode: () => Tensor): Promise<void> => {
    const rows = scope(() => noGrad(() => batchInvariant(device, encode)));
    await rows.read();
    rows.dispose();
  };
  return {
    images: () => run(() => model.encodeImages(tensor(pixels, [batch, S, S, 3], device))),
    texts: () => run(() => model.encodeTexts(tensor(ids, [batch, text.length], device))),
  };
}

function ourTowers(model: Encoder, batch: number): Towers {
  const S = model.imageSize ?? 256,
    data = Uint8Array.from({ length: S * S * 3 }, (_, i) => (i * 31) & 255);
  const images = Array.from({ length: batch }, () => ({
    data,
    width: S,
    height: S,
    channels: 3 as const,
  }));
  const texts = Array.from({ length: batch }, (_, i) => `a photo of ${i} cats`);
  const options = { batchSize: batch };
  return {
    images: () => model.encodeImages(images, options),
    texts: () => model.encodeTexts(texts, options),
  };
}

/**
 * One batch of ours and of theirs, alternating; medians. Each begins after a rest: threads that wait for their next work
 * spin for a while and would take a core from whoever comes next.
 */
async function speeds(
  dtype: Dtype,
  ours: Towers,
  theirs: Towers | undefined,
  batch: number,
  rounds: number,
): Promise<Record<string, number>> {
  const time = async (f: () => Promise<unknown>): Promise<number> => {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const begin = performance.now();
    await f();
    return (performance.now() - begin) / 1000;
  };
  const result: Record<string, number> = {};
  for (const what of ['images', 'texts'] as const) {
    const a: number[] = [],
      b: number[] = [];
    for (let r = 0; r <= rounds; r++) {
      const mine = await time(ours[what]),
        other = theirs ? await time(theirs[what]) : NaN;
      if (r === 0) continue;
      a.push(mine);
      b.push(other);
    }
    const ratio = median(b.map((t, i) => t / a[i]!));
    const beside = `   onnxruntime-node ${(batch / median(b)).toFixed(2)} /s   ours/theirs ${ratio.toFixed(2)}`;
    const name = `${dtype.padEnd(4)} ${what.padEnd(6)} batch ${batch}`;
    console.log(`  ${name.padEnd(24)} ${(batch / median(a)).toFixed(2)} /s${theirs ? beside : ''}`);
    result[`${dtype}-${what}PerSecond`] = batch / median(a);
    if (theirs) result[`${dtype}-${what}Ratio`] = ratio;
  }
  return result;
}

/** Time to the first embeddings, the median of five processes; the file is in the page cache. */
async function firsts(folder: string, dtype: Dtype): Promise<Record<string, number>> {
  if (!folder.endsWith('.npz'))
    for await (const _ of createReadStream(join(folder, 'model.safetensors'), {
      highWaterMark: 2 ** 22,
    }));
  const runs = Array.from({ length: 5 }, () =>
    inChild<First>(['--child', 'first', '--model', folder, '--dtype', dtype]),
  );
  const image = median(runs.map((r) => r.image)),
    text = median(runs.map((r) => r.text));
  console.log(
    `  ${dtype.padEnd(4)} first embedding     image ${image.toFixed(0)} ms, text ${text.toFixed(0)} ms after process start`,
  );
  return { [`${dtype}-firstImageMs`]: image, [`${dtype}-firstTextMs`]: text };
}

function memory(name: string, batch: number, args: string[]): Record<string, number> {
  const { loaded, peak } = inChild<Memory>(args),
    mib = (n: number): string => `${(n / 2 ** 20).toFixed(0)} MiB`;
  console.log(
    `  ${name.padEnd(24)} ${mib(loaded)} resident when loaded, at most ${mib(peak)} with both towers at batch ${batch}`,
  );
  return { [`${name}-peakBytes`]: peak };
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string' },
      variant: { type: 'string', default: 'B/16' },
      size: { type: 'string', default: '256' },
      dtype: { type: 'string' },
      device: { type: 'string', default: 'cpu' },
      batch: { type: 'string', default: '8' },
      peer: { type: 'string' },
      onnx: { type: 'string' },
      rounds: { type: 'string', default: '7' },
      image: { type: 'string' },
      json: { type: 'string' },
      length: { type: 'string', default: '64' },
      child: { type: 'string' },
    },
  });
  const device = values.device as DeviceName,
    batch = Number(values.batch),
    rounds = Number(values.rounds);
  const { threads } = native().buildInfo();
  const shape = { threads, batch, size: Number(values.size), length: Number(values.length) };
  if (values.child !== undefined) {
    const dtype = (values.dtype ?? 'f32') as Dtype;
    const measured =
      values.child === 'first'
        ? await firstEmbedding(values.model!, dtype)
        : values.child === 'ort'
          ? await memoryOf(await openOrt(values.onnx!, shape))
          : await memoryOf(await bareTowers(values.model!, dtype, device, batch));
    console.log(JSON.stringify(measured));
    return;
  }
  const scratch = mkdtempSync(join(tmpdir(), 'siglip2-encode-'));
  try {
    const dtypes: Dtype[] = values.dtype ? [values.dtype as Dtype] : ['f32', 'bf16'];
    const folder = (dtype: Dtype): string => values.model ?? join(scratch, dtype);
    if (values.model === undefined) {
      await writeRandom(
        folder('f32'),
        modelConfig(values.variant, { imageSize: shape.size, vocab: GEMMA_VOCAB }),
      );
      await convertCheckpoint(folder('f32'), folder('bf16'), { format: 'hf', dtype: 'bf16' });
    }
    const onnx = values.onnx ?? (values.peer === 'ort' ? join(scratch, 'onnx') : undefined);
    if (onnx !== undefined && values.onnx === undefined)
      await convertCheckpoint(folder('f32'), onnx, { format: 'onnx' });
    const where = circumstances(device),
      model = values.model ?? `${values.variant} at ${values.size} px, random weights`;
    const record: Record<string, unknown> = { ...where, what: 'encode', model, batch };
    console.log(`${model}, ${where['cpu']}, ${threads} threads`);
    for (const dtype of dtypes) Object.assign(record, await firsts(folder(dtype), dtype));
    Object.assign(
      record,
      await inputs(
        values.image === undefined ? undefined : readFileSync(values.image),
        20 * rounds,
      ),
    );
    const sizes = ['--batch', values.batch, '--size', values.size, '--length', values.length];
    for (const dtype of dtypes) {
      const own = [
        '--child',
        'ours',
        '--model',
        folder(dtype),
        '--dtype',
        dtype,
        '--device',
        device,
      ];
      Object.assign(record, memory(`${dtype} memory`, batch, [...own, ...sizes]));
    }
    if (onnx !== undefined)
      Object.assign(
        record,
        memory('onnxruntime-node memory', batch, ['--child', 'ort', '--onnx', onnx, ...sizes]),
      );
    const theirs = onnx === undefined ? undefined : await openOrt(onnx, shape);
    for (const dtype of dtypes) {
      using encoder = await load(folder(dtype), { dtype, device });
      Object.assign(record, await speeds(dtype, ourTowers(encoder, batch), theirs, batch, rounds));
    }
    save(values.json, record);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
