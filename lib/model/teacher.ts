/**
 * The teacher of self-distillation: the moving average of the student's encoder and heads, which the optimizer keeps in
 * its own pass (SigLIP 2 §2.3; the momentum is fixed, for the teacher must go on learning from the texts), with the
 * running centres of its outputs.
 */
import { CheckpointError } from '../errors.js';
import { teacherMean, updateCentre } from '../ops/teacher_centre.js';
import { noGrad } from '../tape.js';
import { scope, type Tensor, zeros } from '../tensor.js';
import type { ParamStore } from './params.js';
import type { Siglip2Model } from './siglip2.js';
import { sslHead, tokensAt } from './ssl_head.js';
import { visionPool, visionTokens } from './vision.js';

/** Teacher logits of a batch. */
export interface TeacherOutput {
  /** (B, K) of the pooled global views. */
  image: Tensor;
  /** (M, K) of the masked patches. */
  patches: Tensor;
}

export class Teacher {
  /** The averaged parameters, for the same model code as the student's. */
  readonly params: ParamStore;
  /** (K) f32 each; zero until `updateCentres` or `write`. */
  readonly imageCentre: Tensor;
  readonly patchCentre: Tensor;
  /** Whether the centres have values. */
  centred = false;
  /** (K) f32 each: mean logits of the parts of the present batch so far. */
  readonly #imageMean: Tensor;
  readonly #patchMean: Tensor;

  /**
   * @param student a model with the heads of `sslShapes`
   * @param average the optimizer's moving average of them, which starts as a copy (`AdamW.resetEma`)
   */
  constructor(
    readonly student: Siglip2Model,
    average: Tensor,
  ) {
    this.params = student.params.withValues(average);
    const perPrototype = (head: string): Tensor =>
      zeros(
        [student.params.segment(`ssl.${head}.prototypes.weight`).shape[0]!],
        'f32',
        student.params.device,
      ).detach();
    [this.imageCentre, this.#imageMean] = [perPrototype('image_head'), perPrototype('image_head')];
    [this.patchCentre, this.#patchMean] = [perPrototype('patch_head'), perPrototype('patch_head')];
    this.refresh();
  }

  /** Takes the average's present values over; call after every update of it. Costs nothing with f32 activations. */
  refresh(): void {
    this.params.refreshCopy();
  }

  /**
   * Logits without gradient; one pass through the encoder serves both heads.
   * @param images (B, H, W, 3) u8 global views
   * @param rows (M) i32, the masked patches (`maskedRows`)
   */
  forward(images: Tensor, rows: Tensor): TeacherOutput {
    const { config, options } = this.student;
    return noGrad(() =>
      scope(() => {
        const tokens = visionTokens(this.params, config, images, options);
        return {
          image: sslHead(this.params, 'ssl.image_head', visionPool(this.params, config, tokens)),
          patches: sslHead(this.params, 'ssl.patch_head', tokensAt(tokens, rows)),
        };
      }),
    );
  }

  /**
   * Moves the centres towards this batch's means; call once the losses of the batch have used the old ones. Of a batch in
   * parts, call it for every part in order: the last one moves them.
   * @param before examples of the batch before this part
   * @param rest those after it
   */
  updateCentres(output: TeacherOutput, momentum: number, before = 0, rest = 0): void {
    const size = output.image.shape[0]!;
    scope(() => {
      updateCentre(this.#imageMean, teacherMean(output.image), before / (before + size));
      updateCentre(this.#patchMean, teacherMean(output.patches), before / (before + size));
    });
    if (rest > 0) return;
    this.centred = true;
    updateCentre(this.imageCentre, this.#imageMean, momentum);
    updateCentre(this.patchCentre, this.#patchMean, momentum);
  }

  /** What a checkpoint keeps of the teacher beside the average. */
  async read(): Promise<Map<string, Float32Array>> {
    const [image, patch] = await Promise.all([this.imageCentre.read(), this.patchCentre.read()]);
    return new Map([
      ['image_centre', image as Float32Array],
      ['patch_centre', patch as Float32Array],
    ]);
  }
  /** @throws CheckpointError when a centre is missing or of another size */
  write(state: ReadonlyMap<string, Float32Array>): void {
    for (const [name, to] of [
      ['image_centre', this.imageCentre],
      ['patch_centre', this.patchCentre],
    ] as const) {
      const data = state.get(name);
      if (data?.length !== to.size) {
        throw new CheckpointError(
          `the checkpoint's teacher state "${name}" has ${data?.length ?? 'no'} values where ` +
            `the heads need ${to.size}; resume with the config the stage was started with, or start the stage anew`,
        );
      }
      to.write(data);
      // All zero when the checkpoint was written before the first step.
      this.centred = data.some((v) => v !== 0);
    }
  }
  dispose(): void {
    this.params.dispose();
    for (const t of [this.imageCentre, this.patchCentre, this.#imageMean, this.#patchMean])
      t.dispose();
  }
}
