/**
 * Labels of samples for de-biasing: from columns, from regular expressions over captions, or from a model that is asked
 * about the picture. Samples come from image collections or from tables in parquet.
 */
import { z } from 'zod';
import { describeSample, readCaptions } from '../data/sample.js';
import { openSource } from '../data/source.js';
import { hasImages, wanted } from '../data/sources/manifest.js';
import type { SourceSpec } from '../data/spec.js';
import type { Encoder } from '../encoder/encoder.js';
import { ConfigError, DataError } from '../errors.js';
import { readInput, reasonOf } from '../fs/files.js';
import type { SkipCounter } from '../fs/skips.js';
import type { ImageInput } from '../image/input.js';
import { openTable, type Table } from '../io/parquet.js';
import { FileReader } from '../io/reader.js';
import type { DebiasOptions, Labels } from './debias.js';

const scalar = z.union([z.string(), z.number(), z.boolean()]);
const rule = z.union([
  /** A regular expression (flags i, u) over the text in a column; default: any of the captions. */
  z.strictObject({ match: z.string(), column: z.string().optional() }),
  /** A column of the table or of the sample's JSON that has this value, or one of these. */
  z.strictObject({ column: z.string(), equals: z.union([scalar, z.array(scalar)]) }),
  /** A model's probability that the picture and one of these prompts belong together reaches the threshold. */
  z.strictObject({
    prompts: z.array(z.string()).min(1),
    threshold: z.number().min(0).max(1).default(0.5),
  }),
]);
type Rule = z.output<typeof rule>;

const tolerance = z.number().min(0).default(0.01);

const debiasConfigSchema = z.strictObject({
  /** Share of the samples to keep. */
  keep: z.number().gt(0).max(1),
  /** ε of representation and association: see `DebiasOptions`. */
  tolerance: z.strictObject({ representation: tolerance, association: tolerance }).prefault({}),
  step: z.number().positive().optional(),
  /** Groups of attributes with the share that each is to have. */
  attributes: z.record(
    z.string(),
    z.strictObject({
      among: z.enum(['labelled', 'all']).default('labelled'),
      values: z.record(z.string(), z.strictObject({ share: z.number().gt(0).lt(1), label: rule })),
    }),
  ),
  /** What must not be associated with them. */
  targets: z.record(z.string(), rule).default({}),
});
export type DebiasConfig = z.output<typeof debiasConfigSchema>;

/** Reads a config. Throws ConfigError naming file and key. */
export async function loadDebiasConfig(file: string): Promise<DebiasConfig> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(await readInput(file)));
  } catch (cause) {
    throw new ConfigError(`the config ${file} cannot be read: ${reasonOf(cause)}`, { cause });
  }
  const parsed = debiasConfigSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0]!;
  throw new ConfigError(`${file}: ${path.map(String).join('.') || 'the config'}: ${message}`);
}

export function debiasOptions({
  keep,
  tolerance,
  step,
  attributes,
  targets,
}: DebiasConfig): DebiasOptions {
  return {
    keep,
    ...tolerance,
    ...(step === undefined ? {} : { step }),
    targets: Object.keys(targets),
    groups: Object.entries(attributes).map(([name, { among, values }]) => ({
      name,
      among,
      attributes: Object.entries(values).map(([value, { share }]) => ({ name: value, share })),
    })),
  };
}

/** What rules look at. */
export interface LabelledRecord {
  key: string;
  /** The tar, folder, manifest or table that it is in. */
  file: string;
  captions: string[];
  columns: Record<string, unknown>;
  /** Absent for rows of a table. */
  image?: () => ImageInput;
}

/**
 * The samples of a collection, or the rows of a parquet file, whose columns `key`, `caption` and `shard` become key,
 * captions and file.
 * @param skips counts what cannot be used
 * @throws DataError for a damaged file, or one without `key`
 */
export async function* readRecords(
  input: SourceSpec,
  skips: SkipCounter,
): AsyncGenerator<LabelledRecord> {
  if (
    input.type === 'manifest' &&
    typeof input.path === 'string' &&
    /\.parquet$/i.test(input.path)
  ) {
    const table = await openTable(input.path);
    if (table.columns.includes('key')) return yield* tableRecords(input.path, table);
    if (!hasImages(table.columns, input.members)) {
      throw new DataError(
        `${input.path}: expected a column "key", or ${wanted(input.members)}, but its columns are ` +
          table.columns.join(', '),
      );
    }
  }
  const source = await openSource(input, {
    ...(skips.maxSkips === undefined ? {} : { maxSkips: skips.maxSkips }),
    ...(skips.note ? { note: skips.note } : {}),
  });
  const reader = new FileReader();
  skips.addAll(source.skips);
  try {
    for (const sample of source.samples) {
      const { captions, meta } = readCaptions(reader, sample);
      const file =
        input.type === 'folder'
          ? input.path
          : sample.image.size < 0
            ? sample.captions.path
            : sample.image.path;
      yield {
        key: sample.key,
        file,
        captions: captions.map(({ text }) => text),
        columns: meta,
        image: () => ({ bytes: reader.read(sample.image), name: describeSample(sample) }),
      };
    }
  } finally {
    reader.close();
  }
}

