/** One door for every kind of checkpoint: a folder of Hugging Face or open_clip, a big_vision .npz, or a hub id. */
import { existsSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointError } from '../errors.js';
import { ioError } from '../fs/files.js';
import { foreignFile, foreignFolder } from '../io/foreign.js';
import { missingTokenizer } from '../text/tokenizer_file.js';
import { openBigVision } from './big_vision.js';
import type { HfFolder } from './hf.js';
import { loadHfFolder, readJson } from './hf.js';
import { hubFolder, isHubId } from './hub.js';
import { loadOpenClip, OPEN_CLIP_CONFIG } from './open_clip.js';
import { defaultProcessor } from './processor_config.js';
import { checkpointOf } from './run.js';

/** A checkpoint whose header was read and checked; weights come from `reader`, by Hugging Face name. */
export type Checkpoint = HfFolder;

/**
 * Opens a checkpoint by path or hub id; of a run's folder its newest one (`checkpointOf`). What exists on the disk wins over a hub id of the same spelling.
 * @throws CheckpointError naming the file and key or tensor; IoError when the disk or the network says no
 */
export async function openCheckpoint(
  source: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Checkpoint> {
  if (typeof source !== 'string' || source === '')
    throw new CheckpointError(
      `a checkpoint is named by a string, a folder, a .npz file or a hub id, but this is ${
        source === '' ? 'an empty one' : typeof source
      }`,
    );
  if (source.endsWith('.npz')) {
    const { config, reader } = await openBigVision(source);
    return {
      ...defaultProcessor(config),
      folder: null,
      config,
      reader,
      vocabulary: null,
      lowercase: 'ascii',
      tokenizer: undefined,
      noTokenizer: missingTokenizer(source, null, config.text.vocab, false),
    };
  }
  if (existsSync(source)) {
    if ((await stat(source)).isDirectory()) return openFolder(checkpointOf(source));
    throw (
      foreignFile(source) ??
      new CheckpointError(
        `${source}: is a file of another kind; give a folder with config.json or open_clip_config.json, or a .npz file`,
      )
    );
  }
  if (!isHubId(source))
    throw new CheckpointError(
      `${source}: does not exist; give a folder, a .npz file or a hub id like owner/name`,
    );
  return openFolder(await hubFolder(source, options));
}

/** A folder of Hugging Face, or of open_clip where that is all it is. */
async function openFolder(folder: string): Promise<Checkpoint> {
  const path = join(folder, 'config.json');
  const names = (
    await readdir(folder).catch((error: unknown) => {
      throw ioError('read', folder, error);
    })
  ).sort();
  const config = names.includes('config.json')
    ? ((await readJson(path)) as { model_type?: unknown; architecture?: unknown } | null)
    : undefined;
  const own =
    config?.model_type !== undefined &&
    names.some((name) => /^model\.safetensors(\.index\.json)?$/.test(name));
  const foreign = names.some((name) => /\.safetensors(\.index\.json)?$/.test(name))
    ? undefined
    : foreignFolder(folder, names);
  if (foreign) throw foreign;
  if (names.includes(OPEN_CLIP_CONFIG) && !own) return loadOpenClip(folder);
  if (config?.model_type === undefined && typeof config?.architecture === 'string') {
    throw new CheckpointError(
      `${path}: this folder holds an image tower of timm alone (${config.architecture}), but images are compared with texts here, so ` +
        'both towers are needed; give the open_clip folder (open_clip_config.json) that it was taken from',
    );
  }
  return loadHfFolder(folder);
}
