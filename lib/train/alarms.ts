/**
 * Alarms of self-distillation: a teacher that says the same of everything, or nothing of anything, or that does not
 * move, makes the loss look fine while nothing is learnt. Each function returns what is wrong in one sentence, with what
 * to do, or null.
 */

import type { ParamStore } from '../model/params.js';
import { type Handle, op } from '../native.js';
import { sumOfSquares } from '../ops/adamw.js';
import { empty, scope, type Tensor } from '../tensor.js';

const add = op<[y: Handle, a: Handle, b: Handle, N: number]>('add_forward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

/** Of `teacherStatistics`, entropies in nats. */
export interface TeacherFigures {
  /** Mean over images (or patches) of the entropy of the teacher's distribution. */
  entropy: number;
  /** Entropy of the mean distribution. */
  entropyOfMean: number;
  /** Largest share of one prototype in the mean distribution. */
  largestShare: number;
}

/** Entropies are told apart from their limits by this share of log K. */
const MARGIN = 0.02;

/**
 * Collapse onto one prototype: the mean distribution of a batch has almost no entropy, so every image gets the same
 * target. Nothing can be said from fewer than two rows.
 * @param rows distributions that the mean is of
 */
export function collapsedTeacher(
  f: TeacherFigures,
  prototypes: number,
  rows: number,
): string | null {
  // The mean of a few sharp distributions has at most log(rows) of entropy, however healthy the teacher is.
  const most = Math.log(Math.min(prototypes, rows));
  if (rows < 2 || f.entropyOfMean > MARGIN * most) return null;
  return (
    `the teacher has collapsed: one prototype gets ${(100 * f.largestShare).toFixed(1)} % of all targets ` +
    `(entropy of the mean ${f.entropyOfMean.toFixed(3)} of ${most.toFixed(2)}); raise the teacher's temperature or lower ` +
    'the momentum of its centre'
  );
}

/** Collapse to uniform: every single distribution has the entropy of no opinion, log K. */
export function uniformTeacher(f: TeacherFigures, prototypes: number): string | null {
  const most = Math.log(prototypes);
  if (f.entropy < (1 - MARGIN) * most) return null;
  return (
    `the teacher has no opinion: the entropy of its targets is ${f.entropy.toFixed(3)} of at most ` +
    `${most.toFixed(3)}; lower its temperature or raise the momentum of its centre`
  );
}

/** A number that is not finite in the teacher's outputs. */
export function brokenTeacher(f: TeacherFigures): string | null {
  if ([f.entropy, f.entropyOfMean, f.largestShare].every(Number.isFinite)) return null;
  return 'the teacher gives numbers that are not finite; go back to the last checkpoint with a lower learning rate';
}

/** Elements that are compared at a time, so that a large arena needs no second one. */
const CHUNK = 1 << 22;

/**
 * Σ (teacher − student)² over all parameters whose name begins with `prefix`; 0 exactly when they are equal. Runs on
 * the device.
 * @returns (1) f32 per chunk; read them later, with the step's other figures
 */
export function distanceParts(student: ParamStore, teacher: ParamStore, prefix: string): Tensor[] {
  return scope(() =>
    student.segments
      .filter((s) => s.name.startsWith(prefix))
      .flatMap(({ offset, size }) =>
        Array.from({ length: Math.ceil(size / CHUNK) }, (_, i) =>
          scope(() => {
            const n = Math.min(CHUNK, size - i * CHUNK),
              at = offset + i * CHUNK;
            const difference = empty([n], 'f32', student.device),
              result = empty([1], 'f32', student.device);
            scaleCast(difference.handle, student.values.view(at, [n]).handle, n, -1);
            add(difference.handle, difference.handle, teacher.values.view(at, [n]).handle, n);
            sumOfSquares(result, difference);
            return result;
          }),
        ),
      ),
  );
}

/**
 * A teacher with the student's very bits after an update that moved the student: its momentum is 0, or nothing was
 * learnt.
 * @param distance sum of `distanceParts`
 * @param updates since the teacher was copied from the student, those with a learning rate above 0
 */
export function deadTeacher(distance: number, updates: number): string | null {
  if (updates === 0 || distance > 0) return null;
  return (
    `the teacher equals the student bit for bit after ${updates} updates; set optimizer.ema to a momentum between ` +
    '0 and 1, 0.994 say, and look whether the student learns at all'
  );
}

/**
 * No gradient from self-distillation.
 * @param share norm of the heads' gradient over that of all parameters
 */
export function noSslGradient(share: number): string | null {
  if (share > 0) return null;
  const what = share === 0 ? 'no gradient' : `a gradient share of ${share}`;
  return `self-distillation gives ${what}; its weight may be 0, or its views empty`;
}

/**
 * Σ g² over the parameters whose name begins with `prefix`; with the optimizer's `norm2` it gives the share of a loss's
 * own heads.
 * @returns (1) f32 per trained parameter; read them later, with the step's other figures
 */
export function gradientParts(params: ParamStore, prefix: string): Tensor[] {
  return params.segments
    .filter((s) => s.name.startsWith(prefix) && s.trained !== null)
    .map(({ trained, size }) => {
      const result = empty([1], 'f32', params.device);
      scope(() => sumOfSquares(result, params.grads!.view(trained!, [size])));
      return result;
    });
}

/** Everything that the figures of one step tell, as sentences; empty when the teacher is well. */
export function teacherAlarms(figures: TeacherFigures, prototypes: number, rows: number): string[] {
  return [
    brokenTeacher(figures),
    collapsedTeacher(figures, prototypes, rows),
    uniformTeacher(figures, prototypes),
  ].filter((a) => a !== null);
}
