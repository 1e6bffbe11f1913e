/** score and filter as programs: from tars to a key list, and what they say when they are asked wrongly. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { liveCount } from '../../lib/tensor.js';
import { picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder, WORDS } from '../encoder_support.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(),
  at = (name: string): string => join(folder, name);

function siglip2(...args: string[]): { status: number | null; stderr: string } {
  const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  return { status, stderr };
}

test('score, merge and filter', async () => {
  const model = await smallCheckpoint(),
    writer = new TarWriter(at('a.tar'));
  for (let i = 0; i < 12; i++) {
    writer.add(`${i}.png`, i === 3 ? 'no picture' : await picture(i));
    writer.add(`${i}.txt`, WORDS[i % WORDS.length]!);
  }
  writer.finish();
  const scored = siglip2(
    'score',
    '--model',
    model,
    '--reference',
    model,
    at('a.tar'),
    '--out',
    at('scores'),
    '--language',
    'en',
  );
  expect([scored.status, scored.stderr.trim().split('\n').at(-1)]).toEqual([
    0,
    `${at('scores')}: 11 rows in 1 table`,
  ]);
  expect(scored.stderr).toContain(`the image cannot be decoded (1: ${at('a.tar')}:3)`);
  const merged = siglip2(
    'score',
    '--merge',
    at('scores'),
    '--leakage',
    at('a.tar'),
    '--near',
    '0.9999',
  );
  expect([merged.status, merged.stderr.includes('cannot decode')]).toEqual([1, true]); // an evaluation set has to be whole
  expect(siglip2('score', '--merge', at('scores')).status).toBe(0);
  expect(readFileSync(at('scores/report.html'), 'utf8')).toContain('Pictures by learnability');
  const filtered = siglip2(
    'filter',
    at('scores'),
    '--top',
    '4',
    '--by',
    'loss',
    '--out',
    at('keys.txt'),
  );
  expect([filtered.status, filtered.stderr.trim()]).toEqual([0, `4 of 11 rows: ${at('keys.txt')}`]);
  expect(readFileSync(at('keys.txt'), 'utf8')).toMatch(/^(a\.tar\t\d+\n){4}$/);
  for (const bad of [
    ['filter', at('scores')],
    ['filter', at('scores'), '--where', 'cosine>2', '--out', at('none')],
    ['score', at('a.tar'), '--out', at('x')],
  ])
    expect([bad, siglip2(...bad).stderr.includes('ERR_CONFIG')]).toEqual([bad, true]);
  expect(liveCount()).toBe(0);
}, 300_000);
