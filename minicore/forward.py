"""The forward pass, one screen per step: embed, block, attention, ffn, unembed.

It reads from top to bottom as the architecture is drawn: embed, then attention and FFN of each block add to
the residual stream, then norm and head. Hooks see the named tensors on the way (TransformerLens' names);
this is how predictors record and how ``run_with_cache`` collects. The maths comes from :mod:`minicore.ops`,
or from any object with functions of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from minicore import ops as numpy_ops
from minicore.config import ModelConfig
from minicore.core.rules import GATE, TOP, keep_open, keep_top
from minicore.kv_cache import KVCache
from minicore.ops import Scoring, softcap

Array = np.ndarray
Hook = Callable[[Array], None]  # sees a tensor, and may change it in place
Hooks = Mapping[str, Hook]  # by the tensor's name


class RecorderHooks(dict[str, Hook]):
    """Hooks that only hand activations to recorders, which take them from a device's memory as well."""


CHUNK = 512  # tokens read at a time: scores stay (n_heads, 512, n_kv) however long the prompt is


class Parameters(Protocol):
    """What the forward pass reads of a model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def params(self) -> Mapping[str, Array]: ...
    @property
    def blocks(self) -> Sequence[Mapping[str, Array]]: ...
    @property
    def head(self) -> Array: ...


class Ops(Protocol):
    """The maths of the forward pass; :mod:`minicore.ops` is its specification."""

    @property
    def ACTIVATIONS(self) -> Mapping[str, Callable[..., Array]]: ...

    def to_float32(self, w: Array, /) -> Array: ...
    def linear(self, x: Array, w: Array, b: Array | None = None, /) -> Array: ...
    def linears(self, x: Array, weights: Sequence[tuple[Any, Array | None]], /) -> list[Array]: ...
    def weighted_rows(self, a: Array, w: Array, /) -> Array: ...
    def rms_norm(self, x: Array, w: Array, eps: float, /) -> Array: ...
    def layer_norm(self, x: Array, w: Array, b: Array, eps: float, /) -> Array: ...
    def rope_frequencies(self, cfg: ModelConfig, layer: int, long: bool, /) -> Array: ...
    def rope(self, x: Array, positions: Array, frequencies: Array, scale: float, /) -> Array: ...
    def fake_quantize(self, x: Array, size: int, /) -> Array: ...
    def attention(self, q: Array, k: Array, v: Array, scoring: Scoring, /) -> Array: ...
    def attention_pattern(self, q: Array, k: Array, scoring: Scoring, /) -> tuple[Array, Array]: ...
    def attend(self, pattern: Array, v: Array, /) -> Array: ...


@np.errstate(over="ignore", invalid="ignore")  # what leaves the range of float32 shows in the logits
def forward(
    model: Parameters,
    ids: Array,
    cache: KVCache,
    hooks: Hooks | Callable[[str, Array], None] | None = None,
    ops: Ops = numpy_ops,
) -> Array:  # (n,) -> (n, n_vocab)
    """Return the logits after each of the ids, which continue what the cache holds.

    Parameters
    ----------
    model : Model
    ids : (n,) int array
    cache : KVCache
        Grows by n positions.
    hooks : mapping of str to callable, callable or None
        Functions of a tensor by its name, or one function of every name and tensor.
    ops : module
        The maths.

    Raises
    ------
    InputError
        If there is no room in the cache.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> norms = []
    >>> hooks = {"blocks.0.hook_resid_pre": lambda x: norms.append(np.linalg.norm(x))}
    >>> forward(model, np.array([5, 6]), model.new_cache(2), hooks).shape[0], len(norms)
    (2, 1)
    """
    run = ForwardPass(model, as_hooks(hooks, model.config), ops)
    return run.unembed(run.hidden_states(ids, cache))


@np.errstate(over="ignore", invalid="ignore")
def prefill(
    model: Parameters,
    ids: Array,
    cache: KVCache,
    hooks: Hooks | Callable[[str, Array], None] | None = None,
    ops: Ops = numpy_ops,
) -> Array:  # (n,) -> (n_vocab,)
    """Read a prompt into the cache chunk by chunk and return the logits after its last token.

    Parameters and errors are those of :func:`forward`; hooks see a tensor once per chunk.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> prefill(model, np.array([5, 6]), model.new_cache(2)).shape == (model.config.n_vocab,)
    True
    """
    run, hidden = ForwardPass(model, as_hooks(hooks, model.config), ops), np.empty(0)
    for chunk in chunks(ids):
        hidden = run.hidden_states(chunk, cache)
    return run.unembed(hidden[-1:])[0]


@dataclass(frozen=True)
class ForwardPass:
    """The steps of a pass over a model's parameters."""

    model: Parameters
    hooks: Hooks = field(default_factory=dict)
    ops: Ops = numpy_ops

    def show(self, name: str, value: Array) -> None:
        """Let the tensor's hook see it."""
        if name in self.hooks:
            self.hooks[name](value)

    def hidden_states(self, ids: Array, cache: KVCache) -> Array:  # (n,) -> (n, d_model)
        """Return the residual stream after the last block; the cache grows by n positions."""
        cache.check_room(len(ids))
        positions = np.arange(cache.length, cache.length + len(ids))
        x = self.embed(ids, positions)
        for layer in range(self.model.config.n_layers):
            x = self.block(layer, x, positions, cache)
        cache.length += len(ids)
        return x

    def embed(self, ids: Array, positions: Array) -> Array:  # (n,), (n,) -> (n, d_model)
        """Look up the tokens' rows; add the positions' rows where these are learned."""
        cfg, params, ops = self.model.config, self.model.params, self.ops
        x = ops.to_float32(params["embed"][ids])
        if cfg.embed_scale != 1:
            x = x * np.float32(cfg.embed_scale)
        self.show("hook_embed", x)
        if cfg.d_embed:
            x = ops.linear(x, params["embed_in"])
        if cfg.positions == "learned":
            at = ops.to_float32(params["pos_embed"][positions + cfg.position_offset])
            self.show("hook_pos_embed", at)
            x = x + at
        return x

    def block(self, layer: int, x: Array, positions: Array, cache: KVCache) -> Array:
        # (n, d_model), (n,) -> (n, d_model)
        """Add a block's attention and FFN to the residual stream, with norms where ``config.block`` says."""
        at = f"blocks.{layer}."
        self.show(at + "hook_resid_pre", x)
        out = self.attention(layer, self.block_input(layer, "ln1", x), positions, cache)
        out = self.block_output(layer, "ln1", out)
        self.show(at + "hook_attn_out", out)
        mid = self.block_sum(layer, "ln1", x + out)
        self.show(at + "hook_resid_mid", mid)
        read = x if self.model.config.block == "parallel" else mid
        out = self.block_output(layer, "ln2", self.ffn(layer, self.block_input(layer, "ln2", read)))
        self.show(at + "hook_mlp_out", out)
        x = self.block_sum(layer, "ln2", mid + out)
        self.show(at + "hook_resid_post", x)
        return x

    def block_input(self, layer: int, ln: str, x: Array) -> Array:  # (n, d_model) -> (n, d_model)
        """Return what attention or FFN reads: the norm of the residual stream, or the stream itself."""
        p = self.model.blocks[layer]
        if self.model.config.block in ("output_norm", "post_norm"):
            return x
        normed = self.norm(x, p[f"{ln}.w"], p.get(f"{ln}.b"))
        self.show(f"blocks.{layer}.{ln}.hook_normalized", normed)
        return normed

    def block_output(self, layer: int, ln: str, out: Array) -> Array:  # (n, d_model) -> (n, d_model)
        """Return what attention or FFN adds to the residual stream."""
        p, scale = self.model.blocks[layer], self.model.config.residual_scale
        if self.model.config.block in ("sandwich", "output_norm"):
            out = self.norm(out, p[f"{ln}_post.w"], None)
            self.show(f"blocks.{layer}.{ln}_post.hook_normalized", out)
        return out if scale == 1 else out * np.float32(scale)

    def block_sum(self, layer: int, ln: str, x: Array) -> Array:  # (n, d_model) -> (n, d_model)
        """Return the residual stream after an addition."""
        p = self.model.blocks[layer]
        if self.model.config.block != "post_norm":
            return x
        normed = self.norm(x, p[f"{ln}.w"], p.get(f"{ln}.b"))
        self.show(f"blocks.{layer}.{ln}.hook_normalized", normed)
        return normed

    def norm(self, x: Array, w: Array, b: Array | None) -> Array:  # (n, d), (d,), (d,) -> (n, d)
        """Apply the family's norm."""
        cfg = self.model.config
        if cfg.norm == "rmsnorm":
            return self.ops.rms_norm(x, w, cfg.norm_eps)
        return self.ops.layer_norm(x, w, np.zeros_like(w) if b is None else b, cfg.norm_eps)

    def queries_or_keys(self, layer: int, which: str, x: Array) -> Array:
        # (n, heads * d_head) -> (n, heads, d_head)
        """Split queries (``q``) or keys (``k``) into heads, normalized where the family does so."""
        cfg, n, width = self.model.config, len(x), x.shape[1]
        if cfg.qk_norm != "none":
            rows = x.reshape(-1, width if cfg.qk_norm == "whole" else cfg.d_head)
            normed = self.norm(rows, np.ones(rows.shape[1], np.float32), None)
            x = normed.reshape(n, width) * self.model.blocks[layer][f"attn.{which}_norm.w"]
        return x.reshape(n, -1, cfg.d_head)

    def attention(self, layer: int, x: Array, positions: Array, cache: KVCache) -> Array:
        # (n, d_model), (n,) -> (n, d_model)
        """Attend over the cache and the n new positions (grouped queries where n_kv_heads < n_heads)."""
        cfg, p, ops, at = self.model.config, self.model.blocks[layer], self.ops, f"blocks.{layer}.attn."
        q, k, v = ops.linears(x, [(p[f"attn.w_{i}"], p.get(f"attn.b_{i}")) for i in "qkv"])
        q, k = self.queries_or_keys(layer, "q", q), self.queries_or_keys(layer, "k", k)
        v = v.reshape(len(x), cfg.n_kv_heads, cfg.d_head)
        for name, value in (("q", q), ("k", k), ("v", v)):
            self.show(f"{at}hook_{name}", value)
        if cfg.positions == "rope":
            frequencies = ops.rope_frequencies(cfg, layer, cache.capacity > cfg.rope_long_after)
            scale = 1.0 if layer in cfg.nope_layers else cfg.rope_scale
            q, k = (ops.rope(y, positions, frequencies, scale) for y in (q, k))
            self.show(at + "hook_rot_q", q)
            self.show(at + "hook_rot_k", k)
        if cache.dtype == "int8":  # scores are products of integers
            q = ops.fake_quantize(q.reshape(len(x), -1), cfg.d_head).reshape(q.shape)
        keys, values = (ops.to_float32(y) for y in cache.append(layer, k, v))
        scoring = Scoring.of(cfg, layer)
        if at + "hook_attn_scores" in self.hooks or at + "hook_pattern" in self.hooks:
            scores, pattern = ops.attention_pattern(q, keys, scoring)
            self.show(at + "hook_attn_scores", scores)
            self.show(at + "hook_pattern", pattern)
            z = ops.attend(pattern, values)
        else:  # compiled maths never has either as a whole
            z = ops.attention(q, keys, values, scoring)
        self.show(at + "hook_z", z)
        return ops.linear(z.reshape(len(x), -1), p["attn.w_o"], p.get("attn.b_o"))

    def ffn(self, layer: int, x: Array) -> Array:  # (n, d_model) -> (n, d_model)
        """Sum the neurons' rows of ``w_out``, each times its activation."""
        cfg, p, ops, at = self.model.config, self.model.blocks[layer], self.ops, f"blocks.{layer}.mlp."
        if cfg.gated:
            a, gate = ops.linears(x, [(p[f"mlp.w_{i}"], p.get(f"mlp.b_{i}")) for i in ("in", "gate")])
            self.show(at + "hook_pre", gate)
            self.show(at + "hook_pre_linear", a)
            gate = self.activate(gate)
            self.show(at + "hook_gate", gate)
            a = gate * (a if cfg.up_activation == "identity" else ops.ACTIVATIONS[cfg.up_activation](a))
        else:
            a = ops.linear(x, p["mlp.w_in"], p.get("mlp.b_in"))
            self.show(at + "hook_pre", a)
            gate = a = self.activate(a)
        if GATE in p:
            a = keep_open(a, gate, float(p[GATE]))
        if TOP in p:
            a = keep_top(a, int(p[TOP]))
        self.show(at + "hook_post", a)
        out = ops.weighted_rows(a, p["mlp.w_out"])
        return out + p["mlp.b_out"] if "mlp.b_out" in p else out

    def activate(self, x: Array) -> Array:  # (n, n_neurons) -> (n, n_neurons)
        """Apply the family's activation."""
        cfg, act = self.model.config, self.ops.ACTIVATIONS[self.model.config.activation]
        return act(x, cfg.activation_threshold) if cfg.activation == "fatrelu" else act(x)

    def unembed(self, x: Array) -> Array:  # (n, d_model) -> (n, n_vocab)
        """Apply the last norm and the head."""
        cfg, params, ops = self.model.config, self.model.params, self.ops
        normed = self.norm(x, params["ln_f.w"], params.get("ln_f.b")) if cfg.final_norm else x
        self.show("ln_final.hook_normalized", normed)
        if cfg.d_embed:
            normed = ops.linear(normed, params["embed_out"])
        return finish_logits(ops.linear(normed, self.model.head, params.get("head_bias")), cfg)


