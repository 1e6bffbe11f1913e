/** `siglip2 export`: a checkpoint for other runtimes and tools. */
import { parseArgs } from 'node:util';
import { type ConvertOptions, convertCheckpoint } from '../../checkpoints/convert.js';
import { ConfigError } from '../../errors.js';
import type { Command } from '../command.js';
import { dtypeOption } from './convert.js';

const FORMATS = ['onnx', 'hf', 'npz', 'open_clip'] as const;

export const command: Command = {
  usage:
    'export CHECKPOINT|RUN --format onnx|hf|npz|open_clip --out TARGET [--opset 17…20] [--external-above MB] [--dtype f32|f16|bf16]',
  summary:
    'ONNX graphs of both towers, a folder of Hugging Face or open_clip, or a big_vision .npz; the newest checkpoint of a run',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        format: { type: 'string' },
        out: { type: 'string' },
        opset: { type: 'string' },
        'external-above': { type: 'string' },
        dtype: { type: 'string' },
      },
    });
    const where = positionals[0],
      format = FORMATS.find((f) => f === values.format),
      megabytes = Number(values['external-above']);
    if (where === undefined || positionals.length > 1)
      throw new ConfigError(
        'export needs one checkpoint: a folder, a .npz file, a run or a hub id',
      );
    if (format === undefined)
      throw new ConfigError(
        `--format must be one of ${FORMATS.join(', ')} but is ${values.format ?? 'missing'}`,
      );
    if (values.out === undefined)
      throw new ConfigError('export needs --out: the folder (npz: the file) to write');
    if (values['external-above'] !== undefined && !(megabytes >= 0))
      throw new ConfigError(
        `--external-above must be a number of MB but is ${values['external-above']}`,
      );
    const options: ConvertOptions = {
      format,
      dtype: dtypeOption(values.dtype),
      onNote: (sentence) => console.error(`note: ${sentence}`),
      ...(values.opset !== undefined ? { opset: Number(values.opset) } : {}),
      ...(values['external-above'] !== undefined ? { externalAbove: megabytes * 1e6 } : {}),
    };
    await convertCheckpoint(where, values.out, options);
    console.log(`wrote ${values.out}`);
    return 0;
  },
};
