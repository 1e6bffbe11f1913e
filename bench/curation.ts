/**
 * What online selection is worth where captions are wrong: the emoji artwork with a share of the captions swapped, trained
 * on as it comes and with selection, several seeds. Zero-shot accuracy is that of a studio nobody trains on, in English.
 * `--steps 700 --swapped 0.4 --seeds 1,2,3 [--data FOLDER] [--json FILE]`; runs that FILE holds already are not repeated.
 */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildEvalSets, candidateNames, type EvalSuite } from '../lib/data/evalset.js';
import { buildEmojiDataset } from '../lib/data/datasets/emoji.js';
import { loadTokenizer, type GemmaTokenizer } from '../lib/data/tokenizer.js';
import { embedImages, embedTexts } from '../lib/eval/embed.js';
import { evaluateLanguage } from '../lib/eval/retrieval.js';
import { modelConfig } from '../lib/model/config.js';
import { imageFlops, textFlops } from '../lib/model/flops.js';
import { listCheckpoints } from '../lib/train/checkpoint.js';
import { checkTrainConfig, type TrainConfig, type TrainConfigInput } from '../lib/train/config.js';
import { Trainer } from '../lib/train/trainer.js';
import { circumstances, save } from './measure.js';

const SIDE = 64, PATCH = 16, COARSE = 32, BATCH = 64, RATIO = 0.5, EVALUATE = 50;
type Selection = NonNullable<TrainConfigInput['selection']>;

/** One run as the JSON file keeps it. */
interface Run {
  what: 'curation';
  way: string;
  seed: number;
  steps: number;
  swapped: number;
  /** Zero-shot top-1 after so many steps. */
  curve: [step: number, accuracy: number][];
  /** Share of swapped captions among the samples trained on, in the run's second half. */
  noise: number;
  /** Seconds of processor time of a step, all threads, evaluation aside; and its arithmetic against a uniform step's. */
  cpuPerStep: number;
  relativeFlops: number;
}

export async function main(args: string[]): Promise<void> {
  const { values: v } = parseArgs({ args, options: {
    steps: { type: 'string', default: '700' }, swapped: { type: 'string', default: '0.4' }, seeds: { type: 'string', default: '1,2,3' },
    reference: { type: 'string', default: '2000' }, data: { type: 'string', default: 'data/emoji-quickstart' },
    out: { type: 'string', default: 'runs/curation' }, json: { type: 'string' }, ways: { type: 'string' } } });
  const steps = Number(v.steps), swapped = Number(v.swapped);
  if (!existsSync(join(v.data, 'manifest.json'))) await buildEmojiDataset(v.data, { maxClasses: 620, sequences: false });
  const suite = await buildEvalSets(v.data, { size: SIDE, seed: 1, sets: ['unseen-studio-placed'], scale: [0.6, 1], backgrounds: ['plain', 'gradient'] });
  const base = (out: string, seed: number, more: Partial<TrainConfigInput>): TrainConfigInput => ({
    out: join(v.out, out), seed, batch: BATCH, total: steps, checkpointEvery: 0,
    model: { variant: 'micro', length: 16, vision: { mlp: 256, patch: PATCH, imageSize: SIDE }, text: { mlp: 256 },
      initLogitScale: Math.log(5), initLogitBias: -Math.log(BATCH) },
    data: {
      source: { type: 'emoji', path: v.data, split: 'train' }, captions: { pick: ['en'], languages: ['en'], primaryProbability: 1 },
      transforms: [{ name: 'place', scale: [0.6, 1], backgrounds: ['plain', 'gradient'] }],
      trimVocabulary: true, uniqueClasses: true, workers: 0 },
    optimizer: { lr: 1e-3, beta2: 0.999, warmup: { steps: 50 }, lrScale: { token_embedding: 10 } }, ...more,
  });
  const reference = join(v.out, 'reference');
  if (listCheckpoints(reference).length === 0) {
    const { curve } = await train(checkTrainConfig(base('reference', 1000, { total: Number(v.reference) })), suite, true);
    console.log(`reference: ${v.reference} steps on clean captions, ${percent(curve.at(-1)![1])}`);
  }
  const [checkpoint] = listCheckpoints(reference) as [string];
  const selection: Selection = { ratio: RATIO, reference: checkpoint }, cached = { ...selection, referenceCache: join(v.out, 'reference.safetensors') };
  const ways: [way: string, steps: number, selection?: Selection | undefined, noise?: false][] = [
    ['clean captions', steps, undefined, false], ['uniform', steps], ['learnability', steps, selection],
    ['reference cached', steps, cached], ['cached, low resolution', steps, { ...cached, resolution: COARSE }],
    ['uniform, as long as learnability', Math.round(steps * relativeFlops(selection))],
    ['uniform, as long as cached', Math.round(steps * relativeFlops(cached))],
  ];
  const runs: Run[] = [];
  for (const seed of v.seeds.split(',').map(Number)) {
    for (const [way, total, chosen, noise = true] of ways.filter(([way]) => !v.ways || v.ways.split(';').includes(way))) {
      const key = { what: 'curation' as const, way, seed, steps: total, swapped: noise ? swapped : 0 };
      let run = done(v.json).find((r) => Object.entries(key).every(([k, value]) => r[k as keyof Run] === value));
      if (!run) {
        const config = base(`${way}-${seed}`, seed, { total, ...(chosen ? { selection: chosen } : {}) });
        if (noise) config.data.noise = { swapped, seed };
        run = { ...key, ...await train(checkTrainConfig(config), suite, false), relativeFlops: relativeFlops(chosen) };
        save(v.json, { ...circumstances('cpu'), ...run });
      }
      runs.push(run);
      console.log(`seed ${seed}  ${way.padEnd(34)} ${percent(run.curve.at(-1)![1])}  swapped among trained ${percent(run.noise)}  ` +
        `${(1000 * run.cpuPerStep).toFixed(0)} ms of CPU a step`);
    }
  }
  table(runs);
}

