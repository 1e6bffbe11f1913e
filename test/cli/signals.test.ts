/** What ends a run early, and that nothing is lost by it: signals, repeated ones, readers that go away, pipes as inputs. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, expect, test } from '@jest/globals';
import { listCheckpoints, stateOf } from '../../lib/train/checkpoint.js';
import { outputOf } from '../child.js';
import { smallCheckpoint, temporaryFolder } from '../encoder_support.js';
import { colouredImages } from '../train/run.js';

const main = fileURLToPath(new URL('../../lib/cli/main.js', import.meta.url));
const folder = temporaryFolder(),
  at = (name: string): string => join(folder, name);
const config = {
  device: 'cpu',
  dtype: 'f32',
  model: { variant: 'test' },
  batch: 6,
  total: 1_000_000,
  checkpointEvery: 0,
  logEvery: 1,
  data: { source: { type: 'folder', path: at('images') }, trimVocabulary: true, workers: 1 },
  optimizer: { warmup: 2 },
};
const env = { ...process.env, NODE_OPTIONS: '' };

/** Starts `siglip2 train` of the config with changes into a folder. */
function train(out: string, ...sets: string[]): ChildProcess {
  return spawn(
    process.execPath,
    [main, 'train', at('config.json'), '--out', at(out), ...sets.flatMap((s) => ['--set', s])],
    { cwd: folder, env, stdio: ['ignore', 'ignore', 'pipe'] },
  );
}

/** What a child says until it ends, and its exit status; `heard` sees the text so far. */
async function watch(
  child: ChildProcess,
  heard: (text: string) => void = () => undefined,
): Promise<[status: number | null, text: string]> {
  let text = '';
  child.stderr!.on('data', (d: Buffer) => heard((text += String(d))));
  return [await new Promise((resolve) => child.once('exit', (code) => resolve(code))), text];
}

beforeAll(async () => {
  await colouredImages(at('images'), 12);
  writeFileSync(at('config.json'), JSON.stringify({ ...config, out: at('run') }));
});

