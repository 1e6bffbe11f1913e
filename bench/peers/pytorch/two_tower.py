"""
The SigLIP 2 two-tower model in plain PyTorch, from the published description (arXiv 2502.14786).

It is the yardstick of this package for results and for speed on the CPU, so it is written for both:
q, k and v are one matrix product, patches are a matrix product, and nothing is copied that need not
be. Needs PyTorch 1.12 or newer. Shapes: B batch, T tokens, D width, H heads, E embedding.

The config is the JSON of the package's ModelConfig. `parameters_by_name` and `gradients_by_name`
speak the Hugging Face tensor names.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention; q, k, v stacked in `qkv`."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):  # (B, T, D) -> (B, T, D)
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v).transpose(1, 2).reshape(b, t, d))


def attend(q, k, v):
    """softmax(q kT / sqrt(head dim)) v over (B, H, T, D/H)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, tower, eps):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(tower["width"], eps)
        self.self_attn = Attention(tower["width"], tower["heads"])
        self.layer_norm2 = nn.LayerNorm(tower["width"], eps)
        self.mlp = Mlp(tower["width"], tower["mlp"])

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, tower, eps):
        super().__init__()
        self.layers = nn.ModuleList(Block(tower, eps) for _ in range(tower["depth"]))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class PoolAttention(nn.Module):
    """Attention of one query, the probe, over the tokens."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, probe, x):  # (1, 1, D), (B, T, D) -> (B, D)
        b, t, d = x.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(probe, weight[:d], bias[:d]).view(1, 1, self.heads, -1).transpose(1, 2)
        kv = F.linear(x, weight[d:], bias[d:]).view(b, t, 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v).reshape(b, d))


class MapHead(nn.Module):
    """Multi-head attention pooling."""

    def __init__(self, tower, eps):
        super().__init__()
        width = tower["width"]
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = PoolAttention(width, tower["heads"])
        self.layernorm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, tower["mlp"])

    def forward(self, x):  # (B, T, D) -> (B, D)
        x = self.attention(self.probe, x)
        return x + self.mlp(self.layernorm(x))


class VisionTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        tower, eps = config["vision"], config["layerNormEps"]
        self.patch, self.naflex = tower["patch"], config["naflex"]
        self.side = tower["imageSize"] // self.patch
        width, p = tower["width"], self.patch
        shape = (width, p * p * 3) if self.naflex else (width, 3, p, p)
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Module()
        self.embeddings.patch_embedding.weight = nn.Parameter(torch.empty(shape))
        self.embeddings.patch_embedding.bias = nn.Parameter(torch.empty(width))
        self.embeddings.position_embedding = nn.Embedding(self.side ** 2, width)
        self.encoder = Encoder(tower, eps)
        self.post_layernorm = nn.LayerNorm(width, eps)
        self.head = MapHead(tower, eps)

    def forward(self, images):  # uint8 (B, S, S, 3) -> (B, D)
        s, p, e = self.side, self.patch, self.embeddings
        x = images[:, :s * p, :s * p].to(e.patch_embedding.weight.dtype) / 127.5 - 1
        # A NaFlex kernel lists a patch as (y, x, channel), a convolution kernel as (channel, y, x).
        order = (0, 1, 3, 2, 4, 5) if self.naflex else (0, 1, 3, 5, 2, 4)
        x = x.view(-1, s, p, s, p, 3).permute(order).reshape(-1, s * s, 3 * p * p)
        x = F.linear(x, e.patch_embedding.weight.flatten(1), e.patch_embedding.bias)
        x = x + e.position_embedding.weight
        return self.head(self.post_layernorm(self.encoder(x)))


class TextTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        tower, eps = config["text"], config["layerNormEps"]
        width = tower["width"]
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(tower["vocab"], width)
        self.embeddings.position_embedding = nn.Embedding(tower["length"], width)
        self.encoder = Encoder(tower, eps)
        self.final_layer_norm = nn.LayerNorm(width, eps)
        if tower["pool"] == "map":
            self.pool = MapHead(tower, eps)
        self.last = tower["pool"] == "last"
        self.head = nn.Linear(width, config["embed"])

    def forward(self, ids):  # integers (B, T) -> (B, E)
        x = self.embeddings.token_embedding(ids) + self.embeddings.position_embedding.weight
        x = self.final_layer_norm(self.encoder(x))
        return self.head(x[:, -1] if self.last else self.pool(x))


class TwoTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.text_model = TextTower(config)
        self.vision_model = VisionTower(config)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))

    def forward(self, images, ids):
        """Unit vectors of images and texts, each (B, E)."""
        image, text = self.vision_model(images), self.text_model(ids)
        return (image / (image.norm(dim=-1, keepdim=True) + 1e-8),
                text / (text.norm(dim=-1, keepdim=True) + 1e-8))

    def loss(self, image, text):
        """Sigmoid loss: over every pair, summed over texts and averaged over images."""
        logits = self.logit_scale.exp() * (image @ text.T) + self.logit_bias
        signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
        return -F.logsigmoid(signs * logits).sum(1).mean()

    @torch.no_grad()
    def initialise(self, seed=0):
        """Starts every tensor as big_vision does."""
        torch.manual_seed(seed)
        width = {f"{side}_model": self.config[side]["width"] for side in ("text", "vision")}
        for name, p in self.named_parameters():
            if name in ("logit_scale", "logit_bias"):
                p.fill_(self.config["initLogitScale" if name == "logit_scale" else "initLogitBias"])
            elif name.endswith(("token_embedding.weight", "position_embedding.weight")):
                p.normal_(std=width[name.split(".")[0]] ** -0.5)
            elif name.endswith(("patch_embedding.weight", "text_model.head.weight")):
                lecun_normal(p)
            elif name.endswith(("qkv.weight", "in_proj_weight")):
                uniform(p, 2 * p.shape[1])
            elif name.endswith("probe"):
                uniform(p, 1 + p.shape[2])
            elif name.endswith("weight") and p.dim() == 2:
                uniform(p, sum(p.shape))
            elif name.endswith(("fc1.bias", "fc2.bias")):
                p.normal_(std=1e-6)
            else:
                p.fill_(1 if name.endswith("weight") else 0)
        return self


def lecun_normal(p):
    """Variance 1 / fan-in, cut at two standard deviations; the cut leaves a deviation of 0.8796."""
    std = p[0].numel() ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)


def uniform(p, fans):
    bound = math.sqrt(6 / fans)
    p.uniform_(-bound, bound)


def by_name(name, tensor):
    """(Hugging Face name, part of the tensor) pairs of one parameter."""
    if ".qkv." not in name:
        yield name, tensor
    else:
        for letter, part in zip("qkv", tensor.chunk(3)):
            yield name.replace(".qkv.", f".{letter}_proj."), part


def parameters_by_name(model):
    """{Hugging Face name: view of the parameter}."""
    return {n: part for name, p in model.named_parameters() for n, part in by_name(name, p.data)}


def gradients_by_name(model):
    """{Hugging Face name: view of the gradient}; zeros for parameters that took no part."""
    return {n: part for name, p in model.named_parameters()
            for n, part in by_name(name, torch.zeros_like(p) if p.grad is None else p.grad)}


def load(model, tensors):
    """Copies {Hugging Face name: array} into the model; the names must be exactly the model's."""
    own = parameters_by_name(model)
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or extra:
        raise SystemExit(f"weights do not fit: missing {sorted(missing)}, extra {sorted(extra)}")
    for name, value in own.items():
        if list(value.shape) != list(tensors[name].shape):
            found = list(tensors[name].shape)
            raise SystemExit(f"{name} must be {list(value.shape)} but is {found}")
        value.copy_(torch.from_numpy(tensors[name]))
