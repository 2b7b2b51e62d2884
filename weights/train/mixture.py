"""The tuning corpus: rows of sampled text and a stream of prose. Batches depend only on (seed, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KINDS = ("chat", "plain", "prose")
HELD_OUT = 128  # rows at the end of each sampled kind that are not trained on


class Mixture:
    """folder/chat*.npy and plain*.npy hold sampled rows (n, n_ctx) uint16; prose*.npy a stream of ids."""

    def __init__(self, folder: Path, device: str, n_ctx: int):
        self.n_ctx, self.device = n_ctx, device
        self.rows: dict[str, Tensor] = {}
        self.heldout: dict[str, Tensor] = {}
        for kind in KINDS:
            parts = [np.load(path) for path in sorted(folder.glob(f"{kind}*.npy"))]
            ids = torch.from_numpy(np.concatenate(parts).astype(np.int32))
            if kind != "prose":
                held = min(HELD_OUT, len(ids) // 4)
                self.heldout[kind] = ids[len(ids) - held :].to(device)
                ids = ids[: len(ids) - held]
            self.rows[kind] = ids.to(device)

    def batch(self, rng: np.random.Generator, shares: tuple[float, ...], n: int) -> tuple[Tensor, Tensor]:
        """Return ids (n, n_ctx) int64 and the index of each text in KINDS, (n,).

        Conversations and half of the plain texts start at their beginning. The other plain texts and prose
        start anywhere, like the passages of `minicore eval quality`.
        """
        counts = np.floor(np.array(shares) * n + rng.random()).astype(
            int
        )  # uneven shares even out over steps
        counts[-1] = n - counts[:-1].sum()
        parts, kinds = [], []
        for i, (kind, count) in enumerate(zip(KINDS, counts, strict=True)):
            rows = self.rows[kind]
            if kind == "prose":
                at = rng.integers(0, len(rows) - self.n_ctx, count)
            else:
                at = rng.integers(0, len(rows) - 1, count) * self.n_ctx
                anywhere = (rng.random(count) < 0.5) & (kind == "plain")
                at = at + anywhere * rng.integers(0, self.n_ctx, count)
            reach = torch.arange(self.n_ctx, device=self.device)
            parts.append(rows.view(-1)[torch.from_numpy(at).to(self.device)[:, None] + reach])
            kinds += [i] * count
        return torch.cat(parts).long(), torch.tensor(kinds, device=self.device)
