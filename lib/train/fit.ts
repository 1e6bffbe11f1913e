/** What to switch on so that a training step fits into a given memory, found by planning it (lib/train/plan.ts). */
import type { TrainConfig } from './config.js';
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
export async function waysToFit(config: TrainConfig, device: 'cpu' | 'cuda', bytes: number, asIs: StepPlan): Promise<Way[]> {
  const way = (changes: Savings, plan: StepPlan): Way => ({ changes, plan, cost: 1 + plan.recomputed / plan.flops.total });
  if (asIs.peak <= bytes) return [way({}, asIs)];
  // Narrower activations are free; what they do not solve, time does.
  const base: Savings = asIs.dtype === 'f32' ? { dtype: 'bf16' } : {};
  const ways: Way[] = [];
  const attempt = async (changes: Savings): Promise<void> => {
    const plan = await planStep({ ...config, ...changes }, device);
    if (plan.peak <= bytes) ways.push(way(changes, plan));
  };
  if (base.dtype) await attempt(base);
  if (ways.length > 0) return ways;
  const checkpointed: Savings = { ...base, checkpointBlocks: true };
  if (!config.checkpointBlocks) await attempt(checkpointed);
  for (const changes of config.checkpointBlocks ? [base] : [base, checkpointed]) {
    const microBatch = await largestMicroBatch({ ...config, ...changes }, device, bytes);
    if (microBatch !== null) await attempt({ ...changes, microBatch });
  }
  return ways.sort((a, b) => a.cost - b.cost);
}

async function largestMicroBatch(config: TrainConfig, device: 'cpu' | 'cuda', bytes: number): Promise<number | null> {
  let microBatch = 2 ** Math.ceil(Math.log2(config.microBatch ?? config.batch) - 1);
  for (; microBatch >= 1; microBatch /= 2) {
    // Two parts take as much as all of them, but for what is kept of the whole batch; see the last line.
    const batch = Math.min(config.batch, 2 * microBatch);
    const { peak } = await planStep({ ...config, batch, microBatch }, device);
    if (peak <= bytes) break;
  }
  for (; microBatch >= 1; microBatch /= 2)
    if ((await planStep({ ...config, microBatch }, device)).peak <= bytes) return microBatch;
  return null;
}
