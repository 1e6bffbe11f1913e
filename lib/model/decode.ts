/**
 * Writing with the caption decoder: greedy and beam search with cached keys and values. A sequence may begin with
 * tokens that are forced, a task's name and a query: `aref: phrase :` asks for a box, `gcap: [box] :` for a phrase.
 * For evaluation; nothing is recorded on the tape.
 */
import { check } from '../check.js';
import { crossAttention } from '../ops/attention.js';
import { copyRows } from '../ops/copy_rows.js';
import { cast } from '../ops/elementwise.js';
import { linear } from '../ops/linear.js';
import { noGrad } from '../tape.js';
import { batchInvariant, empty, scope, type Tensor, tensor } from '../tensor.js';
import { EOS } from '../text/tokenizer.js';
import { decoderEmbed, decoderLayers, decoderNorm } from './decoder.js';
import type { Siglip2Model } from './siglip2.js';

export interface DecodeOptions {
  /** Sequences kept per image; 1, the default, is greedy search. */
  beams?: number;
  /** Most tokens, forced ones included; decoder.length by default. */
  length?: number;
  /** A beam is ranked by log-probability / tokens^alpha: 0, the default, is the plain probability, 1 the mean. */
  lengthPenalty?: number;
  /** (B) i32: tokens of each image that are real; all by default. */
  imageLengths?: Tensor | null;
  /** Rejects with the signal's reason before the next token. */
  signal?: AbortSignal | undefined;
}

export interface Decoded {
  /** Forced and found tokens, up to and with the end mark (or as many as there was room for). */
  ids: Int32Array;
  /** Sum of the log-probabilities of the tokens that were found. */
  logProbability: number;
}

interface Beam {
  /** Row of the device's state that this sequence was last extended in. */
  row: number;
  ids: number[];
  logProbability: number;
  done: boolean;
}

/**
 * The decoder's state for R sequences: keys and values of all positions so far, and of the image tokens.
 * `step` feeds one token to each and returns the logits of the next; `reorder` makes row r continue row parents[r].
 */
class State {
  readonly #layers;
  #self: Tensor[];
  readonly #cross: Tensor[];
  #position = 0;

  constructor(
    readonly model: Siglip2Model,
    image: Tensor,
    readonly beams: number,
    readonly length: number,
    readonly imageLengths: Tensor | null,
  ) {
    this.#layers = decoderLayers(model.params, model.config);
    const width = model.config.decoder!.width;
    this.#cross = scope(() => this.#layers.map((layer) => layer.crossKv(image)));
    const cache = [image.shape[0]! * beams * length, 2 * width];
    this.#self = this.#layers.map(() => empty(cache, image.dtype, image.device).detach());
  }

  /** @param ids (R) the next token of each sequence @returns (R, V) f32 logits */
  step(ids: Int32Array): Tensor {
    const { model, beams, length } = this,
      { params, config, options } = model;
    const { heads, width } = config.decoder!,
      R = ids.length,
      t = this.#position++;
    return scope(() => {
      const device = params.device,
        rows = Int32Array.from({ length: R }, (_, r) => r);
      const to = tensor(
          rows.map((r) => r * length + t),
          [R],
          device,
        ),
        from = tensor(rows, [R], device);
      const seen = tensor(new Int32Array(R).fill(t + 1), [R], device);
      let h = decoderEmbed(params, config, tensor(ids, [R, 1], device), options.dtype, t),
        d: Tensor | null = null;
      this.#layers.forEach((layer, i) => {
        const first = layer.norm(1, h, d);
        copyRows(this.#self[i]!, layer.selfKv(first.y).reshape([R, 2 * width]), to, from);
        const cache = this.#self[i]!.reshape([R, length, 2 * width]);
        const a = layer.selfOut(
          crossAttention(layer.selfQ(first.y), cache, heads, { keyLengths: seen }),
        );
        const second = layer.norm(2, first.sum, a);
        // The beams of an image are queries over one set of keys.
        const q = layer.crossQ(second.y).reshape([R / beams, beams, width]);
        const mixed = crossAttention(q, this.#cross[i]!, heads, {
          keyLengths: this.imageLengths,
        }).reshape([R, 1, width]);
        const third = layer.norm(3, second.sum, layer.crossOut(mixed));
        [h, d] = [third.sum, layer.mlp(third.y)];
      });
      const y = decoderNorm(params, h, d!, config.layerNormEps).reshape([R, width]);
      return cast(
        linear(y, params.get('decoder.head.weight'), params.get('decoder.head.bias')),
        'f32',
      );
    });
  }

  reorder(parents: readonly number[]): void {
    if (parents.every((p, r) => p === r)) return;
    const { length } = this,
      t = this.#position,
      R = parents.length,
      device = this.model.params.device;
    this.#self = this.#self.map((old) => {
      const cache = empty(old.shape, old.dtype, device).detach();
      scope(() => {
        const places = (of: (r: number) => number): Tensor =>
          tensor(
            Int32Array.from({ length: R * t }, (_, i) => of(Math.floor(i / t)) * length + (i % t)),
            [R * t],
            device,
          );
        copyRows(
          cache,
          old,
          places((r) => r),
          places((r) => parents[r]!),
        );
      });
      old.dispose();
      return cache;
    });
  }

  dispose(): void {
    for (const x of [...this.#self, ...this.#cross]) x.dispose();
  }
}

/** The log-probabilities of the `n` likeliest tokens of one row of logits, best first. */
function likeliest(logits: Float32Array, n: number): { id: number; logProbability: number }[] {
  let most = -Infinity,
    total = 0;
  for (const l of logits) if (l > most) most = l;
  for (const l of logits) total += Math.exp(l - most);
  const base = most + Math.log(total),
    best: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    if (best.length === n && logits[id]! <= logits[best[n - 1]!]!) continue;
    let at = best.length;
    while (at > 0 && logits[id]! > logits[best[at - 1]!]!) at--;
    best.splice(at, 0, id);
    if (best.length > n) best.pop();
  }
  return best.map((id) => ({ id, logProbability: logits[id]! - base }));
}

