/** `siglip2 plan`: memory and FLOPs of a config's training step, and what to switch on so that it fits. */
import { parseArgs } from 'node:util';
import { ConfigError } from '../../errors.js';
import { checkTrainConfig, type TrainConfig } from '../../train/config.js';
import { type Way, waysToFit } from '../../train/fit.js';
import { planStep, type StepPlan } from '../../train/plan.js';
import { isStaged, readStages } from '../../train/recipe.js';
import type { Command } from '../command.js';
import { configArgument } from '../config_argument.js';

export const command: Command = {
  usage:
    'plan CONFIG|--preset NAME [--stage NAME] [--batch N] [--memory 80GB] [--device cpu|cuda] [--set key=value]… [--json]',
  summary:
    'predicts peak memory and FLOPs of a training step, part by part, without taking the memory; with --memory it says ' +
    'what to switch on so that the step fits, and exits 1 when nothing helps; --device is cuda by default unless the config says cpu',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        preset: { type: 'string' },
        stage: { type: 'string' },
        batch: { type: 'string' },
        memory: { type: 'string' },
        device: { type: 'string' },
        set: { type: 'string', multiple: true, default: [] },
        json: { type: 'boolean', default: false },
      },
    });
    const sets = [...values.set, ...(values.batch === undefined ? [] : [`batch=${values.batch}`])];
    const limit = values.memory === undefined ? undefined : parseBytes(values.memory);
    const value = await configArgument('plan', positionals, values.preset, ['out=plan', ...sets]);
    const stages = isStaged(value)
      ? readStages(value)
      : [{ name: '', config: checkTrainConfig(value) }];
    const chosen = stages.filter(({ name }) => values.stage === undefined || name === values.stage);
    if (chosen.length === 0 && !isStaged(value))
      throw new ConfigError('this config has no stages; leave out --stage');
    if (chosen.length === 0)
      throw new ConfigError(
        `no stage is called "${values.stage}"; the stages are ${stages.map((s) => s.name).join(', ')}`,
      );
    let fits = true;
    const records: object[] = [];
    for (const { name, config } of chosen) {
      const device = deviceOf(values.device, config),
        plan = await planStep(config, device);
      const ways = limit === undefined ? undefined : await waysToFit(config, device, limit, plan);
      if (ways?.length === 0) fits = false;
      records.push({
        ...(name ? { stage: name } : {}),
        plan,
        ...(ways ? { memory: limit, ways } : {}),
      });
      if (values.json) continue;
      console.log(table(name, config, plan));
      if (ways) console.log(advice(ways, limit!));
    }
    if (values.json) console.log(JSON.stringify(records, null, 2));
    return fits ? 0 : 1;
  },
};

function deviceOf(wish: string | undefined, config: TrainConfig): 'cpu' | 'cuda' {
  const device = wish ?? (config.device === 'cpu' ? 'cpu' : 'cuda');
  if (device !== 'cpu' && device !== 'cuda')
    throw new ConfigError(`--device must be cpu or cuda but is "${device}"`);
  return device;
}

/** Bytes of `80GB`, `24GiB`, `512MB`. Throws ConfigError. */
export function parseBytes(text: string): number {
  const [, number, prefix, binary] = /^(\d+(?:\.\d+)?) ?([kMGT])(i?)B$/.exec(text) ?? [];
  if (number === undefined)
    throw new ConfigError(`--memory must be a size such as 80GB or 24GiB but is "${text}"`);
  return Number(number) * (binary ? 1024 : 1000) ** (1 + 'kMGT'.indexOf(prefix!));
}

function bytes(n: number): string {
  return n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : `${(n / 2 ** 20).toFixed(1)} MiB`;
}
function flops(n: number): string {
  const [unit, size]: [string, number] =
    n >= 1e15 ? ['PFLOP', 1e15] : n >= 1e12 ? ['TFLOP', 1e12] : ['GFLOP', 1e9];
  return `${(n / size).toFixed(2)} ${unit}`;
}

/** The plan as text, one figure a line. */
function table(stage: string, config: TrainConfig, plan: StepPlan): string {
  const {
    fixed,
    activations,
    flops: { total, ...parts },
  } = plan;
  const row = (name: string, value: string, more = ''): string =>
    `  ${name.padEnd(30)}${value.padStart(14)}${more && `   ${more}`}`;
  const share = (n: number): string => `${((100 * n) / total).toFixed(1).padStart(5)} %`;
  const caching = plan.microBatch < plan.batch;
  return [
    `${stage && `stage ${stage}: `}${String(config.model.variant)}, batch ${plan.batch}` +
      `${caching ? ` in micro-batches of ${plan.microBatch}` : ''}, ` +
      `${plan.dtype} on ${plan.device}${plan.checkpointBlocks ? ', blocks checkpointed' : ''}; ${(plan.parameters / 1e6).toFixed(1)} M parameters` +
      (plan.trained < plan.parameters
        ? `, ${(plan.trained / 1e6).toFixed(1)} M of them trained`
        : ''),
    row('weights', bytes(fixed.weights)),
    ...(fixed.bf16Copies ? [row('their bf16 copies', bytes(fixed.bf16Copies))] : []),
    row('gradients', bytes(fixed.gradients)),
    row('moments', bytes(fixed.moments)),
    ...(fixed.average ? [row('moving average', bytes(fixed.average))] : []),
    ...Object.entries(activations).map(([name, n]) =>
      row(`activations, ${name}`, bytes(n), name === 'distillation' ? 'after the others' : ''),
    ),
    row('transient', bytes(plan.transient), 'gradients of activations, inputs, blocks run again'),
    row('kernel workspace', bytes(plan.workspace)),
    row(
      'peak',
      bytes(plan.peak),
      plan.cached ? `and ${bytes(plan.cached)} cached while there is room` : '',
    ),
    ...Object.entries(parts).map(([name, n]) => row(`FLOPs, ${name}`, flops(n), share(n))),
    row(
      'FLOPs of a step',
      flops(total),
      plan.recomputed ? `and ${flops(plan.recomputed)} computed again` : '',
    ),
    ...(plan.pixels.largest > plan.pixels.most
      ? [
          `  The pixels of a batch take ${bytes(plan.pixels.largest)} on the host, more ` +
            `than the ${bytes(plan.pixels.most)} that one array of this Node holds: use a smaller batch in each process.`,
        ]
      : []),
    ...(config.data.trimVocabulary
      ? [
          '  trimVocabulary keeps the tokens of the data alone: plan with --set model.vocab=N once you know N.',
        ]
      : []),
  ].join('\n');
}

function advice(ways: readonly Way[], limit: number): string {
  if (ways.length === 0)
    return `  It does not fit into ${bytes(limit)}, not even one image at a time: weights and optimizer take too much.`;
  if (Object.keys(ways[0]!.changes).length === 0) return `  It fits into ${bytes(limit)} as it is.`;
  return [
    `  It fits into ${bytes(limit)} with`,
    ...ways.map(
      ({ changes, plan, cost }) =>
        `    ${Object.entries(changes)
          .map(([key, v]) => `${key}: ${String(v)}`)
          .join(', ')
          .padEnd(52)} ` + `${bytes(plan.peak)}, ${cost.toFixed(2)} × the FLOPs`,
    ),
  ].join('\n');
}
