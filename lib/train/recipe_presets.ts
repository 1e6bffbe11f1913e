/** SigLIP 2's recipe as presets: for every released model, and for a tiny one at home. */
import type { RecipeInput, StageInput } from './recipe.js';

/** Views that are crops and mirror images only. */
const plain = { colour: 0, greyscale: 0, blur: 0 };
/**
 * Self-distillation at home: small heads, whose weights start accordingly larger, and views without changes of colour,
 * to which a model of two layers is not indifferent enough for the teacher's targets to be foreseeable.
 */
const ssl: StageInput = {
  optimizer: { ema: 0.996 },
  objectives: {
    distill: {
      views: { locals: 4, global: plain, local: plain },
      head: { hidden: 256, bottleneck: 64, prototypes: 256, patchPrototypes: 256, std: 0.07 },
    },
  },
};
/**
 * All stages at home, on scenes composed of emoji artwork with boxes, built when first needed. Everything is the
 * paper's but the sizes (boxes in hundredths among them), learning rates and warm-up, the views' colours, and where the
 * resolution branch begins: its last 5 % would be 150 steps.
 */
const tinyRecipe: RecipeInput = {
  out: 'runs/tiny-recipe',
  seed: 1,
  model: {
    variant: 'micro',
    length: 16,
    initLogitScale: Math.log(5),
    initLogitBias: -Math.log(64),
    vision: { mlp: 256, patch: 8 },
    text: { mlp: 256 },
    decoder: { depth: 2, length: 32 },
  },
  data: {
    source: {
      type: 'scenes',
      path: 'data/scenes',
      split: 'train',
      build: {
        scenes: { train: 4000, val: 0, test: 400 },
        size: 96,
        classes: 24,
        objects: 2,
        scale: [0.4, 0.8],
        languages: ['en', 'de'],
      },
    },
    captions: { pick: ['any'], primaryProbability: 1 },
    trimVocabulary: true,
    cacheBytes: 512 * 2 ** 20,
  },
  batch: 32,
  total: { steps: 3000 },
  optimizer: {
    lr: 2e-3,
    warmup: { steps: 50 },
    lrScale: { 'text_model.embeddings.token_embedding': 10 },
  },
  objectives: { caption: { boxes: { bins: 100, order: [0, 3, 2, 1] } } },
  checkpointEvery: '20%',
  logEvery: 50,
  stages: {
    base: { span: { to: '90%' } },
    ssl: { from: 'base@80%', span: { from: '80%' }, ...ssl },
    resolution: {
      ...ssl,
      from: 'ssl@90%',
      span: { from: '90%' },
      model: { imageSize: 96 },
      // So near the end of a short schedule the base's rate moves nothing any more; nor does it in the next stage.
      optimizer: { ...ssl.optimizer, lr: 2e-2 },
    },
    naflex: {
      from: 'base@90%',
      span: { from: '90%', stretch: 3.75 },
      model: { naflex: true },
      naflex: { lengths: [32, 64, 144, 196, 256] },
      optimizer: { lr: 1e-2 },
    },
  },
};

/** How the released resolutions come about. */
interface Release {
  /** Shape of both towers. */
  variant: string;
  /** Of the last 5 %; none for the base resolution. */
  branch?: { imageSize: number; patch?: number };
  naflex?: true;
}

const big = { base: { span: { to: '80%' } } } satisfies RecipeInput['stages'];

/**
 * Distillation by active curation, of the released B models of fixed resolution (§2.5): 4 B examples more on the sigmoid
 * loss alone, chosen with a So400m model that was tuned on curated data. What the paper does not say are the schedule
 * (cosine here, as before), chunks and gain (JEST's), and whether all resolutions had this stage (here they do).
 * @param from the last stage, whose model has the given shape
 */
