/**
 * Checkpoints with seeded damage: every file of every layout, changed at random and opened. The outcome must be a model
 * or an error of this package, nothing else. Used by jest with hundreds of cases and by `npm run bench -- fuzz` with more.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { crc32, deflateRawSync } from 'node:zlib';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { loadModel, modelFiles } from '../../lib/checkpoints/load.js';
import { Siglip2Error } from '../../lib/errors.js';
import { openSafetensors, type TensorEntry, writeSafetensors } from '../../lib/io/safetensors.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { loadTokenizer } from '../../lib/text/tokenizer.js';
import { VocabMap } from '../../lib/text/vocab.js';

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
export function seeded(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Values that sizes and offsets must survive. */
const NUMBERS = [
  0n,
  1n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 40n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const WORDS = [
  '-1',
  '0',
  '1e9',
  '99999999999',
  '1e308',
  'null',
  '[]',
  '{}',
  '""',
  '"\\ud800"',
  'true',
  '1.5',
  '[[[[',
  '"__proto__"',
];

/** A copy with one to four changes. */
export function mutate(source: Buffer, random: () => number): Buffer {
  let bytes = Buffer.from(source);
  const below = (n: number): number => Math.floor(random() * Math.max(1, n));
  // Headers and directories are at the ends: half of all changes are made there.
  const place = (): number =>
    random() < 0.5
      ? below(bytes.length)
      : random() < 0.5
        ? below(Math.min(bytes.length, 512))
        : Math.max(0, bytes.length - 1 - below(512));
  for (let changes = 1 + below(4); changes > 0 && bytes.length > 0; changes--) {
    const p = place();
    switch (below(8)) {
      case 0:
        bytes[p]! ^= 1 << below(8);
        break;
      case 1:
        bytes[p] = [0, 255, 0x22, 0x7b, 0x30 + below(10), below(256)][below(6)]!;
        break;
      case 2: {
        const wide = Buffer.alloc(8);
        wide.writeBigUInt64LE(NUMBERS[below(NUMBERS.length)]!);
        wide.copy(bytes, p, 0, Math.min([2, 4, 8][below(3)]!, bytes.length - p));
        break;
      }
      case 3:
        bytes = bytes.subarray(0, p);
        break;
      case 4:
        bytes = Buffer.concat([bytes, Buffer.alloc(below(64), below(256))]);
        break;
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, p), bytes.subarray(p + 1 + below(64))]);
        break;
      case 6:
        bytes = Buffer.concat([bytes.subarray(0, p), bytes.subarray(Math.max(0, p - below(64)))]);
        break;
      default: {
        // A number or name of a JSON text, replaced.
        const text = bytes.toString('latin1', p, p + 200),
          found = /[\d.]+|"[^"]*"|true|false|null/.exec(text);
        if (!found) break;
        const from = p + found.index,
          word = Buffer.from(WORDS[below(WORDS.length)]!);
        bytes = Buffer.concat([
          bytes.subarray(0, from),
          word,
          bytes.subarray(from + found[0].length),
        ]);
      }
    }
  }
  return bytes;
}

/** A zip of deflated members, as numpy's savez_compressed writes it, from one of stored members of ours. */
function deflated(members: ReadonlyMap<string, Uint8Array>): Buffer {
  const parts: Buffer[] = [],
    directory: Buffer[] = [];
  let at = 0;
  for (const [name, bytes] of members) {
    const packed = deflateRawSync(bytes),
      head = Buffer.alloc(26);
    head.writeUInt16LE(20, 0);
    head.writeUInt16LE(8, 4);
    for (const [o, v] of [
      [10, crc32(bytes)],
      [14, packed.length],
      [18, bytes.length],
    ] as const)
      head.writeUInt32LE(v, o);
    head.writeUInt16LE(name.length, 22);
    const entry = Buffer.alloc(46);
    entry.write('PK\x01\x02\x14\x00', 'latin1');
    head.copy(entry, 6);
    entry.writeUInt32LE(at, 42);
    directory.push(entry, Buffer.from(name));
    parts.push(Buffer.from('PK\x03\x04'), head, Buffer.from(name), packed);
    at += 30 + name.length + packed.length;
  }
  const list = Buffer.concat(directory),
    end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(members.size, 8);
  end.writeUInt16LE(members.size, 10);
  end.writeUInt32LE(list.length, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, list, end]);
}

/** A word-level tokenizer.json: small, and of the same schema as Gemma's. */
const TOKENIZER = JSON.stringify(
  {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      {
        id: 0,
        content: '<pad>',
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    pre_tokenizer: {
      type: 'Split',
      pattern: { String: ' ' },
      behavior: 'MergedWithPrevious',
      invert: false,
    },
    post_processor: null,
    decoder: null,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: false,
      vocab: { '<pad>': 0, '<eos>': 1, '<bos>': 2, '<unk>': 3, a: 4, b: 5, c: 6, ab: 7, abc: 8 },
      merges: [
        ['a', 'b'],
        ['ab', 'c'],
      ],
    },
  },
  null,
  1,
);

