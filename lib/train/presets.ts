/** Named configs. `siglip2 train --preset NAME --print` shows one whole. */
import type { TrainConfigInput } from './config.js';
import type { RecipeInput } from './recipe.js';
import { recipePresets } from './recipe_presets.js';

/** The small model that learns emoji artwork in dozens of languages at home. */
const home: TrainConfigInput = {
  out: 'runs/home',
  seed: 1,
  model: {
    variant: 'micro',
    vision: { mlp: 256, patch: 8 },
    text: { mlp: 256 },
    length: 16,
    initLogitScale: Math.log(5),
    initLogitBias: -Math.log(64),
  },
  data: {
    source: { type: 'emoji', path: 'data/emoji', split: 'train' },
    transforms: [{ name: 'place', scale: [0.4, 1] }],
    captions: { pick: ['en', 'other'], primaryProbability: 1 },
    trimVocabulary: true,
    uniqueClasses: true,
  },
  // Names are known best in English, and the image tower learns most from them; Adam brings the other tokens along.
  objectives: { sigmoid: { captionWeights: [4, 1] } },
  batch: 64,
  total: { steps: 30000 },
  optimizer: {
    lr: 1e-3,
    beta2: 0.999,
    warmup: { steps: 200 },
    lrScale: { token_embedding: 10, logit: 5 },
  },
  logEvery: 50,
};

/** Fewer classes on calmer backgrounds than `home`, so that two minutes show something. */
const quickstart: TrainConfigInput = {
  ...home,
  out: 'runs/quickstart',
  data: {
    ...home.data,
    source: { type: 'emoji', path: 'data/emoji-quickstart', split: 'train' },
    maxClasses: 620,
    sequences: false,
    transforms: [{ name: 'place', scale: [0.6, 1], backgrounds: ['plain', 'gradient'] }],
  },
  total: { steps: 5000 }, // the quickstart command puts here what fits into its minutes
  // Steps decide: one block and 16 patches do three times as many of them in the time as two blocks at 64 px, and learn
  // nearly as much from each. Heads cost nothing, and eight learn faster than four.
  model: {
    ...home.model,
    length: 10,
    text: { mlp: 256, heads: 8 },
    vision: { depth: 1, mlp: 256, heads: 8, imageSize: 32, patch: 8 },
  },
  optimizer: { ...home.optimizer, warmup: { steps: 50 } },
  checkpointEvery: '50%',
};

export const presets: Record<string, TrainConfigInput | RecipeInput> = {
  home,
  quickstart,
  ...recipePresets,
};
