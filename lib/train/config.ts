/** The training config: one plain object, checked here, every default in one place. */
import { access } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { z } from 'zod';
import { NAFLEX_LENGTHS } from '../data/naflex_lengths.js';
import { ConfigError } from '../errors.js';
import { readInput, reasonOf } from '../fs/files.js';
import { didYouMean } from '../model/config.js';
import { native } from '../native.js';
import { FORMS } from '../optim/duration.js';
import { ADAMW_DEFAULTS } from '../optim/optimizer.js';

const positive = z.number().positive();
const count = z.int().min(1);
/** Steps as a number, or `{ steps }`, `{ examples }`, `{ epochs }`, or "10%" of the run. */
const duration = z.union(
  [
    z.number().min(0),
    z.string(),
    z.strictObject({ steps: z.number().min(0) }),
    z.strictObject({ examples: z.number().min(0) }),
    z.strictObject({ epochs: z.number().min(0) }),
  ],
  FORMS,
);

const percent = z.string().regex(/^\d+(\.\d+)?%$/, 'must be a percentage such as "80%"');

/** Of the user's own collections: language of captions that do not say theirs; a key list of the samples to use. */
const choice = {
  language: z.string().optional(),
  keys: z.string().optional(),
  /** Which members, columns or keys are image and caption, where they are not the usual ones. */
  members: z.strictObject({ image: z.string(), caption: z.string() }).partial().optional(),
};

const single = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('webdataset'),
    tars: z.union([z.string(), z.array(z.string())]),
    ...choice,
  }),
  z.strictObject({ type: z.literal('folder'), path: z.string(), ...choice }),
  z.strictObject({
    type: z.literal('manifest'),
    path: z.union([z.string(), z.array(z.string())]),
    ...choice,
  }),
  z.strictObject({
    type: z.literal('emoji'),
    path: z.string().default('data/emoji'),
    split: z.enum(['train', 'val', 'test']).optional(),
    studios: z.array(z.string()).optional(),
  }),
  z.strictObject({
    type: z.literal('scenes'),
    path: z.string().default('data/scenes'),
    split: z.enum(['train', 'val', 'test']).optional(),
    /** `siglip2 train` builds the dataset with these options when it is not there. */
    build: z
      .strictObject({
        scenes: z
          .strictObject({ train: z.int().min(0), val: z.int().min(0), test: z.int().min(0) })
          .partial(),
        seed: z.int(),
        size: count,
        objects: count,
        scale: z.tuple([z.number(), z.number()]),
        classes: count,
        languages: z.array(z.string()),
      })
      .partial()
      .optional(),
  }),
]);

const share = z.number().min(0).max(1);
/** Several of them as one, with weights by source and quotas by language: docs/mixture.md. */
const source = z.discriminatedUnion('type', [
  ...single.options,
  z.strictObject({
    type: z.literal('mixture'),
    sources: z
      .array(
        z.strictObject({
          name: z.string().optional(),
          weight: positive.optional(),
          source: single,
        }),
      )
      .min(1),
    languages: z
      .strictObject({
        quotas: z.record(z.string(), share).optional(),
        temperature: positive.optional(),
      })
      .optional(),
  }),
]);
const range = z.tuple([z.number(), z.number()]);
const weight = z.number().min(0);
const viewSettings = z
  .strictObject({
    size: count,
    scale: range,
    ratio: range,
    flip: share,
    colour: share,
    brightness: share,
    contrast: share,
    saturation: share,
    hue: share,
    greyscale: share,
    blur: share,
    sigma: range,
    solarise: share,
  })
  .partial();

/** Objectives beside the sigmoid loss, whose weight is 1. An objective that is absent is not trained. */
const objectives = z.strictObject({
  /** The sigmoid loss, which is always there. */
  sigmoid: z
    .strictObject({
      /**
       * How much each caption of an image counts, in the order of data.captions.pick; only the proportions matter. Default:
       * all the same.
       */
      captionWeights: z.array(positive).min(1).optional(),
    })
    .prefault({}),
  /** LocCa (SigLIP 2 §2.2): captioning, referring expression, grounded captioning. Needs model.decoder. */
  caption: z
    .strictObject({
      weight: positive.default(1),
      /** Factors of the three tasks within it. */
      tasks: z
        .strictObject({
          caption: weight.default(1),
          aref: weight.default(1),
          gcap: weight.default(1),
        })
        .prefault({}),
      /** Probability that an example's caption is predicted in parallel. */
      parallel: share.default(0.5),
      /** Regions with a lower score are never chosen. */
      minScore: share.default(0.3),
      boxes: z
        .strictObject({ bins: count, order: z.tuple([z.int(), z.int(), z.int(), z.int()]) })
        .optional(),
    })
    .optional(),
  /** Self-distillation and masked prediction (§2.3). Needs optimizer.ema. */
  distill: z
    .strictObject({
      /** Weights before the factor of the model's size. */
      weight: weight.default(1),
      maskedWeight: weight.default(0.25),
      /** Default: the paper's for the size, 0.25 for others. */
      factor: positive.optional(),
      temperatures: z
        .strictObject({ student: positive.default(0.1), teacher: positive.default(0.04) })
        .prefault({}),
      centreMomentum: share.default(0.9),
      views: z
        .strictObject({ global: viewSettings, local: viewSettings, locals: count, masked: share })
        .partial()
        .default({}),
      head: z
        .strictObject({
          hidden: count,
          bottleneck: count,
          prototypes: count,
          patchPrototypes: count,
          std: positive,
        })
        .partial()
        .default({}),
    })
    .optional(),
});

