"""
The best PyTorch paths for the kernels of this package, on a GPU, driven from stdin so that they alternate with ours in
one run.

  gpu_kernels.py '{"what": "attention", "B": 256, "H": 12, "N": 256, "D": 64}' [--device cuda] [--seconds 0.3]

Prints {"ready": [variant, …], "torch": …, "gpu": …}, then for every line of stdin one JSON object
{variant: {"forward": seconds, "both": seconds}}; "both" is forward and backward. A variant that this PyTorch or GPU
does not have is left out, with its reason under "missing". Ends at the end of stdin.
"""
import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

import two_tower
from step import batches


def attention(c, device):
    def heads():
        shape = (c["B"], c["N"], 3, c["H"], c["D"])
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    qkv = heads()
    dy = torch.randn(c["B"], c["H"], c["N"], c["D"], device=device, dtype=torch.bfloat16)

    def with_backend(name):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        backend = getattr(SDPBackend, name)

        def run():
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)
        return run, dy

    def default():
        F.scaled_dot_product_attention
        return lambda: F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)), dy

    def eager():
        return lambda: two_tower.attend(*qkv.permute(2, 0, 3, 1, 4)), dy

    return {"default": default, "flash": lambda: with_backend("FLASH_ATTENTION"),
            "cudnn": lambda: with_backend("CUDNN_ATTENTION"), "eager": eager}


def sigmoid_loss(c, device):
    n, d = c["B"], c["D"]
    x, y = (F.normalize(torch.randn(n, d, device=device), dim=-1).bfloat16().requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(v, device=device, requires_grad=True) for v in (2.3, -10.0))

    def rows(a, first):
        logits = (a @ y.t()).float() * scale.exp() + bias
        place = torch.arange(len(a), device=device)
        signs = -torch.ones_like(logits)
        signs[place, place + first] = 1
        return -F.logsigmoid(signs * logits).sum() / n

    def chunked(compiled):
        one = compiled(rows)

        def run():
            step = min(n, c.get("chunk", 4096))
            return sum(torch.utils.checkpoint.checkpoint(one, x[i:i + step], i, use_reentrant=False)
                       for i in range(0, n, step))
        import torch.utils.checkpoint
        return run, None

    return {"eager": lambda: (lambda: rows(x, 0), None), "chunked": lambda: chunked(lambda f: f),
            "chunked compiled": lambda: chunked(compiler())}


def linear_cross_entropy(c, device):
    h, weight, bias = (torch.randn(s, device=device, dtype=torch.bfloat16, requires_grad=True)
                       for s in ((c["R"], c["D"]), (c["V"], c["D"]), (c["V"],)))
    targets = torch.arange(c["R"], device=device) * 7919 % c["V"]

    def rows(a, b):
        return F.cross_entropy(F.linear(a, weight, bias).float(), b, reduction="sum") / c["R"]

    def compiled_whole():
        one = compiler()(rows)
        return lambda: one(h, targets), None

    def chunked(compiled):
        import torch.utils.checkpoint
        one = compiled(rows)

        def run():
            step = min(c["R"], c.get("chunk", 1024))
            return sum(torch.utils.checkpoint.checkpoint(one, h[i:i + step], targets[i:i + step], use_reentrant=False)
                       for i in range(0, c["R"], step))
        return run, None

    return {"eager": lambda: (lambda: rows(h, targets), None), "compiled": lambda: compiled_whole(),
            "chunked compiled": lambda: chunked(compiler())}


def patch_embed(c, device):
    images = torch.randint(256, (c["B"], c["S"], c["S"], 3), device=device, dtype=torch.uint8)
    p, n = c["P"], (c["S"] // c["P"]) ** 2
    weight, bias, position = (torch.randn(s, device=device, dtype=torch.bfloat16, requires_grad=True)
                              for s in ((c["D"], 3, p, p), (c["D"],), (n, c["D"])))
    dy = torch.randn(c["B"], n, c["D"], device=device, dtype=torch.bfloat16)

    def run():
        x = images.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1
        return F.conv2d(x, weight, bias, stride=p).flatten(2).transpose(1, 2) + position

    return {"eager": lambda: (run, dy), "compiled": lambda: (compiler()(run), dy)}


def layer_norm(c, device):
    x = torch.randn(c["R"], c["C"], device=device, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(c["C"], device=device, requires_grad=True) for _ in range(2))
    dy = torch.randn_like(x)

    def run():
        return F.layer_norm(x.float(), (c["C"],), weight, bias, 1e-6).to(torch.bfloat16)

    return {"eager": lambda: (run, dy), "compiled": lambda: (compiler()(run), dy)}


def adamw(c, device):
    param = torch.nn.Parameter(torch.randn(c["N"], device=device))
    param.grad = torch.randn_like(param)

    def variant(**options):
        optimizer = torch.optim.AdamW([param], lr=1e-3, betas=(0.9, 0.95), **options)

        def run():
            torch.nn.utils.clip_grad_norm_([param], 1.0)
            optimizer.step()
        return run, None

    return {"fused": lambda: variant(fused=True), "foreach": lambda: variant(foreach=True)}


def train_step(c, device):
    if hasattr(F, "scaled_dot_product_attention"):
        two_tower.attend = F.scaled_dot_product_attention

    def variant(compiled):
        torch.manual_seed(0)
        model = two_tower.TwoTower(c["config"]).initialise().to(device)
        forward = compiled(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4,
                                      **({"fused": True} if device == "cuda" else {}))
        images, ids = (t.to(device) for t in next(batches(c["config"], c["B"], 1)))

        def run():
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = model.loss(*forward(images, ids))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return run, None

    return {"eager": lambda: variant(lambda m: m), "compiled": lambda: variant(compiler())}


def compiler():
    return torch.compile  # AttributeError before PyTorch 2: the variant is then missing


KINDS = {"attention": attention, "sigmoid_loss": sigmoid_loss, "patch_embed": patch_embed, "layer_norm": layer_norm,
         "linear_cross_entropy": linear_cross_entropy,
         "adamw": adamw, "step": train_step}
WITHOUT_BACKWARD = ("adamw", "step")  # one call is the whole


def seconds_of(run, device, budget):
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()
    for _ in range(3):
        run()
    wait()
    count, start = 0, time.perf_counter()
    # In batches, so that waiting for the GPU is not part of short kernels.
    while time.perf_counter() - start < budget:
        for _ in range(10):
            run()
        wait()
        count += 10
    return (time.perf_counter() - start) / count


def measure(what, run, dy, device, budget):
    if what in WITHOUT_BACKWARD:
        return {"both": seconds_of(run, device, budget)}

    def forward():
        with torch.no_grad():
            run()

    def both():
        y = run()
        y.backward() if dy is None else y.backward(dy.view_as(y))

    return {"forward": seconds_of(forward, device, budget), "both": seconds_of(both, device, budget)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.3)
    args = parser.parse_args()
    case = json.loads(args.case)
    variants, missing = {}, {}
    for name, make in KINDS[case["what"]](case, args.device).items():
        try:
            run, dy = make()
            run()
            variants[name] = (run, dy)
        except Exception as e:  # whatever keeps a variant from running here is its reason
            missing[name] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    answer({"ready": list(variants), "missing": missing, "torch": torch.__version__, "gpu": gpu})
    for _ in sys.stdin:
        answer({name: measure(case["what"], run, dy, args.device, args.seconds) for name, (run, dy) in variants.items()})


def answer(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
