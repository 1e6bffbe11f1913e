/**
 * Reading tar archives by position.
 *
 * Training needs the byte range of every member (random order, exact resume), so the reader makes an index and leaves the
 * members where they are. Formats: POSIX ustar with pax headers and GNU long names and base-256 numbers; archives that were
 * joined end to end, and such without an end marker. An archive is untrusted input: each header's checksum and each offset is
 * checked against the file's size, and whatever does not fit is a DataError with file and byte offset.
 */
import type * as fs from 'node:fs';
import { posix } from 'node:path';
import { DataError } from '../errors.js';
import { fileError, openInput } from '../fs/files.js';
import { isKind, kindOf } from '../fs/kinds.js';
import { BLOCK, isHeader, parseHeader, parsePax, TarFault, text } from './tar_header.js';

/** One regular file inside a tar archive. */
export interface TarEntry {
  /** Path inside the archive, as stored; never used as a path on disk. Bytes that are not UTF-8 are read as latin-1. */
  name: string;
  /** First byte of the content, from the start of the archive. */
  offset: number;
  /** Bytes of content. */
  size: number;
  /** Why the content is not to be had, as it is called in the count of skips. */
  fault?: string;
}

/** Options of `indexTar`. */
export interface TarOptions {
  /**
   * Called with what is wrong with a damaged archive, which then counts as ended there.
   * @param lost names of the files behind the damage, as far as headers are found; undefined when bytes are missing, so that
   *   nobody can say
   */
  onDamage?: (error: DataError, lost: readonly string[] | undefined) => void;
  /** Is told of names that come more than once. */
  note?: (message: string) => void;
}

/** A file that is no tar archive at all, whatever it is called: no damage, and no matter of tolerance. */
class NoTar extends DataError {}

/** Bytes read at a time: small members come several to a read, and large ones cost one read for their header. */
const WINDOW = 65536;
/** A long name or pax record is read into memory, so a damaged size must not be able to ask for gigabytes. */
const MAX_EXTENSION = 1 << 20;
const ZEROS = Buffer.alloc(BLOCK);

/**
 * Lists the files of a local tar archive with their byte ranges: regular ones, and links to them, which have the content of
 * what they link to. Folders and devices are left out; of a file whose content is not there as it is (`fault`) the name alone.
 * Of a name that comes more than once the last is meant, as whoever unpacks the archive gets it.
 *
 * @param file path of the archive (not compressed)
 * @returns the entries in the order of the archive
 * @throws DataError when the file is missing or no tar archive (the message says what it is, if known), or when it is
 *   damaged or truncated (the message has the byte offset) and there is no `onDamage`; IoError when it cannot be read
 */
