/** Every op's case table, timed: µs, GB/s, GFLOP/s and the share of the roofline, after a correctness check. */
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { ConfigError } from '../lib/errors.js';
import { native } from '../lib/native.js';
import { backward, noGrad, Param, requireGrad } from '../lib/tape.js';
import { type DeviceName, empty, memory, resetPeak, type Tensor, tensor } from '../lib/tensor.js';
import { checkCase, type OpCase, type OpTable } from '../test/harness.js';
import { circumstances, copyRate, matmulRate, save, time } from './measure.js';

function inputs(c: OpCase, device: DeviceName): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(c.inputs).map(([name, x]) => {
      if (x.kind !== 'param') {
        const t = tensor(x.data, x.shape, device);
        return [name, x.kind === 'input' ? requireGrad(t) : t];
      }
      const p = new Param(
        native().allocate(device === 'cpu' ? 0 : 1, x.data.byteLength, 0),
        x.shape,
        'f32',
        device,
        name,
      );
      p.write(x.data);
      p.grad = empty(x.shape, 'f32', device).zero();
      return [name, p];
    }),
  );
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      op: { type: 'string' },
      json: { type: 'string' },
      device: { type: 'string', default: 'cpu' },
    },
  });
  const device = values.device as DeviceName;
  const folder = join(dirname(fileURLToPath(import.meta.url)), '..', 'test', 'ops');
  const tables = readdirSync(folder)
    .filter((f) => f.endsWith('.js'))
    .map((f) => f.slice(0, -3))
    .sort();
  if (values.op !== undefined && !tables.includes(values.op))
    throw new ConfigError(
      `bench ops: there is no op "${values.op}"; the ops are ${tables.join(', ')}`,
    );
  const flops = await matmulRate(device, 'f32'),
    bytes = await copyRate(device);
  console.log(
    `ceilings measured now on ${circumstances(device)['device']}: matmul ${(flops / 1e9).toFixed(0)} GFLOP/s (f32), copy ${(bytes / 1e9).toFixed(1)} GB/s`,
  );
  console.log(
    `${'op'.padEnd(24)}${'case'.padEnd(44)}${'pass'.padEnd(10)}${'µs'.padStart(9)}${'GB/s'.padStart(8)}${'GFLOP/s'.padStart(9)}${'roofline'.padStart(10)}${'peak MiB'.padStart(10)}`,
  );
  for (const name of values.op === undefined ? tables : [values.op]) {
    const table = (await import(pathToFileURL(join(folder, `${name}.js`)).href)) as OpTable;
    if (!table.bench) {
      if (values.op !== undefined)
        throw new ConfigError(`bench ops: ${name} has no cases to time, only those of its test`);
      continue;
    }
    const wrong = await checkCase(table.cases[0]!, device, 'f32');
    if (wrong.length)
      throw new Error(`${name} is wrong, timing it would mean nothing: ${wrong.join('; ')}`);
    for (const c of table.bench()) {
      const t = inputs(c, device);
      const passes: ['forward' | 'backward', () => void][] = [
        ['forward', () => noGrad(() => c.run(t))],
      ];
      if (c.gradients !== false) {
        passes.push([
          'backward',
          () => {
            const roots = Object.entries(c.run(t)).map(([k, y]): [Tensor, Tensor | number] => [
              y,
              k === 'loss' ? 1 : empty(y.shape, y.dtype, device),
            ]);
            backward(roots);
          },
        ]);
      }
      let forward = 0;
      for (const [pass, fn] of passes) {
        resetPeak(device);
        const before = memory(device).live;
        const { median, ...spread } = await time(fn, device);
        // A backward pass is timed with its forward; a loss that makes its gradients in the forward pass has no other.
        const seconds = pass === 'forward' ? (forward = median) : Math.max(median - forward, 1e-9);
        const f = c.flops?.[pass] ?? 0,
          b = c.bytes?.[pass] ?? 0;
        const roofline = Math.max(f / flops, b / bytes) / seconds;
        const m = memory(device),
          peak = m.peak + m.scratchPeak - before;
        console.log(
          `${name.padEnd(24)}${c.name.padEnd(44)}${pass.padEnd(10)}${(seconds * 1e6).toFixed(0).padStart(9)}` +
            `${(b / seconds / 1e9).toFixed(1).padStart(8)}${(f / seconds / 1e9).toFixed(1).padStart(9)}${`${(100 * roofline).toFixed(0)} %`.padStart(10)}${(peak / 2 ** 20).toFixed(1).padStart(10)}`,
        );
        save(values.json, {
          ...circumstances(device),
          op: name,
          case: c.name,
          pass,
          seconds,
          ...spread,
          bytes: b,
          flops: f,
          roofline,
          peakBytes: peak,
          matmulRate: flops,
          copyRate: bytes,
        });
      }
      for (const x of Object.values(t)) {
        if (x instanceof Param) x.grad?.dispose();
        x.dispose();
      }
    }
  }
}
