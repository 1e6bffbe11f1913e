/** A short training run, for `cores.test.ts`, which makes it in processes of its own. */
import { modelConfig } from '../lib/model/config.js';
import { Siglip2Model } from '../lib/model/siglip2.js';
import { sigmoidLoss } from '../lib/ops/sigmoid_loss.js';
import { AdamW } from '../lib/optim/optimizer.js';
import { backward } from '../lib/tape.js';
import { activeThreads, scope, tensor } from '../lib/tensor.js';

/** All parameters of a small model after eight steps, step i with `holds[i % holds.length]` threads at work. */
export async function trainedBytes(
  dtype: 'f32' | 'bf16',
  holds: readonly number[],
): Promise<Uint8Array> {
  const batch = 24,
    config = modelConfig('micro', { vocab: 512 }),
    { imageSize } = config.vision,
    { length, vocab } = config.text;
  const model = new Siglip2Model(config, { device: 'cpu', dtype, train: true });
  model.initialize(0);
  const optimizer = new AdamW(model.params, {
    lr: 1e-3,
    weightDecay: 1e-4,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    clip: 1,
    lrScale: {},
    ema: null,
  });
  const pixels = Uint8Array.from(
    { length: batch * imageSize ** 2 * 3 },
    (_, i) => ((i * 2654435761) >>> 7) % 256,
  );
  const ids = Int32Array.from(
    { length: batch * length },
    (_, i) => ((i * 2654435761) >>> 9) % vocab,
  );
  for (let i = 0; i < 8; i++) {
    activeThreads('cpu', holds[i % holds.length]);
    scope(() => {
      const x = model.encodeImages(tensor(pixels, [batch, imageSize, imageSize, 3]));
      const y = model.encodeTexts(tensor(ids, [batch, length]));
      model.params.zeroGrad();
      backward(sigmoidLoss(x, y, model.logitScale, model.logitBias));
      optimizer.update(1);
    });
  }
  const data = await model.params.values.read();
  optimizer.dispose();
  model.dispose();
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}
