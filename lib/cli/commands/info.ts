/** `siglip2 info`: what this machine and this build can do; exit 1 with the remedy when something is wrong. */
import { cpus, freemem, totalmem } from 'node:os';
import { parseArgs } from 'node:util';
import { native, packageVersion } from '../../native.js';
import { deviceName } from '../../tensor.js';
import type { Command } from '../command.js';

export const command: Command = {
  usage: 'info [--json]',
  summary:
    'devices, build, CPU features, oneDNN, memory; exits 1 with the remedy when something is wrong',
  async run(args) {
    const {
      values: { json },
    } = parseArgs({ args, options: { json: { type: 'boolean', default: false } } });
    const problems: string[] = [],
      said: [key: string, value: string][] = [];
    const say = (key: string, value: string): void => void said.push([key, value]);
    say('siglip2', packageVersion());
    say('node', `${process.versions.node} (${process.platform}-${process.arch})`);
    const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
    say('memory', `${gib(freemem())} free of ${gib(totalmem())}`);
    say('processor', `${cpus()[0]?.model.trim() ?? 'unknown'}, ${cpus().length} threads`);
    try {
      const info = native().buildInfo();
      say('kernels', `${info.isa}, ${info.threads} threads (SIGLIP2_THREADS)`);
      say(
        'bf16',
        info.nativeBf16
          ? 'multiplied natively'
          : 'through f32 (this CPU has no AVX512-BF16): f32 is faster here',
      );
      say('oneDNN', info.onednn);
      say('device', `cpu: ${deviceName('cpu')}`);
      try {
        say('device', `cuda: ${deviceName('cuda')}; ${info.cudaProducts}`);
      } catch (e) {
        say('device', `no CUDA: ${(e as Error).message}`);
      }
      const cuda = info.ops.filter((o) => o.cuda).length;
      say(
        'ops',
        `${info.ops.length} kernels on the CPU, ${cuda} on CUDA (built ${info.cuda === 'none' ? 'without CUDA' : `with ${info.cuda}`})`,
      );
    } catch (e) {
      problems.push((e as Error).message);
    }
    try {
      await import('sharp');
      say('sharp', 'loads');
    } catch (e) {
      problems.push(
        `sharp does not load (${(e as Error).message.split('\n')[0]}): run \`npm ci\` for this platform`,
      );
    }
    if (json) {
      const { device, ...facts } = Object.fromEntries(
        said.map(([key]) => [key, said.filter(([k]) => k === key).map(([, v]) => v)]),
      );
      console.log(
        JSON.stringify(
          {
            ...Object.fromEntries(Object.entries(facts).map(([key, [value]]) => [key, value])),
            devices: device ?? [],
            problems,
          },
          null,
          2,
        ),
      );
    } else {
      for (const [key, value] of said) console.log(`${key.padEnd(12)}${value}`);
    }
    for (const p of problems) console.error(`problem: ${p}`);
    return problems.length ? 1 : 0;
  },
};
