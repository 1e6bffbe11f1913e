/**
 * `npm run bench -- vocabulary`: the cross-entropy over the whole vocabulary. Memory that it takes beyond weights and
 * gradients, beside what the logits would take; its time alone, and its share of a captioning step (forward and backward
 * of both towers, decoder and losses, three sequences per image).
 */
import { parseArgs } from 'node:util';
import { captionBatch, captionLoss } from '../lib/losses/caption.js';
import { contrastiveLoss } from '../lib/losses/sigmoid.js';
import { modelConfig } from '../lib/model/config.js';
import { ParamStore } from '../lib/model/params.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { linearCrossEntropy } from '../lib/ops/linear_cross_entropy.js';
import { backward, requireGrad } from '../lib/tape.js';
import {
  type DeviceName,
  deviceName,
  memory,
  resetPeak,
  scope,
  synchronize,
  takeProfile,
  tensor,
  zeros,
} from '../lib/tensor.js';
import { TASKS } from '../lib/train/objectives.js';
import { circumstances, save } from './measure.js';

const median = (v: number[]): number =>
  v.slice().sort((a, b) => a - b)[Math.floor(v.length / 2)] ?? NaN;

/** Median seconds of a call, its device work included, after one that warms up. */
async function secondsOf(fn: () => void, device: DeviceName, rounds: number): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i <= rounds; i++) {
    const start = performance.now();
    scope(() => {
      fn();
    });
    await synchronize(device);
    if (i > 0) times.push((performance.now() - start) / 1000);
    else takeProfile(device);
  }
  return median(times);
}

const ids = (n: number, vocab: number): Int32Array =>
  new Int32Array(n).map((_, i) => (i * 7919) % vocab);

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      tokens: { type: 'string', default: '2048' },
      vocab: { type: 'string', default: '256000' },
      model: { type: 'string', default: 'B/16' },
      dtype: { type: 'string', default: 'f32' },
      device: { type: 'string', default: 'cpu' },
      rounds: { type: 'string', default: '3' },
      'loss-only': { type: 'boolean', default: false },
      'text-width': { type: 'string' },
      json: { type: 'string' },
    },
  });
  const device = values.device as DeviceName,
    dtype = values.dtype as 'f32' | 'bf16',
    rounds = Number(values.rounds);
  const R = Number(values.tokens),
    V = Number(values.vocab);
  const full = modelConfig(values.model, { vocab: V, decoder: {} }),
    { width: D, length: L } = full.decoder!;
  // A narrow text tower, with a small token table, for machines that cannot hold three tables of this vocabulary.
  const narrow = Number(values['text-width'] ?? full.text.width);
  const config =
    narrow === full.text.width
      ? full
      : modelConfig(values.model, {
          vocab: V,
          decoder: full.decoder!,
          text: { width: narrow, heads: 2, mlp: 4 * narrow },
        });
  const MiB = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

  const init = { kind: 'normal', std: 0.02 } as const;
  const head = new ParamStore(
    [
      { name: 'weight', shape: [V, D], decay: true, init },
      { name: 'bias', shape: [V], decay: false, init },
    ],
    { device, dtype, train: true },
  );
  head.initialize(0);
  const h = requireGrad(zeros([R, D], dtype, device)),
    targets = tensor(ids(R, V), [R], device);
  await synchronize(device);
  resetPeak(device);
  const before = memory(device).live;
  const lossAlone = (): void => {
    backward(linearCrossEntropy(h, head.get('weight'), head.get('bias'), targets));
  };
  const seconds = await secondsOf(lossAlone, device, rounds);
  const m = memory(device),
    beyond = m.peak - before + m.scratchPeak;
  for (const t of [h, targets, head]) t.dispose();
  console.log(
    `${R} tokens × ${V} × ${D}, ${dtype} on ${deviceName(device)}: ${MiB(beyond)} beyond weights and gradients ` +
      `(the logits: ${MiB(4 * R * V)}), ${seconds.toFixed(3)} s, ${((6 * R * V * D) / seconds / 1e9).toFixed(0)} GFLOP/s`,
  );
  const record = {
    ...circumstances(device),
    what: 'vocabulary',
    tokens: R,
    vocab: V,
    width: D,
    dtype,
    beyondBytes: beyond,
    seconds,
  };
  if (values['loss-only']) return save(values.json, record);

  const B = Math.ceil(R / (TASKS.length * L)),
    S = config.vision.imageSize,
    T = config.text.length,
    tokens = TASKS.length * B * L;
  using model = new Siglip2Model(config, { device, dtype, train: true });
  model.initialize(0);
  const sequence = { ids: ids(L, V), prefix: 0 };
  const captions = captionBatch(
    TASKS.map(() => new Array<typeof sequence>(B).fill(sequence)),
    { length: L, mask: V },
  );
  const step = await secondsOf(
    () => {
      model.params.zeroGrad();
      const image = model.imageTokens(zeros([B, S, S, 3], 'u8', device));
      const texts = model.encodeTexts(tensor(ids(B * T, V), [B, T], device));
      const [sigmoid] = contrastiveLoss(model, model.poolTokens(image), [texts]);
      backward([
        [sigmoid!, 1],
        [captionLoss(model, image, captions), 1],
      ]);
    },
    device,
    rounds,
  );
  const profile = takeProfile(device),
    all = profile.reduce((t, o) => t + o.seconds, 0);
  const own = profile.find((o) => o.op.startsWith('linear_cross_entropy'))?.seconds;
  // Where the device does not time its ops, the loss alone stands in.
  const share = own !== undefined ? own / all : (seconds * tokens) / R / step;
  console.log(
    `captioning step of ${config.name}, ${B} images, ${tokens} tokens: ${step.toFixed(3)} s, ` +
      `of which the vocabulary loss ${(100 * share).toFixed(0)} %`,
  );
  save(values.json, {
    ...record,
    model: config.name,
    images: B,
    stepTokens: tokens,
    stepSeconds: step,
    share,
  });
}
