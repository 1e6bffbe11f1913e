/** How decoded images enter the vision tower: all at one size, or each on its own grid of patches (NaFlex). */
import type { RawImage } from '../data/image.js';
import { naflexGrid, packNaflex, patchify, type NaflexImage } from '../data/naflex.js';
import { processorOf, resizeTo, type Processor, type ProcessorName } from '../data/processor.js';
import { ConfigError } from '../errors.js';
import { gridSide } from '../model/config.js';
import type { LoadedModel } from '../model/files.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { cast } from '../ops/elementwise.js';
import { tensor, type Tensor } from '../tensor.js';

/** An image that is ready for the model. */
export type Prepared = Uint8Array | Float32Array | NaflexImage;

/** null stands for an image that could not be read: something of its own size is computed in its place. */
export interface VisionInput {
  readonly processor: Processor;
  prepare(image: RawImage): Promise<Prepared>;
  /** Patches down and across. */
  grid(image: Prepared | null): [rows: number, columns: number];
  /** (B, E) unit rows. */
  encode(model: Siglip2Model, batch: (Prepared | null)[]): Tensor;
  /** Dense features f32, one image after the other. */
  tokens(model: Siglip2Model, batch: (Prepared | null)[]): Tensor;
}

/** @throws ConfigError when processor or number of patches do not fit the model */
export function makeVisionInput({ model, processor: { resample } }: LoadedModel, name: ProcessorName | undefined,
  maxPatches: number | undefined): VisionInput {
  const processor = processorOf(resample, name);
  if (!model.config.naflex) {
    if (maxPatches !== undefined)
      throw new ConfigError('maxPatches is for NaFlex models; this one has a fixed resolution');
    return fixed(model, processor);
  }
  if (processor.name !== 'hf') throw new ConfigError(`NaFlex models take the processor hf only, not ${processor.name}`);
  return naflex(model, processor, maxPatches ?? 256);
}

function fixed({ config, params }: Siglip2Model, processor: Processor): VisionInput {
  const S = config.vision.imageSize, one = S * S * 3, side = gridSide(config);
  const pixels = (batch: (Prepared | null)[]): Tensor => {
    const all = processor.name === 'aa-f32' ? new Float32Array(batch.length * one) : new Uint8Array(batch.length * one);
    batch.forEach((image, i) => { if (image) all.set(image as Uint8Array, i * one); });
    return tensor(all, [batch.length, S, S, 3], params.device);
  };
  return {
    processor,
    prepare: (image) => resizeTo(image, S, S, processor),
    grid: () => [side, side],
    encode: (model, batch) => model.encodeImages(pixels(batch)),
    tokens: (model, batch) => cast(model.imageTokens(pixels(batch)), 'f32'),
  };
}

function naflex({ config }: Siglip2Model, processor: Processor, maxPatches: number): VisionInput {
  const P = config.vision.patch, nothing: NaflexImage = { patches: new Uint8Array(P * P * 3), rows: 1, columns: 1 };
  naflexGrid(P, P, P, maxPatches);  // refuses a senseless number now and not at the first image
  const pack = (batch: (Prepared | null)[]) => packNaflex(batch.map((image) => image as NaflexImage | null ?? nothing));
  return {
    processor,
    async prepare(image) {
      const [rows, columns] = naflexGrid(image.height, image.width, P, maxPatches);
      const pixels = await resizeTo(image, rows * P, columns * P, processor) as Uint8Array;
      return { patches: patchify(pixels, rows, columns, P), rows, columns };
    },
    grid: (image) => image ? [(image as NaflexImage).rows, (image as NaflexImage).columns] : [1, 1],
    encode: (model, batch) => model.encodeNaflex(pack(batch)),
    tokens: (model, batch) => cast(model.naflexTokens(pack(batch)).tokens, 'f32'),
  };
}
