/** Likely mistakes at the command line: one sentence, no stack trace, a status that is not 0. */
import { spawn, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, expect, test } from '@jest/globals';
import { checkpointOf } from '../../lib/checkpoints/run.js';
import { listImages } from '../../lib/cli/images.js';
import { packageRoot } from '../../lib/native.js';
import { checkpointFolder } from '../../lib/train/checkpoint.js';
import { errorOf, picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder } from '../encoder_support.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(),
  at = (name: string): string => join(folder, name);
let model: string, server: Server | undefined;

function siglip2(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
    cwd: folder,
    input: '',
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', XDG_CACHE_HOME: at('cache') },
  });
  return { status, stdout, stderr };
}

const config = {
  out: 'run',
  model: { variant: 'test' },
  data: { source: { type: 'folder', path: 'pictures' } },
  batch: 1,
  total: 1,
};

beforeAll(async () => {
  model = await smallCheckpoint();
  mkdirSync(at('pictures'));
  mkdirSync(at('empty'));
  for (const [i, name] of ['{a,b}.png', '[x] ?.png', 'line\nbreak.png'].entries())
    writeFileSync(join(at('pictures'), name), await picture(i));
  writeFileSync(at('lines.txt'), 'a red apple\n');
  writeFileSync(at('config.json'), JSON.stringify(config));
  writeFileSync(
    at('misspelt.json'),
    JSON.stringify({ ...config, data: { sourc: config.data.source } }),
  );
  writeFileSync(at('file'), '');
  mkdirSync(at('foreign/deep'), { recursive: true });
  for (const name of ['a.arrow', 'deep/b.arrow', 'c.tar'])
    writeFileSync(join(at('foreign'), name), 'x');
  writeFileSync(
    at('foreign.json'),
    JSON.stringify({ ...config, data: { source: { type: 'folder', path: 'foreign' } } }),
  );
  mkdirSync(at('pending'));
  writeFileSync(at('pending/metrics.jsonl'), '');
});

