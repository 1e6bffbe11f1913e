/**
 * Linear-probe segmentation (TIPS §4.1, SigLIP 2 Table 2): one linear layer on frozen patch tokens says what each patch
 * shows; its scores, enlarged to pixels, are compared with the exact mask. Tokens are standardised per channel, as the
 * protocol's BatchNorm does; the pooled vector is left out, so that nothing but the tokens is judged.
 */
import { check } from '../check.js';
import { inBatches } from '../inference/embed.js';
import type { ParameterShape } from '../model/params.js';
import { ParamStore } from '../model/params.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { cast } from '../ops/elementwise.js';
import { linear } from '../ops/linear.js';
import { resizeBilinear } from '../ops/resize_bilinear.js';
import { softmaxCrossEntropy } from '../ops/softmax_cross_entropy.js';
import { AdamW } from '../optim/optimizer.js';
import { Random, Stream, shuffle } from '../random.js';
import { backward, noGrad } from '../tape.js';
import { scope, type Tensor, tensor } from '../tensor.js';
import type { SceneSet } from './scenes.js';

export interface SegmentationOptions {
  /** Passes over the training tokens. Default 20. */
  epochs?: number;
  /** Falls linearly to 0. Default 3e-3. */
  lr?: number;
  /** Images in one update. Default 32. */
  batch?: number;
  /** Order of the images. */
  seed?: number;
}

/** Fractions in [0, 1], over all pixels of the test scenes. */
export interface SegmentationScores {
  /** Intersection over union, mean over the labels in the test masks, background included. */
  miou: number;
  /** IoU of everything that is no background, as one. */
  objectIou: number;
  /** Pixels with the right label. */
  accuracy: number;
  /** `miou` of calling everything background. */
  chance: number;
}

/** Images in one call of the model. */
const IMAGES = 64;

/**
 * Fits the probe to `train` and scores it on `test`; both have the model's image size.
 * @throws ShapeError when they do not fit together
 */
export async function segmentationProbe(
  model: Siglip2Model,
  train: SceneSet,
  test: SceneSet,
  options: SegmentationOptions = {},
): Promise<SegmentationScores> {
  const { epochs = 20, lr = 3e-3, batch = 32, seed = 0 } = options,
    { patch, width: D } = model.config.vision;
  const C = train.labelCount,
    S = train.size,
    side = Math.floor(S / patch),
    N = side * side,
    device = model.params.device;
  check(
    test.labelCount === C && test.size === S,
    'segmentationProbe',
    `test must have ${C} labels and ${S} px like train but has ${test.labelCount} and ${test.size}`,
  );
  const shapes: ParameterShape[] = [
    { name: 'weight', shape: [C, D], init: { kind: 'zeros' }, decay: true },
    { name: 'bias', shape: [C], init: { kind: 'zeros' }, decay: false },
  ];
  const tokens = await frozenTokens(model, train.images),
    standard = standardiser(tokens, D);
  const labels = patchLabels(train, patch),
    n = labels.length / N;
  const probe = new ParamStore(shapes, { device, train: true });
  const optimizer = new AdamW(probe, {
    lr,
    weightDecay: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: null,
  });
  const logits = (x: Float32Array): Tensor =>
    linear(tensor(x, [x.length / D, D], device), probe.get('weight'), probe.get('bias'));
  try {
    probe.initialize(0);
    standard(tokens);
    const steps = epochs * Math.ceil(n / batch);
    for (let epoch = 0, step = 0; epoch < epochs; epoch++) {
      const order = shuffle(
        Array.from({ length: n }, (_, i) => i),
        new Random(seed, Stream.evaluation, epoch),
      );
      for (let from = 0; from < n; from += batch, step++) {
        const rows = order.slice(from, from + batch);
        const x = new Float32Array(rows.length * N * D),
          y = new Int32Array(rows.length * N);
        rows.forEach((r, i) => {
          x.set(tokens.subarray(r * N * D, (r + 1) * N * D), i * N * D);
          y.set(labels.subarray(r * N, (r + 1) * N), i * N);
        });
        probe.zeroGrad();
        scope(() => {
          backward([[softmaxCrossEntropy(logits(x), tensor(y, [y.length], device)), 1]]);
        });
        optimizer.update(1 - step / steps);
      }
    }
    const seen = await frozenTokens(model, test.images);
    standard(seen);
    const counts = new Confusion(C);
    for (let from = 0; from < seen.length; from += IMAGES * N * D) {
      const x = seen.subarray(from, from + IMAGES * N * D),
        images = x.length / (N * D);
      const pixels = scope(() =>
        noGrad(() => resizeBilinear(logits(x).reshape([images, side, side, C]), [S, S])),
      );
      const values = (await pixels.read()) as Float32Array,
        first = (from / (N * D)) * S * S;
      pixels.dispose();
      for (let p = 0; p < images * S * S; p++)
        counts.add(test.labels[first + p]!, largest(values, p * C, C));
    }
    return counts.scores();
  } finally {
    optimizer.dispose();
    probe.dispose();
  }
}

