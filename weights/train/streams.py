"""Sample many long texts in parallel: each row alternates between forced pieces and the model's replies.

The queue of a row is its script: ids that are forced one by one, SAMPLE where the model writes until it ends
its turn, and STOP at the end. A row thus holds a whole conversation, or several documents of one kind, and
no step is wasted on finished rows. All rows are at the same position. On a GPU a step is one CUDA graph that
is recorded once and reads the position from device memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from decoding import attend, sample
from llama import Llama
from torch import Tensor

SAMPLE, STOP = -1, -2
END_OF_TEXT, END_OF_TURN = 0, 2  # <|endoftext|>, <|im_end|>


@dataclass(frozen=True)
class Script:
    """The content of one row: forced pieces, each followed by sampled text, and the sampling settings."""

    kind: str
    pieces: list[list[int]]
    temperature: float
    min_p: float
    penalty: float  # subtracted from the logit of a token that would repeat a run of four
    end: int  # id that ends a turn: END_OF_TURN or END_OF_TEXT

    def queue(self, width: int) -> np.ndarray:  # -> (width,) int32
        ids = [i for piece in self.pieces for i in (*piece, SAMPLE)][: width - 1]
        return np.array([*ids, *[STOP] * (width - len(ids))], np.int32)


class Streams:
    """Sample rows of n_ctx tokens from a model. Weights and cache have the model's dtype."""

    def __init__(self, model: Llama, n_rows: int, n_ctx: int, width: int = 512):
        shape, device = model.shape, model.embed.device
        self.model, self.n_rows, self.n_ctx, self.width = model, n_rows, n_ctx, width
        self.layers = [tuple(part.to(model.dtype) for part in layer) for layer in model.layers()]
        self.embed, self.norm = model.embed.to(model.dtype), model.norm.to(model.dtype)
        self.angles = model.angles(n_ctx)
        cache = (shape.n_layers, n_rows, shape.n_kv_heads, n_ctx, shape.d_head)
        self.keys, self.values = (torch.zeros(cache, device=device, dtype=model.dtype) for _ in range(2))

        def new(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, device=device, dtype=dtype)

        self.out, self.queue = new(n_rows, n_ctx), new(n_rows, width)
        self.at, self.position, self.seed = new(n_rows, dtype=torch.int64), new(1), new(1)
        self.temperature, self.floor, self.penalty = (new(n_rows, dtype=torch.float32) for _ in range(3))
        self.end = new(n_rows)
        self.graph: torch.cuda.CUDAGraph | None = None

    def logits(self, ids: Tensor) -> Tensor:  # (n_rows,) -> (n_rows, n_vocab)
        eps, d = self.model.shape.eps, (self.model.shape.d_model,)
        x = F.embedding(ids, self.embed)
        for i, (norm1, qkv, o, norm2, gate_up, down) in enumerate(self.layers):
            h = F.linear(F.rms_norm(x, d, norm1, eps), qkv)
            mixed = attend(h, self.keys[i], self.values[i], *self.angles, self.position)
            x = torch.addmm(x, mixed, o.T)
            gate, up = F.linear(F.rms_norm(x, d, norm2, eps), gate_up.flatten(0, 1)).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, down.T)
        return F.linear(F.rms_norm(x, d, self.norm, eps), self.embed)

    def discourage(self, logits: Tensor) -> None:
        """Subtract each row's penalty from tokens that would repeat a run of four tokens."""
        t = self.out.shape[1]
        last = self.out.index_select(
            1, (self.position.long() + torch.arange(-2, 1, device=self.out.device)).clamp(min=0)
        )
        same = (self.out[:, : t - 3] == last[:, :1]) & (self.out[:, 1 : t - 2] == last[:, 1:2])
        same &= self.out[:, 2 : t - 1] == last[:, 2:]
        same &= torch.arange(3, t, device=self.out.device) <= self.position
        logits.scatter_add_(1, self.out[:, 3:].long(), (-self.penalty[:, None] * same).to(logits.dtype))

    @torch.no_grad()
    def step(self) -> None:
        ids = self.out.index_select(1, self.position)[:, 0]
        logits = self.logits(ids)
        self.discourage(logits)
        said = sample(logits, self.temperature, self.floor, self.seed)
        told = self.queue.gather(1, self.at[:, None])[:, 0]
        ended = (told == SAMPLE) & ((said == END_OF_TEXT) | (said == END_OF_TURN))
        following = torch.where(told >= 0, told, torch.where(ended | (told == STOP), self.end, said))
        self.at += (told >= 0) | ended
        self.position += 1
        self.seed += 1
        self.out.index_copy_(1, self.position.long(), following[:, None])

    def start(self, scripts: list[Script], seed: int) -> None:
        """Load n_rows scripts. Each begins with a forced id."""
        queue = torch.from_numpy(np.stack([s.queue(self.width) for s in scripts]))
        self.queue.copy_(queue)
        self.out.zero_()
        self.out[:, 0] = self.queue[:, 0]
        self.at.fill_(1)
        self.position.zero_()
        self.seed.fill_(seed)
        for to, values in (
            (self.temperature, [s.temperature for s in scripts]),
            (self.floor, np.log([max(s.min_p, 1e-30) for s in scripts])),
            (self.penalty, [s.penalty for s in scripts]),
            (self.end, [s.end for s in scripts]),
        ):
            to.copy_(torch.as_tensor(np.asarray(values)))

    def run(self, scripts: list[Script], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (n_rows, n_ctx) uint16, and for each row whether its script lasted to the end."""
        self.start(scripts, seed)
        for _ in range(self.n_ctx - 1):
            self.advance()
        lasted = (self.queue.gather(1, self.at[:, None])[:, 0] != STOP).cpu().numpy()
        return self.out.cpu().numpy().astype(np.uint16), lasted

    def advance(self) -> None:
        if not self.out.is_cuda:
            return self.step()
        if self.graph is None:
            self.record()
        self.graph.replay()

    def record(self) -> None:
        """Compile every kernel with two steps, record a third as a CUDA graph, and restore the state."""
        kept = [x.clone() for x in (self.out, self.at, self.position, self.seed)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()
        for x, old in zip((self.out, self.at, self.position, self.seed), kept, strict=True):
            x.copy_(old)
