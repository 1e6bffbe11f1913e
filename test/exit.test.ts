/** However a program ends, with work in flight, it ends cleanly: run many times, because the faults are races. */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { expect, test } from '@jest/globals';

const lib = pathToFileURL(join(dirname(fileURLToPath(import.meta.url)), '..', 'lib')).href;
const busy = `
  import { linear } from '${lib}/ops/linear.js';
  import { noGrad } from '${lib}/tape.js';
  import { scope, zeros, synchronize } from '${lib}/tensor.js';
  const x = zeros([512, 512]), w = zeros([512, 512]);
  for (let i = 0; i < 50; i++) scope(() => { noGrad(() => linear(x, w, null)); });`;

function run(code: string): { status: number | null; signal: string | null; stderr: string } {
  const r = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    encoding: 'utf8',
    timeout: 60000,
  });
  return { status: r.status, signal: r.signal, stderr: r.stderr };
}

const RUNS = 6;
test('process.exit with work in flight keeps its status', () => {
  for (let i = 0; i < RUNS; i++)
    expect(run(`${busy}\nprocess.exit(7);`)).toMatchObject({ status: 7, signal: null });
});
test('an uncaught error with work in flight is status 1', () => {
  for (let i = 0; i < RUNS; i++)
    expect(run(`${busy}\nthrow new Error('boom');`)).toMatchObject({ status: 1, signal: null });
});
test('a program that awaits its work ends by itself', () => {
  expect(run(`${busy}\nawait synchronize(); x.dispose(); w.dispose();`)).toMatchObject({
    status: 0,
    signal: null,
    stderr: '',
  });
});
test('a program that does not await ends by itself', () => {
  expect(run(busy)).toMatchObject({ status: 0, signal: null });
});
test('workers use the addon on their own and may be terminated in the middle', () => {
  const code = `
    import { Worker } from 'node:worker_threads';
    const source = ${JSON.stringify(busy)} + "\\n import { parentPort } from 'node:worker_threads'; parentPort.postMessage(1); await synchronize();";
    for (let i = 0; i < 8; i++) {
      const w = new Worker(new URL('data:text/javascript,' + encodeURIComponent(source)));
      await new Promise((resolve, reject) => { w.once('message', resolve); w.once('error', reject); });
      await w.terminate();
    }`;
  expect(run(code)).toMatchObject({ status: 0, signal: null, stderr: '' });
});
