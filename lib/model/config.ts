/** The shapes of SigLIP 2 (arXiv 2502.14786, section 2.1): the variants, and configs made of them and checked. */
import { z } from 'zod';
import { ConfigError } from '../errors.js';
import type { Gelu } from '../ops/linear.js';
import { GEMMA_VOCAB } from '../text/vocab.js';
import {
  checkDecoder,
  type DecoderConfig,
  decoderConfig,
  decoderSchema,
} from './decoder_config.js';

/** Shape of the vision tower. Pixels are (imageSize, imageSize, 3). */
export interface VisionConfig {
  /** D, the width of every token, in values. */
  width: number;
  /** Number of transformer blocks. */
  depth: number;
  /** Attention heads; the head dimension is width / heads. */
  heads: number;
  /** Hidden width of the MLP of every block and of the pooling head. */
  mlp: number;
  /** Side of one square patch, in pixels. */
  patch: number;
  /**
   * Side of the square input image, in pixels; of a NaFlex model, patch x the side of its position
   * grid.
   */
  imageSize: number;
  /** Form of GELU; 'tanh' when absent, as in SigLIP 2's training. */
  gelu?: Gelu | undefined;
}

/** Shape of the text tower. */
export interface TextConfig {
  width: number;
  depth: number;
  heads: number;
  mlp: number;
  /** Rows of the token table. */
  vocab: number;
  /** Tokens per text; shorter ones are padded to it. */
  length: number;
  /**
   * `last`: hidden state at the last position (the released weights); `map`: attention pooling (the
   * paper).
   */
  pool: 'last' | 'map';
  gelu?: Gelu | undefined;
}

/** Everything that decides the tensors of a two-tower model. Make one with `modelConfig`. */
export interface ModelConfig {
  /** Variant name it was made from, for display and for the tokens of an error. */
  name: string;
  /** Patches come as rows of P*P*3 values with a resizable position grid (weights [D, P*P*3]). */
  naflex: boolean;
  vision: VisionConfig;
  text: TextConfig;
  /**
   * E, length of the joint embedding; equals vision.width because the vision tower has no
   * projection.
   */
  embed: number;
  /** Initial value of the logarithm of the logit scale. */
  initLogitScale: number;
  /** Initial logit bias. */
  initLogitBias: number;
  layerNormEps: number;
  /** The caption decoder of training; none when absent or null. */
  decoder?: DecoderConfig | null | undefined;
}

/** Changes to a variant. Short names at the top; any field of a tower under `vision` or `text`. */
export interface ModelOverrides {
  name?: string;
  naflex?: boolean;
  imageSize?: number;
  vocab?: number;
  length?: number;
  pool?: 'last' | 'map';
  /** A caption decoder for training: `{}` for the paper's, half as deep as the text tower. */
  decoder?: Partial<DecoderConfig> | null;
  vision?: Partial<VisionConfig>;
  text?: Partial<TextConfig>;
  embed?: number;
  initLogitScale?: number;
  initLogitBias?: number;
  layerNormEps?: number;
}

/** What both towers have. */
export type Tower = Pick<VisionConfig, 'width' | 'depth' | 'heads' | 'mlp' | 'gelu'>;

/** Tower shapes by letter; MLP widths are spelled out, for So400m's is no multiple of its width. */
const TOWERS = {
  B: { width: 768, depth: 12, heads: 12, mlp: 3072 },
  L: { width: 1024, depth: 24, heads: 16, mlp: 4096 },
  So400m: { width: 1152, depth: 27, heads: 16, mlp: 4304 },
  'g-opt': { width: 1536, depth: 40, heads: 16, mlp: 6144 },
} as const satisfies Record<string, Tower>;

type Letter = keyof typeof TOWERS;

/** g-opt is a vision tower only, paired with the So400m text tower (SigLIP 2, section 2.1). */
const TEXT_LETTER: Record<Letter, Letter> = { B: 'B', L: 'L', So400m: 'So400m', 'g-opt': 'So400m' };

