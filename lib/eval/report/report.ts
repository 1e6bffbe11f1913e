/**
 * The report that a person reads after a training run: one HTML file that needs no network and no
 * script, in light and dark, on a phone and on paper. Every text that comes from data is escaped.
 */
import { bar, escape, grouped, locale, percent } from './parts.js';
import { type CurvePoint, curves } from './plot.js';
import { STYLE } from './style.js';

/** Zero-shot figures of one language, as fractions. */
export interface LanguageScores {
  /** Pictures whose class is the nearest text, or among the nearest five. */
  top1: number;
  top5: number;
  /** Recall at 1 from text to image and from image to text. */
  t2i_r1: number;
  i2t_r1: number;
}

/** One evaluation set, in the form of eval.json. */
export interface EvaluationSet {
  classes: number;
  /** Number of pictures. */
  n: number;
  /** Top-1 of guessing. */
  chance: number;
  /** Top-1 of the pixel nearest neighbour. */
  pixel_1nn: number;
  /** By language tag. */
  languages: Record<string, LanguageScores>;
}

/** Contents of eval.json. */
export interface Evaluation {
  /**
   * Known names are `seen-placed`, `unseen-studio-placed` and `unseen-studio-plain`; others are
   * shown too.
   */
  sets: Record<string, EvaluationSet>;
  train: { seconds: number; images: number; images_per_second: number };
}

/** Pictures that one typed text brought up, best first. */
export interface Retrieval {
  query: string;
  /** Language tag of the query. */
  lang: string;
  results: { png: Uint8Array; correct: boolean; label: string }[];
}

/** What texts bring up in the pictures of one evaluation set. */
export interface Gallery {
  /** Name of the set, in `sets`. */
  set: string;
  retrievals: Retrieval[];
}

/** Everything the report shows. */
export interface ReportData extends Evaluation {
  title: string;
  date: Date;
  seed: number;
  /** Such as `cpu, 2 threads, AVX-512`. */
  device: string;
  /** Command that repeats the run. */
  command?: string;
  model: { name: string; parameters: number; imageSize: number };
  train: Evaluation['train'] & { steps: number; batch: number; studios: string[]; heldOut: string };
  /** By step, ascending. */
  curve: CurvePoint[];
  galleries: Gallery[];
  attributions: { name: string; license: string; author?: string; url?: string }[];
}

const SETS: Record<string, { title: string; text: string }> = {
  'seen-placed': {
    title: 'Seen studios, placed',
    text: 'Artwork of the training studios at new positions, sizes and backgrounds.',
  },
  'val-placed': {
    title: 'Validation studio, placed',
    text: 'Artwork of the studio by which the recipe was chosen, never trained on.',
  },
  'unseen-studio-placed': {
    title: 'Unseen studio, placed',
    text: 'Artwork of a studio that took no part in training, placed in the same way.',
  },
  'unseen-studio-plain': {
    title: 'Unseen studio, plain',
    text: 'The same held-out artwork, centred on a plain background.',
  },
};

const METRICS = [
  ['top1', 'Top-1', 'the right class first'],
  ['top5', 'Top-5', 'the right class among five'],
  ['t2i_r1', 'Text → image', 'recall at 1'],
  ['i2t_r1', 'Image → text', 'recall at 1'],
] as const;

/**
 * The report as one self-contained HTML document (UTF-8). Parts without data are left out; a
 * retrieval may have fewer pictures than others.
 *
 * @param data Fractions in [0, 1], times in seconds; pictures are PNG bytes.
 */
export function renderReport(data: ReportData): string {
  const sets = Object.entries(data.sets);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escape(data.title)}</title>
<style>${STYLE}${tabRules(sets.length)}</style>
</head>
<body>
<main>
${header(data)}
${headlines(data)}
${data.galleries.map((gallery) => retrievals(gallery, data.sets[gallery.set])).join('\n')}
${languages(sets)}
${curves(data.curve)}
${meaning(data)}
${licences(data)}
</main>
</body>
</html>
`;
}

/** A ratio for a sentence: 12×, 3.4×. */
const times = (ratio: number): string => `${ratio >= 9.95 ? grouped(ratio) : ratio.toFixed(1)}×`;

function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function header({ title, date, seed, device, model, train }: ReportData): string {
  const iso = date.toISOString();
  const facts: [string, string][] = [
    ['Date', `<time datetime="${iso}">${iso.slice(0, 16).replace('T', ' ')} UTC</time>`],
    ['Seed', escape(seed)],
    ['Device', escape(device)],
    [
      'Model',
      `${escape(model.name)}, ${parameters(model.parameters)} parameters, ` +
        `${escape(model.imageSize)} px`,
    ],
    [
      'Training',
      `${duration(train.seconds)}: ${grouped(train.steps)} steps of ` +
        `${grouped(train.batch)}, ${grouped(train.images)} images, ${grouped(train.images_per_second)} images/s`,
    ],
  ];
  return `<header>
