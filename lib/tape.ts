/**
 * Reverse-mode differentiation: ops record how to go back, backward() walks the record in reverse. Gradients of
 * parameters are accumulated (+=) by the ops themselves into `param.grad`; gradients of activations are set, and added
 * where a tensor was used twice. First derivatives only.
 */
import { check, checkDType, checkShape } from './check.js';
import { type Handle, op } from './native.js';
import { type DeviceName, type DType, empty, scope, Tensor } from './tensor.js';

const add = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** A trainable tensor: a view of the parameter arena, with its gradient of the same shape (f32), null when frozen. */
export class Param extends Tensor {
  grad: Tensor | null = null;
  /** The copy that kernels multiply with when activations are bf16; the f32 tensor itself otherwise. */
  compute: Tensor = this;
  constructor(
    handle: Handle,
    shape: readonly number[],
    dtype: DType,
    device: DeviceName,
    readonly name = '',
  ) {
    super(handle, shape, dtype, device);
  }
}

/** The gradient buffer that an op adds to; 0 when the weight is frozen or a plain tensor. */
export function gradHandle(weight: Tensor): Handle {
  return gradOf(weight)?.handle ?? 0;
}
/** The gradient tensor of a weight, or null when it is frozen. */
export function gradOf(weight: Tensor): Tensor | null {
  return weight instanceof Param ? weight.grad : null;
}

interface Entry {
  inputs: (Tensor | null)[];
  outputs: Tensor[];
  /** Tensors that backward reads, beyond the inputs. */
  saved: Tensor[];
  /** Weights whose gradients backward accumulates. */
  params?: (Tensor | null)[];
  backward: (...grads: (Tensor | null)[]) => (Tensor | null)[];
}

let tape: Entry[] = [];
let recording = true;
/** Tensors whose gradient someone wants: leaves marked by the caller, and outputs of recorded ops. */
const tracked = new WeakSet<Tensor>();

/** Marks a tensor as a leaf: backward() returns its gradient. */
export function requireGrad<T extends Tensor>(x: T): T {
  tracked.add(x);
  return x;
}
/** Whether an op must compute the gradient of this input. */
export function needsGrad(x: Tensor | null): boolean {
  return x !== null && (tracked.has(x) || gradOf(x) !== null);
}
export function isRecording(): boolean {
  return recording;
}

/**
 * Records one op: its differentiable inputs, its outputs, the tensors its backward reads, the weights it trains, and
 * the function that turns output gradients (null where nothing flowed) into input gradients, one per input (null where
 * not needed). It may return a gradient it was given, and one tensor for several inputs. Nothing is recorded under
 * noGrad(), or when neither an input nor a weight wants a gradient.
 */
export function record(entry: Entry): void {
  if (!recording) return;
  if (!entry.inputs.some(needsGrad) && !entry.params?.some((p) => p && gradOf(p))) return;
  for (const t of held(entry)) t.hold();
  for (const t of entry.outputs) tracked.add(t);
  tape.push(entry);
}

function held(entry: Entry): Tensor[] {
  return [...entry.saved, ...entry.outputs, ...entry.inputs.filter((t) => t !== null)];
}
function drop(entry: Entry): void {
  for (const t of held(entry)) t.release();
}

/** Runs `fn` without recording: inference, a frozen tower, an EMA teacher. */
export function noGrad<T>(fn: () => T): T {
  const before = recording;
  recording = false;
  try {
    return fn();
  } finally {
    recording = before;
  }
}

/** Forgets everything recorded so far, e.g. after an error in the middle of a step. */
export function clearTape(): void {
  for (const e of tape) drop(e);
  tape = [];
}

/** What backward() starts from: a loss with its weight, or any recorded tensor or parameter with its gradient. */
export type Root = readonly [of: Tensor, gradient: Tensor | number];

/**
 * Goes back through everything recorded since the last backward(), and forgets it. Adds the gradients of parameters to
 * theirs, `param.grad`, in f32: zero them beforehand (`params.zeroGrad()`).
 *
 *   backward(sigmoidLoss(x, y, t, b));                  // a loss of this package
 *   backward([[caption, 0.5], [x, dx], [y, dy]]);       // several, some with gradients that you computed
 *
 * @param roots a loss, or pairs: a loss op's output with its weight (a number), or a tensor that was computed, embeddings
 *   say, with the gradient of your own loss with respect to it (of its shape and type). A parameter may be one too, the
 *   logit scale say: its gradient (f32) is added to what it has.
 * @returns gradients of the leaves marked by requireGrad()
 * @throws ShapeError when a gradient has another shape or type than what it is of; what was recorded is then forgotten
 */
export function backward(roots: Tensor | readonly Root[]): Map<Tensor, Tensor> {
  const list: readonly Root[] = roots instanceof Tensor ? [[roots, 1]] : roots;
  try {
    list.forEach(checkRoot);
  } catch (e) {
    clearTape();
    throw e;
  }
  const entries = tape;
  tape = [];
  return run(entries, list);
}

function checkRoot([of, gradient]: Root): void {
  const parameter = of instanceof Param;
  if (gradient instanceof Tensor) {
    checkShape('backward', 'a gradient', gradient, of.shape);
    checkDType('backward', 'a gradient', gradient, parameter ? 'f32' : of.dtype);
  } else {
    check(
      !parameter && of.shape.length <= 1,
      'backward',
      `a root that is no loss, this ${of.dtype} [${of.shape.join(', ')}] ` +
        'say, needs its gradient, a tensor of its shape and type',
    );
  }
  check(
    !parameter || of.grad !== null,
    'backward',
    `the parameter ${parameter && of.name} has no gradient; make the model ` + 'with train: true',
  );
}

