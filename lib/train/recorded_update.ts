/**
 * `graph: true`: the update of a batch recorded once and replayed, its images and token ids copied into tensors that stay
 * where they are. For the sigmoid loss on images of one size; other steps vary, and are enqueued op by op.
 */
import type { Batch } from '../data/batch.js';
import { DeviceError } from '../errors.js';
import type { Siglip2Model } from '../model/siglip2.js';
import type { AdamW } from '../optim/optimizer.js';
import { RecordedStep } from '../record.js';
import { type DeviceName, empty, type Tensor } from '../tensor.js';
import type { TrainConfig } from './config.js';
import type { Figures, Objectives } from './objectives.js';

/** Why no step of such a run can be replayed, or null. */
function whyNot(
  { objectives, selection, microBatch }: TrainConfig,
  model: Siglip2Model,
  device: DeviceName,
): string | null {
  if (device === 'cpu') return 'the CPU device records nothing';
  if (model.config.naflex) return 'the number of patches differs from batch to batch';
  if (objectives.caption) return 'the captioning losses draw other masks for every batch';
  if (objectives.distill) return 'self-distillation masks another number of patches in every batch';
  if (microBatch !== undefined) return 'micro-batches go through the towers twice';
  if (selection?.resolution !== undefined)
    return 'a part of the images is trained on at another size';
  return null;
}

export class RecordedUpdate {
  #images: Tensor | undefined;
  #ids: Tensor[] = [];
  #step: RecordedStep<Tensor[]> | undefined;
  #refused = false;

  private constructor(
    readonly model: Siglip2Model,
    readonly objectives: Objectives,
    readonly optimizer: AdamW,
    readonly note: (message: string) => void,
  ) {}

  /** Null, with a note of the reason, for a run whose steps cannot be replayed. */
  static open(
    config: TrainConfig,
    model: Siglip2Model,
    objectives: Objectives,
    optimizer: AdamW,
    note: (message: string) => void,
  ): RecordedUpdate | null {
    const reason = whyNot(config, model, model.params.device);
    if (reason === null) return new RecordedUpdate(model, objectives, optimizer, note);
    note(`graph: ${reason}; steps are enqueued op by op`);
    return null;
  }

  /** Whether steps are replayed by now. */
  get recorded(): boolean {
    return this.#step?.recorded ?? false;
  }

  /**
   * Enqueues gradients and update of a batch; the optimizer has its rates already. The batch's shapes are those of all
   * others: when they change, the step is recorded anew.
   * @param use enqueues what is to be read after the update
   * @returns the batch's figures and what `use` returned, or null when the step turned out not to be recordable: then
   * nothing has been enqueued
   */
  run<R>(batch: Batch, use: () => R): { figures: Promise<Figures>; after: R } | null {
    if (this.#refused) return null;
    this.#write(batch);
    const { model, objectives, optimizer } = this;
    this.#step ??= new RecordedStep(model.params.device, () => {
      model.params.zeroGrad();
      const losses = objectives.contrast(this.#images!, this.#ids);
      optimizer.apply();
      return losses;
    });
    try {
      return this.#step.run((losses) => ({
        figures: objectives.contrastFigures(losses),
        after: use(),
      }));
    } catch (e) {
      if (!(e instanceof DeviceError) || this.recorded) throw e;
      this.note(`graph: ${e.message}; steps are enqueued op by op`);
      this.#refused = true;
      this.dispose();
      return null;
    }
  }

  #write(batch: Batch): void {
    const {
      config: {
        vision: { imageSize: S },
        text: { length: L },
      },
      params: { device },
    } = this.model;
    const B = batch.size,
      captions = batch.ids.length / (B * L);
    if (this.#images?.shape[0] !== B || this.#ids.length !== captions) {
      this.dispose();
      this.#images = empty([B, S, S, 3], 'u8', device).detach();
      this.#ids = Array.from({ length: captions }, () => empty([B, L], 'i32', device).detach());
    }
    this.#images!.write(batch.images);
    this.#ids.forEach((t, c) => t.write(batch.ids.subarray(c * B * L, (c + 1) * B * L)));
  }

  dispose(): void {
    this.#step?.dispose();
    this.#step = undefined;
    for (const t of [this.#images, ...this.#ids]) t?.dispose();
    this.#images = undefined;
    this.#ids = [];
  }
}
