/** Named configs. `siglip2 train --preset NAME --print` shows one whole. */
import type { TrainConfigInput } from './config.js';

/** The small model that learns emoji artwork in dozens of languages at home. */
const home: TrainConfigInput = {
  out: 'runs/home',
  seed: 1,
  model: { variant: 'micro', length: 16, initLogitBias: -Math.log(64) },
  data: {
    source: { type: 'emoji', path: 'data/emoji', split: 'train' },
    transforms: [{ name: 'place', scale: [0.4, 1] }],
    captions: { pick: ['en', 'other'], primaryProbability: 1 },
    trimVocabulary: true,
    uniqueClasses: true,
  },
  batch: 64,
  total: { steps: 40000 },
  optimizer: { lr: 2e-3, warmup: { steps: 300 }, lrScale: { token_embedding: 10 } },
  logEvery: 50,
};

export const presets: Record<string, TrainConfigInput> = {
  home,
  quickstart: { ...home, out: 'runs/quickstart', total: { steps: 3000 }, checkpointEvery: '50%' },
};
