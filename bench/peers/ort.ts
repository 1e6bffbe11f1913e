/** onnxruntime-node on our own export of both towers: the peer of the encoder's benchmark. */
import { join } from 'node:path';

interface OrtSession {
  run(feeds: Record<string, unknown>): Promise<unknown>;
}
interface Ort {
  InferenceSession: { create(path: string, options: object): Promise<OrtSession> };
  Tensor: new (type: string, data: Float32Array | BigInt64Array, dims: number[]) => unknown;
}

/** Both towers of some model on a batch of some size, inputs ready. */
export interface Towers {
  images(): Promise<unknown>;
  texts(): Promise<unknown>;
}

/**
 * Opens `vision.onnx` and `text.onnx` of a folder with inputs of this size.
 * @throws Error when the package or a file is missing
 */
export async function openOrt(
  folder: string,
  {
    threads,
    batch,
    size,
    length,
  }: { threads: number; batch: number; size: number; length: number },
): Promise<Towers> {
  // A variable keeps the compiler from needing the package's types.
  const name: string = 'onnxruntime-node';
  const module = (await import(name)) as Ort & { default?: Ort },
    ort = module.default ?? module;
  const options = { intraOpNumThreads: threads, interOpNumThreads: 1 };
  const vision = await ort.InferenceSession.create(join(folder, 'vision.onnx'), options);
  const text = await ort.InferenceSession.create(join(folder, 'text.onnx'), options);
  const pixels = Float32Array.from(
    { length: batch * 3 * size * size },
    (_, i) => ((i * 31) & 255) / 127.5 - 1,
  );
  const ids = new BigInt64Array(batch * length).fill(1n);
  return {
    images: () =>
      vision.run({ pixel_values: new ort.Tensor('float32', pixels, [batch, 3, size, size]) }),
    texts: () => text.run({ input_ids: new ort.Tensor('int64', ids, [batch, length]) }),
  };
}
