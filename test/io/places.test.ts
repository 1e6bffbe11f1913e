/** The environment's say about caches, switches and tokens. */
import { homedir } from 'node:os';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { hubFolder } from '../../lib/checkpoints/hub.js';
import { cacheHome, hubCache, hubToken, offlineSwitch } from '../../lib/fs/places.js';

const ME = homedir();
const NAMES = [
  'XDG_CACHE_HOME',
  'HF_HOME',
  'HF_HUB_CACHE',
  'HUGGINGFACE_HUB_CACHE',
  'HF_HUB_OFFLINE',
  'TRANSFORMERS_OFFLINE',
  'HF_TOKEN',
  'HUGGING_FACE_HUB_TOKEN',
  'HF_TOKEN_PATH',
  'HF_HUB_DISABLE_IMPLICIT_TOKEN',
  'PLACE',
];
let before: NodeJS.ProcessEnv;
beforeEach(() => {
  before = { ...process.env };
  for (const name of NAMES) delete process.env[name];
});
afterEach(() => {
  for (const name of NAMES)
    if (before[name] === undefined) delete process.env[name];
    else process.env[name] = before[name];
});

test.each<[Record<string, string>, string, string]>([
  [{}, `${ME}/.cache`, `${ME}/.cache/huggingface/hub`],
  [{ XDG_CACHE_HOME: '/x' }, '/x', '/x/huggingface/hub'],
  [{ XDG_CACHE_HOME: '', HF_HOME: '' }, `${ME}/.cache`, `${ME}/.cache/huggingface/hub`],
  [{ HF_HOME: '~/hf' }, `${ME}/.cache`, `${ME}/hf/hub`],
  [{ HF_HOME: '$PLACE/hf', PLACE: '/data' }, `${ME}/.cache`, '/data/hf/hub'],
  [{ HUGGINGFACE_HUB_CACHE: '/old' }, `${ME}/.cache`, '/old'],
  [
    { HUGGINGFACE_HUB_CACHE: '/old', HF_HUB_CACHE: '${PLACE}/new', PLACE: '/y' },
    `${ME}/.cache`,
    '/y/new',
  ],
])('%j', (variables, cache, hub) => {
  Object.assign(process.env, variables);
  expect([cacheHome(), hubCache()]).toEqual([cache, hub]);
});

test.each(['1', 'true', 'TRUE', 'yes', 'On'])('offline by %s', async (value) => {
  for (const name of ['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE']) {
    process.env[name] = value;
    process.env['HF_HOME'] = '/nonexistent';
    expect(offlineSwitch()).toBe(name);
    await expect(hubFolder('owner/name')).rejects.toThrow(
      `is not in the cache /nonexistent/hub and ${name} forbids to download it`,
    );
    delete process.env[name];
  }
  for (const off of ['', '0', 'false', 'no', '2'])
    expect([off, ((process.env['HF_HUB_OFFLINE'] = off), offlineSwitch())]).toEqual([
      off,
      undefined,
    ]);
});

test('the token of the environment, else that of the login', () => {
  const asked: string[] = [],
    read = (path: string): string => (asked.push(path), ' from-login\n');
  expect(hubToken(read)).toBe('from-login');
  process.env['HF_TOKEN_PATH'] = '~/t';
  hubToken(read);
  expect(asked).toEqual([`${ME}/.cache/huggingface/token`, `${ME}/t`]);
  process.env['HUGGING_FACE_HUB_TOKEN'] = 'old';
  expect(hubToken(read)).toBe('old');
  process.env['HF_TOKEN'] = 'new\n';
  expect(hubToken(read)).toBe('new');
  delete process.env['HF_TOKEN'];
  delete process.env['HUGGING_FACE_HUB_TOKEN'];
  process.env['HF_HUB_DISABLE_IMPLICIT_TOKEN'] = '1';
  expect(hubToken(read)).toBeUndefined();
});
