/**
 * Wrong captions on purpose, for experiments on curation: how well a score finds them, or how training with and without
 * selection stands them.
 */
import { ConfigError } from '../errors.js';
import { Random, Stream, shuffle } from '../random.js';
import type { Sample } from './sample.js';

/** How often a place for a sample's captions is drawn anew before it is given up. */
const TRIES = 1000;

/**
 * Gives a share of the samples each other's captions, in place. Which ones and whose follows from the seed alone. Nobody
 * gets captions of its own class, whose captions would be right.
 * @param samples of a collection; a sample without class is alone in its class
 * @param share in [0, 1]
 * @returns (N) 1 where the captions are another sample's
 * @throws ConfigError when so many samples are of one class that this cannot be
 */
export function swapCaptions(samples: Sample[], share: number, seed: number): Uint8Array {
  if (!(share >= 0 && share <= 1))
    throw new ConfigError(`noise.swapped must be in [0, 1] but is ${share}`);
  const random = new Random(seed, Stream.captionSwap),
    swapped = new Uint8Array(samples.length);
  const some = shuffle([...samples.keys()], random).slice(0, Math.round(share * samples.length));
  const from = shuffle([...some], random);
  const classOf = (i: number): number => samples[i]!.class ?? -1 - i;
  const right = (i: number, j: number): boolean => classOf(i) === classOf(j);
  some.forEach((i, k) => {
    for (let tries = 0; right(i, from[k]!); tries++) {
      if (tries === TRIES)
        throw new ConfigError(
          'noise.swapped: too few classes to give every sample wrong captions; lower it',
        );
      const other = random.below(some.length);
      if (right(i, from[other]!) || right(some[other]!, from[k]!)) continue;
      [from[k], from[other]] = [from[other]!, from[k]!];
    }
  });
  const texts = from.map((j) => samples[j]!);
  some.forEach((i, k) => {
    const { captions, language } = texts[k]!;
    samples[i] = { ...samples[i]!, captions, language };
    swapped[i] = 1;
  });
  return swapped;
}
