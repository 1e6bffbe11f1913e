/** What a command is. */

/** One command: lib/cli/<name>.ts exports one of these. */
export interface Command {
  usage: string;
  summary: string;
  /** Returns the exit status. */
  run(args: string[]): Promise<number>;
}
