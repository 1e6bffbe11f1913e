/** The config that a command was given: a file or a preset, with `--set` changes. */
import { ConfigError } from '../errors.js';
import { applySets, readConfigValue } from '../train/config.js';
import { presets } from '../train/presets.js';

/** The preset of a name. Throws ConfigError listing them. */
export function presetCalled(name: string): (typeof presets)[string] {
  if (!Object.hasOwn(presets, name))
    throw new ConfigError(
      `no preset is called "${name}"; the presets are ${Object.keys(presets).join(', ')}`,
    );
  return presets[name]!;
}

/** The config unchecked, for it may have stages. Throws ConfigError. */
export async function configArgument(
  command: string,
  [file, ...more]: readonly string[],
  preset: string | undefined,
  sets: readonly string[],
): Promise<unknown> {
  if (more.length > 0)
    throw new ConfigError(`${command} takes one config but there is also ${more.join(' ')}`);
  if (preset !== undefined) {
    if (file !== undefined)
      throw new ConfigError(
        `${command} takes either a config file or --preset but got ${file} and ${preset}`,
      );
    return applySets(presetCalled(preset), sets);
  }
  if (file === undefined) throw new ConfigError(`${command} needs a config file or --preset NAME`);
  return readConfigValue(file, sets);
}
