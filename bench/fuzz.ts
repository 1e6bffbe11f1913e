/** `npm run bench -- fuzz`: many damaged checkpoints; exits 1 when one is neither opened nor refused properly. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Progress } from '../lib/cli/progress.js';
import { fuzzCheckpoints } from '../test/io/fuzz.js';

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { count: { type: 'string', default: '10000' }, seed: { type: 'string', default: '1' } } });
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-fuzz-')), count = Number(values.count), progress = new Progress('fuzz');
  try {
    const result = await fuzzCheckpoints(folder, count, Number(values.seed), (done) => {
      if (done % 500 === 0) progress.update(done, count, {});
    });
    progress.end();
    console.log(`${count} damaged checkpoints: ${result.opened} opened, refused ${JSON.stringify(result.refused)}, ` +
      `${result.failures.length} failures; slowest ${result.slowest.toFixed(0)} ms, memory +${(result.growth / 1e6).toFixed(0)} MB`);
    for (const failure of result.failures.slice(0, 20)) console.error(failure);
    if (result.failures.length > 0) process.exitCode = 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  if (process.exitCode) process.exit(1);
}
