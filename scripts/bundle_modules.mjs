// bundle_modules.mjs TARGET NAME…: copies these packages and what they depend on from node_modules to TARGET, without
// type declarations, source maps and documentation. Follows Node's own search, so nested versions stay nested.
import { cpSync, existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';

const [target, ...names] = process.argv.slice(2);
const root = process.cwd(),
  copied = new Set();

function find(name, from, optional) {
  for (let dir = from; ; dir = dirname(dir)) {
    const path = join(dir, 'node_modules', name);
    if (existsSync(join(path, 'package.json'))) return path;
    if (dir === dirname(dir) && optional) return null;
    if (dir === dirname(dir))
      throw new Error(`${name}, which ${from} needs, is not installed; run npm run setup`);
  }
}
function take(name, from, optional = false) {
  const path = find(name, from, optional);
  if (!path || copied.has(path)) return;
  copied.add(path);
  cpSync(path, join(target, relative(root, path)), {
    recursive: true,
    filter: (file) =>
      !/\.(d\.[cm]?ts|[cm]?ts|map|md|markdown)$/i.test(file) &&
      !(file !== path && basename(file) === 'node_modules'),
  });
  const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
    readFileSync(join(path, 'package.json'), 'utf8'),
  );
  for (const dependency of Object.keys({ ...dependencies, ...optionalDependencies }))
    if (!dependency.startsWith('@types/'))
      take(dependency, path, dependency in optionalDependencies);
}
for (const name of names) take(name, root);
console.log(`${copied.size} packages`);
