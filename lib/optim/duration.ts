/**
 * Durations as people think of them, in steps, examples, epochs or percent of the run; the code
 * sees steps.
 */
import { ConfigError } from '../errors.js';

/** A number of steps, or one of the forms named. Percent refer to the whole run. */
export type Duration =
  | number
  | string
  | { steps: number }
  | { examples: number }
  | { epochs: number };

/** What a duration is converted with. */
export interface DurationContext {
  /** Name of the setting, for errors: "warmup". */
  name: string;
  /** Examples per step. */
  batch: number;
  /** Examples of one epoch, when the data set has a known size. */
  examples?: number | undefined;
  /** Steps of the whole run; not yet known when the run's own length is converted. */
  total?: number | undefined;
}

const UNITS = ['steps', 'examples', 'epochs'] as const;
type Unit = (typeof UNITS)[number] | '%';

/** The forms of a duration, for errors. */
export const FORMS =
  'accepted are a number of steps, "500 steps", "64000 examples", "2 epochs", "10%", ' +
  '{ steps: 500 }, { examples: 64000 } or { epochs: 2 }';

/**
 * The whole number of steps of a duration: rounded to nearest, but at least 1 unless the duration
 * is 0.
 *
 * @throws ConfigError naming the setting and the accepted forms; also for epochs of a data set of
 *   unknown size, and for a percentage in the length of the run itself.
 * @example toSteps('10%', { name: 'warmup', batch: 64, total: 2000 }) // 200
 */
export function toSteps(
  duration: Duration,
  { name, batch, examples, total }: DurationContext,
): number {
  const [value, unit] = parse(duration) ?? [NaN, 'steps' as const];
  if (!(value >= 0 && Number.isFinite(value))) {
    throw new ConfigError(
      `${name}: ${JSON.stringify(duration) ?? 'nothing'} is no duration; ` + `${FORMS}`,
    );
  }
  const steps = (() => {
    switch (unit) {
      case 'steps':
        return value;
      case 'examples':
        return value / batch;
      case 'epochs':
        if (examples === undefined) {
          throw new ConfigError(
            `${name}: the data set has no known size, so ` +
              `${JSON.stringify(duration)} cannot be converted; give steps or examples`,
          );
        }
        return (value * examples) / batch;
      case '%':
        if (total === undefined) {
          throw new ConfigError(
            `${name}: is the length of the run itself and cannot be ` +
              `${JSON.stringify(duration)} of it; give steps, examples or epochs`,
          );
        }
        return (value / 100) * total;
    }
  })();
  const rounded = value === 0 ? 0 : Math.max(1, Math.round(steps));
  if (!Number.isSafeInteger(rounded)) {
    throw new ConfigError(
      `${name}: ${JSON.stringify(duration)} makes too many steps to count; ` + 'give fewer',
    );
  }
  return rounded;
}

/** A number and optionally its unit. */
const TEXT = /^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(%|steps?|examples?|epochs?)?\s*$/i;

function parse(duration: Duration): [number, Unit] | undefined {
  if (typeof duration === 'number') return [duration, 'steps'];
  if (typeof duration === 'string') {
    const [, digits, unit] = TEXT.exec(duration) ?? [];
    if (digits === undefined) return undefined;
    const value = Number(digits.replaceAll('_', ''));
    if (unit === undefined || unit === '%') return [value, unit ?? 'steps'];
    return [value, UNITS.find((known) => known.startsWith(unit.toLowerCase()))!];
  }
  if (typeof duration !== 'object' || duration === null) return undefined;
  const [entry, ...rest] = Object.entries(duration) as [string, unknown][];
  if (entry === undefined || rest.length > 0 || typeof entry[1] !== 'number') return undefined;
  const unit = UNITS.find((known) => known === entry[0]);
  return unit && [entry[1], unit];
}