/** Folders and files to damage: {path of the checkpoint: its files}. */
async function samples(folder: string): Promise<{ source: string; files: Map<string, Buffer> }[]> {
  const at = (name: string): string => join(folder, name);
  const model = new Siglip2Model(modelConfig('test', { vocab: 7, name: 'fuzz' }), {});
  model.initialize(1);
  await modelFiles(at('hf'), model, {
    vocab: VocabMap.fromIds([0, 1, 2, 3, 9, 12, 40]),
    tokenizer: null,
    lowercase: 'ascii',
    ema: null,
  });
  await modelFiles(at('plain'), model, {
    vocab: null,
    tokenizer: null,
    lowercase: 'ascii',
    ema: null,
  });
  model.dispose();
  for (const name of ['hf', 'plain']) rmSync(join(at(name), 'tokenizer.json'));
  await convertCheckpoint(at('plain'), at('stored.npz'), { format: 'npz' });
  // Sharded, in half precision.
  const reader = await openSafetensors(at('plain')),
    weightMap: Record<string, string> = {};
  mkdirSync(at('sharded'));
  for (const shard of [0, 1]) {
    const file = `model-${shard}.safetensors`,
      entries: TensorEntry[] = [];
    for (const { name, shape, bytes } of [...reader.tensors.values()].filter(
      (_, i) => i % 2 === shard,
    )) {
      weightMap[name] = file;
      entries.push({ name, shape, dtype: 'BF16', data: new Uint8Array(bytes / 2) });
    }
    await writeSafetensors(join(at('sharded'), file), entries);
  }
  await reader.close();
  writeFileSync(
    join(at('sharded'), 'model.safetensors.index.json'),
    JSON.stringify({ metadata: {}, weight_map: weightMap }),
  );
  for (const file of ['config.json', 'siglip2.json'])
    writeFileSync(join(at('sharded'), file), readFileSync(join(at('plain'), file)));
  const zip = readFileSync(at('stored.npz')),
    members = new Map<string, Uint8Array>();
  for (let p = 0; zip.readUInt32LE(p) === 0x04034b50; ) {
    const name = zip.toString('latin1', p + 30, p + 30 + zip.readUInt16LE(p + 26)),
      extra = p + 30 + name.length;
    const size = Number(zip.readBigUInt64LE(extra + 4)),
      begin = extra + zip.readUInt16LE(p + 28);
    members.set(name, zip.subarray(begin, begin + size));
    p = begin + size;
  }
  writeFileSync(at('deflated.npz'), deflated(members));
  mkdirSync(at('tokenizer'));
  writeFileSync(join(at('tokenizer'), 'tokenizer.json'), TOKENIZER);
  return ['hf', 'sharded', 'stored.npz', 'deflated.npz', 'tokenizer'].map((name) => ({
    source: at(name),
    files: new Map(
      (name.endsWith('.npz')
        ? [at(name)]
        : readdirSync(at(name)).map((file) => join(at(name), file))
      ).map((path) => [path, readFileSync(path)]),
    ),
  }));
}

async function open(source: string): Promise<void> {
  if (basename(source) === 'tokenizer') {
    const tokenizer = await loadTokenizer({ path: join(source, 'tokenizer.json') });
    await tokenizer.encodeBatch(['abc cab', '']);
    return;
  }
  const { model } = await loadModel(source);
  model.dispose();
}

export interface FuzzResult {
  /** Damaged files that opened all the same (a changed weight, say). */
  opened: number;
  /** Errors of this package, by code. */
  refused: Record<string, number>;
  /** Anything else: what happened, with the number of the case. */
  failures: string[];
  /** The case that took most processor time, in milliseconds. */
  slowest: { name: string; ms: number };
  /** Growth of the process's memory over all cases, in bytes. */
  growth: number;
}

/** No case yet. */
export function emptyResult(): FuzzResult {
  return { opened: 0, refused: {}, failures: [], slowest: { name: '', ms: 0 }, growth: 0 };
}

/** One case: `run` succeeds, rejects with an error of this package, or has failed. */
export async function fuzzCase(
  result: FuzzResult,
  name: string,
  run: () => Promise<unknown>,
): Promise<void> {
  const before = process.cpuUsage();
  try {
    await run();
    result.opened++;
  } catch (error) {
    const ours = error instanceof Siglip2Error && error.message !== '';
    if (ours) result.refused[error.code] = (result.refused[error.code] ?? 0) + 1;
    else result.failures.push(`${name}: ${(error as Error).stack ?? String(error)}`);
  }
  const { user, system } = process.cpuUsage(before),
    ms = (user + system) / 1000;
  if (ms > result.slowest.ms) result.slowest = { name, ms };
}

/** Opens `count` damaged checkpoints in an empty folder; case i depends on (seed, i) alone. */
export async function fuzzCheckpoints(
  folder: string,
  count: number,
  seed: number,
  onProgress: (done: number) => void = () => undefined,
): Promise<FuzzResult> {
  const all = await samples(folder);
  const result = emptyResult();
  for (const { source } of all) await open(source);
  const before = process.memoryUsage().rss;
  for (let i = 0; i < count; i++) {
    const random = seeded(seed * 1_000_003 + i),
      sample = all[i % all.length]!;
    const files = [...sample.files],
      [path, bytes] = files[Math.floor(random() * files.length)]!;
    writeFileSync(path, mutate(bytes, random));
    const name = `case ${i} (seed ${seed}) ${basename(sample.source)}/${basename(path)}`;
    await fuzzCase(result, name, () => open(sample.source));
    writeFileSync(path, bytes);
    onProgress(i + 1);
  }
  result.growth = process.memoryUsage().rss - before;
  return result;
}
