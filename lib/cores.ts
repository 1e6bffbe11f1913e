/** How many cores this process may compute with: affinity and the CPU quotas of its control groups. */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { ConfigError } from './errors.js';

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

/** Cores of one group's quota: version 2's `cpu.max`, else version 1's pair; Infinity without one. */
function quotaOf(folder: string): number {
  const [quota, period] = read(join(folder, 'cpu.max')).trim().split(/\s+/);
  const cores =
    quota !== undefined && quota !== ''
      ? Number(quota) / Number(period)
      : Number(read(join(folder, 'cpu.cfs_quota_us')) || NaN) /
        Number(read(join(folder, 'cpu.cfs_period_us')) || NaN);
  return cores > 0 ? cores : Infinity; // "max", -1 and what is not there
}

/**
 * The least CPU quota, in cores, of this process's control groups (versions 1 and 2) and of all above them.
 * @param root where /proc and /sys are; other than `/` in tests
 */
export function cpuQuota(root = '/'): number {
  let least = Infinity;
  for (const line of read(join(root, 'proc/self/cgroup')).split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (path === undefined || !(controllers === '' || controllers!.split(',').includes('cpu')))
      continue;
    const mounts = controllers === '' ? ['', 'unified'] : [controllers!, 'cpu', 'cpu,cpuacct'];
    // Inside a container the path may be the host's, which is not there: then the mount itself is the group.
    const steps = path.split('/').filter((name) => name !== '' && name !== '..');
    for (const mount of mounts)
      for (let n = steps.length; n >= 0; n--)
        least = Math.min(least, quotaOf(join(root, 'sys/fs/cgroup', mount, ...steps.slice(0, n))));
  }
  return least;
}

/** Cores by affinity and quota, at least 1. A quota is rounded down: a team that outruns it is stopped as a whole. */
export function availableCores(root = '/'): number {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(cpuQuota(root))));
}

/** `SIGLIP2_THREADS`, or undefined where it is not set. @throws ConfigError for anything but a whole number from 1 to 1024 */
export function wantedThreads(): number | undefined {
  const wish = process.env['SIGLIP2_THREADS'];
  if (wish === undefined || wish === '') return undefined;
  if (!/^\d+$/.test(wish) || Number(wish) < 1 || Number(wish) > 1024)
    throw new ConfigError(
      `SIGLIP2_THREADS must be a whole number of threads from 1 to 1024 but is "${wish}"`,
    );
  return Number(wish);
}
