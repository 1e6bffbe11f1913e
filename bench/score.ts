/**
 * Scoring at some size: makes tars of placed emoji artwork of which a share has another picture's caption, and then
 * measures on them samples/s beside what the encoder alone does, checks that a run killed at random moments ends with the
 * bytes of one that was not, and prints the area under the ROC curve of finding the swapped captions.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import { listImages } from '../lib/cli/images.js';
import { scoreCollection } from '../lib/curation/score.js';
import { openUnit, readSettings } from '../lib/curation/score_table.js';
import { scoreUnits } from '../lib/curation/score_units.js';
import { DataLoader } from '../lib/data/loader.js';
import { openSource } from '../lib/data/source.js';
import { load } from '../lib/encoder/encoder.js';
import { TarWriter } from '../lib/io/tar_writer.js';
import { Random } from '../lib/random.js';
import { listCheckpoints } from '../lib/train/checkpoint.js';
import { circumstances, save } from './measure.js';

const SIZE = 64,
  BATCH = 64,
  SHARD = 1024;

/** Tars of placed artwork; keys end in `-s` where the caption is another picture's. */
async function makeShards(
  data: string,
  folder: string,
  samples: number,
  swap: number,
): Promise<string[]> {
  mkdirSync(folder, { recursive: true });
  const loader = new DataLoader(await openSource({ type: 'emoji', path: data, split: 'train' }), {
    batchSize: BATCH,
    seed: 4711,
    size: SIZE,
    workers: 1,
    tokenizer: null,
    uniqueBy: 'class',
    captions: { pick: ['en'], primaryProbability: 1 },
    transforms: [{ name: 'place', scale: [0.6, 1], backgrounds: ['plain', 'gradient'] }],
  });
  const tars: string[] = [],
    random = new Random(4711, 1);
  try {
    let writer: TarWriter | undefined;
    for (let n = 0; n < samples; ) {
      const batch = await loader.next();
      const swapped = batch.keys.map(() => random.uniform() < swap),
        from = batch.keys.map((_, i) => i).filter((i) => swapped[i]);
      for (let i = 0; i < BATCH && n < samples; i++, n++) {
        if (n % SHARD === 0) {
          writer?.finish();
          tars.push(join(folder, `part-${String(tars.length).padStart(3, '0')}.tar`));
          writer = new TarWriter(tars.at(-1)!);
        }
        // Swapped captions go round among themselves; classes of a batch differ, so every one of them is wrong.
        const text = batch.texts[swapped[i] ? from[(from.indexOf(i) + 1) % from.length]! : i]!;
        const key = `${String(n).padStart(6, '0')}-${swapped[i] && from.length > 1 ? 's' : 'o'}`;
        const pixels = batch.images.subarray(i * SIZE * SIZE * 3, (i + 1) * SIZE * SIZE * 3);
        writer!.add(
          `${key}.png`,
          await sharp(pixels, { raw: { width: SIZE, height: SIZE, channels: 3 } })
            .png()
            .toBuffer(),
        );
        writer!.add(`${key}.txt`, text);
      }
    }
    writer?.finish();
    return tars;
  } finally {
    await loader.close();
  }
}

/** Probability that a sample of `good` has a higher value than one of `bad`; ties count half. */
function areaUnderRoc(good: number[], bad: number[]): number {
  const all = [...good.map((v) => [v, 1] as const), ...bad.map((v) => [v, 0] as const)].sort(
    (a, b) => a[0] - b[0],
  );
  let ranks = 0;
  for (let i = 0; i < all.length; ) {
    let end = i;
    while (end < all.length && all[end]![0] === all[i]![0]) end++;
    for (let k = i; k < end; k++) if (all[k]![1]) ranks += (i + end + 1) / 2;
    i = end;
  }
  return (ranks - (good.length * (good.length + 1)) / 2) / (good.length * bad.length);
}

async function printRoc(out: string): Promise<Record<string, number>> {
  const figures: Record<string, number> = {};
  for (const column of ['cosine', 'loss', 'learnability']) {
    const good: number[] = [],
      bad: number[] = [];
    for (const unit of readSettings(out).units) {
      const { key, [column]: value } = await (await openUnit(out, unit)).read(['key', column]);
      Array.from(key as string[], (k, i) =>
        (k.endsWith('-s') ? bad : good).push(Number(value![i] ?? NaN)),
      );
    }
    if (Number.isNaN(good[0])) continue;
    const area = areaUnderRoc(good, bad);
    figures[`auc_${column}`] = column === 'cosine' ? area : 1 - area;
    console.log(
      `  ROC of ${column.padEnd(13)} ${figures[`auc_${column}`]!.toFixed(4)} (${bad.length} swapped of ${good.length + bad.length})`,
    );
  }
  return figures;
}

function digest(out: string): string {
  const hash = createHash('sha256');
  for (const name of readdirSync(out)
    .filter((n) => !n.startsWith('.score.json'))
    .sort())
    hash.update(name).update(readFileSync(join(out, name)));
  return hash.digest('hex');
}

const ended = (child: ChildProcess): Promise<number | null> =>
  new Promise((done) => child.on('exit', (status) => done(status)));

