import { check, checkDType, checkRank, checkShape } from '../check.js';
import { type Handle, op } from '../native.js';
import { isRecording, lossWeight, needsGrad, record } from '../tape.js';
import { empty, type Tensor, zeros } from '../tensor.js';

const forwardBackward = op<
  [
    loss: Handle,
    dstudent: Handle,
    student: Handle,
    teacher: Handle,
    centre: Handle,
    weights: Handle,
    R: number,
    T: number,
    K: number,
    studentTemperature: number,
    teacherTemperature: number,
    scale: number,
  ]
>('distill_loss_forward_backward');
const scaleCast = op<[y: Handle, x: Handle, N: number, scale: number]>('scale_cast');

export interface DistillLossOptions {
  /** τ_s. */
  studentTemperature: number;
  /** τ_t: below τ_s it sharpens the target. */
  teacherTemperature: number;
  /** (R) f32, a factor for each student row; all 1 by default. */
  weights?: Tensor;
  /** What Σ weight·ce is divided by; by default R, which makes it the mean over the rows. */
  denominator?: number;
  /** Lets the gradient take the student logits' own memory, which then hold no logits any more. */
  overwriteStudent?: boolean;
}

/**
 * Self-distillation loss (DINO, SILC, SigLIP 2 §2.3): cross-entropy from the teacher's `softmax((t − c)/τ_t)` to the
 * student's `softmax(s/τ_s)`. Value and gradient are made in one visit of the logits; under noGrad(), or when nobody
 * wants the gradient, only the value is. The result must be a root of backward(), with its weight.
 * @param student (R, K) logits, f32 or bf16
 * @param teacher (T, K) logits of the same type, without gradient; student row r is matched with row r mod T, so views
 *   are stacked one view of all images after the other
 * @param centre (K) f32, subtracted from every teacher row
 * @returns (1) f32
 * @throws ShapeError
 */
export function distillLoss(
  student: Tensor,
  teacher: Tensor,
  centre: Tensor,
  options: DistillLossOptions,
): Tensor {
  const name = 'distillLoss';
  const {
    studentTemperature,
    teacherTemperature,
    weights = null,
    overwriteStudent = false,
  } = options;
  checkRank(name, 'student', student, 2);
  checkDType(name, 'student', student, 'f32', 'bf16');
  const [R, K] = student.shape as [number, number],
    T = teacher.shape[0] ?? 0,
    denominator = options.denominator ?? R;
  checkShape(name, 'teacher', teacher, [T, K]);
  checkDType(name, 'teacher', teacher, student.dtype);
  check(
    T > 0 && R % T === 0,
    name,
    `${R} student rows must be a multiple of the ${T} teacher rows`,
  );
  checkShape(name, 'centre', centre, [K]);
  checkDType(name, 'centre', centre, 'f32');
  if (weights) checkShape(name, 'weights', weights, [R]);
  for (const [key, v] of Object.entries({ studentTemperature, teacherTemperature, denominator }))
    check(v > 0 && Number.isFinite(v), name, `${key} must be a positive number but is ${v}`);
  const loss = zeros([1], 'f32', student.device);
  const wanted = isRecording() && needsGrad(student);
  const dstudent = !wanted
    ? null
    : overwriteStudent
      ? student.reshape(student.shape)
      : empty(student.shape, student.dtype, student.device);
  forwardBackward(
    loss.handle,
    dstudent?.handle ?? 0,
    student.handle,
    teacher.handle,
    centre.handle,
    weights?.handle ?? 0,
    R,
    T,
    K,
    studentTemperature,
    teacherTemperature,
    1 / denominator,
  );
  if (!dstudent) return loss;
  record({
    inputs: [student],
    outputs: [loss],
    saved: [dstudent],
    backward(dloss) {
      check(
        dloss === null,
        name,
        'the loss must be a root of backward() with a weight, not an input of another op',
      );
      const weight = lossWeight(loss);
      if (weight !== 1) scaleCast(dstudent.handle, dstudent.handle, dstudent.size, weight);
      return [dstudent.reshape(dstudent.shape)];
    },
  });
  dstudent.dispose(); // the tape holds it now, and only the tape
  return loss;
}
