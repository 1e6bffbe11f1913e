/** `npm run bench -- <what> [options]`: ops, step, cuda. Every figure is printed beside what it was compared with. */
const what = process.argv[2];
const benches: Record<string, () => Promise<{ main(args: string[]): Promise<void> }>> = {
  ops: () => import('./ops.js'),
  step: () => import('./step.js'),
  cuda: () => import('./cuda.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error('usage: npm run bench -- ops [--op NAME] [--json FILE]\n' +
    '       npm run bench -- step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--enqueue] [--json FILE]\n' +
    '       npm run bench -- cuda [--only attention] [--rounds 5] [--small] [--json FILE]');
  process.exit(2);
}
await (await load()).main(process.argv.slice(3));
process.exit(0);