test.each<[args: string[], status: number, says: string]>([
  [
    ['train', '--bogus'],
    2,
    "Unknown option '--bogus'; siglip2 train --help shows the options [ERR_PARSE_ARGS_UNKNOWN_OPTION]",
  ],
  [
    ['embed', '--images', '--out', 'x.npy'],
    2,
    "Option '--images' argument is ambiguous; siglip2 embed --help",
  ],
  [['constructor'], 2, 'there is no command "constructor"'],
  [['train', '--preset', 'constructor'], 1, 'no preset is called "constructor"'],
  [['eval', 'MODEL', '--task', 'constructor'], 1, 'no task is called "constructor"'],
  [
    ['train', 'nothing.json'],
    1,
    'nothing.json cannot be read: it does not exist; check the path (ENOENT)',
  ],
  [
    ['train', 'nothing.js'],
    1,
    'nothing.js cannot be read: it does not exist; check the path (ENOENT)',
  ],
  [['train', 'config.json', 'more.json'], 1, 'takes one config but there is also more.json'],
  [
    ['train', 'config.json', '--preset', 'home'],
    1,
    'either a config file or --preset but got config.json and home',
  ],
  [['train', 'misspelt.json'], 1, 'unknown key "data.sourc" (did you mean "source"?)'],
  [['train', 'config.json', '--out', ''], 1, 'out is ""'],
  [['plan', 'config.json', '--stage', 'base'], 1, 'has no stages; leave out --stage'],
  [['eval', 'a', 'b'], 1, 'eval needs a checkpoint folder'],
  [['eval', 'MODEL', '--seed', 'x'], 1, '--seed must be a whole number but is x'],
  [
    ['eval', 'MODEL', '--set-name', 'seen'],
    1,
    'no set is called "seen"; the sets are seen-placed, ',
  ],
  [['eval', 'MODEL'], 1, 'build it with `siglip2 dataset emoji --out DIR`'],
  [
    ['eval', 'MODEL', '--task', 'retrieval'],
    1,
    'build them with `siglip2 dataset scenes --out DIR`',
  ],
  [['dataset', 'emoji', '--out', 'x', '--size', '9'], 1, '--size is for scenes'],
  [['caption', '--model', 'MODEL'], 1, 'no images are named'],
  [
    ['classify', '--model', 'MODEL', '--labels', 'none.txt', 'pictures'],
    1,
    '--labels none.txt: there is no such file; give a file with one label a line',
  ],
  [
    ['classify', '--model', 'MODEL', '--labels', 'file', 'pictures'],
    1,
    '--labels file: the file has no label',
  ],
  [
    ['filter', 'pictures', '--out', 'k.parquet'],
    1,
    'k.parquet would be a list of keys, which is text; give --out a name that ends in .txt',
  ],
  [
    ['embed', '--model', 'pending', '--texts', 'lines.txt', '--out', 'x.npy'],
    1,
    'pending: is the folder of a training run that has no checkpoint yet',
  ],
  [
    ['train', 'foreign.json'],
    1,
    'foreign: no image with a caption was found: it holds 2 *.arrow, 1 *.tar; *.arrow is not read by any source; ' +
      'write the samples as tars; tars are read by source.type "webdataset"',
  ],
  [
    ['quickstart', '--set', 'total=40'],
    1,
    'optimizer.warmup: the warm-up must be between 0 and the 40 steps of the run (total) but is',
  ],
  [
    ['classify', '--model', 'MODEL', '--labels', 'a', 'empty'],
    1,
    'there is no image in empty; files are taken that end in',
  ],
  [
    ['embed', '--model', 'MODEL', '--texts', 'lines.txt', 'more.txt', '--out', 'x.npy'],
    1,
    'there is also more.txt',
  ],
  [
    ['embed', '--model', 'MODEL', '--texts', 'empty', '--out', 'x.npy'],
    1,
    'it is a folder and not a file; check the path',
  ],
  [
    ['embed', '--model', 'MODEL', '--texts', 'lines.txt', '--out', 'file/x.parquet'],
    1,
    'a part of the path is a file',
  ],
  [
    ['search', 'pictures', '--model', 'MODEL', '--cache', 'x', 'apple'],
    1,
    '--cache must be a file that ends in .safetensors',
  ],
  [['score', '--merge', 'empty', 'more'], 1, 'takes one folder but there is also more'],
  [
    ['debias', 'pictures', '--config', 'nothing.json', '--out', 'x'],
    1,
    'nothing.json cannot be read: it does not exist',
  ],
  [['score', '--model', 'MODEL', 'pictures', '--out', 'file'], 1, 'a part of the path is a file'],
  [['quickstart', '--preset', 'tiny-recipe'], 1, 'use `siglip2 train --preset tiny-recipe`'],
  [['quickstart', '--set', 'out=pictures'], 1, 'pictures: is there and is no run of training'],
])('siglip2 %j', (args, status, says) => {
  const ran = siglip2(...args.map((a) => (a === 'MODEL' ? model : a)));
  expect(ran).toMatchObject({ status, stdout: '', stderr: expect.stringContaining(says) });
  expect(ran.stderr).not.toMatch(/^ +at /m);
});

test('SIGLIP2_BINARY takes an absolute path', () => {
  const binary = resolve(
    packageRoot(),
    process.env['SIGLIP2_BINARY'] ?? 'build/Release/siglip2.node',
  );
  const { stdout } = spawnSync(process.execPath, [main, 'info'], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', SIGLIP2_BINARY: binary },
  });
  expect(stdout).toMatch(/^kernels /m);
});

