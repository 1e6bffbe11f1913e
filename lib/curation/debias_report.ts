/** What a de-biasing run says: a text for the terminal and a page, with the same figures. */
import { STYLE } from '../eval/report_style.js';
import { escape } from '../eval/report_parts.js';
import { over, type Bias, type BiasTally } from './debias.js';

export interface DebiasReport {
  /** Samples read, and the keep rate asked for. */
  samples: number;
  keep: number;
  passes: number;
  /** All samples; samples weighted with their probabilities; the samples that the draw kept. */
  before: BiasTally;
  after: BiasTally;
  kept: BiasTally;
}

/** A bias before and after, side by side. */
interface Line {
  name: string;
  before: Bias;
  after: Bias;
  kept: Bias;
  /** Whether the constraint holds for the probabilities. */
  holds: boolean;
}

function lines(report: DebiasReport, kind: 'representation' | 'association'): Line[] {
  const of = (tally: BiasTally): Bias[] => tally.biases()[kind];
  const before = of(report.before), after = of(report.after), kept = of(report.kept);
  return before.map((bias, i) => ({
    name: bias.target === undefined ? `${bias.group}/${bias.attribute}` : `${bias.target} × ${bias.group}/${bias.attribute}`,
    before: bias, after: after[i]!, kept: kept[i]!, holds: over(after[i]!) === 0,
  })).sort((a, b) => b.before.bias - a.before.bias);
}

/** Constraints that do not hold for the probabilities, by name. */
export function violations(report: DebiasReport): string[] {
  return [...lines(report, 'representation'), ...lines(report, 'association')].filter(({ holds }) => !holds)
    .map(({ name }) => name);
}

const mean = (all: Line[], of: (line: Line) => Bias): number =>
  all.reduce((sum, l) => sum + of(l).bias, 0) / Math.max(1, all.length);
const largest = (all: Line[], of: (line: Line) => Bias): number => all.reduce((most, l) => Math.max(most, of(l).bias), 0);

const HEADS = {
  representation: ['Representation bias', '|share − the share that is wanted|'],
  association: ['Association bias', '|P(target | attribute) − P(target | other attributes)|'],
} as const;

/** @param limit most lines of each kind, those with the largest bias before */
export function debiasText(report: DebiasReport, limit = 12): string {
  const number = (x: number): string => x.toFixed(4).padStart(9);
  const out = [
    `${report.samples} samples, ${(100 * report.after.total / report.samples).toFixed(2)} % expected to stay of ` +
      `${(100 * report.keep).toFixed(2)} % asked for, ${report.kept.total} kept; ` +
      `${report.passes} ${report.passes === 1 ? 'pass' : 'passes'}`,
  ];
  for (const kind of ['representation', 'association'] as const) {
    const all = lines(report, kind);
    if (all.length === 0) continue;
    const width = all.slice(0, limit).reduce((most, { name }) => Math.max(most, name.length), 0) + 2;
    const row = (name: string, before: number, after: number, kept: number, mark = ''): string =>
      `  ${name.padEnd(width)}${number(before)}${number(after)}${number(kept)}${mark}`;
    out.push('', `${HEADS[kind][0]}: ${HEADS[kind][1]}`, `  ${''.padEnd(width)}   before    after     kept`);
    for (const l of all.slice(0, limit))
      out.push(row(l.name, l.before.bias, l.after.bias, l.kept.bias, l.holds ? '' : '  over the limit'));
    if (all.length > limit) out.push(`  … ${all.length - limit} more`);
    out.push(row('largest', largest(all, (l) => l.before), largest(all, (l) => l.after), largest(all, (l) => l.kept)));
    out.push(row('mean', mean(all, (l) => l.before), mean(all, (l) => l.after), mean(all, (l) => l.kept)));
  }
  const broken = violations(report);
  out.push('', broken.length === 0 ? 'all constraints hold' : `${broken.length} constraints do not hold: ` +
    `${broken.slice(0, 5).join(', ')}${broken.length > 5 ? ', …' : ''}; keep less, allow more, or make more passes`);
  return out.join('\n');
}

/** The page: one self-contained HTML document. */
export function debiasPage(report: DebiasReport): string {
  const table = (kind: 'representation' | 'association'): string => {
    const all = lines(report, kind), scale = Math.max(1e-9, largest(all, (l) => l.before), largest(all, (l) => l.kept));
    if (all.length === 0) return '';
    const cell = (b: Bias, name: string): string =>
      `<td class="${name}"><span class="bar" style="--w:${(100 * b.bias / scale).toFixed(1)}%"></span>` +
      `<b>${b.bias.toFixed(4)}</b> <small>${b.value.toFixed(4)}</small></td>`;
    const rows = all.map((l) => `<tr><th scope="row">${escape(l.name)}</th>` +
      `${cell(l.before, 'before')}${cell(l.after, 'after')}${cell(l.kept, 'kept')}` +
      `<td>${l.after.constraint.toFixed(4)} ${l.holds ? '≤' : '<strong>&gt;</strong>'} ${l.after.limit}</td></tr>`);
    return `<section><h2>${HEADS[kind][0]}</h2><p class="note">${escape(HEADS[kind][1])}; small figures: ` +
      `${kind === 'representation' ? 'the share itself' : 'the difference itself'}.</p>
<div class="scroll"><table><thead><tr><th></th><th>before</th><th>after, expected</th><th>kept</th><th>constraint</th></tr></thead>
<tbody>${rows.join('\n')}</tbody></table></div></section>`;
  };
  const broken = violations(report), percent = (x: number): string => `${(100 * x).toFixed(2)} %`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>siglip2 debias</title><style>${STYLE}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:left;padding:5px 10px;border-top:1px solid var(--line)}
td{min-width:110px}
.before .bar::before{background:var(--wrong)}
.kept .bar::before{background:var(--right)}</style>
<main><h1>De-biasing</h1><dl class="facts"><div><dt>Samples</dt><dd>${report.samples}</dd></div>
<div><dt>Keep rate</dt><dd>${percent(report.after.total / report.samples)} of ${percent(report.keep)} asked for</dd></div>
<div><dt>Passes</dt><dd>${report.passes}</dd></div>
<div><dt>Kept</dt><dd>${report.kept.total}</dd></div>
<div><dt>Constraints</dt><dd>${broken.length === 0 ? 'all hold' : `${broken.length} do not hold`}</dd></div></dl>
${table('representation')}
${table('association')}
</main></html>
`;
}
