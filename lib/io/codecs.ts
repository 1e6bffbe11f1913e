/** Decompression of Parquet pages, and values that stand in them. */
import { compressors } from 'hyparquet-compressors';

/** Where in a compressed page a value stands. */
export interface InPage {
  codec: string;
  /** Bytes of the page when it is unpacked, and of the value in it. */
  unpacked: number;
  start: number;
  length: number;
}

type Codec = keyof typeof compressors;

/** Unpacks a page. Throws when it is damaged. */
export function unpackPage(
  bytes: Uint8Array,
  { codec, unpacked }: Pick<InPage, 'codec' | 'unpacked'>,
): Uint8Array {
  const unpack = compressors[codec as Codec];
  if (!unpack)
    throw new Error(
      `pages are compressed with ${codec}, which is not read; write the file again with zstd or snappy`,
    );
  const page = unpack(bytes, unpacked);
  if (page.length !== unpacked)
    throw new Error(`a page of ${unpacked} bytes unpacks to ${page.length}`);
  return page;
}

/** The codecs that are read. */
export const CODECS = Object.keys(compressors) as Codec[];
