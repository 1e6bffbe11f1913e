/** `npm run bench -- <what> [options]`: ops, step, encode, stress. Every figure is printed beside what it was compared with. */
const what = process.argv[2];
const benches: Record<string, () => Promise<{ main(args: string[]): Promise<void> }>> = {
  ops: () => import('./ops.js'),
  step: () => import('./step.js'),
  encode: () => import('./encode.js'),
  stress: () => import('./stress.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error('usage: npm run bench -- ops [--op NAME] [--json FILE]\n' +
    '       npm run bench -- step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--json FILE]\n' +
    '       npm run bench -- encode [--model FOLDER] [--dtype f32|bf16] [--batch 8] [--onnx FOLDER] [--image FILE.jpg] [--json FILE]\n' +
    '       npm run bench -- stress [--calls 20000] [--cycles 20]');
  process.exit(2);
}
await (await load()).main(process.argv.slice(3));
process.exit(0);
