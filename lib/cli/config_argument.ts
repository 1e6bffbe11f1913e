/** The config that a command was given: a file or a preset, with `--set` changes. */
import { ConfigError } from '../errors.js';
import { applySets, readConfigValue } from '../train/config.js';
import { presets } from '../train/presets.js';

/** The config unchecked, for it may have stages. Throws ConfigError. */
export async function configArgument(command: string, file: string | undefined, preset: string | undefined,
  sets: readonly string[]): Promise<unknown> {
  if (preset !== undefined) {
    const value = presets[preset];
    if (!value) throw new ConfigError(`no preset is called "${preset}"; the presets are ${Object.keys(presets).join(', ')}`);
    return applySets(value, sets);
  }
  if (file === undefined) throw new ConfigError(`${command} needs a config file or --preset NAME`);
  return readConfigValue(file, sets);
}
