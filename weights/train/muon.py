"""Muon for stacks of equal matrices: one batch of matrix products orthogonalises the updates of all layers.

Momentum, Nesterov and the Newton-Schulz coefficients follow torch.optim.Muon. An update is scaled to the
size of an AdamW update, 0.2 * sqrt(longer side), so both can share a learning rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
N_ITERATIONS = 5


def orthogonalise(update: Tensor) -> Tensor:  # (n, rows, columns) -> the same, singular values near one
    a, b, c = COEFFICIENTS
    tall = update.shape[-2] > update.shape[-1]
    x = (update.mT if tall else update).bfloat16()
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt() + 1e-7).bfloat16()
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


@functools.cache
def _function(compiled: bool):
    return torch.compile(orthogonalise, dynamic=False, fullgraph=True) if compiled else orthogonalise


class Muon(torch.optim.Optimizer):
    """Parameters are stacks (..., rows, columns). parts[i] splits the rows of parameter i into several
    matrices; None means one matrix."""

    def __init__(
        self, params: list[Tensor], parts: list[list[int] | None], lr: float, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        (group,) = self.param_groups
        for p, parts in zip(group["params"], self.parts, strict=True):
            if p.grad is None:
                continue
            state = self.state[p]
            momentum = state.setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(momentum, group["momentum"]).flatten(0, -3)
            function = _function(p.is_cuda)
            for block, target in zip(
                update.split(parts or update.shape[-2], -2),
                p.flatten(0, -3).split(parts or update.shape[-2], -2),
                strict=True,
            ):
                scale = 0.2 * max(block.shape[-2:]) ** 0.5
                target.add_(function(block.contiguous()).to(p.dtype), alpha=-group["lr"] * scale)