const percent = (x: number): string => `${(100 * x).toFixed(1)} %`.padStart(7);

function done(file: string | undefined): Run[] {
  if (!file || !existsSync(file)) return [];
  return readFileSync(file, 'utf8').trim().split('\n').map((line) => JSON.parse(line) as Run);
}

/** Arithmetic of a step with selection as a multiple of a uniform one's; a backward pass counts as two forward ones. */
function relativeFlops(selection?: Selection): number {
  if (!selection) return 1;
  const model = modelConfig('micro', { length: 16, vision: { mlp: 256, patch: PATCH, imageSize: SIDE }, text: { mlp: 256 } });
  const image = imageFlops(model), text = textFlops(model), candidates = 1 / (1 - RATIO);
  const small = selection.resolution ? imageFlops(model, (selection.resolution / PATCH) ** 2) : image;
  const trained = 3 * ((image + small) / 2 + text);  // half of the batch is coarse, where anything is
  const scored = candidates * (small + text + (selection.referenceCache ? 0 : image + text));
  return (trained + scored) / (3 * (image + text));
}

/** Trains a config, evaluating now and then. */
async function train(config: TrainConfig, suite: EvalSuite, keep: boolean): Promise<Pick<Run, 'curve' | 'noise' | 'cpuPerStep'>> {
  rmSync(config.out, { recursive: true, force: true });
  const trainer = await Trainer.open(config), curve: [number, number][] = [], noise: number[] = [], costs: number[] = [];
  const tokenizer = await loadTokenizer({ length: trainer.model.config.text.length, vocab: trainer.vocab! });
  const cpu = (): number => Object.values(process.cpuUsage()).reduce((a, b) => a + b, 0) / 1e6;
  try {
    let before = cpu(), quiet = 0;
    for await (const m of trainer.run()) {
      // A step that was under way during an evaluation cannot be told apart from it.
      if (++quiet > 3) costs.push(cpu() - before);
      if (m.step > trainer.totalSteps / 2) noise.push(m.noise?.trained ?? 0);
      if (m.step % EVALUATE === 0 || m.step === trainer.totalSteps) {
        curve.push([trainer.step, await accuracy(trainer, suite, tokenizer)]);
        quiet = 0;
      }
      before = cpu();
    }
    if (keep) await trainer.save();
  } finally {
    await trainer.close();
  }
  if (!keep) rmSync(config.out, { recursive: true, force: true });
  const mean = (of: number[]): number => of.reduce((a, b) => a + b, 0) / of.length;
  return { curve, noise: mean(noise), cpuPerStep: mean(costs) };
}

/** Zero-shot top-1 in English with the present weights. */
async function accuracy({ model }: Trainer, suite: EvalSuite, tokenizer: GemmaTokenizer): Promise<number> {
  const set = suite.sets[0]!, { ids, names } = candidateNames(suite, set, 'en'), row = new Map(Array.from(ids, (id, i) => [id, i]));
  const images = await embedImages(model, set.images, set.classes.length);
  const texts = await embedTexts(model, await tokenizer.encodeBatch(names), names.length);
  const labels = Array.from(set.classes, (id) => row.get(id)!);
  return (await evaluateLanguage(images, labels, texts, names, model.config.embed)).top1;
}

/** One line for each way, averaged over the seeds. */
function table(runs: readonly Run[]): void {
  const seeds = [...new Set(runs.map((r) => r.seed))];
  const mean = (of: number[]): number => of.reduce((a, b) => a + b, 0) / of.length;
  const last = (r: Run): number => r.curve.at(-1)![1];
  const uniform = new Map(runs.filter((r) => r.way === 'uniform').map((r) => [r.seed, r]));
  console.log(`\n| way | steps | top-1 | steps to the uniform run's final top-1 | swapped among trained | arithmetic of a step | processor time of a step |`);
  console.log('|---|---|---|---|---|---|---|');
  for (const way of new Set(runs.map((r) => r.way))) {
    const mine = runs.filter((r) => r.way === way), cpu = mean(mine.map((r) => r.cpuPerStep / (uniform.get(r.seed)?.cpuPerStep ?? NaN)));
    const needed = mine.map((r) => r.curve.find(([, top1]) => top1 >= last(uniform.get(r.seed) ?? r))?.[0] ?? Infinity);
    console.log(`| ${[way, mine[0]!.steps, `${mine.map((r) => percent(last(r)).trim()).join(', ')}; mean ${percent(mean(mine.map(last))).trim()}`,
      `${needed.join(', ')}; mean ${percent(mean(needed) / (uniform.get(seeds[0]!)?.steps ?? NaN)).trim()}`, percent(mean(mine.map((r) => r.noise))).trim(),
      `${mine[0]!.relativeFlops.toFixed(2)}×`, `${cpu.toFixed(2)}×`].join(' | ')} |`);
  }
}
