/** Self-distillation and masked prediction against PyTorch, written here from the formulas; the teacher; the heads. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, expect, test } from '@jest/globals';
import { script } from '../../bench/peers/pytorch/peer.js';
import {
  emptyViews,
  makeViews,
  type ViewBatch,
  viewsConfig,
  viewTargets,
} from '../../lib/image/views.js';
import { openSafetensors, writeSafetensors } from '../../lib/io/safetensors.js';
import { sslFactor } from '../../lib/losses/distill.js';
import { maskedRows } from '../../lib/losses/masked.js';
import { modelConfig } from '../../lib/model/config.js';
import { type ModelOptions, Siglip2Model } from '../../lib/model/siglip2.js';
import { sslShapes } from '../../lib/model/ssl_head.js';
import { resizeImage } from '../../lib/native.js';
import { teacherMean } from '../../lib/ops/teacher_centre.js';
import { AdamW } from '../../lib/optim/optimizer.js';
import { backward } from '../../lib/tape.js';
import { liveCount, scope, tensor } from '../../lib/tensor.js';
import { SelfDistillation } from '../../lib/train/self_distillation.js';
import { errorOf } from '../data/support.js';
import { generator, normal } from '../harness.js';
import { answer } from '../oracle.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-ssl-'));
const path = (name: string): string => join(folder, name);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

const B = 3,
  STEPS = 25,
  VIEWS = 4,
  GLOBAL = 32,
  LOCAL = 16;
const HEAD = { hidden: 24, bottleneck: 12, prototypes: 40, patchPrototypes: 56 };
const CONFIG = modelConfig('test', { vocab: 17 });
const WEIGHTS = { distillWeight: 0.7, maskedWeight: 0.3 };
const ADAM = {
  lr: 1e-3,
  weightDecay: 1e-4,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  clip: 1,
  lrScale: {},
  ema: 0.9,
};

/** The losses and every gradient in float64. F.interpolate's antialiased bilinear filter is the positions' resize. */
const PEER = `
import json, sys
import numpy as np, torch, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import safetensors_io
from two_tower import VisionTower
read = lambda name: safetensors_io.read(sys.argv[2] + "/" + name)
config = json.load(open(sys.argv[2] + "/model.json"))
o, batch = config["ssl"], {k: torch.from_numpy(v) for k, v in read("views.safetensors").items()}

def build(file):
    weights = {k: torch.from_numpy(v).double() for k, v in read(file).items()}
    tower = VisionTower(config).double()
    own = dict(tower.named_parameters())
    for name, p in own.items():
        if ".qkv." in name:
            p.data = torch.cat([weights["vision_model." + name.replace(".qkv.", f".{x}_proj.")] for x in "qkv"])
        else:
            p.data = weights["vision_model." + name].clone()
    heads = {k: v.requires_grad_() for k, v in weights.items() if k.startswith("ssl.")}
    return tower, heads

def tokens(tower, heads, images, mask=None):
    p, e = tower.patch, tower.embeddings
    b, h, w = len(images), images.shape[1] // p, images.shape[2] // p
    x = images[:, :h * p, :w * p].double() / 127.5 - 1
    x = x.view(b, h, p, w, p, 3).permute(0, 1, 3, 5, 2, 4).reshape(b, h * w, -1)
    x = F.linear(x, e.patch_embedding.weight.flatten(1), e.patch_embedding.bias)
    if mask is not None:
        x = torch.where(mask.bool()[:, :, None], heads["ssl.mask_token"], x)
    grid = e.position_embedding.weight.view(1, tower.side, tower.side, -1).permute(0, 3, 1, 2)
    if (h, w) != (tower.side, tower.side):
        grid = F.interpolate(grid, (h, w), mode="bilinear", antialias=True, align_corners=False)
    x = x + grid.flatten(2).transpose(1, 2)
    return tower.post_layernorm(tower.encoder(x))

def head(heads, name, x):
    layer = lambda part, x: F.linear(x, heads[f"ssl.{name}.{part}.weight"], heads[f"ssl.{name}.{part}.bias"])
    gelu = lambda x: F.gelu(x, approximate="tanh")
    x = F.normalize(layer("fc3", gelu(layer("fc2", gelu(layer("fc1", x))))), dim=-1)
    return F.linear(x, F.normalize(heads[f"ssl.{name}.prototypes.weight"], dim=-1))

def loss(student, teacher, centre):
    p = ((teacher - centre) / o["teacher"]).softmax(-1)
    return -(p * (student / o["student"]).log_softmax(-1)).sum(-1).mean()

tower, heads = build("student.safetensors")
with torch.no_grad():
    t_tower, t_heads = build("teacher.safetensors")
    seen = tokens(t_tower, t_heads, batch["global"])
    t_image = head(t_heads, "image_head", t_tower.head(seen))
    mask = batch["mask"].bool()
    t_patch = head(t_heads, "patch_head", seen[mask])
local = head(heads, "image_head", tower.head(tokens(tower, heads, batch["local"])))
distill = loss(local, t_image.repeat(o["views"], 1), batch["image_centre"].double())
patch = head(heads, "patch_head", tokens(tower, heads, batch["global"], batch["mask"])[mask])
masked = loss(patch, t_patch, batch["patch_centre"].double())
(o["distillWeight"] * distill + o["maskedWeight"] * masked).backward()
grads = {"out.losses": np.array([distill.item(), masked.item()])}
m = o["centreMomentum"]
for name, logits in (("image_centre", t_image), ("patch_centre", t_patch)):
    grads["out." + name] = (m * batch[name].double() + (1 - m) * logits.mean(0)).numpy()
p = ((t_image - batch["image_centre"].double()) / o["teacher"]).softmax(-1)
entropy = lambda p: -(p * p.log()).sum(-1)
grads["out.statistics"] = np.array([entropy(p).mean(), entropy(p.mean(0)), p.mean(0).max()])
for name, p in tower.named_parameters():
    parts = zip("qkv", p.grad.chunk(3)) if ".qkv." in name else [("", p.grad)]
    for letter, part in parts:
        grads["vision_model." + name.replace(".qkv.", f".{letter}_proj.")] = part.contiguous().numpy()
grads.update({name: p.grad.numpy() for name, p in heads.items()})
safetensors_io.write(sys.argv[2] + "/grads.safetensors", grads)
`;

