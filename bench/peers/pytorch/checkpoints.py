"""
Random checkpoints in the two public layouts, with what the models of the published description
(arXiv 2502.14786) make of random inputs. `hf` uses two_tower.py; `flax` computes from the arrays of
a big_vision file directly, under flax's names and shapes, so neither shares a name map with the
package. NaFlex models are run on a batch of three aspect ratios.

  checkpoints.py JOBS.json

JOBS.json is a list of {layout: hf|flax, config, out, dtype: F32|F16|BF16, shards} or, for flax,
{perLayer, compressed, noPrefix}. Each job writes model.safetensors or model.npz,
inputs.safetensors and expected.safetensors into its folder.
"""
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

import safetensors_io
from two_tower import TwoTower, parameters_by_name

BATCH = 3
EPS_NORM = 1e-8
NAFLEX_GRIDS = [(2, 7), (4, 4), (5, 2)]


def inputs(config, rng):
    vision, text = config["vision"], config["text"]
    ids = rng.integers(4, text["vocab"], (BATCH, text["length"])).astype(np.int32)
    ids[0, 5:] = 0
    if not config["naflex"]:
        side = vision["imageSize"]
        return {"images": rng.integers(0, 256, (BATCH, side, side, 3)).astype(np.uint8), "ids": ids}
    slots, values = max(h * w for h, w in NAFLEX_GRIDS) + 2, vision["patch"] ** 2 * 3
    patches = rng.integers(0, 256, (BATCH, slots, values)).astype(np.uint8)
    mask = np.zeros((BATCH, slots), np.int32)
    for i, (h, w) in enumerate(NAFLEX_GRIDS):
        mask[i, :h * w] = 1
    patches[mask == 0] = 0
    return {"patches": patches, "mask": mask, "shapes": np.array(NAFLEX_GRIDS, np.int32), "ids": ids}


class Flax:
    """Forward passes from a flat {name: array} in flax's layout, every layer by itself."""

    def __init__(self, config, arrays):
        self.config, self.a = config, {k: torch.from_numpy(v) for k, v in arrays.items()}

    def norm(self, x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        y = (x - mean) / torch.sqrt(var + self.config["layerNormEps"])
        return y * self.a[f"{name}/scale"] + self.a[f"{name}/bias"]

    def attention(self, q, kv, name, mask=None):
        def heads(x, part):
            return torch.einsum("btd,dhk->bthk", x, self.a[f"{name}/{part}/kernel"]) + self.a[f"{name}/{part}/bias"]
        query, key, value = heads(q, "query"), heads(kv, "key"), heads(kv, "value")
        scores = torch.einsum("bqhk,bthk->bhqt", query, key) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
        mixed = torch.einsum("bhqt,bthk->bqhk", scores.softmax(-1), value)
        return torch.einsum("bqhk,hkd->bqd", mixed, self.a[f"{name}/out/kernel"]) + self.a[f"{name}/out/bias"]

    def mlp(self, x, name):
        x = x @ self.a[f"{name}/Dense_0/kernel"] + self.a[f"{name}/Dense_0/bias"]
        x = 0.5 * x * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x ** 3)))
        return x @ self.a[f"{name}/Dense_1/kernel"] + self.a[f"{name}/Dense_1/bias"]

    def encoder(self, x, root, depth, mask=None):
        for i in range(depth):
            block = f"{root}/encoderblock_{i}"
            y = self.norm(x, f"{block}/LayerNorm_0")
            x = x + self.attention(y, y, f"{block}/MultiHeadDotProductAttention_0", mask)
            x = x + self.mlp(self.norm(x, f"{block}/LayerNorm_1"), f"{block}/MlpBlock_0")
        return self.norm(x, f"{root}/encoder_norm")

    def map_head(self, x, root, mask=None):
        probe = self.a[f"{root}/probe"].expand(len(x), -1, -1)
        x = self.attention(probe, x, f"{root}/MultiHeadDotProductAttention_0", mask)
        return (x + self.mlp(self.norm(x, f"{root}/LayerNorm_0"), f"{root}/MlpBlock_0"))[:, 0]

    def image(self, batch):
        depth, kernel, mask = self.config["vision"]["depth"], self.a["img/embedding/kernel"], None
        if self.config["naflex"]:
            mask = torch.from_numpy(batch["mask"])
            x = (torch.from_numpy(batch["patches"]).float() / 127.5 - 1) @ kernel
            grid = self.a["img/pos_embedding"].permute(2, 0, 1)[None]
            positions = torch.zeros_like(x)
            for i, (h, w) in enumerate(batch["shapes"].tolist()):
                resized = F.interpolate(grid, (h, w), mode="bilinear", align_corners=False, antialias=True)
                positions[i, :h * w] = resized[0].flatten(1).T
        else:
            x = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = F.conv2d(x, kernel.permute(3, 2, 0, 1), stride=kernel.shape[0]).flatten(2).transpose(1, 2)
            positions = self.a["img/pos_embedding"]
        x = self.encoder(x + self.a["img/embedding/bias"] + positions, "img/Transformer", depth, mask)
        return self.map_head(x, "img/MAPHead_0", mask)

    def text(self, batch):
        x = self.a["txt/Embed_0/embedding"][torch.from_numpy(batch["ids"]).long()] + self.a["txt/pos_embedding"]
        x = self.encoder(x, "txt/Encoder_0", self.config["text"]["depth"])
        x = self.map_head(x, "txt/MAPHead_0") if self.config["text"]["pool"] == "map" else x[:, -1]
        return x @ self.a["txt/head/kernel"] + self.a["txt/head/bias"]


