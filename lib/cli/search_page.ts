/** The page of `siglip2 search`: every query's pictures in a grid, self-contained. */
import { pathToFileURL } from 'node:url';
import sharp from 'sharp';
import { escape } from '../eval/report/parts.js';
import { STYLE } from '../eval/report/style.js';

export interface SearchResult {
  query: string;
  /** Best first. */
  images: { file: string; probability: number; cosine: number }[];
}

const THUMBNAIL = 240;

/** A small WebP inside the page, so that it can be moved and sent; nothing for files that sharp cannot open, in tars say. */
async function thumbnail(file: string): Promise<string> {
  try {
    const data = await sharp(file)
      .autoOrient()
      .resize(THUMBNAIL, THUMBNAIL, { fit: 'inside' })
      .webp({ quality: 70 })
      .toBuffer();
    return `<img loading="lazy" alt="" src="data:image/webp;base64,${data.toString('base64')}">`;
  } catch {
    return '';
  }
}

/** @param total images that were searched */
export async function renderSearchPage(
  results: readonly SearchResult[],
  total: number,
): Promise<string> {
  const sections = await Promise.all(
    results.map(async ({ query, images }) => {
      const cells = await Promise.all(
        images.map(
          async ({ file, probability, cosine }) =>
            `<a class="hit" href="${escape(pathToFileURL(file).href)}">${await thumbnail(file)}<span>${escape(file.split('/').at(-1)!)}</span>` +
            `<small>${(100 * probability).toFixed(2)} % · cosine ${cosine.toFixed(3)}</small></a>`,
        ),
      );
      return `<section><h2 dir="auto">${escape(query)}</h2><div class="hits">${cells.join('')}</div></section>`;
    }),
  );
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>siglip2 search</title><style>${STYLE}
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.hit{display:flex;flex-direction:column;gap:4px;padding:8px;border:1px solid var(--line);border-radius:10px;background:var(--card);
color:inherit;text-decoration:none;overflow-wrap:anywhere}
.hit img{width:100%;height:150px;object-fit:contain}</style>
<main><h1>Search</h1><p class="note">${total} images. The percentage is the model's probability that query and picture belong
together (sigmoid of the logit); the order is what matters.</p>${sections.join('\n')}</main></html>
`;
}