test('files whose names look like patterns are found by name, and patterns find every name', async () => {
  const named = async (...specs: string[]): Promise<string[]> =>
    (await listImages(specs.map((s) => join(at('pictures'), s)))).map((i) => i.name);
  expect(await named('{a,b}.png')).toHaveLength(1);
  expect(await named('[x] ?.png')).toHaveLength(1);
  expect(await named('*.png')).toHaveLength(3);
  expect((await errorOf(() => named('c*.png'))).code).toBe('ERR_DATA');
});

test('a pattern goes through folders', async () => {
  mkdirSync(at('tree/a/b'), { recursive: true });
  mkdirSync(at('tree/.hidden'));
  for (const name of ['x.png', 'a/y.png', 'a/b/z.png', 'a/b/w.jpg', '.hidden/v.png'])
    writeFileSync(join(at('tree'), name), '');
  const named = async (spec: string): Promise<string[]> =>
    (await listImages([at(spec)])).map((i) => i.name.slice(at('tree/').length));
  expect(await named('tree/**/*.png')).toEqual(['a/b/z.png', 'a/y.png', 'x.png']);
  expect(await named('tree/**')).toEqual(['a/b/w.jpg', 'a/b/z.png', 'a/y.png', 'x.png']);
  expect(await named('tree/*/**/?.{png,jpg}')).toEqual(['a/b/w.jpg', 'a/b/z.png', 'a/y.png']);
  expect(await named('tree/*/b/*.jpg')).toEqual(['a/b/w.jpg']);
  expect((await errorOf(() => named('tree/**/q*.png'))).message).toMatch(/no file matches/);
  expect((await errorOf(() => named('nowhere/**/*.png'))).message).toMatch(
    /nowhere.*does not exist|no such/,
  );
});

test('classify: labels from a file, one a line', () => {
  writeFileSync(at('labels.txt'), 'a red apple\r\n\na photo of a cat, or not\n');
  const { status, stdout } = siglip2(
    'classify',
    '--model',
    model,
    '--labels',
    'labels.txt',
    '--json',
    'pictures/{a,b}.png',
  );
  expect(status).toBe(0);
  const { labels } = JSON.parse(stdout) as { labels: { label: string }[] };
  expect(labels.map(({ label }) => label).sort()).toEqual([
    'a photo of a cat, or not',
    'a red apple',
  ]);
});

test('info as data, and the version', () => {
  const { version } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as {
    version: string;
  };
  expect(siglip2('--version')).toMatchObject({ status: 0, stdout: `${version}\n` });
  expect(JSON.parse(siglip2('info', '--json').stdout)).toMatchObject({
    siglip2: version,
    devices: [expect.stringMatching(/^cpu: /), expect.any(String)],
    problems: [],
  });
});

test('an addon that is not there is said to be none', () => {
  const { stderr } = spawnSync(process.execPath, [main, 'info'], {
    encoding: 'utf8',
    env: { ...process.env, NODE_OPTIONS: '', SIGLIP2_BINARY: at('none.node') },
  });
  expect(stderr).toMatch(/none\.node: Cannot find module/);
  expect(stderr).not.toMatch(/Tried:$/m);
});

test('bench ops: an op that is not there', () => {
  const { status, stderr } = spawnSync(
    process.execPath,
    [resolve(main, '../../../bench/main.js'), 'ops', '--op', 'nope'],
    { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } },
  );
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: expect.stringMatching(
      /^bench: bench ops: there is no op "nope"; the ops are adamw, attention, [^\n]*\n$/,
    ),
  });
});

test('search: without a question no page is spoken of', () => {
  const { status, stdout, stderr } = siglip2(
    'search',
    'pictures',
    '--model',
    model,
    '--cache',
    'empty.safetensors',
  );
  expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
  expect(stderr).toMatch(/3 images, no page, for nothing was asked/);
  expect(existsSync(at('search.html'))).toBe(false);
});

