/** The quickstart from artwork to report, small; and that `eval` of its run gives the figures of its eval.json. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';
import { temporaryFolder } from '../encoder_support.js';

const folder = temporaryFolder(),
  main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));

function siglip2(...args: string[]): string {
  const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  expect({ args, status, stderr }).toMatchObject({ args, status: 0 });
  return stderr;
}
const sets = (file: string): Record<string, unknown> =>
  (JSON.parse(readFileSync(join(folder, file), 'utf8')) as { sets: Record<string, unknown> }).sets;

test('quickstart, its report, and eval of its run', () => {
  siglip2(
    'quickstart',
    ...[
      'data.source.path=art',
      'data.maxClasses=60',
      'total=3',
      'optimizer.warmup=1',
      'batch=16',
      'out=run',
      'model.variant=test',
    ].flatMap((set) => ['--set', set]),
  );
  const html = readFileSync(join(folder, 'run', 'report.html'), 'utf8');
  for (const name of ['seen studios, placed', 'unseen studio, placed'])
    expect([
      name,
      new RegExp(
        `What typed words find: ${name}</h2>[^§]*?best first, of \\d+\\.[^§]*?<b>\\d+ of 96</b>`,
      ).test(html),
    ]).toEqual([name, true]);
  siglip2('eval', 'run', '--out', 'again.json');
  expect(sets('again.json')).toEqual(sets('run/eval.json'));
  siglip2('eval', 'run', '--data', 'art', '--set-name', 'seen-placed', '--out', 'one.json');
  expect(sets('one.json')).toEqual({ 'seen-placed': sets('run/eval.json')['seen-placed'] });
  siglip2(
    'eval',
    'run',
    '--seed',
    '77',
    '--set-name',
    'unseen-studio-placed',
    '--out',
    'other.json',
  );
  expect(sets('other.json')['unseen-studio-placed']).not.toEqual(
    sets('run/eval.json')['unseen-studio-placed'],
  );
}, 300000);
