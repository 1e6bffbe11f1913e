/**
 * The encoder as users meet it: time to the first embedding of a new process, images/s of decoding and resizing beside
 * sharp's decoding alone, captions/s of the tokenizer, images/s and texts/s of the model; beside onnxruntime-node on an
 * ONNX export of the same model (`--onnx FOLDER` with vision.onnx and text.onnx), the two alternating.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import { decodeInput } from '../lib/data/input.js';
import { processorOf, resizeTo } from '../lib/data/processor.js';
import { loadTokenizer } from '../lib/data/tokenizer.js';
import { load, type Encoder } from '../lib/encoder.js';
import type { DeviceName } from '../lib/tensor.js';
import { smallCheckpoint } from '../test/encoder_support.js';
import { circumstances, save } from './measure.js';

const median = (v: number[]): number => v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

/** Items per second of `work(i)`, `lanes` at a time, for about `seconds`. */
async function rate(work: (i: number) => Promise<unknown>, lanes: number, seconds: number): Promise<number> {
  let done = 0;
  const begin = performance.now(), end = begin + seconds * 1000;
  await Promise.all(Array.from({ length: lanes }, async () => {
    do {
      await work(done);
      done++;
    } while (performance.now() < end);
  }));
  return done / ((performance.now() - begin) / 1000);
}

/** Milliseconds from the start of a process to its first image embedding, and to its first text embedding. */
function firstEmbedding(model: string, dtype: string): { image: number; text: number } {
  const code = `
    import { load } from ${JSON.stringify(new URL('../lib/encoder.js', import.meta.url).href)};
    const model = await load(${JSON.stringify(model)}, { dtype: ${JSON.stringify(dtype)} });
    await model.encodeImages({ data: new Uint8Array(640 * 427 * 3), width: 640, height: 427, channels: 3 });
    const image = performance.now();
    await model.encodeTexts('a cat');
    console.log(JSON.stringify({ image, text: performance.now() }));
    process.exit(0);`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`the process ended with ${status}: ${stderr}`);
  return JSON.parse(stdout) as { image: number; text: number };
}

/** A photograph's statistics, roughly: smooth shapes with some noise. */
function photograph(): Promise<Buffer> {
  const width = 640, height = 427, data = Buffer.alloc(width * height * 3);
  for (let y = 0, o = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) data[o++] = 128 + 70 * Math.sin(x / (23 + c) + y / 41) + 40 * Math.sin(y / 7 + c) + (x * 7919 + y * 104729 + c * 31) % 17;
  return sharp(data, { raw: { width, height, channels: 3 } }).jpeg({ quality: 88 }).toBuffer();
}

interface OrtTensor { data: ArrayLike<number> }
interface OrtSession { run(feeds: Record<string, unknown>): Promise<Record<string, OrtTensor>> }
interface Ort {
  InferenceSession: { create(path: string, options: object): Promise<OrtSession> };
  Tensor: new (type: string, data: Float32Array | BigInt64Array, dims: number[]) => unknown;
}

/** onnxruntime-node on both graphs, or the sentence that says why not. */
async function openOrt(folder: string, threads: number): Promise<{ ort: Ort; vision: OrtSession; text: OrtSession } | string> {
  const name: string = 'onnxruntime-node';
  try {
    const module = await import(name) as Ort & { default?: Ort }, ort = module.default ?? module;
    const options = { intraOpNumThreads: threads, interOpNumThreads: 1 };
    return {
      ort, vision: await ort.InferenceSession.create(join(folder, 'vision.onnx'), options),
      text: await ort.InferenceSession.create(join(folder, 'text.onnx'), options),
    };
  } catch (e) {
    return (e as Error).message.split('\n')[0]!;
  }
}

/** Seconds of one batch of ours and of theirs, alternating. */
async function beside(rounds: number, ours: () => Promise<unknown>, theirs: (() => Promise<unknown>) | undefined): Promise<{ ours: number; theirs: number }> {
  const time = async (f: () => Promise<unknown>): Promise<number> => {
    const begin = performance.now();
    await f();
    return (performance.now() - begin) / 1000;
  };
  await ours();
  if (theirs) await theirs();
  const a: number[] = [], b: number[] = [];
  for (let r = 0; r < rounds; r++) {
    a.push(await time(ours));
    if (theirs) b.push(await time(theirs));
  }
  return { ours: median(a), theirs: median(b) };
}

