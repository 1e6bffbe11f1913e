/** NaFlex grids, patches and packing, against the published table and code that works another way. */
import { afterAll, expect, test } from '@jest/globals';
import { ConfigError, DataError, ShapeError } from '../../lib/errors.js';
import type { RawImage } from '../../lib/image/image.js';
import {
  checkNaflexBatch,
  type NaflexBatch,
  naflexGrid,
  naflexImage,
  packNaflex,
} from '../../lib/image/naflex.js';
import { liveCount } from '../../lib/tensor.js';
import { generator } from '../harness.js';
import { pilResize } from './pil_resize.js';

afterAll(() => expect(liveCount()).toBe(0));

const LENGTHS = [64, 128, 256, 576, 784, 1024];
// height, width, grid for each of LENGTHS; patch 16.
const TABLE: [number, number, string][] = [
  [480, 640, '7×9 9×12 14×18 21×27 24×32 27×36'],
  [512, 512, '8×8 11×11 16×16 24×24 28×28 32×32'],
  [1080, 1920, '6×10 8×15 12×21 18×32 21×37 24×42'],
  [2200, 1700, '9×7 12×10 18×14 27×21 32×24 36×28'],
  [427, 640, '7×9 9×14 13×19 19×29 23×34 26×39'],
  [100, 1000, '3×21 4×32 5×50 8×72 9×87 10×100'],
  [1, 4000, '1×64 1×128 1×256 1×576 1×784 1×1024'],
];

test.each(TABLE)('grids of %d×%d', (height, width, grids) => {
  expect(LENGTHS.map((n) => naflexGrid(height, width, 16, n).join('×')).join(' ')).toBe(grids);
});

/** The largest scale at which the grid has at most M cells, without a search: some number of rows bounds it. */
function largestScale(h: number, w: number, P: number, M: number): number {
  let best = 0;
  for (let rows = 1; rows <= M; rows++)
    best = Math.max(best, Math.min((rows * P) / h, (Math.floor(M / rows) * P) / w));
  return Math.min(best, 100);
}
const cells = (side: number, scale: number, P: number): number =>
  Math.max(1, Math.ceil((side * scale) / P - 1e-9));

test('10,000 random sizes, thin ones and single pixels among them', () => {
  const r = generator(1),
    uniform = (from: number, to: number): number => from + ((r() + 1) / 2) * (to - from);
  const side = (): number =>
    r() < -0.8 ? 1 + Math.floor(uniform(0, 3)) : Math.floor(2 ** uniform(0, 13.5));
  const wrong: object[] = [];
  let open = 0;
  for (let i = 0; i < 10000; i++) {
    const h = side(),
      w = side(),
      P = [14, 16, 32][i % 3]!,
      M = i % 7 ? LENGTHS[i % 6]! : 1 + Math.floor(uniform(0, 1024));
    const [rows, columns] = naflexGrid(h, w, P, M);
    const scale = largestScale(h, w, P, M);
    // Bisection stops within 1e-5 below the largest scale. Where a side steps inside of that, either grid may come.
    const least = [h, w].map((n) => cells(n, Math.max(scale - 1e-5, 1e-6), P)),
      most = [h, w].map((n) => cells(n, scale, P));
    const grid = [rows, columns];
    if (least.join() !== most.join()) open++;
    const between = grid.every((n, k) => n >= least[k]! && n <= most[k]!);
    if (!between || rows * columns > M) wrong.push({ h, w, P, M, grid, least, most });
  }
  expect(wrong).toEqual([]);
  expect(open).toBeLessThan(200);
});

function picture(height: number, width: number, seed = 1): RawImage {
  const r = generator(seed);
  return {
    data: Uint8Array.from({ length: height * width * 3 }, () => (r() + 1) * 127.99),
    height,
    width,
    channels: 3,
  };
}

test.each([
  [30, 50, 8, 20],
  [1, 1, 16, 9],
  [3, 400, 4, 64],
  [400, 3, 14, 16],
  [64, 64, 16, 16],
])('%d×%d in patches of %d, at most %d of them', (height, width, P, M) => {
  const image = picture(height, width);
  const { patches, rows, columns } = naflexImage(image, P, M);
  expect([rows, columns]).toEqual(naflexGrid(height, width, P, M));
  const pixels = pilResize(image.data, height, width, 3, rows * P, columns * P);
  const want = new Uint8Array(patches.length);
  for (let y = 0; y < rows * P; y++)
    for (let x = 0; x < columns * P; x++)
      for (let c = 0; c < 3; c++) {
        const patch = Math.floor(y / P) * columns + Math.floor(x / P);
        want[(patch * P * P + (y % P) * P + (x % P)) * 3 + c] =
          pixels[(y * columns * P + x) * 3 + c]!;
      }
  expect(Buffer.from(patches).equals(Buffer.from(want))).toBe(true);
});

