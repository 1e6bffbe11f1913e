/**
 * Gradient caching (arXiv 2101.06983): the exact gradient of a contrastive loss over a batch whose activations do not
 * fit in memory. Every part of the batch is embedded without keeping activations; the loss over all embeddings gives
 * their gradients; then each part is embedded once more, and what it gets from the loss goes back through it. Costs one
 * more forward pass and the memory of one part.
 */
import { check } from '../check.js';
import { type Handle, op } from '../native.js';
import { backward, noGrad, requireGrad } from '../tape.js';
import { empty, scope, type Tensor } from '../tensor.js';

const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** Losses with their weights, for backward(). */
export type Roots = [loss: Tensor, weight: number][];

/**
 * Embeds examples `from` up to but not including `to`: (to − from, E). Must give the same result when called again: the
 * second time with a list, to which it may add losses of these examples alone, which then share its activations.
 */
export type PartEncoder = (from: number, to: number, others?: Roots) => Tensor;

/**
 * Adds the gradients of a loss over the whole batch to the parameters. Nothing else may be recorded at the time: call it
 * before the step's other losses, or after their backward().
 * @param batch examples in all
 * @param part examples that are embedded at a time; the last part may be smaller
 * @param encoders one for each set of embeddings: images, first captions, second captions …
 * @param trained whether an encoder has anything to train, for each; the others run once
 * @param loss from the embeddings (batch, E), in the encoders' order, to weighted roots of backward(); gradients of
 *   parameters that it uses itself, the logit scale say, are added as well
 * @returns the losses
 * @throws ShapeError
 */
export function gradCache(
  batch: number,
  part: number,
  encoders: readonly PartEncoder[],
  loss: (...embeddings: Tensor[]) => Roots,
  trained: readonly boolean[] = encoders.map(() => true),
): Tensor[] {
  for (const [name, n] of [
    ['batch', batch],
    ['part', part],
  ] as const)
    check(
      Number.isSafeInteger(n) && n > 0,
      'gradCache',
      `${name} must be a positive integer but is ${n}`,
    );
  const parts = partsOf(batch, part);
  return scope(() => {
    const embeddings = noGrad(() => encoders.map((encode) => embedAll(encode, batch, parts)));
    // Nothing else than the loss is on the tape, so this backward pass ends at the embeddings.
    const roots = loss(...embeddings.map((e, i) => (trained[i] ? requireGrad(e) : e)));
    const gradients = backward(roots);
    encoders.forEach((encode, i) => {
      const gradient = trained[i] && gradients.get(embeddings[i]!);
      if (!gradient) return;
      const width = gradient.size / batch;
      for (const [from, to] of parts) {
        scope(() => {
          const others: Roots = [];
          const again = encode(from, to, others);
          backward([[again, gradient.view(from * width, again.shape)], ...others]);
        });
      }
    });
    return roots.map(([l]) => l);
  });
}

/** Examples `from` up to but not including `to`, for each part of a batch. */
export function partsOf(batch: number, part: number): [from: number, to: number][] {
  return Array.from({ length: Math.ceil(batch / part) }, (_, i) => [
    i * part,
    Math.min(batch, (i + 1) * part),
  ]);
}

/** The embeddings of all parts of a batch as one tensor (batch, E). Call it under noGrad(). */
export function embedAll(
  encode: PartEncoder,
  batch: number,
  parts: readonly (readonly [number, number])[],
): Tensor {
  let all: Tensor | undefined;
  for (const [from, to] of parts) {
    const one = scope(() => encode(from, to));
    const width = one.size / (to - from);
    check(
      one.shape.length === 2 && one.shape[0] === to - from,
      'gradCache',
      `the embeddings of examples ${from} to ${to} must be [${to - from}, E] but are [${one.shape.join(', ')}]`,
    );
    if (parts.length === 1) return one;
    all ??= empty([batch, width], one.dtype, one.device);
    scope(() => {
      const rows = all!.view(from * width, one.shape);
      scaleCast(rows.handle, one.handle, one.size, 1);
    });
    one.dispose();
  }
  return all!;
}
