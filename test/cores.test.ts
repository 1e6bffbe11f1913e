/** Which number of threads a process takes, and that results do not depend on how many of them are at work. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { availableCores, cpuQuota, wantedThreads } from '../lib/cores.js';
import { ConfigError } from '../lib/errors.js';
import { activeThreads, liveCount } from '../lib/tensor.js';
import { outputWithThreads } from './child.js';

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
  expect(liveCount()).toBe(0);
});

/** A folder with these files, to stand for /. */
function rootWith(files: Record<string, string>): string {
  const root = mkdtempSync(join(tmpdir(), 'siglip2-cores-'));
  folders.push(root);
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text);
  }
  return root;
}

test.each<[string, Record<string, string>, number]>([
  ['no control groups', {}, Infinity],
  [
    'version 2, no quota',
    { 'proc/self/cgroup': '0::/a\n', 'sys/fs/cgroup/a/cpu.max': 'max 100000\n' },
    Infinity,
  ],
  [
    'version 2',
    { 'proc/self/cgroup': '0::/a/b\n', 'sys/fs/cgroup/a/b/cpu.max': '150000 100000\n' },
    1.5,
  ],
  [
    'version 2, the quota of a group above',
    {
      'proc/self/cgroup': '0::/a/b\n',
      'sys/fs/cgroup/a/cpu.max': '50000 100000\n',
      'sys/fs/cgroup/a/b/cpu.max': '400000 100000\n',
    },
    0.5,
  ],
  [
    "version 2, the host's path in a container",
    { 'proc/self/cgroup': '0::/system/docker-1\n', 'sys/fs/cgroup/cpu.max': '300000 100000\n' },
    3,
  ],
  [
    'version 2, a path that leaves the namespace',
    { 'proc/self/cgroup': '0::/../x\n', 'sys/fs/cgroup/cpu.max': '300000 100000\n' },
    3,
  ],
  [
    'version 1',
    {
      'proc/self/cgroup': '3:memory:/m\n2:cpu,cpuacct:/c\n',
      'sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us': '200000\n',
      'sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us': '100000\n',
    },
    2,
  ],
  [
    'version 1, no quota',
    {
      'proc/self/cgroup': '1:cpu:/\n',
      'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
      'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
    },
    Infinity,
  ],
  [
    'both versions at once',
    {
      'proc/self/cgroup': '1:cpu:/c\n0::/u\n',
      'sys/fs/cgroup/cpu/c/cpu.cfs_quota_us': '250000\n',
      'sys/fs/cgroup/cpu/c/cpu.cfs_period_us': '100000\n',
      'sys/fs/cgroup/unified/u/cpu.max': 'max 100000\n',
    },
    2.5,
  ],
  [
    'what is no number',
    { 'proc/self/cgroup': '0::/\n', 'sys/fs/cgroup/cpu.max': 'some words' },
    Infinity,
  ],
])('CPU quota: %s', (_, files, cores) => {
  const root = rootWith(files);
  expect(cpuQuota(root)).toBe(cores);
  expect(availableCores(root)).toBe(
    Math.max(1, Math.min(availableParallelism(), Math.floor(cores))),
  );
});

test('SIGLIP2_THREADS is a number of threads or a sentence', () => {
  const was = process.env['SIGLIP2_THREADS'];
  try {
    for (const [wish, threads] of [
      ['3', 3],
      ['', undefined],
    ] as const) {
      process.env['SIGLIP2_THREADS'] = wish;
      expect(wantedThreads()).toBe(threads);
    }
    for (const wish of ['abc', '0', '-1', '2.5', '1e3', '4000']) {
      process.env['SIGLIP2_THREADS'] = wish;
      expect(wantedThreads).toThrow(ConfigError);
      expect(wantedThreads).toThrow(
        `SIGLIP2_THREADS must be a whole number of threads from 1 to 1024 but is "${wish}"`,
      );
    }
  } finally {
    if (was === undefined) delete process.env['SIGLIP2_THREADS'];
    else process.env['SIGLIP2_THREADS'] = was;
  }
});

const hasTaskset = spawnSync('taskset', ['-c', '0', 'true']).status === 0;
(hasTaskset ? test : test.skip)('a process that is bound to one core takes one thread', () => {
  const native = new URL('../lib/native.js', import.meta.url).href;
  const env = { ...process.env, NODE_OPTIONS: '' } as NodeJS.ProcessEnv;
  delete env['SIGLIP2_THREADS'];
  const child = spawnSync(
    'taskset',
    [
      '-c',
      '0',
      process.execPath,
      '--input-type=module',
      '-e',
      `import { native } from '${native}'; console.log(native().buildInfo().threads);`,
    ],
    { env, encoding: 'utf8' },
  );
  expect(child.stdout.trim()).toBe('1');
});

test.each(['f32', 'bf16'] as const)(
  'training has the same bits with any number of its threads at work, %s',
  (dtype) => {
    const digest = (holds: string): string =>
      outputWithThreads(
        4,
        `
    import { createHash } from 'node:crypto';
    import { trainedBytes } from '${new URL('cores_support.js', import.meta.url).href}';
    console.log(createHash('sha256').update(await trainedBytes('${dtype}', ${holds})).digest('hex'));`,
      );
    const all = digest('[4]');
    expect(digest('[1]')).toBe(all);
    expect(digest('[3, 1, 4, 2]')).toBe(all);
  },
);

test('the team says how many threads are at work', () => {
  const n = activeThreads('cpu', 1);
  expect(n).toBe(1);
  expect(activeThreads('cpu', 0)).toBeGreaterThanOrEqual(1);
  expect(activeThreads('dry:cpu')).toBe(0);
});
