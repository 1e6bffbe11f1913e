/** The report on a scored collection: one HTML file without network or script, light and dark, for phones too. */
import { bar, escape, grouped, locale } from '../eval/report/parts.js';
import { STYLE } from '../eval/report/style.js';
import { FLAGS, type Flag } from './score_table.js';

/** A picture with its caption. */
export interface Example {
  /** WebP; undefined when the original is gone. */
  picture: Uint8Array | undefined;
  caption: string;
  language: string;
  value: number;
}

export interface ScoreReportData {
  title: string;
  rows: number;
  tables: number;
  missing: number;
  learner: string;
  reference: string | undefined;
  /** NaN where a row has no value; columns without any are left out. */
  columns: { name: string; text: string; values: Float32Array }[];
  /** Pictures around the percentiles of a column. */
  examples: { name: string; percentiles: { percent: number; examples: Example[] }[] }[];
  /** By number of rows, descending: cosines at `LANGUAGE_PERCENTILES`, and pictures at some of them. */
  languages: {
    tag: string;
    rows: number;
    cosines: number[];
    examples: { percent: number; examples: Example[] }[];
  }[];
  flags: ReadonlyMap<Flag, number>;
  skipped: { reason: string; count: number; examples: string[] }[];
  leaks: { shard: string; key: string; image: string; cosine: number }[];
}

export const PERCENTILES = [0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100];
export const LANGUAGE_PERCENTILES = [5, 25, 50, 75, 95];

/** The value at a percentile of sorted values: the one with the nearest rank. */
export function percentile(sorted: Float32Array, percent: number): number {
  return sorted[Math.round((percent / 100) * (sorted.length - 1))] ?? NaN;
}

/** The values that are numbers, ascending. */
export function sortedValues(values: Float32Array): Float32Array {
  return values.filter((v) => !Number.isNaN(v)).sort();
}

const BINS = 60;
const LEAKS_SHOWN = 50;
const EXTRA = `
.facts dd{overflow-wrap:anywhere}
.query .label bdi{font-size:inherit;font-weight:400;line-height:inherit}
.histograms .xs span:first-child{transform:none}
.histograms .xs span:last-child{transform:translateX(-100%)}
.query img,.query .none{outline:1px solid var(--line);outline-offset:-1px;object-fit:contain}
.query .none{aspect-ratio:1;border-radius:9px;display:grid;place-items:center;color:var(--soft);font-size:.75rem;
background:var(--track)}
.query li b{display:block;font-size:.78rem;font-weight:600;font-variant-numeric:tabular-nums;margin-top:4px}
.histograms{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px 36px}
.box .area{fill:var(--model);stroke:none;opacity:.85}
.box .middle{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}
.wide{overflow-x:auto}
.wide table{min-width:560px;table-layout:auto}
td.number,th.number{text-align:right}
@media (max-width:640px){.wide .share{display:none}.wide table{min-width:0}}
details{border-top:1px solid var(--line);padding:10px 0}
summary{cursor:pointer;font-weight:600}
code,li{overflow-wrap:anywhere}
`;

/** Three digits that matter. */
const short = (v: number): string =>
  (Number.isFinite(v) ? String(Number(v.toPrecision(3))) : '–').replace('-', '−');

const label = (at: number, text: string): string => `<span style="left:${at}%">${text}</span>`;

function histogram(name: string, text: string, values: Float32Array): string {
  const sorted = sortedValues(values);
  if (sorted.length === 0) return '';
  // The outermost thousandths would squeeze everything else; they are counted in the outermost bins.
  const low = percentile(sorted, 0.1),
    high = Math.max(percentile(sorted, 99.9), low + 1e-6);
  const counts = new Float64Array(BINS),
    middle = percentile(sorted, 50);
  for (const v of sorted)
    counts[Math.min(BINS - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * BINS)))]!++;
  const most = Math.max(...counts),
    x = (part: number): string => (100 * part).toFixed(2);
  const bars = Array.from(
    counts,
    (count, i) =>
      `M${x(i / BINS)} 100V${(100 - (96 * count) / most).toFixed(2)}H${x((i + 0.9) / BINS)}V100Z`,
  );
  return `<figure class="plot tall"><figcaption>${escape(name)} <small>${escape(text)}</small></figcaption>
<div class="box"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"
aria-label="Histogram of ${escape(name)}, median ${short(middle)}">
<path class="grid" d="M0 100H100"/><path class="area" d="${bars.join('')}"/>
<path class="middle" d="M${x((middle - low) / (high - low))} 0V100"/></svg>
<div class="ys" aria-hidden="true"><span style="top:4%">${grouped(most)}</span><span style="top:100%">0</span></div></div>
<div class="xs" aria-hidden="true">
${[0, 25, 50, 75, 100].map((p) => label(p, short(low + ((high - low) * p) / 100))).join('')}</div>
<p class="axis">median ${short(middle)}</p></figure>`;
}

const head = (text: string, kind = ''): string =>
  `<th scope="col"${kind && ` class="${kind}"`}>${text}</th>`;
const numberCell = (text: string): string => `<td class="number">${text}</td>`;

/** A table that scrolls sideways where it does not fit. */
function table(heads: readonly string[], rows: readonly string[]): string {
  return `<div class="wide"><table><thead><tr>${heads.join('')}</tr></thead>
<tbody>${rows.map((row) => `<tr>${row}</tr>`).join('\n')}</tbody></table></div>`;
}

