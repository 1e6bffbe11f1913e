"""
The NaFlex form of SigLIP 2's vision tower in plain PyTorch, padded and masked, from the published
description (arXiv 2502.14786, section 2.4.2).

  naflex.py grads --config model.json --weights model.safetensors --batch batch.safetensors
      --out grads.safetensors
      In double precision: "out.tokens" [B, M, D] after the last LayerNorm, "out.image" [B, E] of
      unit length, and under its name the gradient of every parameter of
      sum(out.image * cotangent) + sum(out.tokens * token_cotangent) over the real tokens.
      The batch holds "patches" U8 [B, M, P*P*3] padded with zeros, "shapes" I32 [B, 2],
      "cotangent" F32 [B, E] and "token_cotangent" F32 [B, M, D].
  naflex.py patches --batch images.safetensors --patch P --tokens M --out patches.safetensors
      Images U8 [H, W, 3] under any name; the output holds their patches U8 [rows*columns, P*P*3]
      under the same name and their grid as "<name>.shape" [2]. Needs Pillow.
  naflex.py grids --batch sizes.safetensors --out grids.safetensors
      "sizes" I64 [N, 4]: height, width, patch, tokens; the output's "grids" [N, 2].
"""
import argparse
import json
import math

import numpy as np

import safetensors_io


def grid(height, width, patch, tokens):
    """Rows and columns of the largest scale with at most `tokens` patches, by bisection."""
    def side(pixels, scale):
        return max(patch, patch * math.ceil(pixels * scale / patch))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        if side(height, middle) / patch * (side(width, middle) / patch) <= tokens:
            low = middle
        else:
            high = middle
    return side(height, low) // patch, side(width, low) // patch


def grids(args):
    sizes = safetensors_io.read(args.batch)["sizes"]
    found = np.array([grid(*(int(v) for v in row)) for row in sizes], np.int64)
    safetensors_io.write(args.out, {"grids": found})


def patches(args):
    from PIL import Image

    found, p = {}, args.patch
    for name, image in safetensors_io.read(args.batch).items():
        rows, columns = grid(image.shape[0], image.shape[1], p, args.tokens)
        resized = Image.fromarray(image).resize((columns * p, rows * p), Image.BILINEAR)
        cut = np.asarray(resized).reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
        found[name] = cut.reshape(rows * columns, p * p * 3)
        found[f"{name}.shape"] = np.array([rows, columns], np.int64)
    safetensors_io.write(args.out, found)


def tower(w, config, batch):
    """Tokens (B, M, D) and unit vectors (B, E); `w` holds the parameters by Hugging Face name."""
    import torch
    import torch.nn.functional as F

    vision, eps = config["vision"], config["layerNormEps"]
    width, heads = vision["width"], vision["heads"]
    side = vision["imageSize"] // vision["patch"]
    pixels, shapes = torch.from_numpy(batch["patches"]), batch["shapes"].tolist()
    B, M, _ = pixels.shape
    real = torch.arange(M)[None] < torch.tensor([r * c for r, c in shapes])[:, None]
    mask = torch.zeros(B, 1, 1, M, dtype=torch.float64).masked_fill(~real[:, None, None], -1e30)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def mlp(x, name):
        hidden = F.gelu(linear(x, f"{name}.mlp.fc1"), approximate="tanh")
        return linear(hidden, f"{name}.mlp.fc2")

    def attend(q, k, v):  # (B, N, D) each; padded keys are masked
        q, k, v = (x.unflatten(-1, (heads, width // heads)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // heads) + mask
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    embeddings = "vision_model.embeddings"
    x = linear(pixels.double() / 127.5 - 1, f"{embeddings}.patch_embedding")
    cells = w[f"{embeddings}.position_embedding.weight"].T.reshape(1, width, side, side)
    positions = []
    for rows, columns in shapes:
        resized = F.interpolate(cells, (rows, columns), mode="bilinear", align_corners=False,
                                antialias=True).flatten(2)[0].T
        # Padding gets the position of the first patch; the masks make that irrelevant.
        positions.append(torch.cat([resized, resized[:1].expand(M - rows * columns, width)]))
    x = x + torch.stack(positions)
    for i in range(vision["depth"]):
        layer = f"vision_model.encoder.layers.{i}"
        y = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        x = x + linear(attend(q, k, v), f"{layer}.self_attn.out_proj")
        x = x + mlp(norm(x, f"{layer}.layer_norm2"), layer)
    tokens = norm(x, "vision_model.post_layernorm")

    head = "vision_model.head"
    weight, bias = w[f"{head}.attention.in_proj_weight"], w[f"{head}.attention.in_proj_bias"]
    kv = F.linear(tokens, weight[width:], bias[width:])
    q = F.linear(w[f"{head}.probe"], weight[:width], bias[:width]).expand(B, 1, width)
    pooled = linear(attend(q, *kv.split(width, -1)), f"{head}.attention.out_proj")[:, 0]
    pooled = pooled + mlp(norm(pooled, f"{head}.layernorm"), head)
    return tokens, real, pooled / (pooled.norm(dim=-1, keepdim=True) + 1e-8)


def grads(args):
    import torch

    with open(args.config) as file:
        config = json.load(file)
    batch = safetensors_io.read(args.batch)
    weights = {name: torch.from_numpy(value).double().requires_grad_()
               for name, value in safetensors_io.read(args.weights).items()
               if name.startswith("vision_model.")}
    tokens, real, image = tower(weights, config, batch)
    objective = (image * torch.from_numpy(batch["cotangent"])).sum()
    objective = objective + (tokens * torch.from_numpy(batch["token_cotangent"]))[real].sum()
    objective.backward()
    outputs = {"out.tokens": tokens, "out.image": image}
    arrays = {name: t.detach().numpy() for name, t in outputs.items()}
    safetensors_io.write(args.out, {**arrays, **{n: t.grad.numpy() for n, t in weights.items()}})


def main():
    parser = argparse.ArgumentParser(description="Reference for NaFlex.")
    parser.add_argument("mode", choices=["grads", "patches", "grids"])
    for name in ("config", "weights", "batch", "out"):
        parser.add_argument(f"--{name}")
    for name in ("patch", "tokens"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    {"grads": grads, "patches": patches, "grids": grids}[args.mode](args)


if __name__ == "__main__":
    main()
