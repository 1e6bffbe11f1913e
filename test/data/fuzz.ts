/**
 * Images with seeded damage, through the decoding and resizing that the encoder does. The outcome must be pixels or an
 * error of this package. Used by jest with hundreds of cases and by `npm run bench -- fuzz` with more.
 */
import { crc32 } from 'node:zlib';
import sharp, { type Sharp } from 'sharp';
import { decodeInput } from '../../lib/image/input.js';
import { processorOf, resizeTo } from '../../lib/image/processor.js';
import { emptyResult, type FuzzResult, fuzzCase, mutate, seeded } from '../io/fuzz.js';

/** Every format and the kinds within it that take ways of their own through the decoders. */
async function samples(): Promise<Map<string, Buffer>> {
  const width = 61,
    height = 47,
    random = seeded(11);
  const noise = (channels: 1 | 3 | 4, pages = 1): Sharp =>
    sharp(
      Buffer.from(
        Array.from(
          { length: width * height * pages * channels },
          (_, i) => ((i >> 4) & 127) + 128 * random(),
        ),
      ),
      {
        raw: {
          width,
          height: height * pages,
          channels,
          ...(pages > 1 ? { pageHeight: height } : {}),
        },
      },
    );
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 61 47" width="61" height="47"><defs><linearGradient id="a">
    <stop offset="0" stop-color="#123"/><stop offset="1" stop-color="red"/></linearGradient></defs><rect width="50%" height="30"
    fill="url(#a)"/><path d="M3 4 C 9 9 40 2 55 44 Z" fill="none" stroke="blue" stroke-width="2.5"/><text x="4" y="20">text</text></svg>`;
  return new Map([
    ['a.jpg', await noise(3).jpeg().toBuffer()],
    [
      'progressive.jpg',
      await noise(3).jpeg({ progressive: true, chromaSubsampling: '4:4:4' }).toBuffer(),
    ],
    ['turned.jpg', await noise(3).withMetadata({ orientation: 6 }).jpeg().toBuffer()],
    ['ink.jpg', await noise(4).toColourspace('cmyk').jpeg().toBuffer()],
    ['a.png', await noise(4).png().toBuffer()],
    ['palette.png', await noise(3).png({ palette: true }).toBuffer()],
    ['deep.png', await noise(3).toColourspace('rgb16').png({ progressive: true }).toBuffer()],
    ['a.webp', await noise(3).webp().toBuffer()],
    ['alpha.webp', await noise(4).webp({ lossless: true }).toBuffer()],
    ['animated.webp', await noise(3, 3).webp().toBuffer()],
    ['a.gif', await noise(3).gif().toBuffer()],
    ['animated.gif', await noise(3, 3).gif().toBuffer()],
    ['a.avif', await noise(3).avif({ effort: 0 }).toBuffer()],
    ['alpha.avif', await noise(4).avif({ effort: 0, lossless: true }).toBuffer()],
    ['a.tiff', await noise(3).tiff({ compression: 'lzw' }).toBuffer()],
    ['a.svg', Buffer.from(svg)],
  ]);
}

/** Makes the check sums of a PNG's chunks right again, so that the damage gets past them. */
function repairPng(bytes: Buffer): void {
  for (let at = 8; at + 12 <= bytes.length; ) {
    const end = at + 8 + bytes.readUInt32BE(at);
    if (end + 4 > bytes.length) return;
    bytes.writeUInt32BE(crc32(bytes.subarray(at + 4, end)), end);
    at = end + 4;
  }
}

/** Decodes and resizes `count` damaged images; case i depends on (seed, i) alone. */
export async function fuzzImages(
  count: number,
  seed: number,
  onProgress: (done: number) => void = () => undefined,
): Promise<FuzzResult> {
  const all = [...(await samples())],
    result = emptyResult(),
    processor = processorOf(2);
  const open = async (name: string, bytes: Uint8Array) =>
    resizeTo(await decodeInput({ bytes, name }), 64, 64, processor);
  for (const [name, bytes] of all) await open(name, bytes);
  const before = process.memoryUsage().rss;
  for (let i = 0; i < count; i++) {
    const random = seeded(seed * 1_000_003 + i),
      [name, bytes] = all[i % all.length]!;
    const damaged = mutate(bytes, random);
    if (name.endsWith('.png') && random() < 0.7) repairPng(damaged);
    await fuzzCase(result, `case ${i} (seed ${seed}) ${name}`, () => open(name, damaged));
    onProgress(i + 1);
  }
  result.growth = process.memoryUsage().rss - before;
  return result;
}
