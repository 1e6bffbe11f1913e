/** What a config or a command says of a collection. */

import type { EmojiSplit } from './datasets/emoji.js';
import type { MemberNames } from './members.js';
import type { LanguageMix } from './mixture_order.js';

/** What of a collection is used, and how. */
export interface SourceChoice {
  /** Language of captions that do not say theirs. Default "en". */
  language?: string;
  /** A key list (`KeyList`): only the samples it names are used. */
  keys?: string;
  /** Which files, columns or keys are image and caption, where they are not the usual ones. */
  members?: MemberNames;
}

/** What to open; plain JSON, so that it can stand in a config. */
export type SourceSpec = SingleSourceSpec | MixtureSpec;

/**
 * One collection. `language` is that of captions that do not say theirs, "en" by default; "detect" identifies it from each
 * sample's captions.
 */
export type SingleSourceSpec =
  /** WebDataset tars: paths with `*`, `?` in the last part, or `{000..012}`, `{a,b}` anywhere. */
  | ({ type: 'webdataset'; tars: string | string[] } & SourceChoice)
  /** A folder (with subfolders) of images with a .txt or .json of the same stem. */
  | ({ type: 'folder'; path: string } & SourceChoice)
  /**
   * A .jsonl of `{image, caption | captions, ...}`, or a .parquet, .csv or .tsv with such columns; image paths are relative to
   * the manifest. `file_name` stands for `image` too, and a .parquet may hold the images. Patterns and folders of parts as for tars.
   */
  | ({ type: 'manifest'; path: string | string[] } & SourceChoice)
  /** The dataset that `buildEmojiDataset` makes: one split of it, or the studios named. */
  | { type: 'emoji'; path: string; split?: EmojiSplit; studios?: string[] }
  /** One split, train by default, of what `buildScenes` makes. */
  | { type: 'scenes'; path: string; split?: EmojiSplit };

/** Several collections as one; plain JSON. */
export interface MixtureSpec {
  type: 'mixture';
  sources: {
    /** In metrics and messages; default its position. */
    name?: string;
    /** Share of the draws, in any unit. All sources have one, or none: then only the quotas decide. */
    weight?: number;
    source: SingleSourceSpec;
  }[];
  languages?: LanguageMix;
}
