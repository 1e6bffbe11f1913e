/** What a de-biasing run says: a text for the terminal and a page, with the same figures. */

import { escape } from '../eval/report/parts.js';
import { STYLE } from '../eval/report/style.js';
import { type Bias, type BiasTally, over } from './debias.js';

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
  /** Whether the constraint holds for the probabilities, and for the samples that the draw kept. */
  holds: boolean;
  keptHolds: boolean;
  /** The bias itself, which is not what is limited, grew by more than the limit all the same. */
  grew: boolean;
}

const KINDS = ['representation', 'association'] as const;
type Kind = (typeof KINDS)[number];

/** What does not hold or grew first, then the largest before. */
function lines(report: DebiasReport, kind: Kind): Line[] {
  const of = (tally: BiasTally): Bias[] => tally.biases()[kind];
  const before = of(report.before),
    after = of(report.after),
    kept = of(report.kept);
  const trouble = (l: Line): number => (l.holds ? (l.keptHolds ? (l.grew ? 1 : 0) : 2) : 3);
  return before
    .map((bias, i) => ({
      name:
        bias.target === undefined
          ? `${bias.group}/${bias.attribute}`
          : `${bias.target} × ${bias.group}/${bias.attribute}`,
      before: bias,
      after: after[i]!,
      kept: kept[i]!,
      holds: over(after[i]!) === 0,
      keptHolds: over(kept[i]!) === 0,
      grew: Math.max(after[i]!.bias, kept[i]!.bias) > bias.bias + bias.limit,
    }))
    .sort((a, b) => trouble(b) - trouble(a) || b.before.constraint - a.before.constraint);
}

const all = (report: DebiasReport): Line[] => KINDS.flatMap((kind) => lines(report, kind));

/** Constraints that do not hold for the probabilities, by name. */
export function violations(report: DebiasReport): string[] {
  return all(report)
    .filter(({ holds }) => !holds)
    .map(({ name }) => name);
}

const some = (names: readonly Line[]): string =>
  `${names
    .slice(0, 5)
    .map(({ name }) => name)
    .join(', ')}${names.length > 5 ? ', …' : ''}`;

/** What is to be said of all lines together, the worst first: each a sentence, and whether it is bad news. */
function verdict(report: DebiasReport): { bad: boolean; text: string }[] {
  const every = all(report),
    broken = every.filter((l) => !l.holds),
    drawn = every.filter((l) => l.holds && !l.keptHolds);
  const grew = every.filter((l) => l.grew);
  return [
    broken.length === 0
      ? { bad: false, text: `all ${every.length} constraints hold for the probabilities` }
      : {
          bad: true,
          text:
            `${broken.length} of ${every.length} constraints do not hold for the probabilities: ${some(broken)}; ` +
            'keep less, allow more, or make more passes',
        },
    ...(drawn.length === 0
      ? []
      : [
          {
            bad: true,
            text:
              `${drawn.length} are over their limit in what this draw kept: ${some(drawn)}; ` +
              'more samples, or another --seed, come nearer to the probabilities',
          },
        ]),
    ...(grew.length === 0
      ? []
      : [
          {
            bad: true,
            text:
              `${grew.length} ${grew.length === 1 ? 'bias' : 'biases'} grew although what is limited ` +
              `does not show it: ${some(grew)}; a smaller tolerance would hold ${grew.length === 1 ? 'it' : 'them'}`,
          },
        ]),
  ];
}

const mean = (list: Line[], of: (line: Line) => number): number =>
  list.reduce((sum, l) => sum + of(l), 0) / Math.max(1, list.length);
const largest = (list: Line[], of: (line: Line) => number): number =>
  list.reduce((most, l) => Math.max(most, of(l)), 0);

/** Of each kind: its name, what its constraint is on, and what else is shown of it. */
const HEADS = {
  representation: ['Representation bias', '|share − the share that is wanted|', 'the share itself'],
  association: [
    'Association bias',
    '|E[(attribute − share) · target]|',
    'P(target | attribute) − P(target | other attributes)',
  ],
} as const;

/** What a line is marked with. */
function mark({ holds, keptHolds, grew }: Line): string {
  return !holds
    ? 'over the limit'
    : !keptHolds
      ? 'kept is over the limit'
      : grew
        ? 'the bias grew'
        : '';
}