function views(): ViewBatch {
  const r = generator(5);
  const pixels = (n: number): Uint8Array =>
    Uint8Array.from({ length: n * 3 }, (_, i) => 127.5 * (1 + 0.5 * Math.sin(i / 31) + 0.5 * r()));
  const masks = new Uint8Array(B * 16);
  for (let b = 0; b < B; b++)
    for (let i = 0; i < 8; i++) masks[b * 16 + ((i * (2 * b + 3) + b) % 16)] = 1;
  return {
    globalViews: pixels(B * GLOBAL * GLOBAL),
    localViews: pixels(VIEWS * B * LOCAL * LOCAL),
    masks,
    globalSize: GLOBAL,
    localSize: LOCAL,
  };
}

function make(options: ModelOptions = {}): {
  model: Siglip2Model;
  optimizer: AdamW;
  ssl: SelfDistillation;
} {
  const model = new Siglip2Model(CONFIG, {
    train: true,
    extra: sslShapes(CONFIG, HEAD),
    ...options,
  });
  model.initialize(3);
  const optimizer = new AdamW(model.params, ADAM);
  optimizer.resetEma();
  return { model, optimizer, ssl: new SelfDistillation(model, optimizer, WEIGHTS) };
}
function free({ model, optimizer, ssl }: ReturnType<typeof make>): void {
  ssl.dispose();
  optimizer.dispose();
  model.dispose();
}

/** One forward and backward pass; what it gave, read. */
async function run(
  { model, ssl }: ReturnType<typeof make>,
  batch: ViewBatch,
): Promise<Record<string, number[]>> {
  const keep = scope(() => {
    model.params.zeroGrad();
    const { roots, distill, masked, imageStatistics } = ssl.losses(batch);
    backward(roots);
    return [distill, masked, imageStatistics];
  });
  const [distill, masked, statistics] = await Promise.all(
    keep.map(async (t) => Array.from(await t.read())),
  );
  for (const t of keep) t.dispose();
  return { losses: [...distill!, ...masked!], statistics: statistics! };
}

