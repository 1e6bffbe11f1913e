/** The loader's worker thread: builds the batches it is asked for. */
import { parentPort, workerData } from 'node:worker_threads';
import { Builder, type BuilderConfig, type BuilderRequest } from './batch_builder.js';

const port = parentPort;
if (port !== null) {
  const { config, progress } = workerData as { config: BuilderConfig; progress: Int32Array };
  const builder = new Builder(config, progress, (reply, transfer) =>
    port.postMessage(reply, transfer),
  );
  port.on('message', (request: BuilderRequest) => builder.handle(request));
}
