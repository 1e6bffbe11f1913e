/** `npm run bench -- <what> [options]`. Every figure is printed beside what it was compared with. */
const what = process.argv[2];
const benches: Record<string, () => Promise<{ main(args: string[]): Promise<void> }>> = {
  ops: () => import('./ops.js'),
  step: () => import('./step.js'),
  views: () => import('./views.js'),
  naflex: () => import('./naflex.js'),
  load: () => import('./load.js'),
  fuzz: () => import('./fuzz.js'),
  encode: () => import('./encode.js'),
  stress: () => import('./stress.js'),
  soak: () => import('./soak.js'),
  cuda: () => import('./cuda.js'),
  select: () => import('./select.js'),
  ablation: () => import('./ablation.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error(['usage:',
    'ops [--op NAME] [--json FILE]',
    'step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--enqueue] [--json FILE]',
    'views [--size 256] [--patch 16] [--json FILE]',
    'naflex [--model B/16] [--depth 4] [--images 12] [--dtype f32|bf16] [--json FILE]',
    'load [--model B/16] [--size 256] [--npz]',
    'fuzz [--count 10000] [--seed 1]',
    'encode [--model FOLDER] [--dtype f32|bf16] [--batch 8] [--onnx FOLDER] [--image FILE.jpg] [--json FILE]',
    'stress [--calls 20000] [--cycles 20]',
    'soak [--steps 2000] [--json FILE]',
    'cuda [--only attention] [--rounds 5] [--small] [--json FILE]',
    'select [--super 65536] [--batch 32768] [--chunks 16] [--dim 768] [--dtype f32|bf16] [--device cpu]',
    'ablation [--seeds 3] [--first 1] [--steps 2000] [--probe 500] [--data data/scenes] [--work DIR] [--json FILE]',
  ].join('\n  npm run bench -- '));
  process.exit(2);
}
await (await load()).main(process.argv.slice(3));
process.exit(0);