/** Small models for tests (`test`) and for a training run of minutes on a CPU (`micro`). */
const SMALL = {
  test: {
    vision: { width: 32, depth: 2, heads: 2, mlp: 64, patch: 8, imageSize: 32 },
    text: { width: 32, depth: 2, heads: 2, mlp: 64, vocab: 256, length: 16, pool: 'last' },
  },
  micro: {
    vision: { width: 128, depth: 2, heads: 4, mlp: 512, patch: 16, imageSize: 64 },
    text: { width: 128, depth: 1, heads: 4, mlp: 512, vocab: 256000, length: 64, pool: 'last' },
  },
} as const satisfies Record<string, { vision: VisionConfig; text: TextConfig }>;

/** Names of released checkpoints, and the small ones. Other patch sizes of a letter work too. */
export const VARIANTS: readonly string[] = [
  'B/32',
  'B/16',
  'L/16',
  'So400m/14',
  'So400m/16',
  'g-opt/16',
  ...Object.keys(SMALL),
];

const count = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
const tower = {
  width: count,
  depth: count,
  heads: count,
  mlp: count,
  gelu: z.enum(['tanh', 'exact']).optional(),
};

/** Checks the fields of a ModelConfig alone; `checkModelConfig` adds the rules between them. */
export const modelConfigSchema: z.ZodType<ModelConfig> = z.strictObject({
  name: z.string(),
  naflex: z.boolean(),
  vision: z.strictObject({ ...tower, patch: count, imageSize: count }),
  text: z.strictObject({ ...tower, vocab: count, length: count, pool: z.enum(['last', 'map']) }),
  embed: count,
  initLogitScale: z.number(),
  initLogitBias: z.number(),
  layerNormEps: z.number().positive(),
  decoder: decoderSchema,
});

const OVERRIDES = [
  'name',
  'naflex',
  'imageSize',
  'vocab',
  'length',
  'pool',
  'decoder',
  'vision',
  'text',
  'embed',
  'initLogitScale',
  'initLogitBias',
  'layerNormEps',
] as const satisfies readonly (keyof ModelOverrides)[];

/**
 * The config of a variant such as `B/16`, `So400m/14`, `g-opt/16`, `test` or `micro`, with changes.
 *
 * Defaults: 256 px for patch 16 and 32, 16 x patch otherwise (224 px for patch 14); Gemma
 * vocabulary; 64 tokens; last-token pooling; logit scale 10 and bias -10. A side that is no
 * multiple of the patch is cropped at the right and bottom, as a VALID convolution does: So400m/14
 * at 384 px has 27 x 27 patches.
 *
 * @throws ConfigError for an unknown name (it lists the names and the nearest one), an unknown key,
 *   a value out of range, or shapes that do not fit together.
 * @example modelConfig('B/16', { imageSize: 384 }).vision.imageSize // 384
 */
export function modelConfig(name: string, overrides: ModelOverrides = {}): ModelConfig {
  if (typeof name !== 'string' || typeof overrides !== 'object' || overrides === null)
    throw new ConfigError(
      `model: needs the name of a variant, such as "B/16", and an object of changes to it`,
    );
  for (const key of Object.keys(overrides)) {
    if (!(OVERRIDES as readonly string[]).includes(key)) {
      throw new ConfigError(
        `model: unknown key "${key}"${didYouMean(key, OVERRIDES)}; ` +
          `the keys are ${OVERRIDES.join(', ')}`,
      );
    }
  }
  const base = variant(name);
  const vision = merge<VisionConfig>(base.vision, overrides.vision, {
    imageSize: overrides.imageSize,
  });
  const text = merge<TextConfig>(base.text, overrides.text, {
    vocab: overrides.vocab,
    length: overrides.length,
    pool: overrides.pool,
  });
  return checkModelConfig({
    name: overrides.name ?? name,
    naflex: overrides.naflex ?? false,
    vision,
    text,
    embed: overrides.embed ?? vision.width,
    initLogitScale: overrides.initLogitScale ?? Math.log(10),
    initLogitBias: overrides.initLogitBias ?? -10,
    layerNormEps: overrides.layerNormEps ?? 1e-6,
    ...(overrides.decoder ? { decoder: decoderConfig(text, overrides.decoder) } : {}),
  });
}

function merge<T extends object>(
  base: T,
  ...changes: ({ [K in keyof T]?: T[K] | undefined } | undefined)[]
): T {
  const result = { ...base };
  for (const change of changes) {
    for (const [key, value] of Object.entries(change ?? {})) {
      if (value !== undefined) (result as Record<string, unknown>)[key] = value;
    }
  }
  return result;
}

