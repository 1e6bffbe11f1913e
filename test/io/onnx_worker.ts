/**
 * onnxruntime in a thread of its own: it compares array classes, and those of a jest file are not the process's.
 * Messages in: [id, model path, feeds]; out: [id, outputs or null, error or null].
 */
import { parentPort } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';

export type Feeds = Record<
  string,
  [type: 'float32' | 'int64', values: ArrayLike<number>, dims: readonly number[]]
>;
export type Outputs = Record<string, Float32Array>;

const sessions = new Map<string, Promise<ort.InferenceSession>>();

async function run(path: string, feeds: Feeds): Promise<Outputs> {
  let session = sessions.get(path);
  if (!session)
    sessions.set(
      path,
      (session = ort.InferenceSession.create(path, { intraOpNumThreads: 1, logSeverityLevel: 3 })),
    );
  const inputs = Object.fromEntries(
    Object.entries(feeds).map(([name, [type, values, dims]]) => [
      name,
      new ort.Tensor(
        type,
        type === 'int64'
          ? BigInt64Array.from(Array.from(values), BigInt)
          : Float32Array.from(values),
        [...dims],
      ),
    ]),
  );
  const outputs: Record<string, ort.Tensor> = await (await session).run(inputs);
  return Object.fromEntries(
    Object.entries(outputs).map(([name, t]) => [name, t.data as Float32Array]),
  );
}

parentPort?.on('message', ([id, path, feeds]: [number, string, Feeds]) => {
  run(path, feeds).then(
    (outputs) => parentPort!.postMessage([id, outputs, null]),
    (e: Error) => parentPort!.postMessage([id, null, e.message]),
  );
});
