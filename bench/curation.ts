/**
 * What online selection is worth where captions are wrong: the emoji artwork with a share of the captions swapped, trained
 * on as it comes and with selection, several seeds. Zero-shot accuracy is that of naming artwork in English among all
 * classes, placed as training never places it: of the studios trained on, and of one that nobody trains on.
 * `--steps 500 --swapped 0.4 --seeds 1,2,3 [--ways "uniform;learnability"] [--data FOLDER] [--json FILE]`; runs that FILE
 * holds already are not repeated.
 */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildEmojiDataset } from '../lib/data/datasets/emoji.js';
import { buildEvalSets, candidateNames, type EvalSet, type EvalSuite } from '../lib/eval/sets.js';
import { embedImages, embedTexts } from '../lib/inference/embed.js';
import { evaluateLanguage } from '../lib/inference/retrieval.js';
import { modelConfig } from '../lib/model/config.js';
import { imageFlops, textFlops } from '../lib/model/flops.js';
import { type GemmaTokenizer, loadTokenizer } from '../lib/text/tokenizer.js';
import { listCheckpoints } from '../lib/train/checkpoint.js';
import { checkTrainConfig, type TrainConfig, type TrainConfigInput } from '../lib/train/config.js';
import { Trainer } from '../lib/train/trainer.js';
import { circumstances, save } from './measure.js';

const SIDE = 64,
  PATCH = 16,
  COARSE = 32,
  BATCH = 64,
  RATIO = 0.5,
  EVALUATE = 50;
type Selection = NonNullable<TrainConfigInput['selection']>;

/** One run as the JSON file keeps it. */
interface Run {
  what: 'curation';
  way: string;
  seed: number;
  steps: number;
  swapped: number;
  /** Zero-shot top-1 after so many steps. */
  curve: [step: number, seen: number, unseen: number][];
  /** Share of swapped captions among the samples trained on, in the run's second half. */
  noise: number;
  /** Seconds of processor time of a step, all threads, evaluation aside; and its arithmetic against a uniform step's. */
  cpuPerStep: number;
  relativeFlops: number;
}

