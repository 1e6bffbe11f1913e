/** Scores of images against texts, under the three names that tend to be mixed up. */
import { scores } from '../inference/retrieval.js';
import type { DeviceName } from '../tensor.js';
import type { Embeddings, OutputType } from './output.js';

/** Every image against every text; all matrices are (images, texts), row by row. */
export interface Similarity {
  images: number;
  texts: number;
  /** Dot products of the unit rows, in [−1, 1]. */
  cosine: Float32Array;
  /** t · cosine + b with the model's learned scale and bias. */
  logits: Float32Array;
  /**
   * sigmoid(logit): the probability that this pair belongs together. Pairs are judged one by one, so a row need not
   * sum to 1, and a small number can be the right answer: see docs/troubleshooting.md.
   */
  probabilities: Float32Array;
}

/** A label's scores for one image. */
export interface LabelScore {
  label: string;
  /** Position in the list of labels. */
  index: number;
  cosine: number;
  logit: number;
  /** sigmoid(logit). */
  probability: number;
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** @param scale t, not its logarithm */
export async function similarity(
  images: Embeddings<OutputType>,
  texts: Embeddings<OutputType>,
  scale: number,
  bias: number,
  device: DeviceName,
): Promise<Similarity> {
  const cosine =
    images.rows && texts.rows
      ? await scores(images.toFloat32(), texts.toFloat32(), images.dim, device)
      : new Float32Array(0);
  const logits = cosine.map((c) => scale * c + bias);
  return {
    images: images.rows,
    texts: texts.rows,
    cosine,
    logits,
    probabilities: logits.map(sigmoid),
  };
}

/** The labels of image `row`, most probable first; equal ones in the order of the list. */
export function ranked(s: Similarity, row: number, labels: readonly string[]): LabelScore[] {
  return labels
    .map((label, index) => {
      const at = row * s.texts + index;
      return {
        label,
        index,
        cosine: s.cosine[at]!,
        logit: s.logits[at]!,
        probability: s.probabilities[at]!,
      };
    })
    .sort((a, b) => b.logit - a.logit || a.index - b.index);
}

/** Means of groups of `size` neighbouring unit rows, back on the unit sphere; (rows / size, dim). */
export function meanRows(rows: Float32Array, dim: number, size: number): Float32Array {
  const out = new Float32Array(rows.length / size);
  for (let g = 0; g * size * dim < rows.length; g++) {
    const mean = out.subarray(g * dim, (g + 1) * dim);
    for (let i = 0; i < size; i++)
      for (let d = 0; d < dim; d++) mean[d]! += rows[(g * size + i) * dim + d]!;
    const norm = Math.hypot(...mean);
    for (let d = 0; d < dim; d++) mean[d]! /= norm || 1;
  }
  return out;
}
