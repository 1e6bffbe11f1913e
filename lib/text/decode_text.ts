/** Text and JSON as other programs write them. */
import { isUtf8 } from 'node:buffer';

/** Bytes that are no text in an encoding that they show. */
export class NotText extends Error {}

/**
 * UTF-8, or UTF-16 with a byte order mark, without the mark.
 * @throws NotText for anything else, NULs included: a replacement character in a caption would be trained on
 */
export function decodeText(data: Uint8Array): string {
  const mark = (data[0]! << 8) | data[1]!;
  let text: string;
  if (data.length >= 2 && (mark === 0xfffe || mark === 0xfeff)) {
    try {
      text = new TextDecoder(mark === 0xfffe ? 'utf-16le' : 'utf-16be', { fatal: true }).decode(
        data,
      );
    } catch (cause) {
      throw new NotText('not UTF-16 although its mark says so', { cause });
    }
  } else {
    if (!isUtf8(data)) throw new NotText('not UTF-8');
    text = Buffer.from(data.buffer, data.byteOffset, data.length)
      .toString('utf8')
      .replace(/^\ufeff/, '');
  }
  if (text.includes('\0')) throw new NotText('not UTF-8');
  return text;
}

/** JSON.parse that reads NaN, Infinity and -Infinity, which Python writes, as null. Throws SyntaxError. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const plain = text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?\b(?:NaN|Infinity)\b/gs, (found) =>
      found.startsWith('"') ? found : 'null',
    );
    if (plain === text) throw error;
    return JSON.parse(plain);
  }
}
