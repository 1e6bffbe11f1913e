/**
 * De-biasing of a data set by how often its samples are kept (M4: "CLIP the Bias", arXiv 2403.04547), in one stream.
 *
 * A sample z has sensitive attributes s ∈ {0, 1}^m with shares π that are wanted and targets y ∈ {0, 1}^c. Its keep
 * probability q(z) ∈ [0, 1] is as near to the keep rate η as the constraints allow: minimise ½ E[(q − η)²] under
 *   keep rate       E[q] = η
 *   representation  |E[q g (s_k − π_k)]| ≤ ε_R E[q g]           (first order)
 *   association     |E[q g (s_k − π_k) y_r]| ≤ ε_A E[q g]       (second order)
 * where g is 1 for the samples that the shares are about: those with some attribute of the group, or all. The
 * Lagrangian is smallest at q(z) = clip(η − vᵀa(z) − μ, 0, 1) with a(z) the constraints' integrands, and one step of
 * dual ascent a sample is
 *   v ← max(0, v + τ q a(z)),  μ ← μ + τ (q − η).
 * As v is never less than the sum of its steps, the mean of q·a over the stream so far, over that of q g, is at most
 * v/(τ Σ q g): what was kept too much before the multipliers were found. That debt (v − v at the beginning) is taken
 * off the tolerance until later samples have paid it, so the constraints hold over the stream as a whole and not only
 * for its last samples.
 */

import { ConfigError } from '../errors.js';
import { permutation, Random, Stream } from '../random.js';

/** Attributes that are compared with each other, such as the perceived genders. */
export interface AttributeGroup {
  name: string;
  /** The attributes and the shares π that are wanted of them. */
  attributes: { name: string; share: number }[];
  /** What the shares are of: samples with at least one attribute of the group (default), or all samples. */
  among?: 'labelled' | 'all';
}

export interface DebiasOptions {
  groups: readonly AttributeGroup[];
  /** Names of what the attributes must not be associated with: occupations, objects. */
  targets: readonly string[];
  /** Share of the samples to keep, η. */
  keep: number;
  /** ε_R and ε_A. */
  representation: number;
  association: number;
  /** τ: larger finds the constraints sooner, smaller keeps nearer to η. Default 0.05. */
  step?: number;
}

const STEP = 0.05;

/** Labels of a sample: attributes of all groups, one after the other, then targets; 0 or 1. */
export type Labels = Uint8Array;

/** The attributes of all groups in the order of `Labels`, with the positions of their group. */
interface Attribute {
  group: string;
  name: string;
  share: number;
  from: number;
  to: number;
  all: boolean;
}

function flatten(groups: readonly AttributeGroup[]): Attribute[] {
  let from = 0;
  return groups.flatMap(({ name: group, attributes, among }) => {
    const to = from + attributes.length;
    const flat = attributes.map(({ name, share }) => ({
      group,
      name,
      share,
      from,
      to,
      all: among === 'all',
    }));
    from = to;
    return flat;
  });
}

/** Whether a sample counts for an attribute's share, g. */
function concerned({ from, to, all }: Attribute, labels: Labels): boolean {
  if (all) return true;
  for (let i = from; i < to; i++) if (labels[i]) return true;
  return false;
}

/** Gives every sample of a stream its keep probability, in memory that does not depend on the stream's length. */
export class DebiasStream {
  readonly #attributes: Attribute[];
  /** Multipliers of +a and −a, (attributes, 1 + targets), and what they were at the beginning. */
  readonly #upper: Float64Array;
  readonly #lower: Float64Array;
  #began: { upper: Float64Array; lower: Float64Array };
  /** Σ q g of each attribute. */
  readonly #seen: Float64Array;
  #mu = 0;
  #step: number;
  #pass = 1;

  readonly #options: DebiasOptions;

