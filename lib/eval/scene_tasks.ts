/** What a model is judged by on scenes, by name; `siglip2 eval --task` and the ablation run these. */

import type { LoadedModel } from '../checkpoints/load.js';
import { tokenizerOf } from '../checkpoints/tokenizer.js';
import { ConfigError } from '../errors.js';
import { embedImages, embedTexts } from '../inference/embed.js';
import { type CaptionRetrieval, captionRetrieval } from '../inference/retrieval.js';
import { type ReferringOptions, referringAccuracy, referringProbe } from './referring.js';
import { readScenes, type SceneSet } from './scenes.js';
import { segmentationProbe } from './segmentation.js';

export interface SceneTaskOptions extends ReferringOptions {
  /** Of the fitted probes. */
  seed?: number;
  /** Updates of the referring probe's decoder. */
  steps?: number;
  /** Passes of the segmentation probe. */
  epochs?: number;
}

type SceneTask = (
  loaded: LoadedModel,
  folder: string,
  test: SceneSet,
  options: SceneTaskOptions,
) => Promise<object>;

async function retrieval(
  loaded: LoadedModel,
  _folder: string,
  test: SceneSet,
): Promise<CaptionRetrieval> {
  const { model } = loaded,
    one = test.size ** 2 * 3;
  const kept = test.captions.flatMap((text, i) => (text === undefined ? [] : [{ text, i }]));
  const images = new Uint8Array(kept.length * one);
  kept.forEach(({ i }, k) => images.set(test.images.subarray(i * one, (i + 1) * one), k * one));
  const captions = kept.map(({ text }) => text),
    ids = await (await tokenizerOf(loaded)).encodeBatch(captions);
  return captionRetrieval(
    await embedImages(model, images, kept.length),
    await embedTexts(model, ids, kept.length),
    captions,
    model.config.embed,
    model.params.device,
  );
}

/**
 * - retrieval: recall at 1 between test scenes and their captions
 * - referring: the model's own decoder is asked for the box of every object
 * - referring-probe: the same of a fresh decoder on the frozen encoder
 * - segmentation: a linear probe on the frozen tokens
 */
export const SCENE_TASKS: Readonly<Record<string, SceneTask>> = {
  retrieval,
  referring: (loaded, _folder, test, options) => referringAccuracy(loaded, test, options),
  'referring-probe': (loaded, folder, test, options) =>
    referringProbe(loaded, folder, test, options),
  segmentation: async (loaded, folder, test, options) =>
    segmentationProbe(
      loaded.model,
      await readScenes(folder, { size: test.size, split: 'train' }),
      test,
      options,
    ),
};

/**
 * Runs tasks on the test split of a scenes folder, whose studios training never showed.
 * @returns scores by task
 * @throws ConfigError for an unknown task; DataError when the folder is no scenes dataset
 */
export async function evaluateScenes(
  loaded: LoadedModel,
  folder: string,
  tasks: readonly string[],
  options: SceneTaskOptions = {},
): Promise<Record<string, object>> {
  const unknown = tasks.find((t) => !Object.hasOwn(SCENE_TASKS, t));
  if (unknown !== undefined)
    throw new ConfigError(
      `no task is called "${unknown}"; the tasks on scenes are ${Object.keys(SCENE_TASKS).join(', ')}`,
    );
  const test = await readScenes(folder, { size: loaded.model.config.vision.imageSize });
  const results: Record<string, object> = {};
  for (const task of tasks) results[task] = await SCENE_TASKS[task]!(loaded, folder, test, options);
  return results;
}
