import { execFileSync } from 'node:child_process';
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { CheckpointError, IoError } from '../../lib/errors.js';
import {
  cleanFolder,
  makeFolder,
  prepareToWrite,
  readFileLimited,
  readTextLimited,
  recoverFolder,
  writeFileAtomic,
  writeFolderAtomic,
} from '../../lib/fs/files.js';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'siglip2-files-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function* chunks(...parts: string[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) yield Buffer.from(part);
}

test('writes text, bytes, iterables and async iterables, and makes missing folders', async () => {
  const path = join(folder, 'a/b/file');
  const empty = new Uint8Array(0);
  for (const [given, expected] of [
    ['héllo', 'héllo'],
    [Buffer.from('bytes'), 'bytes'],
    [[Buffer.from('x'), empty, Buffer.from('y')], 'xy'],
    [chunks('1', '22', '333'), '122333'],
    ['', ''],
    [empty, ''],
  ] as const) {
    await writeFileAtomic(path, given);
    expect(await readFile(path, 'utf8')).toBe(expected);
    expect(await readdir(join(folder, 'a/b'))).toEqual(['file']);
  }
});

test('a failing producer leaves the old file and no other', async () => {
  const path = join(folder, 'file');
  await writeFileAtomic(path, 'old');
  async function* broken(error: Error): AsyncGenerator<Uint8Array> {
    yield Buffer.from('new');
    throw error;
  }
  await expect(writeFileAtomic(path, broken(new Error('boom')))).rejects.toThrow(
    /cannot write .*file: boom/,
  );
  await expect(writeFileAtomic(path, broken(new CheckpointError('mine')))).rejects.toThrow(
    CheckpointError,
  );
  expect(await readFile(path, 'utf8')).toBe('old');
  expect(await readdir(folder)).toEqual(['file']);
});

test('a path through a file, a folder in the way and a name too long are IoErrors', async () => {
  await writeFile(join(folder, 'file'), '');
  await mkdir(join(folder, 'full'));
  await writeFile(join(folder, 'full/x'), '');
  const fail = async (path: string): Promise<unknown> =>
    writeFileAtomic(path, 'x').catch((e: unknown) => e);
  for (const [name, code] of [
    ['file/below', /a part of the path is a file.*EEXIST/],
    ['file/below/it', /a part of the path is a file.*ENOTDIR/],
    ['full', /EISDIR/],
    ['n'.repeat(300), /the name is too long.*ENAMETOOLONG/],
  ] as const) {
    const error = await fail(join(folder, name));
    expect(error).toBeInstanceOf(IoError);
    expect(String(error)).toMatch(code);
  }
  expect((await readdir(folder)).sort()).toEqual(['file', 'full']);
});

const root = process.getuid?.() === 0;

/** Runs `fn` with a file system of 1 MiB that is its own; says that it did not where this user may not mount one. */
async function onSmallDisk(name: string, fn: (disk: string) => Promise<void>): Promise<void> {
  const disk = join(folder, name);
  await mkdir(disk);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], { stdio: 'ignore' });
  } catch {
    console.warn('skipped: mounting a tmpfs needs root');
    return;
  }
  try {
    await fn(disk);
  } finally {
    execFileSync('umount', [disk]);
  }
}

test('a full disk: IoError, the old file and folder are untouched', () =>
  onSmallDisk('disk', async (disk) => {
    await writeFileAtomic(join(disk, 'file'), 'old');
    const big = (): Uint8Array[] => Array.from({ length: 40 }, () => new Uint8Array(65536));
    await expect(writeFileAtomic(join(disk, 'file'), big())).rejects.toThrow(
      /disk\/file: the disk is full.*ENOSPC/,
    );
    await writeFolderAtomic(join(disk, 'set'), (draft) => writeFile(join(draft, 'x'), 'old'));
    await expect(
      writeFolderAtomic(join(disk, 'set'), (draft) => writeFileAtomic(join(draft, 'x'), big())),
    ).rejects.toThrow(IoError);
    expect(await readFile(join(disk, 'file'), 'utf8')).toBe('old');
    expect(await readFile(join(disk, 'set/x'), 'utf8')).toBe('old');
    expect((await readdir(disk)).sort()).toEqual(['file', 'set']);
  }));

