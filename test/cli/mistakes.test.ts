/** Likely mistakes at the command line: one sentence, no stack trace, a status that is not 0. */
import { spawn, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, expect, test } from '@jest/globals';
import { listImages } from '../../lib/cli/images.js';
import { packageRoot } from '../../lib/native.js';
import { checkpointFolder } from '../../lib/train/checkpoint.js';
import { errorOf, picture } from '../data/support.js';
import { smallCheckpoint, temporaryFolder } from '../encoder_support.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(), at = (name: string): string => join(folder, name);
let model: string, server: Server | undefined;

function siglip2(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args],
    { cwd: folder, input: '', encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '', XDG_CACHE_HOME: at('cache') } });
  return { status, stdout, stderr };
}

const config = { out: 'run', model: { variant: 'test' }, data: { source: { type: 'folder', path: 'pictures' } }, batch: 1, total: 1 };

beforeAll(async () => {
  model = await smallCheckpoint();
  mkdirSync(at('pictures'));
  mkdirSync(at('empty'));
  for (const [i, name] of ['{a,b}.png', '[x] ?.png', 'line\nbreak.png'].entries()) writeFileSync(join(at('pictures'), name), await picture(i));
  writeFileSync(at('lines.txt'), 'a red apple\n');
  writeFileSync(at('config.json'), JSON.stringify(config));
  writeFileSync(at('misspelt.json'), JSON.stringify({ ...config, data: { sourc: config.data.source } }));
  writeFileSync(at('file'), '');
});

test.each<[args: string[], status: number, says: string]>([
  [['train', '--bogus'], 2, "Unknown option '--bogus'; siglip2 train --help shows the options [ERR_PARSE_ARGS_UNKNOWN_OPTION]"],
  [['embed', '--images', '--out', 'x.npy'], 2, "Option '--images' argument is ambiguous; siglip2 embed --help"],
  [['constructor'], 2, 'there is no command "constructor"'],
  [['train', '--preset', 'constructor'], 1, 'no preset is called "constructor"'],
  [['eval', 'MODEL', '--task', 'constructor'], 1, 'no task is called "constructor"'],
  [['train', 'nothing.json'], 1, 'nothing.json cannot be read: it does not exist; check the path (ENOENT)'],
  [['train', 'nothing.js'], 1, 'nothing.js cannot be read: it does not exist; check the path (ENOENT)'],
  [['train', 'config.json', 'more.json'], 1, 'takes one config but there is also more.json'],
  [['train', 'config.json', '--preset', 'home'], 1, 'either a config file or --preset but got config.json and home'],
  [['train', 'misspelt.json'], 1, 'unknown key "data.sourc" (did you mean "source"?)'],
  [['train', 'config.json', '--out', ''], 1, 'out is ""'],
  [['plan', 'config.json', '--stage', 'base'], 1, 'has no stages; leave out --stage'],
  [['eval', 'a', 'b'], 1, 'eval needs a checkpoint folder'],
  [['eval', 'MODEL', '--seed', 'x'], 1, '--seed must be a whole number but is x'],
  [['eval', 'MODEL', '--set-name', 'seen'], 1, 'no set is called "seen"; the sets are seen-placed, '],
  [['eval', 'MODEL'], 1, 'build it with `siglip2 dataset emoji --out DIR`'],
  [['eval', 'MODEL', '--task', 'retrieval'], 1, 'build them with `siglip2 dataset scenes --out DIR`'],
  [['dataset', 'emoji', '--out', 'x', '--size', '9'], 1, '--size is for scenes'],
  [['caption', '--model', 'MODEL'], 1, 'no images are named'],
  [['classify', '--model', 'MODEL', '--labels', 'a', 'empty'], 1, 'there is no image in empty; files are taken that end in'],
  [['embed', '--model', 'MODEL', '--texts', 'lines.txt', 'more.txt', '--out', 'x.npy'], 1, 'there is also more.txt'],
  [['embed', '--model', 'MODEL', '--texts', 'empty', '--out', 'x.npy'], 1, 'it is a folder and not a file; check the path'],
  [['embed', '--model', 'MODEL', '--texts', 'lines.txt', '--out', 'file/x.parquet'], 1, 'a part of the path is a file'],
  [['search', 'pictures', '--model', 'MODEL', '--cache', 'x', 'apple'], 1, '--cache must be a file that ends in .safetensors'],
  [['score', '--merge', 'empty', 'more'], 1, 'takes one folder but there is also more'],
  [['debias', 'pictures', '--config', 'nothing.json', '--out', 'x'], 1, 'nothing.json cannot be read: it does not exist'],
  [['score', '--model', 'MODEL', 'pictures', '--out', 'file'], 1, 'a part of the path is a file'],
  [['quickstart', '--preset', 'tiny-recipe'], 1, 'use `siglip2 train --preset tiny-recipe`'],
  [['quickstart', '--set', 'out=pictures'], 1, 'pictures: is there and is no run of training'],
])('siglip2 %j', (args, status, says) => {
  const ran = siglip2(...args.map((a) => a === 'MODEL' ? model : a));
  expect(ran).toMatchObject({ status, stdout: '', stderr: expect.stringContaining(says) });
  expect(ran.stderr).not.toMatch(/^ +at /m);
});