async function towers(model: Encoder, onnx: string | undefined, batch: number, rounds: number, threads: number): Promise<Record<string, number>> {
  const S = model.imageSize ?? 256, L = model.textLength, data = Uint8Array.from({ length: S * S * 3 }, (_, i) => (i * 31) & 255);
  const images = Array.from({ length: batch }, () => ({ data, width: S, height: S, channels: 3 as const }));
  const texts = Array.from({ length: batch }, (_, i) => `a photo of ${i} cats`);
  const peer = onnx === undefined ? 'no --onnx FOLDER' : await openOrt(onnx, threads);
  if (typeof peer === 'string') console.log(`  beside onnxruntime-node  not measured: ${peer}`);
  const session = typeof peer === 'string' ? undefined : peer;
  const pixels = Float32Array.from({ length: batch * 3 * S * S }, (_, i) => data[i % data.length]! / 127.5 - 1);
  const ids = new BigInt64Array(batch * L).fill(1n);
  const result: Record<string, number> = {};
  for (const [what, ours, theirs] of [
    ['images', () => model.encodeImages(images, { batchSize: batch }), session && (() => session.vision.run({ pixel_values: new session.ort.Tensor('float32', pixels, [batch, 3, S, S]) }))],
    ['texts', () => model.encodeTexts(texts, { batchSize: batch }), session && (() => session.text.run({ input_ids: new session.ort.Tensor('int64', ids, [batch, L]) }))],
  ] as const) {
    const t = await beside(rounds, ours, theirs || undefined);
    console.log(`  ${what.padEnd(7)} batch ${batch}        ${(batch / t.ours).toFixed(2)} /s` +
      (session ? `   onnxruntime-node ${(batch / t.theirs).toFixed(2)} /s   ours/theirs ${(t.theirs / t.ours).toFixed(2)}` : ''));
    result[`${what}PerSecond`] = batch / t.ours;
    if (session) result[`${what}Ratio`] = t.theirs / t.ours;
  }
  return result;
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args, options: {
      model: { type: 'string' }, dtype: { type: 'string', default: 'f32' }, device: { type: 'string', default: 'cpu' }, batch: { type: 'string', default: '8' },
      onnx: { type: 'string' }, rounds: { type: 'string', default: '5' }, seconds: { type: 'string', default: '3' }, image: { type: 'string' }, json: { type: 'string' },
    },
  });
  const folder = values.model ?? await smallCheckpoint(), seconds = Number(values.seconds);
  const where = circumstances(values.device as DeviceName), record: Record<string, unknown> = { ...where, what: 'encode', dtype: values.dtype };
  console.log(`${values.model ?? 'a random model of variant "test"'}, ${values.dtype}, ${where['cpu']}, ${where['threads']} threads`);

  const first = firstEmbedding(folder, values.dtype);
  console.log(`  first embedding        image ${first.image.toFixed(0)} ms, text ${first.text.toFixed(0)} ms after process start`);
  const jpeg = values.image ? readFileSync(values.image) : await photograph(), processor = processorOf(2);
  const decode: number[] = [], pipeline: number[] = [];
  for (let r = 0; r < Number(values.rounds); r++) {
    decode.push(await rate(() => sharp(jpeg).raw().toBuffer(), 1, seconds / 3));
    pipeline.push(await rate(async () => resizeTo(await decodeInput(jpeg), 256, 256, processor), 1, seconds / 3));
  }
  console.log(`  decode + resize, 1 core ${median(pipeline).toFixed(0)} images/s; sharp's decoding alone ${median(decode).toFixed(0)}: ${(100 * median(pipeline.map((p, i) => p / decode[i]!))).toFixed(0)} %`);
  const tokenizer = await loadTokenizer({ cacheSize: 1 });
  const captions = await rate((i) => tokenizer.encodeBatch(Array.from({ length: 256 }, (_, k) => `a photo of ${i} red apples and ${k} green pears on a table`)), 1, seconds);
  console.log(`  tokenizer              ${(256 * captions).toFixed(0)} captions/s (${tokenizer.backend})`);
  using model = await load(folder, { dtype: values.dtype as 'f32', device: values.device as DeviceName });
  Object.assign(record, {
    firstImageMs: first.image, firstTextMs: first.text, pipelinePerSecond: median(pipeline), decodePerSecond: median(decode), captionsPerSecond: 256 * captions,
    ...await towers(model, values.onnx, Number(values.batch), Number(values.rounds), Number(where['threads'])),
  });
  save(values.json, record);
}
