/** Helpers of the data tests: temporary folders, small data sets on disk. */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import sharp from 'sharp';
import { TarWriter } from '../../lib/io/tar_writer.js';

/** A fresh folder, removed when `run` is done. */
export async function withFolder<T>(run: (folder: string) => Promise<T> | T): Promise<T> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'siglip2-data-'));
  try {
    return await run(folder);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** A PNG of one colour with a mark, different for every `i`. */
export function picture(i: number, size = 24): Promise<Buffer> {
  const data = Buffer.alloc(size * size * 4);
  for (let p = 0; p < size * size; p++) {
    data[p * 4] = (i * 37) % 256;
    data[p * 4 + 1] = (i * 91 + p) % 256;
    data[p * 4 + 2] = (p * 3) % 256;
    data[p * 4 + 3] = p % size < size / 2 ? 255 : (i * 13 + p) % 256;
  }
  return sharp(data, { raw: { width: size, height: size, channels: 4 } })
    .png()
    .toBuffer();
}

/**
 * A WebDataset tar of `n` samples in `classes` classes; `damage` may change a sample's members
 * (undefined: left out).
 */
export async function makeTar(
  file: string,
  n: number,
  classes = n,
  damage: (i: number, members: { png?: Buffer; json?: string }) => void = () => undefined,
): Promise<void> {
  const writer = new TarWriter(file);
  for (let i = 0; i < n; i++) {
    const members: { png?: Buffer; json?: string } = {
      png: await picture(i),
      json: JSON.stringify({
        class: i % classes,
        captions: { en: [`picture ${i}`, `word ${i}, thing`], de: [`Bild ${i}`], ja: [`絵 ${i}`] },
      }),
    };
    damage(i, members);
    const key = `sample-${String(i).padStart(4, '0')}`;
    if (members.png !== undefined) writer.add(`${key}.png`, members.png);
    if (members.json !== undefined) writer.add(`${key}.json`, members.json);
  }
  writer.finish();
}

/** The error a promise or function ends in. */
export async function errorOf(run: () => unknown): Promise<Error & { code?: string }> {
  try {
    await run();
  } catch (error) {
    return error as Error & { code?: string };
  }
  throw new Error('expected an error');
}
