"""
Training-step throughput of PyTorch in f32 on the CPU, driven from stdin so that it can alternate
with another implementation in one run.

  step.py --config model.json --batch 64 --threads 2

Prints one JSON line when ready: {"ready", "torch", "blas", "threads", "matmulGflops",
"parameters", "loss"}. Then it answers each line of stdin with one JSON line:
  run K    does K steps (forward, backward, clip, Adam):
           {"steps", "seconds", "imagesPerSecond", "loss"}
  matmul   measures the library's matrix product again: {"matmulGflops"}
and ends at the end of stdin. The data is random; it is made before the clock starts.
"""
import argparse
import json
import sys
import time

import torch

from adam import Adam
from two_tower import TwoTower


def matmul_gflops(size=1024, seconds=0.5):
    """Best rate of a square f32 product within the given time, in GFLOP/s."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    torch.mm(a, b, out=out)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * size ** 3 / (time.perf_counter() - start) / 1e9)
    return round(best, 1)


def blas():
    """Folder and file of the BLAS in use, for the record: it changes the rate many times over."""
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split()[-1] for line in file if "blas" in line.split()[-1]}
    except OSError:
        return "unknown"
    # The folder tells builds for OpenMP and pthreads apart, which have the same file names.
    return ", ".join(sorted("/".join(path.split("/")[-2:]) for path in paths)) or "built in"


def batches(config, size, count=4):
    """Random images and captions of 3 to 12 tokens, ended by EOS (1) and padded with 0."""
    side, text = config["vision"]["imageSize"], config["text"]
    for _ in range(count):
        ids = torch.randint(2, text["vocab"], (size, text["length"]))
        lengths = torch.randint(3, 13, (size, 1)).clamp(max=text["length"] - 1)
        position = torch.arange(text["length"])
        ids[position == lengths] = 1
        ids[position > lengths] = 0
        yield torch.randint(256, (size, side, side, 3), dtype=torch.uint8), ids


class Runner:
    def __init__(self, config, batch):
        torch.manual_seed(0)
        self.model = TwoTower(config).initialise()
        self.data = list(batches(config, batch))
        self.optimizer = Adam(self.model, lr=1e-3, weight_decay=1e-4)
        self.batch, self.steps = batch, 0

    def step(self):
        images, ids = self.data[self.steps % len(self.data)]
        loss = self.model.loss(*self.model(images, ids))
        loss.backward()
        self.optimizer.step(multiplier=0.1)
        self.steps += 1
        return loss.item()

    def run(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        seconds = time.perf_counter() - start
        rate = self.batch * steps / seconds
        return {"steps": steps, "seconds": seconds, "imagesPerSecond": rate, "loss": loss}


def main():
    parser = argparse.ArgumentParser(description="Training-step throughput on the CPU.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Moments of rarely used rows decay into denormals, which would slow the peer down needlessly.
    torch.set_flush_denormal(True)
    with open(args.config) as file:
        runner = Runner(json.load(file), args.batch)
    answer({"ready": True, "torch": torch.__version__, "blas": blas(),
            "threads": torch.get_num_threads(), "matmulGflops": matmul_gflops(),
            "parameters": sum(p.numel() for p in runner.model.parameters()), "loss": runner.step()})
    for line in sys.stdin:
        words = line.split()
        if words == ["matmul"]:
            answer({"matmulGflops": matmul_gflops()})
        elif len(words) == 2 and words[0] == "run" and words[1].isdigit() and int(words[1]) > 0:
            answer(runner.run(int(words[1])))
        else:
            answer({"error": f"expected 'run K' or 'matmul' but got {line.strip()!r}"})


def answer(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
