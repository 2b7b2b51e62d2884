"""The two rules by which a text's core neurons are chosen during tuning.

ENERGY is GRIFFIN (minicore's `griffin`): the sum of (a / |a|)^2 over the prompt's tokens. COUNTS is
CoreInfer (`stability`): the number of tokens that have the neuron among the top ALPHA of their positive
activations. `exact_scores` is the definition. Training on a GPU uses the Triton kernel, which reads each
activation once.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a machine without a GPU
    triton = None

ALPHA = 0.4
ENERGY, COUNTS = 0, 1
BLOCK = 32  # tokens per program of the kernel


@torch.no_grad()
def exact_scores(a: Tensor, rule: int) -> Tensor:  # (T, n_neurons) -> (n_neurons,)
    """Return one text's scores. Among equal values at a token's cut the lower index is kept."""
    if rule == ENERGY:
        energy = a.double().square()
        return (energy / energy.sum(-1, keepdim=True).clamp(min=1e-30)).sum(0)
    n_positive = (a > 0).sum(-1)
    n_kept = (ALPHA * n_positive.double() + 1e-9).floor().long().clamp(min=1)
    values, order = torch.sort(a, dim=-1, descending=True, stable=True)
    kept = (torch.arange(a.shape[-1], device=a.device) < n_kept[:, None]) & (values > 0)
    return torch.bincount(order[kept], minlength=a.shape[-1])


@torch.no_grad()
def scores(
    a: Tensor, split: Tensor, rule: Tensor
) -> Tensor:  # (B, T, n_neurons), (B,), (B,) -> (B, n_neurons)
    """Return float32 scores of each text by its own rule, over the tokens before its split."""
    if a.is_cuda:
        return kernel_scores(a, split, rule)
    parts = zip(a, split.tolist(), rule.tolist(), strict=True)
    return torch.stack([exact_scores(text[:n], of).float() for text, n, of in parts])


@torch.no_grad()
def choose(scores: Tensor, n_kept: Tensor, rule: Tensor) -> Tensor:  # (B, n), (B,), (B,) -> bool (B, n)
    """Mark the n_kept neurons of highest positive score. Among equal counts the lower index comes first."""
    n = scores.shape[-1]
    index = torch.arange(n, device=scores.device)
    unique = torch.where(scores > 0, scores * n + (n - 1 - index), 0.0)  # exact: counts are below 2**24 / n
    key = torch.where(rule[:, None] == COUNTS, unique, scores)
    falling = key.sort(-1, descending=True).values
    least = falling.gather(-1, (n_kept[:, None] - 1).clamp(min=0))
    return (key >= least) & (scores > 0) & (n_kept[:, None] > 0)


def kernel_scores(a: Tensor, split: Tensor, rule: Tensor) -> Tensor:
    """Compute `scores` with the Triton kernel; a is bfloat16 (B, T, n_neurons), T a multiple of BLOCK.

    All values equal to the one at a token's cut are kept.
    """
    n_texts, n_tokens, n = a.shape
    blocks = n_tokens // BLOCK
    parts = torch.empty(n_texts, blocks, n, device=a.device)
    _score_kernel[(n_texts, blocks)](
        a, split, rule, parts, n_tokens, n, ALPHA, BLOCK, triton.next_power_of_2(n), num_warps=4
    )
    return parts.sum(1)


if triton:

    @triton.jit
    def _score_kernel(a, split, rule, parts, n_tokens, n, alpha, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
        """Sum the scores of up to BLOCK tokens of one text.

        The k-th largest value is found by bisection on the bits: those of positive bfloat16 values have the
        same order as the values, and 15 halvings leave one."""
        text, block = tl.program_id(0), tl.program_id(1)
        column = tl.arange(0, WIDTH)
        inside = column < n
        total = tl.zeros((WIDTH,), tl.float32)
        first = block * BLOCK
        last = tl.minimum(first + BLOCK, tl.load(split + text))
        by_counts = tl.load(rule + text) == 1
        for token in range(first, last):
            row = tl.load(a + (text * n_tokens + token).to(tl.int64) * n + column, mask=inside, other=0.0)
            if by_counts:
                bits = tl.where(row > 0, row.to(tl.int16, bitcast=True), 0).to(tl.int32)
                n_positive = tl.sum((bits > 0).to(tl.int32))
                n_kept = tl.maximum((n_positive.to(tl.float32) * alpha + 1e-4).to(tl.int32), 1)
                low, high = 1, 32768  # at least n_kept are >= low; fewer are >= high
                for _ in range(15):
                    middle = (low + high) // 2
                    enough = tl.sum((bits >= middle).to(tl.int32)) >= n_kept
                    low = tl.where(enough, middle, low)
                    high = tl.where(enough, high, middle)
                total += (bits >= low).to(tl.float32)
            else:
                energy = row.to(tl.float32) * row.to(tl.float32)
                total += energy / tl.maximum(tl.sum(energy), 1e-30)
        tl.store(parts + (text * (n_tokens // BLOCK) + block) * n + column, total, mask=inside)