async function* tableRecords(path: string, table: Table): AsyncGenerator<LabelledRecord> {
  for await (const group of table.groups(table.columns))
    for (let row = 0; row < group['key']!.length; row++) {
      const columns = Object.fromEntries(table.columns.map((name) => [name, group[name]![row]]));
      const captions = [columns['caption']]
        .flat()
        .filter((text): text is string => typeof text === 'string');
      yield {
        key: String(columns['key']),
        file: String(columns['shard'] ?? path),
        captions,
        columns,
      };
    }
}

/** Gives records the labels of a config. */
export class Labeller {
  readonly #rules: Rule[];
  readonly #patterns: (RegExp | undefined)[];
  #prompts:
    | Promise<{ rule: number; texts: Awaited<ReturnType<Encoder['encodeTexts']>> }[]>
    | undefined;

  readonly #model: Encoder | undefined;
  readonly #skips: SkipCounter;
  readonly #options: { batchSize?: number };

  /** Throws ConfigError for a pattern that is none, or prompts without a model. */
  constructor(
    config: DebiasConfig,
    model: Encoder | undefined,
    skips: SkipCounter,
    options: { batchSize?: number } = {},
  ) {
    this.#model = model;
    this.#skips = skips;
    this.#options = options;
    this.#rules = [
      ...Object.values(config.attributes).flatMap(({ values }) =>
        Object.values(values).map(({ label }) => label),
      ),
      ...Object.values(config.targets),
    ];
    this.#patterns = this.#rules.map((r) => {
      if (!('match' in r)) return undefined;
      try {
        return new RegExp(r.match, 'iu');
      } catch (cause) {
        throw new ConfigError(
          `debias: "${r.match}" is no regular expression: ${(cause as Error).message}`,
          { cause },
        );
      }
    });
    if (!model && this.#rules.some((r) => 'prompts' in r))
      throw new ConfigError('debias: labels by prompts need --model');
  }

  /** Labels of a batch of records; undefined where the picture cannot be decoded, which is counted. */
  async label(records: readonly LabelledRecord[]): Promise<(Labels | undefined)[]> {
    const labels: (Labels | undefined)[] = records.map((record) =>
      Uint8Array.from(this.#rules, (r, i) => (this.#holds(record, r, i) ? 1 : 0)),
    );
    if (this.#rules.some((r) => 'prompts' in r)) await this.#ask(records, labels);
    return labels;
  }

  #holds({ captions, columns }: LabelledRecord, r: Rule, i: number): boolean {
    if ('prompts' in r) return false;
    if ('match' in r) {
      const texts =
        r.column === undefined ? captions : [columns[r.column] ?? []].flat().map(String);
      return texts.some((text) => this.#patterns[i]!.test(text));
    }
    return [r.equals].flat().some((value) => value === plain(columns[r.column]));
  }

  async #ask(records: readonly LabelledRecord[], labels: (Labels | undefined)[]): Promise<void> {
    const model = this.#model!;
    this.#prompts ??= Promise.all(
      this.#rules.flatMap((r, i) =>
        'prompts' in r ? [model.encodeTexts(r.prompts).then((texts) => ({ rule: i, texts }))] : [],
      ),
    );
    const images = records.map(({ image, file }) => {
      if (!image)
        throw new ConfigError(
          `debias: ${file} is a table without pictures, so prompts need the collection itself`,
        );
      return image();
    });
    const rows = await model.encodeImages(images, {
      ...this.#options,
      onBadImage: (_, i) => {
        labels[i] = undefined;
        this.#skips.add('the image cannot be decoded', `${records[i]!.file}:${records[i]!.key}`);
      },
    });
    for (const { rule: at, texts } of await this.#prompts) {
      const { threshold } = this.#rules[at] as Extract<Rule, { prompts: string[] }>;
      const { probabilities } = await model.similarity(rows, texts);
      labels.forEach((l, i) => {
        if (
          l &&
          probabilities.subarray(i * texts.rows, (i + 1) * texts.rows).some((p) => p >= threshold)
        )
          l[at] = 1;
      });
    }
  }
}

/** Whole numbers of parquet come as BigInt. */
function plain(value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value;
}
