"""The Muon optimiser for matrices: momentum with an orthogonalised update; AdamW for all other parameters.

Source: Jordan et al. 2024 (Newton-Schulz coefficients); the scale 0.2 * sqrt(max(shape)) of Liu et al. 2025, with which AdamW's
learning rates carry over.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Moves the singular values of a batch of matrices [n, rows, columns] close to 1, with products in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    x = (g.mT if g.shape[-2] > g.shape[-1] else g).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).float()


class Muon:
    """matrices: the parameters for Muon, convolution kernels as [out, rest]. others: the parameters for AdamW. dtype: of Muon's products.
    Each step gets its learning rates."""

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], dtype: torch.dtype = torch.bfloat16):
        self.matrices, self.dtype = list(matrices), dtype
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(list(others), betas=(0.9, 0.95), weight_decay=0.0)

    def state_dict(self) -> dict:
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])

    @torch.no_grad()
    def step(self, lr: float, lr_others: float | None = None) -> None:
        """Updates the parameters from their gradients, and clears the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = lr if lr_others is None else lr_others
        self.adam.step()
        self.adam.zero_grad()
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p, momentum in zip(self.matrices, self.momentum, strict=True):
            if p.grad is None:
                continue
            momentum.lerp_(p.grad, 1 - MOMENTUM)
            update = p.grad.lerp(momentum, MOMENTUM).flatten(1)
            by_shape[tuple(update.shape)].append((p, update))
            p.grad = None
        for shape, members in by_shape.items():
            updates = orthogonalize(torch.stack([u for _, u in members]), dtype=self.dtype) * (0.2 * max(shape) ** 0.5)
            for (p, _), update in zip(members, updates, strict=True):
                p.mul_(1 - lr * WEIGHT_DECAY).add_(update.view_as(p), alpha=-lr)