export async function main(args: string[]): Promise<void> {
  const { values: v } = parseArgs({
    args,
    options: {
      steps: { type: 'string', default: '500' },
      swapped: { type: 'string', default: '0.4' },
      seeds: { type: 'string', default: '1,2,3' },
      reference: { type: 'string', default: '1000' },
      data: { type: 'string', default: 'data/emoji-quickstart' },
      out: { type: 'string', default: 'runs/curation' },
      json: { type: 'string' },
      ways: { type: 'string' },
    },
  });
  const steps = Number(v.steps);
  if (!existsSync(join(v.data, 'manifest.json')))
    await buildEmojiDataset(v.data, { maxClasses: 620, sequences: false });
  const suite = await buildEvalSets(v.data, {
    size: SIDE,
    seed: 1,
    perClass: 1,
    sets: ['seen-placed', 'unseen-studio-placed'],
    scale: [0.6, 1],
    backgrounds: ['plain', 'gradient'],
  });
  const base = (out: string, seed: number, more: Partial<TrainConfigInput>): TrainConfigInput => ({
    out: join(v.out, out),
    seed,
    batch: BATCH,
    total: steps,
    checkpointEvery: 0,
    model: {
      variant: 'micro',
      length: 16,
      vision: { mlp: 256, patch: PATCH, imageSize: SIDE },
      text: { mlp: 256 },
      initLogitScale: Math.log(5),
      initLogitBias: -Math.log(BATCH),
    },
    data: {
      source: { type: 'emoji', path: v.data, split: 'train' },
      captions: { pick: ['en'], languages: ['en'], primaryProbability: 1 },
      transforms: [{ name: 'place', scale: [0.6, 1], backgrounds: ['plain', 'gradient'] }],
      trimVocabulary: true,
      uniqueClasses: true,
      workers: 0,
    },
    optimizer: { lr: 1e-3, beta2: 0.999, warmup: { steps: 50 }, lrScale: { token_embedding: 10 } },
    ...more,
  });
  const reference = join(v.out, 'reference');
  if (listCheckpoints(reference).length === 0) {
    const { curve } = await train(
      checkTrainConfig(base('reference', 1000, { total: Number(v.reference) })),
      suite,
      true,
    );
    console.log(
      `reference: ${v.reference} steps on clean captions, ${curve.at(-1)!.slice(1).map(percent).join(' and ')}`,
    );
  }
  const [checkpoint] = listCheckpoints(reference) as [string];
  const selection: Selection = { ratio: RATIO, reference: checkpoint },
    cached = { ...selection, referenceCache: join(v.out, 'reference.safetensors') };
  const ways: Record<string, { total?: number; selection?: Selection; swapped?: 0 }> = {
    uniform: {},
    learnability: { selection },
    'reference cached': { selection: cached },
    'cached, low resolution': { selection: { ...cached, resolution: COARSE } },
    'clean captions': { swapped: 0 },
    'uniform, as long as learnability': { total: Math.round(steps * relativeFlops(selection)) },
  };
  const runs: Run[] = [];
  for (const way of v.ways?.split(';') ?? Object.keys(ways)) {
    const { total = steps, selection: chosen, swapped = Number(v.swapped) } = ways[way] ?? {};
    for (const seed of v.seeds.split(',').map(Number)) {
      const key = { what: 'curation' as const, way, seed, steps: total, swapped };
      let run = done(v.json).find((r) =>
        Object.entries(key).every(([k, value]) => r[k as keyof Run] === value),
      );
      if (!run) {
        const config = base(`${way}-${seed}`, seed, {
          total,
          ...(chosen ? { selection: chosen } : {}),
        });
        if (swapped > 0) config.data.noise = { swapped, seed };
        run = {
          ...key,
          ...(await train(checkTrainConfig(config), suite, false)),
          relativeFlops: relativeFlops(chosen),
        };
        save(v.json, { ...circumstances('cpu'), ...run });
      }
      runs.push(run);
      const [, seen, unseen] = run.curve.at(-1)!;
      console.log(
        `seed ${seed}  ${way.padEnd(34)} ${percent(seen)} and ${percent(unseen)}  swapped among trained ${percent(run.noise)}  ` +
          `${(1000 * run.cpuPerStep).toFixed(0)} ms of processor time a step`,
      );
    }
  }
  table(runs);
}

const percent = (x: number): string => `${(100 * x).toFixed(1)} %`.padStart(7);

function done(file: string | undefined): Run[] {
  if (!file || !existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Run);
}

/** Arithmetic of a step with selection as a multiple of a uniform one's; a backward pass counts as two forward ones. */
function relativeFlops(selection?: Selection): number {
  if (!selection) return 1;
  const model = modelConfig('micro', {
    length: 16,
    vision: { mlp: 256, patch: PATCH, imageSize: SIDE },
    text: { mlp: 256 },
  });
  const image = imageFlops(model),
    text = textFlops(model),
    candidates = 1 / (1 - RATIO);
  const small = selection.resolution
    ? imageFlops(model, (selection.resolution / PATCH) ** 2)
    : image;
  const trained = 3 * ((image + small) / 2 + text); // half of the batch is coarse, where anything is
  const scored = candidates * (small + text + (selection.referenceCache ? 0 : image + text));
  return (trained + scored) / (3 * (image + text));
}