function relative(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let error = 0,
    norm = 0;
  for (let i = 0; i < b.length; i++) {
    error += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return a.length === b.length ? Math.sqrt(error / norm) : NaN;
}

test.each([false, true])(
  'losses, centres and all gradients equal PyTorch (checkpointing %p)',
  async (checkpoint) => {
    const all = make({ checkpoint });
    const { model, optimizer, ssl } = all;
    // A teacher that differs from the student, and centres that are not zero.
    const average = (await optimizer.ema!.read()) as Float32Array;
    const noise = normal(average.length, 8, 0.03);
    optimizer.ema!.write(average.map((v, i) => v + noise[i]!));
    ssl.afterUpdate();
    const centres = new Map([
      ['image_centre', normal(HEAD.prototypes, 21, 0.1)],
      ['patch_centre', normal(HEAD.patchPrototypes, 22, 0.1)],
    ]);
    ssl.teacher.write(centres);
    const batch = views();

    const tensors = async (source = model.params.values) =>
      [...(await model.params.read(source))].map(([name, t]) => ({
        name,
        dtype: 'F32' as const,
        ...t,
      }));
    await writeSafetensors(path('student.safetensors'), await tensors());
    await writeSafetensors(path('teacher.safetensors'), await tensors(optimizer.ema!));
    await writeSafetensors(path('views.safetensors'), [
      { name: 'global', dtype: 'U8', shape: [B, GLOBAL, GLOBAL, 3], data: batch.globalViews },
      { name: 'local', dtype: 'U8', shape: [VIEWS * B, LOCAL, LOCAL, 3], data: batch.localViews },
      { name: 'mask', dtype: 'U8', shape: [B, 16], data: batch.masks },
      ...[...centres].map(([name, data]) => ({
        name,
        dtype: 'F32' as const,
        shape: [data.length],
        data,
      })),
    ]);
    const { temperatures, ...rest } = ssl.options;
    writeFileSync(
      path('model.json'),
      JSON.stringify({ ...CONFIG, ssl: { ...temperatures, ...rest, views: VIEWS } }),
    );
    answer('self-distillation', {
      args: ['-c', PEER, dirname(script('grads.py')), folder],
      writes: [path('grads.safetensors')],
    });

    const { losses, statistics } = await run(all, batch);
    const reader = await openSafetensors(path('grads.safetensors'));
    const want = (name: string): Promise<Float32Array> => reader.readFloat32(name);
    const theirs = await want('out.losses');
    losses!.forEach((l, i) => expect(Math.abs(l - theirs[i]!) / theirs[i]!).toBeLessThan(1e-5));
    expect(relative(statistics!, await want('out.statistics'))).toBeLessThan(1e-5);
    for (const [name, c] of await ssl.teacher.read())
      expect(relative(c, await want(`out.${name}`))).toBeLessThan(1e-5);
    let compared = 0;
    for (const [name, { data }] of await model.params.read(model.params.grads!)) {
      if (!/^(vision_model|ssl)\./.test(name)) {
        expect(data.every((g) => g === 0)).toBe(true);
        continue;
      }
      const g = await want(name);
      // A key bias shifts every logit of a row alike, so its gradient is zero but for rounding.
      if (/k_proj\.bias$/.test(name)) expect(Math.hypot(...g)).toBeLessThan(1e-6);
      else if (name.endsWith('in_proj_bias'))
        expect(
          relative(
            data.filter((_, i) => Math.floor(i / 32) !== 1),
            g.filter((_, i) => Math.floor(i / 32) !== 1),
          ),
        ).toBeLessThan(1e-5);
      else
        expect({ name, error: relative(data, g) < 1e-5 ? 'small' : relative(data, g) }).toEqual({
          name,
          error: 'small',
        });
      compared++;
    }
    await reader.close();
    expect(compared).toBe(
      model.params.segments.filter((s) => /^(vision_model|ssl)\./.test(s.name)).length,
    );
    free(all);
  },
  120000,
);

test('the teacher starts as a copy and then follows the student by its momentum, heads included', async () => {
  const all = make();
  const { model, optimizer, ssl } = all;
  const before = (await model.params.values.read()) as Float32Array;
  expect(await ssl.teacher.params.values.read()).toEqual(before);
  await run(all, views());
  optimizer.update(1);
  ssl.afterUpdate();
  const after = (await model.params.values.read()) as Float32Array,
    teacher = (await ssl.teacher.params.values.read()) as Float32Array;
  const want = after.map((v, i) => 0.9 * before[i]! + 0.1 * v);
  expect(relative(teacher, want)).toBeLessThan(1e-7);
  for (const name of [
    'ssl.image_head.fc1.weight',
    'ssl.patch_head.prototypes.weight',
    'ssl.mask_token',
    'vision_model.head.probe',
  ]) {
    const { offset, size } = model.params.segment(name);
    expect({
      name,
      moved: teacher.subarray(offset, offset + size).some((v, i) => v !== before[offset + i]),
    }).toEqual({ name, moved: true });
  }
  free(all);
});

test('the centres start at the means of the first batch, unless a checkpoint has some', async () => {
  const all = make(),
    { ssl } = all;
  const means = await Promise.all(
    scope(() => {
      const said = ssl.teacher.forward(
        tensor(views().globalViews, [B, GLOBAL, GLOBAL, 3]),
        tensor(maskedRows(views().masks), [B * 8]),
      );
      return [teacherMean(said.image), teacherMean(said.patches)];
    }).map(async (t) => {
      const values = await t.read();
      t.dispose();
      return values;
    }),
  );
  await run(all, views());
  const after = await ssl.teacher.read();
  expect(relative(after.get('image_centre')!, means[0] as Float32Array)).toBeLessThan(1e-6);
  expect(relative(after.get('patch_centre')!, means[1] as Float32Array)).toBeLessThan(1e-6);
  const given = new Map([...after].map(([name, c]) => [name, c.map((v) => v + 1)]));
  ssl.teacher.write(given);
  await run(all, views());
  expect(
    relative(
      (await ssl.teacher.read()).get('image_centre')!,
      given.get('image_centre')!.map((v) => v - 0.1),
    ),
  ).toBeLessThan(1e-5);
  free(all);
});

test(`both losses fall over ${STEPS} steps, and two runs give the same bits`, async () => {
  const once = async (): Promise<{ losses: number[][]; weights: Float32Array }> => {
    const all = make();
    const losses: number[][] = [];
    for (let i = 0; i < STEPS; i++) {
      losses.push((await run(all, views()))['losses']!);
      all.optimizer.update(1);
      all.ssl.afterUpdate();
    }
    const weights = (await all.model.params.values.read()) as Float32Array;
    free(all);
    return { losses, weights };
  };
  const a = await once(),
    b = await once();
  expect(b).toEqual(a);
  for (const k of [0, 1]) expect(a.losses.at(-1)![k]!).toBeLessThan(a.losses[0]![k]! * 0.95);
}, 120000);

test('bf16 activations: a finite loss near that of f32, and a teacher copy that follows', async () => {
  const half = make({ dtype: 'bf16' }),
    full = make();
  const got = await run(half, views()),
    want = await run(full, views());
  got['losses']!.forEach((l, i) =>
    expect(Math.abs(l - want['losses']![i]!) / l).toBeLessThan(0.02),
  );
  half.optimizer.update(1);
  half.ssl.afterUpdate();
  const values = (await half.ssl.teacher.params.values.read()) as Float32Array,
    copy = (await half.ssl.teacher.params.copy!.read()) as Uint16Array;
  const wide = new Float32Array(Uint32Array.from(copy, (w) => w << 16).buffer);
  expect(relative(wide, values)).toBeLessThan(0.005);
  free(half);
  free(full);
});

test('parameters that join later have their own bias correction and leave the others alone', async () => {
  const ends: Float32Array[] = [];
  for (const since of [{}, { 'ssl.': 5 }]) {
    const model = new Siglip2Model(CONFIG, { train: true, extra: sslShapes(CONFIG, HEAD) });
    model.initialize(3);
    const optimizer = new AdamW(model.params, { ...ADAM, weightDecay: 0, clip: 1e9, since });
    optimizer.step = 5;
    model.params.grads!.write(normal(model.params.size, 4));
    optimizer.update(1);
    ends.push((await model.params.values.read()) as Float32Array);
    if ('ssl.' in since) {
      // The first bias-corrected step is lr · sign(g); it is the heads' first although the run is at its sixth.
      const start = new Siglip2Model(CONFIG, { extra: sslShapes(CONFIG, HEAD) });
      start.initialize(3);
      const from = (await start.params.values.read()) as Float32Array,
        { offset, size } = model.params.segment('ssl.image_head.fc2.weight');
      const moved = ends[1]!
        .subarray(offset, offset + size)
        .map((v, i) => Math.abs(v - from[offset + i]!));
      for (const d of moved) expect(Math.abs(d - ADAM.lr)).toBeLessThan(1e-6);
      expect(
        ends[1]!.subarray(0, model.params.segment('ssl.image_head.fc1.weight').offset),
      ).toEqual(ends[0]!.subarray(0, model.params.segment('ssl.image_head.fc1.weight').offset));
      expect(ends[1]!.subarray(offset, offset + size)).not.toEqual(
        ends[0]!.subarray(offset, offset + size),
      );
      start.dispose();
    }
    optimizer.dispose();
    model.dispose();
  }
});

test("views made by the data pipeline fit the losses; weights are the paper's unless given", async () => {
  const { optimizer, ssl: given, model } = make();
  const ssl = new SelfDistillation(model, optimizer);
  expect(ssl.options).toMatchObject({
    distillWeight: 0.25,
    maskedWeight: 0.0625,
    centreMomentum: 0.9,
    temperatures: { student: 0.1, teacher: 0.04 },
  });
  expect(
    ['B/16', 'L/16', 'So400m/14', 'g-opt/16', 'micro'].map((name) => sslFactor(modelConfig(name))),
  ).toEqual([0.25, 0.5, 1, 0.5, 0.25]);
  const config = viewsConfig(GLOBAL, CONFIG.vision.patch),
    batch = emptyViews(config, B),
    r = generator(6);
  for (let b = 0; b < B; b++) {
    const image = {
      height: 40,
      width: 50,
      channels: 3 as const,
      data: Uint8Array.from({ length: 40 * 50 * 3 }, () => 127 * (1 + r())),
    };
    makeViews(
      image,
      config,
      { seed: 1, epoch: 0, sample: b },
      resizeImage,
      viewTargets(batch, b, config),
    );
  }
  const { losses } = await run({ model, optimizer, ssl }, batch);
  expect(losses!.every(Number.isFinite)).toBe(true);
  ssl.dispose();
  free({ model, optimizer, ssl: given });
});

test('no moving average, no masked patch, a missing centre, a wrong head: each says what to do', async () => {
  const model = new Siglip2Model(CONFIG, { train: true, extra: sslShapes(CONFIG, HEAD) });
  model.initialize(3);
  const without = new AdamW(model.params, { ...ADAM, ema: null });
  expect((await errorOf(() => new SelfDistillation(model, without))).message).toMatch(
    /set optimizer\.ema/,
  );
  without.dispose();
  model.dispose();
  const all = make();
  const batch = { ...views(), masks: new Uint8Array(B * 16) };
  expect((await errorOf(() => scope(() => all.ssl.losses(batch)))).message).toMatch(
    /at least one masked patch/,
  );
  expect((await errorOf(() => all.ssl.teacher.write(new Map()))).message).toMatch(
    /"image_centre" has no values/,
  );
  expect((await errorOf(() => sslShapes(CONFIG, { ...HEAD, prototypes: 0 }))).message).toMatch(
    /prototypes must be a positive integer but is 0/,
  );
  expect(Array.from(maskedRows(Uint8Array.of(0, 1, 1, 0, 1)))).toEqual([1, 2, 4]);
  free(all);
});
