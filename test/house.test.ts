/**
 * What no compiler holds: every room of lib/ imports only from those below it, types included, no file is in a circle, and one
 * case for constants and private names.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';

/** From the ground up; '.' is lib/ itself. */
const FLOORS = [
  '.',
  'ops',
  'fs',
  'io',
  'text',
  'image',
  'data',
  'model',
  'losses',
  'checkpoints',
  'inference',
  'encoder',
  'optim',
  'eval',
  'train',
  'curation',
  'cli',
];
/** The two doors of the package, which lead to all floors. */
const DOORS = ['index.ts', 'kernels.ts'];

const lib = fileURLToPath(new URL('../../lib/', import.meta.url));
const files = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map(normalize)
  .sort();
const room = (file: string): string =>
  file.includes('/') ? file.slice(0, file.indexOf('/')) : '.';
const edges = new Map(
  files.map((file) => {
    const text = readFileSync(join(lib, file), 'utf8');
    const specs = [
      ...text.matchAll(/(?:\bfrom\s+|\bimport\s*\(\s*|^import\s+)'(\.[^']+)\.js'/gm),
    ].map((found) => found[1]!);
    return [file, specs.map((spec) => `${normalize(join(dirname(file), spec))}.ts`)];
  }),
);

test('every file is in a room that has a floor, and its imports go down', () => {
  expect(files.filter((file) => !FLOORS.includes(room(file)))).toEqual([]);
  const up = files
    .filter((file) => !DOORS.includes(file))
    .flatMap((file) =>
      edges
        .get(file)!
        .filter((to) => FLOORS.indexOf(room(to)) > FLOORS.indexOf(room(file)) || DOORS.includes(to))
        .map((to) => `${file} -> ${to}`),
    );
  expect(up).toEqual([]);
});

test('no file imports itself by way of others', () => {
  const done = new Set<string>(),
    circles: string[] = [];
  const visit = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(' -> '));
    if (path.includes(file) || done.has(file)) return;
    for (const to of edges.get(file) ?? []) visit(to, [...path, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  expect(circles).toEqual([]);
});

test('no folder but that of ops holds more than twenty files', () => {
  const sizes = new Map<string, number>();
  for (const file of files) sizes.set(dirname(file), (sizes.get(dirname(file)) ?? 0) + 1);
  expect([...sizes].filter(([folder, n]) => folder !== 'ops' && n > 20)).toEqual([]);
});

test('private names begin with #, constants of modules are in capitals', () => {
  const found = files.flatMap((file) =>
    [
      ...readFileSync(join(lib, file), 'utf8').matchAll(
        /^\s*(?:private|protected) (?!constructor)\w+|\bconst k[A-Z]\w*/gm,
      ),
    ].map(([text]) => `${file}: ${text.trim()}`),
  );
  expect(found).toEqual([]);
});
