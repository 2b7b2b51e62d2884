"""The OPT architecture in plain PyTorch, and the sentence-wise core mask inside its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = 0.4  # share of a token's positive activations that are its core (CoreInfer, sec. 3.1)


@dataclass(frozen=True)
class Shape:
    n_vocab: int = 6144
    n_ctx: int = 512
    d_model: int = 256
    n_layers: int = 5
    n_heads: int = 8
    n_neurons: int = 2048


def token_core(
    a: Tensor, alpha: float = ALPHA, n_halvings: int = 12
) -> Tensor:  # (..., n_neurons) -> bool, the same shape
    """The floor(alpha * n_positive) largest positive activations of every token, by halving the threshold.

    A sort of every token costs more than the rest of training. Twelve halvings leave an error of 1/4096 of
    the largest activation, which moves a set by a neuron now and then; evaluation uses exact sets (below).
    """
    n_positive = (a > 0).sum(-1, keepdim=True)
    n_kept = (n_positive * alpha).floor().clamp(min=1)
    low = torch.zeros_like(a[..., :1], dtype=torch.float32)
    high = a.amax(-1, keepdim=True).float()
    for _ in range(n_halvings):
        middle = (low + high) / 2
        too_many = (a > middle).sum(-1, keepdim=True) > n_kept
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return a > high


def most_frequent(
    counts: Tensor, n_kept: Tensor
) -> Tensor:  # (B, n_neurons) int, (B,) int -> bool (B, n_neurons)
    """At most n_kept neurons with the highest counts above zero; equal counts: lower index first."""
    order = torch.argsort(counts, dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(counts.shape[-1], device=counts.device).expand_as(order)
    )
    return (rank < n_kept[:, None]) & (counts > 0)


@torch.no_grad()
def core_mask(a: Tensor, split: Tensor, n_kept: Tensor) -> Tensor:  # (B, T, N), (B,), (B,) -> bool (B, N)
    """Each text's core neurons, counted over its tokens before the split."""
    before = torch.arange(a.shape[1], device=a.device) < split[:, None]  # (B, T)
    counts = (token_core(a) & before[..., None]).sum(1, dtype=torch.int32)
    return most_frequent(counts, n_kept)


@torch.no_grad()
def core_counts(a: Tensor, alpha: float = ALPHA) -> Tensor:  # (T, N) -> int (N,)
    """How many tokens have each neuron in their core, exactly: a sort per token, ties by lower index."""
    n_kept = ((a > 0).sum(-1).double() * alpha).floor().long().clamp(min=1)
    values, order = torch.sort(a, dim=-1, descending=True, stable=True)
    kept = (torch.arange(a.shape[-1], device=a.device) < n_kept[:, None]) & (values > 0)
    return torch.bincount(order[kept], minlength=a.shape[-1])


@torch.no_grad()
def sentence_core(a: Tensor, alpha: float, beta: float) -> Tensor:  # (T, N) -> bool (N,)
    """The exact definition, for evaluation."""
    n_kept = torch.tensor([int(beta * a.shape[-1])], device=a.device)
    return most_frequent(core_counts(a, alpha)[None], n_kept)[0]


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        d = shape.d_model
        self.n_heads = shape.n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(d, shape.n_neurons), nn.Linear(shape.n_neurons, d)
        self.register_buffer("level", torch.ones(shape.n_neurons))  # see OPT.level

    def attend(self, x: Tensor) -> Tensor:  # (B, T, d_model) -> the same
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        h = self.norm1(x)
        a = F.scaled_dot_product_attention(
            heads(self.q(h)), heads(self.k(h)), heads(self.v(h)), is_causal=True
        )
        return x + self.o(a.transpose(1, 2).flatten(-2))

    def activate(self, x: Tensor) -> Tensor:  # (B, T, d_model) -> (B, T, n_neurons)
        return F.relu(self.fc1(self.norm2(x)))


class OPT(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.n_vocab, shape.d_model)
        self.positions = nn.Embedding(shape.n_ctx + 2, shape.d_model)  # OPT's learned positions start at 2
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                into_residual = name.endswith(("o.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.n_layers) ** 0.5 if into_residual else 0.02)

    def start(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, d_model)
        return self.embed(ids) + self.positions.weight[2 : ids.shape[1] + 2]

    def logits(self, x: Tensor) -> Tensor:  # (B, T, d_model) -> (B, T, n_vocab)
        return F.linear(self.norm(x), self.embed.weight)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> logits (B, T, n_vocab)
        x = self.start(ids)
        for block in self.blocks:
            x = block.attend(x)
            x = x + block.fc2(block.activate(x))
        return self.logits(x)

    def masked(self, ids: Tensor, split: Tensor, n_kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One causal pass: dense before each text's split, its core neurons alone from there on.

        ids (B, T), split (B,), n_kept (B,) -> logits (B, T, n_vocab); outside, the share of all activation
        that lies after the split and outside the core (its gradient pushes that activation down, the mask
        having cut it off from the loss); active, the mean activation. For the first, an activation weighs
        as much as it adds to the residual stream, by the norm of its row of W_out: else a neuron escapes
        with a small activation and a large row. Both are of all layers together: a share of each layer's
        own would push the layer that fires least the hardest, until it is dead. So would texts split in
        the first eighth, whose prompts have shown too few neurons: they are left out.
        """
        x = self.start(ids)
        after = torch.arange(ids.shape[1], device=ids.device) >= split[:, None]  # (B, T)
        counted = (split >= self.shape.n_ctx // 8)[:, None, None]
        outside = mass = active = torch.zeros((), device=ids.device)
        for block in self.blocks:
            x = block.attend(x)
            a = block.activate(x)
            cut = (
                after[..., None] & ~core_mask(a.detach() * block.level.to(a.dtype), split, n_kept)[:, None]
            )  # (B, T, N)
            added = (a * block.fc2.weight.norm(dim=0)).float()
            outside = outside + torch.where(cut & counted, added, 0).sum()
            mass, active = mass + added.detach().sum(), active + a.float().mean() / len(self.blocks)
            x = x + block.fc2(torch.where(cut, 0, a))
        return self.logits(x), outside / (mass + 1e-6), active

    @torch.no_grad()
    def level(self, ids: Tensor) -> None:  # (B, T)
        """Let each neuron count by what it adds to the residual stream, over the root of how often it fires.

        A ReLU neuron's activation may be made s times as large (its row of W_in and bias times s, its row of
        W_out over s) and the model computes the same, but top-k ranks it elsewhere: the size of an activation
        means nothing by itself. Left to training, the first layer's core sets cost twice what they need to.
        These s are a buffer while training, since a change of the weights would upset the optimiser; export
        puts them into the weights (`levelled`).
        """
        x = self.start(ids)
        for block in self.blocks:
            x = block.attend(x)
            a = block.activate(x)
            often = (a > 0).float().mean((0, 1))
            level = (block.fc2.weight.norm(dim=0) + 1e-6) / (often + 1e-4).sqrt()
            block.level.copy_(level / level.log().mean().exp())
            x = x + block.fc2(a)

    def alive(self, ids: Tensor) -> Tensor:  # (B, T) -> int (n_layers,)
        """How many neurons of each layer fire anywhere in a text, dense."""
        x, counts = self.start(ids), []
        for block in self.blocks:
            x = block.attend(x)
            a = block.activate(x)
            counts.append((a > 0).flatten(0, 1).any(0).sum())
            x = x + block.fc2(a)
        return torch.stack(counts)