/**
 * Completes one sequence per image. On the CPU it does not depend on the other images.
 * @param image (B, N, Dv) un-pooled image tokens (`model.imageTokens`)
 * @param forced (B) tokens that each sequence begins with, without an end mark (see `decoderSequences` with `query`)
 * @returns (B) the best sequence of each image
 * @throws ShapeError when the model has no decoder or a beginning is too long; the signal's reason
 */
export async function decode(
  model: Siglip2Model,
  image: Tensor,
  forced: readonly ArrayLike<number>[],
  options: DecodeOptions = {},
): Promise<Decoded[]> {
  const { beams = 1, lengthPenalty = 0, imageLengths = null } = options,
    decoder = model.config.decoder;
  check(decoder != null, 'decode', 'the model has no decoder');
  const length = options.length ?? decoder.length,
    B = forced.length;
  check(
    image.shape[0] === B,
    'decode',
    `${image.shape[0]} images need as many beginnings but there are ${B}`,
  );
  check(
    Number.isInteger(beams) && beams > 0,
    'decode',
    `beams must be a positive integer but is ${beams}`,
  );
  check(
    length <= decoder.length && forced.every((f) => f.length <= length),
    'decode',
    `sequences have at most ${decoder.length} tokens`,
  );
  const rank = (b: Beam): number => b.logProbability / Math.max(1, b.ids.length) ** lengthPenalty;

  const { device } = image;
  const state = noGrad(() =>
    batchInvariant(device, () => new State(model, image, beams, length, imageLengths)),
  );
  // All beams of an image begin alike; only the first may be extended until they differ.
  let live: Beam[][] = Array.from({ length: B }, (_, b) => [
    { row: b * beams, ids: [], logProbability: 0, done: false },
  ]);
  try {
    for (let t = 0; t < length; t++) {
      options.signal?.throwIfAborted();
      const next = new Int32Array(B * beams);
      for (const group of live) for (const b of group) next[b.row] = b.ids.at(-1) ?? 0;
      const logits = noGrad(() => batchInvariant(device, () => state.step(next)));
      const V = logits.shape[1]!,
        values = (await logits.read()) as Float32Array;
      logits.dispose();
      live = live.map((group, image) => {
        const must = forced[image]![t];
        if (must !== undefined) return group.map((b) => ({ ...b, ids: [...b.ids, must] }));
        const candidates = group.flatMap((b): Beam[] =>
          b.done
            ? [b]
            : likeliest(values.subarray(b.row * V, (b.row + 1) * V), beams).map(
                ({ id, logProbability }) => ({
                  row: b.row,
                  ids: [...b.ids, id],
                  logProbability: b.logProbability + logProbability,
                  done: id === EOS,
                }),
              ),
        );
        return candidates.sort((x, y) => rank(y) - rank(x)).slice(0, beams);
      });
      if (live.every((group) => group.every((b) => b.done))) break;
      const parents = Array.from({ length: B * beams }, (_, r) => r);
      live.forEach((group, image) =>
        group.forEach((b, i) => {
          parents[image * beams + i] = b.row;
        }),
      );
      noGrad(() => state.reorder(parents));
      live.forEach((group, image) =>
        group.forEach((b, i) => {
          b.row = image * beams + i;
        }),
      );
    }
  } finally {
    state.dispose();
  }
  return live.map(([best]) => ({
    ids: Int32Array.from(best!.ids),
    logProbability: best!.logProbability,
  }));
}
