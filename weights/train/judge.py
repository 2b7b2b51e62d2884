"""Measure what core sets cost: perplexity of a text's continuation, dense and with the prompt's set fixed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from llama import Cut, Llama, dense_cut
from neurons import COUNTS, ENERGY
from torch import Tensor

RULES = {"griffin": ENERGY, "stability": COUNTS}
BATCH = 16


@torch.no_grad()
def nats(
    model: Llama, windows: Tensor, n_prompt: int, beta: float | None, rule: int = ENERGY, whole: bool = True
) -> Tensor:
    """Return the nats of each token after the first that follows the prompt.

    windows (n, n_tokens + 1) -> (n, n_tokens - n_prompt). The prompt's last prediction is dense under every
    setting and not scored, as in `minicore eval quality`.
    """
    found, n, n_neurons = [], windows.shape[1] - 1, model.shape.n_neurons
    for ids in windows.split(BATCH):
        short = BATCH - len(ids)  # compiled functions have one size
        padded = F.pad(ids, (0, 0, 0, short)).long()
        full = torch.full((BATCH,), n_prompt, device=ids.device)
        cut = dense_cut(BATCH, n, n_neurons, ids.device)
        if beta is not None:
            kept = torch.full_like(full, int(beta * n_neurons + 1e-9))
            cut = Cut(full, kept, torch.full_like(full, rule), torch.full_like(full, whole).bool())
        hidden = model.masked(padded[:, :-1], cut)[0][: len(ids), n_prompt:]
        logits = model.logits(hidden).float()
        found.append(F.cross_entropy(logits.transpose(1, 2), ids[:, n_prompt + 1 :].long(), reduction="none"))
    return torch.cat(found)


def table(
    model: Llama, texts: dict[str, Tensor], n_prompt: int = 256,
    betas: Iterable[float] = (0.1, 0.2, 0.4, 0.6),
    rules: Iterable[str] = ("griffin",), whole: bool = True,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return dense perplexity and the ratio of each rule and beta to it, for each kind of text."""
    result: dict[str, dict[str, float]] = {}
    for name, windows in texts.items():
        dense = nats(model, windows, n_prompt, None).mean()
        cells = {"dense": dense.exp().item()}
        for rule in rules:
            for beta in betas:
                loss = nats(model, windows, n_prompt, beta, RULES[rule], whole).mean()
                cells[f"{rule} {beta}"] = (loss - dense).exp().item()
        result[name] = cells
    return result


def show(found: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"  {name:<9} " + " ".join(f"{key} {value:.3f}" for key, value in cells.items())
        for name, cells in found.items()
    )