test('a read-only file system says so, also where a folder is to be made', () =>
  onSmallDisk('sealed', async (disk) => {
    execFileSync('mount', ['-o', 'remount,ro', disk]);
    const works: (() => Promise<void>)[] = [
      () => writeFileAtomic(join(disk, 'a/b/file'), 'x'),
      () => writeFolderAtomic(join(disk, 'a/set'), () => Promise.resolve()),
      () => makeFolder(join(disk, 'a/b')),
      () => prepareToWrite(join(disk, 'a/b/file')),
      () => prepareToWrite(join(disk, 'file')),
    ];
    for (const work of works)
      await expect(work()).rejects.toThrow(/sealed.*: the file system is read-only.*EROFS/);
  }));

test('preparing to write finds what is in the way', async () => {
  await prepareToWrite(join(folder, 'new/folder/file'));
  expect((await stat(join(folder, 'new/folder'))).isDirectory()).toBe(true);
  await expect(prepareToWrite(join(folder, 'new/folder'))).rejects.toThrow(
    /it is a folder and not a file/,
  );
  await writeFile(join(folder, 'plain'), '');
  await expect(prepareToWrite(join(folder, 'plain/file'))).rejects.toThrow(
    /a part of the path is a file/,
  );
});

// Root may write everywhere, so there is nothing to see as root.
(root ? test.skip : test)('a folder without write permission is an IoError', async () => {
  await chmod(folder, 0o500);
  await expect(writeFileAtomic(join(folder, 'file'), 'x')).rejects.toThrow(
    /permission is denied.*EACCES/,
  );
  await chmod(folder, 0o700);
});

test('a folder is replaced whole, or not at all', async () => {
  const path = join(folder, 'set');
  await writeFolderAtomic(path, async (draft) => {
    await mkdir(join(draft, 'sub'));
    await writeFile(join(draft, 'sub/one'), '1');
  });
  expect(await readFile(join(path, 'sub/one'), 'utf8')).toBe('1');
  await expect(
    writeFolderAtomic(path, async (draft) => {
      await writeFile(join(draft, 'half'), '');
      throw new Error('boom');
    }),
  ).rejects.toThrow(IoError);
  expect(await readdir(path)).toEqual(['sub']);
  await writeFolderAtomic(path, async (draft) => {
    // The previous folder stays readable until the new one is complete.
    expect(await readFile(join(path, 'sub/one'), 'utf8')).toBe('1');
    await writeFile(join(draft, 'two'), '2');
  });
  expect(await readdir(path)).toEqual(['two']);
  expect(await readdir(folder)).toEqual(['set']);
});

test('recoverFolder undoes or finishes a swap that a crash interrupted', async () => {
  const path = join(folder, 'set');
  const old = join(folder, '.set.previous');
  await writeFolderAtomic(path, (draft) => writeFile(join(draft, 'x'), 'first'));
  await rename(path, old);
  await recoverFolder(path);
  expect(await readFile(join(path, 'x'), 'utf8')).toBe('first');
  await mkdir(old);
  await recoverFolder(path);
  expect(await readdir(folder)).toEqual(['set']);
  await recoverFolder(path);
  await recoverFolder(join(folder, 'never'));
  expect(await readdir(folder)).toEqual(['set']);
});

test('cleanFolder removes drafts of killed processes and nothing else', async () => {
  for (const name of ['.a.tmp-1-0', '.b.tmp-1-0', '.swapped.previous', 'kept', '.hidden'])
    await mkdir(join(folder, name, 'inner'), { recursive: true });
  await writeFile(join(folder, '.c.json.tmp-99-12'), '');
  await cleanFolder(folder);
  expect((await readdir(folder)).sort()).toEqual(['.hidden', 'kept', 'swapped']);
  await cleanFolder(join(folder, 'never'));
});

test('reading is limited and typed', async () => {
  const path = join(folder, 'file');
  await writeFile(path, Buffer.from([0x68, 0x69]));
  expect(await readTextLimited(path)).toBe('hi');
  expect(await readFileLimited(path, 2)).toEqual(Buffer.from('hi'));
  await expect(readFileLimited(path, 1)).rejects.toThrow(
    /file: it has 2 bytes but at most 1 are expected/,
  );
  await expect(readFileLimited(folder)).rejects.toThrow(IoError);
  await expect(readFileLimited(join(folder, 'no'))).rejects.toThrow(
    /no: it does not exist; check the path \(ENOENT\)/,
  );
  await writeFile(path, Buffer.from([0xff, 0xfe]));
  await expect(readTextLimited(path)).rejects.toThrow(/is not UTF-8 text/);
});
