import { checkDType } from '../check.js';
import { type Handle, op } from '../native.js';
import type { Tensor } from '../tensor.js';

const load = op<[y: Handle, file: number, offset: number, source: number, N: number]>('load_file');

/** Element types that `loadFile` reads. */
export type FileDtype = 'F32' | 'F16' | 'BF16';
const SOURCE: Record<FileDtype, number> = { F32: 0, F16: 1, BF16: 2 };

/**
 * Fills a CPU tensor with values of an open file, in stream order and without a copy in between.
 * @param y any shape, f32 or bf16; converted values are rounded to nearest even
 * @param place the descriptor must stay open until `synchronize()` resolves; it rejects when the file ends early
 * @throws ShapeError
 */
export function loadFile(y: Tensor, place: { fd: number; offset: number; dtype: FileDtype }): void {
  checkDType('loadFile', 'y', y, 'f32', 'bf16');
  load(y.handle, place.fd, place.offset, SOURCE[place.dtype], y.size);
}
