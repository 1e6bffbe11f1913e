/**
 * Emoji artwork from icon sets: which icon draws which class, drawing it, and who made it under
 * which licence.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import sharp from 'sharp';
import { readJson } from '../../fs/files.js';
import '../../image/image.js'; // settings of sharp
import type { ClassText } from './emoji_captions.js';
import { legacyNames, studioNames } from './emoji_names.js';

/** A licence as the package states it. */
export interface PackageLicence {
  package: string;
  version: string;
  /** SPDX identifier. */
  licence: string;
  licenceUrl: string;
  attribution: string;
}

/** An icon set in Iconify's JSON format. */
export interface IconSet {
  icons: Record<string, Icon>;
  aliases?: Record<string, Icon & { parent: string }>;
  left?: number;
  top?: number;
  width?: number;
  height?: number;
}

interface Icon {
  body: string;
  left?: number;
  top?: number;
  width?: number;
  height?: number;
  hidden?: boolean;
  rotate?: number;
  hFlip?: boolean;
  vFlip?: boolean;
}

/** Letters and digits only, without accents: how icon sets abbreviate names. */
function compact(name: string): string {
  return name
    .normalize('NFKD')
    .replace(/\p{M}/gu, '')
    .toLowerCase()
    .replace(/&/g, 'and')
    .replace(/[^a-z0-9]/g, '');
}

function withoutSelectors(codePoints: string): string {
  return codePoints
    .toLowerCase()
    .split('-')
    .filter((c) => c !== 'fe0f')
    .join('-');
}

/** Which icon draws which class: by the set's code points where it has them, else by name. */
export function mapIcons(
  studio: string,
  folder: string,
  set: IconSet,
  classes: readonly ClassText[],
): Map<string, string> {
  const byCodePoints = new Set(classes.map((c) => c.codePoints));
  const byName = new Map<string, string>();
  const ambiguous = new Set<string>();
  for (const { codePoints, names } of classes) {
    const name = compact(names['en'] as string);
    if (byName.has(name)) ambiguous.add(name);
    byName.set(name, codePoints);
  }
  for (const name of ambiguous) byName.delete(name);

  const icons = new Map<string, string>();
  const claim = (codePoints: string | undefined, icon: string): void => {
    if (codePoints === undefined || !byCodePoints.has(codePoints) || icons.has(codePoints)) return;
    const found = set.icons[icon] ?? set.aliases?.[icon];
    if (found !== undefined) icons.set(codePoints, icon);
  };
  const chars = fs.existsSync(path.join(folder, 'chars.json'))
    ? (readJson(path.join(folder, 'chars.json')) as Record<string, string>)
    : {};
  for (const [codePoints, icon] of Object.entries(chars)) claim(withoutSelectors(codePoints), icon);
  if (icons.size > 0) return icons;
  const names = Object.keys(set.icons);
  const own = studioNames[studio] ?? {};
  for (const icon of names) claim(own[compact(icon)], icon);
  const rest = names.filter((icon) => own[compact(icon)] === undefined);
  for (const icon of rest) claim(byName.get(compact(icon)), icon);
  for (const icon of rest) claim(legacyNames[compact(icon)], icon);
  return icons;
}

/** An icon as a square SVG of `size` pixels; undefined when it is missing. */
export function svgOf(set: IconSet, name: string, size: number): string | undefined {
  let icon = set.icons[name];
  const transforms: string[] = [];
  const box = {
    left: set.left ?? 0,
    top: set.top ?? 0,
    width: set.width ?? 16,
    height: set.height ?? 16,
  };
  if (icon === undefined) {
    const alias = set.aliases?.[name];
    icon = alias === undefined ? undefined : set.icons[alias.parent];
    if (alias === undefined || icon === undefined) return undefined;
    const { width, height } = { ...box, ...icon };
    if (alias.hFlip) transforms.push(`translate(${width} 0) scale(-1 1)`);
    if (alias.vFlip) transforms.push(`translate(0 ${height}) scale(1 -1)`);
    if (alias.rotate) transforms.push(`rotate(${alias.rotate * 90} ${width / 2} ${height / 2})`);
  }
  const { left, top, width, height } = { ...box, ...icon };
  const body =
    transforms.length > 0 ? `<g transform="${transforms.join(' ')}">${icon.body}</g>` : icon.body;
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ' +
    `width="${size}" height="${size}" viewBox="${left} ${top} ${width} ${height}">${body}</svg>`
  );
}

/**
 * Draws an icon as a square RGBA PNG whose longer side the drawing fills, whatever margin its studio leaves: the drawing's
 * size is then what `place` says it is. Undefined when nothing is visible.
 * @param svg from svgOf(…, 2 * size)
 */
export async function render(svg: string, size: number): Promise<Buffer | undefined> {
  const large = 2 * size;
  const image = sharp(Buffer.from(svg)).resize(large, large, { fit: 'fill' }).ensureAlpha();
  const { data } = await image.raw().toBuffer({ resolveWithObject: true });
  let top = large,
    bottom = -1,
    left = large,
    right = -1;
  for (let y = 0; y < large; y++)
    for (let x = 0; x < large; x++) {
      if ((data[(y * large + x) * 4 + 3] as number) <= 32) continue;
      top = Math.min(top, y);
      bottom = y;
      left = Math.min(left, x);
      right = Math.max(right, x);
    }
  if (bottom < 0) return undefined;
  return sharp(data, { raw: { width: large, height: large, channels: 4 } })
    .extract({ left, top, width: right - left + 1, height: bottom - top + 1 })
    .resize(size, size, { fit: 'contain', background: { r: 0, g: 0, b: 0, alpha: 0 } })
    .png({ compressionLevel: 6 })
    .toBuffer();
}

/** What a package's own package.json says of it. */
export function packageVersion(folder: string): {
  version: string;
  license: string;
  homepage: string;
} {
  const data = readJson(path.join(folder, 'package.json')) as Record<string, unknown>;
  return {
    version: String(data['version']),
    license: String(data['license']),
    homepage: String(data['homepage']),
  };
}

/** Licence and author of an icon set, from its info.json. */
export function studioLicence(name: string, folder: string): PackageLicence {
  const info = readJson(path.join(folder, 'info.json')) as {
    name: string;
    author: { name: string; url: string };
    license: { title: string; spdx: string; url: string };
  };
  return {
    package: `@iconify-json/${name}`,
    version: packageVersion(folder).version,
    licence: info.license.spdx,
    licenceUrl: info.license.url,
    attribution: `${info.name} by ${info.author.name} (${info.author.url}), ${info.license.title}`,
  };
}
