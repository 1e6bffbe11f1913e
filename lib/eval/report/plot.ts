/** The training curves of a report, as SVG and HTML without any script. */
import { escape, grouped } from './parts.js';

/** A step of training. */
export interface CurvePoint {
  step: number;
  loss: number;
  lr: number;
}

type Point = [x: number, y: number];

/** Points per line at most; more than the pixels of a screen cannot be seen. */
const MAX_POINTS = 500;

/** The section with the loss and the learning rate; nothing where there is no curve. */
export function curves(curve: readonly CurvePoint[]): string {
  const points = curve.filter(({ step, loss, lr }) => [step, loss, lr].every(Number.isFinite));
  if (points.length < 2) return '';
  const raw = thin(points.map(({ step, loss }): Point => [step, loss]));
  const smooth = thin(smoothed(points.map(({ step, loss }): Point => [step, loss])));
  const rate = thin(points.map(({ step, lr }): Point => [step, lr]));
  const [first, last] = [smooth[0]![1], smooth.at(-1)![1]];
  return `<section>
<h2>Training</h2>
${plot(
  'Loss per example',
  'tall',
  [
    [raw, 'raw'],
    [smooth, 'line'],
  ],
  short,
  false,
)}
${plot('Learning rate', 'low', [[rate, 'line rate']], scientific, true)}
<p class="note">Sigmoid loss from ${first.toFixed(2)} to ${last.toFixed(2)};
  the strong line is a running mean.</p>
</section>`;
}

const short = (y: number): string => String(Number(y.toPrecision(3)));

/** Such as 2e-3 or 1.5e-3. */
const scientific = (y: number): string =>
  y === 0 ? '0' : Number(y.toPrecision(2)).toExponential();

/**
 * Means over about one fiftieth of the curve around each point: narrower at the start, where the
 * loss falls fast, and one-sided at the end, where it is flat and one step alone would be noise.
 */
function smoothed(points: Point[]): Point[] {
  const sums = [0];
  for (const [, y] of points) sums.push(sums.at(-1)! + y);
  const widest = Math.ceil(points.length / 100);
  return points.map(([x], i) => {
    const from = Math.max(0, i - widest);
    const to = Math.min(points.length, 2 * i - from + 1);
    return [x, (sums[to]! - sums[from]!) / (to - from)];
  });
}

/** At most MAX_POINTS points, each the mean of a run of neighbours. */
function thin(points: Point[]): Point[] {
  const run = Math.ceil(points.length / MAX_POINTS);
  if (run === 1) return points;
  return Array.from({ length: Math.ceil(points.length / run) }, (_, i) => {
    const part = points.slice(i * run, (i + 1) * run);
    const mean = (axis: 0 | 1): number =>
      part.reduce((sum, point) => sum + point[axis], 0) / part.length;
    return [mean(0), mean(1)];
  });
}

/** About `count` round numbers from below `low` to above `high`. */
function ticks(low: number, high: number, count: number): number[] {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const unit = power * ([1, 2, 5, 10].find((factor) => span / (power * factor) <= count) ?? 10);
  const [from, to] = [Math.floor(low / unit + 1e-9), Math.ceil(high / unit - 1e-9)];
  return Array.from({ length: Math.max(to, from + 1) - from + 1 }, (_, i) => (from + i) * unit);
}

/**
 * A line plot. The lines are stretched to the box and keep their stroke width; the labels are HTML
 * beside it, so that they keep their size on a phone.
 */
function plot(
  title: string,
  kind: string,
  lines: [Point[], string][],
  format: (y: number) => string,
  withSteps: boolean,
): string {
  const xs = lines.flatMap(([points]) => points.map(([x]) => x));
  const ys = lines.flatMap(([points]) => points.map(([, y]) => y));
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const levels = ticks(Math.min(0, ...ys), Math.max(...ys), kind === 'tall' ? 5 : 2);
  const [bottom, top] = [levels[0]!, levels.at(-1)!];
  const px = (x: number): string => (((x - left) / (right - left || 1)) * 100).toFixed(2);
  const py = (y: number): string => ((1 - (y - bottom) / (top - bottom)) * 100).toFixed(2);
  const grid = levels.map((y) => `<path class="grid" d="M0 ${py(y)}H100"/>`).join('');
  const paths = lines
    .map(
      ([points, name]) =>
        `<polyline class="${name}" points="${points.map(([x, y]) => `${px(x)},${py(y)}`).join(' ')}"/>`,
    )
    .join('');
  const labels = levels
    .map((y) => `<span style="top:${py(y)}%">${escape(format(y))}</span>`)
    .join('');
  const steps = ticks(left, right, 6)
    .filter((x) => x >= left && x <= right)
    .map((x) => `<span style="left:${px(x)}%">${grouped(x)}</span>`);
  return `<figure class="plot ${kind}">
<figcaption>${title}</figcaption>
<div class="box">
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="${title} by step">
${grid}${paths}</svg>
<div class="ys" aria-hidden="true">${labels}</div></div>
${
  withSteps
    ? `<div class="xs" aria-hidden="true">${steps.join('')}</div>
<p class="axis">step</p>`
    : ''
}
</figure>`;
}
