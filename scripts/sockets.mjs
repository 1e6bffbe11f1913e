/**
 * Lists what stands in the folders where one file is one thing, so that adding it edits nothing: writes all.ts there, which
 * exports every other file's module by its name. Run before the compiler (npm run build:ts).
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const FOLDERS = ['lib/data/sources', 'lib/train/terms', 'lib/eval/evaluators'];

for (const folder of FOLDERS) {
  const path = fileURLToPath(new URL(`../${folder}/`, import.meta.url));
  if (!existsSync(path)) continue;
  const names = readdirSync(path)
    .filter((name) => name.endsWith('.ts') && name !== 'all.ts')
    .map((name) => name.slice(0, -3))
    .sort();
  const constant = (name) => name.replace(/_./g, (part) => part[1].toUpperCase());
  const text =
    `/** Written by scripts/sockets.mjs: the files of this folder, by name. */\n` +
    names.map((name) => `import * as ${constant(name)} from './${name}.js';\n`).join('') +
    `\nexport const all = {\n${names.map((name) => `  '${name.replaceAll('_', '-')}': ${constant(name)},\n`).join('')}} as const;\n`;
  if (!existsSync(`${path}all.ts`) || readFileSync(`${path}all.ts`, 'utf8') !== text)
    writeFileSync(`${path}all.ts`, text);
}
