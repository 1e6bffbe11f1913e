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
import sharp from 'sharp';
import { decodeInput } from '../lib/data/input.js';
import { processorOf, resizeTo } from '../lib/data/processor.js';
import { loadTokenizer } from '../lib/data/tokenizer.js';
import { load, type Encoder } from '../lib/encoder.js';
import { convertCheckpoint } from '../lib/io/convert.js';
import { GEMMA_VOCAB, modelConfig } from '../lib/model/config.js';
import { native } from '../lib/native.js';
import type { DeviceName } from '../lib/tensor.js';
import { circumstances, peakMemory, save } from './measure.js';
import { openOrt, type OrtTowers } from './peers/ort.js';
import { writeRandom } from './random_checkpoint.js';

type Dtype = 'f32' | 'bf16';

const median = (v: number[]): number => v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

interface First { image: number; text: number }
interface Memory { loaded: number; peak: number }

/** In a process of its own: milliseconds from its start to the first image embedding, then to the first text embedding. */
async function firstEmbedding(model: string, dtype: Dtype): Promise<First> {
  const encoder = await load(model, { dtype });
  await encoder.encodeImages({ data: new Uint8Array(640 * 427 * 3), width: 640, height: 427, channels: 3 });
  const image = performance.now();   // counts from the start of the process
  await encoder.encodeTexts('a cat');
  return { image, text: performance.now() };
}

/** In a process of its own: resident bytes with both towers loaded, and the most while both encoded batches. */
async function memoryOf(towers: OrtTowers): Promise<Memory> {
  const loaded = process.memoryUsage.rss();
  for (let i = 0; i < 3; i++) {
    await towers.images();
    await towers.texts();
  }
  return { loaded, peak: peakMemory() };
}

function inChild<T>(args: string[]): T {
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  return JSON.parse(execFileSync(process.execPath, [main, 'encode', ...args], { encoding: 'utf8' }).trim().split('\n').at(-1)!) as T;
}

/** A photograph's statistics, roughly: smooth shapes with some noise. */
function photograph(): Promise<Buffer> {
  const width = 640, height = 427, data = Buffer.alloc(width * height * 3);
  for (let y = 0, o = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) data[o++] = 128 + 70 * Math.sin(x / (23 + c) + y / 41) + 40 * Math.sin(y / 7 + c) + (x * 7919 + y * 104729 + c * 31) % 17;
  return sharp(data, { raw: { width, height, channels: 3 } }).jpeg({ quality: 88 }).toBuffer();
}

/** Seconds of the clock and of the processor of each work, alternating in groups of ten; medians. */
async function alternate<K extends string>(works: Record<K, () => Promise<unknown>>, groups: number): Promise<Record<K, { clock: number; cpu: number }>> {
  const names = Object.keys(works) as K[], clock = new Map(names.map((n) => [n, [] as number[]])), cpu = new Map(names.map((n) => [n, [] as number[]]));
  for (let g = 0; g <= groups; g++)
    for (const name of g % 2 ? names : names.slice().reverse()) {
      const begin = performance.now(), used = process.cpuUsage();
      for (let i = 0; i < 10; i++) await works[name]();
      const { user, system } = process.cpuUsage(used);
      if (g === 0) continue;
      clock.get(name)!.push((performance.now() - begin) / 1e4);
      cpu.get(name)!.push((user + system) / 1e7);
    }
  return Object.fromEntries(names.map((n) => [n, { clock: median(clock.get(n)!), cpu: median(cpu.get(n)!) }])) as Record<K, { clock: number; cpu: number }>;
}

async function pipeline(jpeg: Buffer, groups: number): Promise<Record<string, number>> {
  const processor = processorOf(2);
  const { ours, alone } = await alternate({
    ours: async () => resizeTo(await decodeInput(jpeg), 256, 256, processor), alone: () => sharp(jpeg).raw().toBuffer(),
  }, groups);
  const share = (kind: 'clock' | 'cpu'): string => (100 * alone[kind] / ours[kind]).toFixed(1);
  console.log(`  decode + resize, 1 core  ${(1 / ours.clock).toFixed(0)} images/s; sharp's decoding alone ${(1 / alone.clock).toFixed(0)}: ` +
    `${share('clock')} %, of processor time ${share('cpu')} %`);
  return { pipelinePerSecond: 1 / ours.clock, decodePerSecond: 1 / alone.clock, pipelineShare: alone.clock / ours.clock, pipelineCpuShare: alone.cpu / ours.cpu };
}

async function tokenizing(seconds: number): Promise<number> {
  const tokenizer = await loadTokenizer({ cacheSize: 1 }), begin = performance.now();
  let n = 0;
  for (; performance.now() - begin < seconds * 1000; n++)
    await tokenizer.encodeBatch(Array.from({ length: 256 }, (_, k) => `a photo of ${n} red apples and ${k} green pears on a table`));
  const rate = 256 * n / ((performance.now() - begin) / 1000);
  console.log(`  tokenizer                ${rate.toFixed(0)} captions/s (${tokenizer.backend})`);
  return rate;
}

function ourTowers(model: Encoder, batch: number): OrtTowers {
  const S = model.imageSize ?? 256, data = Uint8Array.from({ length: S * S * 3 }, (_, i) => (i * 31) & 255);
  const images = Array.from({ length: batch }, () => ({ data, width: S, height: S, channels: 3 as const }));
  const texts = Array.from({ length: batch }, (_, i) => `a photo of ${i} cats`);
  return { images: () => model.encodeImages(images, { batchSize: batch }), texts: () => model.encodeTexts(texts, { batchSize: batch }) };
}

