/**
 * Our CUDA kernels and PyTorch's on the same GPU, in turns within one run: seconds (median of the rounds) and the ratio to
 * the fastest PyTorch variant. `--small` is a smoke test of the whole way on any device; its figures mean nothing.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { type ModelConfig, modelConfig } from '../lib/model/config.js';
import { imageFlops, textFlops } from '../lib/model/flops.js';
import { ParamStore } from '../lib/model/params.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { adamwStep, sumOfSquares } from '../lib/ops/adamw.js';
import { attention } from '../lib/ops/attention.js';
import { cast } from '../lib/ops/elementwise.js';
import { initialize } from '../lib/ops/init.js';
import { layerNorm } from '../lib/ops/layer_norm.js';
import { linearCrossEntropy } from '../lib/ops/linear_cross_entropy.js';
import { patchEmbed } from '../lib/ops/patch_embed.js';
import { sigmoidLoss } from '../lib/ops/sigmoid_loss.js';
import { AdamW } from '../lib/optim/optimizer.js';
import { RecordedStep } from '../lib/record.js';
import { backward, noGrad, requireGrad } from '../lib/tape.js';
import {
  type DeviceName,
  deviceName,
  empty,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../lib/tensor.js';
import { circumstances, matmulRate, save } from './measure.js';
import { findPython, peerEnvironment, script } from './peers/pytorch/peer.js';

type Times = { forward?: number; both: number };
interface Case {
  what: string;
  [size: string]: unknown;
}
/** One case of ours: `forward` and `both` enqueue the work once. */
interface Ours {
  forward?: () => void;
  both: () => void;
  flops?: number;
  dispose(): void;
}

const median = (v: number[]): number =>
  v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

/** Random values of a type, made on the device. */
function random(
  shape: number[],
  dtype: 'f32' | 'bf16',
  device: DeviceName,
  stream: number,
): Tensor {
  const wide = empty(shape, 'f32', device);
  initialize(wide, { kind: 'normal', std: 1 }, 1, stream);
  if (dtype === 'f32') return wide;
  const narrow = noGrad(() => cast(wide, 'bf16'));
  wide.dispose();
  return narrow;
}

