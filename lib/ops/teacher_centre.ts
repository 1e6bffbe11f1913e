import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { empty, type Tensor } from '../tensor.js';

const meanOf = op<[mean: Handle, teacher: Handle, R: number, K: number]>('teacher_mean');
const update = op<[centre: Handle, mean: Handle, K: number, momentum: number]>('centre_update');
const statistics =
  op<[result: Handle, teacher: Handle, centre: Handle, R: number, K: number, temperature: number]>(
    'teacher_statistics',
  );

/**
 * Mean teacher logits of a batch, before centre and temperature. With several devices average it before `updateCentre`.
 * @param teacher (R, K), f32 or bf16
 * @returns (K) f32
 * @throws ShapeError
 */
export function teacherMean(teacher: Tensor): Tensor {
  const [R, K] = checkLogits('teacherMean', teacher);
  const mean = empty([K], 'f32', teacher.device);
  meanOf(mean.handle, teacher.handle, R, K);
  return mean;
}

/**
 * centre ← momentum · centre + (1 − momentum) · mean, in place.
 * @param centre (K) f32
 * @param mean (K) f32, from `teacherMean`
 * @throws ShapeError
 */
export function updateCentre(centre: Tensor, mean: Tensor, momentum: number): void {
  checkRank('updateCentre', 'centre', centre, 1);
  checkShape('updateCentre', 'mean', mean, centre.shape);
  check(
    momentum >= 0 && momentum <= 1,
    'updateCentre',
    `momentum must be in [0, 1] but is ${momentum}`,
  );
  update(centre.handle, mean.handle, centre.size, momentum);
}

/**
 * What tells a healthy teacher from a collapsed one, of its distributions `softmax((t − centre)/temperature)`.
 * @param teacher (R, K) logits, f32 or bf16
 * @param centre (K) f32
 * @returns (3) f32: mean entropy of a row, entropy of the mean distribution, largest share of a prototype in it (nats)
 * @throws ShapeError
 */
export function teacherStatistics(teacher: Tensor, centre: Tensor, temperature: number): Tensor {
  const [R, K] = checkLogits('teacherStatistics', teacher);
  checkShape('teacherStatistics', 'centre', centre, [K]);
  check(temperature > 0, 'teacherStatistics', `temperature must be positive but is ${temperature}`);
  const result = empty([3], 'f32', teacher.device);
  statistics(result.handle, teacher.handle, centre.handle, R, K, temperature);
  return result;
}

function checkLogits(name: string, teacher: Tensor): [R: number, K: number] {
  checkRank(name, 'teacher', teacher, 2);
  checkDType(name, 'teacher', teacher, 'f32', 'bf16');
  const [R, K] = teacher.shape as [number, number];
  check(R > 0 && K > 0, name, `teacher must have rows and columns but is [${R}, ${K}]`);
  return [R, K];
}
