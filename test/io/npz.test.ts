/** Training checkpoints of big_vision: what lies beside the parameters, of whatever type, is passed over. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { convertCheckpoint } from '../../lib/checkpoints/convert.js';
import { modelFiles } from '../../lib/checkpoints/load.js';
import { writeFileAtomic } from '../../lib/fs/files.js';
import { readMember, readZip, zipChunks } from '../../lib/io/zip.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { liveCount } from '../../lib/tensor.js';

const root = mkdtempSync(join(tmpdir(), 'siglip2-npz-'));
afterAll(() => {
  rmSync(root, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

/** A .npy file with this header's dictionary. */
function npy(header: string, bytes = 8): Uint8Array {
  const head = Buffer.from(`\x93NUMPY\x01\x00\x00\x00${header}\n`, 'latin1');
  head.writeUInt16LE(head.length - 10, 8);
  return Buffer.concat([head, Buffer.alloc(bytes)]);
}
const plain = (descr: string, shape = '()', bytes = 8): Uint8Array =>
  npy(`{'descr': ${descr}, 'fortran_order': False, 'shape': ${shape}, }`, bytes);

/** Beside the parameters of a training run: moments, counters, flags, pickles, records. */
const BESIDE: Record<string, Uint8Array> = {
  'opt/0/mu/img/embedding/bias': plain("'|V2'", '(4,)'),
  'opt/0/count': plain("'<i4'", '()', 4),
  'extra/first_step': plain("'<i8'"),
  'extra/done': plain("'|b1'", '()', 1),
  'chrono/accum': plain("'|O'", '()', 60),
  'extra/name': plain("'<U7'", '()', 28),
  'extra/table': npy(
    "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,), }",
  ),
  'extra/long': npy(
    `{'descr': [${"('a', '<f4'), ".repeat(500)}], 'fortran_order': False, 'shape': (0,), }`,
    0,
  ),
};

const source = join(root, 'plain.npz');
beforeAll(async () => {
  const folder = join(root, 'hf');
  mkdirSync(folder);
  using model = new Siglip2Model(modelConfig('test', { vocab: 7 }));
  model.initialize(2);
  await modelFiles(folder, model, { vocab: null, tokenizer: null, lowercase: 'none', ema: null });
  await convertCheckpoint(folder, source, { format: 'npz' });
});

/** The .npz with other names of its arrays, and more of them. */
async function withArrays(
  name: string,
  rename: (key: string) => string,
  more: Record<string, Uint8Array>,
): Promise<string> {
  const file = await open(source),
    members = [...(await readZip(source, file)).values()],
    path = join(root, `${name}.npz`);
  await writeFileAtomic(
    path,
    zipChunks([
      ...members.map((member) => ({
        name: rename(member.name),
        data: async () => Buffer.from(await readMember(source, file, member)),
      })),
      ...Object.entries(more).map(([key, data]) => ({
        name: `${key}.npy`,
        data: async () => Buffer.from(data),
      })),
    ]),
  );
  await file.close();
  return path;
}

test.each<[string, (key: string) => string]>([
  ['beside params/', (key) => key],
  ['without params/', (key) => key.replace('params/', '')],
])('arrays %s may have any type', async (name, rename) => {
  const path = await withArrays(name.replace(/\W/g, ''), rename, BESIDE),
    back = `${path.slice(0, -4)}-back.npz`;
  const [a, b] = [await openCheckpoint(path), await openCheckpoint(source)];
  const tensor = 'vision_model.encoder.layers.1.mlp.fc1.weight';
  expect(await a.reader.readFloat32(tensor)).toEqual(await b.reader.readFloat32(tensor));
  for (const { reader } of [a, b]) await reader.close();
  await convertCheckpoint(path, back, { format: 'npz' });
});

test('a parameter of another type is refused by name', async () => {
  const path = await withArrays('integers', (key) => key, {});
  const wrong = await withArrays('wrong', (key) => (key === 'params/t.npy' ? 'extra/t.npy' : key), {
    'params/t': plain("'<i8'", '(1,)'),
  });
  await expect(openCheckpoint(wrong)).rejects.toThrow(
    /wrong.npz: member "params\/t.npy" has values of type "<i8"/,
  );
  const pickled = await withArrays(
    'pickled',
    (key) => (key === 'params/b.npy' ? 'extra/b.npy' : key),
    { 'params/b': plain("'|O'", '(1,)', 40) },
  );
  await expect(openCheckpoint(pickled)).rejects.toThrow(
    /member "params\/b.npy" has values of type "\|O"/,
  );
  const more = await withArrays('more', (key) => key, {
    'params/img/other': plain("'<f4'", '(2,)'),
  });
  await expect(openCheckpoint(more)).rejects.toThrow(
    /array "params\/img\/other" belongs to no two-tower model/,
  );
  await (await openCheckpoint(path)).reader.close();
});
