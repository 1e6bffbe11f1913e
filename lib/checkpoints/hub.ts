/**
 * Checkpoints by their id on the Hugging Face hub, such as `google/siglip2-base-patch16-256` or `owner/name@revision`.
 * A snapshot that is in the hub's own cache is used without any network; otherwise the optional package
 * `@huggingface/hub` downloads it into that cache.
 */
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CheckpointError, IoError } from '../errors.js';
import { readTextLimited, writeFileAtomic } from '../fs/files.js';
import { hubCache, hubToken, offlineSwitch } from '../fs/places.js';
import { parseObject } from '../io/safetensors_header.js';
import { fromHfConfig } from './hf_config.js';

const ID = /^([\w-][\w.-]*\/[\w-][\w.-]*)(?:@([\w][\w./-]*))?$/;

/** Of a repository's files those that are read: no copies of the weights in other formats. */
const INPUTS =
  /^(config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|siglip2|open_clip_config)\.json$|^(tokenizer|spiece)\.model$/;
const WEIGHTS = /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/;
const OPEN_CLIP = /^open_clip_model\.safetensors$/;

/** Whether a text has the form of a hub id. */
export function isHubId(source: string): boolean {
  return ID.test(source);
}

export interface HubOptions {
  /** Another hub than huggingface.co; default HF_ENDPOINT when set. */
  endpoint?: string;
  signal?: AbortSignal | undefined;
}

/**
 * The folder of a checkpoint on the hub, downloaded when the cache lacks it. The token of the environment or of the login is
 * used for closed repositories; HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE forbid the download.
 * @throws CheckpointError when the id is malformed, or the cache lacks it and nothing may or can be downloaded; IoError
 *   when the download fails
 */
export async function hubFolder(id: string, options: HubOptions = {}): Promise<string> {
  const [, repo, revision = 'main'] = ID.exec(id) ?? [];
  if (repo === undefined || revision.split('/').includes('..'))
    throw new CheckpointError(`"${id}" is neither a path that exists nor a hub id like owner/name`);
  const cache = hubCache(),
    offline = offlineSwitch();
  if (cache === undefined)
    throw new CheckpointError(
      `${id}: there is no place for the hub's cache, since this user has no home; set HF_HOME or give a local folder`,
    );
  const cached = await cachedFolder(cache, repo, revision);
  if (cached !== undefined) return cached;
  if (offline !== undefined) {
    throw new CheckpointError(
      `${id}: is not in the cache ${cache} and ${offline} forbids to download it; unset it or give a local folder`,
    );
  }
  // A variable keeps the compiler from needing the package: it is optional.
  const name: string = '@huggingface/hub';
  const hub = await (import(name) as Promise<typeof import('@huggingface/hub')>).catch(
    (cause: unknown) => {
      throw new CheckpointError(
        `${id}: is no local path and is not in the hub's cache; to download it run: npm install @huggingface/hub`,
        { cause },
      );
    },
  );
  const endpoint = options.endpoint ?? process.env['HF_ENDPOINT'],
    token = hubToken(readToken);
  try {
    const all = {
      ...(endpoint ? { hubUrl: endpoint } : {}),
      ...(token ? { accessToken: token } : {}),
      fetch: ((url, init) =>
        fetch(url, {
          ...init,
          ...(options.signal ? { signal: options.signal } : {}),
        })) as typeof fetch,
    };
    const { sha } = await hub.modelInfo({
        ...all,
        name: repo,
        revision,
        additionalFields: ['sha'],
      }),
      names: string[] = [];
    for await (const entry of hub.listFiles({ ...all, repo, revision: sha }))
      if (entry.type === 'file') names.push(entry.path);
    const get = (path: string): Promise<string> =>
      hub.downloadFileToCacheDir({ ...all, repo, revision: sha, cacheDir: cache, path });
    const own = names.includes('config.json') && names.some((name) => WEIGHTS.test(name));
    // Gigabytes are worth while only if the model is one of these.
    if (own)
      fromHfConfig(
        parseObject(`${id}: config.json`, await readTextLimited(await get('config.json'))),
        undefined,
        `${id}: config.json`,
      );
    const wanted = names.filter(
      (name) => INPUTS.test(name) || (own ? WEIGHTS : OPEN_CLIP).test(name),
    );
    if (!own && !names.includes('open_clip_model.safetensors'))
      throw new CheckpointError(
        `${id}: has no model.safetensors and no open_clip_model.safetensors, so it is no checkpoint that is read here; it has ${names.slice(0, 8).join(', ') || 'no files'}`,
      );
    for (const name of wanted) await get(name);
    if (revision !== sha) {
      const ref = join(cache, `models--${repo.replace('/', '--')}`, 'refs', revision);
      await mkdir(dirname(ref), { recursive: true });
      await writeFileAtomic(ref, sha);
    }
    return join(cache, `models--${repo.replace('/', '--')}`, 'snapshots', sha);
  } catch (cause) {
    options.signal?.throwIfAborted();
    if (cause instanceof CheckpointError) throw cause;
    throw new IoError(
      `${id}: is no local path and cannot be downloaded from ${endpoint ?? 'the hub'} (${(cause as Error).message}); check the path or id, ` +
        'the network and HF_TOKEN',
      { cause },
    );
  }
}

/** What is in a file of the login; undefined when it cannot be read. */
function readToken(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** The snapshot in the cache, when its files are all there. */
async function cachedFolder(
  cache: string,
  repo: string,
  revision: string,
): Promise<string | undefined> {
  const base = join(cache, `models--${repo.replace('/', '--')}`);
  const commit = await readFile(join(base, 'refs', revision), 'utf8').then(
    (text) => text.trim(),
    () => revision,
  );
  if (!/^[\w.-]+$/.test(commit) || commit === '..') return undefined;
  const folder = join(base, 'snapshots', commit);
  if (
    existsSync(join(folder, 'open_clip_config.json')) &&
    existsSync(join(folder, 'open_clip_model.safetensors'))
  )
    return folder;
  const single = existsSync(join(folder, 'model.safetensors'));
  if (!existsSync(join(folder, 'config.json'))) return undefined;
  if (single) return folder;
  try {
    const index = JSON.parse(
      await readFile(join(folder, 'model.safetensors.index.json'), 'utf8'),
    ) as { weight_map: Record<string, string> };
    return Object.values(index.weight_map).every((file) => existsSync(join(folder, file)))
      ? folder
      : undefined;
  } catch {
    return undefined;
  }
}
