/** `npm run bench -- <what> [options]`. Every figure is printed beside what it was compared with. */
const what = process.argv[2];
const benches: Record<string, () => Promise<{ main(args: string[]): Promise<void> }>> = {
  ops: () => import('./ops.js'),
  step: () => import('./step.js'),
  views: () => import('./views.js'),
  naflex: () => import('./naflex.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error('usage: npm run bench -- ops [--op NAME] [--json FILE]\n' +
    '       npm run bench -- step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--json FILE]\n' +
    '       npm run bench -- views [--size 256] [--patch 16] [--json FILE]\n' +
    '       npm run bench -- naflex [--model B/16] [--depth 4] [--images 12] [--dtype f32|bf16] [--json FILE]');
  process.exit(2);
}
await (await load()).main(process.argv.slice(3));
process.exit(0);