test.each(['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const)(
  '%s saves and ends',
  async (signal) => {
    const child = train(signal);
    let sent = false;
    const [status, text] = await watch(child, (said) => {
      if (sent || !said.includes('"step":3,')) return;
      sent = true;
      // As npm does: its own and the terminal's.
      for (let i = 0; i < 2; i++) child.kill(signal);
    });
    expect([status, text]).toEqual([
      128 + constants.signals[signal],
      expect.stringContaining(`${signal}: stopping after this step`),
    ]);
    expect(text).not.toContain('Debugger');
    const [saved, ...more] = listCheckpoints(at(signal));
    expect(more).toEqual([]);
    const lines = readFileSync(join(at(signal), 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n');
    expect(stateOf(saved!).step).toBe(lines.length);
  },
  120000,
);

test('a second Ctrl-C counts from a second on; other signals are reminders', () => {
  const source = `
    import { heeding, hearSignals } from 'lib/cli/signals.js';
    hearSignals();
    const heard = [];
    const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    const send = async (signal) => { process.kill(process.pid, signal); await wait(50); };
    process.on('exit', (code) => console.log(JSON.stringify([code, heard])), process.exitCode = undefined);
    await heeding((signal) => heard.push(signal), async () => {
      for (const signal of ['SIGUSR1', 'SIGINT', 'SIGTERM', 'SIGHUP']) await send(signal);
      await wait(1100);
      await send('SIGTERM');
      heard.push('still there');
      process.exit = (code) => { heard.push(code); };
      await send('SIGINT');
    });
    process.kill(process.pid, 'SIGHUP');
    await wait(50);`;
  expect(JSON.parse(outputOf(source, {}))).toEqual([0, ['SIGUSR1', 'still there', 130, 129]]);
}, 60000);

test('a signal while the data are indexed ends the command at once, with nothing written', async () => {
  const line = JSON.stringify({ image: 'images/0.png', caption: 'one of many' });
  writeFileSync(at('many.jsonl'), `${line}\n`.repeat(1_000_000));
  const child = train(
    'indexing',
    `data.source=${JSON.stringify({ type: 'manifest', path: at('many.jsonl') })}`,
  );
  const reading = (): boolean => {
    const open = `/proc/${child.pid}/fd`;
    try {
      return readdirSync(open).some((fd) => {
        try {
          return readlinkSync(join(open, fd)).endsWith('many.jsonl');
        } catch {
          return false;
        }
      });
    } catch {
      return !existsSync('/proc');
    }
  };
  const timer = setInterval(() => {
    if (!reading()) return;
    clearInterval(timer);
    child.kill('SIGTERM');
  }, 20);
  const [status, text] = await watch(child);
  clearInterval(timer);
  expect([status, text]).toEqual([
    143,
    expect.stringContaining('SIGTERM: ended before the first step'),
  ]);
  expect(existsSync(at('indexing'))).toBe(false);
}, 120000);

test('when the data fail the steps so far are saved', async () => {
  await colouredImages(at('gone'), 12);
  const child = train('failed', `data.source.path=${at('gone')}`, 'data.maxSkips=0');
  const [status, text] = await watch(child, (said) => {
    if (said.includes('"step":3,')) rmSync(at('gone'), { recursive: true, force: true });
  });
  const [saved] = listCheckpoints(at('failed'));
  expect([status, text]).toEqual([
    1,
    expect.stringContaining(`before ending with an error: ${saved}`),
  ]);
  expect(stateOf(saved!).step).toBe(
    readFileSync(join(at('failed'), 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n').length,
  );
}, 120000);

test('a run outlives the reader of its log', async () => {
  const child = train('unread', 'total=10');
  child.stderr!.once('data', () => child.stderr!.destroy());
  expect(await new Promise((resolve) => child.once('exit', resolve))).toBe(0);
  expect(stateOf(listCheckpoints(at('unread')).at(-1)!).step).toBe(10);
}, 120000);

test('a command whose output nobody reads ends without a stack trace', async () => {
  const child = spawn(process.execPath, [main, 'train', '--preset', 'B/16-384', '--print'], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  child.stdout.destroy();
  const [status, text] = await watch(child);
  expect([[0, 141].includes(status!), text]).toEqual([true, '']);
}, 60000);

test('named pipes and devices are refused as inputs', async () => {
  const pipes = ['p.tar', 'p.jsonl', 'p.parquet', 'p.png', 'p.txt', 'p.json'];
  expect(spawnSync('mkfifo', pipes.map(at)).status).toBe(0);
  const model = await smallCheckpoint();
  const source = (s: object): string[] => [
    'train',
    at('config.json'),
    '--out',
    at('piped'),
    '--set',
    `data.source=${JSON.stringify(s)}`,
  ];
  for (const args of [
    source({ type: 'webdataset', tars: at('p.tar') }),
    source({ type: 'manifest', path: at('p.jsonl') }),
    source({ type: 'manifest', path: at('p.parquet') }),
    source({ type: 'webdataset', tars: '/dev/zero' }),
    source({ type: 'folder', path: at('images'), keys: at('p.txt') }),
    ['train', at('p.json')],
    ['embed', '--model', model, '--images', at('p.png'), '--out', at('x.npy')],
    ['embed', '--model', model, '--texts', at('p.txt'), '--out', at('x.npy')],
    ['score', '--model', model, at('p.tar'), '--out', at('scored')],
  ]) {
    const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
      cwd: folder,
      env,
      encoding: 'utf8',
      timeout: 30000,
    });
    expect([args, status, stderr]).toEqual([
      args,
      1,
      expect.stringMatching(/it is a (named pipe|device) and not a regular file/),
    ]);
  }
  // The shell's own pipes are open already.
  const read = spawnSync(
    'bash',
    [
      '-c',
      `"${process.execPath}" "${main}" embed --model "${model}" --texts <(echo a red apple) --out "${at('t.npy')}"`,
    ],
    { encoding: 'utf8', env, timeout: 30000 },
  );
  expect([read.status, existsSync(at('t.npy'))]).toEqual([0, true]);
}, 180000);