function percentileTable(columns: ScoreReportData['columns']): string {
  const sorted = columns.map(({ values }) => sortedValues(values));
  return table(
    [head('Percentile'), ...columns.map(({ name }) => head(escape(name), 'number'))],
    PERCENTILES.map(
      (p) =>
        `<th scope="row">${p}</th>${sorted.map((values) => numberCell(short(percentile(values, p)))).join('')}`,
    ),
  );
}

function pictures(percent: number, examples: readonly Example[]): string {
  const items = examples.map(({ picture, caption, language, value }) => {
    const image =
      picture === undefined
        ? '<span class="none">no picture</span>'
        : `<img loading="lazy" alt="" src="data:image/webp;base64,${Buffer.from(picture).toString('base64')}">`;
    const text = `<bdi ${locale(language).attributes} title="${escape(caption)}">${escape(caption)}</bdi>`;
    return `<li>${image}<b>${short(value)}</b><span class="label">${text}</span></li>`;
  });
  return `<article class="query"><h3>Percentile ${percent}</h3><ol>${items.join('')}</ol></article>`;
}

function exampleSections({ examples }: ScoreReportData): string {
  return examples
    .filter(({ percentiles }) => percentiles.length > 0)
    .map(
      ({ name, percentiles }) => `<section>
<h2>Pictures by ${escape(name)}</h2>
<p class="note">Around each percentile, with the ${escape(name)} of the pair and its caption.</p>
${percentiles.map(({ percent, examples: some }) => pictures(percent, some)).join('\n')}
</section>`,
    )
    .join('\n');
}

function languageSection({ languages, rows }: ScoreReportData): string {
  const cells = languages.map(
    ({ tag, rows: n, cosines }) =>
      `<th scope="row">${escape(locale(tag).name)} <small>${escape(tag)}</small></th>${numberCell(grouped(n))}` +
      `<td class="share">${bar(n / rows)}</td>${cosines.map((c) => numberCell(short(c))).join('')}`,
  );
  const shown = languages
    .filter(({ examples }) => examples.length > 0)
    .map(
      ({ tag, examples }) =>
        `<details><summary>${escape(locale(tag).name)}</summary>
${examples.map(({ percent, examples: some }) => pictures(percent, some)).join('\n')}</details>`,
    );
  const heads = [
    head('Language'),
    head('Rows', 'number'),
    head('Share', 'share'),
    ...LANGUAGE_PERCENTILES.map((p) => head(`${p} %`, 'number')),
  ];
  return `<section><h2>Languages</h2>
<p class="note">Percentiles of the cosine in each language. A model scores languages it knows less well lower, so one
threshold for all removes them; thresholds per language do not.</p>
${table(heads, cells)}
${shown.join('\n')}</section>`;
}

function oddities({ flags, skipped, leaks, rows }: ScoreReportData): string {
  const flagRows = (Object.keys(FLAGS) as Flag[]).map((flag) => {
    const count = flags.get(flag) ?? 0;
    return (
      `<th scope="row">${flag} <small>${escape(FLAGS[flag])}</small></th>${numberCell(grouped(count))}` +
      `<td class="share">${bar(count / Math.max(1, rows))}</td>`
    );
  });
  const reasons = skipped.map(
    ({ reason, count, examples }) =>
      `<li>${escape(reason)}: <b>${grouped(count)}</b>, such as <code>${escape(examples[0] ?? '')}</code></li>`,
  );
  const leaked = leaks
    .slice(0, LEAKS_SHOWN)
    .map(
      ({ shard, key, image, cosine }) =>
        `<li><code>${escape(`${shard}:${key}`)}</code> looks like <code>${escape(image)}</code>, ${short(cosine)}</li>`,
    );
  return `<section><h2>Flags</h2>
${table([head('Flag'), head('Rows', 'number'), head('Share', 'share')], flagRows)}</section>
${reasons.length ? `<section><h2>Without a score</h2><ul>${reasons.join('\n')}</ul></section>` : ''}
${
  leaked.length
    ? `<section><h2>Also in the evaluation set</h2><p class="note">${grouped(leaks.length)} rows; leaks.jsonl
has all.</p><ul>${leaked.join('\n')}</ul></section>`
    : ''
}`;
}

/** @returns a self-contained HTML document; every text that comes from data is escaped */
export function renderScoreReport(data: ScoreReportData): string {
  const columns = data.columns.filter(({ values }) => values.some((v) => !Number.isNaN(v)));
  const facts: [string, string][] = [
    ['Rows', grouped(data.rows)],
    [
      'Tables',
      `${grouped(data.tables)}${data.missing ? `, ${grouped(data.missing)} missing` : ''}`,
    ],
    ['Without a score', grouped(data.skipped.reduce((sum, { count }) => sum + count, 0))],
    ['Learner', escape(data.learner)],
  ];
  if (data.reference !== undefined) facts.push(['Reference', escape(data.reference)]);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>${escape(data.title)}</title><style>${STYLE}${EXTRA}</style></head>
<body><main>
<header><h1>${escape(data.title)}</h1>
<dl class="facts">${facts.map(([k, v]) => `<div><dt>${k}</dt><dd>${v}</dd></div>`).join('')}</dl></header>
<section><h2>Distribution</h2><div class="histograms">
${columns.map(({ name, text, values }) => histogram(name, text, values)).join('\n')}</div></section>
<section><h2>Percentiles</h2>${percentileTable(columns)}</section>
${exampleSections(data)}
${languageSection(data)}
${oddities(data)}
</main></body></html>
`;
}
