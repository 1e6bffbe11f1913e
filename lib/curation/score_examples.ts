/** From a merged collection to its report: chooses the rows that stand for the percentiles and fetches their pictures. */
import { join } from 'node:path';
import sharp from 'sharp';
import { writeFileAtomic } from '../fs/files.js';
import { FileReader } from '../io/reader.js';
import type { MergeSummary } from './merge.js';
import { originalSamples } from './originals.js';
import {
  type Example,
  LANGUAGE_PERCENTILES,
  PERCENTILES,
  percentile,
  renderScoreReport,
  type ScoreReportData,
  sortedValues,
} from './score_report.js';
import { openUnit } from './score_table.js';

/** Pictures at a percentile: as many as stand beside each other. */
const AT_PERCENTILE = 8;
/** Languages with pictures, those with most rows; and where. */
const LANGUAGES_SHOWN = 12,
  LANGUAGE_EXAMPLES = [5, 50, 95];
const THUMBNAIL = 128;

/** Rows around a percentile, ascending by value; `order` is rows by value. */
function rowsAt(order: Int32Array, percent: number): number[] {
  const count = Math.min(AT_PERCENTILE, order.length),
    middle = Math.round((percent / 100) * (order.length - 1));
  const from = Math.max(0, Math.min(order.length - count, middle - (count >> 1)));
  return [...order.subarray(from, from + count)];
}

/** Rows that have a value, ascending by it; equal ones in their order. */
function ordered(values: Float32Array, rows: Iterable<number>): Int32Array {
  const some = [...rows].filter((row) => !Number.isNaN(values[row]!));
  return Int32Array.from(some.sort((a, b) => values[a]! - values[b]! || a - b));
}

type Shown = Omit<Example, 'value'>;

/** Reads captions and pictures of rows. */
async function fetchRows(
  folder: string,
  { units, starts }: MergeSummary,
  rows: ReadonlySet<number>,
): Promise<Map<number, Shown>> {
  const wanted = new Map<string, Map<string, number>>(),
    out = new Map<number, Shown>();
  for (const [u, unit] of units.entries()) {
    const end = starts[u + 1] ?? Infinity,
      own = [...rows].filter((row) => row >= starts[u]! && row < end);
    if (own.length === 0) continue;
    const columns = await (await openUnit(folder, unit)).read(['key', 'caption', 'language']);
    const text = (column: string, row: number): string =>
      columns[column]![row - starts[u]!] as string;
    wanted.set(unit, new Map(own.map((row) => [text('key', row), row])));
    for (const row of own)
      out.set(row, {
        picture: undefined,
        caption: text('caption', row),
        language: text('language', row),
      });
  }
  const keysOf = new Map([...wanted].map(([unit, keys]) => [unit, new Set(keys.keys())]));
  const originals = await originalSamples(folder, keysOf);
  const reader = new FileReader();
  try {
    for (const [unit, keys] of wanted) {
      for (const [key, row] of keys) {
        const sample = originals.get(unit)?.get(key);
        if (!sample) continue;
        // A file that has changed since it was scored is a report without its picture, and no reason to have none.
        const picture = await sharp(reader.read(sample.image))
          .autoOrient()
          .resize(THUMBNAIL, THUMBNAIL, { fit: 'inside', withoutEnlargement: true })
          .webp({ quality: 75 })
          .toBuffer()
          .catch(() => undefined);
        out.set(row, { ...out.get(row)!, picture });
      }
    }
  } finally {
    reader.close();
  }
  return out;
}

/** What the report shows. */
export async function scoreReportData(
  folder: string,
  summary: MergeSummary,
): Promise<ScoreReportData> {
  const { columns, settings, rows } = summary,
    used = new Set<number>();
  const all = Array.from({ length: rows }, (_, i) => i);
  const at = (order: Int32Array, percents: readonly number[]) =>
    order.length === 0
      ? []
      : percents.map((percent) => {
          const chosen = rowsAt(order, percent);
          for (const row of chosen) used.add(row);
          return { percent, rows: chosen };
        });
  const chosen = (['cosine', 'learnability'] as const).map((name) => ({
    name,
    percentiles: at(ordered(columns[name], all), PERCENTILES),
  }));
  const byLanguage = new Map<string, number[]>();
  columns.language.forEach((tag, row) => {
    const list = byLanguage.get(tag);
    if (list) list.push(row);
    else byLanguage.set(tag, [row]);
  });
  const bySize = [...byLanguage].sort(([a, x], [b, y]) => y.length - x.length || (a < b ? -1 : 1));
  const languages = bySize.map(([tag, own], i) => ({
    tag,
    own,
    percentiles: i < LANGUAGES_SHOWN ? at(ordered(columns.cosine, own), LANGUAGE_EXAMPLES) : [],
  }));
  const fetched = await fetchRows(folder, summary, used);
  const filled = (values: Float32Array, list: { percent: number; rows: number[] }[]) =>
    list.map(({ percent, rows: some }) => ({
      percent,
      examples: some.map((row) => ({ ...fetched.get(row)!, value: values[row]! })),
    }));
  return {
    title: 'Scores',
    rows,
    tables: summary.units.length,
    missing: summary.missing.length,
    learner: settings.learner.source,
    reference: settings.reference?.source,
    columns: [
      { name: 'cosine', text: 'of image and caption', values: columns.cosine },
      { name: 'probability', text: 'that they belong together', values: columns.probability },
      {
        name: 'learnability',
        text: 'loss of the learner − loss of the reference',
        values: columns.learnability,
      },
      { name: 'caption length', text: 'characters', values: columns.caption_length },
    ],
    examples: chosen.map(({ name, percentiles }) => ({
      name,
      percentiles: filled(columns[name], percentiles),
    })),
    languages: languages.map(({ tag, own, percentiles }) => {
      const cosines = sortedValues(Float32Array.from(own, (row) => columns.cosine[row]!));
      return {
        tag,
        rows: own.length,
        cosines: LANGUAGE_PERCENTILES.map((p) => percentile(cosines, p)),
        examples: filled(columns.cosine, percentiles),
      };
    }),
    flags: summary.flags,
    leaks: summary.leaks,
    skipped: [...summary.skips.byReason].map(([reason, record]) => ({ reason, ...record })),
  };
}

/** Writes report.html into a folder of scores; its path. */
export async function writeScoreReport(folder: string, summary: MergeSummary): Promise<string> {
  const file = join(folder, 'report.html');
  await writeFileAtomic(file, renderScoreReport(await scoreReportData(folder, summary)));
  return file;
}