def finish_logits(logits: Array, cfg: ModelConfig) -> Array:  # (..., n_vocab) -> (..., n_vocab)
    """Scale and cap the head's products where the family does so."""
    if cfg.logit_scale != 1:
        logits = logits * np.float32(cfg.logit_scale)
    return softcap(logits, cfg.logit_softcap)


def chunks(ids: Array) -> Iterator[Array]:
    """Yield what is read at a time."""
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def hook_names(cfg: ModelConfig) -> list[str]:
    """Return the names of the tensors that hooks can see, in the order of the pass.

    Examples
    --------
    >>> import minicore as mc
    >>> hook_names(mc.load("minicore-opt-core").config)[:3]
    ['hook_embed', 'hook_pos_embed', 'blocks.0.hook_resid_pre']
    """
    rope, gated = cfg.positions == "rope", cfg.gated
    before, after = (
        cfg.block in ("pre_norm", "parallel", "sandwich"),
        cfg.block in ("sandwich", "output_norm"),
    )
    summed = cfg.block == "post_norm"
    block = [
        "hook_resid_pre", *(("ln1.hook_normalized",) if before else ()),
        "attn.hook_q", "attn.hook_k", "attn.hook_v",
        *(("attn.hook_rot_q", "attn.hook_rot_k") if rope else ()),
        "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z",
        *(("ln1_post.hook_normalized",) if after else ()), "hook_attn_out",
        *(("ln1.hook_normalized",) if summed else ()), "hook_resid_mid",
        *(("ln2.hook_normalized",) if before else ()),
        "mlp.hook_pre", *(("mlp.hook_pre_linear", "mlp.hook_gate") if gated else ()), "mlp.hook_post",
        *(("ln2_post.hook_normalized",) if after else ()), "hook_mlp_out",
        *(("ln2.hook_normalized",) if summed else ()), "hook_resid_post",
    ]  # fmt: skip
    names = ["hook_embed"] + (["hook_pos_embed"] if cfg.positions == "learned" else [])
    names += [f"blocks.{i}.{name}" for i in range(cfg.n_layers) for name in block]
    return [*names, "ln_final.hook_normalized"]


def as_hooks(hooks: Hooks | Callable[[str, Array], None] | None, cfg: ModelConfig) -> Hooks:
    """Return hooks by name; one function of name and tensor becomes the hook of every tensor."""
    if hooks is None:
        return {}
    return hooks if isinstance(hooks, Mapping) else {name: partial(hooks, name) for name in hook_names(cfg)}


def join_hooks(hooks: Iterable[tuple[str, Hook]]) -> Hooks:
    """Return hooks by name; those for the same tensor see it one after the other."""
    calls: dict[str, list[Hook]] = {}
    for name, hook in hooks:
        calls.setdefault(name, []).append(hook)
    return {name: each[0] if len(each) == 1 else partial(_call_all, each) for name, each in calls.items()}


def _call_all(hooks: Sequence[Hook], value: Array) -> None:
    for hook in hooks:
        hook(value)
