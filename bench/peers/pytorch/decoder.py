"""
The caption decoder and the LocCa objective in plain PyTorch, from the published description (SigLIP 2,
arXiv 2502.14786, section 2.2; CapPa, arXiv 2306.07915), for comparison with this package.

  decoder.py --config model.json --weights model.safetensors --batch batch.safetensors --out grads.safetensors
      The batch holds "image" F32 [B, N, Dv] (un-pooled image tokens), "tokens" I32 [S, B, L] (0 after the end mark),
      "prefix" I32 [S, B] (tokens at the beginning that are not scored) and "parallel" I32 [S, B] (1: all inputs are the
      mask token and attention is not causal). Prints {"losses": [S]} and writes the gradient of their weighted sum
      (--weight for each set) for every decoder parameter under its name and for the image tokens as "image"; all in
      double precision. Sequences are shifted right behind token 0.
"""
import argparse
import json

import torch
import torch.nn.functional as F

import safetensors_io


def attend(q, k, v, heads, mask=None):
    """softmax(q kT / sqrt(head dim)) v; q (B, Tq, D), k and v (B, Tk, D), mask (B, Tq, Tk) or None."""
    b, t, d = q.shape
    split = lambda x: x.view(b, -1, heads, d // heads).transpose(1, 2)
    scores = split(q) @ split(k).transpose(-2, -1) * (d // heads) ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
    return (scores.softmax(-1) @ split(v)).transpose(1, 2).reshape(b, t, d)


def decode(p, config, inputs, image, parallel):
    """Logits (B, L, V) of one set. p: parameters by name without "decoder."."""
    decoder, eps = config["decoder"], config["layerNormEps"]
    length, width = inputs.shape[1], decoder["width"]
    norm = lambda name, x: F.layer_norm(x, (width,), p[f"{name}.weight"], p.get(f"{name}.bias"), eps)
    dense = lambda name, x: F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal[None] | parallel.bool()[:, None, None]
    x = p["embeddings.token_embedding.weight"][inputs] + p["embeddings.position_embedding.weight"][:length]
    for i in range(decoder["depth"]):
        layer = f"layers.{i}"
        y = norm(f"{layer}.layer_norm1", x)
        q, k, v = (dense(f"{layer}.self_attn.{n}_proj", y) for n in "qkv")
        x = x + dense(f"{layer}.self_attn.out_proj", attend(q, k, v, decoder["heads"], mask))
        q = dense(f"{layer}.cross_attn.q_proj", norm(f"{layer}.layer_norm2", x))
        k, v = (dense(f"{layer}.cross_attn.{n}_proj", image) for n in "kv")
        x = x + dense(f"{layer}.cross_attn.out_proj", attend(q, k, v, decoder["heads"]))
        hidden = F.gelu(dense(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm3", x)), approximate="tanh")
        x = x + dense(f"{layer}.mlp.fc2", hidden)
    return dense("head", norm("final_layer_norm", x))


def loss_of(logits, targets, prefix):
    """Per example the mean cross-entropy over scored tokens, then the sum over examples / B."""
    ce = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    scored = (targets != 0) & (torch.arange(targets.shape[1])[None] >= prefix[:, None])
    return ((ce * scored).sum(1) / scored.sum(1).clamp(min=1)).sum() / len(targets)


def main():
    parser = argparse.ArgumentParser(description="Reference losses and gradients of the caption decoder.")
    for name in ("config", "weights", "batch", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--weight", type=float, nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(2)
    with open(args.config) as file:
        config = json.load(file)
    prefix = "decoder."
    p = {name[len(prefix):]: torch.from_numpy(value).double().requires_grad_()
         for name, value in safetensors_io.read(args.weights).items() if name.startswith(prefix)}
    batch = {name: torch.from_numpy(value) for name, value in safetensors_io.read(args.batch).items()}
    image = batch["image"].double().requires_grad_()
    mask_token = config["text"]["vocab"]
    losses = []
    for tokens, start, parallel in zip(batch["tokens"].long(), batch["prefix"], batch["parallel"]):
        shifted = F.pad(tokens[:, :-1], (1, 0))
        inputs = torch.where(parallel.bool()[:, None], torch.full_like(tokens, mask_token), shifted)
        losses.append(loss_of(decode(p, config, inputs, image, parallel), tokens, start))
    weights = args.weight or [1.0] * len(losses)
    sum(w * l for w, l in zip(weights, losses)).backward()
    grads = {prefix + name: value.grad for name, value in p.items()} | {"image": image.grad}
    safetensors_io.write(args.out, {name: g.contiguous().numpy() for name, g in grads.items()})
    print(json.dumps({"losses": [l.item() for l in losses]}))


if __name__ == "__main__":
    main()
