/**
 * Images of one size for an encoder, without work for the collection of garbage. Left to it, the decoded image and the
 * resized one would lie in new memory time and again, and mapping its pages takes longer than resizing.
 */
import { type RawImage, releaseDecoded } from './image.js';
import { type Processor, resizeTo } from './processor.js';

/** Buffers that are kept for the next images. */
const MOST_SPARE = 64;

export type Pixels = Uint8Array | Float32Array;

export class Resizer {
  readonly #own = new WeakSet<Pixels>();
  readonly #spare: Pixels[] = [];

  readonly #height: number;
  readonly #width: number;
  readonly #processor: Processor;

  /** Sizes in pixels. */
  constructor(height: number, width: number, processor: Processor) {
    this.#height = height;
    this.#width = width;
    this.#processor = processor;
  }

  /**
   * The pixels (height, width, 3) of an image, which must not be used any more. They may be the caller's own if these had
   * the size already.
   * @throws ConfigError as `resizeTo`
   */
  async resize(image: RawImage): Promise<Pixels> {
    const target = this.#spare.pop() ?? this.#buffer(),
      pixels = await resizeTo(image, this.#height, this.#width, this.#processor, target);
    if (pixels === target) releaseDecoded(image);
    else this.#spare.push(target);
    return pixels;
  }

  /** Takes back what `resize` gave, when it has been copied: the next image overwrites it. */
  recycle(pixels: Pixels): void {
    if (this.#own.has(pixels) && this.#spare.length < MOST_SPARE) this.#spare.push(pixels);
  }

  #buffer(): Pixels {
    const n = this.#height * this.#width * 3,
      made = this.#processor.name === 'aa-f32' ? new Float32Array(n) : new Uint8Array(n);
    this.#own.add(made);
    return made;
  }
}
