import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { expect, test } from '@jest/globals';
import * as tarStream from 'tar-stream';
import { indexTar, type TarEntry } from '../../lib/io/tar.js';
import { TarWriter } from '../../lib/io/tar_writer.js';
import { Random } from '../../lib/random.js';
import { errorOf, withFolder } from './support.js';

const names = [
  'a.png',
  'folder/b.json',
  `${'long/'.repeat(30)}c.txt`,
  `${'x'.repeat(180)}.png`,
  `${'deep/'.repeat(80)}d.png`,
  'größe/日本語/эмодзи.jpg',
  `${'語'.repeat(60)}.webp`,
  'e',
  `${'p'.repeat(150)}/${'q'.repeat(99)}`,
];

function content(i: number, size: number): Buffer {
  return Buffer.from(Array.from({ length: size }, (_, k) => (i * 31 + k * 7) & 255));
}

function slice(file: string, entry: TarEntry): Buffer {
  return fs.readFileSync(file).subarray(entry.offset, entry.offset + entry.size);
}

/** What tar-stream finds in an archive. */
async function oracle(bytes: Buffer): Promise<{ name: string; data: Buffer }[]> {
  const found: { name: string; data: Buffer }[] = [];
  const extract = tarStream.extract();
  extract.on('entry', (header, stream, next) => {
    const parts: Buffer[] = [];
    stream.on('data', (part) => parts.push(part as Buffer));
    stream.on('end', () => {
      if (header.type === 'file') found.push({ name: header.name, data: Buffer.concat(parts) });
      next();
    });
  });
  Readable.from([bytes]).pipe(extract as unknown as NodeJS.WritableStream);
  await finished(extract as unknown as NodeJS.ReadableStream);
  return found;
}

async function packed(): Promise<Buffer> {
  const pack = tarStream.pack();
  names.forEach((name, i) => pack.entry({ name }, content(i, i * 300)));
  pack.entry({ name: 'folder/', type: 'directory' });
  pack.entry({ name: 'link', type: 'symlink', linkname: 'a.png' });
  pack.finalize();
  const parts: Buffer[] = [];
  for await (const part of pack) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

test('the reader finds what tar-stream wrote, long and foreign names included', () =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'a.tar');
    fs.writeFileSync(file, await packed());
    const entries = await indexTar(file);
    expect(entries.map((entry) => entry.name)).toEqual([...names, 'link']);
    // A link has the content of what it links to.
    expect(entries.at(-1)).toMatchObject({ offset: entries[0]!.offset, size: entries[0]!.size });
    entries
      .slice(0, -1)
      .forEach((entry, i) => expect(slice(file, entry).equals(content(i, i * 300))).toBe(true));
  }));

test('tar-stream reads what the writer wrote, and writing twice gives the same bytes', () =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'a.tar');
    const write = (): Buffer => {
      const writer = new TarWriter(file);
      names.forEach((name, i) => writer.add(name, content(i, i * 517)));
      const size = writer.finish();
      expect(fs.statSync(file).size).toBe(size);
      return fs.readFileSync(file);
    };
    const first = write();
    expect(write().equals(first)).toBe(true);
    const found = await oracle(first);
    expect(found.map((entry) => entry.name)).toEqual(names);
    found.forEach((entry, i) => expect(entry.data.equals(content(i, i * 517))).toBe(true));
    expect((await indexTar(file)).map((entry) => entry.name)).toEqual(names);
    expect(fs.readdirSync(folder)).toEqual(['a.tar']);
  }));

test('GNU long names are read', () =>
  withFolder(async (folder) => {
    const long = `${'g'.repeat(120)}/${'h'.repeat(120)}.png`;
    fs.mkdirSync(path.join(folder, path.dirname(long)));
    fs.writeFileSync(path.join(folder, long), 'content');
    try {
      execFileSync('tar', ['--format=gnu', '-cf', 'gnu.tar', long], { cwd: folder });
    } catch {
      console.warn('skipped: there is no GNU tar on this machine');
      return;
    }
    const file = path.join(folder, 'gnu.tar');
    const entries = await indexTar(file);
    expect(entries.map((entry) => entry.name)).toEqual([long]);
    expect(slice(file, entries[0] as TarEntry).toString()).toBe('content');
  }));

test('a truncated tar is an error that names file and byte', () =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'cut.tar');
    const whole = await packed();
    for (const length of [0, 1, 511, 700, 5000, whole.length - 1023]) {
      fs.writeFileSync(file, whole.subarray(0, length));
      const error = await errorOf(() => indexTar(file));
      expect(error.code).toBe('ERR_DATA');
      expect(error.message).toContain(file);
      expect(error.message).toMatch(new RegExp(`truncated at byte ${length}`));
    }
  }));