/** A loss op reads here the weight its scalar output was given; 1 when it is a plain root. */
const scalarWeight = new WeakMap<Tensor, number>();
export function lossWeight(loss: Tensor): number {
  return scalarWeight.get(loss) ?? 0;
}

function run(entries: Entry[], roots: readonly Root[]): Map<Tensor, Tensor> {
  const grads = new Map<Tensor, Tensor>();
  const shared = new Set<Tensor>(); // several gradients in one memory: not to be written
  const losses = new Set<Tensor>(); // scalar roots: their gradient is a number
  for (const [t, g] of roots) {
    const accumulator = gradOf(t);
    if (typeof g === 'number') {
      scalarWeight.set(t, g);
      losses.add(t);
    } else {
      const mine = g.reshape(g.shape);
      shared.add(mine);
      if (accumulator) addToParam(accumulator, mine);
      else grads.set(t, plus(grads.get(t), mine, shared));
    }
  }
  try {
    for (let entry = entries.pop(); entry; entry = entries.pop()) {
      const { inputs, outputs } = entry;
      try {
        if (!outputs.some((t) => grads.has(t) || losses.has(t))) continue;
        const given = outputs.map((t) => grads.get(t) ?? null);
        // The op's temporaries die with this scope; the gradients it returns live on in `grads`.
        const made = scope(() => entry.backward(...given));
        outputs.forEach((t, i) => {
          grads.delete(t);
          if (!made.includes(given[i]!)) given[i]?.dispose();
        });
        // A tensor returned for several inputs becomes several views before any of them is used up.
        const own = made.map((g, i) => {
          if (!g || made.indexOf(g) === i) return g;
          const other = g.reshape(g.shape);
          shared.add(g).add(other);
          return other;
        });
        inputs.forEach((x, i) => {
          const g = own[i];
          if (!x || !g) return;
          const accumulator = gradOf(x);
          if (accumulator) addToParam(accumulator, g);
          else if (!tracked.has(x))
            g.dispose(); // some ops make it with the others
          else grads.set(x, plus(grads.get(x), g, shared));
        });
      } finally {
        drop(entry);
      }
    }
  } finally {
    for (const e of entries) drop(e);
  }
  return grads;
}

/** a + g, in a's memory where nobody else reads it; takes both over. */
function plus(a: Tensor | undefined, g: Tensor, shared: Set<Tensor>): Tensor {
  if (!a) return g;
  const y = shared.has(a) ? empty(a.shape, a.dtype, a.device) : a;
  add(y.handle, a.handle, g.handle, a.size);
  if (y !== a) a.dispose();
  g.dispose();
  return y;
}

/** A parameter that was an op's input, the pooling probe say: its gradient goes where all of its gradients go. */
function addToParam(accumulator: Tensor, g: Tensor): void {
  const wide = g.dtype === 'f32' ? g : empty(g.shape, 'f32', g.device);
  if (wide !== g) scaleCast(wide.handle, g.handle, g.size, 1);
  add(accumulator.handle, accumulator.handle, wide.handle, g.size);
  if (wide !== g) wide.dispose();
  g.dispose();
}

/** The same elements in another shape; shares memory, and gradients pass through. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  const y = x.reshape(shape);
  record({ inputs: [x], outputs: [y], saved: [], backward: (dy) => [dy!.reshape(x.shape)] });
  return y;
}

/**
 * Matrices of equal width below each other, as one. Call it where rows of different makers go on together.
 * @param parts (n, D) f32 or bf16, all of one type
 * @returns (Σ n, D)
 */
export function concatRows(parts: readonly Tensor[]): Tensor {
  const [first] = parts as [Tensor],
    D = first.shape[1]!,
    rows = parts.map((p) => p.shape[0]!);
  const at = rows.map((_, i) => D * rows.slice(0, i).reduce((a, b) => a + b, 0));
  const y = empty([rows.reduce((a, b) => a + b, 0), D], first.dtype, first.device);
  parts.forEach((p, i) => {
    const place = y.view(at[i]!, p.shape);
    scaleCast(place.handle, p.handle, p.size, 1);
    place.dispose();
  });
  record({
    inputs: [...parts],
    outputs: [y],
    saved: [],
    backward: (dy) => parts.map((p, i) => dy!.view(at[i]!, p.shape)),
  });
  return y;
}

/**
 * Gradient checkpointing: runs `fn(...inputs)` without keeping its inner activations and runs it again during
 * backward. Memory of the block falls to its inputs and outputs, for one extra forward. `fn` must be deterministic and
 * return tensors it made.
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor[], ...inputs: Tensor[]): Tensor[] {
  if (!recording) return fn(...inputs);
  const outputs = noGrad(() => scope(() => fn(...inputs)));
  for (const y of outputs) tracked.add(y);
  for (const t of [...inputs, ...outputs]) t.hold();
  tape.push({
    inputs,
    outputs,
    saved: [],
    backward(...given) {
      const outer = tape;
      tape = [];
      try {
        // Fresh views as leaves, so that the inner gradients are told apart from the outer ones.
        const leaves = inputs.map((x) => (needsGrad(x) ? requireGrad(x.reshape(x.shape)) : x));
        const again = fn(...leaves);
        const entries = tape;
        tape = [];
        const roots = again.flatMap((y, i): [Tensor, Tensor][] =>
          given[i] ? [[y, given[i]!]] : [],
        );
        const grads = run(entries, roots);
        return leaves.map((leaf) => grads.get(leaf) ?? null);
      } finally {
        tape = outer;
      }
    },
  });
  return outputs;
}