test('SIGLIP2_BINARY takes an absolute path', () => {
  const binary = resolve(packageRoot(), process.env['SIGLIP2_BINARY'] ?? 'build/Release/siglip2.node');
  const { stdout } = spawnSync(process.execPath, [main, 'info'],
    { encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '', SIGLIP2_BINARY: binary } });
  expect(stdout).toMatch(/^kernels /m);
});

test('files whose names look like patterns are found by name, and patterns find every name', async () => {
  const named = async (...specs: string[]): Promise<string[]> => (await listImages(specs.map((s) => join(at('pictures'), s)))).map((i) => i.name);
  expect(await named('{a,b}.png')).toHaveLength(1);
  expect(await named('[x] ?.png')).toHaveLength(1);
  expect(await named('*.png')).toHaveLength(3);
  expect((await errorOf(() => named('c*.png'))).code).toBe('ERR_DATA');
});

test('search: the newest checkpoint of a run gets embeddings of its own', () => {
  const run = at('trained');
  const next = (step: number): void => cpSync(model, checkpointFolder(run, step), { recursive: true });
  const indexed = (): boolean => siglip2('search', 'pictures', '--model', run, 'apple').stderr.includes('"task":"index"');
  next(1);
  expect([indexed(), indexed()]).toEqual([true, false]);
  next(2);
  expect([indexed(), indexed()]).toEqual([true, false]);
});

test('Ctrl-C ends a command at once, with status 130 and nothing half-written', async () => {
  const asked = new Promise<void>((resolve) => {
    server = createServer(() => resolve()).listen(0);  // never answers
  });
  const url = `http://127.0.0.1:${(server!.address() as AddressInfo).port}/x.png`;
  const child = spawn(process.execPath, [main, 'embed', '--model', model, '--images', url, '--out', at('c/x.npy')],
    { env: { ...process.env, NODE_OPTIONS: '' }, stdio: 'ignore' });
  await asked;
  expect(readdirSync(at('c'))).toHaveLength(1);
  child.kill('SIGINT');
  expect(await new Promise((resolve) => child.on('exit', resolve))).toBe(130);
  server!.closeAllConnections();
  server!.close();
  expect(readdirSync(at('c'))).toEqual([]);
});

test('embed: the list of an earlier run\'s bad images does not outlive it', () => {
  writeFileSync(at('bad.png'), 'no image');
  const embed = (...images: string[]): number | null => siglip2('embed', '--model', model, '--skip-bad', '--out', 'e.npy', '--images', ...images).status;
  expect([embed('bad.png'), existsSync(at('e.npy.skipped.txt'))]).toEqual([0, true]);
  expect([embed('pictures/*.png'), existsSync(at('e.npy.skipped.txt'))]).toEqual([0, false]);
});