test('an image of one pixel fills the grid with its colour', () => {
  const pixel: RawImage = { data: Uint8Array.of(7, 80, 255), height: 1, width: 1, channels: 3 };
  const { patches, rows, columns } = naflexImage(pixel, 16, 256);
  // The scale stops at 100: 7 patches of 16 px cover 100 px.
  expect([rows, columns]).toEqual([7, 7]);
  expect(patches.every((v, i) => v === [7, 80, 255][i % 3])).toBe(true);
});

test('packing keeps the order and no padding', () => {
  const images = (
    [
      [20, 10, 12],
      [1, 90, 7],
      [9, 9, 1],
    ] as const
  ).map(([h, w, tokens], s) => naflexImage(picture(h, w, s), 4, tokens));
  const batch = packNaflex(images);
  const lengths = images.map((i) => i.rows * i.columns);
  expect([...batch.offsets]).toEqual([
    0,
    lengths[0],
    lengths[0]! + lengths[1]!,
    lengths[0]! + lengths[1]! + lengths[2]!,
  ]);
  expect([...batch.shapes]).toEqual(images.flatMap((i) => [i.rows, i.columns]));
  images.forEach((image, s) => {
    const part = batch.patches.subarray(batch.offsets[s]! * 48, batch.offsets[s + 1]! * 48);
    expect(Buffer.from(part).equals(Buffer.from(image.patches))).toBe(true);
  });
  expect(checkNaflexBatch(batch, 4)).toEqual({
    images: 3,
    tokens: lengths.reduce((a, b) => a + b),
    longest: Math.max(...lengths),
  });
});

test.each<[number, number, number, number, typeof DataError | typeof ConfigError, RegExp]>([
  [0, 5, 16, 64, DataError, /at least one pixel but is 0×5/],
  [5, 0, 16, 64, DataError, /5×0/],
  [-1, 5, 16, 64, DataError, /-1×5/],
  [1.5, 5, 16, 64, DataError, /1.5×5/],
  [NaN, 5, 16, 64, DataError, /NaN/],
  [5, 5, 0, 64, ConfigError, /patch must be a positive integer but is 0/],
  [5, 5, 16, 0, ConfigError, /maxTokens/],
  [5, 5, 16, 2.5, ConfigError, /maxTokens must be a positive integer but is 2.5/],
  [1, 2 ** 40, 16, 64, DataError, /too long for 64 patches/],
])(
  'a grid for %d×%d, patch %d, %d tokens is refused',
  (height, width, patch, tokens, type, message) => {
    expect(() => naflexGrid(height, width, patch, tokens)).toThrow(type);
    expect(() => naflexGrid(height, width, patch, tokens)).toThrow(message);
  },
);

test('an image whose bytes do not fit is refused', () => {
  expect(() => naflexImage({ ...picture(4, 4), width: 5 }, 4, 16)).toThrow(DataError);
  expect(() =>
    naflexImage({ data: new Uint8Array(64), height: 4, width: 4, channels: 4 }, 4, 16),
  ).toThrow(/48 bytes of RGB but has 64 in 4 channels/);
});

test.each<[string, Partial<NaflexBatch>, RegExp]>([
  ['no image', { offsets: Int32Array.of(0), shapes: new Int32Array(0) }, /at least one image/],
  ['no offsets', { offsets: new Int32Array(0) }, /at least one image/],
  [
    'shapes of another number of images',
    { shapes: Int32Array.of(1, 2) },
    /shapes must be \[2, 2\]/,
  ],
  [
    'offsets that do not begin with 0',
    { offsets: Int32Array.of(1, 2, 5) },
    /begin with 0 but begin with 1/,
  ],
  [
    'a grid that is not its number of patches',
    { shapes: Int32Array.of(1, 2, 1, 2) },
    /image 1 has 3 patches by its offsets but is 1×2/,
  ],
  [
    'negative sides',
    { shapes: Int32Array.of(-1, -2, 1, 3) },
    /image 0 has 2 patches by its offsets but is -1×-2/,
  ],
  [
    'patches cut off',
    { patches: new Uint8Array(5 * 48 - 1) },
    /patches must be \[5, 48\] but has 239 bytes/,
  ],
])('a batch with %s is refused', (_, change, message) => {
  const batch = {
    patches: new Uint8Array(5 * 48),
    offsets: Int32Array.of(0, 2, 5),
    shapes: Int32Array.of(1, 2, 3, 1),
  };
  expect(checkNaflexBatch(batch, 4)).toEqual({ images: 2, tokens: 5, longest: 3 });
  expect(() => checkNaflexBatch({ ...batch, ...change }, 4)).toThrow(ShapeError);
  expect(() => checkNaflexBatch({ ...batch, ...change }, 4)).toThrow(message);
});