function ours(c: Case, device: DeviceName): Ours {
  const n = (key: string): number => c[key] as number;
  const held: Tensor[] = [];
  const keep = <T extends Tensor>(t: T): T => (held.push(t), t);
  const stores: { dispose(): void }[] = [];
  const dispose = (): void => {
    for (const t of [...held, ...stores]) t.dispose();
  };
  const params = (shapes: Record<string, number[]>, dtype: 'f32' | 'bf16'): ParamStore => {
    const store = new ParamStore(
      Object.entries(shapes).map(([name, shape]) => ({
        name,
        shape,
        decay: true,
        init: { kind: 'normal', std: 0.02 },
      })) as never,
      { device, dtype, train: true },
    );
    store.initialize(0);
    stores.push(store);
    return store;
  };
  switch (c.what) {
    case 'attention': {
      const [B, H, N, D] = [n('B'), n('H'), n('N'), n('D')];
      const qkv = requireGrad(keep(random([B, N, 3 * H * D], 'bf16', device, 0))),
        dy = keep(random([B, N, H * D], 'bf16', device, 1));
      return {
        forward: () => noGrad(() => attention(qkv, H)),
        both: () => backward([[attention(qkv, H), dy]]),
        flops: 14 * B * H * N * N * D,
        dispose,
      };
    }
    case 'sigmoid_loss': {
      const [B, D] = [n('B'), n('D')],
        p = params({ scale: [1], bias: [1] }, 'f32');
      const x = requireGrad(keep(random([B, D], 'bf16', device, 0))),
        y = requireGrad(keep(random([B, D], 'bf16', device, 1)));
      const loss = (): Tensor => sigmoidLoss(x, y, p.get('scale'), p.get('bias'));
      return {
        forward: () => noGrad(loss),
        both: () => backward(loss()),
        flops: 6 * B * B * D,
        dispose,
      };
    }
    case 'patch_embed': {
      const [B, S, P, D] = [n('B'), n('S'), n('P'), n('D')],
        N = Math.floor(S / P) ** 2;
      const p = params({ weight: [D, 3, P, P], bias: [D], position: [N, D] }, 'bf16');
      const images = keep(empty([B, S, S, 3], 'u8', device).zero()),
        dy = keep(random([B, N, D], 'bf16', device, 1));
      const run = (): Tensor =>
        patchEmbed(images, p.get('weight'), p.get('bias'), p.get('position'), {
          patch: P,
          dtype: 'bf16',
        });
      return {
        forward: () => noGrad(run),
        both: () => backward([[run(), dy]]),
        flops: 12 * B * N * P * P * D,
        dispose,
      };
    }
    case 'linear_cross_entropy': {
      const [R, V, D] = [n('R'), n('V'), n('D')],
        p = params({ weight: [V, D], bias: [V] }, 'bf16');
      const h = requireGrad(keep(random([R, D], 'bf16', device, 0))),
        targets = keep(
          tensor(
            new Int32Array(R).map((_, i) => (i * 7919) % V),
            [R],
            device,
          ),
        );
      const loss = (): Tensor => linearCrossEntropy(h, p.get('weight'), p.get('bias'), targets);
      return {
        forward: () => noGrad(loss),
        both: () => backward(loss()),
        flops: 6 * R * V * D,
        dispose,
      };
    }
    case 'layer_norm': {
      const [R, C] = [n('R'), n('C')],
        p = params({ weight: [C], bias: [C] }, 'f32');
      const x = requireGrad(keep(random([R, C], 'bf16', device, 0))),
        dy = keep(random([R, C], 'bf16', device, 1));
      const run = (): Tensor => layerNorm(x, p.get('weight'), p.get('bias'));
      return { forward: () => noGrad(run), both: () => backward([[run(), dy]]), dispose };
    }
    case 'adamw': {
      const N = n('N'),
        all = {
          param: keep(random([N], 'f32', device, 0)),
          m: keep(zeros([N], 'f32', device)),
          v: keep(zeros([N], 'f32', device)),
          grad: keep(random([N], 'f32', device, 1)),
        };
      const norm2 = keep(empty([1], 'f32', device)),
        segments = keep(tensor(Int32Array.of(N, 1), [1, 2], device)),
        lrScale = keep(tensor(Float32Array.of(1), [1], device));
      return {
        both() {
          sumOfSquares(norm2, all.grad);
          adamwStep({
            ...all,
            ema: null,
            copy: null,
            norm2,
            segments,
            lrScale,
            step: 1,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 1e-5,
            clip: 1,
            emaDecay: 0,
          });
        },
        dispose,
      };
    }
    case 'step': {
      const config = c['config'] as ModelConfig,
        B = n('B'),
        S = config.vision.imageSize,
        L = config.text.length;
      const model = new Siglip2Model(config, { device, dtype: 'bf16', train: true });
      model.initialize(0);
      const optimizer = new AdamW(model.params, {
        lr: 1e-3,
        weightDecay: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        clip: 1,
        lrScale: {},
        ema: null,
      });
      const images = keep(zeros([B, S, S, 3], 'u8', device)),
        ids = keep(
          tensor(
            new Int32Array(B * L).map((_, i) => i % config.text.vocab),
            [B, L],
            device,
          ),
        );
      const step = new RecordedStep(device, () => {
        const x = model.encodeImages(images),
          y = model.encodeTexts(ids);
        model.params.zeroGrad();
        const loss = sigmoidLoss(x, y, model.logitScale, model.logitBias);
        backward(loss);
        optimizer.apply();
        return loss;
      });
      stores.push(step, optimizer, model);
      return {
        both() {
          optimizer.advance(1);
          step.run(() => undefined);
        },
        flops: 3 * B * (imageFlops(config) + textFlops(config)),
        dispose,
      };
    }
    default:
      throw new Error(`no case ${c.what}`);
  }
}

async function secondsOf(fn: () => void, device: DeviceName, budget: number): Promise<number> {
  for (let i = 0; i < 3; i++)
    scope(() => {
      fn();
    });
  await synchronize(device);
  let count = 0;
  const start = performance.now();
  do {
    // In batches, so that waiting for the GPU is not part of short kernels.
    for (let i = 0; i < 10; i++)
      scope(() => {
        fn();
      });
    await synchronize(device);
    count += 10;
  } while (performance.now() - start < budget * 1000);
  return (performance.now() - start) / 1000 / count;
}

/** PyTorch on one case: `measure()` is one round. */
async function startPeer(python: string, c: Case, device: DeviceName, seconds: number) {
  const child = spawn(
    python,
    [
      script('gpu_kernels.py'),
      JSON.stringify(c),
      '--device',
      device === 'cpu' ? 'cpu' : 'cuda',
      '--seconds',
      String(seconds),
    ],
    { stdio: ['pipe', 'pipe', 'inherit'], env: peerEnvironment() },
  );
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async (): Promise<never> => {
    const { value, done } = (await lines.next()) as { value: string; done: boolean };
    if (done) throw new Error('PyTorch ended before it answered; its own message is above');
    return JSON.parse(value) as never;
  };
  const info = (await next()) as {
    ready: string[];
    missing: Record<string, string>;
    torch: string;
    gpu: string;
  };
  return {
    info,
    async measure(): Promise<Record<string, Times>> {
      child.stdin.write('go\n');
      return await next();
    },
    close: (): void => {
      child.stdin.end();
    },
  };
}