/** Online selection (JEST, ACID): every step trains on the part of a super-batch that is worth it. */
const selection = z
  .strictObject({
    /** Filter ratio: samples dropped, as a share of the super-batch, which is batch / (1 - ratio). */
    ratio: z.number().positive().lt(1),
    /** Chunks in which the batch is drawn; 16 in JEST. */
    chunks: count.default(16),
    /** How sharply scores decide. */
    gain: weight.default(1),
    score: z.enum(['learnability', 'easy-reference', 'learner']).default('learnability'),
    /** Any checkpoint: a folder, a .npz file or a hub id. For every score but `learner`. */
    reference: z.string().optional(),
    /**
     * Embed every sample with the reference once, and not in every step; in a file of this name, or of the run when it is
     * true. The images are then the collection's without random transforms.
     */
    referenceCache: z.union([z.boolean(), z.string()]).default(false),
    /** Flexi-JEST: the learner scores images of this side, pixels, and trains on a share `coarse` of the batch at it. */
    resolution: count.optional(),
    coarse: share.default(0.5),
    /** Keys of chosen and rejected samples in selection.jsonl. */
    log: z.boolean().default(false),
  })
  .superRefine((s, issues) => {
    const wrong = (key: keyof typeof s, message: string): void => {
      issues.addIssue({ code: 'custom', path: [key], message });
    };
    if (s.score !== 'learner' && s.reference === undefined)
      wrong('reference', `the score ${s.score} needs a checkpoint as reference`);
    if (s.score === 'learner' && s.reference !== undefined)
      wrong('reference', 'the score learner has no reference; remove it');
    if (s.reference === undefined && s.referenceCache !== false)
      wrong('referenceCache', 'there is no reference to cache; remove it');
    if (s.score === 'easy-reference' && s.resolution !== undefined)
      wrong('resolution', 'the score easy-reference does not ask the learner; remove it');
  });

