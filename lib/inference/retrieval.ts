/**
 * Zero-shot classification and retrieval from embeddings. Counting rules: scores are plain dot products; a class counts
 * as right when its *name* is right, since some languages give two classes one name; ties go to the first candidate.
 */
import { linear } from '../ops/linear.js';
import { noGrad } from '../tape.js';
import { type DeviceName, scope, tensor } from '../tensor.js';

/** Fractions in [0, 1]. */
export interface LanguageScores {
  /** Images whose best-scoring class name is theirs. */
  top1: number;
  top5: number;
  /** Names whose best-scoring picture, among one picture per class, shows their class. */
  t2i_r1: number;
  /** Of the same pictures, those whose best-scoring name is theirs. */
  i2t_r1: number;
}

/** Row-wise scores (n, m) of `a` (n, d) against `b` (m, d). */
export async function scores(
  a: Float32Array,
  b: Float32Array,
  d: number,
  device: DeviceName = 'cpu',
): Promise<Float32Array> {
  const n = a.length / d,
    m = b.length / d;
  const y = scope(() =>
    noGrad(() => linear(tensor(a, [n, d], device), tensor(b, [m, d], device), null)),
  );
  try {
    return (await y.read()) as Float32Array;
  } finally {
    y.dispose();
  }
}

/** Columns of the `k` largest values of one row, best first. */
export function topK(row: Float32Array, k: number): number[] {
  const best: number[] = [];
  for (let j = 0; j < row.length; j++) {
    if (best.length === k && !(row[j]! > row[best[k - 1]!]!)) continue;
    let at = best.length;
    while (at > 0 && row[j]! > row[best[at - 1]!]!) at--;
    best.splice(at, 0, j);
    if (best.length > k) best.pop();
  }
  return best;
}

/**
 * Scores of one language.
 * @param images (n, d) embeddings and `labels` (n), the row of `names` that is right
 * @param texts (k, d) embeddings of `names`
 */
export async function evaluateLanguage(
  images: Float32Array,
  labels: ArrayLike<number>,
  texts: Float32Array,
  names: readonly string[],
  d: number,
  device: DeviceName = 'cpu',
): Promise<LanguageScores> {
  const n = labels.length,
    k = names.length;
  const s = await scores(images, texts, d, device);
  let top1 = 0,
    top5 = 0;
  for (let i = 0; i < n; i++) {
    const right = names[labels[i]!];
    const best = topK(s.subarray(i * k, (i + 1) * k), 5);
    if (names[best[0]!] === right) top1++;
    if (best.some((j) => names[j] === right)) top5++;
  }
  // One picture per class, the first of each: retrieval in both directions over the same pairs.
  const first = new Map<number, number>();
  for (let i = 0; i < n; i++) if (!first.has(labels[i]!)) first.set(labels[i]!, i);
  const classes = [...first.keys()];
  let t2i = 0,
    i2t = 0;
  for (const c of classes) {
    let image = -1,
      text = -1,
      bestImage = -Infinity,
      bestText = -Infinity;
    for (const o of classes) {
      const down = s[first.get(o)! * k + c]!,
        across = s[first.get(c)! * k + o]!;
      if (down > bestImage) [image, bestImage] = [o, down];
      if (across > bestText) [text, bestText] = [o, across];
    }
    if (names[image] === names[c]) t2i++;
    if (names[text] === names[c]) i2t++;
  }
  return {
    top1: top1 / n,
    top5: top5 / n,
    t2i_r1: t2i / classes.length,
    i2t_r1: i2t / classes.length,
  };
}

/** Retrieval of scenes by their captions: fractions in [0, 1] whose best-scoring partner has the right caption. */
export interface CaptionRetrieval {
  t2i_r1: number;
  i2t_r1: number;
  /** Of guessing, both ways. */
  chance: number;
}

/**
 * Recall at 1 between images and their captions. What counts is the caption, for two images may have the same.
 * @param images (n, d) and `texts` (n, d) embeddings, row i of both of one pair
 * @param captions (n)
 */
export async function captionRetrieval(
  images: Float32Array,
  texts: Float32Array,
  captions: readonly string[],
  d: number,
  device: DeviceName = 'cpu',
): Promise<CaptionRetrieval> {
  const n = captions.length,
    hits = async (a: Float32Array, b: Float32Array): Promise<number> => {
      const s = await scores(a, b, d, device);
      return (
        captions.filter((c, i) => captions[topK(s.subarray(i * n, (i + 1) * n), 1)[0]!] === c)
          .length / n
      );
    };
  const often = new Map<string, number>();
  for (const c of captions) often.set(c, (often.get(c) ?? 0) + 1);
  const chance = [...often.values()].reduce((sum, k) => sum + (k / n) ** 2, 0);
  return { t2i_r1: await hits(texts, images), i2t_r1: await hits(images, texts), chance };
}