function cases(small: boolean): Case[] {
  const model = (name: string, B: number): Case => ({ what: 'step', B, config: modelConfig(name) });
  if (small) {
    return [
      { what: 'attention', B: 2, H: 2, N: 16, D: 8 },
      { what: 'sigmoid_loss', B: 24, D: 16, chunk: 8 },
      { what: 'patch_embed', B: 2, S: 16, P: 8, D: 16 },
      { what: 'linear_cross_entropy', R: 12, V: 40, D: 16, chunk: 5 },
      { what: 'layer_norm', R: 8, C: 64 },
      { what: 'adamw', N: 1000 },
      model('test', 4),
    ];
  }
  return [
    { what: 'attention', B: 256, H: 12, N: 256, D: 64 },
    { what: 'attention', B: 64, H: 16, N: 1024, D: 72 },
    { what: 'attention', B: 64, H: 12, N: 1024, D: 64 },
    { what: 'sigmoid_loss', B: 32768, D: 768 },
    { what: 'patch_embed', B: 256, S: 256, P: 16, D: 768 },
    { what: 'linear_cross_entropy', R: 8192, V: 256000, D: 768 },
    { what: 'layer_norm', R: 65536, C: 768 },
    { what: 'adamw', N: 370_000_000 },
    model('B/16', 512),
    model('So400m/16', 128),
  ];
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: 'string', default: 'cuda' },
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '0.3' },
      only: { type: 'string' },
      small: { type: 'boolean', default: false },
      json: { type: 'string' },
    },
  });
  const device = values.device as DeviceName,
    python = findPython(),
    seconds = Number(values.seconds);
  console.log(
    `${deviceName(device)}; ${python ? `PyTorch by ${python}` : 'no Python with PyTorch here: our figures alone'}`,
  );
  const rate = values.small ? NaN : await matmulRate(device, 'bf16', 65536);
  for (const c of cases(values.small)) {
    if (values.only && c.what !== values.only) continue;
    const { config, ...sizes } = c as { config?: ModelConfig };
    const label = `${Object.entries(sizes)
      .map(([k, v]) => (k === 'what' ? v : `${k} ${v}`))
      .join(' ')}${config ? ` ${config.name}` : ''}`;
    resetPeak(device);
    const our = ours(c, device),
      peer = python ? await startPeer(python, c, device, seconds) : undefined;
    const mine: Times[] = [],
      theirs: Record<string, Times>[] = [];
    for (let r = 0; r < Number(values.rounds); r++) {
      mine.push({
        ...(our.forward ? { forward: await secondsOf(our.forward, device, seconds) } : {}),
        both: await secondsOf(our.both, device, seconds),
      });
      if (peer) theirs.push(await peer.measure());
    }
    const m = memory(device);
    const record: Record<string, unknown> = {
      ...circumstances(device),
      what: 'cuda',
      case: label,
      peakBytes: m.peak + m.scratchPeak,
      matmulRate: rate,
      peer: peer?.info,
    };
    for (const pass of ['forward', 'backward', 'both'] as const) {
      const of = (t: Times): number => (pass === 'backward' ? t.both - t.forward! : t[pass]!);
      const us = median(mine.map(of)),
        best = (peer?.info.ready ?? [])
          .map((name) => ({ name, seconds: median(theirs.map((t) => of(t[name]!))) }))
          .filter((v) => v.seconds > 0)
          .sort((a, b) => a.seconds - b.seconds);
      if (!(us > 0)) continue;
      record[pass] = { seconds: us, peers: best };
      console.log(
        `${label.padEnd(44)} ${pass.padEnd(9)} ${(us * 1e6).toFixed(0).padStart(8)} µs` +
          `${pass === 'both' && our.flops ? ` ${(our.flops / us / 1e12).toFixed(1).padStart(6)} TFLOP/s` : ''}` +
          `${best.map((v) => `   ${v.name} ${(v.seconds * 1e6).toFixed(0)} µs (${(v.seconds / us).toFixed(2)} ×)`).join('')}`,
      );
    }
    save(values.json, record);
    peer?.close();
    our.dispose();
  }
}