test('a run stands for its newest checkpoint, a run in stages for that of its last stage, in every command', () => {
  const staged = at('staged'),
    other = at('other');
  const place = (out: string, step: number, what: string): void =>
    cpSync(what, checkpointFolder(out, step), { recursive: true });
  cpSync(model, other, { recursive: true });
  writeFileSync(join(other, 'marker'), '');
  // In the order of stages.json, not of names or times.
  place(join(staged, 'zoom'), 5, model);
  place(join(staged, 'zoom'), 9, other);
  place(join(staged, 'base'), 7, model);
  writeFileSync(join(staged, 'stages.json'), '["base","zoom","later"]');
  expect(checkpointOf(staged)).toBe(checkpointFolder(join(staged, 'zoom'), 9));
  expect(checkpointOf(join(staged, 'base'))).toBe(checkpointFolder(join(staged, 'base'), 7));
  expect(checkpointOf(model)).toBe(model);
  expect(checkpointOf('owner/name')).toBe('owner/name');
  for (const run of [staged, join(staged, 'base')]) {
    expect(siglip2('convert', run, `${run}-converted`)).toMatchObject({ status: 0 });
    expect(siglip2('export', run, '--format', 'hf', '--out', `${run}-exported`)).toMatchObject({
      status: 0,
      stderr: '',
    });
    expect(
      siglip2('embed', '--model', run, '--texts', 'lines.txt', '--out', `${run}.npy`),
    ).toMatchObject({ status: 0 });
  }
  const init = {
    ...config,
    model: { variant: 'test' },
    data: { source: { type: 'folder', path: 'captioned' }, trimVocabulary: true, workers: 0 },
    init: staged,
  };
  mkdirSync(at('captioned'));
  cpSync(join(at('pictures'), '{a,b}.png'), at('captioned/x.png'));
  writeFileSync(at('captioned/x.txt'), 'a red apple');
  writeFileSync(at('init.json'), JSON.stringify(init));
  const trained = siglip2('train', 'init.json');
  expect(trained).toMatchObject({ status: 0, stderr: expect.stringMatching(/done: step 1/) });
}, 120000);

test('search: the newest checkpoint of a run gets embeddings of its own', () => {
  const run = at('trained');
  const next = (step: number): void =>
    cpSync(model, checkpointFolder(run, step), { recursive: true });
  const indexed = (): boolean =>
    siglip2('search', 'pictures', '--model', run, 'apple').stderr.includes('"task":"index"');
  next(1);
  expect([indexed(), indexed()]).toEqual([true, false]);
  next(2);
  expect([indexed(), indexed()]).toEqual([true, false]);
});

test('Ctrl-C ends a command at once, with status 130 and nothing half-written', async () => {
  const asked = new Promise<void>((resolve) => {
    server = createServer(() => resolve()).listen(0); // never answers
  });
  const url = `http://127.0.0.1:${(server!.address() as AddressInfo).port}/x.png`;
  const child = spawn(
    process.execPath,
    [main, 'embed', '--model', model, '--images', url, '--out', at('c/x.npy')],
    { env: { ...process.env, NODE_OPTIONS: '' }, stdio: 'ignore' },
  );
  await asked;
  expect(readdirSync(at('c'))).toHaveLength(1);
  child.kill('SIGINT');
  expect(await new Promise((resolve) => child.on('exit', resolve))).toBe(130);
  server!.closeAllConnections();
  server!.close();
  expect(readdirSync(at('c'))).toEqual([]);
});

test("embed: the list of an earlier run's bad images does not outlive it", () => {
  writeFileSync(at('bad.png'), 'no image');
  const embed = (...images: string[]): number | null =>
    siglip2('embed', '--model', model, '--skip-bad', '--out', 'e.npy', '--images', ...images)
      .status;
  expect([embed('bad.png'), existsSync(at('e.npy.skipped.txt'))]).toEqual([0, true]);
  expect([embed('pictures/*.png'), existsSync(at('e.npy.skipped.txt'))]).toEqual([0, false]);
});