function variant(name: string): { vision: VisionConfig; text: TextConfig } {
  if (Object.hasOwn(SMALL, name)) return SMALL[name as keyof typeof SMALL];
  const [, letter, digits] = /^(.+)\/([1-9][0-9]{0,3})$/.exec(name) ?? [];
  if (letter === undefined || !Object.hasOwn(TOWERS, letter)) {
    throw new ConfigError(
      `model: no variant is called "${name}"${didYouMean(name, VARIANTS)}; ` +
        `the variants are ${VARIANTS.join(', ')}`,
    );
  }
  const patch = Number(digits);
  return {
    vision: { ...TOWERS[letter as Letter], patch, imageSize: patch === 32 ? 256 : 16 * patch },
    text: {
      ...TOWERS[TEXT_LETTER[letter as Letter]],
      vocab: GEMMA_VOCAB,
      length: 64,
      pool: 'last',
    },
  };
}

/**
 * Returns `config` if its fields have the right types and fit together.
 * @throws ConfigError naming the field, what it must be and what it is.
 */
export function checkModelConfig(config: ModelConfig): ModelConfig {
  const parsed = modelConfigSchema.safeParse(config);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    if (issue?.code === 'unrecognized_keys') {
      const at = issue.path.map((part) => `${String(part)}.`).join('');
      throw new ConfigError(
        `model: unknown key "${at}${issue.keys[0]}"; remove it or correct ` + 'its name',
      );
    }
    const path = (issue?.path ?? []).map(String);
    const value = path.reduce<unknown>(
      (at, key) => (at as Record<string, unknown> | undefined)?.[key],
      config,
    );
    throw new ConfigError(
      `model: ${path.join('.') || 'config'} is ` +
        `${JSON.stringify(value) ?? 'missing'}: ` +
        `${issue?.message ?? 'not valid'}`,
    );
  }
  const towers = [
    ['vision', config.vision],
    ['text', config.text],
  ] as const;
  for (const [side, { width, heads }] of towers) {
    if (width % heads !== 0) {
      throw new ConfigError(
        `model: ${side}.width ${width} must be a multiple of ${side}.heads ` + `${heads}`,
      );
    }
  }
  if (config.decoder) checkDecoder(config.decoder);
  const { patch, imageSize } = config.vision;
  if (imageSize < patch) {
    throw new ConfigError(
      `model: vision.imageSize ${imageSize} must be at least one patch of ` + `${patch} px`,
    );
  }
  if (config.naflex && imageSize % patch !== 0) {
    throw new ConfigError(
      `model: vision.imageSize of a NaFlex model gives its position grid, so ` +
        `it must be a multiple of the patch ${patch} but is ${imageSize}`,
    );
  }
  if (config.embed !== config.vision.width) {
    throw new ConfigError(
      `model: embed must equal vision.width ${config.vision.width} (the ` +
        `vision tower has no projection) but is ${config.embed}`,
    );
  }
  return config;
}

/** Patches along one side of the image: how many fit entirely (VALID convolution). */
export function gridSide(config: ModelConfig): number {
  return Math.floor(config.vision.imageSize / config.vision.patch);
}

/** Rows of the vision position table: the patches of one image at the config's size. */
export function patchCount(config: ModelConfig): number {
  return gridSide(config) ** 2;
}

/**
 * ` (did you mean "x"?)` for the candidate nearest in edit distance, or nothing when none is near.
 */
export function didYouMean(word: string, candidates: readonly string[]): string {
  let best = '';
  let least = Infinity;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < least) [best, least] = [candidate, distance];
  }
  return least <= Math.max(2, best.length / 2) ? ` (did you mean "${best}"?)` : '';
}

/** Levenshtein distance, in characters; words are cut at 64 so that hostile input stays cheap. */
function editDistance(left: string, right: string): number {
  const [a, b] = [left.slice(0, 64), right.slice(0, 64)];
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const changed = a[i - 1] === b[j - 1] ? 0 : 1;
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + changed));
    }
    row = next;
  }
  return row[b.length]!;
}
