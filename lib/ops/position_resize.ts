import { check, checkDType, checkRank } from '../check.js';
import { type Handle, op } from '../native.js';
import { gradHandle, record } from '../tape.js';
import { empty, type Tensor, tensor } from '../tensor.js';

type Sizes = [S: number, T: number, G: number, D: number];
const forward =
  op<[y: Handle, position: Handle, shapes: Handle, offsets: Handle, ...Sizes]>(
    'position_resize_forward',
  );
const back = op<[dposition: Handle, dy: Handle, shapes: Handle, offsets: Handle, ...Sizes]>(
  'position_resize_backward',
);

/**
 * Position embeddings of NaFlex images: the learned grid, resized to the grid of each image by antialiased bilinear
 * interpolation with half-pixel centres (SigLIP 2 §2.4.2). No side is too long.
 * @param position (G·G, D) f32, row-major
 * @param shapes (S, 2) on the host: rows and columns of every image
 * @returns (T, D) f32, T = Σ rows·columns, images one after the other, each row-major
 * @throws ShapeError
 */
export function positionResize(position: Tensor, shapes: Int32Array): Tensor {
  checkRank('positionResize', 'position', position, 2);
  checkDType('positionResize', 'position', position, 'f32');
  const [cells, D] = position.shape as [number, number];
  const G = Math.sqrt(cells),
    S = shapes.length / 2;
  check(
    Number.isInteger(G) && G > 0,
    'positionResize',
    `position must be a square grid but has ${cells} rows`,
  );
  check(
    Number.isInteger(S),
    'positionResize',
    `shapes must be pairs of rows and columns but has ${shapes.length} values`,
  );
  const ends = new Int32Array(S + 1);
  for (let s = 0; s < S; s++) {
    const rows = shapes[2 * s]!,
      columns = shapes[2 * s + 1]!,
      end = ends[s]! + rows * columns;
    check(
      rows > 0 && columns > 0,
      'positionResize',
      `image ${s} must have rows and columns but is ${rows}×${columns}`,
    );
    check(end < 2 ** 31, 'positionResize', 'a batch must have less than 2³¹ patches');
    ends[s + 1] = end;
  }
  const sizes: Sizes = [S, ends[S]!, G, D];
  const y = empty([ends[S]!, D], 'f32', position.device);
  const grids = tensor(shapes, [S, 2], position.device),
    offsets = tensor(ends, [S + 1], position.device);
  forward(y.handle, position.handle, grids.handle, offsets.handle, ...sizes);
  record({
    inputs: [],
    outputs: [y],
    saved: [grids, offsets],
    params: [position],
    backward(dy) {
      back(gradHandle(position), dy!.handle, grids.handle, offsets.handle, ...sizes);
      return [];
    },
  });
  return y;
}
