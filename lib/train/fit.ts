/** What to switch on so that a training step fits into a given memory, found by planning it (lib/train/plan.ts). */
import { chosenDtype, type TrainConfig } from './config.js';
import { planStep, type StepPlan } from './plan.js';

/** Settings of the config that save memory. */
export type Savings = Partial<Pick<TrainConfig, 'dtype' | 'checkpointBlocks' | 'microBatch'>>;

/** One way to save. */
export interface Way {
  /** What to change in the config; nothing: it fits as it is. */
  changes: Savings;
  plan: StepPlan;
  /** FLOPs of the step over those of a step that computes nothing twice. */
  cost: number;
}

/**
 * The ways to fit into `bytes`, the fewest FLOPs first; empty when not even one image at a time fits. The micro-batch
 * of a way is the largest power of two that does.
 * @param asIs the plan of the config without changes
 */
export async function waysToFit(
  config: TrainConfig,
  device: 'cpu' | 'cuda',
  bytes: number,
  asIs: StepPlan,
): Promise<Way[]> {
  const ways: Way[] = [];
  const offer = (changes: Savings, plan: StepPlan | null): void => {
    if (plan && plan.peak <= bytes)
      ways.push({ changes, plan, cost: 1 + plan.recomputed / plan.flops.total });
  };
  const planned = (changes: Savings): Promise<StepPlan> =>
    planStep({ ...config, ...changes }, device);
  offer({}, asIs);
  // Narrower activations are free where the device multiplies them; what they do not solve, time does.
  const base: Savings =
    asIs.dtype === 'f32' && chosenDtype('auto', device) === 'bf16' ? { dtype: 'bf16' } : {};
  if (ways.length === 0 && base.dtype) offer(base, await planned(base));
  if (ways.length > 0) return ways;
  const checkpointed: Savings = { ...base, checkpointBlocks: true };
  if (!config.checkpointBlocks) offer(checkpointed, await planned(checkpointed));
  for (const changes of config.checkpointBlocks ? [base] : [base, checkpointed]) {
    const plan = await largestMicroBatch({ ...config, ...changes }, device, bytes);
    offer({ ...changes, ...(plan ? { microBatch: plan.microBatch } : {}) }, plan);
  }
  return ways.sort((a, b) => a.cost - b.cost);
}

/** The plan with the largest micro-batch that fits, a power of two below the present one; null when none does. */
async function largestMicroBatch(
  config: TrainConfig,
  device: 'cpu' | 'cuda',
  bytes: number,
): Promise<StepPlan | null> {
  let microBatch = 2 ** Math.ceil(Math.log2(config.microBatch ?? config.batch) - 1);
  // Two parts are planned quickly, and all of them take no more memory but for what is kept of the whole batch.
  for (; microBatch >= 1; microBatch /= 2)
    if (
      (
        await planStep(
          { ...config, batch: Math.min(config.batch, 2 * microBatch), microBatch },
          device,
        )
      ).peak <= bytes
    )
      break;
  for (; microBatch >= 1; microBatch /= 2) {
    const plan = await planStep({ ...config, microBatch }, device);
    if (plan.peak <= bytes) return plan;
  }
  return null;
}