export const trainConfigSchema = z
  .strictObject({
    /** Folder of the run: metrics.jsonl, checkpoints/. */
    out: z.string().min(1),
    /** Everything random follows from it. */
    seed: z.int().min(0).default(0),
    device: z
      .union([
        z.enum(['auto', 'cpu', 'cuda']),
        z.string().regex(/^cuda:\d+$/, "must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
      ])
      .default('auto'),
    /** Activations; auto is bf16 where the device multiplies it natively. */
    dtype: z.enum(['auto', 'f32', 'bf16']).default('auto'),
    model: z.looseObject({ variant: z.string() }),
    data: z.strictObject({
      source,
      /** Augmentations in order; the last one makes the image square. Default: plain resize. */
      transforms: z.array(z.looseObject({ name: z.string() })).default([{ name: 'resize' }]),
      captions: z
        .strictObject({
          pick: z.array(z.string()).min(1).default(['any']),
          primaryProbability: z.number().min(0).max(1).optional(),
          languages: z.array(z.string()).optional(),
        })
        .default({ pick: ['any'] }),
      /** Path of a tokenizer.json; default: the Gemma one. */
      tokenizer: z.string().optional(),
      lowercase: z.enum(['ascii', 'unicode', 'none']).default('unicode'),
      /** Keep only the token ids that the data uses: for small models. */
      trimVocabulary: z.boolean().default(false),
      /** No two samples of a batch share a class. */
      uniqueClasses: z.boolean().default(false),
      /** Transparency of images: laid on white, or forgotten; placed artwork keeps it. */
      alpha: z.enum(['white', 'drop']).optional(),
      /** Images with more pixels are refused; default 178,956,970. */
      maxPixels: count.optional(),
      workers: z.int().min(0).optional(),
      /** Batches made ahead; default twice the workers. */
      prefetch: count.optional(),
      cacheBytes: z.int().min(0).optional(),
      /** Samples that may be skipped, a number or a share such as "2%"; default 1 % or 100, the larger. */
      maxSkips: z.union([z.int().min(0), percent]).optional(),
      /** Milliseconds without any progress of loading after which the run fails; default 30,000. For disks that sleep. */
      timeoutMs: count.optional(),
      /** For experiments: a share of the samples, chosen by the seed, that get each other's captions. */
      noise: z.strictObject({ swapped: share, seed: z.int().min(0).default(0) }).optional(),
      /** Of the emoji data set that the quickstart builds: only its first classes. */
      maxClasses: count.optional(),
      /** The same: whether joined emoji ("man judge") are classes too. */
      sequences: z.boolean().optional(),
    }),
    /** Of a NaFlex model: most patches of an image, drawn for every batch; a batch of the longest trained on in halves. */
    naflex: z
      .strictObject({
        lengths: z
          .array(count)
          .min(1)
          .default([...NAFLEX_LENGTHS]),
        halveLongest: z.boolean().default(true),
      })
      .prefault({}),
    objectives: objectives.prefault({}),
    /** Samples that one step trains on; with selection, those chosen. Examples and epochs count these. */
    batch: count,
    selection: selection.optional(),
    total: duration,
    /**
     * The part of the schedule that this run covers, and how many times longer than its share of the total it takes.
     * Steps and metrics count from the run's own beginning.
     */
    span: z
      .strictObject({
        from: percent.default('0%'),
        to: percent.default('100%'),
        stretch: positive.default(1),
      })
      .prefault({}),
    /** Positions on the schedule whose checkpoints are always kept, for other runs to start from. */
    keepAt: z.array(percent).default([]),
    optimizer: z
      .strictObject({
        lr: positive.default(ADAMW_DEFAULTS.lr),
        weightDecay: weight.default(ADAMW_DEFAULTS.weightDecay),
        beta1: share.default(ADAMW_DEFAULTS.beta1),
        beta2: share.default(ADAMW_DEFAULTS.beta2),
        eps: positive.default(ADAMW_DEFAULTS.eps),
        clip: positive.default(ADAMW_DEFAULTS.clip),
        warmup: duration.default('2%'),
        schedule: z.enum(['cosine', 'constant']).default('cosine'),
        lrScale: z.record(z.string(), weight).default(ADAMW_DEFAULTS.lrScale),
        ema: share.nullable().default(ADAMW_DEFAULTS.ema),
      })
      .prefault({}),
    /**
     * Parameters that keep their bits: names, or beginnings of names up to a dot, such as "vision_model" or
     * "text_model.embeddings"; `*` stands for any characters. An optimizer.lrScale of 0 freezes too.
     */
    freeze: z.array(z.string().min(1)).default([]),
    /**
     * Gradient caching: at most so many images at a time, with the gradient of the whole batch, for one more forward pass of
     * both towers. A batch may then be far larger than what fits in memory.
     */
    microBatch: count.optional(),
    /** Gradient checkpointing per block. */
    checkpointBlocks: z.boolean().default(false),
    /**
     * CUDA: records the step once and replays it, which spares the host from enqueuing it op by op. Only for the sigmoid
     * loss on images of one size; a run whose steps vary says so and goes on without.
     */
    graph: z.boolean().default(false),
    /** How often a checkpoint is written, and how many are kept. */
    checkpointEvery: duration.default('25%'),
    keepCheckpoints: count.default(2),
    /** A checkpoint folder whose weights the run starts from. */
    init: z.string().optional(),
    /**
     * A checkpoint folder of another stage that the run continues: weights, adapted to this model's resolution, moments,
     * average and teacher. Excludes init.
     */
    start: z.string().optional(),
    /** Steps between progress lines. */
    logEvery: count.default(20),
  })
  .superRefine(({ data, objectives: { sigmoid } }, issues) => {
    const { pick } = data.captions,
      weights = sigmoid.captionWeights;
    if (weights && weights.length !== pick.length) {
      issues.addIssue({
        code: 'custom',
        path: ['objectives', 'sigmoid', 'captionWeights'],
        message: `data.captions.pick has ${pick.length} captions for each image; give as many weights`,
      });
    }
  });
export type TrainConfig = z.output<typeof trainConfigSchema>;
export type TrainConfigInput = z.input<typeof trainConfigSchema>;

/** The type that `dtype: auto` stands for on a device. */
export function chosenDtype(wish: TrainConfig['dtype'], device: string): 'f32' | 'bf16' {
  if (wish !== 'auto') return wish;
  return device !== 'cpu' || native().buildInfo().nativeBf16 ? 'bf16' : 'f32';
}

/** Checks a config and fills in the defaults. Throws ConfigError naming the key, what it must be, what it is. */
export function checkTrainConfig(input: unknown): TrainConfig {
  const parsed = trainConfigSchema.safeParse(input);
  if (parsed.success) return parsed.data;
  // A misspelt key also leaves one missing: the misspelling says more.
  const issue =
    parsed.error.issues.find(({ code }) => code === 'unrecognized_keys') ?? parsed.error.issues[0]!;
  const path = issue.path.map(String).join('.');
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!;
    const known = keysAt(issue.path, input);
    throw new ConfigError(
      `config: unknown key "${path ? `${path}.` : ''}${key}"${didYouMean(key, known)}` +
        (known.length ? `; the keys there are ${known.join(', ')}` : ''),
    );
  }
  const value = issue.path.reduce<unknown>(
    (at, k) => (at as Record<PropertyKey, unknown> | undefined)?.[k],
    input,
  );
  throw new ConfigError(
    `config: ${path || 'the config'} is ${JSON.stringify(value) ?? 'missing'}: ${issue.message}`,
  );
}

