/** A collection made of several, drawn with weights by source and quotas by language, with an account of every draw. */
import { ConfigError } from '../../errors.js';
import { Mixture } from '../mixture.js';
import type { SampleSource } from '../sample_source.js';
import type { MixtureSpec, SingleSourceSpec } from '../spec.js';

/**
 * Fills a collection with the samples of a mixture's sources. Throws what `open` throws, and ConfigError when weights
 * and quotas cannot hold.
 */
export async function fillMixture(
  whole: SampleSource,
  spec: MixtureSpec,
  open: (spec: SingleSourceSpec) => Promise<SampleSource>,
): Promise<void> {
  const names = spec.sources.map(({ name }, i) => name ?? String(i));
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (names.length === 0) throw new ConfigError('mixture: it needs at least one source');
  if (twice !== undefined) throw new ConfigError(`mixture: two sources are called "${twice}"`);
  const sizes: number[] = [];
  for (const { source } of spec.sources) {
    const part = await open(source);
    sizes.push(part.length);
    append(whole, part);
  }
  whole.mixture = new Mixture(names, whole, sizes, spec);
}

/**
 * Adds a collection to another. Class ids stay where both have the same classes; others are moved behind those there
 * are, so that they cannot collide.
 */
function append(whole: SampleSource, part: SampleSource): void {
  const same =
    whole.classes !== undefined && JSON.stringify(part.classes) === JSON.stringify(whole.classes);
  const base = same
    ? 0
    : whole.samples.reduce((most, sample) => Math.max(most, (sample.class ?? -1) + 1), 0);
  if (!same) whole.classes = whole.length === 0 ? part.classes : undefined;
  for (const sample of part.samples)
    whole.samples.push({
      ...sample,
      index: whole.length,
      ...(sample.class === undefined ? {} : { class: sample.class + base }),
    });
  whole.fingerprint.append(part.fingerprint.mark);
  for (const list of part.sampleLanguages) whole.sampleLanguages.push(list);
  for (const [language, count] of part.languages)
    whole.languages.set(language, (whole.languages.get(language) ?? 0) + count);
  whole.skips.addAll(part.skips);
}
