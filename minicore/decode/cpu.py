"""The Numba decoder: kernels over whole weight rows, small vectors in NumPy."""

from __future__ import annotations

import time
from pathlib import Path

import numba
import numpy as np

from minicore import ops
from minicore.core.rules import GATE, TOP, Choice, TokenRule, keep_top
from minicore.kernels import cpu as kernels
from minicore.model import KVCache, Model, norm

Array = np.ndarray
NONE = np.zeros(0, np.float32)


class CpuDecoder:
    """Decodes on the CPU, reading of each FFN the core neurons' rows alone."""

    def __init__(self, model: Model, cache: KVCache, core: Choice | None) -> None:
        cfg = model.config
        self.model, self.cache = model, cache
        self.use(core)
        self.blocks = [_bits(block) for block in model.blocks]
        self.head = kernels.bits(model.head)
        self.frequencies = ops.rope_frequencies(cfg) if cfg.positions == "rope" else NONE
        self.code = kernels.ACTIVATION_CODES[cfg.activation]
        # scratch, reused every step
        self.q = np.empty((cfg.n_heads, cfg.d_head), np.float32)
        self.k, self.v = (np.empty((cfg.n_kv_heads, cfg.d_head), np.float32) for _ in "kv")
        self.z = np.empty_like(self.q)
        self.scores = np.empty((cfg.n_heads, cache.capacity), np.float32)
        self.out = np.empty(cfg.d_model, np.float32)
        self.partial = np.empty((numba.get_num_threads(), cfg.d_model), np.float32)
        self.compile_s = self._compile()

    def use(self, core: Choice | None) -> None:
        """Decode with this choice from the next step on; None is all neurons."""
        cfg = self.model.config
        self.model.check_choice(core)
        everything = np.arange(cfg.n_neurons, dtype=np.int32)
        chosen = core.neurons if core else {}
        self.rows = [chosen.get(i, everything) for i in range(cfg.n_layers)]
        self.limits = [core.parameters(i) if isinstance(core, TokenRule) else {} for i in range(cfg.n_layers)]
        self.n_used = np.zeros(cfg.n_layers, np.int64)

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        model, cfg, at = self.model, self.model.config, self.cache.length
        x = ops.f32(model.params["embed"][token_id])
        if cfg.positions == "learned":
            x = x + ops.f32(model.params["pos_embed"][at + cfg.position_offset])
        for layer, block in enumerate(self.blocks):
            x = x + self._attention(layer, block, norm(cfg, x, block["ln1.w"], block.get("ln1.b")))
            x = x + self._ffn(layer, block, norm(cfg, x, block["ln2.w"], block.get("ln2.b")))
        self.cache.length += 1
        logits = np.empty(cfg.n_vocab, np.float32)
        kernels.gemv(
            self.head, norm(cfg, x, model.params["ln_f.w"], model.params.get("ln_f.b")), NONE, logits
        )
        return logits

    def _attention(self, layer: int, p: dict[str, Array], x: Array) -> Array:  # (d_model,) -> (d_model,)
        for name, y in (("q", self.q), ("k", self.k), ("v", self.v)):
            kernels.gemv(p[f"attn.w_{name}"], x, p.get(f"attn.b_{name}", NONE), y.reshape(-1))
        q, k = self.q[None], self.k[None]
        if len(self.frequencies):
            position = np.array([self.cache.length])
            q, k = ops.rope(q, position, self.frequencies), ops.rope(k, position, self.frequencies)
        self.cache.append(layer, k, self.v[None])
        keys, values = self.cache.k[layer], self.cache.v[layer]
        kernels.attend(q[0], keys, values, self.cache.length + 1, self.scores, self.z)
        kernels.gemv(p["attn.w_o"], self.z.reshape(-1), p.get("attn.b_o", NONE), self.out)
        return self.out

    def _ffn(self, layer: int, p: dict[str, Array], x: Array) -> Array:  # (d_model,) -> (d_model,)
        rows, limits = self.rows[layer], self.limits[layer]
        if TOP in limits:
            return self._ffn_top(layer, x, int(limits[TOP]))
        threshold = np.float32(limits.get(GATE, -1))
        w_in, w_out, w_gate = p["mlp.w_in"], p["mlp.w_out"], p.get("mlp.w_gate", p["mlp.w_in"][:0])
        biases = [p.get(f"mlp.b_{b}", NONE) for b in ("gate", "in", "out")]
        self.n_used[layer] += kernels.ffn(
            w_gate, w_in, w_out, *biases, rows, self.code, threshold, x, self.partial, self.out
        )
        return self.out

    def _ffn_top(self, layer: int, x: Array, k: int) -> Array:  # (d_model,) -> (d_model,)
        """Compute every activation, keep the k largest, and read the output rows of these alone."""
        p, raw, act = (
            self.blocks[layer],
            self.model.blocks[layer],
            ops.ACTIVATIONS[self.model.config.activation],
        )
        a = np.empty((1, self.model.config.n_neurons), np.float32)
        kernels.gemv(p["mlp.w_in"], x, p.get("mlp.b_in", NONE), a[0])
        if "mlp.w_gate" in p:
            gate = np.empty_like(a)
            kernels.gemv(p["mlp.w_gate"], x, p.get("mlp.b_gate", NONE), gate[0])
            a *= act(gate)
        else:
            a = act(a)
        rows = self.rows[layer]
        a = keep_top(a[:, rows], k)[0]
        rows, a = rows[a != 0], a[a != 0]
        self.n_used[layer] += len(rows)
        return a @ ops.f32(raw["mlp.w_out"][rows]) + raw.get("mlp.b_out", np.float32(0))

    def _compile(self) -> float:
        """Run every kernel once, outside anybody's timing, and return the seconds that took."""
        began, length = time.perf_counter(), self.cache.length
        if length < self.cache.capacity:
            self.step(0)
            self.cache.length = length  # what it wrote there is overwritten by the next step
            self.n_used[:] = 0
        return time.perf_counter() - began


def _bits(block: dict[str, Array]) -> dict[str, Array]:
    return {name: kernels.bits(w) for name, w in block.items()}


def kernels_cached() -> bool:
    """Say whether the kernels' machine code is on disk already, so that nothing need be compiled."""
    for kernel in (kernels.gemv, kernels.ffn, kernels.attend):
        folder = Path(kernel.stats.cache_path)
        if not any(folder.glob(f"cpu.{kernel.__name__}-*.nbc")):
            return False
    return True