test('a missing tar is an error that names it', async () => {
  const error = await errorOf(() => indexTar('/nowhere/missing.tar'));
  expect(error.code).toBe('ERR_DATA');
  expect(error.message).toContain('/nowhere/missing.tar');
});

test('2,500 mutated archives give an index inside the file or a DataError', () =>
  withFolder(async (folder) => {
    const file = path.join(folder, 'fuzz.tar');
    const whole = await packed();
    const random = new Random(7, 1);
    let damaged = 0;
    for (let i = 0; i < 2500; i++) {
      const bytes = Buffer.from(whole);
      for (let k = random.below(4); k >= 0; k--) {
        // Half the changes hit a header block, where they matter.
        const at =
          random.uniform() < 0.5
            ? random.below(bytes.length)
            : random.below(bytes.length / 512) * 512 + random.below(512);
        bytes[at] = random.below(256);
      }
      if (random.uniform() < 0.3) {
        // Repair the checksum of one header after changing its size or type, so that the checks
        // behind it are reached.
        const at = random.below(8) * 512;
        bytes.write(
          random
            .below(2 ** 31)
            .toString(8)
            .padStart(11, '0'),
          at + 124,
          'latin1',
        );
        if (random.uniform() < 0.5) bytes[at + 156] = 'xgLKS012'.charCodeAt(random.below(8));
        bytes.fill(0x20, at + 148, at + 156);
        let sum = 0;
        for (let b = at; b < at + 512; b++) sum += bytes[b] as number;
        bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1');
      }
      const length = random.uniform() < 0.3 ? random.below(bytes.length) : bytes.length;
      fs.writeFileSync(file, bytes.subarray(0, length));
      try {
        for (const { offset, size } of await indexTar(file)) {
          if (!(offset >= 512 && size >= 0 && offset + size <= length))
            throw new Error(`outside: ${offset} + ${size}`);
        }
      } catch (error) {
        expect((error as { code?: string }).code).toBe('ERR_DATA');
        damaged++;
      }
    }
    expect(damaged).toBeGreaterThan(500);
  }));

test('a full disk is an error that leaves nothing behind', () =>
  withFolder(async (folder) => {
    const mount = path.join(folder, 'small');
    fs.mkdirSync(mount);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', mount], {
        stdio: 'ignore',
      });
    } catch {
      console.warn('skipped: a small tmpfs cannot be mounted here');
      return;
    }
    try {
      const file = path.join(mount, 'big.tar');
      const error = await errorOf(() => {
        const writer = new TarWriter(file);
        for (let i = 0; i < 64; i++) writer.add(`${i}.bin`, Buffer.alloc(65536, i));
        writer.finish();
      });
      expect(error.code).toBe('ERR_IO');
      expect(error.message).toContain(file);
      expect(error.message).toContain('disk is full');
      expect(fs.readdirSync(mount)).toEqual([]);
    } finally {
      execFileSync('umount', [mount]);
    }
  }));

test("a size that stands in the pax header alone is read, as Python's tarfile writes it from 8 GiB on", () =>
  withFolder(async (folder) => {
    const block = (name: string, size: number, type: string): Buffer => {
      const b = Buffer.alloc(512);
      b.write(name, 0);
      b.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
      b.write('        ', 148);
      b.write(type, 156);
      b.write('ustar\x0000', 257);
      b.write(
        `${b
          .reduce((sum, x) => sum + x, 0)
          .toString(8)
          .padStart(6, '0')}\0 `,
        148,
      );
      return b;
    };
    const padded = (data: Buffer): Buffer =>
      Buffer.concat([data, Buffer.alloc((512 - (data.length % 512)) % 512)]);
    const big = content(1, 700),
      small = content(2, 30),
      record = Buffer.from('12 size=700\n');
    const bytes = Buffer.concat([
      block('PaxHeader', record.length, 'x'),
      padded(record),
      block('big.bin', 0, '0'),
      padded(big),
      block('small.bin', small.length, '0'),
      padded(small),
      Buffer.alloc(1024),
    ]);
    const file = path.join(folder, 'big.tar');
    fs.writeFileSync(file, bytes);
    const found = (await indexTar(file)).map((entry) => ({
      name: entry.name,
      data: slice(file, entry),
    }));
    expect(found).toEqual([
      { name: 'big.bin', data: big },
      { name: 'small.bin', data: small },
    ]);
    expect(found).toEqual(await oracle(bytes));
  }));
