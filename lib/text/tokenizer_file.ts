/**
 * tokenizer.json as this package writes it: any reader gives a text's ids as the model was trained on them, lower-cased,
 * without BOS and with EOS at the end. Padding and truncation are left to the reader, who knows the length.
 */
import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError } from '../errors.js';
import { fileError, readTextLimited } from '../fs/files.js';
import { parseObject } from '../io/safetensors_header.js';
import {
  type LowerMode,
  lowerCaseLetters,
  type TokenizerJson,
  withGemmaSymbols,
} from './tokenizer.js';
import { GEMMA_VOCAB } from './vocab.js';

const EOS = 1;
/** Gemma's file has 17 MB, with the merges as pairs 34. */
const MOST_BYTES = 2 ** 28;

type Normalizer = { type: string; normalizers?: Normalizer[]; pattern?: object; content?: string };
type PostProcessor = {
  type: string;
  processors?: PostProcessor[];
  special_tokens?: Record<string, { ids?: number[] }>;
  single?: { Sequence?: { id: string }; SpecialToken?: { id: string } }[];
};
type Json = TokenizerJson & {
  normalizer?: Normalizer | null;
  post_processor?: PostProcessor | null;
};

/** The last file made: training writes the same one into every checkpoint. */
let last: { of: string; text: Promise<string> } | undefined;

/**
 * The text of a tokenizer.json to be written, made of another.
 * @throws DataError or IoError naming the file when it is missing or no tokenizer
 */
export async function tokenizerFile(path: string, lower: LowerMode): Promise<string> {
  const { mtimeMs, size } = await stat(path).catch((cause: unknown) => {
    throw fileError(cause, 'read', path);
  });
  const of = [path, mtimeMs, size, lower].join();
  if (last?.of !== of) last = { of, text: make(path, lower) };
  return last.text;
}

async function make(path: string, lower: LowerMode): Promise<string> {
  const json = parseObject(path, await readTextLimited(path, MOST_BYTES)) as unknown as Json;
  const eos =
    json.added_tokens?.find(({ id }) => id === EOS)?.content ??
    Object.entries(json.model?.vocab ?? {}).find(([, id]) => id === EOS)?.[0];
  if (eos === undefined)
    throw new DataError(
      `${path}: has no token of id ${EOS}, which ends every text of a SigLIP model; it is the tokenizer of another model`,
    );
  const piece = (id: 'A' | 'B') => ({ Sequence: { id, type_id: 0 } }),
    end = { SpecialToken: { id: eos, type_id: 0 } };
  return JSON.stringify({
    ...withGemmaSymbols(json),
    truncation: null,
    padding: null,
    normalizer: lowered(json.normalizer ?? null, lower),
    post_processor: {
      type: 'TemplateProcessing',
      single: [piece('A'), end],
      pair: [piece('A'), piece('B'), end],
      special_tokens: { [eos]: { id: eos, ids: [EOS], tokens: [eos] } },
    },
  });
}

/** Whether a tokenizer.json itself makes a text's ids as the model takes them: the text, then EOS. */
export async function endsInEos(path: string): Promise<boolean> {
  const { post_processor: all } = parseObject(
    path,
    await readTextLimited(path, MOST_BYTES),
  ) as unknown as Json;
  const steps = all?.type === 'Sequence' ? (all.processors ?? []) : all ? [all] : [];
  const template = steps.find(({ type }) => type === 'TemplateProcessing');
  const [text, end, ...more] = template?.single ?? [],
    name = end?.SpecialToken?.id;
  return (
    text?.Sequence?.id === 'A' &&
    name !== undefined &&
    more.length === 0 &&
    template?.special_tokens?.[name]?.ids?.[0] === EOS
  );
}

/** A normaliser that lower-cases before it does what it did; the same if it does so already. */
function lowered(own: Normalizer | null, lower: LowerMode): Normalizer | null {
  const before: Normalizer[] =
    lower === 'none'
      ? []
      : lower === 'unicode'
        ? [{ type: 'Lowercase' }]
        : lowerCaseLetters.map(([from, to]) => ({
            type: 'Replace',
            pattern: { String: from },
            content: to,
          }));
  const steps = own === null ? [] : own.type === 'Sequence' ? (own.normalizers ?? []) : [own];
  if (
    before.length === 0 ||
    JSON.stringify(steps.slice(0, before.length)) === JSON.stringify(before)
  )
    return own;
  return { type: 'Sequence', normalizers: [...before, ...steps] };
}

/** Tokenizers that others keep in files of their own kind, which hold no tokenizer.json. */
const OTHERS = [
  'spiece.model',
  'tokenizer.model',
  'sentencepiece.bpe.model',
  'vocab.json',
  'vocab.txt',
];

/**
 * Why a checkpoint without tokenizer.json has no tokenizer: undefined when its ids can only be Gemma's, which come with
 * this package's default.
 */
export function missingTokenizer(
  source: string,
  folder: string | null,
  vocab: number,
  trimmed: boolean,
): string | undefined {
  const other = folder === null ? undefined : OTHERS.find((name) => existsSync(join(folder, name)));
  if (other === undefined && (trimmed || vocab === GEMMA_VOCAB)) return undefined;
  const where =
    folder === null
      ? 'a .npz file holds none'
      : other === undefined
        ? 'there is no tokenizer.json'
        : `there is ${other} but no tokenizer.json`;
  return (
    `${source}: texts need the model's own tokenizer (its token table has ${vocab} rows), and ${where}; write one with ` +
    `Python: transformers.AutoTokenizer.from_pretrained("MODEL").save_pretrained("${folder ?? 'FOLDER'}")`
  );
}
