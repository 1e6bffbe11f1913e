/** `npm run bench -- <what> [options]`. Every figure is printed beside what it was compared with. */
import { Siglip2Error } from '../lib/errors.js';

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
  vocabulary: () => import('./vocabulary.js'),
  select: () => import('./select.js'),
  ablation: () => import('./ablation.js'),
  score: () => import('./score.js'),
  curation: () => import('./curation.js'),
};
const load = what === undefined ? undefined : benches[what];
if (!load) {
  console.error(
    [
      'usage:',
      'ops [--op NAME] [--json FILE]',
      'step [--model B/16] [--batch 8] [--dtype f32|bf16] [--peer torch] [--enqueue] [--busy 2] [--json FILE]',
      'views [--size 256] [--patch 16] [--json FILE]',
      'naflex [--model B/16] [--depth 4] [--images 12] [--dtype f32|bf16] [--json FILE]',
      'load [--model B/16] [--size 256] [--npz]',
      'fuzz [--count 10000] [--seed 1] [--only checkpoints|images]',
      'encode [--variant B/16] [--size 256] [--model FOLDER] [--dtype f32|bf16] [--batch 8] [--peer ort] [--onnx FOLDER] ' +
        '[--image FILE.jpg] [--json FILE]',
      'stress [--calls 20000] [--cycles 20]',
      'soak [--steps 2000] [--json FILE]',
      'cuda [--only attention] [--rounds 5] [--small] [--json FILE]',
      'vocabulary [--tokens 2048] [--vocab 256000] [--model B/16] [--dtype f32|bf16] [--loss-only] [--text-width N] [--json FILE]',
      'curation [--steps 500] [--swapped 0.4] [--seeds 1,2,3] [--data FOLDER] [--ways "uniform;learnability"] [--json FILE]',
      'select [--super 65536] [--batch 32768] [--chunks 16] [--dim 768] [--dtype f32|bf16] [--device cpu]',
      'ablation [--seeds 3] [--first 1] [--steps 2000] [--probe 500] [--data data/scenes] [--work DIR] [--json FILE]',
      'score --model RUN [--reference RUN] [--samples 20480] [--kills 10] [--json FILE]',
    ].join('\n  npm run bench -- '),
  );
  process.exit(2);
}
try {
  await (await load()).main(process.argv.slice(3));
} catch (e) {
  if (!(e instanceof Siglip2Error)) throw e;
  console.error(`bench: ${e.message} [${e.code}]`);
  process.exit(1);
}
process.exit(0);
