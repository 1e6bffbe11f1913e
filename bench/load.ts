/**
 * `npm run bench -- load`: a random full-size checkpoint is written once, then loaded by fresh processes from the page
 * cache: time to load, time from process start to the first embedding, peak resident memory beside the size of the file.
 */
import { execFileSync } from 'node:child_process';
import { createReadStream, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { convertCheckpoint } from '../lib/checkpoints/convert.js';
import { loadModel } from '../lib/checkpoints/load.js';
import { modelConfig } from '../lib/model/config.js';
import { noGrad } from '../lib/tape.js';
import { scope, tensor } from '../lib/tensor.js';
import { peakMemory } from './measure.js';
import { writeRandom } from './random_checkpoint.js';

interface Measured {
  load: number;
  cpu: number;
  image: number;
  text: number;
  rss: number;
  afterLoad: number;
}

/** In a process of its own: loads, embeds one image and one text. Times in seconds, memory in bytes. */
async function child(source: string, dtype: 'f32' | 'bf16'): Promise<void> {
  const begin = performance.now(),
    used = process.cpuUsage();
  const { model } = await loadModel(source, { dtype });
  const { user, system } = process.cpuUsage(used);
  const load = (performance.now() - begin) / 1000,
    cpu = (user + system) / 1e6,
    afterLoad = peakMemory();
  const S = model.config.vision.imageSize,
    L = model.config.text.length;
  const once = async (run: () => ReturnType<typeof tensor>): Promise<number> => {
    const row = scope(() => noGrad(run));
    await row.read();
    return performance.now() / 1000; // performance counts from the start of the process
  };
  const image = await once(() =>
    model.encodeImages(tensor(new Uint8Array(S * S * 3).fill(90), [1, S, S, 3])),
  );
  const text = await once(() => model.encodeTexts(tensor(new Int32Array(L).fill(5), [1, L])));
  const measured: Measured = { load, cpu, image, text, rss: peakMemory(), afterLoad };
  console.log(JSON.stringify(measured));
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'B/16' },
      size: { type: 'string', default: '256' },
      child: { type: 'string' },
      dtype: { type: 'string', default: 'f32' },
      npz: { type: 'boolean', default: false },
    },
  });
  if (values.child !== undefined) return child(values.child, values.dtype as 'f32' | 'bf16');
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-load-'));
  try {
    const f32 = join(folder, 'f32'),
      bf16 = join(folder, 'bf16'),
      npz = join(folder, 'model.npz');
    await writeRandom(f32, modelConfig(values.model, { imageSize: Number(values.size) }));
    await convertCheckpoint(f32, bf16, { format: 'hf', dtype: 'bf16' });
    if (values.npz) await convertCheckpoint(f32, npz, { format: 'npz' });
    console.log(
      `${values.model} at ${values.size} px, random weights, files in the page cache; times in seconds`,
    );
    const main = fileURLToPath(new URL('./main.js', import.meta.url));
    for (const [source, dtype] of [
      [f32, 'f32'],
      [f32, 'bf16'],
      [bf16, 'bf16'],
      ...(values.npz ? [[npz, 'f32']] : []),
    ] as [string, string][]) {
      const file = source === npz ? npz : join(source, 'model.safetensors'),
        bytes = statSync(file).size;
      for await (const _ of createReadStream(file, { highWaterMark: 2 ** 22 })); // into the page cache
      const m = JSON.parse(
        execFileSync(process.execPath, [main, 'load', '--child', source, '--dtype', dtype], {
          encoding: 'utf8',
        })
          .trim()
          .split('\n')
          .at(-1)!,
      ) as Measured;
      console.log(
        `${source === npz ? 'npz' : source === bf16 ? 'bf16' : 'f32'} file of ${(bytes / 1e9).toFixed(2)} GB into ${dtype}: load ${m.load.toFixed(2)} (${m.cpu.toFixed(2)} of one core), first image embedding ` +
          `${m.image.toFixed(2)} and text ${m.text.toFixed(2)} after process start; peak memory ${(m.afterLoad / 1e9).toFixed(2)} GB loaded ` +
          `(${(m.afterLoad / bytes).toFixed(2)} × file), ${(m.rss / 1e9).toFixed(2)} GB in all`,
      );
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
