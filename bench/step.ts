/**
 * A whole training step: forward, backward, optimizer. Prints images/s, model FLOP/s as a share of the device
 * library's own matrix product measured in the same run, peak bytes; with `--peer torch`, images/s of the same model
 * in PyTorch, the two alternating. With `--busy N`, the step alone and beside N processes that compute, alternating. With `--enqueue`, only what JavaScript and the addon spend on enqueuing a step; with
 * SIGLIP2_CUDA_DRY=1 and the cuda-host build, where kernels do nothing, any model size fits.
 */
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';
import { modelConfig } from '../lib/model/config.js';
import { imageFlops, textFlops } from '../lib/model/flops.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { native } from '../lib/native.js';
import { sigmoidLoss } from '../lib/ops/sigmoid_loss.js';
import { AdamW } from '../lib/optim/optimizer.js';
import { RecordedStep } from '../lib/record.js';
import { backward } from '../lib/tape.js';
import {
  activeThreads,
  type DeviceName,
  deviceName,
  memory,
  resetPeak,
  scope,
  synchronize,
  type Tensor,
  takeProfile,
  tensor,
} from '../lib/tensor.js';
import { circumstances, matmulRate, save } from './measure.js';
import { TorchStep } from './peers/pytorch/peer.js';

const median = (v: number[]): number =>
  v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

interface EnqueueTime {
  median: number;
  best: number;
  cpu: number;
}

