"""SmolLM2 in plain PyTorch for tuning, with the sentence-wise core mask in its forward pass.

Equal matrices of all layers are stacked into one parameter, (n_layers, rows, columns), so that Muon
orthogonalises them in one batch. A layer consists of two functions, `activate` and `project`; the core
neurons are chosen in between. Each function is compiled once for all layers. Weights are float32, and
matrix products run in `Llama.dtype`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from neurons import ENERGY, choose, scores
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The defaults are SmolLM2-135M's."""

    n_vocab: int = 49152
    d_model: int = 576
    n_layers: int = 30
    n_heads: int = 9
    n_kv_heads: int = 3
    d_head: int = 64
    n_neurons: int = 1536
    theta: float = 100000.0
    eps: float = 1e-5


GGUF_KEYS = {
    "d_model": "llama.embedding_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "d_head": "llama.rope.dimension_count",
    "n_neurons": "llama.feed_forward_length",
    "theta": "llama.rope.freq_base",
    "eps": "llama.attention.layer_norm_rms_epsilon",
}


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:  # (..., d) -> the same
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, heads, d_head), (T, d_head) twice
    low, high = x.chunk(2, -1)
    return (x * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]).to(x.dtype)


def activate(
    x: Tensor, norm1: Tensor, qkv: Tensor, o: Tensor, norm2: Tensor, gate_up: Tensor,
    cos: Tensor, sin: Tensor, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention and the first half of the FFN: x (B, T, d_model) -> x, a (B, T, n_neurons)."""
    d_head, d_out = cos.shape[-1], o.shape[-1]
    n_heads, n_kv = d_out // d_head, (qkv.shape[0] - d_out) // (2 * d_head)
    heads = F.linear(rms_norm(x, norm1, eps, dtype), qkv.to(dtype)).unflatten(-1, (-1, d_head))
    q, k, v = heads.split([n_heads, n_kv, n_kv], 2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), o.to(dtype))
    gate, up = F.linear(rms_norm(x, norm2, eps, dtype), gate_up.to(dtype).flatten(0, 1)).chunk(2, -1)
    return x, F.silu(gate) * up


def project(
    x: Tensor, a: Tensor, down: Tensor, after: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:  # -> (B, T, d_model), (B, T)
    """Second half of the FFN. Tokens marked in after (B, T) use only the neurons in keep (B, n_neurons).

    Also returns the share of each token's activation energy outside the core.
    """
    cut = after[..., None] & ~keep[:, None]
    energy = a.float().square()
    outside = torch.where(cut, energy, 0.0).sum(-1) / (energy.sum(-1) + 1e-9)
    return x + F.linear(torch.where(cut, 0.0, a).to(a.dtype), down.to(a.dtype)), outside


def dense_layer(
    x: Tensor, norm1: Tensor, qkv: Tensor, o: Tensor, norm2: Tensor, gate_up: Tensor, down: Tensor,
    cos: Tensor, sin: Tensor, eps: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    x, a = activate(x, norm1, qkv, o, norm2, gate_up, cos, sin, eps, dtype)
    return x + F.linear(a, down.to(dtype))


@functools.cache
def angles(n: int, d_head: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    half = d_head // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(n, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float().to(device), angle.sin().float().to(device)


@functools.cache
def functions(compiled: bool):
    wrap = torch.compile(dynamic=False, fullgraph=True) if compiled else lambda f: f
    return wrap(activate), wrap(project), wrap(dense_layer)


@dataclass(frozen=True)
class Cut:
    """The mask of each text in a batch, as (B,) tensors.

    split: first token that uses only core neurons; n_kept: size of the core; rule: ENERGY or COUNTS;
    whole: whether the first layer keeps all its neurons.
    """

    split: Tensor
    n_kept: Tensor
    rule: Tensor
    whole: Tensor


class Llama(nn.Module):
    """LAYER names the parameters of a layer in the order in which `activate` and `project` take them."""

    LAYER = ("norm1", "qkv", "o", "norm2", "gate_up", "down")
    compiled = False  # set before a model is made

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.shape, self.dtype = shape, dtype
        n, d, f = shape.n_layers, shape.d_model, shape.n_neurons
        d_q, d_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head

        def matrices(*size: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n, *size) * size[-1] ** -0.5)

        self.embed = nn.Parameter(torch.randn(shape.n_vocab, d) * d**-0.5, requires_grad=False)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(n, d)), nn.Parameter(torch.ones(n, d))
        self.qkv, self.o = matrices(d_q + 2 * d_kv, d), matrices(d, d_q)
        self.gate_up, self.down = matrices(2, f, d), matrices(d, f)
        self.norm = nn.Parameter(torch.ones(d))
        self._activate, self._project, self._dense = functions(Llama.compiled)

    def angles(self, n: int) -> tuple[Tensor, Tensor]:  # -> cos, sin (n, d_head) float32
        return angles(n, self.shape.d_head, self.shape.theta, self.embed.device)

    def layers(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(getattr(self, name).unbind(0) for name in self.LAYER), strict=True))

    def start(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embed).to(self.dtype)

    def end(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm, self.shape.eps, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:  # (..., d_model) -> (..., n_vocab)
        return F.linear(hidden, self.embed.to(self.dtype))

    def hidden(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, d_model), dense
        x, (cos, sin) = self.start(ids), self.angles(ids.shape[1])
        for layer in self.layers():
            x = self._dense(x, *layer, cos, sin, self.shape.eps, self.dtype)
        return self.end(x)

    def masked(self, ids: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        """Run one causal pass that is dense before each text's split and uses only core neurons after it.

        Returns the last hidden states (B, T, d_model) and the share of energy outside the core (B, T), a mean
        over layers that is zero before the split. Its gradient reaches the neurons that the mask cuts off
        from the loss.
        """
        x, (cos, sin) = self.start(ids), self.angles(ids.shape[1])
        after = torch.arange(ids.shape[1], device=ids.device) >= cut.split[:, None]
        outside = torch.zeros(ids.shape, device=ids.device)
        for i, (*first, down) in enumerate(self.layers()):
            x, a = self._activate(x, *first, cos, sin, self.shape.eps, self.dtype)
            keep = choose(scores(a.detach(), cut.split, cut.rule), cut.n_kept, cut.rule)
            keep = keep | cut.whole[:, None] if i == 0 else keep
            x, share = self._project(x, a, down, after, keep)
            outside = outside + share / self.shape.n_layers
        return self.end(x), outside

    @torch.no_grad()
    def activations(self, ids: Tensor) -> list[Tensor]:  # (B, T) -> (B, T, n_neurons) a layer, dense
        x, (cos, sin), found = self.start(ids), self.angles(ids.shape[1]), []
        for *first, down in self.layers():
            x, a = self._activate(x, *first, cos, sin, self.shape.eps, self.dtype)
            x = x + F.linear(a, down.to(a.dtype))
            found.append(a)
        return found

    @torch.no_grad()
    def lean_positive(self, ids: Tensor) -> None:  # (B, T)
        """Flip the sign of neurons whose large activations are mostly negative; the function is unchanged.

        CoreInfer counts only positive activations, but the sign of a gated neuron is arbitrary: negating its
        row of w_up and its column of w_down cancels. Half of SmolLM2's neurons are flipped.
        """
        for i, a in enumerate(self.activations(ids)):
            mass = (a.float() * a.float().abs()).sum((0, 1))
            sign = torch.where(mass < 0, -1.0, 1.0)
            self.gate_up[i, 1].mul_(sign[:, None])
            self.down[i].mul_(sign)

    @torch.no_grad()
    def anchors(self, model: Llama) -> list[Tensor]:
        """Return the stacks of matrices of `model`, an ancestor, with the signs of this model's neurons."""
        sign = torch.where((self.gate_up[:, 1] * model.gate_up[:, 1]).sum(-1) < 0, -1.0, 1.0)
        gate_up = torch.stack([model.gate_up[:, 0], model.gate_up[:, 1] * sign[..., None]], 1)
        return [model.qkv, model.o, gate_up, model.down * sign[:, None]]

    def matrices(self) -> list[Tensor]:
        return [self.qkv, self.o, self.gate_up, self.down]


def dense_cut(n: int, n_tokens: int, n_neurons: int, device: str | torch.device) -> Cut:
    """Return a mask that leaves every token dense."""
    full = torch.full((n,), n_tokens, device=device)
    return Cut(full, torch.full_like(full, n_neurons), torch.full_like(full, ENERGY), full > 0)


# --- to and from GGUF's names ---


def _interleave(rows: np.ndarray, n_heads: int, undo: bool) -> np.ndarray:
    """Apply or undo llama.cpp's interleaving of the two rope halves in each head's rows."""
    d = rows.shape[0] // n_heads
    inner = (d // 2, 2) if undo else (2, d // 2)
    return rows.reshape(n_heads, *inner, -1).swapaxes(1, 2).reshape(rows.shape)


def from_gguf(fields_: dict, tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Llama:
    """Build a model from the two results of `smollm2.load_gguf`."""
    known = {name: fields_[key] for name, key in GGUF_KEYS.items()}
    kinds = {f.name: f.type for f in fields(Shape)}
    shape = Shape(
        n_vocab=tensors["token_embd.weight"].shape[0],
        **{name: float(value) if kinds[name] == "float" else int(value) for name, value in known.items()},
    )
    model = Llama(shape, dtype)

    def stack(*names: str) -> np.ndarray:
        return np.stack([np.concatenate([one(i, name) for name in names]) for i in range(shape.n_layers)])

    def one(i: int, name: str) -> np.ndarray:
        array = tensors[f"blk.{i}.{name}.weight"]
        heads = {"attn_q": shape.n_heads, "attn_k": shape.n_kv_heads}.get(name)
        return _interleave(array, heads, undo=True) if heads else array

    state = {
        "embed": tensors["token_embd.weight"],
        "norm": tensors["output_norm.weight"],
        "norm1": stack("attn_norm"),
        "norm2": stack("ffn_norm"),
        "qkv": stack("attn_q", "attn_k", "attn_v"),
        "o": stack("attn_output"),
        "gate_up": stack("ffn_gate", "ffn_up").reshape(model.gate_up.shape),
        "down": stack("ffn_down"),
    }
    model.load_state_dict({name: torch.from_numpy(np.array(a, np.float32)) for name, a in state.items()})
    return model


def to_gguf(model: Llama) -> dict[str, np.ndarray]:
    """Return the float32 tensors by their GGUF names."""
    s = model.shape
    state = {name: p.detach().float().cpu().numpy() for name, p in model.named_parameters()}
    d_q, d_kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
    tensors = {"token_embd.weight": state["embed"], "output_norm.weight": state["norm"]}
    for i in range(s.n_layers):
        q, k, v = np.split(state["qkv"][i], [d_q, d_q + d_kv])
        layer = {
            "attn_norm": state["norm1"][i],
            "attn_q": _interleave(q, s.n_heads, undo=False),
            "attn_k": _interleave(k, s.n_kv_heads, undo=False),
            "attn_v": v,
            "attn_output": state["o"][i],
            "ffn_norm": state["norm2"][i],
            "ffn_gate": state["gate_up"][i, 0],
            "ffn_up": state["gate_up"][i, 1],
            "ffn_down": state["down"][i],
        }
        tensors |= {f"blk.{i}.{name}.weight": array for name, array in layer.items()}
    return tensors


def load(path: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """Read a model from a GGUF file."""
    from smollm2 import load_gguf

    return from_gguf(*load_gguf(path), dtype=dtype)
