/**
 * Endurance of the encoder: `--calls N` encode calls with the resident set watched, and `--cycles N` rounds in which
 * four Workers load a model and are terminated with work in flight. Exits 1 when memory grew by more than 2 %.
 */
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { load } from '../lib/encoder/encoder.js';
import { smallCheckpoint } from '../test/encoder_support.js';

/** What a Worker runs: encodes without end, saying so once it is at it. */
const WORKER = `
  import { parentPort, workerData } from 'node:worker_threads';
  const { load } = await import(workerData.encoder);
  const model = await load(workerData.model);
  const data = new Uint8Array(300 * 200 * 3).fill(90);
  const images = Array(64).fill({ data, width: 300, height: 200, channels: 3 });
  parentPort.postMessage('busy');
  for (;;) await model.encodeImages(images);`;

/** Four Workers at once, terminated while they compute, `cycles` times. */
export async function terminateWorkers(model: string, cycles: number, workers = 4): Promise<void> {
  const encoder = new URL('../lib/encoder/encoder.js', import.meta.url).href;
  for (let i = 0; i < cycles; i++)
    await Promise.all(
      Array.from({ length: workers }, async (_, w) => {
        const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(WORKER)}`), {
          workerData: { model, encoder },
        });
        await new Promise((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        });
        await new Promise((resolve) => setTimeout(resolve, 5 * w));
        await worker.terminate();
      }),
    );
}

/** Resident set in MiB after warm-up and at the end of `calls` calls. */
export async function watchMemory(
  folder: string,
  calls: number,
): Promise<{ warm: number; end: number }> {
  using model = await load(folder);
  const data = Uint8Array.from({ length: 64 * 48 * 3 }, (_, i) => i & 255);
  const rss = (): number => {
    globalThis.gc?.();
    return process.memoryUsage.rss() / 2 ** 20;
  };
  let warm = NaN;
  for (let i = 0; i < calls; i++) {
    await (i % 2
      ? model.encodeTexts(`a cat and ${i % 1000} dogs`)
      : model.encodeImages({ data, width: 64, height: 48, channels: 3 }));
    if (i === Math.floor(calls / 5)) warm = rss();
  }
  return { warm, end: rss() };
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      calls: { type: 'string', default: '20000' },
      cycles: { type: 'string', default: '20' },
    },
  });
  const folder = await smallCheckpoint();
  const { warm, end } = await watchMemory(folder, Number(values.calls));
  console.log(
    `${values.calls} encode calls: resident set ${warm.toFixed(1)} MiB after a fifth of them, ${end.toFixed(1)} MiB at the end (${(100 * (end / warm - 1)).toFixed(2)} %)`,
  );
  const begin = performance.now();
  await terminateWorkers(folder, Number(values.cycles));
  console.log(
    `4 Workers started and terminated with work in flight, ${values.cycles} times: ${((performance.now() - begin) / 1000).toFixed(1)} s, no crash`,
  );
  if (end > warm * 1.02) process.exit(1);
}

// Also a program of its own, so that a crash of the process is seen from outside.
if (process.argv[1] === fileURLToPath(import.meta.url))
  await main(process.argv.slice(2)).then(() => process.exit(0));
