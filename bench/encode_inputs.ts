/** What happens before the model: decoding and resizing beside sharp's decoding alone, and the tokenizer. */
import sharp from 'sharp';
import { decodeInput } from '../lib/image/input.js';
import { processorOf } from '../lib/image/processor.js';
import { Resizer } from '../lib/image/resizer.js';
import { loadTokenizer } from '../lib/text/tokenizer.js';
import { median } from './measure.js';

/** A photograph's statistics, roughly: smooth shapes with some noise. */
function photograph(): Promise<Buffer> {
  const width = 640,
    height = 427,
    data = Buffer.alloc(width * height * 3);
  for (let y = 0, o = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) {
        const shape = 70 * Math.sin(x / (23 + c) + y / 41) + 40 * Math.sin(y / 7 + c);
        data[o++] = 128 + shape + ((x * 7919 + y * 104729 + c * 31) % 17);
      }
  return sharp(data, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 88 })
    .toBuffer();
}

/** Seconds per call, of the clock and of the processor. */
interface Cost {
  clock: number;
  cpu: number;
}

/** Two works in groups of ten calls, alternating, whose order changes from group to group. */
async function alternate(
  works: readonly (() => Promise<unknown>)[],
  groups: number,
): Promise<Cost[][]> {
  const costs: Cost[][] = works.map(() => []);
  for (let g = 0; g <= groups; g++)
    for (const i of g % 2 ? works.keys() : [...works.keys()].reverse()) {
      const begin = performance.now(),
        used = process.cpuUsage();
      for (let k = 0; k < 10; k++) await works[i]!();
      const { user, system } = process.cpuUsage(used);
      if (g > 0)
        costs[i]!.push({ clock: (performance.now() - begin) / 1e4, cpu: (user + system) / 1e7 });
    }
  return costs;
}

async function pipeline(jpeg: Buffer, groups: number): Promise<Record<string, number>> {
  const resizer = new Resizer(256, 256, processorOf(2));
  const [ours, alone] = (await alternate(
    [
      async () => resizer.recycle(await resizer.resize(await decodeInput(jpeg))),
      () => sharp(jpeg).raw().toBuffer(),
    ],
    groups,
  )) as [Cost[], Cost[]];
  const share = (kind: keyof Cost): number => median(alone.map((c, i) => c[kind] / ours[i]![kind]));
  const rate = (costs: Cost[]): number => 1 / median(costs.map((c) => c.clock));
  console.log(
    `  decode + resize, 1 core  ${rate(ours).toFixed(0)} images/s; sharp's decoding alone ${rate(alone).toFixed(0)}: ` +
      `${(100 * share('clock')).toFixed(1)} %, by processor time ${(100 * share('cpu')).toFixed(1)} %`,
  );
  return {
    pipelinePerSecond: rate(ours),
    decodePerSecond: rate(alone),
    pipelineShare: share('clock'),
    pipelineCpuShare: share('cpu'),
  };
}

async function captionsPerSecond(seconds: number): Promise<number> {
  const tokenizer = await loadTokenizer({ cacheSize: 1 }),
    begin = performance.now();
  const caption = (n: number, k: number): string =>
    `a photo of ${n} red apples and ${k} green pears on a table`;
  let n = 0;
  for (; performance.now() - begin < seconds * 1000; n++)
    await tokenizer.encodeBatch(Array.from({ length: 256 }, (_, k) => caption(n, k)));
  const rate = (256 * n) / ((performance.now() - begin) / 1000);
  console.log(`  tokenizer                ${rate.toFixed(0)} captions/s (${tokenizer.backend})`);
  return rate;
}

/**
 * Prints and returns the rates.
 * @param jpeg a photo of 640×427; one is made when undefined
 * @param groups of ten images each
 */
export async function inputs(
  jpeg: Buffer | undefined,
  groups: number,
): Promise<Record<string, number>> {
  return {
    ...(await pipeline(jpeg ?? (await photograph()), groups)),
    captionsPerSecond: await captionsPerSecond(2),
  };
}