/** Kills the command at so many moments, spread at random over the work that is left, then lets it finish. */
async function killAndFinish(
  args: string[],
  out: string,
  tables: number,
  kills: number,
  seed: number,
): Promise<void> {
  const main = fileURLToPath(new URL('../lib/cli/main.js', import.meta.url)),
    random = new Random(seed, 2);
  const done = (): number =>
    existsSync(out) ? readdirSync(out).filter((n) => /^part.*\.parquet$/.test(n)).length : 0;
  for (let k = 0; k < kills; k++) {
    const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'ignore', 'pipe'] }),
      exit = ended(child),
      from = done();
    const target = Math.min(
      tables - 1,
      from + random.below(Math.ceil((2 * (tables - from)) / (kills - k + 1)) + 1),
    );
    let samples = 0;
    child.stderr!.on('data', (text: Buffer) => {
      samples = Number(/"samples":(\d+)(?!.*"samples")/s.exec(text.toString())?.[1] ?? samples);
    });
    while (child.exitCode === null && (done() < target || samples === 0)) await sleep(2);
    await sleep(random.below(1500));
    const alive = child.exitCode === null;
    child.kill('SIGKILL');
    await exit;
    console.log(
      `  kill ${k + 1}: ${alive ? `with ${done()} of ${tables} tables` : 'came too late'}`,
    );
  }
  const child = spawn(process.execPath, [main, ...args], { stdio: 'ignore' });
  if ((await ended(child)) !== 0) throw new Error('the last run failed');
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: 'string' },
      reference: { type: 'string' },
      data: { type: 'string', default: 'data/emoji-quickstart' },
      samples: { type: 'string', default: '20480' },
      swap: { type: 'string', default: '0.4' },
      kills: { type: 'string', default: '10' },
      seed: { type: 'string', default: '1' },
      work: { type: 'string', default: '/tmp/siglip2-score' },
      rounds: { type: 'string', default: '3' },
      json: { type: 'string' },
    },
  });
  if (values.model === undefined)
    throw new Error('score needs --model, a trained checkpoint or run');
  const shards = join(values.work, 'shards'),
    out = join(values.work, 'whole'),
    killed = join(values.work, 'killed');
  const have = existsSync(shards)
    ? readdirSync(shards)
        .filter((n) => /\.tar$/.test(n))
        .sort()
        .map((n) => join(shards, n))
    : [];
  const tars =
    have.length > 0
      ? have
      : await makeShards(values.data, shards, Number(values.samples), Number(values.swap));
  const record: Record<string, unknown> = {
    ...circumstances('cpu'),
    what: 'score',
    samples: Number(values.samples),
  };

  const last = (run: string): string => listCheckpoints(run).at(-1) ?? run;
  using model = await load(last(values.model));
  using reference = values.reference === undefined ? undefined : await load(last(values.reference));
  const part = tars.slice(0, 2),
    images = await listImages(part),
    captions = (await openSource({ type: 'webdataset', tars: part })).samples;
  const texts = captions.map(({ captions: c }) =>
    readFileSync(c.path)
      .subarray(c.offset, c.offset + c.size)
      .toString('utf8'),
  );
  await model.encodeTexts(texts); // the tokenizer is there, and remembers these captions for both
  const rates: { encode: number; score: number; cpu: number }[] = [];
  for (let r = 0; r < Number(values.rounds); r++) {
    const timed = async (work: () => Promise<unknown>): Promise<{ rate: number; cpu: number }> => {
      const begin = performance.now(),
        before = process.cpuUsage();
      await work();
      const { user, system } = process.cpuUsage(before);
      return {
        rate: (images.length / (performance.now() - begin)) * 1000,
        cpu: (user + system) / 1e6,
      };
    };
    const encode = await timed(async () => {
      await model.encodeImages(images.map((i) => i.open()));
      await model.encodeTexts(texts);
    });
    const folder = join(values.work, `timed-${r}`);
    rmSync(folder, { recursive: true, force: true });
    const score = await timed(async () =>
      scoreCollection(await scoreUnits(part), folder, { learner: model }),
    );
    rmSync(folder, { recursive: true, force: true });
    rates.push({ encode: encode.rate, score: score.rate, cpu: encode.cpu / score.cpu });
    // On a machine that others use too, CPU time says more than time.
    console.log(
      `  encoder alone ${encode.rate.toFixed(1)} pairs/s, scoring ${score.rate.toFixed(1)}: ${((100 * score.rate) / encode.rate).toFixed(0)} %; ` +
        `CPU time ${encode.cpu.toFixed(2)} s and ${score.cpu.toFixed(2)} s`,
    );
  }
  record['rates'] = rates;

  for (const folder of [out, killed]) rmSync(folder, { recursive: true, force: true });
  const { rows } = await scoreCollection(await scoreUnits(tars), out, {
    learner: model,
    ...(reference ? { reference } : {}),
  });
  console.log(`  ${rows} rows in ${tars.length} tables`);
  Object.assign(record, { rows, ...(await printRoc(out)) });
  if (Number(values.kills) > 0) {
    const command = [
      'score',
      '--model',
      values.model,
      ...(values.reference ? ['--reference', values.reference] : []),
      ...tars,
      '--out',
      killed,
    ];
    await killAndFinish(command, killed, tars.length, Number(values.kills), Number(values.seed));
    record['equalAfterKills'] = digest(killed) === digest(out);
    console.log(
      `  after ${values.kills} kills: ${record['equalAfterKills'] ? 'the same bytes' : 'DIFFERENT bytes'}`,
    );
  }
  save(values.json, record);
}
