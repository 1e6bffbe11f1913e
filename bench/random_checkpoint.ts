/** Checkpoints of full size with random weights, for benchmarks that must not depend on a download. */
import { saveHfFolder } from '../lib/checkpoints/hf.js';
import type { ModelConfig } from '../lib/model/config.js';
import { parameterShapes } from '../lib/model/shapes.js';
import { seeded } from '../test/io/fuzz.js';

/** Writes a checkpoint of this shape with plausible values, tensor by tensor: the model itself would take long to start. */
export async function writeRandom(folder: string, config: ModelConfig): Promise<void> {
  const random = seeded(1),
    block = Float32Array.from({ length: 2 ** 16 }, () => 0.05 * (random() + random() - 1));
  await saveHfFolder(folder, {
    config,
    tensors: new Map(
      parameterShapes(config).map(({ name, shape, init }) => [
        name,
        {
          shape,
          dtype: 'F32',
          data: () => {
            const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
            if (init.kind === 'ones') return values.fill(1);
            for (let at = 0; at < values.length; at += block.length)
              values.set(block.subarray(0, values.length - at), at);
            return values;
          },
        },
      ]),
    ),
  });
}
