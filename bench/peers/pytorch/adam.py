"""
Adam in the order of big_vision's optimiser: clip by global norm, Adam scaling, times learning rate,
plus weight decay times parameter, times schedule, subtracted. So decay is not multiplied by the
learning rate.
"""
import torch


def decays(name, p):
    """Weight decay is for kernels: not for tables, biases, norms, the probe, or logit scalars."""
    tables = ("token_embedding.weight", "position_embedding.weight")
    return p.dim() in (2, 4) and not name.endswith(tables)


class Adam:
    """One set of horizontally fused (foreach) passes over all tensors per step."""

    def __init__(self, model, lr, weight_decay, clip=1.0, beta1=0.9, beta2=0.95, eps=1e-8,
                 lr_factors=None):
        """lr_factors: {end of a parameter's name: factor on its learning rate}."""
        named = sorted(model.named_parameters(), key=lambda entry: not decays(*entry))
        self.params = [p for _, p in named]
        self.decayed = [p for name, p in named if decays(name, p)]
        given = (lr_factors or {}).items()
        factors = {name: next((f for end, f in given if name.endswith(end)), 1.0)
                   for name, _ in named}
        self.groups = {f: [i for i, (name, _) in enumerate(named) if factors[name] == f]
                       for f in set(factors.values())}
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.lr, self.weight_decay, self.clip = lr, weight_decay, clip
        self.beta1, self.beta2, self.eps, self.t = beta1, beta2, eps, 0

    @torch.no_grad()
    def step(self, multiplier):
        """Applies and drops the gradients; returns their global norm before clipping."""
        self.t += 1
        grads = [p.grad for p in self.params]
        norm = torch.stack(torch._foreach_norm(grads)).norm().item()
        scale = min(1.0, self.clip / norm) if norm > 0 else 1.0
        torch._foreach_mul_(self.m, self.beta1)
        torch._foreach_add_(self.m, grads, alpha=(1 - self.beta1) * scale)
        torch._foreach_mul_(self.v, self.beta2)
        torch._foreach_addcmul_(self.v, grads, grads, (1 - self.beta2) * scale * scale)
        # sqrt(v / c2) + eps, where c2 removes the bias of the zero start.
        denominator = torch._foreach_sqrt(self.v)
        torch._foreach_div_(denominator, (1 - self.beta2 ** self.t) ** 0.5)
        torch._foreach_add_(denominator, self.eps)
        if self.weight_decay and self.decayed:
            torch._foreach_mul_(self.decayed, 1 - multiplier * self.weight_decay)
        for factor, members in self.groups.items():
            size = -multiplier * self.lr * factor / (1 - self.beta1 ** self.t)
            torch._foreach_addcdiv_([self.params[i] for i in members], [self.m[i] for i in members],
                                    [denominator[i] for i in members], size)
        for p in self.params:
            p.grad = None
        return norm