/** @param limit most lines of each kind */
export function debiasText(report: DebiasReport, limit = 12): string {
  const number = (x: number): string => x.toFixed(4).padStart(9);
  const out = [
    `${report.samples} samples, ${((100 * report.after.total) / report.samples).toFixed(2)} % expected to stay of ` +
      `${(100 * report.keep).toFixed(2)} % asked for, ${report.kept.total} kept; ` +
      `${report.passes} ${report.passes === 1 ? 'pass' : 'passes'}`,
  ];
  for (const kind of KINDS) {
    const list = lines(report, kind),
      shown = list.slice(0, limit);
    if (list.length === 0) continue;
    const width = shown.reduce((most, { name }) => Math.max(most, name.length), 0) + 2;
    const row = (name: string, of: (b: Bias) => number, l: Line): string =>
      `  ${name.padEnd(width)}${[l.before, l.after, l.kept].map((b) => number(of(b))).join('')}`;
    const summary = (name: string, how: typeof mean): string =>
      `  ${name.padEnd(width)}${(['before', 'after', 'kept'] as const)
        .map((when) => number(how(list, (l) => l[when].constraint)))
        .join('')}`;
    const [title, limited, itself] = HEADS[kind];
    out.push(
      '',
      `${title}: ${limited} ≤ ${list[0]!.after.limit}`,
      `  ${''.padEnd(width)}   before    after     kept`,
    );
    for (const l of shown)
      out.push(row(l.name, (b) => b.constraint, l) + (mark(l) && `  ${mark(l)}`));
    if (list.length > limit) out.push(`  … ${list.length - limit} more`);
    out.push(summary('largest', largest), summary('mean', mean));
    if (kind === 'representation') continue;
    out.push('', `  ${itself}, not limited itself:`);
    for (const l of shown) out.push(row(l.name, (b) => b.value, l));
  }
  out.push('', ...verdict(report).map(({ text }) => text));
  return out.join('\n');
}

/** The page: one self-contained HTML document. Bars are what is limited, their colour is whether it is over the limit. */
export function debiasPage(report: DebiasReport): string {
  const table = (kind: Kind): string => {
    const list = lines(report, kind);
    if (list.length === 0) return '';
    const { limit } = list[0]!.after,
      scale = Math.max(
        1e-9,
        limit,
        ...(['before', 'after', 'kept'] as const).map((when) =>
          largest(list, (l) => l[when].constraint),
        ),
      );
    const cell = (b: Bias, l: Line): string =>
      `<td class="${over(b) > 0 ? 'over' : b !== l.before && l.grew ? 'grew' : 'holds'}"><span class="bar" style="--w:${((100 * b.constraint) / scale).toFixed(1)}%;` +
      `--limit:${((100 * limit) / scale).toFixed(1)}%"></span><b>${b.constraint.toFixed(4)}</b> <small>${b.value.toFixed(4)}</small></td>`;
    const rows = list.map(
      (l) =>
        `<tr><th scope="row">${escape(l.name)}</th>${[l.before, l.after, l.kept].map((b) => cell(b, l)).join('')}` +
        `<td>${l.after.constraint.toFixed(4)} ${l.holds ? '≤' : '<strong>&gt;</strong>'} ${limit}` +
        `${mark(l) && `<br><strong>${mark(l)}</strong>`}</td></tr>`,
    );
    const [title, limited, itself] = HEADS[kind];
    return (
      `<section><h2>${title}</h2><p class="note">Bars: ${escape(limited)}, which is to be at most ${limit}, the line in each; red: over it; ` +
      `yellow: not over it, but the bias itself grew. Small figures: ${escape(itself)}.</p>
<div class="scroll"><table><thead><tr><th></th><th>before</th><th>after, expected</th><th>kept</th><th>constraint</th></tr></thead>
<tbody>${rows.join('\n')}</tbody></table></div></section>`
    );
  };
  const percent = (x: number): string => `${(100 * x).toFixed(2)} %`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>siglip2 debias</title><style>${STYLE}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:left;padding:5px 10px;border-top:1px solid var(--line)}
td{min-width:110px}
td .bar{position:relative}
td .bar::after{content:"";position:absolute;top:0;bottom:0;left:var(--limit);border-left:1px solid var(--ink)}
.over .bar::before{background:var(--wrong)}
.grew .bar::before{background:var(--pixel)}
.holds .bar::before{background:var(--right)}
.verdict .bad{color:var(--wrong)}</style>
<main><h1>De-biasing</h1><dl class="facts"><div><dt>Samples</dt><dd>${report.samples}</dd></div>
<div><dt>Keep rate</dt><dd>${percent(report.after.total / report.samples)} of ${percent(report.keep)} asked for</dd></div>
<div><dt>Passes</dt><dd>${report.passes}</dd></div>
<div><dt>Kept</dt><dd>${report.kept.total}</dd></div></dl>
<div class="verdict">${verdict(report)
    .map(({ bad, text }) => `<p${bad ? ' class="bad"' : ''}>${escape(text)}</p>`)
    .join('\n')}</div>
${table('representation')}
${table('association')}
</main></html>
`;
}