def random_arrays(config, rng):
    arrays = {}

    def add(name, *shape, mean=0.0, std=0.1):
        arrays[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def norm(name, width):
        add(f"{name}/scale", width, mean=1)
        add(f"{name}/bias", width)

    def block(name, tower):
        width, heads = tower["width"], tower["heads"]
        for part in ("query", "key", "value"):
            add(f"{name[0]}/{part}/kernel", width, heads, width // heads, std=width ** -0.5)
            add(f"{name[0]}/{part}/bias", heads, width // heads)
        add(f"{name[0]}/out/kernel", heads, width // heads, width, std=width ** -0.5)
        add(f"{name[0]}/out/bias", width)
        for dense, (a, b) in enumerate([(width, tower["mlp"]), (tower["mlp"], width)]):
            add(f"{name[1]}/Dense_{dense}/kernel", a, b, std=a ** -0.5)
            add(f"{name[1]}/Dense_{dense}/bias", b)

    def encoder(root, tower):
        for i in range(tower["depth"]):
            layer = f"{root}/encoderblock_{i}"
            norm(f"{layer}/LayerNorm_0", tower["width"])
            norm(f"{layer}/LayerNorm_1", tower["width"])
            block((f"{layer}/MultiHeadDotProductAttention_0", f"{layer}/MlpBlock_0"), tower)
        norm(f"{root}/encoder_norm", tower["width"])

    def map_head(root, tower):
        add(f"{root}/probe", 1, 1, tower["width"], std=1)
        norm(f"{root}/LayerNorm_0", tower["width"])
        block((f"{root}/MultiHeadDotProductAttention_0", f"{root}/MlpBlock_0"), tower)

    vision, text = config["vision"], config["text"]
    patch, side = vision["patch"], vision["imageSize"] // vision["patch"]
    kernel = (patch * patch * 3,) if config["naflex"] else (patch, patch, 3)
    add("img/embedding/kernel", *kernel, vision["width"], std=(patch * patch * 3) ** -0.5)
    add("img/embedding/bias", vision["width"])
    grid = (side, side) if config["naflex"] else (1, side * side)
    add("img/pos_embedding", *grid, vision["width"], std=0.5)
    encoder("img/Transformer", vision)
    map_head("img/MAPHead_0", vision)
    add("txt/Embed_0/embedding", text["vocab"], text["width"], std=0.5)
    add("txt/pos_embedding", 1, text["length"], text["width"], std=0.5)
    encoder("txt/Encoder_0", text)
    if text["pool"] == "map":
        map_head("txt/MAPHead_0", text)
    add("txt/head/kernel", text["width"], config["embed"], std=text["width"] ** -0.5)
    add("txt/head/bias", config["embed"])
    add("t", 1, mean=2)
    add("b", 1, mean=-8)
    return arrays


def stacked(arrays):
    """One array for all layers of a block, along a leading axis."""
    layers, out = {}, {}
    for name, value in arrays.items():
        root, mark, rest = name.partition("encoderblock_")
        if mark:
            layers.setdefault(f"{root}encoderblock/{rest.split('/', 1)[1]}", []).append(value)
        else:
            out[name] = value
    return {**out, **{name: np.stack(values) for name, values in layers.items()}}


def results(image, text, scale, bias):
    image = image / (image.norm(dim=-1, keepdim=True) + EPS_NORM)
    text = text / (text.norm(dim=-1, keepdim=True) + EPS_NORM)
    logits = image @ text.T * scale.exp() + bias
    return {"image": image.numpy(), "text": text.numpy(), "logits": logits.numpy()}


def flax(config, batch, job, rng):
    arrays = random_arrays(config, rng)
    model = Flax(config, arrays)
    saved = arrays if job.get("perLayer") else stacked(arrays)
    prefix = "" if job.get("noPrefix") else "params/"
    save = np.savez_compressed if job.get("compressed") else np.savez
    save(os.path.join(job["out"], "model.npz"), **{prefix + name: value for name, value in saved.items()})
    return results(model.image(batch), model.text(batch), model.a["t"], model.a["b"])


def hf(config, batch, job):
    dtype, shards = job.get("dtype", "F32"), job.get("shards", 1)
    model = TwoTower(config).initialise(5)
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    for p in model.parameters():
        p.copy_(p.to(kind).float())
    image, text = model(torch.from_numpy(batch["images"]), torch.from_numpy(batch["ids"]).long())
    named = {name: p.to(kind).contiguous() for name, p in parameters_by_name(model).items()}
    arrays = {name: (p.view(torch.int16) if kind == torch.bfloat16 else p).numpy() for name, p in named.items()}
    names = sorted(arrays)
    if shards == 1:
        safetensors_io.write(os.path.join(job["out"], "model.safetensors"), arrays, dtype)
    else:
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            own = {name: arrays[name] for name in names[shard::shards]}
            weight_map.update({name: file for name in own})
            safetensors_io.write(os.path.join(job["out"], file), own, dtype)
        with open(os.path.join(job["out"], "model.safetensors.index.json"), "w") as out:
            json.dump({"metadata": {}, "weight_map": weight_map}, out)
    return results(image, text, model.logit_scale, model.logit_bias)


@torch.no_grad()
def main():
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    for job in jobs:
        config, rng = job["config"], np.random.default_rng(3)
        os.makedirs(job["out"], exist_ok=True)
        batch = inputs(config, rng)
        expected = hf(config, batch, job) if job["layout"] == "hf" else flax(config, batch, job, rng)
        safetensors_io.write(os.path.join(job["out"], "inputs.safetensors"), batch)
        safetensors_io.write(os.path.join(job["out"], "expected.safetensors"), expected)


main()
