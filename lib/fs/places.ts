/** Where things are kept on this machine, and what the environment says of the hub, read as huggingface_hub reads it. */
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';

/** A variable's value; one that is empty counts as unset. */
function variable(...names: string[]): string | undefined {
  return names
    .map((name) => process.env[name])
    .find((value) => value !== undefined && value !== '');
}

/** Whether a switch is on: 1, ON, YES or TRUE in any case. */
function isOn(name: string): boolean {
  return ['1', 'ON', 'YES', 'TRUE'].includes((process.env[name] ?? '').toUpperCase());
}

/** The user's folder; undefined where there is none: no HOME, and no entry of the user. */
function home(): string | undefined {
  try {
    return homedir() || undefined;
  } catch {
    return undefined;
  }
}

/** `~` and `$NAME` in a path of the environment, as a shell would read them. */
function expanded(path: string): string {
  const named = path.replace(
    /\$(?:(\w+)|\{(\w+)\})/g,
    (whole, plain?: string, braced?: string) => process.env[plain ?? braced!] ?? whole,
  );
  return named === '~' || named.startsWith('~/') ? join(home() ?? tmpdir(), named.slice(1)) : named;
}

/** XDG_CACHE_HOME, else ~/.cache; undefined where there is no place for a cache. */
export function cacheHome(): string | undefined {
  const named = variable('XDG_CACHE_HOME'),
    own = home();
  return named !== undefined ? expanded(named) : own && join(own, '.cache');
}

/** HF_HOME, else huggingface in the cache. */
function hubHome(): string | undefined {
  const named = variable('HF_HOME'),
    cache = cacheHome();
  return named !== undefined ? expanded(named) : cache && join(cache, 'huggingface');
}

/** The hub's cache: HF_HUB_CACHE or HUGGINGFACE_HUB_CACHE, else `hub` in HF_HOME; undefined where there is no place for one. */
export function hubCache(): string | undefined {
  const named = variable('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE'),
    own = hubHome();
  return named !== undefined ? expanded(named) : own && join(own, 'hub');
}

/** The switch that forbids downloads, if one is on. */
export function offlineSwitch(): string | undefined {
  return ['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'].find(isOn);
}

/** The hub's token: of the environment, else the file that `hf auth login` wrote, unless HF_HUB_DISABLE_IMPLICIT_TOKEN. */
export function hubToken(read: (path: string) => string | undefined): string | undefined {
  const given = variable('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'),
    own = hubHome();
  if (given !== undefined) return given.trim();
  if (isOn('HF_HUB_DISABLE_IMPLICIT_TOKEN')) return undefined;
  const named = variable('HF_TOKEN_PATH'),
    path = named !== undefined ? expanded(named) : own && join(own, 'token');
  return (path && read(path)?.trim()) || undefined;
}
