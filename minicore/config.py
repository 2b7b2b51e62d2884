"""ModelConfig: the shape of a model, independent of the file format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minicore.errors import InputError

NORMS = ("rmsnorm", "layernorm")
ACTIVATIONS = ("silu", "relu", "gelu_tanh")
POSITIONS = ("rope", "learned")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a pre-norm decoder-only transformer.

    Attributes
    ----------
    family : str
        ``llama`` (also Qwen2 and Mistral), ``opt`` or ``gpt2``.
    n_layers, d_model, n_vocab : int
        Number of blocks, width of the residual stream, size of the vocabulary.
    n_heads, n_kv_heads, d_head : int
        Query heads, key/value heads (fewer under grouped-query attention), width of one head.
    n_neurons : int
        Width of the FFN. Core sets are subsets of these neurons.
    n_ctx : int
        Context length in tokens.
    norm, norm_eps : str, float
        ``rmsnorm`` or ``layernorm``, and the constant under the square root.
    activation, gated : str, bool
        ``act(gate) * up`` if gated, else ``act(in)``.
    positions, position_offset : str, int
        ``rope``, or ``learned``: embeddings that are added at the input, from row ``position_offset`` of
        their table on (2 for OPT).
    rope_theta, rope_factors : float, tuple of float or None
        Base of the rotary frequencies, and the divisor of each of the ``d_head // 2`` frequencies. Linear
        and Llama 3 scaling are both such divisors.
    tied_head : bool
        Whether the embedding is also the output head.
    qkv_bias, attn_out_bias, mlp_bias : bool
        Whether the query, key and value projections, the attention output and the FFN have biases.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_neurons: int
    n_vocab: int
    n_ctx: int
    norm: str
    norm_eps: float
    activation: str
    gated: bool
    positions: str
    position_offset: int = 0
    rope_theta: float = 10000.0
    rope_factors: tuple[float, ...] | None = None
    tied_head: bool = True
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for field in (
            "n_layers",
            "d_model",
            "n_heads",
            "n_kv_heads",
            "d_head",
            "n_neurons",
            "n_vocab",
            "n_ctx",
        ):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"config: {field} is {value!r}, expected a positive integer")
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"config: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        for field, known in (("norm", NORMS), ("activation", ACTIVATIONS), ("positions", POSITIONS)):
            if getattr(self, field) not in known:
                raise InputError(
                    f"config: {field} is {getattr(self, field)!r}, expected one of {', '.join(known)}"
                )
        if self.positions == "rope" and self.d_head % 2:
            raise InputError(f"config: d_head is {self.d_head}, expected an even number for rotary positions")
        if self.rope_factors is not None and len(self.rope_factors) != self.d_head // 2:
            raise InputError(
                f"config: {len(self.rope_factors)} rope factors, expected d_head // 2 = {self.d_head // 2}"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every parameter, in the order of the forward pass.

        Matrices are (out, in), so that a matrix-vector product reads whole rows. The exception is ``w_out``,
        which is (n_neurons, d_model): neuron i is row i of ``w_in``, of ``w_gate`` and of ``w_out``.
        """
        d, q, kv, n = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head, self.n_neurons
        bias = self.norm == "layernorm"
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.n_vocab, d)}
        if self.positions == "learned":
            shapes["pos_embed"] = (self.n_ctx + self.position_offset, d)
        for i in range(self.n_layers):
            block: list[tuple[str, tuple[int, ...], bool]] = [
                ("ln1.w", (d,), True),
                ("ln1.b", (d,), bias),
                ("attn.w_q", (q, d), True),
                ("attn.w_k", (kv, d), True),
                ("attn.w_v", (kv, d), True),
                ("attn.w_o", (d, q), True),
                ("attn.b_q", (q,), self.qkv_bias),
                ("attn.b_k", (kv,), self.qkv_bias),
                ("attn.b_v", (kv,), self.qkv_bias),
                ("attn.b_o", (d,), self.attn_out_bias),
                ("ln2.w", (d,), True),
                ("ln2.b", (d,), bias),
                ("mlp.w_gate", (n, d), self.gated),
                ("mlp.w_in", (n, d), True),
                ("mlp.w_out", (n, d), True),
                ("mlp.b_gate", (n,), self.gated and self.mlp_bias),
                ("mlp.b_in", (n,), self.mlp_bias),
                ("mlp.b_out", (d,), self.mlp_bias),
            ]
            shapes |= {f"blocks.{i}.{name}": shape for name, shape, present in block if present}
        shapes["ln_f.w"] = (d,)
        if bias:
            shapes["ln_f.b"] = (d,)
        if not self.tied_head:
            shapes["head"] = (self.n_vocab, d)
        return shapes

    def replace(self, **changes: object) -> ModelConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
