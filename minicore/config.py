"""ModelConfig: the shape of a model, independent of the file format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minicore.errors import InputError, unknown

NORMS = ("rmsnorm", "layernorm")
ACTIVATIONS = (
    *("silu", "relu", "gelu_tanh", "gelu", "relu2", "fatrelu"),
    *("quick_gelu", "relu6", "leaky_relu", "tanh", "sigmoid", "mish", "identity"),
)
POSITIONS = ("rope", "learned", "alibi")
BLOCKS = ("pre_norm", "parallel", "sandwich", "output_norm", "post_norm")
QK_NORMS = ("none", "heads", "whole")


def activation_fields(spelled: str) -> dict[str, str | float]:
    """Return the fields of an activation that is spelled ``relu``, or ``fatrelu:0.01`` with its threshold.

    Raises
    ------
    InputError
        If no activation has that name, or a threshold is missing, bad or too many.

    Examples
    --------
    >>> activation_fields("fatrelu:0.01")
    {'activation': 'fatrelu', 'activation_threshold': 0.01}
    """
    name, _, threshold = spelled.partition(":")
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    try:
        if bool(threshold) != (name == "fatrelu"):
            raise ValueError
        return {"activation": name, "activation_threshold": float(threshold or 0)}
    except ValueError:
        expected = "fatrelu: and its threshold, such as fatrelu:0.01" if name == "fatrelu" else name
        raise InputError(f"the activation is {spelled!r}, expected {expected}") from None


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer, and the options of its family.

    The defaults are those of Llama: a family's reader names what differs.

    Attributes
    ----------
    family : str
        ``llama`` (also Mistral, Qwen2 and others of its tensor names), ``opt``, ``gpt2``, ...
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
        ``rope``; ``learned``: embeddings that are added at the input, from row ``position_offset`` of their
        table on (2 for OPT); or ``alibi``: scores grow with the key's position (2108.12409).
    rope_theta, rope_factors : float, tuple of float or None
        Base of the rotary frequencies, and the divisor of each of the ``d_rope // 2`` frequencies. Linear,
        Llama 3, YaRN and LongRoPE scaling are all such divisors.
    tied_head : bool
        Whether the embedding is also the output head.
    qkv_bias, attn_out_bias, mlp_bias, head_bias : bool
        Whether the query, key and value projections, the attention output, the FFN and the output head have
        biases.
    block : str
        Where a block normalizes: ``pre_norm`` (x + f(norm(x))), ``parallel`` (attention and FFN both read
        the block's input), ``sandwich`` (Gemma 2: x + norm(f(norm(x)))), ``output_norm`` (OLMo 2: x +
        norm(f(x))) or ``post_norm`` (OPT-350m: norm(x + f(x))).
    final_norm : bool
        Whether there is a norm before the output head.
    d_embed : int or None
        Width of the embedding where it is not d_model: two matrices project from and to it (OPT-350m).
    activation_threshold : float
        The threshold of ``fatrelu``.
    up_activation : str
        What ``up`` goes through before it is multiplied (``relu`` in Bamboo's dReLU).
    d_rope : int or None
        How many dimensions of a head are rotated, the first ones; None is all.
    rope_scale : float
        What rotated heads are multiplied by (the attention factor of YaRN and LongRoPE).
    rope_long_factors, rope_long_after : tuple of float or None, int
        LongRoPE's divisors of texts with room for more than this many tokens.
    rope_local_theta : float or None
        Base of the frequencies in layers with a sliding window, without divisors (Gemma 3).
    nope_layers : tuple of int
        Layers without rotary positions (SmolLM3).
    windows : tuple of int
        For each layer, to how many last positions it attends, 0 for all; empty if no layer has a window.
    qk_norm : str
        Whether queries and keys are normalized: ``none``, each of the ``heads``, or the ``whole`` vector.
    score_scale : float or None
        Scale of attention scores; None is d_head ** -0.5.
    score_softcap, logit_softcap : float
        Scores and logits become cap * tanh(x / cap) (Gemma 2); 0 is no cap.
    embed_scale, residual_scale, logit_scale : float
        What embeddings, the outputs of attention and FFN, and logits are multiplied by (MiniCPM).
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
    head_bias: bool = False
    block: str = "pre_norm"
    final_norm: bool = True
    d_embed: int | None = None
    activation_threshold: float = 0.0
    up_activation: str = "identity"
    d_rope: int | None = None
    rope_scale: float = 1.0
    rope_long_factors: tuple[float, ...] | None = None
    rope_long_after: int = 0
    rope_local_theta: float | None = None
    nope_layers: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    qk_norm: str = "none"
    score_scale: float | None = None
    score_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

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
        for field, known in (
            *(("norm", NORMS), ("activation", ACTIVATIONS), ("up_activation", ACTIVATIONS)),
            *(("positions", POSITIONS), ("block", BLOCKS), ("qk_norm", QK_NORMS)),
        ):
            if getattr(self, field) not in known:
                raise InputError(
                    f"config: {field} is {getattr(self, field)!r}, expected one of {', '.join(known)}"
                )
        if self.positions == "rope" and (self.n_rotated % 2 or not 0 < self.n_rotated <= self.d_head):
            raise InputError(
                f"config: d_head is {self.d_head}, {self.n_rotated} of it rotated, expected an even number "
                "for rotary positions"
            )
        for divisors in (self.rope_factors, self.rope_long_factors):
            if divisors is not None and len(divisors) != self.n_rotated // 2:
                raise InputError(
                    f"config: {len(divisors)} rope factors, expected d_rope // 2 = {self.n_rotated // 2}"
                )
        if len(self.windows) not in (0, self.n_layers):
            raise InputError(
                f"config: {len(self.windows)} windows, expected one for each of {self.n_layers} layers"
            )

    @property
    def n_rotated(self) -> int:
        """Dimensions of a head that are rotated."""
        return self.d_head if self.d_rope is None else self.d_rope

    @property
    def spelled_activation(self) -> str:
        """The activation as :func:`activation_fields` reads it."""
        return f"fatrelu:{self.activation_threshold}" if self.activation == "fatrelu" else self.activation

    def options(self) -> dict[str, object]:
        """Return the options that differ from Llama's, beyond activation, norm, gate, biases and tying.

        Examples
        --------
        >>> import minicore as mc
        >>> mc.load("minicore-opt-core").config.replace(block="parallel").options()
        {'positions': 'learned', 'position_offset': 2, 'block': 'parallel'}
        """
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        names = list(fields)[list(fields).index("positions") :]
        usual = {name: fields[name] for name in names} | {"positions": "rope"}
        shown = {name: getattr(self, name) for name in names if not name.endswith(("_bias", "tied_head"))}
        return {name: value for name, value in shown.items() if value != usual[name]}

    def without_wide_windows(self) -> ModelConfig:
        """Return the config without windows that are as wide as the context and so hide nothing.

        Where layers with a window have a rotation of their own, windows also say which layers these are.

        Examples
        --------
        >>> import minicore as mc
        >>> config = mc.load("minicore-opt-core").config
        >>> config.replace(windows=(config.n_ctx,) * config.n_layers).without_wide_windows() == config
        True
        """
        wide = max(self.windows, default=0) >= self.n_ctx and self.rope_local_theta is None
        return self.replace(windows=()) if wide else self

    def window(self, layer: int) -> int:
        """Return to how many last positions a layer attends; n_ctx where it sees them all."""
        return (self.windows[layer] if self.windows else 0) or self.n_ctx

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every parameter, in the order of the forward pass.

        Matrices are (out, in), so that a matrix-vector product reads whole rows. The exception is ``w_out``,
        which is (n_neurons, d_model): neuron i is row i of ``w_in``, of ``w_gate`` and of ``w_out``.
        """
        d, q, kv, n = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head, self.n_neurons
        width, bias = self.d_embed or d, self.norm == "layernorm"
        before = self.block in (
            "pre_norm",
            "parallel",
            "sandwich",
            "post_norm",
        )  # post_norm's follow the sums
        after, qk = self.block in ("sandwich", "output_norm"), self.qk_norm != "none"
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.n_vocab, width)}
        if self.positions == "learned":
            shapes["pos_embed"] = (self.n_ctx + self.position_offset, d)
        if self.d_embed:
            shapes["embed_in"] = (d, width)
        for i in range(self.n_layers):
            block: list[tuple[str, tuple[int, ...], bool]] = [
                ("ln1.w", (d,), before),
                ("ln1.b", (d,), before and bias),
                ("attn.w_q", (q, d), True),
                ("attn.w_k", (kv, d), True),
                ("attn.w_v", (kv, d), True),
                ("attn.w_o", (d, q), True),
                ("attn.b_q", (q,), self.qkv_bias),
                ("attn.b_k", (kv,), self.qkv_bias),
                ("attn.b_v", (kv,), self.qkv_bias),
                ("attn.b_o", (d,), self.attn_out_bias),
                ("attn.q_norm.w", (q,), qk),
                ("attn.k_norm.w", (kv,), qk),
                ("ln1_post.w", (d,), after),
                ("ln2.w", (d,), before),
                ("ln2.b", (d,), before and bias),
                ("mlp.w_gate", (n, d), self.gated),
                ("mlp.w_in", (n, d), True),
                ("mlp.w_out", (n, d), True),
                ("mlp.b_gate", (n,), self.gated and self.mlp_bias),
                ("mlp.b_in", (n,), self.mlp_bias),
                ("mlp.b_out", (d,), self.mlp_bias),
                ("ln2_post.w", (d,), after),
            ]
            shapes |= {f"blocks.{i}.{name}": shape for name, shape, present in block if present}
        rest: list[tuple[str, tuple[int, ...], bool]] = [
            ("ln_f.w", (d,), self.final_norm),
            ("ln_f.b", (d,), self.final_norm and bias),
            ("embed_out", (width, d), bool(self.d_embed)),
            ("head", (self.n_vocab, width), not self.tied_head),
            ("head_bias", (self.n_vocab,), self.head_bias),
        ]
        return shapes | {name: shape for name, shape, present in rest if present}

    def replace(self, **changes: object) -> ModelConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
