/** `npm run bench -- <what> [options]`: ops, step, naflex, load, fuzz. Every figure is printed beside what it was compared with. */
const what = process.argv[2];
const benches: Record<string, () => Promise<{ main(args: string[]): Promise<void> }>> = {
  ops: () => import('./ops.js'),
  step: () => import('./step.js'),
  naflex: () => import('./naflex.js'),
  load: () => import('./load.js'),
  fuzz: () => import('./fuzz.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error('usage: npm run bench -- ops [--op NAME] [--json FILE]\n' +
    '       npm run bench -- step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--json FILE]\n' +
    '       npm run bench -- naflex [--model B/16] [--depth 4] [--images 12] [--dtype f32|bf16] [--json FILE]\n' +
    '       npm run bench -- load [--model B/16] [--size 256] [--npz]\n' +
    '       npm run bench -- fuzz [--count 10000] [--seed 1]');
  process.exit(2);
}
await (await load()).main(process.argv.slice(3));
process.exit(0);
