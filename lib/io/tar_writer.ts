/** Writing tar archives: POSIX ustar, with a pax header for names that it cannot hold. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileError, settleDraft, temporary, trackDraft } from '../fs/files.js';
import { BLOCK } from './tar_header.js';

/**
 * Flushes a folder's entry table, so that a rename survives a power cut; ignored where folders
 * cannot be synced.
 */
function syncFolder(folder: string): void {
  try {
    const fd = fs.openSync(folder, 'r');
    try {
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  } catch {
    // Some file systems refuse fsync on a folder; the data itself is already on disk.
  }
}

/** A header block; name and size must already fit their fields. */
function makeHeader(name: Buffer, prefix: Buffer, size: number, type: string): Buffer {
  const block = Buffer.alloc(BLOCK);
  name.copy(block, 0);
  block.write('0000644\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  block.write(`${size.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  // Time zero: the same content always gives the same bytes.
  block.write('00000000000\0', 136, 'latin1');
  block.write('        ', 148, 'latin1');
  block.write(type, 156, 'latin1');
  block.write('ustar\0' + '00', 257, 'latin1');
  prefix.copy(block, 345);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** One pax record; its length counts its own digits, so it is found by trying. */
function paxRecord(key: string, value: string): Buffer {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + 1;
  while (String(length).length + rest !== length) length = String(length).length + rest;
  return Buffer.from(`${length} ${key}=${value}\n`);
}

/**
 * Splits a name into the ustar fields (100 bytes, prefix 155); undefined when only a pax header can
 * hold it.
 */
function splitName(name: string): [Buffer, Buffer] | undefined {
  const bytes = Buffer.from(name);
  const ascii = /^[\x20-\x7e]*$/.test(name);
  if (ascii && bytes.length <= 100) return [bytes, Buffer.alloc(0)];
  if (!ascii || bytes.length > 256) return undefined;
  for (let slash = name.indexOf('/'); slash >= 0; slash = name.indexOf('/', slash + 1)) {
    if (slash > 0 && slash <= 155 && bytes.length - slash - 1 <= 100 && slash < bytes.length - 1) {
      return [bytes.subarray(slash + 1), bytes.subarray(0, slash)];
    }
  }
  return undefined;
}

/**
 * Writes a tar archive whole or not at all: everything goes to a temporary file in the same folder,
 * which `finish` flushes and renames. The bytes depend on names and contents only (no times, no
 * owners).
 */
export class TarWriter {
  readonly #temporary: string;
  #fd: number | undefined;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #written = 0;

  readonly #file: string;

  /** @param file path of the archive to make; IoError when its folder cannot be written */
  constructor(file: string) {
    this.#file = file;
    this.#temporary = temporary(file);
    try {
      this.#fd = fs.openSync(this.#temporary, 'w');
      trackDraft(this.#temporary);
    } catch (cause) {
      throw fileError(cause, 'write', file);
    }
  }

  /**
   * Appends one file. Throws IoError (and removes the temporary file) when it cannot be written.
   */
  add(name: string, content: Uint8Array | string): void {
    const data = typeof content === 'string' ? Buffer.from(content) : content;
    let parts = splitName(name);
    if (parts === undefined) {
      const record = paxRecord('path', name);
      this.#append(makeHeader(Buffer.from('PaxHeader'), Buffer.alloc(0), record.length, 'x'));
      this.#append(record);
      this.#pad(record.length);
      // Readers without pax support still see something like the name.
      const plain = name.replace(/[^\x20-\x7e]/g, '_').slice(-100);
      parts = [Buffer.from(plain), Buffer.alloc(0)];
    }
    this.#append(makeHeader(parts[0], parts[1], data.length, '0'));
    this.#append(data);
    this.#pad(data.length);
  }

  /**
   * Writes the end marker, flushes to disk and puts the archive in place. @returns its size in
   * bytes
   */
  finish(): number {
    this.#append(Buffer.alloc(2 * BLOCK));
    this.#flush();
    try {
      fs.fsyncSync(this.#fd as number);
      fs.closeSync(this.#fd as number);
      this.#fd = undefined;
      fs.renameSync(this.#temporary, this.#file);
      settleDraft(this.#temporary);
      syncFolder(path.dirname(this.#file));
    } catch (cause) {
      this.abort();
      throw fileError(cause, 'write', this.#file);
    }
    return this.#written;
  }

  /** Gives up: removes the temporary file. Harmless after `finish`. */
  abort(): void {
    if (this.#fd !== undefined) {
      try {
        fs.closeSync(this.#fd);
      } catch {
        // The descriptor may be in an error state on a full disk; the file is removed below all the
        // same.
      }
      this.#fd = undefined;
    }
    fs.rmSync(this.#temporary, { force: true });
    settleDraft(this.#temporary);
  }

  #pad(size: number): void {
    const rest = size % BLOCK;
    if (rest > 0) this.#append(Buffer.alloc(BLOCK - rest));
  }

  #append(data: Uint8Array): void {
    this.#pending.push(Buffer.from(data)); // a copy: the caller may reuse its buffer
    this.#pendingBytes += data.length;
    if (this.#pendingBytes >= 1 << 20) this.#flush();
  }

  #flush(): void {
    if (this.#fd === undefined) {
      throw fileError(new Error('the archive is already finished'), 'write', this.#file);
    }
    const data = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    try {
      fs.writeFileSync(this.#fd, data);
    } catch (cause) {
      this.abort();
      throw fileError(cause, 'write', this.#file);
    }
    this.#written += data.length;
  }
}
