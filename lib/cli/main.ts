#!/usr/bin/env node
/** The `siglip2` command: finds the command's file, prints errors as one sentence, sets the exit status. */
import { Siglip2Error } from '../errors.js';
import type { Command } from './command.js';
import { hearSignals, outliveReaders } from './signals.js';

const COMMANDS: Record<string, () => Promise<{ command: Command }>> = {
  train: () => import('./commands/train.js'),
  plan: () => import('./commands/plan.js'),
  eval: () => import('./commands/eval.js'),
  embed: () => import('./commands/embed.js'),
  classify: () => import('./commands/classify.js'),
  search: () => import('./commands/search.js'),
  caption: () => import('./commands/caption.js'),
  locate: () => import('./commands/locate.js'),
  score: () => import('./commands/score.js'),
  filter: () => import('./commands/filter.js'),
  convert: () => import('./commands/convert.js'),
  export: () => import('./commands/export.js'),
  info: () => import('./commands/info.js'),
  dataset: () => import('./commands/dataset.js'),
  debias: () => import('./commands/debias.js'),
  quickstart: () => import('./commands/quickstart.js'),
};

async function help(): Promise<string> {
  const lines = ['usage: siglip2 <command> [options], siglip2 --version', ''];
  for (const load of Object.values(COMMANDS)) {
    const { command } = await load();
    lines.push(`  ${command.usage}`, `      ${command.summary}`);
  }
  return lines.join('\n');
}

async function main(argv: string[]): Promise<number> {
  const [name, ...args] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    console.log(await help());
    return name === undefined ? 2 : 0;
  }
  if (name === '--version' || name === '-V' || name === 'version') {
    console.log((await import('../native.js')).packageVersion());
    return 0;
  }
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!load) {
    console.error(
      `siglip2: there is no command "${name}"; the commands are ${Object.keys(COMMANDS).join(', ')}`,
    );
    return 2;
  }
  const { command } = await load();
  if (args.includes('--help') || args.includes('-h')) {
    console.log(`usage: siglip2 ${command.usage}\n${command.summary}`);
    return 0;
  }
  return command.run(args);
}

hearSignals();
outliveReaders();

main(process.argv.slice(2)).then(
  (status) => process.exit(status),
  (e: unknown) => {
    const code = String((e as { code?: unknown }).code),
      usage = code.startsWith('ERR_PARSE_ARGS');
    // Node's own sentence, without what follows about arguments that begin with a dash.
    if (usage)
      console.error(
        `siglip2: ${(e as Error).message.split(/\.\s|\n|\.$/)[0]}; ` +
          `siglip2 ${process.argv[2]} --help shows the options [${code}]`,
      );
    else if (e instanceof Siglip2Error) console.error(`siglip2: ${e.message} [${code}]`);
    else console.error(e);
    process.exit(usage ? 2 : 1);
  },
);
