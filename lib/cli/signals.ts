/**
 * Signals that ask a command to end. A command ends at once, with 128 and the signal's number, unless it does work under
 * `heeding`, which saves first.
 */
import { constants } from 'node:os';

/** From people and their terminals (INT, HUP), service managers (TERM), schedulers before a job's end (USR1, USR2). */
const ENDINGS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const;
export type Ending = (typeof ENDINGS)[number];

/** One press of Ctrl-C comes twice under npm: from the terminal to every process, and from npm, which passes its own on. */
const REPEAT_MS = 1000;

/** What the work at hand does about a signal; null: it has nothing to save. */
let heed: ((signal: Ending) => void) | null = null;

/** The exit status that says which signal ended a command, as shells have it. */
export function statusOf(signal: Ending): number {
  return 128 + constants.signals[signal];
}

/** Hears signals from now on. Call it first of all: until then SIGUSR1 opens Node's debugger. */
export function hearSignals(): void {
  for (const signal of ENDINGS) {
    if (constants.signals[signal] === undefined) continue; // on Windows
    process.on(signal, () => (heed ? heed(signal) : process.exit(statusOf(signal))));
  }
}

/**
 * Runs work that can stop in good order. The first signal calls `stop`; another Ctrl-C, a second or more later, ends the
 * process as it is; all others are taken as reminders, for a scheduler sends several.
 */
export async function heeding<T>(
  stop: (signal: Ending) => void,
  work: () => Promise<T>,
): Promise<T> {
  let last: number | undefined;
  heed = (signal) => {
    const now = performance.now();
    if (last === undefined) stop(signal);
    else if (signal !== 'SIGINT' || now - last < REPEAT_MS) return;
    else process.exit(statusOf(signal));
    last = now;
  };
  try {
    return await work();
  } finally {
    heed = null;
  }
}

/**
 * Goes on without readers. Whoever reads a log may end before the work does (`| head`, a closed terminal), and that is no
 * reason to lose it; a command whose result nobody reads any more ends, unless it has something to save.
 */
export function outliveReaders(): void {
  process.stderr.on('error', () => undefined);
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (heed) return;
    if (error.code === 'EPIPE') process.exit(128 + (constants.signals.SIGPIPE ?? 13));
    console.error(`siglip2: the output cannot be written: ${error.message}`);
    process.exit(1);
  });
}
