/** A small random checkpoint with a trimmed Gemma vocabulary, and pictures, for tests of what runs whole models. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { modelFiles } from '../lib/checkpoints/load.js';
import { type ModelOverrides, modelConfig } from '../lib/model/config.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { collectIds, loadTokenizer } from '../lib/text/tokenizer.js';
import { VocabMap } from '../lib/text/vocab.js';

export const WORDS = [
  'a red apple',
  'a photo of a cat',
  'a picture of a dog',
  'Katze und Hund',
  '赤い車',
  'ein Foto: Haus',
  'the number 7.',
];

/** A folder that is gone when the process ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Writes a random model (variant `test`), changed by `change`, into a folder of its own; the path. */
export async function smallCheckpoint(
  overrides: ModelOverrides = {},
  change: (model: Siglip2Model) => void = () => undefined,
): Promise<string> {
  const folder = join(temporaryFolder(), 'model');
  const vocab = VocabMap.fromIds(await collectIds(await loadTokenizer(), WORDS));
  using model = new Siglip2Model(
    modelConfig('test', { vocab: vocab.size, initLogitBias: -2, ...overrides }),
  );
  model.initialize(5);
  change(model);
  mkdirSync(folder);
  await modelFiles(folder, model, { vocab, tokenizer: null, lowercase: 'ascii', ema: null });
  return folder;
}
