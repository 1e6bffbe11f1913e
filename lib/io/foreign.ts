/** Weights of other kinds than are read here: what each is, and how it becomes one that is. */
import { basename, extname, join } from 'node:path';
import { CheckpointError } from '../errors.js';

const PYTORCH =
  "import sys, torch; from safetensors.torch import save_file; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); " +
  "d = d.get('state_dict', d); save_file({k.removeprefix('module.'): v.contiguous() for k, v in d.items()}, sys.argv[2])";
const TRANSFORMERS =
  'import sys, transformers as t; t.AutoModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])';
const FLAX =
  'import sys, numpy as np; from flax.serialization import msgpack_restore; from flax.traverse_util import flatten_dict; ' +
  "np.savez(sys.argv[2], **{k: np.asarray(v) for k, v in flatten_dict(msgpack_restore(open(sys.argv[1], 'rb').read()), sep='/').items()})";
const FLOAT8 =
  'import sys, torch; from safetensors.torch import load_file, save_file; ' +
  'save_file({k: v.to(torch.bfloat16) for k, v in load_file(sys.argv[1]).items()}, sys.argv[2])';

const python = (code: string, ...args: string[]): string =>
  `with Python: python3 -c "${code}" ${args.join(' ')}`;
const pytorch = (file: string, folder: string): string => {
  if (/^open_clip/.test(basename(file)))
    return `write it as safetensors ${python(PYTORCH, file, join(folder, 'open_clip_model.safetensors'))}`;
  if (/^pytorch_model/.test(basename(file)))
    return `let transformers write it as safetensors ${python(TRANSFORMERS, folder)}`;
  return `write it as safetensors ${python(PYTORCH, file, join(folder, 'model.safetensors'))}, beside the config.json of its model`;
};
const original =
  'it does not keep all that the weights were, so take the checkpoint that it was made from';

/** By extension. */
const KINDS: Record<string, { what: string; then: (file: string, folder: string) => string }> = {
  ...Object.fromEntries(
    ['.bin', '.pt', '.pth', '.ckpt'].map((e) => [
      e,
      { what: 'a pickle of PyTorch, which is a program and is not run here', then: pytorch },
    ]),
  ),
  '.msgpack': {
    what: "flax's msgpack",
    then: (file) =>
      `write it as .npz ${python(FLAX, file, `${file.slice(0, -'.msgpack'.length)}.npz`)}`,
  },
  '.h5': {
    what: 'an HDF5 file of Keras or TensorFlow',
    then: () =>
      "its layers' names differ from program to program, so take the same model as safetensors or .npz",
  },
  '.keras': {
    what: 'a Keras archive',
    then: () =>
      "its layers' names differ from program to program, so take the same model as safetensors or .npz",
  },
  '.pb': { what: 'a TensorFlow graph', then: () => original },
  '.gguf': { what: 'GGUF, the quantised weights of llama.cpp', then: () => original },
  '.onnx': { what: 'an ONNX graph', then: () => original },
  '.safetensors': {
    what: 'the weights alone',
    then: () => 'give the folder that holds it with its config.json or open_clip_config.json',
  },
};

/** The error for a file that is given as a checkpoint; undefined when its kind is not known. */
export function foreignFile(path: string): CheckpointError | undefined {
  const kind = KINDS[extname(path).toLowerCase()];
  return (
    kind && new CheckpointError(`${path}: is ${kind.what}; ${kind.then(path, join(path, '..'))}`)
  );
}

/** The error for a folder whose weights are all of other kinds; undefined when there are none of those either. */
export function foreignFolder(
  folder: string,
  names: readonly string[],
): CheckpointError | undefined {
  const found = names
    .filter(
      (name) =>
        extname(name) !== '.safetensors' &&
        !/^(optimizer|scheduler|rng_state|training_args|scaler)/.test(name),
    )
    .find((name) => KINDS[extname(name).toLowerCase()]);
  if (found === undefined) return undefined;
  const { what, then } = KINDS[extname(found).toLowerCase()]!;
  return new CheckpointError(
    `${folder}: has no safetensors weights but ${found}, ${what}; ${then(join(folder, found), folder)}`,
  );
}

/** What to do about a tensor of an 8-bit (or smaller) float type. */
export function smallFloat(path: string, names: Iterable<string>): string {
  const scale = [...names].find((name) => /scale(_inv)?$/.test(name) && name !== 'logit_scale');
  if (scale !== undefined)
    return `a float of so few bits needs its scales (${scale}); take the checkpoint that it was quantised from`;
  return `a float of so few bits is for inference engines; write it as bf16 ${python(FLOAT8, path, 'bf16.safetensors')}`;
}

/** Whether a dtype's name is that of a float of 8 bits or less. */
export function isSmallFloat(dtype: unknown): boolean {
  return typeof dtype === 'string' && /^F[468](_|$)/.test(dtype);
}
