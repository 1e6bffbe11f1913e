import { afterEach, expect, test } from '@jest/globals';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { sslShapes } from '../../lib/model/ssl_head.js';
import { teacherStatistics } from '../../lib/ops/teacher_centre.js';
import { liveCount, scope, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import {
  deadTeacher,
  distanceParts,
  gradientParts,
  noSslGradient,
  type TeacherFigures,
  teacherAlarms,
} from '../../lib/train/alarms.js';
import { normal } from '../harness.js';

afterEach(() => expect(liveCount()).toBe(0));

const R = 64,
  K = 256;

async function figures(logits: Float32Array): Promise<TeacherFigures> {
  const s = scope(() => teacherStatistics(tensor(logits, [R, K]), zeros([K]), 0.1));
  const [entropy, entropyOfMean, largestShare] = (await s.read()) as Float32Array;
  s.dispose();
  return { entropy: entropy!, entropyOfMean: entropyOfMean!, largestShare: largestShare! };
}
const alarms = async (logits: Float32Array): Promise<string[]> =>
  teacherAlarms(await figures(logits), K, R);

async function total(parts: Tensor[]): Promise<number> {
  const values = await Promise.all(parts.map((p) => p.item()));
  for (const p of parts) p.dispose();
  return values.reduce((a, b) => a + b, 0);
}

test('a teacher with opinions that differ raises no alarm', async () => {
  expect(await alarms(normal(R * K, 1, 0.5))).toEqual([]);
  // Even when it is certain of each image: different prototypes for different images.
  expect(
    await alarms(
      Float32Array.from({ length: R * K }, (_, i) => (i % K === Math.floor(i / K) ? 9 : 0)),
    ),
  ).toEqual([]);
});

test('the same prototype for every image, no opinion, and numbers that are not finite', async () => {
  const same = await alarms(Float32Array.from({ length: R * K }, (_, i) => (i % K === 7 ? 9 : 0)));
  expect(same).toEqual([
    expect.stringMatching(/has collapsed: one prototype gets 100\.0 % of all targets/),
  ]);
  expect(await alarms(normal(R * K, 1, 1e-3))).toEqual([expect.stringMatching(/has no opinion/)]);
  expect((await alarms(new Float32Array(R * K).fill(NaN)))[0]).toMatch(/not finite/);
});

test('teacher = student is told from teacher ≠ student by a single bit', async () => {
  const config = modelConfig('test', { vocab: 9 });
  const model = new Siglip2Model(config, {
    train: true,
    extra: sslShapes(config, { hidden: 8, bottleneck: 4, prototypes: 6, patchPrototypes: 6 }),
  });
  model.initialize(1);
  const average = zeros([model.params.size]),
    values = (await model.params.values.read()) as Float32Array;
  average.write(values);
  const teacher = model.params.withValues(average);
  expect(await total(distanceParts(model.params, teacher, ''))).toBe(0);
  const at = model.params.segment('ssl.image_head.fc2.weight').offset + 3,
    bits = new Uint32Array(values.buffer, values.byteOffset + 4 * at, 1);
  bits[0]!++;
  average.write(values);
  const distance = await total(distanceParts(model.params, teacher, 'ssl.'));
  expect(distance).toBeGreaterThan(0);
  expect(await total(distanceParts(model.params, teacher, 'vision_model.'))).toBe(0);
  expect(deadTeacher(distance, 10)).toBeNull();
  expect(deadTeacher(0, 0)).toBeNull(); // before the first update they are equal by design
  expect(deadTeacher(0, 10)).toMatch(
    /equals the student bit for bit after 10 updates; set optimizer\.ema/,
  );

  expect(noSslGradient(Math.sqrt(await total(gradientParts(model.params, 'ssl.'))))).toMatch(
    /no gradient; its weight may be 0/,
  );
  const { offset, size } = model.params.segment('ssl.patch_head.fc1.bias');
  model.params.grads!.write(
    Float32Array.from({ length: model.params.size }, (_, i) =>
      i >= offset && i < offset + size ? 2 : 0,
    ),
  );
  const squares = await total(gradientParts(model.params, 'ssl.'));
  expect(squares).toBe(4 * size);
  expect(noSslGradient(squares)).toBeNull();
  expect(noSslGradient(NaN)).toMatch(/gradient share of NaN/);
  teacher.dispose();
  average.dispose();
  model.dispose();
});
