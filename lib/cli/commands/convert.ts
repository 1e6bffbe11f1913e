/** `siglip2 convert`: a checkpoint from one public layout to another. */
import { parseArgs } from 'node:util';
import { type ConvertOptions, convertCheckpoint } from '../../checkpoints/convert.js';
import { ConfigError } from '../../errors.js';
import type { Command } from '../command.js';

const DTYPES = ['f32', 'f16', 'bf16'] as const;

/** The dtype option of a command. @throws ConfigError */
export function dtypeOption(text: string | undefined): ConvertOptions['dtype'] {
  if (text === undefined || (DTYPES as readonly string[]).includes(text))
    return text as ConvertOptions['dtype'];
  throw new ConfigError(`--dtype must be one of ${DTYPES.join(', ')} but is ${text}`);
}

export const command: Command = {
  usage: 'convert SOURCE TARGET [--format hf|npz|open_clip] [--dtype f32|f16|bf16]',
  summary:
    'a checkpoint (folder, run, big_vision .npz, hub id) to a Hugging Face folder, to .npz when TARGET ends in it, or to an open_clip folder',
  async run(args) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: { dtype: { type: 'string' }, format: { type: 'string' } },
    });
    const [source, target, ...more] = positionals;
    if (source === undefined || target === undefined || more.length > 0)
      throw new ConfigError('convert needs a source and a target');
    const { format = target.endsWith('.npz') ? 'npz' : 'hf' } = values;
    if (format !== 'hf' && format !== 'npz' && format !== 'open_clip')
      throw new ConfigError(`--format must be hf, npz or open_clip but is ${format}`);
    await convertCheckpoint(source, target, {
      format,
      dtype: dtypeOption(values.dtype),
      onNote: (sentence) => console.error(`note: ${sentence}`),
    });
    console.log(`wrote ${target}`);
    return 0;
  },
};