/** What of a schema of any kind there may be to look into. */
interface Schema {
  shape?: Record<string, Schema>;
  element?: Schema;
  /** Of a union of objects that are told apart by their `type`. */
  options?: readonly Schema[];
  value?: unknown;
  unwrap?(): Schema;
}

/** The keys that the schema has at a path of `input`. */
function keysAt(path: readonly PropertyKey[], input: unknown): string[] {
  let at: Schema | undefined = trainConfigSchema as unknown as Schema,
    value = input;
  const open = (schema: Schema | undefined): Schema | undefined => {
    if (schema?.options)
      return schema.options.find(
        ({ shape }) => shape?.['type']?.value === (value as { type?: unknown }).type,
      );
    return schema?.unwrap && !schema.element ? open(schema.unwrap()) : schema;
  };
  for (const key of path) {
    at = open(at);
    at = at?.element ?? at?.shape?.[String(key)];
    value = (value as Record<PropertyKey, unknown>)[key];
  }
  return Object.keys(open(at)?.shape ?? {});
}

/**
 * Reads a config: a .json file, or a JavaScript or TypeScript module whose default export is the object or a function
 * that returns it. `sets` are `key.path=value` overrides; values are JSON, or strings where they are not.
 */
export async function loadTrainConfig(
  path: string,
  sets: readonly string[] = [],
): Promise<TrainConfig> {
  return checkTrainConfig(await readConfigValue(path, sets));
}

/** The same unchecked, for configs with stages. */
export async function readConfigValue(
  path: string,
  sets: readonly string[] = [],
): Promise<unknown> {
  if (typeof path !== 'string')
    throw new ConfigError('a config is named by the path of a .json, .js or .ts file');
  let value: unknown;
  try {
    await access(path);
    if (path.endsWith('.json')) {
      value = JSON.parse(new TextDecoder().decode(await readInput(path)));
    } else {
      const module = (await import(pathToFileURL(resolve(path)).href)) as { default?: unknown };
      value =
        typeof module.default === 'function'
          ? await (module.default as () => unknown)()
          : module.default;
    }
  } catch (cause) {
    throw new ConfigError(
      `the config ${path} cannot be read: ${reasonOf(cause)}` +
        (path.endsWith('.ts')
          ? ' (TypeScript configs need Node 22.18 or later; on older ones use .js or .json)'
          : ''),
      { cause },
    );
  }
  return applySets(value, sets);
}

/** Returns a copy of `value` with `a.b=1` style overrides applied. Throws ConfigError for one without `=`. */
export function applySets(value: unknown, sets: readonly string[]): unknown {
  const result = structuredClone(value) as Record<string, unknown>;
  for (const set of sets) {
    const eq = set.indexOf('=');
    if (eq <= 0) throw new ConfigError(`--set expects key=value but got "${set}"`);
    const keys = set.slice(0, eq).split('.');
    if (keys.some((key) => key === '' || key === '__proto__'))
      throw new ConfigError(
        `--set expects a key such as optimizer.lr but got "${set.slice(0, eq)}"`,
      );
    let at = result;
    for (const key of keys.slice(0, -1)) {
      if (typeof at[key] !== 'object' || at[key] === null) at[key] = {};
      at = at[key] as Record<string, unknown>;
    }
    const text = set.slice(eq + 1);
    let parsed: unknown = text;
    try {
      parsed = JSON.parse(text);
    } catch {
      /* a plain string */
    }
    at[keys.at(-1)!] = parsed;
  }
  return result;
}
