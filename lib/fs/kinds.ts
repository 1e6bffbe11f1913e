/** What a file is by its first bytes, for the sentence that says why it is not read as what it was named as. */
import * as fs from 'node:fs';
import { fileError } from './files.js';

/** A kind of file: what to call it, and what to do with it. */
export interface Kind {
  name: string;
  /** `tar`, `parquet` and `jpeg` for example; `compressed` for all of those. */
  id: string;
  /** Ends the sentence `FILE: is …;`. */
  remedy: string;
}

/** First bytes that are looked at. */
export const HEAD_BYTES = 512;

const unpack =
  (command: string) =>
  (file: string): string => {
    const suffix = { gunzip: /\.(gz|tgz)$/i, unxz: /\.(xz|txz)$/i, bunzip2: /\.(bz2|tbz2?)$/i }[
      command
    ];
    return !suffix || suffix.test(file)
      ? `${command} ${file}`
      : `${command} < ${file} > a new file`;
  };
const compressed = (format: string, command: (file: string) => string) => ({
  name: 'compressed',
  id: 'compressed',
  format,
  command,
});

/** Magic bytes as latin-1 text, where they stand, and the kind. */
const MAGIC: [
  magic: string,
  at: number,
  kind: {
    name: string;
    id?: string;
    remedy?: string;
    format?: string;
    command?: (file: string) => string;
  },
][] = [
  ['\x1f\x8b', 0, compressed('gzip', unpack('gunzip'))],
  ['\x28\xb5\x2f\xfd', 0, compressed('zstd', unpack('zstd -d'))],
  ['\xfd7zXZ', 0, compressed('xz', unpack('unxz'))],
  ['BZh', 0, compressed('bzip2', unpack('bunzip2'))],
  ['\x04\x22\x4d\x18', 0, compressed('lz4', unpack('lz4 -d'))],
  ['LZIP', 0, compressed('lzip', unpack('lzip -d'))],
  ['ustar', 257, { name: 'a tar archive', id: 'tar' }],
  ['PAR1', 0, { name: 'a Parquet table', id: 'parquet' }],
  [
    'PARE',
    0,
    {
      name: 'an encrypted Parquet table',
      id: 'encrypted',
      remedy: 'write it again without encryption',
    },
  ],
  ['PK\x03\x04', 0, { name: 'a ZIP archive', id: 'zip' }],
  ['PK\x05\x06', 0, { name: 'an empty ZIP archive', id: 'zip' }],
  ['PK\x07\x08', 0, { name: 'a ZIP archive in parts', id: 'zip' }],
  ['070701', 0, { name: 'a cpio archive', id: 'cpio' }],
  ['070702', 0, { name: 'a cpio archive', id: 'cpio' }],
  ['070707', 0, { name: 'a cpio archive', id: 'cpio' }],
  ['\xc7\x71', 0, { name: 'a cpio archive', id: 'cpio' }],
  ['\x71\xc7', 0, { name: 'a cpio archive', id: 'cpio' }],
  ['7z\xbc\xaf\x27\x1c', 0, { name: 'a 7-Zip archive', id: '7z' }],
  ['Rar!\x1a\x07', 0, { name: 'a RAR archive', id: 'rar' }],
  ['!<arch>\n', 0, { name: 'an ar archive', id: 'ar' }],
  ['ARROW1', 0, { name: 'an Arrow file', id: 'arrow', remedy: 'write the table as Parquet' }],
  [
    '\xff\xff\xff\xff',
    0,
    { name: 'an Arrow stream', id: 'arrow', remedy: 'write the table as Parquet' },
  ],
  ['\x89HDF', 0, { name: 'an HDF5 file', id: 'hdf5', remedy: 'write the samples as tars' }],
  ['\x93NUMPY', 0, { name: 'a NumPy array', id: 'npy', remedy: 'write the samples as tars' }],
  [
    'SQLite format 3',
    0,
    { name: 'an SQLite database', id: 'sqlite', remedy: 'write the table as Parquet' },
  ],
  [
    'version https://git-lfs',
    0,
    {
      name: 'a Git LFS pointer',
      id: 'lfs',
      remedy: 'fetch what it stands for with `git lfs pull`',
    },
  ],
  ['\xff\xd8\xff', 0, { name: 'a JPEG image', id: 'jpg' }],
  ['\x89PNG', 0, { name: 'a PNG image', id: 'png' }],
  ['GIF8', 0, { name: 'a GIF image', id: 'gif' }],
  ['WEBP', 8, { name: 'a WebP image', id: 'webp' }],
  ['ftypavif', 4, { name: 'an AVIF image', id: 'avif' }],
  ['II*\0', 0, { name: 'a TIFF image', id: 'tif' }],
  ['MM\0*', 0, { name: 'a TIFF image', id: 'tif' }],
  ['%PDF', 0, { name: 'a PDF document', id: 'pdf' }],
  [
    '\xff\xfe',
    0,
    { name: 'UTF-16 text', id: 'utf16', command: (file) => `iconv -f UTF-16 -t UTF-8 ${file}` },
  ],
  [
    '\xfe\xff',
    0,
    { name: 'UTF-16 text', id: 'utf16', command: (file) => `iconv -f UTF-16 -t UTF-8 ${file}` },
  ],
];

/** Ids of images, whether or not they can be read. */
export const IMAGE_KINDS: ReadonlySet<string> = new Set([
  'jpg',
  'png',
  'gif',
  'webp',
  'avif',
  'tif',
  'bmp',
]);

/** What to do with the kinds that are archives of another sort. */
const REPACK = 'unpack it and name the folder, or pack the files as a .tar';

/** The kind that the first bytes of a file say; undefined when they say nothing. */
export function kindOf(head: Uint8Array, file: string): Kind | undefined {
  const text = Buffer.from(head.buffer, head.byteOffset, head.length).toString('latin1');
  for (const [magic, at, { name, id = '', remedy, format, command }] of MAGIC) {
    if (!text.startsWith(magic, at)) continue;
    if (command)
      return {
        name,
        id,
        remedy: format
          ? `it has to be unpacked, which \`${command(file)}\` does (${format})`
          : `run \`${command(file)}\``,
      };
    return { name, id, remedy: remedy ?? (/archive/.test(name) && id !== 'tar' ? REPACK : '') };
  }
  const start = text.replace(/^\xef\xbb\xbf/, '').trimStart();
  if (/^<(!doctype|html)/i.test(start))
    return { name: 'a web page', id: 'html', remedy: 'the download failed; fetch the file again' };
  if (/^[[{]/.test(start) && !text.includes('\0')) {
    const wids = /"(__kind__|wids_version|shardlist)"/.test(start);
    return {
      name: wids ? 'an index of shards (JSON)' : 'JSON text',
      id: start.startsWith('[') ? 'json-array' : 'json',
      remedy: wids ? 'name the .tar files that it lists' : '',
    };
  }
  return undefined;
}

/** `is X; do this`, for behind the name of a file. */
export function isKind({ name, remedy }: Kind): string {
  return `is ${name}${remedy === '' ? '' : `; ${remedy}`}`;
}

/** The first bytes of a file. Throws DataError or IoError naming it. */
export function headOf(file: string): Buffer {
  try {
    if (!fs.statSync(file).isFile()) return Buffer.alloc(0);
    const fd = fs.openSync(file, 'r');
    try {
      const head = Buffer.alloc(HEAD_BYTES);
      return head.subarray(0, fs.readSync(fd, head, 0, HEAD_BYTES, 0));
    } finally {
      fs.closeSync(fd);
    }
  } catch (cause) {
    throw fileError(cause, 'read', file);
  }
}