<h1>${escape(title)}</h1>
<dl class="facts">
${facts.map(([key, value]) => `<div><dt>${key}</dt><dd>${value}</dd></div>`).join('')}
</dl>
</header>`;
}

function parameters(count: number): string {
  return count >= 1e6 ? `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} M` : grouped(count);
}

/** The language of the large figures: English, or the best one where there is no English. */
function headline(set: EvaluationSet): [string, LanguageScores] | undefined {
  return 'en' in set.languages ? ['en', set.languages['en']!] : ranked(set)[0];
}

function ranked(set: EvaluationSet): [string, LanguageScores][] {
  return Object.entries(set.languages).sort(
    ([a, x], [b, y]) => y.top1 - x.top1 || y.top5 - x.top5 || (a < b ? -1 : 1),
  );
}

function headlines({ sets }: ReportData): string {
  const shown = Object.entries(sets).flatMap(([name, set]) => {
    const best = headline(set);
    return best ? [{ name, set, tag: best[0], top1: best[1].top1 }] : [];
  });
  if (shown.length === 0) return '';
  // One scale for all cards, so that bars compare across them.
  const values = shown.flatMap(({ set, top1 }) => [top1, set.pixel_1nn, set.chance]);
  const scale = Math.max(...values, 1e-9);
  const cards = shown.map(({ name, set, tag, top1 }) => {
    const { title, text } = SETS[name] ?? { title: name, text: '' };
    const others = Object.entries(set.languages).filter(([other]) => other !== tag);
    const mean = others.reduce((sum, [, { top1: value }]) => sum + value, 0) / others.length;
    const rows: [string, string, number][] = [
      ['Model', 'model', top1],
      ['Pixel neighbour', 'pixel', set.pixel_1nn],
      ['Chance', 'chance', set.chance],
    ];
    return `<article class="card">
<h3>${escape(title)}</h3>
<p class="note">${escape(text)}</p>
<p class="figure">${percent(top1)} <small>top-1 in ${escape(locale(tag).name)},
${grouped(set.classes)} classes</small></p>
<dl class="bars">${rows
      .map(
        ([label, kind, value]) =>
          `<div class="${kind}"><dt>${label}</dt>` +
          `<dd>${bar(value / scale)}<span>${percent(value)}</span></dd></div>`,
      )
      .join('')}</dl>
<p class="verdict">${verdict(top1, set)}</p>
${
  others.length === 0
    ? ''
    : `<p class="note">Mean of the other ${others.length} languages:
<b>${percent(mean)}</b></p>`
}
</article>`;
  });
  return `<section class="cards" aria-label="Headline figures">
${cards.join('\n')}
</section>`;
}

/** How the model stands against the pixel neighbour, said plainly in both cases. */
function verdict(top1: number, { pixel_1nn: pixel, chance }: EvaluationSet): string {
  const against =
    pixel <= 0
      ? 'The pixel neighbour finds nothing here.'
      : top1 >= pixel
        ? `${times(top1 / pixel)} the pixel neighbour.`
        : `Below the pixel neighbour, which is ${times(pixel / Math.max(top1, 1e-9))} as good here.`;
  return chance > 0 ? `${against}<br>${times(top1 / chance)} chance.` : against;
}

function retrievals(
  { set: name, retrievals: list }: Gallery,
  set: EvaluationSet | undefined,
): string {
  if (list.length === 0) return '';
  const { title, text } = SETS[name] ?? { title: name, text: '' };
  const all = list.flatMap(({ results }) => results),
    hits = all.filter(({ correct }) => correct).length;
  const rows = list.map(({ query, lang, results }) => {
    const { attributes, name } = locale(lang);
    const right = results.filter(({ correct }) => correct).length;
    const pictures = results.map(({ png, correct, label }) => {
      const mark = correct ? 'right' : 'wrong';
      const source = `data:image/png;base64,${Buffer.from(png).toString('base64')}`;
      return (
        `<li class="${mark}"><img src="${source}" ` +
        `alt="${escape(label)}" title="${escape(label)}" width="96" height="96">` +
        `<span class="mark" role="img" aria-label="${mark}">${correct ? '✓' : '✗'}</span>` +
        `<span class="label">${escape(label)}</span></li>`
      );
    });
    return `<article class="query">
<h3><bdi ${attributes}>${escape(query)}</bdi>
<small>${escape(name)} · ${right} of ${results.length} right</small></h3>
<ol>${pictures.join('')}</ol>
</article>`;
  });
  const longest = Math.max(...list.map(({ results }) => results.length));
  return `<section>
<h2>What typed words find: ${escape(title.toLowerCase())}</h2>
<p class="note">${escape(text)} The ${longest} nearest pictures to each text, best first${
    set ? `, of ${grouped(set.n)}` : ''
  }. ✓ marks a picture of the class that the text names:
