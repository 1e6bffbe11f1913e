/** Learning-rate schedules: a multiplier in [0, 1] of the peak for every step, counted from 0. */
import { ConfigError } from '../errors.js';
import { type Duration, toSteps } from './duration.js';

/** Shape of the multiplier after the warm-up. */
export type ScheduleKind = 'cosine' | 'constant';

/** A schedule in steps. */
export interface Schedule {
  kind: ScheduleKind;
  /** Steps of the whole run; the cosine reaches 0 there. */
  total: number;
  /** Steps of the linear warm-up from 0. */
  warmup: number;
}

/**
 * The multiplier s(step) = min(1, step / warmup) * (1 + cos(pi p)) / 2 with the progress
 * p = clip((step - warmup) / (total - warmup), 0, 1); for `constant` only the warm-up. The first
 * step of a run with warm-up has multiplier 0. It scales weight decay as well as the learning rate.
 * Source: big_vision's create_learning_rate_schedule.
 *
 * @param step Steps done before this one; a fraction is allowed, for schedules that advance by
 *   examples.
 */
export function scheduleMultiplier({ kind, total, warmup }: Schedule, step: number): number {
  const rise = warmup > 0 ? Math.min(1, step / warmup) : 1;
  if (kind === 'constant') return rise;
  const rest = total - warmup;
  const progress =
    rest > 0 ? Math.min(1, Math.max(0, (step - warmup) / rest)) : Number(step >= total);
  return rise * 0.5 * (1 + Math.cos(Math.PI * progress));
}

/**
 * Returns `schedule` if it can be followed.
 * @throws ConfigError when the warm-up is longer than the run, or a number is negative or not
 *   finite.
 */
export function checkSchedule(schedule: Schedule): Schedule {
  const { kind, total, warmup } = schedule;
  if (kind !== 'cosine' && kind !== 'constant') {
    throw new ConfigError(
      `schedule: expected "cosine" or "constant" but got ` + `${JSON.stringify(kind)}`,
    );
  }
  if (!(total > 0 && Number.isFinite(total))) {
    throw new ConfigError(`schedule: the run must have at least one step but has ${total}`);
  }
  if (!(warmup >= 0 && warmup <= total)) {
    throw new ConfigError(
      `optimizer.warmup: the warm-up must be between 0 and the ${total} steps of the ` +
        `run (total) but is ${warmup}; give fewer steps, or a share such as optimizer.warmup="5%"`,
    );
  }
  return schedule;
}

/** What of a training config makes its schedule. */
export interface ScheduleSettings {
  batch: number;
  total: Duration;
  optimizer: { warmup: Duration; schedule: ScheduleKind };
  span: { from: string; to: string; stretch: number };
}

/** The part of a schedule that a run covers. */
export interface RunSchedule {
  schedule: Schedule;
  /** Where on the schedule the run begins and ends, in steps of an unstretched one. */
  span: readonly [begin: number, end: number];
  /** Steps of the run. */
  totalSteps: number;
  /** The run's step at a percentage of the schedule. Throws ConfigError. */
  stepAt(name: string, position: string): number;
}

/**
 * The schedule of a config.
 * @param examples in the collection
 * @throws ConfigError
 */
export function runSchedule(config: ScheduleSettings, examples: number): RunSchedule {
  const {
    batch,
    total,
    optimizer,
    span: { from, to, stretch },
  } = config;
  const unit = { batch, examples },
    steps = toSteps(total, { ...unit, name: 'total' });
  const warmup = toSteps(optimizer.warmup, { ...unit, name: 'optimizer.warmup', total: steps });
  const schedule = checkSchedule({ kind: optimizer.schedule, total: steps, warmup });
  const at = (name: string, position: string): number =>
    toSteps(position, { ...unit, name, total: steps });
  const begin = at('span.from', from),
    end = at('span.to', to);
  if (begin >= end)
    throw new ConfigError(
      `span: from ${from} to ${to} of ${steps} steps holds no step; choose others`,
    );
  return {
    schedule,
    span: [begin, end],
    totalSteps: Math.max(1, Math.round((end - begin) * stretch)),
    stepAt: (name, position) => Math.round((at(name, position) - begin) * stretch),
  };
}

/** The multiplier at a step of the run, or between two. */
export function multiplierAt(
  { schedule, span: [begin, end], totalSteps }: RunSchedule,
  step: number,
): number {
  return scheduleMultiplier(schedule, begin + ((end - begin) * step) / totalSteps);
}