/** Trains a config, evaluating now and then. */
async function train(
  config: TrainConfig,
  suite: EvalSuite,
  keep: boolean,
): Promise<Pick<Run, 'curve' | 'noise' | 'cpuPerStep'>> {
  rmSync(config.out, { recursive: true, force: true });
  const trainer = await Trainer.open(config),
    curve: Run['curve'] = [],
    noise: number[] = [],
    costs: number[] = [];
  const tokenizer = await loadTokenizer({
    length: trainer.model.config.text.length,
    vocab: trainer.vocab!,
  });
  const cpu = (): number => Object.values(process.cpuUsage()).reduce((a, b) => a + b, 0) / 1e6;
  try {
    let before = cpu(),
      quiet = 0;
    for await (const m of trainer.run()) {
      // A step that was under way during an evaluation cannot be told apart from it.
      if (++quiet > 3) costs.push(cpu() - before);
      if (m.step > trainer.totalSteps / 2) noise.push(m.noise?.trained ?? 0);
      if (m.step % EVALUATE === 0 || m.step === trainer.totalSteps) {
        curve.push([trainer.step, ...(await accuracies(trainer, suite, tokenizer))]);
        quiet = 0;
      }
      before = cpu();
    }
    if (keep) await trainer.save();
  } finally {
    await trainer.close();
  }
  if (!keep) rmSync(config.out, { recursive: true, force: true });
  return { curve, noise: mean(noise), cpuPerStep: mean(costs) };
}

/** Zero-shot top-1 in English with the present weights, of both sets. */
async function accuracies(
  { model }: Trainer,
  suite: EvalSuite,
  tokenizer: GemmaTokenizer,
): Promise<[seen: number, unseen: number]> {
  const top1 = async (set: EvalSet): Promise<number> => {
    const { ids, names } = candidateNames(suite, set, 'en'),
      row = new Map(Array.from(ids, (id, i) => [id, i]));
    const images = await embedImages(model, set.images, set.classes.length);
    const texts = await embedTexts(model, await tokenizer.encodeBatch(names), names.length);
    const labels = Array.from(set.classes, (id) => row.get(id)!);
    return (await evaluateLanguage(images, labels, texts, names, model.config.embed)).top1;
  };
  const [seen, unseen] = suite.sets as [EvalSet, EvalSet];
  return [await top1(seen), await top1(unseen)];
}

const mean = (of: readonly number[]): number => of.reduce((a, b) => a + b, 0) / of.length;

/** One line for each way, averaged over the seeds. */
function table(runs: readonly Run[]): void {
  const uniform = new Map(runs.filter((r) => r.way === 'uniform').map((r) => [r.seed, r]));
  const last = (r: Run): number => r.curve.at(-1)![1];
  console.log(
    `\n| way | steps | top-1, studios trained on | unseen studio | steps to uniform's last top-1 | the same in arithmetic | ` +
      'swapped among trained | arithmetic of a step | processor time |\n|---|---|---|---|---|---|---|---|---|',
  );
  for (const way of new Set(runs.map((r) => r.way))) {
    const mine = runs.filter((r) => r.way === way),
      [{ steps, relativeFlops }] = mine as [Run];
    // In steps of the uniform run of the same seed; a run that never comes so far counts as infinitely long.
    const paired = mine.flatMap((r) => {
      const other = uniform.get(r.seed);
      return other
        ? [
            {
              needed:
                (r.curve.find(([, seen]) => seen >= last(other))?.[0] ?? Infinity) / other.steps,
              cpu: r.cpuPerStep / other.cpuPerStep,
            },
          ]
        : [];
    });
    const needed = paired.map((p) => p.needed);
    console.log(
      `| ${[
        way,
        steps,
        mine.map((r) => percent(last(r)).trim()).join(', '),
        percent(mean(mine.map((r) => r.curve.at(-1)![2]))).trim(),
        needed.map((n) => percent(n).trim()).join(', '),
        percent(mean(needed) * relativeFlops).trim(),
        percent(mean(mine.map((r) => r.noise))).trim(),
        `${relativeFlops.toFixed(2)}×`,
        `${mean(paired.map(({ cpu }) => cpu)).toFixed(2)}×`,
      ].join(' | ')} |`,
    );
  }
}
