/**
 * What a frozen reference model says about a collection, embedded once: the image of every sample without random
 * transforms, and every caption that training can score with. Kept in one safetensors file and, in use, in memory: 4·E
 * bytes for every image and every caption.
 */
import { existsSync } from 'node:fs';
import type { LoadedModel } from '../../checkpoints/load.js';
import { tokenizerOf } from '../../checkpoints/tokenizer.js';
import type { Batch } from '../../data/batch.js';
import { describeSample, readCaptions, type Sample } from '../../data/sample.js';
import type { SampleSource } from '../../data/sample_source.js';
import { CheckpointError, DataError } from '../../errors.js';
import { decodeImage, releaseDecoded } from '../../image/image.js';
import { decodingLanes } from '../../image/lanes.js';
import { embedImages, embedTexts } from '../../inference/embed.js';
import { FileReader } from '../../io/reader.js';
import { openSafetensors, writeSafetensors } from '../../io/safetensors.js';
import { resizeImageAsync } from '../../native.js';
import type { TrainConfig } from '../config.js';
import { captionsInUse } from '../vocabulary.js';

type CaptionChoice = TrainConfig['data']['captions'];

/** Images, and texts, that are made ready at a time. */
const BATCH = 64,
  TEXTS = 4096;
/** Rows that are embedded anew to see whether a file is of this reference, and how far their values may be apart. */
const PROBES = 8,
  TOLERANCE = 0.02;
const REMEDY = 'remove it, or name another file';

export class ReferenceCache {
  readonly #rowOf: Map<string, number>;

  private constructor(
    readonly width: number,
    readonly images: Float32Array,
    texts: readonly string[],
    readonly captions: Float32Array,
  ) {
    this.#rowOf = new Map(texts.map((text, row) => [text, row]));
  }

  /**
   * Reads the cache from its file, or makes it and writes the file.
   * @param choice how training picks captions; the first one of every image is what is scored
   * @throws CheckpointError when the file is damaged or was made for other samples or with another reference; IoError
   */
  static async open(
    file: string,
    source: SampleSource,
    reference: LoadedModel,
    choice: CaptionChoice,
    note: (message: string) => void = () => undefined,
  ): Promise<ReferenceCache> {
    const E = reference.model.config.embed,
      texts = textsInUse(source, choice),
      { samples } = source;
    const content = JSON.stringify({ keys: samples.map(({ key }) => key), texts });
    if (existsSync(file)) {
      const { images, captions } = await read(file, content);
      const probes = samples
        .filter(({ index }) => !Number.isNaN(images[index * E]))
        .slice(0, PROBES);
      const again = [
        ...(await embedSamples(reference, probes)),
        ...(await embedCaptions(reference, texts.slice(0, PROBES))),
      ];
      const rows = probes.map(({ index }) => images.subarray(index * E, (index + 1) * E));
      const kept = [...rows, captions.subarray(0, PROBES * E)].flatMap((row) => [...row]);
      if (
        images.length !== samples.length * E ||
        captions.length !== texts.length * E ||
        !kept.every((value, i) => Math.abs(value - again[i]!) < TOLERANCE)
      )
        throw new CheckpointError(
          `${file}: was made with another reference or for other images; ${REMEDY}`,
        );
      return new ReferenceCache(E, images, texts, captions);
    }
    note(
      `reference: embedding ${samples.length} images and ${texts.length} captions once, into ${file}`,
    );
    const images = new Float32Array(samples.length * E),
      captions = new Float32Array(texts.length * E);
    for (let i = 0; i < samples.length; i += BATCH)
      images.set(await embedSamples(reference, samples.slice(i, i + BATCH)), i * E);
    for (let i = 0; i < texts.length; i += TEXTS)
      captions.set(await embedCaptions(reference, texts.slice(i, i + TEXTS)), i * E);
    const bytes = Buffer.from(content);
    await writeSafetensors(file, [
      { name: 'images', dtype: 'F32', shape: [samples.length, E], data: images },
      { name: 'captions', dtype: 'F32', shape: [texts.length, E], data: captions },
      { name: 'content', dtype: 'U8', shape: [bytes.length], data: bytes },
    ]);
    return new ReferenceCache(E, images, texts, captions);
  }

  /**
   * Unit rows of a batch's images and of their first captions.
   * @throws DataError for a caption that is not in the collection
   */
  rows(batch: Batch): { x: Float32Array; y: Float32Array } {
    const E = this.width,
      x = new Float32Array(batch.size * E),
      y = new Float32Array(batch.size * E);
    batch.samples.forEach((sample, i) => {
      const row = this.#rowOf.get(batch.texts[i]!);
      if (row === undefined)
        throw new DataError(
          `the reference's cache lacks the caption "${batch.texts[i]}" of ${batch.keys[i]}; make it anew`,
        );
      x.set(this.images.subarray(sample * E, (sample + 1) * E), i * E);
      y.set(this.captions.subarray(row * E, (row + 1) * E), i * E);
    });
    return { x, y };
  }
}

async function read(
  file: string,
  content: string,
): Promise<{ images: Float32Array; captions: Float32Array }> {
  const reader = await openSafetensors(file);
  try {
    if (!['images', 'captions', 'content'].every((name) => reader.tensors.has(name)))
      throw new CheckpointError(`${file}: is no cache of reference embeddings; ${REMEDY}`);
    if (Buffer.from(await reader.read('content')).toString() !== content)
      throw new CheckpointError(
        `${file}: was made for other samples or captions than this collection's; ${REMEDY}`,
      );
    return {
      images: await reader.readFloat32('images'),
      captions: await reader.readFloat32('captions'),
    };
  } finally {
    await reader.close();
  }
}

/** The captions that can be the first of a sample, each once. */
function textsInUse(source: SampleSource, choice: CaptionChoice): string[] {
  const texts = new Set<string>(),
    [first] = choice.pick,
    reader = new FileReader();
  try {
    for (const sample of source.samples) {
      const { captions } = readCaptions(reader, sample);
      const own = captions.filter(({ lang }) => lang === first);
      for (const text of captionsInUse(own.length > 0 ? own : captions, choice)) texts.add(text);
    }
  } finally {
    reader.close();
  }
  // In an order of their own, so that the file fits whoever's captions they are.
  return [...texts].sort();
}

/** (n, E); not a number where the image cannot be used, which training then does not use either. */
async function embedSamples(
  { model }: LoadedModel,
  samples: readonly Sample[],
): Promise<Float32Array> {
  const S = model.config.vision.imageSize,
    E = model.config.embed,
    pixels = new Uint8Array(samples.length * S * S * 3);
  const reader = new FileReader(),
    broken: number[] = [];
  try {
    await Promise.all(
      samples.map((sample, i) =>
        decodingLanes.run(async () => {
          try {
            const image = await decodeImage(reader.read(sample.image), describeSample(sample));
            const { data, height, width } = image;
            pixels.set(
              await resizeImageAsync(data, height, width, 3, S, S, 'pil-bilinear'),
              i * S * S * 3,
            );
            releaseDecoded(image);
          } catch (error) {
            if (!(error instanceof DataError)) throw error;
            broken.push(i);
          }
        }),
      ),
    );
  } finally {
    reader.close();
  }
  const rows = await embedImages(model, pixels, samples.length);
  for (const i of broken) rows.fill(NaN, i * E, (i + 1) * E);
  return rows;
}

async function embedCaptions(
  reference: LoadedModel,
  texts: readonly string[],
): Promise<Float32Array> {
  const tokenizer = await tokenizerOf(reference);
  return embedTexts(reference.model, await tokenizer.encodeBatch(texts), texts.length);
}
