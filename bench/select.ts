/**
 * Joint selection at a real size: time, arithmetic rate and memory beyond the embeddings.
 * `--super 65536 --batch 32768 --chunks 16 --dim 768 [--dtype bf16] [--device cuda]`
 */
import { parseArgs } from 'node:util';
import type { PairEmbeddings } from '../lib/ops/pair_scores.js';
import { type DeviceName, memory, resetPeak, synchronize, tensor } from '../lib/tensor.js';
import { selectBatch } from '../lib/train/selection/select.js';
import { generator, toBf16 } from '../test/harness.js';

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      super: { type: 'string', default: '65536' },
      batch: { type: 'string', default: '32768' },
      chunks: { type: 'string', default: '16' },
      dim: { type: 'string', default: '768' },
      dtype: { type: 'string', default: 'f32' },
      device: { type: 'string', default: 'cpu' },
    },
  });
  const B = Number(values.super),
    batch = Number(values.batch),
    chunks = Number(values.chunks),
    D = Number(values.dim);
  const device = values.device as DeviceName,
    r = generator(1),
    scale = Math.sqrt(3 / D);
  const rows = () => {
    const data = Float32Array.from({ length: B * D }, () => scale * r());
    return tensor(values.dtype === 'bf16' ? Uint16Array.from(data, toBf16) : data, [B, D], device);
  };
  const model = (): PairEmbeddings => ({
    x: rows(),
    y: rows(),
    logScale: tensor(Float32Array.of(Math.log(10)), [1], device),
    bias: tensor(Float32Array.of(-10), [1], device),
  });
  const learner = model(),
    reference = model();
  await synchronize(device);
  resetPeak(device);
  const { live } = memory(device),
    start = performance.now();
  await selectBatch(learner, reference, {
    filterRatio: 1 - batch / B,
    chunks,
    gain: 1,
    score: 'learnability',
    seed: 1,
    step: 0,
  });
  const seconds = (performance.now() - start) / 1e3,
    { peak, scratchPeak } = memory(device);
  // The last chunk is drawn and not multiplied.
  const flops = 8 * B * Math.floor(((chunks - 1) * batch) / chunks) * D;
  console.log(
    `super-batch ${B} × ${D} ${values.dtype}, batch ${batch} in ${chunks} chunks: ${seconds.toFixed(2)} s, ` +
      `${(flops / seconds / 1e9).toFixed(0)} GFLOP/s, ${((peak - live + scratchPeak) / 2 ** 20).toFixed(1)} MiB beyond the embeddings`,
  );
}