  /** Throws ConfigError for shares, rates or tolerances out of range. */
  constructor(options: DebiasOptions) {
    this.#options = options;
    const { keep, representation, association, step = STEP, groups } = options;
    if (!(keep > 0 && keep <= 1))
      throw new ConfigError(`debias: keep must be in (0, 1] but is ${keep}`);
    if (!(representation >= 0 && association >= 0))
      throw new ConfigError(
        `debias: the tolerances must not be negative but are ${representation} and ${association}`,
      );
    if (!(step > 0)) throw new ConfigError(`debias: step must be positive but is ${step}`);
    for (const { name, attributes } of groups)
      for (const { name: attribute, share } of attributes)
        if (!(share > 0 && share < 1))
          throw new ConfigError(
            `debias: the share of ${name}/${attribute} must be between 0 and 1 but is ${share}`,
          );
    this.#attributes = flatten(groups);
    if (this.#attributes.length === 0)
      throw new ConfigError('debias: there is no attribute to balance');
    const constraints = this.#attributes.length * (1 + options.targets.length);
    this.#upper = new Float64Array(constraints);
    this.#lower = new Float64Array(constraints);
    this.#seen = new Float64Array(this.#attributes.length);
    this.#began = { upper: this.#upper.slice(), lower: this.#lower.slice() };
    this.#step = step;
  }

  /**
   * Begins another pass with the multipliers as they are and smaller steps, τ over the number of the pass: the
   * constraints are to hold over the samples from here on.
   */
  restart(): void {
    this.#step = (this.#options.step ?? STEP) / ++this.#pass;
    this.#began = { upper: this.#upper.slice(), lower: this.#lower.slice() };
    this.#seen.fill(0);
  }

  /** The keep probability of the next sample; the multipliers learn from it. */
  next(labels: Labels): number {
    const { keep } = this.#options,
      step = this.#step;
    let q = keep - this.#mu;
    this.#each(labels, (i, above, below) => {
      q -= this.#upper[i]! * above + this.#lower[i]! * below;
    });
    q = Math.min(1, Math.max(0, q));
    this.#each(labels, (i, above, below) => {
      this.#upper[i] = Math.max(0, this.#upper[i]! + step * q * above);
      this.#lower[i] = Math.max(0, this.#lower[i]! + step * q * below);
    });
    this.#attributes.forEach((attribute, k) => {
      if (concerned(attribute, labels)) this.#seen[k]! += q;
    });
    this.#mu += step * (q - keep);
    return q;
  }

  /** The constraints that concern a sample: their number, and how far (s − π) y is above and below what is allowed. */
  #each(labels: Labels, visit: (index: number, above: number, below: number) => void): void {
    const { targets, representation, association } = this.#options,
      m = this.#attributes.length,
      began = this.#began;
    this.#attributes.forEach((attribute, k) => {
      if (!concerned(attribute, labels)) return;
      const d = labels[k]! - attribute.share,
        first = k * (1 + targets.length),
        weight = this.#step * this.#seen[k]!;
      const allowed = (epsilon: number, debt: number): number =>
        debt > 0 ? Math.max(0, epsilon - debt / weight) : epsilon;
      const one = (i: number, a: number, epsilon: number): void =>
        visit(
          i,
          a - allowed(epsilon, this.#upper[i]! - began.upper[i]!),
          -a - allowed(epsilon, this.#lower[i]! - began.lower[i]!),
        );
      one(first, d, representation);
      for (let r = 0; r < targets.length; r++)
        one(first + 1 + r, labels[m + r] ? d : 0, association);
    });
  }
}

/** One line of a bias report. */
export interface Bias {
  group: string;
  attribute: string;
  /** Of an association. */
  target?: string;
  /**
   * Representation bias |share − π|, or association bias |P(target | attribute) − P(target | other)|; 0 where there is
   * nothing to compare.
   */
  bias: number;
  /** Share of the attribute, or P(target | attribute) − P(target | other). */
  value: number;
  /** Left side of the constraint over E[q g], to be compared with ε. */
  constraint: number;
  /** ε. */
  limit: number;
}

/** Adds up weighted samples and says how biased they are. */
export class BiasTally {
  readonly #attributes: Attribute[];
  /** Weights of concerned samples, and of those with the attribute, (m); the same of those with a target, (m, c). */
  readonly #concerned: Float64Array;
  readonly #having: Float64Array;
  readonly #target: Float64Array;
  readonly #both: Float64Array;
  /** Sum of all weights. */
  total = 0;

  readonly #options: DebiasOptions;