/** One batch of ours and of theirs, alternating; medians. */
async function speeds(dtype: Dtype, ours: OrtTowers, theirs: OrtTowers | undefined, batch: number, rounds: number): Promise<Record<string, number>> {
  const time = async (f: () => Promise<unknown>): Promise<number> => {
    const begin = performance.now();
    await f();
    return (performance.now() - begin) / 1000;
  };
  const result: Record<string, number> = {};
  for (const what of ['images', 'texts'] as const) {
    const a: number[] = [], b: number[] = [];
    for (let r = 0; r <= rounds; r++) {
      const mine = await time(ours[what]), other = theirs ? await time(theirs[what]) : NaN;
      if (r === 0) continue;
      a.push(mine);
      b.push(other);
    }
    console.log(`  ${dtype.padEnd(4)} ${what.padEnd(6)} batch ${String(batch).padEnd(7)} ${(batch / median(a)).toFixed(2)} /s` +
      (theirs ? `   onnxruntime-node ${(batch / median(b)).toFixed(2)} /s   ours/theirs ${median(b.map((t, i) => t / a[i]!)).toFixed(2)}` : ''));
    result[`${dtype}-${what}PerSecond`] = batch / median(a);
    if (theirs) result[`${dtype}-${what}Ratio`] = median(b.map((t, i) => t / a[i]!));
  }
  return result;
}

const OPTIONS = {
  model: { type: 'string' }, variant: { type: 'string', default: 'B/16' }, size: { type: 'string', default: '256' }, dtype: { type: 'string' },
  device: { type: 'string', default: 'cpu' }, batch: { type: 'string', default: '8' }, peer: { type: 'string' }, onnx: { type: 'string' },
  rounds: { type: 'string', default: '7' }, image: { type: 'string' }, json: { type: 'string' },
  /** Tokens of a text, for the peer. */
  length: { type: 'string', default: '64' }, child: { type: 'string' },
} as const;

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: OPTIONS });
  const device = values.device as DeviceName, batch = Number(values.batch), rounds = Number(values.rounds), threads = native().buildInfo().threads;
  const peerSize = { threads, batch, size: Number(values.size), length: Number(values.length) };
  if (values.child !== undefined) {
    const dtype = (values.dtype ?? 'f32') as Dtype;
    const measured = values.child === 'first' ? await firstEmbedding(values.model!, dtype)
      : await memoryOf(values.child === 'ort' ? await openOrt(values.onnx!, peerSize) : ourTowers(await load(values.model!, { dtype, device }), batch));
    console.log(JSON.stringify(measured));
    return;
  }
  const scratch = mkdtempSync(join(tmpdir(), 'siglip2-encode-'));
  try {
    const dtypes: Dtype[] = values.dtype ? [values.dtype as Dtype] : ['f32', 'bf16'], folders = { f32: values.model ?? join(scratch, 'f32'), bf16: values.model ?? join(scratch, 'bf16') };
    if (values.model === undefined) {
      await writeRandom(folders.f32, modelConfig(values.variant, { imageSize: peerSize.size, vocab: GEMMA_VOCAB }));
      await convertCheckpoint(folders.f32, folders.bf16, { format: 'hf', dtype: 'bf16' });
    }
    const where = circumstances(device), record: Record<string, unknown> = { ...where, what: 'encode', model: values.model ?? `${values.variant} ${values.size}`, batch };
    console.log(`${values.model ?? `${values.variant} at ${values.size} px, random weights`}, ${where['cpu']}, ${threads} threads`);
    for (const dtype of dtypes) {
      if (values.model === undefined) for await (const _ of createReadStream(join(folders[dtype], 'model.safetensors'), { highWaterMark: 2 ** 22 }));   // into the page cache
      const runs = Array.from({ length: 5 }, () => inChild<First>(['--child', 'first', '--model', folders[dtype], '--dtype', dtype]));
      const image = median(runs.map((r) => r.image)), text = median(runs.map((r) => r.text));
      console.log(`  ${dtype.padEnd(4)} first embedding     image ${image.toFixed(0)} ms, text ${text.toFixed(0)} ms after process start`);
      Object.assign(record, { [`${dtype}-firstImageMs`]: image, [`${dtype}-firstTextMs`]: text });
    }
    Object.assign(record, await pipeline(values.image ? readFileSync(values.image) : await photograph(), 20 * rounds), { captionsPerSecond: await tokenizing(2) });
    let onnx = values.onnx;
    if (values.peer === 'ort' && onnx === undefined) await convertCheckpoint(folders.f32, onnx = join(scratch, 'onnx'), { format: 'onnx' });
    const mib = (n: number): string => `${(n / 2 ** 20).toFixed(0)} MiB`;
    const peak = (name: string, more: string[]): void => {
      const { loaded, peak } = inChild<Memory>(['--batch', String(batch), '--size', values.size, '--length', values.length, ...more]);
      console.log(`  ${name.padEnd(24)} ${mib(loaded)} resident after loading, at most ${mib(peak)} with both towers at batch ${batch}`);
      record[`${name}-peakBytes`] = peak;
    };
    for (const dtype of dtypes) peak(`${dtype} memory`, ['--child', 'ours', '--model', folders[dtype], '--dtype', dtype]);
    if (onnx !== undefined) peak('onnxruntime-node memory', ['--child', 'ort', '--onnx', onnx]);
    const theirs = onnx === undefined ? undefined : await openOrt(onnx, peerSize);
    for (const dtype of dtypes) {
      using model = await load(folders[dtype], { dtype, device });
      Object.assign(record, await speeds(dtype, ourTowers(model, batch), theirs, batch, rounds));
    }
    save(values.json, record);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
