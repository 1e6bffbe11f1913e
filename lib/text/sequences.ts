/**
 * What the caption decoder reads and writes: one sequence of tokens per task, `cap: caption`, `aref: phrase : [box]`,
 * `gcap: [box] : phrase`. Every part is tokenised by itself, so that the beginning of a sequence has the same tokens
 * when it is forced as when it was learnt.
 */
import { DataError } from '../errors.js';
import { type Box, type BoxFormat, defaultBoxFormat, formatBox } from './regions.js';
import { EOS, type GemmaTokenizer } from './tokenizer.js';

export type DecoderTask = 'cap' | 'aref' | 'gcap';

/** What one sequence says. `cap` needs a text; the others need a text and a box, or one of them as a query. */
export interface SequenceContent {
  task: DecoderTask;
  text?: string;
  box?: Box;
}

/** Token ids, the end mark included, and how many of them at the beginning are the task's name. */
export interface DecoderSequence {
  ids: Int32Array;
  prefix: number;
}

const COLON = ' :';

/** A text as a part of a sequence. */
export function textPart(text: string): string {
  return ` ${text.replace(/\s+/gu, ' ').trim()}`;
}

/** The parts after the task's name, in order; `long` is the one that may be cut. A query ends before what it asks for. */
function partsOf(
  { task, text, box }: SequenceContent,
  format: BoxFormat,
): { parts: string[]; long: number } {
  const phrase = textPart(text ?? ''),
    where = box ? ` ${formatBox(box, format)}` : '';
  if (task === 'cap')
    return text === undefined ? { parts: [], long: -1 } : { parts: [phrase], long: 0 };
  if (task === 'aref') {
    if (text === undefined)
      throw new DataError('an aref sequence needs a text; give the phrase to find');
    return { parts: box ? [phrase, COLON, where] : [phrase, COLON], long: 0 };
  }
  if (!box) throw new DataError('a gcap sequence needs a box; give the region to describe');
  return { parts: text === undefined ? [where, COLON] : [where, COLON, phrase], long: 2 };
}

/**
 * The sequences of a batch. One that is too long loses the end of its text, never its box or end mark, nor, as a query,
 * the room for the box that it asks for. Null stays null,
 * and a text that is blank gives null: there is nothing to learn from it.
 * @param length most tokens of a sequence
 * @param options.query leaves out the end mark, for a beginning that the decoder is to continue
 * @throws DataError when a sequence does not fit even without its text, or lacks what its task needs
 */
export async function decoderSequences(
  tokenizer: GemmaTokenizer,
  contents: readonly (SequenceContent | null)[],
  length: number,
  options: { boxes?: BoxFormat; query?: boolean } = {},
): Promise<(DecoderSequence | null)[]> {
  const { boxes = defaultBoxFormat, query = false } = options;
  const drafts = contents.map((c) =>
    c && (c.text === undefined || c.text.trim() !== '')
      ? { name: `${c.task}:`, ...partsOf(c, boxes) }
      : null,
  );
  const widest = ` ${formatBox([1, 1, 1, 1], boxes)}`;
  const texts = [
    ...new Set([
      ...drafts.flatMap((d) => (d ? [d.name, ...d.parts] : [])),
      ...(query ? [widest] : []),
    ]),
  ];
  // Parts are cut here and not by the tokenizer, which ends every text with the end mark.
  const wide = tokenizer.length > length ? tokenizer : tokenizer.withLength(length + 1);
  const encoded = new Map(
    (await wide.idsOf(texts)).map((ids, i) => [texts[i]!, ids.subarray(0, -1)]),
  );
  return drafts.map((d, n) => {
    if (!d) return null;
    const name = encoded.get(d.name)!,
      parts = d.parts.map((p) => encoded.get(p)!);
    const fixed =
      name.length +
      (query ? 0 : 1) +
      parts.reduce((n, p, i) => n + (i === d.long ? 0 : p.length), 0);
    if (fixed > length)
      throw new DataError(
        `a "${d.name}" sequence needs ${fixed} tokens besides its text but the decoder has ${length}; ` +
          'raise decoder.length',
      );
    const answer =
      query && contents[n]!.task === 'aref' && !contents[n]!.box
        ? encoded.get(widest)!.length + 1
        : 0;
    // A decoder so short that no box fits was never taught to write one.
    const room = length - fixed - (fixed + answer < length ? answer : 0);
    if (d.long >= 0 && parts[d.long]) parts[d.long] = parts[d.long]!.subarray(0, room);
    const ids = [...name, ...parts.flatMap((p) => [...p]), ...(query ? [] : [EOS])];
    return { ids: Int32Array.from(ids), prefix: name.length };
  });
}

/** What a loader makes for the decoder beside a batch's images and captions. */
export interface DecoderTargets {
  /** Tokens of a sequence, decoder.length. */
  length: number;
  /** Default: LocCa's. */
  boxes?: BoxFormat;
  /** Regions with a lower score are never chosen; default 0.3. */
  minScore?: number;
}

/** Texts whose tokens a trimmed vocabulary needs for the sequences' fixed parts: task names and all box coordinates. */
export function sequenceVocabulary({ bins }: BoxFormat = defaultBoxFormat): string[] {
  const numbers = Array.from({ length: bins + 1 }, (_, i) => i);
  return ['cap:', 'aref:', 'gcap:', COLON, ...numbers.map((n) => ` [${n}, ${n}, ${n}, ${n}]`)];
}