  constructor(options: DebiasOptions) {
    this.#options = options;
    this.#attributes = flatten(options.groups);
    const m = this.#attributes.length,
      c = options.targets.length;
    [this.#concerned, this.#having] = [new Float64Array(m), new Float64Array(m)];
    [this.#target, this.#both] = [new Float64Array(m * c), new Float64Array(m * c)];
  }

  add(labels: Labels, weight = 1): void {
    const m = this.#attributes.length,
      c = this.#options.targets.length;
    this.total += weight;
    this.#attributes.forEach((attribute, k) => {
      if (!concerned(attribute, labels)) return;
      this.#concerned[k]! += weight;
      if (labels[k]) this.#having[k]! += weight;
      for (let r = 0; r < c; r++) {
        if (!labels[m + r]) continue;
        this.#target[k * c + r]! += weight;
        if (labels[k]) this.#both[k * c + r]! += weight;
      }
    });
  }

  /** Representation of every attribute, then its association with every target. */
  biases(): { representation: Bias[]; association: Bias[] } {
    const { targets, representation: limit, association: associationLimit } = this.#options,
      c = targets.length;
    const ratio = (part: number, whole: number, otherwise: number): number =>
      whole > 0 ? part / whole : otherwise;
    const representation = this.#attributes.map(({ group, name, share }, k) => {
      const value = ratio(this.#having[k]!, this.#concerned[k]!, share),
        bias = Math.abs(value - share);
      return { group, attribute: name, bias, value, constraint: bias, limit };
    });
    const association = this.#attributes.flatMap(({ group, name, share }, k) =>
      targets.map((target, r) => {
        const all = this.#target[k * c + r]!,
          both = this.#both[k * c + r]!;
        const having = this.#having[k]!,
          others = this.#concerned[k]! - having;
        const value = having > 0 && others > 0 ? both / having - (all - both) / others : 0;
        const constraint = Math.abs(ratio(both - share * all, this.#concerned[k]!, 0));
        return {
          group,
          attribute: name,
          target,
          bias: Math.abs(value),
          value,
          constraint,
          limit: associationLimit,
        };
      }),
    );
    return { representation, association };
  }
}

/** Figures are rounded on their way into a constraint; this much over a limit is not over it. */
const SLACK = 1e-6;

/** By how much the worst constraint is over its limit; 0 when all hold. */
export function excess(tally: BiasTally): number {
  const { representation, association } = tally.biases();
  return [...representation, ...association].reduce((most, b) => Math.max(most, over(b)), 0);
}

/** By how much a constraint is over its limit. */
export function over({ constraint, limit }: Bias): number {
  return constraint > limit + SLACK ? constraint - limit : 0;
}

export interface DebiasResult {
  /** Keep probability of each sample. */
  probabilities: Float64Array;
  before: BiasTally;
  /** Samples weighted with their probabilities. */
  after: BiasTally;
  /** Passes that it took. */
  passes: number;
}

/**
 * Runs a stream over samples that are held in memory, in random order: multipliers that were learned on one kind of
 * samples do not fit the next kind. Where there are too few samples for one pass, it makes more, until the constraints
 * hold; when none of them gets there, the result is that of the nearest one.
 */
export function debias(
  samples: readonly Labels[],
  options: DebiasOptions,
  maxPasses = 10,
  seed = 0,
): DebiasResult {
  if (!(Number.isInteger(maxPasses) && maxPasses >= 1))
    throw new ConfigError(`debias: passes must be an integer from 1 on but is ${maxPasses}`);
  const stream = new DebiasStream(options),
    before = new BiasTally(options);
  for (const labels of samples) before.add(labels);
  let best: DebiasResult | undefined;
  for (let pass = 0; pass < maxPasses && (best === undefined || excess(best.after) > 0); pass++) {
    if (pass > 0) stream.restart();
    const probabilities = new Float64Array(samples.length),
      after = new BiasTally(options);
    for (const i of permutation(samples.length, new Random(seed, Stream.debias, pass))) {
      probabilities[i] = stream.next(samples[i]!);
      after.add(samples[i]!, probabilities[i]);
    }
    if (best === undefined || excess(after) < excess(best.after))
      best = { probabilities, before, after, passes: pass + 1 };
  }
  return best!;
}
