/** Patterns for file names, and reading a file line by line with offsets. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ConfigError, DataError } from '../errors.js';
import { fileError, openInput } from './files.js';

const MAX_LINE = 16 << 20;

/** A byte order mark, which some editors put before UTF-8. */
const BOM = Buffer.from([0xef, 0xbb, 0xbf]);

/**
 * The lines of a file as bytes without their end and the file's byte order mark, with their offsets.
 * @throws DataError when the file is missing or a line is longer than 16 MiB; IoError when it
 *   cannot be read
 */
export async function* lines(file: string): AsyncGenerator<{ data: Buffer; offset: number }> {
  let rest = Buffer.alloc(0);
  let offset = 0;
  let first = true;
  try {
    for await (const chunk of (await openInput(file)).createReadStream({
      highWaterMark: 1 << 20,
    })) {
      let data = rest.length > 0 ? Buffer.concat([rest, chunk as Buffer]) : (chunk as Buffer);
      if (first && /^(\xff\xfe|\xfe\xff)/.test(data.toString('latin1', 0, 2)))
        throw new DataError(
          `${file}: is UTF-16 text; convert it: \`iconv -f UTF-16 -t UTF-8 ${file}\``,
        );
      if (first && data.subarray(0, BOM.length).equals(BOM))
        data = data.subarray((offset = BOM.length));
      first = false;
      for (let end = data.indexOf(0x0a); end >= 0; end = data.indexOf(0x0a)) {
        yield { data: trimEnd(data.subarray(0, end)), offset };
        offset += end + 1;
        data = data.subarray(end + 1);
      }
      if (data.length > MAX_LINE) {
        throw new DataError(
          `${file}: the line at byte ${offset} is longer than ${MAX_LINE} bytes; is it JSON lines?`,
        );
      }
      rest = Buffer.from(data);
    }
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
  if (rest.length > 0) yield { data: trimEnd(rest), offset };
}

function trimEnd(line: Buffer): Buffer {
  return line.at(-1) === 0x0d ? line.subarray(0, -1) : line;
}

const MAX_EXPANSION = 1_000_000;

/**
 * The files that a pattern names: `{000..012}` counts (keeping leading zeros), `{a,b}` lists, `*` and `?` match within one
 * part of the path, and `**` as a part of it is any number of folders, none included, but not links to folders. Wildcards
 * find no folder whose name begins with a dot. Sorted by name within each wildcard.
 * @throws DataError when a wildcard matches nothing
 */
export function expandPaths(pattern: string): string[] {
  return expandBraces(pattern).flatMap((one) => {
    if (!/[*?]/.test(one)) return [one];
    const { root } = path.parse(one),
      parts = one.slice(root.length).split(path.sep);
    const found = [...new Set(matches(root, parts, true))];
    if (found.length === 0) throw new DataError(`${one}: no file matches; check the path`);
    return found;
  });
}

/** @param first whether the folder was named, so that it must be readable, or found by a wildcard */
function matches(folder: string, [part, ...rest]: readonly string[], first: boolean): string[] {
  if (part === undefined) return [folder];
  const below = (entry: fs.Dirent): string => path.join(folder, entry.name);
  if (part === '**') {
    const deeper = entriesOf(folder, first).filter(
      (entry) => entry.isDirectory() && !entry.name.startsWith('.'),
    );
    // At its end it stands for all files.
    return [
      ...matches(folder, rest.length > 0 ? rest : ['*'], first).filter(
        (found) => rest.length > 0 || isFile(found),
      ),
      ...deeper.flatMap((entry) => matches(below(entry), ['**', ...rest], false)),
    ];
  }
  if (!/[*?]/.test(part)) {
    const next = path.join(folder, part);
    return rest.length === 0 && !first && !fs.existsSync(next) ? [] : matches(next, rest, first);
  }
  const regex = new RegExp(
    `^${part
      .replace(/[.+^${}()|[\]\\]/g, '\\$&')
      .replace(/\*+/g, '.*')
      .replace(/\?/g, '.')}$`,
    's',
  ); // a name may have line breaks
  const shown = (name: string): boolean =>
    rest.length === 0 || !name.startsWith('.') || part.startsWith('.');
  return entriesOf(folder, first)
    .filter(({ name }) => regex.test(name) && shown(name))
    .flatMap((entry) =>
      rest.length === 0 || !isFile(below(entry)) ? matches(below(entry), rest, false) : [],
    );
}

/** Sorted by name; of a folder that a wildcard found and that cannot be read, none. */
function entriesOf(folder: string, named: boolean): fs.Dirent[] {
  try {
    return fs
      .readdirSync(folder || '.', { withFileTypes: true })
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (cause) {
    if (!named && ['ENOENT', 'ENOTDIR'].includes(String((cause as { code?: unknown }).code)))
      return [];
    throw fileError(cause, 'read', folder);
  }
}

const isFile = (name: string): boolean =>
  fs.statSync(name, { throwIfNoEntry: false })?.isFile() ?? false;

function expandBraces(pattern: string): string[] {
  const match = /\{([^{}]*)\}/.exec(pattern);
  if (match === null) return [pattern];
  const range = /^(\d+)\.\.(\d+)$/.exec(match[1] as string);
  let items: string[];
  if (range !== null) {
    const [first, last] = [range[1] as string, range[2] as string];
    const count = Number(last) - Number(first) + 1;
    if (!(count >= 1 && count <= MAX_EXPANSION)) {
      throw new ConfigError(
        `${pattern}: the range {${match[1]}} must count upwards, to at most ${MAX_EXPANSION} files`,
      );
    }
    items = Array.from({ length: count }, (_, i) =>
      String(Number(first) + i).padStart(first.length, '0'),
    );
  } else {
    items = (match[1] as string).split(',');
  }
  const before = pattern.slice(0, match.index);
  const after = expandBraces(pattern.slice(match.index + match[0].length));
  return items.flatMap((item) => after.map((rest) => before + item + rest));
}