<b>${hits} of ${all.length}</b>.</p>
${rows.join('\n')}
</section>`;
}

/** One table per set behind radio buttons; on paper all of them. */
function languages(sets: [string, EvaluationSet][]): string {
  if (sets.length === 0) return '';
  const title = (name: string): string => escape(SETS[name]?.title ?? name);
  const inputs = sets.map(
    ([name], i) =>
      `<input type="radio" name="set" id="set-${i}" class="hidden"${i === 0 ? ' checked' : ''}>` +
      `<label for="set-${i}">${title(name)}</label>`,
  );
  const panels = sets.map(
    ([name, set], i) => `<div class="panel panel-${i}">
<h3 class="paper">${title(name)}</h3>
<p class="note">${grouped(set.n)} pictures, ${grouped(set.classes)} classes,
${Object.keys(set.languages).length} languages, sorted by top-1.</p>
${table(set)}
</div>`,
  );
  return `<section>
<h2>Every language</h2>
<div class="tabs">${inputs.join('')}
${panels.join('\n')}
</div>
</section>`;
}

function table(set: EvaluationSet): string {
  const cell = (value: number, kind = ''): string =>
    `<td class="${kind}"><span>${percent(value)}</span>${bar(value)}</td>`;
  const rows = ranked(set).map(([tag, scores]) => {
    const cells = METRICS.map(([key]) => cell(scores[key])).join('');
    const name = escape(locale(tag).name);
    return `<tr><th scope="row">${name} <small>${escape(tag)}</small></th>${cells}</tr>`;
  });
  const baseline = (label: string, kind: string, value: number): string =>
    `<tr><th scope="row">${label}</th>${cell(value, kind)}<td colspan="3"></td></tr>`;
  return `<table>
<thead><tr><th scope="col">Language</th>${METRICS.map(
    ([, label, text]) => `<th scope="col">${label}<small>${text}</small></th>`,
  ).join('')}</tr></thead>
<tbody>
${rows.join('\n')}
</tbody>
<tfoot>
${baseline('Pixel neighbour', 'pixel', set.pixel_1nn)}
${baseline('Chance', 'chance', set.chance)}
</tfoot>
</table>`;
}

/** Shows the panel of the chosen radio button. */
function tabRules(count: number): string {
  return (
    Array.from({ length: count }, (_, i) => `#set-${i}:checked~.panel-${i}`).join(',') +
    `${count ? '{display:block}' : ''}`
  );
}

function meaning({ train, sets, seed }: ReportData): string {
  const beaten = Object.entries(sets)
    .filter(([, set]) => (headline(set)?.[1].top1 ?? 1) < set.pixel_1nn)
    .map(([name]) => SETS[name]?.title.toLowerCase() ?? name);
  const warning =
    beaten.length === 0
      ? ''
      : ` <strong>The pixel neighbour beats the model on: ${escape(beaten.join('; '))}.</strong>`;
  return `<section class="prose">
<h2>What these figures mean</h2>
<p><b>Placed</b> means that every picture is drawn at a random size and position on a random
background, so that no two are alike pixel by pixel. <b>Plain</b> artwork is centred on one colour.
Emoji of different studios resemble each other, and on plain artwork comparing pixels goes a long
way; that is why every figure here stands beside a <b>pixel neighbour</b>: each picture is shrunk to
16 × 16 pixels and takes the class of the most similar training picture.
<b>Chance</b> is guessing among the classes.${warning}</p>
<p>The model saw captions and artwork of ${escape(train.studios.join(', '))}. The artwork of
<b>${escape(train.heldOut)}</b> took no part in training or in choosing its settings. <b>Seen</b>
sets show that the model has learned its artwork and recognises it anywhere; only the <b>unseen</b>
sets say something about artwork it has never met.</p>
<p>This is one run with seed ${escape(seed)}; another seed moves the figures. A model of this size
after ${duration(train.seconds)} of training is a demonstration that the whole chain works, and no
replacement for a released checkpoint. Pictures are drawings and not photographs.</p>
</section>`;
}

function licences({ attributions, command }: ReportData): string {
  const items = attributions.map(({ name, license, author, url }) => {
    // Only web addresses become links; anything else is shown as nothing.
    const title =
      url !== undefined && /^https?:\/\//i.test(url)
        ? `<a href="${escape(url)}" rel="noreferrer">${escape(name)}</a>`
        : escape(name);
    return (
      `<li>${title}${author === undefined ? '' : ` by ${escape(author)}`}: ` +
      `${escape(license)}</li>`
    );
  });
  return `<footer>
${
  items.length
    ? `<h2>Artwork and words</h2>
<ul>${items.join('')}</ul>`
    : ''
}
${command === undefined ? '' : `<p>Made with <code>${escape(command)}</code></p>`}
</footer>`;
}
