/**
 * What each part of the recipe brings at home: the tiny recipe trained with the sigmoid loss alone, with LocCa, with
 * self-distillation and masked prediction, and with all, for the same number of steps, then judged on scenes whose studios
 * training never showed. Arms of a seed share the part before self-distillation begins. Box from text is judged by a fresh
 * decoder on the frozen encoder, for every arm alike; where LocCa was trained also by its own decoder. What the results file
 * and the work folder have is not done again; the table is of all runs in the file with as many steps, so seeds may run in
 * several processes, and `--seeds 0` only prints it.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadModel } from '../lib/checkpoints/load.js';
import { train } from '../lib/cli/commands/train.js';
import { evaluateScenes } from '../lib/eval/scene_tasks.js';
import { listCheckpoints } from '../lib/train/checkpoint.js';
import { presets } from '../lib/train/presets.js';
import { type RecipeInput, readStages, stageProgress, withStart } from '../lib/train/recipe.js';
import { circumstances, save } from './measure.js';

type Scores = Record<string, Record<string, number>>;
interface Result {
  seed: number;
  arm: string;
  scores: Scores;
}

/** Columns of the table: task, score, heading. */
const COLUMNS = [
  ['retrieval', 't2i_r1', 'T→I R@1'],
  ['retrieval', 'i2t_r1', 'I→T R@1'],
  ['referring-probe', 'accuracy', 'box, fresh decoder'],
  ['referring', 'accuracy', 'box, own decoder'],
  ['segmentation', 'miou', 'mIoU'],
  ['segmentation', 'objectIou', 'object IoU'],
] as const;

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      seeds: { type: 'string', default: '3' },
      first: { type: 'string', default: '1' },
      steps: { type: 'string', default: '2000' },
      data: { type: 'string', default: 'data/scenes' },
      probe: { type: 'string', default: '500' },
      work: { type: 'string' },
      json: { type: 'string' },
    },
  });
  const work = values.work ?? mkdtempSync(join(tmpdir(), 'siglip2-ablation-'));
  const [first, steps, probe] = [values.first, values.steps, values.probe].map(Number) as [
    number,
    number,
    number,
  ];
  const results = values.json === undefined ? [] : saved(values.json, steps);
  try {
    for (let seed = first; seed < first + Number(values.seeds); seed++) {
      for (const loc of [false, true]) {
        const stages = readStages(
          recipe(join(work, `${seed}-${loc ? 'locca' : 'sigmoid'}`), seed, steps, values.data, loc),
        );
        for (const stage of stages) {
          const { config } = stage,
            progress = stageProgress(config.out);
          if (progress !== 'finished')
            await train(progress === 'begun' ? config : withStart(stage, stages), {
              resume: progress === 'begun',
            });
          const arm = stage.name === 'ssl' ? (loc ? 'all' : '+SSL') : loc ? '+LocCa' : 'sigmoid';
          if (results.some((r) => r.seed === seed && r.arm === arm)) continue;
          const result = {
            seed,
            arm,
            scores: await judge(config.out, values.data, loc, seed, probe),
          };
          results.push(result);
          save(values.json, {
            bench: 'ablation',
            ...result,
            steps,
            probe,
            ...circumstances('cpu'),
          });
          console.log(JSON.stringify(result));
        }
      }
    }
    print(values.json === undefined ? results : saved(values.json, steps)); // of other processes too
  } finally {
    if (values.work === undefined) rmSync(work, { recursive: true, force: true });
  }
}

/** The tiny recipe's first two stages, the first of them to the end as well. */
function recipe(out: string, seed: number, steps: number, data: string, loc: boolean): RecipeInput {
  const { stages, ...tiny } = structuredClone(presets['tiny-recipe']) as RecipeInput;
  const source = tiny.data.source as { type: 'scenes'; path: string };
  return {
    ...tiny,
    out,
    seed,
    total: { steps },
    data: { ...tiny.data, source: { ...source, path: data } },
    // The shape of the decoder stays, so that the vocabulary and the initial values are the same.
    objectives: loc ? tiny.objectives! : {},
    stages: { base: {}, ssl: stages['ssl']! },
  };
}

async function judge(
  run: string,
  data: string,
  loc: boolean,
  seed: number,
  steps: number,
): Promise<Scores> {
  const loaded = await loadModel(listCheckpoints(run).at(-1)!);
  try {
    const boxes = (presets['tiny-recipe'] as RecipeInput).objectives?.caption?.boxes;
    return (await evaluateScenes(
      loaded,
      data,
      ['retrieval', ...(loc ? ['referring'] : []), 'referring-probe', 'segmentation'],
      { seed, steps, ...(boxes ? { boxes } : {}) },
    )) as Scores;
  } finally {
    loaded.model.dispose();
  }
}

/** Results in a file, of runs with so many steps. */
function saved(file: string, steps: number): Result[] {
  const lines = existsSync(file)
    ? readFileSync(file, 'utf8')
        .split('\n')
        .filter((l) => l !== '')
    : [];
  return lines
    .map((l) => JSON.parse(l) as Result & { steps: number })
    .filter((r) => r.steps === steps);
}

/** Mean over the seeds, with the smallest and largest value, in percent. */
function print(results: readonly Result[]): void {
  console.log(
    `\n| | ${COLUMNS.map(([, , heading]) => heading).join(' | ')} |\n|---|${COLUMNS.map(() => '---').join('|')}|`,
  );
  for (const arm of ['sigmoid', '+LocCa', '+SSL', 'all']) {
    const cells = COLUMNS.map(([task, score]) => {
      const found = results
        .filter((r) => r.arm === arm)
        .flatMap(({ scores }) => scores[task]?.[score] ?? [])
        .map((v) => 100 * v);
      if (found.length === 0) return '–';
      const mean = found.reduce((a, b) => a + b, 0) / found.length;
      return `${mean.toFixed(1)} (${Math.min(...found).toFixed(1)}–${Math.max(...found).toFixed(1)})`;
    });
    console.log(`| ${arm} | ${cells.join(' | ')} |`);
  }
  const scores = results[0]?.scores;
  if (!scores) return;
  const percent = (task: string, score: string): string => (100 * scores[task]![score]!).toFixed(1);
  console.log(
    `\nchance: retrieval ${percent('retrieval', 'chance')}, one box for all ${percent('referring-probe', 'constant')}, ` +
      `background only mIoU ${percent('segmentation', 'chance')}`,
  );
}