export async function indexTar(file: string, options: TarOptions = {}): Promise<TarEntry[]> {
  let handle: fs.promises.FileHandle;
  try {
    handle = await openInput(file);
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
  try {
    const archive = new Archive(handle, file, (await handle.stat()).size);
    await archive.checkKind();
    return await archive.list(options);
  } catch (cause) {
    throw fileError(cause, 'read', file);
  } finally {
    await handle.close();
  }
}

/** A link, until what it links to is known. */
interface Link {
  entry: TarEntry;
  target: string;
  hard: boolean;
}

class Archive {
  readonly #buffer = Buffer.allocUnsafe(WINDOW);
  #start = 0;
  #filled = 0;
  readonly #links = new Map<TarEntry, Link>();

  readonly #handle: fs.promises.FileHandle;
  readonly #file: string;
  readonly #total: number;

  constructor(handle: fs.promises.FileHandle, file: string, total: number) {
    this.#handle = handle;
    this.#file = file;
    this.#total = total;
  }

  /** Throws when the file begins as other kinds of files do. */
  async checkKind(): Promise<void> {
    const head = Buffer.from(await this.#bytes(0, BLOCK)),
      kind = isHeader(head) ? undefined : kindOf(head, this.#file);
    if (kind && kind.id !== 'tar')
      throw new NoTar(
        `${this.#file}: ${kind.id === 'compressed' ? '' : 'is no tar archive: it '}${isKind(kind)}`,
      );
    // Neither the mark of a tar nor a number where old tars have their checksum.
    if (
      !kind &&
      head.length === BLOCK &&
      !head.equals(ZEROS) &&
      !isHeader(head) &&
      !/^[0-7 \0]+$/.test(head.toString('latin1', 148, 156))
    )
      throw new NoTar(`${this.#file}: is no tar archive; check the file`);
  }

  async list({ onDamage, note }: TarOptions): Promise<TarEntry[]> {
    const entries: TarEntry[] = [],
      lost: TarEntry[] = [];
    let fault: TarFault | undefined,
      known = true;
    for (let from: number | undefined = 0, into = entries; from !== undefined; ) {
      try {
        await this.#walk(from, into);
        from = undefined;
      } catch (error) {
        if (!(error instanceof TarFault) || !onDamage) throw error;
        fault ??= error;
        into = lost;
        from = await this.#findHeader(error.at + BLOCK);
        known = from !== undefined || !error.cut;
      }
    }
    if (fault) onDamage!(fault, known ? lost.map(({ name }) => name) : undefined);
    this.#follow(entries);
    const last = new Map(entries.map((entry) => [entry.name, entry])),
      again = entries.length - last.size;
    if (again > 0)
      note?.(
        `${this.#file}: ${again} of ${entries.length} members come again later by the same name; the last one counts`,
      );
    return [...last.values()];
  }

  /** `size` bytes at `at`, from the window when they are in it; fewer at the end of the file. */
  async #bytes(at: number, size: number): Promise<Buffer> {
    if (size > WINDOW) {
      const whole = Buffer.allocUnsafe(size);
      const { bytesRead } = await this.#handle.read(whole, 0, size, at);
      return whole.subarray(0, bytesRead);
    }
    if (at < this.#start || at + size > this.#start + this.#filled) {
      this.#start = at;
      this.#filled = (await this.#handle.read(this.#buffer, 0, WINDOW, at)).bytesRead;
    }
    return this.#buffer.subarray(at - this.#start, Math.min(at - this.#start + size, this.#filled));
  }

  async #findHeader(from: number): Promise<number | undefined> {
    for (let at = from; at + BLOCK <= this.#total; at += BLOCK)
      if (isHeader(await this.#bytes(at, BLOCK))) return at;
    return undefined;
  }

  /** Behind an end marker: the first block that is not empty; undefined when the file ends without one. */
  async #afterZeros(from: number): Promise<number | undefined> {
    for (let at = from; at < this.#total; at += BLOCK) {
      const block = await this.#bytes(at, BLOCK);
      if (!ZEROS.subarray(0, block.length).equals(block)) return at;
    }
    return undefined;
  }

  /** Adds the entries from a header on. Throws TarFault. */
  async #walk(from: number, entries: TarEntry[]): Promise<void> {
    const file = this.#file,
      total = this.#total;
    let position = from,
      pax: Map<string, string> | undefined;
    let longName: string | undefined, longLink: string | undefined, marker: number | undefined;
    for (;;) {
      const block = await this.#bytes(position, BLOCK),
        pending = pax !== undefined || longName !== undefined;
      if (block.length === 0 && position > 0 && !pending) return;
      if (block.length === BLOCK && ZEROS.equals(block)) {
        // Archives that were joined have one behind the other's end marker.
        const next = await this.#afterZeros(position + BLOCK);
        if (next === undefined) return;
        [marker, position] = [position, next];
        continue;
      }
      if (marker !== undefined && !(block.length === BLOCK && isHeader(block))) {
        throw new TarFault(
          `${file}: behind the end marker at byte ${marker} follow ${total - position} bytes, ` +
            `from byte ${position} on, that are no tar archive`,
          position,
        );
      }
      if (block.length < BLOCK) {
        throw new TarFault(
          `${file}: truncated at byte ${total}: expected a tar header or the end marker at byte ${position}`,
          position,
          true,
        );
      }
      const header = parseHeader(block, file, position),
        { type } = header;
      let { size } = header,
        content = position + BLOCK;
      marker = undefined;
      const isExtension = /[xXgLK]/.test(type),
        isLink = type === '1' || type === '2';
      // The types 1-6 (links, devices, folders) have no content whatever their size field says.
      if (/[1-6]/.test(type)) size = 0;
      // A size that does not fit into the header is 0 there, as Python's tarfile writes it.
      else if (!isExtension && pax?.has('size')) {
        const digits = pax.get('size') as string;
        size = /^[0-9]{1,16}$/.test(digits) ? Number(digits) : NaN;
      }
      if (type === 'S') {
        // The rest of a sparse file's map, block by block, is not in the size.
        for (let more = header.extended; more && content + BLOCK <= total; content += BLOCK)
          more = (await this.#bytes(content, BLOCK))[504] !== 0;
      }
      if (!Number.isSafeInteger(size) || content + size > total) {
        throw new TarFault(
          `${file}: truncated at byte ${total}: the entry at byte ${position} needs ${size} bytes ` +
            `from byte ${content}`,
          position,
          true,
        );
      }
      if (isExtension) {
        if (size > MAX_EXTENSION) {
          throw new TarFault(
            `${file}: the extended tar header at byte ${position} has ${size} bytes, more than ` +
              `${MAX_EXTENSION}; the archive is damaged`,
            position,
          );
        }
        const data = await this.#bytes(content, size);
        if (data.length < size)
          throw new TarFault(`${file}: truncated at byte ${content + data.length}`, position, true);
        if (type === 'x' || type === 'X') pax = parsePax(data, file, content);
        else if (type === 'L') longName = text(data, 0, size);
        else if (type === 'K') longLink = text(data, 0, size);
      } else {
        const name = pax?.get('GNU.sparse.name') ?? pax?.get('path') ?? longName ?? header.name;
        const sparse =
          type === 'S' || [...(pax?.keys() ?? [])].some((key) => key.startsWith('GNU.sparse.'));
        const fault = sparse
          ? 'a sparse member of a tar'
          : type === 'M'
            ? 'a member that begins in another tar'
            : undefined;
        // Unknown types are regular files, as POSIX asks; 7 is a contiguous file. Old archives mark a folder by a trailing
        // slash only. V, D, A, E and I are labels, lists and notes of backup tools.
        if ((isLink || !/[3-6VDAEI]/.test(type)) && !name.endsWith('/')) {
          const entry: TarEntry = { name, offset: content, size, ...(fault ? { fault } : {}) };
          if (isLink)
            this.#links.set(entry, {
              entry,
              target: pax?.get('linkpath') ?? longLink ?? header.link,
              hard: type === '1',
            });
          entries.push(entry);
        }
        pax = undefined;
        longName = longLink = undefined;
      }
      position = content + Math.ceil(size / BLOCK) * BLOCK;
    }
  }

  /** Gives links the content of what they link to: a hard link of what came before it, a symbolic one of the last of its name. */
  #follow(entries: readonly TarEntry[]): void {
    if (this.#links.size === 0) return;
    const byName = new Map<string, TarEntry>();
    const take = (entry: TarEntry, from: TarEntry | undefined): void => {
      if (from) [entry.offset, entry.size] = [from.offset, from.size];
      if (!from || from.fault)
        entry.fault = from?.fault ?? 'a link to a file that is not in the tar';
    };
    for (const entry of entries) {
      const link = this.#links.get(entry);
      if (link?.hard) take(entry, byName.get(posix.normalize(link.target)));
      byName.set(posix.normalize(entry.name), entry);
    }
    for (const { entry, hard } of this.#links.values()) {
      if (hard) continue;
      let found: TarEntry | undefined = entry;
      // Links may lead to links, in a circle too.
      for (let hops = 0; hops <= 40 && found && this.#links.get(found)?.hard === false; hops++)
        found = byName.get(posix.join(posix.dirname(found.name), this.#links.get(found)!.target));
      take(entry, found && this.#links.get(found)?.hard !== false ? found : undefined);
    }
  }
}