/** @param images (n, S, S, 3) @returns (n·N, D) patch tokens */
async function frozenTokens(model: Siglip2Model, images: Uint8Array): Promise<Float32Array> {
  const { imageSize: S, patch, width } = model.config.vision,
    one = S * S * 3,
    n = images.length / one;
  return inBatches(n, IMAGES, Math.floor(S / patch) ** 2 * width, (from, to) =>
    cast(
      model.imageTokens(
        tensor(images.subarray(from * one, to * one), [to - from, S, S, 3], model.params.device),
      ),
      'f32',
    ),
  );
}

/** Mean 0 and deviation 1 of every channel of the tokens given here; a function that does it to others in place. */
function standardiser(tokens: Float32Array, D: number): (x: Float32Array) => void {
  const sum = new Float64Array(D),
    squares = new Float64Array(D),
    n = tokens.length / D;
  tokens.forEach((v, i) => {
    sum[i % D]! += v;
    squares[i % D]! += v * v;
  });
  const mean = sum.map((v) => v / n),
    scale = squares.map((v, d) => 1 / Math.sqrt(Math.max(v / n - mean[d]! ** 2, 0) + 1e-5));
  return (x) => {
    for (let i = 0; i < x.length; i++) x[i] = (x[i]! - mean[i % D]!) * scale[i % D]!;
  };
}

/** (n·N) the label that most pixels of each patch have; of equal ones the lower. */
function patchLabels({ labels, size: S, labelCount: C }: SceneSet, patch: number): Int32Array {
  const side = Math.floor(S / patch),
    n = labels.length / (S * S),
    result = new Int32Array(n * side * side);
  const counts = new Float64Array(C);
  for (let t = 0; t < result.length; t++) {
    const image = Math.floor(t / (side * side)),
      y = Math.floor(t / side) % side,
      x = t % side;
    counts.fill(0);
    for (let p = 0; p < patch * patch; p++)
      counts[
        labels[(image * S + y * patch + Math.floor(p / patch)) * S + x * patch + (p % patch)]!
      ]!++;
    result[t] = largest(counts, 0, C);
  }
  return result;
}

/** Index, from `from` on, of the first largest of C values. */
function largest(values: ArrayLike<number>, from: number, C: number): number {
  let best = 0;
  for (let c = 1; c < C; c++) if (values[from + c]! > values[from + best]!) best = c;
  return best;
}

/** Pixels by right label and label found. */
class Confusion {
  readonly #counts: Float64Array;
  constructor(readonly labels: number) {
    this.#counts = new Float64Array(labels * labels);
  }

  add(right: number, found: number): void {
    this.#counts[right * this.labels + found]!++;
  }

  scores(): SegmentationScores {
    const { labels: C } = this,
      at = (right: number, found: number): number => this.#counts[right * C + found]!;
    const range = Array.from({ length: C }, (_, c) => c),
      sum = (of: (c: number) => number): number => range.reduce((n, c) => n + of(c), 0);
    const right = range.map((r) => sum((f) => at(r, f))),
      found = range.map((f) => sum((r) => at(r, f)));
    const all = right.reduce((a, b) => a + b, 0),
      present = range.filter((c) => right[c]! > 0);
    const ious = present.map((c) => at(c, c) / (right[c]! + found[c]! - at(c, c)));
    const background = at(0, 0),
      objects = all - right[0]! - found[0]! + background;
    return {
      miou: ious.reduce((a, b) => a + b, 0) / present.length,
      objectIou: objects / (all - background),
      accuracy: sum((c) => at(c, c)) / all,
      chance: right[0]! / all / present.length,
    };
  }
}
