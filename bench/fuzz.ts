/** `npm run bench -- fuzz`: many damaged checkpoints and images; exits 1 if one is neither opened nor properly refused. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Progress } from '../lib/cli/progress.js';
import { fuzzImages } from '../test/data/fuzz.js';
import { type FuzzResult, fuzzCheckpoints } from '../test/io/fuzz.js';
import { peakMemory } from './measure.js';

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      count: { type: 'string', default: '10000' },
      seed: { type: 'string', default: '1' },
      only: { type: 'string' },
    },
  });
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-fuzz-')),
    count = Number(values.count),
    seed = Number(values.seed);
  const kinds: [string, (onProgress: (done: number) => void) => Promise<FuzzResult>][] = [
    ['checkpoints', (onProgress) => fuzzCheckpoints(folder, count, seed, onProgress)],
    ['images', (onProgress) => fuzzImages(count, seed, onProgress)],
  ];
  try {
    for (const [kind, fuzz] of kinds) {
      if (values.only !== undefined && values.only !== kind) continue;
      const progress = new Progress('fuzz');
      const result = await fuzz((done) => {
        if (done % 500 === 0) progress.update(done, count, {});
      });
      progress.end();
      console.log(
        `${count} damaged ${kind}: ${result.opened} opened, refused ${JSON.stringify(result.refused)}, ` +
          `${result.failures.length} failures; slowest ${result.slowest.ms.toFixed(0)} ms of processor time (${result.slowest.name}), ` +
          `memory +${(result.growth / 1e6).toFixed(0)} MB, at most ${(peakMemory() / 1e6).toFixed(0)} MB`,
      );
      for (const failure of result.failures.slice(0, 20)) console.error(failure);
      if (result.failures.length > 0) process.exitCode = 1;
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  if (process.exitCode) process.exit(1);
}
