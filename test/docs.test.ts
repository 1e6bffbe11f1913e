/** The examples of docs/encoder.md and docs/custom-loop.md run, and print what their comments say. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, test } from '@jest/globals';
import sharp from 'sharp';
import { packageRoot } from '../lib/native.js';
import { smallCheckpoint, temporaryFolder } from './encoder_support.js';
import { colouredImages } from './train/run.js';

const folder = temporaryFolder();
const examples = ['encoder', 'custom-loop'].flatMap((name) => {
  const page = readFileSync(join(packageRoot(), 'docs', `${name}.md`), 'utf8');
  return [...page.matchAll(/```js\n(.*?)```/gs)].map((m, i) => [name, i + 1, m[1]!] as const);
});

beforeAll(async () => {
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(packageRoot(), join(folder, 'node_modules', 'siglip2'));
  mkdirSync(join(folder, 'models'));
  await colouredImages(join(folder, 'images'), 24);
  // 32 values and a 4×4 grid stand for the 768 and 16×16 of the text.
  symlinkSync(await smallCheckpoint(), join(folder, 'models', 'siglip2-base-patch16-256'));
  mkdirSync(join(folder, 'runs', 'scenes'), { recursive: true });
  symlinkSync(
    await smallCheckpoint({ decoder: { length: 24 } }),
    join(folder, 'runs', 'scenes', 'checkpoint'),
  );
  for (const [name, colour] of [
    ['cat.jpg', '#d08040'],
    ['dog.jpg', '#507090'],
  ] as const)
    writeFileSync(
      join(folder, name),
      await sharp({ create: { width: 60, height: 40, channels: 3, background: colour } })
        .jpeg()
        .toBuffer(),
    );
});

/** What the comments behind (or, for long lines, below) console.log say, for the small model. */
function printed(code: string): string[] {
  return [...code.matchAll(/console\.log\(.*\);\s*\/\/ (.*)/g)].map((m) =>
    m[1]!.replaceAll('768', '32').replace('2304', '96').replace('16 16 ', '4 4 '),
  );
}

test('there are examples', () => expect(examples.length).toBeGreaterThanOrEqual(8));

test.each(examples)('%s, example %i', (_, __, code) => {
  // Node 20 has no `using`; the package compiles it away, the page may use it.
  const plain = code.replace(/^using /gm, 'const ');
  const file = join(folder, 'example.mjs');
  writeFileSync(file, `${plain}\nprocess.exit(0);\n`);
  const { status, stdout, stderr } = spawnSync(process.execPath, [file], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expect(stdout.trim().split('\n')).toEqual(printed(code));
  expect(printed(code).length).toBeGreaterThan(0);
});