/** Seconds until a step is enqueued, one by one and replayed; `cpu` is the process's own time, whatever else runs. */
async function enqueueTimes(
  device: DeviceName,
  rounds: number,
  optimizer: AdamW,
  step: () => Tensor,
): Promise<EnqueueTime[]> {
  const measure = async (once: () => void): Promise<EnqueueTime> => {
    const times: number[] = [],
      own: number[] = [];
    for (let i = 0; i < rounds + 3; i++) {
      const t0 = performance.now(),
        c0 = process.cpuUsage();
      optimizer.advance(1);
      once();
      const { user, system } = process.cpuUsage(c0);
      if (i >= 3) {
        // the first ones record and compile
        times.push((performance.now() - t0) / 1000);
        own.push((user + system) / 1e6);
      }
      await synchronize(device);
    }
    return { median: median(times), best: Math.min(...times), cpu: median(own) };
  };
  const whole = (): Tensor => {
    const loss = step();
    optimizer.apply();
    return loss;
  };
  using recorded = new RecordedStep(device, whole);
  return [
    await measure(() =>
      scope(() => {
        whole();
      }),
    ),
    await measure(() => recorded.run(() => undefined)),
  ];
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string', default: 'micro' },
      batch: { type: 'string', default: '64' },
      dtype: { type: 'string', default: 'f32' },
      device: { type: 'string', default: 'cpu' },
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '4' },
      profile: { type: 'boolean', default: false },
      enqueue: { type: 'boolean', default: false },
      vocab: { type: 'string' },
      length: { type: 'string' },
      peer: { type: 'string' },
      busy: { type: 'string' },
      json: { type: 'string' },
    },
  });
  const device = values.device as DeviceName,
    dtype = values.dtype as 'f32' | 'bf16',
    batch = Number(values.batch);
  const config = modelConfig(values.model, {
    ...(values.vocab
      ? { vocab: Number(values.vocab) }
      : values.model === 'micro'
        ? { vocab: 32768 }
        : {}),
    ...(values.length ? { length: Number(values.length) } : {}),
  });
  const S = config.vision.imageSize,
    L = config.text.length;
  const model = new Siglip2Model(config, { device, dtype, train: true });
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
  const random = (n: number, below: number): number[] =>
    Array.from({ length: n }, () => Math.floor(Math.random() * below));
  const pixels = Uint8Array.from(random(batch * S * S * 3, 256)),
    ids = Int32Array.from(random(batch * L, config.text.vocab));

  const forwardBackward = (images: Tensor, texts: Tensor): Tensor => {
    const x = model.encodeImages(images),
      y = model.encodeTexts(texts);
    model.params.zeroGrad();
    const loss = sigmoidLoss(x, y, model.logitScale, model.logitBias);
    backward(loss);
    return loss;
  };
  const pass = (): Tensor =>
    forwardBackward(tensor(pixels, [batch, S, S, 3], device), tensor(ids, [batch, L], device));
  if (values.enqueue) {
    const images = tensor(pixels, [batch, S, S, 3], device),
      texts = tensor(ids, [batch, L], device);
    const [eager, replayed] = await enqueueTimes(device, Number(values.rounds), optimizer, () =>
      forwardBackward(images, texts),
    );
    const record = {
      ...circumstances(device),
      what: 'enqueue',
      model: config.name,
      batch,
      dtype,
      eager,
      replayed,
    };
    console.log(
      `${config.name} batch ${batch} ${dtype} on ${deviceName(device)}, ${values.rounds} steps`,
    );
    for (const [name, t] of [
      ['enqueuing one step', eager!],
      ['recorded, replayed', replayed!],
    ] as const) {
      console.log(
        `  ${name.padEnd(22)} median ${(t.median * 1e3).toFixed(3)} ms   best ${(t.best * 1e3).toFixed(3)} ms   ` +
          `CPU time ${(t.cpu * 1e3).toFixed(3)} ms`,
      );
    }
    save(values.json, record);
    for (const t of [images, texts]) t.dispose();
    optimizer.dispose();
    model.dispose();
    return;
  }
  const timed = async (seconds: number, update: boolean): Promise<number> => {
    const t0 = performance.now();
    let steps = 0;
    do {
      scope(() => {
        pass();
        if (update) optimizer.update(1);
      });
      await synchronize(device);
      steps++;
    } while (performance.now() - t0 < seconds * 1000);
    return (performance.now() - t0) / 1000 / steps;
  };

  await timed(1, true);
  if (values.busy !== undefined) {
    const idle: number[] = [],
      beside: number[] = [],
      threads: number[] = [],
      seconds = Number(values.seconds);
    for (let r = 0; r < Number(values.rounds); r++) {
      idle.push(await timed(seconds, true));
      const others = Array.from({ length: Number(values.busy) }, () =>
        spawn(process.execPath, ['-e', 'for (;;);']),
      );
      await new Promise((done) => setTimeout(done, 300));
      beside.push(await timed(seconds, true));
      threads.push(activeThreads(device));
      for (const other of others) other.kill('SIGKILL');
      await timed(1, true); // the team grows again
    }
    const times = (v: number[]): string =>
      `${(median(v) * 1e3).toFixed(1)} ms (${v.map((x) => (x * 1e3).toFixed(1)).join(', ')})`;
    console.log(
      `${config.name} batch ${batch} ${dtype} on ${deviceName(device)}, ${native().buildInfo().threads} threads, step with AdamW`,
    );
    console.log(`  alone                  ${times(idle)}`);
    console.log(
      `  beside ${values.busy} processes     ${times(beside)}   threads at work ${threads.join(', ')}`,
    );
    console.log(`  ratio                  ${(median(beside) / median(idle)).toFixed(2)}`);
    save(values.json, {
      ...circumstances(device),
      what: 'busy',
      model: config.name,
      batch,
      dtype,
      processes: Number(values.busy),
      idle,
      busy: beside,
      activeThreads: threads,
    });
    optimizer.dispose();
    model.dispose();
    return;
  }
  resetPeak(device);
  if (values.profile) {
    takeProfile(device);
    const step = await timed(Number(values.seconds), true),
      table = takeProfile(device);
    const all = table.reduce((t, o) => t + o.seconds, 0),
      n = table.find((o) => o.op === 'adamw_step')!.calls;
    console.log(
      `one step ${(step * 1e3).toFixed(2)} ms, of which kernels ${((all / n) * 1e3).toFixed(2)} ms:`,
    );
    for (const o of table)
      console.log(
        `  ${o.op.padEnd(30)} ${String(o.calls / n).padStart(5)} calls ${((o.seconds / n) * 1e3).toFixed(3).padStart(9)} ms ${((100 * o.seconds) / all).toFixed(1).padStart(6)} %`,
      );
  }
  const torch =
    values.peer === 'torch'
      ? await TorchStep.start(config, batch, native().buildInfo().threads)
      : null;
  const flops = 3 * batch * (imageFlops(config) + textFlops(config));
  const ours: number[] = [],
    theirs: number[] = [],
    passes: number[] = [],
    rates: number[] = [];
  let torchSteps = 1,
    peak = 0,
    workspace = 0;
  for (let r = 0; r < Number(values.rounds); r++) {
    rates.push(
      await matmulRate(
        device,
        dtype,
        (batch * config.vision.imageSize ** 2) / config.vision.patch ** 2,
      ),
    );
    resetPeak(device); // of the steps alone, not of the product just timed
    passes.push(await timed(Number(values.seconds), false));
    ours.push(await timed(Number(values.seconds), true));
    const m = memory(device);
    [peak, workspace] = [
      Math.max(peak, m.peak + m.scratchPeak),
      Math.max(workspace, m.scratchPeak),
    ];
    if (torch) {
      const t = await torch.run(torchSteps);
      theirs.push(t.seconds / t.steps);
      torchSteps = Math.max(1, Math.round(Number(values.seconds) / (t.seconds / t.steps)));
    }
  }
  const step = median(ours),
    rate = median(rates),
    share = flops / median(passes) / rate;
  const record: Record<string, unknown> = {
    ...circumstances(device),
    what: 'step',
    model: config.name,
    batch,
    dtype,
    stepSeconds: step,
    imagesPerSecond: batch / step,
    passSeconds: median(passes),
    modelFlops: flops,
    modelFlopRate: flops / median(passes),
    matmulRate: rate,
    share,
    peakBytes: peak,
    workspaceBytes: workspace,
  };
  console.log(
    `${config.name} batch ${batch} ${dtype} on ${String(record['device'])} (${String(record['cpu'])}, ${String(record['threads'])} threads), medians of ${ours.length} rounds`,
  );
  console.log(
    `  step with AdamW        ${(step * 1e3).toFixed(1)} ms   ${(batch / step).toFixed(1)} images/s`,
  );
  console.log(
    `  forward + backward     ${(median(passes) * 1e3).toFixed(1)} ms   ${(flops / median(passes) / 1e9).toFixed(1)} model GFLOP/s`,
  );
  console.log(
    `  matrix product alone   ${(rate / 1e9).toFixed(1)} GFLOP/s (oneDNN, same run)   model share ${(100 * share).toFixed(1)} %`,
  );
  console.log(
    `  peak memory            ${(peak / 2 ** 20).toFixed(0)} MiB, of which kernel workspace ${(workspace / 2 ** 20).toFixed(0)}`,
  );
  if (torch) {
    // Each of our rounds beside the round of PyTorch that followed it; the first of theirs warms up.
    const ratios = ours.map((o, i) => theirs[i]! / o).slice(1);
    console.log(
      `  PyTorch ${torch.info.torch} (${torch.info.blas}, matmul ${torch.info.matmulGflops} GFLOP/s)   ` +
        `${(batch / median(theirs.slice(1))).toFixed(1)} images/s   ours/theirs ${median(ratios).toFixed(2)} (${ratios.map((x) => x.toFixed(2)).join(', ')})`,
    );
    Object.assign(record, {
      torch: torch.info,
      torchStepSeconds: median(theirs.slice(1)),
      ratio: median(ratios),
      ratios,
    });
    await torch.close();
  }
  save(values.json, record);
  optimizer.dispose();
  model.dispose();
}
