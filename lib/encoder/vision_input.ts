/** How decoded images enter the vision tower: all at one size, or each on its own grid of patches (NaFlex). */

import type { LoadedModel } from '../checkpoints/load.js';
import { ConfigError } from '../errors.js';
import { type RawImage, releaseDecoded } from '../image/image.js';
import {
  type NaflexBatch,
  type NaflexImage,
  naflexGrid,
  packNaflex,
  patchify,
} from '../image/naflex.js';
import { type Processor, type ProcessorName, processorOf, resizeTo } from '../image/processor.js';
import { Resizer } from '../image/resizer.js';
import { gridSide } from '../model/config.js';
import type { Siglip2Model } from '../model/siglip2.js';
import { copyRows } from '../ops/copy_rows.js';
import { cast } from '../ops/elementwise.js';
import { type Tensor, tensor, zeros } from '../tensor.js';

/** An image that is ready for the model. */
export type Prepared = Uint8Array | Float32Array | NaflexImage;

/** null stands for an image that could not be read: something of its own size is computed in its place. */
export interface VisionInput {
  readonly processor: Processor;
  /** Its pixels at the model's size. The image must not be used any more; what is returned goes into one batch, once. */
  prepare(image: RawImage): Promise<Prepared>;
  /** Patches down and across. */
  grid(image: Prepared | null): [rows: number, columns: number];
  /** (B, E) unit rows. */
  encode(model: Siglip2Model, batch: (Prepared | null)[]): Tensor;
  /** Dense features f32, one image after the other. */
  tokens(model: Siglip2Model, batch: (Prepared | null)[]): Tensor;
  /** Dense features as the caption decoder takes them. */
  forDecoder(model: Siglip2Model, batch: Prepared[]): DecoderImages;
}

/** Images for the caption decoder. */
export interface DecoderImages {
  /** (B, N, D) of the activations' type; a NaFlex image's tokens are followed by padding. */
  tokens: Tensor;
  /** (B) i32, the tokens that count; null when all do. */
  lengths: Tensor | null;
}

/** @throws ConfigError when processor or number of patches do not fit the model */
export function makeVisionInput(
  { model, processor: { resample, maxPatches: usual } }: LoadedModel,
  name: ProcessorName | undefined,
  maxPatches: number | undefined,
): VisionInput {
  const processor = processorOf(resample, name);
  if (!model.config.naflex) {
    if (maxPatches !== undefined)
      throw new ConfigError('maxPatches is for NaFlex models; this one has a fixed resolution');
    return fixed(model, processor);
  }
  if (processor.name !== 'hf')
    throw new ConfigError(`NaFlex models take the processor hf only, not ${processor.name}`);
  return naflex(model, processor, maxPatches ?? usual);
}

function fixed({ config, params }: Siglip2Model, processor: Processor): VisionInput {
  const S = config.vision.imageSize,
    one = S * S * 3,
    side = gridSide(config);
  const resizer = new Resizer(S, S, processor);
  const pixels = (batch: (Prepared | null)[]): Tensor => {
    const all =
      processor.name === 'aa-f32'
        ? new Float32Array(batch.length * one)
        : new Uint8Array(batch.length * one);
    batch.forEach((image, i) => {
      if (!image) return;
      all.set(image as Uint8Array, i * one);
      resizer.recycle(image as Uint8Array);
    });
    return tensor(all, [batch.length, S, S, 3], params.device);
  };
  return {
    processor,
    prepare: (image) => resizer.resize(image),
    grid: () => [side, side],
    encode: (model, batch) => model.encodeImages(pixels(batch)),
    tokens: (model, batch) => cast(model.imageTokens(pixels(batch)), 'f32'),
    forDecoder: (model, batch) => ({ tokens: model.imageTokens(pixels(batch)), lengths: null }),
  };
}

function naflex({ config }: Siglip2Model, processor: Processor, maxPatches: number): VisionInput {
  const P = config.vision.patch,
    nothing: NaflexImage = { patches: new Uint8Array(P * P * 3), rows: 1, columns: 1 };
  naflexGrid(P, P, P, maxPatches); // refuses a senseless number now and not at the first image
  const pack = (batch: (Prepared | null)[]) =>
    packNaflex(batch.map((image) => (image as NaflexImage | null) ?? nothing));
  return {
    processor,
    async prepare(image) {
      const [rows, columns] = naflexGrid(image.height, image.width, P, maxPatches);
      const pixels = (await resizeTo(image, rows * P, columns * P, processor)) as Uint8Array;
      if (pixels !== image.data) releaseDecoded(image);
      return { patches: patchify(pixels, rows, columns, P), rows, columns };
    },
    grid: (image) =>
      image ? [(image as NaflexImage).rows, (image as NaflexImage).columns] : [1, 1],
    encode: (model, batch) => model.encodeNaflex(pack(batch)),
    tokens: (model, batch) => cast(model.naflexTokens(pack(batch)).tokens, 'f32'),
    forDecoder: (model, batch) => padded(model, pack(batch)),
  };
}

/** Each image's tokens in a row of their own, for decoding one token at a time is not made for packed images. */
function padded(model: Siglip2Model, batch: NaflexBatch): DecoderImages {
  const { tokens } = model.naflexTokens(batch),
    { offsets } = batch,
    B = offsets.length - 1,
    device = tokens.device;
  const lengths = Int32Array.from({ length: B }, (_, b) => offsets[b + 1]! - offsets[b]!),
    N = Math.max(...lengths);
  const to = new Int32Array(tokens.shape[0]!),
    D = tokens.shape[1]!;
  lengths.forEach((n, b) => {
    for (let i = 0; i < n; i++) to[offsets[b]! + i] = b * N + i;
  });
  const rows = zeros([B * N, D], tokens.dtype, device);
  copyRows(
    rows,
    tokens,
    tensor(to, [to.length], device),
    tensor(
      to.map((_, i) => i),
      [to.length],
      device,
    ),
  );
  return { tokens: rows.reshape([B, N, D]), lengths: tensor(lengths, [B], device) };
}
