/** The places where a loader's batches are built: worker threads, or the calling thread. */
import { Worker } from 'node:worker_threads';
import {
  Builder,
  type BuilderConfig,
  type BuilderReply,
  type BuilderRequest,
  Progress,
} from './batch_builder.js';

/** Where batches are built: a thread or this one. */
export interface Site {
  send(request: BuilderRequest): void;
  /** Keeps the process alive (or not) while waiting. */
  hold(on: boolean): void;
  close(): Promise<void>;
  progress: Int32Array;
  /** Batches being built. */
  load: number;
}

/** Builds in the calling thread, between other events. */
export function localSite(config: BuilderConfig, receive: (reply: BuilderReply) => void): Site {
  const progress = new Int32Array(Progress.length);
  const builder = new Builder(config, progress, receive);
  return {
    progress,
    load: 0,
    hold: () => undefined,
    send: (request) => builder.handle(request),
    close: async () => builder.close(),
  };
}

/**
 * Builds in a worker thread of its own, which does not keep the process alive unless held.
 * @param ended called when the thread ends by itself: "crashed: ..." or "ended (exit code ...)"
 */
export function threadSite(
  config: BuilderConfig,
  receive: (reply: BuilderReply) => void,
  ended: (site: Site, what: string, cause?: unknown) => void,
): Site {
  const progress = new Int32Array(new SharedArrayBuffer(4 * Progress.length));
  const worker = new Worker(new URL('./worker.js', import.meta.url), {
    workerData: { config, progress },
    name: 'siglip2-data',
  });
  const site: Site = {
    progress,
    load: 0,
    send: (request) => worker.postMessage(request),
    hold: (on) => (on ? worker.ref() : worker.unref()),
    close: async () => {
      // A thread stuck in a system call (a dead network disk) cannot be stopped; closing must end
      // all the same.
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([
        worker.terminate(),
        new Promise((resolve) => {
          timer = setTimeout(resolve, 5000);
        }),
      ]);
      clearTimeout(timer);
    },
  };
  worker.on('message', receive);
  worker.on('error', (cause) => ended(site, `crashed (${(cause as Error).message})`, cause));
  worker.on('exit', (code) => ended(site, `ended (exit code ${code})`));
  // An idle worker must not keep a finished program alive.
  worker.unref();
  return site;
}