function acid(from: string, ratio: number, shape: StageInput['model']): StageInput {
  return {
    from,
    total: { examples: 4e9 },
    model: { ...shape, decoder: null },
    objectives: { caption: null },
    optimizer: { lr: 1e-5, weightDecay: 0, warmup: 0 },
    selection: {
      ratio,
      chunks: 16,
      gain: 1,
      score: 'learnability',
      reference: 'checkpoints/so400m-curated',
    },
  };
}

/** The paper's stages of one released model (§2.1–2.5); 32k is taken as 32,768. */
function released(name: string, { variant, branch, naflex }: Release): RecipeInput {
  const distill: StageInput = { optimizer: { ema: 0.994 }, objectives: { distill: {} } };
  const patch = branch?.patch;
  const shape: StageInput['model'] = branch
    ? {
        name: name.split('-').slice(0, -1).join('-'),
        imageSize: branch.imageSize,
        ...(patch ? { vision: { patch } } : {}),
      }
    : {};
  const curated = (from: string): RecipeInput['stages'] =>
    variant.startsWith('B/') ? { acid: acid(from, patch === 32 ? 0.75 : 0.5, shape) } : {};
  return {
    out: `runs/${name.replace('/', '-')}`,
    model: { variant, decoder: {} },
    data: { source: { type: 'webdataset', tars: 'data/train/*.tar' } },
    batch: 32768,
    total: { examples: 40e9 },
    optimizer: {
      lr: 1e-3,
      weightDecay: 1e-4,
      beta1: 0.9,
      beta2: 0.95,
      clip: 1,
      warmup: { steps: 20000 },
    },
    objectives: { caption: {} },
    checkpointBlocks: true,
    checkpointEvery: { steps: 1000 },
    stages: naflex
      ? {
          base: { span: { to: '90%' } },
          naflex: {
            from: 'base@90%',
            span: { from: '90%', stretch: 3.75 },
            model: { naflex: true },
          },
        }
      : branch
        ? {
            ...big,
            ssl: { from: 'base@80%', span: { from: '80%', to: '95%' }, ...distill },
            resolution: { from: 'ssl@95%', span: { from: '95%' }, ...distill, model: shape },
            ...curated('resolution@100%'),
          }
        : {
            ...big,
            ssl: { from: 'base@80%', span: { from: '80%' }, ...distill },
            ...curated('ssl@100%'),
          },
  };
}

const RELEASES: Record<string, Release> = {
  'B/32-256': { variant: 'B/16', branch: { imageSize: 256, patch: 32 } },
  'B/16-224': { variant: 'B/16', branch: { imageSize: 224 } },
  'B/16-256': { variant: 'B/16' },
  'B/16-384': { variant: 'B/16', branch: { imageSize: 384 } },
  'B/16-512': { variant: 'B/16', branch: { imageSize: 512 } },
  'B/16-naflex': { variant: 'B/16', naflex: true },
  'L/16-256': { variant: 'L/16' },
  'L/16-384': { variant: 'L/16', branch: { imageSize: 384 } },
  'L/16-512': { variant: 'L/16', branch: { imageSize: 512 } },
  'So400m/14-224': { variant: 'So400m/16', branch: { imageSize: 224, patch: 14 } },
  'So400m/14-384': { variant: 'So400m/16', branch: { imageSize: 384, patch: 14 } },
  'So400m/16-256': { variant: 'So400m/16' },
  'So400m/16-384': { variant: 'So400m/16', branch: { imageSize: 384 } },
  'So400m/16-512': { variant: 'So400m/16', branch: { imageSize: 512 } },
  'So400m/16-naflex': { variant: 'So400m/16', naflex: true },
  'g-opt/16-256': { variant: 'g-opt/16' },
  'g-opt/16-384': { variant: 'g-opt/16', branch: { imageSize: 384 } },
};

export const recipePresets: Record<string, RecipeInput> = {
  'tiny-recipe': tinyRecipe,
  ...Object.fromEntries(
    Object.entries(RELEASES).map(([name, release]) => [name, released(name, release)]),
  ),
};
