"""
Reference results from PyTorch, for comparison with this package.

  grads.py grads --config model.json --weights model.safetensors --batch batch.safetensors
      --out grads.safetensors [--f64]
      Loss and every gradient of one batch. The output holds each gradient under its parameter's
      name, and "out.loss" [1], "out.image" and "out.text" [B, E]. With --f64 everything is computed
      and written in double precision.
  grads.py train --config model.json --weights model.safetensors --batch batches.safetensors
      --recipe recipe.json [--out model.safetensors]
      Training steps; prints {"step", "loss", "gradNorm"} for each as one JSON line. The recipe is
      {"lr", "weightDecay", "schedule": [one multiplier per step]} and optionally "clip", "beta1",
      "beta2", "eps", "lrFactors": {end of a name: factor}. Step i uses batch i modulo the number of
      batches.

A batch file holds "images" U8 [B, S, S, 3] and "ids" I32 [B, T]; for `train` both with a leading
axis of batches. --threads sets the number of threads (default 2).
"""
import argparse
import json

import torch

import safetensors_io
from adam import Adam
from two_tower import TwoTower, gradients_by_name, load, parameters_by_name


def arguments():
    parser = argparse.ArgumentParser(description="Reference loss, gradients and training steps.")
    parser.add_argument("mode", choices=["grads", "train"])
    for name in ("config", "weights", "batch"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--out")
    parser.add_argument("--f64", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def prepare(args):
    torch.set_num_threads(args.threads)
    with open(args.config) as file:
        model = TwoTower(json.load(file))
    if args.f64:
        model.double()
    load(model, safetensors_io.read(args.weights))
    batch = safetensors_io.read(args.batch)
    return model, torch.from_numpy(batch["images"]), torch.from_numpy(batch["ids"]).long()


def save(path, tensors):
    arrays = {name: t.detach().contiguous().numpy() for name, t in tensors.items()}
    safetensors_io.write(path, arrays)


def grads(args):
    model, images, ids = prepare(args)
    image, text = model(images, ids)
    loss = model.loss(image, text)
    loss.backward()
    outputs = {"out.loss": loss.view(1), "out.image": image, "out.text": text}
    save(args.out, {**outputs, **gradients_by_name(model)})
    print(json.dumps({"loss": loss.item()}))


def train(args):
    model, images, ids = prepare(args)
    with open(args.recipe) as file:
        recipe = json.load(file)
    options = {key: recipe[key] for key in ("clip", "beta1", "beta2", "eps") if key in recipe}
    optimizer = Adam(model, recipe["lr"], recipe["weightDecay"],
                     lr_factors=recipe.get("lrFactors"), **options)
    for step, multiplier in enumerate(recipe["schedule"]):
        i = step % len(images)
        loss = model.loss(*model(images[i], ids[i]))
        loss.backward()
        norm = optimizer.step(multiplier)
        print(json.dumps({"step": step, "loss": loss.item(), "gradNorm": norm}), flush=True)
    if args.out:
        save(args.out, parameters_by_name(model))


if __name__ == "__main__":
    args = arguments()
    (grads if args.mode == "grads" else train)(args)
