"""Model: a config, its parameters and a tokenizer; the forward pass over them in NumPy.

The pass reads from top to bottom as the architecture is drawn: embed, then per block attention and
FFN on the residual stream, then norm and head. ``tap`` sees every named tensor on the way (names as
TransformerLens uses them), which is how predictors record and `run_with_cache` collects.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore import ops
from minicore.checkpoint import Checkpoint, mapped, read
from minicore.checkpoint.tensors import DTYPES
from minicore.config import ModelConfig
from minicore.core.rules import GATE, TOP, Selection, TokenRule, keep_open, keep_top
from minicore.errors import InputError, unknown
from minicore.quantization import FORMATS, quantize_int8
from minicore.tokenizer import Tokenizer, from_source

if TYPE_CHECKING:
    from minicore.generation.stream import Generation, Stream

Array = np.ndarray
Tap = Callable[[str, Array], None]

PER_NEURON = ("mlp.w_gate", "mlp.w_in", "mlp.w_out", "mlp.b_gate", "mlp.b_in")  # row i is neuron i
PREFILL_CHUNK = 512  # tokens at a time: scores stay (n_heads, 512, n_kv) however long the prompt


class KVCache:
    """Keys (rotated) and values of the positions read so far.

    Attributes
    ----------
    k, v : (n_layers, n_kv_heads, capacity, d_head)
        float32, or bfloat16, to which they are rounded as they are written; of an int8 cache a copy in
        float32. Head-major, so that a head's keys are one contiguous block.
    dtype : str
        ``float32``, ``bfloat16``, or ``int8``: each key and value of a head is int8 codes with a scale of its
        own (:func:`minicore.quantization.quantize_int8`).
    length : int
        Positions filled.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> cache = model.new_cache(capacity=16)
    >>> logits = forward(model, np.array([5, 6, 7]), cache)
    >>> cache.length, cache.k.shape[2]
    (3, 16)
    """

    def __init__(self, cfg: ModelConfig, capacity: int, dtype: str = "float32") -> None:
        if capacity > cfg.n_ctx:
            raise InputError(f"{capacity} tokens do not fit the model's context of {cfg.n_ctx}")
        self.shape = (cfg.n_layers, cfg.n_kv_heads, capacity, cfg.d_head)
        self._hold(dtype)
        self.length = 0
        self.device: Any = None  # the same on a GPU, once it is used there

    def _hold(self, dtype: str) -> None:
        """Have empty memory for numbers of a dtype."""
        n_layers, n_kv_heads, capacity, _ = self.shape
        kind = np.dtype(np.int8) if dtype == "int8" else DTYPES[dtype]
        self.dtype, self._k, self._v = dtype, _zeros(self.shape, kind), _zeros(self.shape, kind)
        steps = capacity if dtype == "int8" else 0
        self._scales = np.zeros((n_layers, 2, n_kv_heads, steps), np.float32)

    @property
    def k(self) -> Array:
        """Keys; what a GPU has written is fetched first."""
        return self._meant(0, slice(None))

    @property
    def v(self) -> Array:
        """Values, likewise."""
        return self._meant(1, slice(None))

    @property
    def held(self) -> tuple[Array, Array, Array]:
        """Keys and values as they lie in memory, and scales (n_layers, 2, n_kv_heads, capacity or 0)."""
        if self.device is not None:
            self.device.fetch(self._k, self._v)
        return self._k, self._v, self._scales

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self._k.nbytes + self._v.nbytes + self._scales.nbytes

    def _meant(self, which: int, layers: int | slice, end: int | None = None) -> Array:
        """Return what keys (0) or values (1) of some layers stand for, of the positions before ``end``."""
        *held, scales = self.held
        codes = held[which][layers][..., :end, :]
        return codes * scales[layers][..., which, :, :end, None] if self.dtype == "int8" else codes

    @property
    def rounds(self) -> bool:
        """Whether keys and values are rounded."""
        return self.dtype != "float32"

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.shape[2]

    def check_room(self, n: int) -> None:
        """Raise InputError unless there is room for n positions more.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> cache = model.new_cache(4)
        >>> cache.check_room(4)
        >>> cache.check_room(5)
        Traceback (most recent call last):
        minicore.errors.InputError: 5 tokens do not fit the 4 positions of the kv cache
        """
        if self.length + n > self.capacity:
            raise InputError(
                f"{self.length + n} tokens do not fit the {self.capacity} positions of the kv cache"
            )

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        # (n, n_kv_heads, d_head) twice -> (n_kv_heads, length + n, d_head) twice
        """Write a layer's new keys and values behind the old ones and return all of them.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> cache = model.new_cache(4)
        >>> new = np.ones((2, model.config.n_kv_heads, model.config.d_head), np.float32)
        >>> keys, values = cache.append(0, new, new)
        >>> keys.shape[1], cache.length  # the length is the caller's to move, when all layers have theirs
        (2, 0)
        """
        end = self.length + len(k)
        *held, scales = self.held
        for which, new in enumerate((k.transpose(1, 0, 2), v.transpose(1, 0, 2))):
            at = held[which][layer, :, self.length : end]
            if self.dtype == "int8":
                at[:], scales[layer, which, :, self.length : end, None] = quantize_int8(new)
            else:
                at[:] = new
        return self._meant(0, layer, end), self._meant(1, layer, end)

    def copy(self, other: KVCache) -> None:
        """Take over the dtype of another cache and the positions it holds, for which there must be room.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> short, long = model.new_cache(4), model.new_cache(8)
        >>> logits = forward(model, np.array([5, 6, 7]), short)
        >>> long.copy(short)
        >>> long.length, bool((long.k[:, :, :3] == short.k[:, :, :3]).all())
        (3, True)
        """
        if self.dtype != other.dtype:
            self._hold(other.dtype)
        n = self.length = other.length
        for mine, theirs in zip(self.held[:2], other.held[:2], strict=True):
            mine[:, :, :n] = theirs[:, :, :n]
        self._scales[..., :n] = other._scales[..., :n]

    def in_bfloat16(self) -> None:
        """Hold keys and values in bfloat16 from now on, if they are int8: a GPU has them so.

        Examples
        --------
        >>> cache = load("minicore-opt-core", dtype="int8").new_cache(4)
        >>> before = cache.dtype
        >>> cache.in_bfloat16()
        >>> before, cache.dtype
        ('int8', 'bfloat16')
        """
        if self.dtype == "int8":
            n = self.length
            k, v = (self._meant(which, slice(None), n) for which in range(2))
            self._hold("bfloat16")
            self._k[:, :, :n], self._v[:, :, :n] = k, v


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros that begin with a cache line, so that a vector of one is read by one look at the cache."""
    n_bytes, line = math.prod(shape) * dtype.itemsize, 64
    memory = np.zeros(n_bytes + line, np.uint8)
    first = -memory.ctypes.data % line
    return memory[first : first + n_bytes].view(dtype).reshape(shape)


class Model:
    """A loaded checkpoint.

    Attributes
    ----------
    config : ModelConfig
    params : dict of str to array
        Names and shapes of ``config.shapes()``; matrices in ``dtype``, vectors float32.
    blocks : list of dict
        The same parameters block by block, under their names inside a block.
    tokenizer : Tokenizer or None
        None if the checkpoint came without one; such a model takes lists of ids.
    name, source : str, Path
        What was asked for and the file or directory it was read from.
    eos_ids : tuple of int
        Tokens that end a generation.
    recommended : dict
        Predictor settings the checkpoint recommends, possibly empty.
    mapping : Mapping or None
        The file behind the parameters, if they are mapped: then they can be given back after use.
    ops : module
        Where the forward pass takes its maths from: :mod:`minicore.ops`, or compiled functions of the
        same names.
    on_device : object or None
        What reads prompts in its place, on a GPU (:class:`minicore.backends.cuda.prefill.Reader`).

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> model.config.family, model.dtype, sorted(model.recommended)
    ('opt', 'float32', ['alpha', 'beta', 'predictor'])
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> None:
        self.config, self.params, self.tokenizer = checkpoint.config, checkpoint.params, tokenizer
        self.name, self.source, self.file_dtype = checkpoint.name, checkpoint.source, checkpoint.file_dtype
        self.bos_id, self.eos_ids = checkpoint.bos_id, checkpoint.eos_ids
        self.recommended, self.mapping = checkpoint.recommended, checkpoint.mapping
        self.blocks: list[dict[str, Array]] = [{} for _ in range(self.config.n_layers)]
        for name, w in self.params.items():
            if name.startswith("blocks."):
                _, layer, short = name.split(".", 2)
                self.blocks[int(layer)][short] = w
        self.head = self.params["embed" if self.config.tied_head else "head"]
        self.ops: ModuleType = ops
        self.on_device: Any = None
        self.gives_back = False

    def __repr__(self) -> str:
        c = self.config
        shape = f"{c.n_layers} layers, d_model {c.d_model}, {c.n_neurons} neurons"
        return f"Model({self.name}, {shape}, {self.dtype})"

    @property
    def dtype(self) -> str:
        """Dtype of the matrices."""
        return str(self.params["embed"].dtype)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(w.nbytes for w in self.params.values())

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty kv cache: as long numbers as the weights, int8 beside int4.

        With longer ones it would soon be most of what a token reads. On a GPU there is none in int8.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.new_cache(16).capacity, model.new_cache(16).length
        (16, 0)
        """
        return KVCache(self.config, capacity, "int8" if self.dtype in FORMATS else self.dtype)

    def check_ids(self, ids: Sequence[int] | Array) -> Array:  # (n,) -> int64 (n,)
        """Return ids as an array; raise InputError unless they are a non-empty list of the vocabulary.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.check_ids([1, 2])
        array([1, 2])
        """
        array = np.asarray(ids)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
            raise InputError(
                f"token ids have shape {array.shape} and dtype {array.dtype}, expected n >= 1 integers"
            )
        if array.min() < 0 or array.max() >= self.config.n_vocab:
            bad = array[(array < 0) | (array >= self.config.n_vocab)][0]
            raise InputError(f"token id {bad} is not in the vocabulary of {self.config.n_vocab}")
        return array.astype(np.int64)

    def restrict(self, core: Selection | None) -> Model:
        """Return the model whose FFNs are the core neurons alone, sharing everything else.

        A neuron is a row of ``w_in``, ``w_gate`` and ``w_out``: decoding with a core set is decoding with
        a narrower FFN (CoreInfer, sec. 4). A :class:`TokenRule` adds its limits to the blocks, where
        :func:`ffn` finds them.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> few = mc.CoreSet({0: np.arange(10)}, model.config.n_neurons, model.config.n_layers)
        >>> model.restrict(few).blocks[0]["mlp.w_in"].shape[0]
        10
        """
        self.check_selection(core)
        if core is None:
            return self
        narrow = self.with_blocks()
        for layer, ids in core.neurons.items():
            block = self.blocks[layer]
            narrow.blocks[layer] |= {name: block[name][ids] for name in PER_NEURON if name in block}
            if self.gives_back:
                self.release(layer)
        if isinstance(core, TokenRule):
            narrow.blocks = [block | core.parameters(i) for i, block in enumerate(narrow.blocks)]
        return narrow

    def with_blocks(self) -> Model:
        """Return a model that shares everything, with blocks of its own: other weights can be put into them.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> other = model.with_blocks()
        >>> other.blocks[0]["mlp.w_in"] is model.blocks[0]["mlp.w_in"], other.blocks[0] is model.blocks[0]
        (True, False)
        """
        other = object.__new__(Model)
        other.__dict__ = self.__dict__ | {"blocks": [dict(block) for block in self.blocks], "on_device": None}
        return other

    def check_selection(self, core: Selection | None) -> None:
        """Raise InputError if the neurons were chosen for a model of another shape.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> from minicore import CoreSet
        >>> model.check_selection(CoreSet({0: np.array([1])}, n_neurons=8, n_layers=1))
        Traceback (most recent call last):
        minicore.errors.InputError: ... does not fit ...
        """
        if core and (core.n_layers, core.n_neurons) != (self.config.n_layers, self.config.n_neurons):
            raise InputError(f"{core!r} does not fit {self!r}")

    def frugal(self) -> Model:
        """Return the model that gives a mapped layer's FFN weights back as soon as it has used them.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.frugal().params is model.params
        True
        """
        other = self.using(self.ops)
        other.gives_back = True
        return other

    def release(self, layer: int) -> None:
        """Give back the memory of a mapped layer's FFN weights; using them again reads them again.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.release(0)  # nothing, where the weights are not mapped
        """
        if self.mapping is not None:
            self.mapping.release(f"blocks.{layer}.{name}" for name in PER_NEURON)

    def using(self, ops: ModuleType) -> Model:
        """Return the same model with its maths taken from another module.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.using(ops).params is model.params
        True
        """
        other = object.__new__(Model)
        other.__dict__ = self.__dict__ | {"ops": ops, "on_device": None}
        return other

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the model as kernels read it, for :func:`load` to map without packing it again.

        Raises
        ------
        InputError
            If the directory exists or cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> model = load("minicore-opt-core")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/mine")
        ...     load(f"{folder}/mine").config == model.config
        True
        """
        about = {"bos_id": self.bos_id, "eos_ids": list(self.eos_ids), "recommended": self.recommended}
        tokenizer = self.tokenizer.to_json() if self.tokenizer else None
        template = self.tokenizer.chat_template if self.tokenizer else None
        mapped.write(Path(directory), self.config, self.params, self.dtype, tokenizer, template, **about)

    def forward(self, ids: Sequence[int] | Array) -> Array:  # (n,) -> (n, n_vocab)
        """Return the logits after every token, float32.

        Raises
        ------
        InputError
            If ids are empty, outside the vocabulary, or more than the context holds.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> model.forward([5, 6, 7]).shape == (3, model.config.n_vocab)
        True
        """
        ids = self.check_ids(ids)
        cache = self.new_cache(len(ids))
        return np.concatenate([forward(self, chunk, cache) for chunk in _chunks(ids)])

    def run_with_cache(
        self,
        ids: Sequence[int] | Array,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Return logits and the named tensors of the forward pass.

        Parameters
        ----------
        ids : (n_tokens,) integers
        names_filter : str, list of str, callable or None
            Which tensors to keep: names (with ``*`` and ``?`` as wildcards), or a function of the name;
            None keeps all. :func:`hook_names` lists them.

        Returns
        -------
        logits : (n_tokens, n_vocab) float32
        cache : dict of str to float32 array
            No batch axis: (n_tokens, d_model) for the residual stream, (n_tokens, n_heads, d_head) for
            ``attn.hook_q`` and ``hook_z``, (n_heads, n_tokens, n_tokens) for ``attn.hook_pattern``,
            (n_tokens, n_neurons) for ``mlp.hook_pre`` and ``hook_post``.

        Raises
        ------
        InputError
            For an unknown name, with the nearest ones; otherwise as :meth:`forward`.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> logits, cache = model.run_with_cache([5, 6, 7], "blocks.0.*_post")
        >>> list(cache)
        ['blocks.0.mlp.hook_post', 'blocks.0.hook_resid_post']
        """
        keep = _names_filter(names_filter, hook_names(self.config))
        ids = self.check_ids(ids)
        cache: dict[str, Array] = {}

        def tap(name: str, value: Array) -> None:
            if name in keep:
                cache[name] = value.copy()  # the pass goes on to reuse its buffers

        return forward(self, ids, self.new_cache(len(ids)), tap), cache

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """Return the continuation of a prompt; :func:`minicore.generation.stream.stream` has the options.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> out = model.generate("The old house stood", max_new_tokens=5, ignore_eos=True)
        >>> len(out.token_ids)
        5
        """
        from minicore.generation.stream import generate

        return generate(self, prompt, **options)

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Stream:
        """Return an iterator over the pieces of text of :meth:`generate`, as they come.

        Examples
        --------
        >>> import minicore as mc
        >>> stream = mc.load("minicore-opt-core").stream("The old house stood", max_new_tokens=5)
        >>> "".join(stream) == stream.result.text
        True
        """
        from minicore.generation.stream import stream

        return stream(self, prompt, **options)


def load(name: str | PathLike[str], dtype: str | None = None, *, progress: bool = False) -> Model:
    """Load a model by name (``smollm2-135m``), Hugging Face directory or .gguf file.

    Parameters
    ----------
    name : str or path
        A name is fetched once and kept in the user's cache directory; a path is read where it is.
    dtype : str or None
        What matrices are held in: ``float32``, ``bfloat16``, ``int8`` or ``int4``; None is what a directory
        of `minicore pack` holds, float32 for anything else.
    progress : bool
        Show a progress bar on stderr if it is a terminal.

    Raises
    ------
    InputError
        If it cannot be found, fetched or read; the sentence names the file and what was expected.

    Examples
    --------
    >>> import minicore as mc
    >>> mc.load("minicore-opt-core", dtype="int8").dtype
    'int8'
    """
    checkpoint = read(name, dtype=dtype, progress=progress)
    tokenizer = from_source(
        checkpoint.tokenizer_source,
        checkpoint.chat_template,
        checkpoint.bos_id,
        checkpoint.eos_ids[0] if checkpoint.eos_ids else None,
        checkpoint.config.n_vocab,
        str(checkpoint.source),
    )
    return Model(checkpoint, tokenizer)


def hook_names(cfg: ModelConfig) -> list[str]:
    """Return the names of the tensors :meth:`Model.run_with_cache` can keep, in the order they appear."""
    rope, gated = cfg.positions == "rope", cfg.gated
    block = [
        "hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
        *(("attn.hook_rot_q", "attn.hook_rot_k") if rope else ()),
        "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
        "ln2.hook_normalized", "mlp.hook_pre", *(("mlp.hook_pre_linear", "mlp.hook_gate") if gated else ()),
        "mlp.hook_post",
        "hook_mlp_out", "hook_resid_post",
    ]  # fmt: skip
    names = ["hook_embed"] + ([] if rope else ["hook_pos_embed"])
    names += [f"blocks.{i}.{name}" for i in range(cfg.n_layers) for name in block]
    return [*names, "ln_final.hook_normalized"]


def _names_filter(wanted: Any, known: list[str]) -> set[str]:
    if wanted is None:
        return set(known)
    if callable(wanted):
        return {name for name in known if wanted(name)}
    keep: set[str] = set()
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise unknown("tensor name", pattern, known)
        keep.update(found)
    return keep


def _chunks(ids: Array) -> Iterator[Array]:
    for start in range(0, len(ids), PREFILL_CHUNK):
        yield ids[start : start + PREFILL_CHUNK]


def _ignore(name: str, value: Array) -> None:
    """Tap of a pass that nobody watches."""


def watches(tap: Tap, name: str) -> bool:
    """Say whether a tap may want a tensor: any, unless it has a list of those that it wants."""
    return tap is not _ignore and name in getattr(tap, "watched", [name])


def prefill(model: Model, ids: Array, cache: KVCache, tap: Tap = _ignore) -> Array:  # (n,) -> (n_vocab,)
    """Read a prompt chunk by chunk into the cache and return the logits after its last token.

    On a GPU if the model is read there, unless the tap wants more than recorders do.
    """
    if model.on_device is not None and (tap is _ignore or hasattr(tap, "watched")):
        return model.on_device.read(ids, cache, tap, getattr(tap, "watched", ()))
    hidden = np.empty(0)
    for chunk in _chunks(ids):
        hidden = hidden_states(model, chunk, cache, tap)
    return unembed(model, hidden[-1:], tap)[0]


def forward(model: Model, ids: Array, cache: KVCache, tap: Tap = _ignore) -> Array:  # (n,) -> (n, n_vocab)
    """Return logits after each of the ids, which continue what the cache holds."""
    return unembed(model, hidden_states(model, ids, cache, tap), tap)


def hidden_states(model: Model, ids: Array, cache: KVCache, tap: Tap) -> Array:  # (n,) -> (n, d_model)
    """Return the residual stream after the last block; the cache grows by n positions."""
    cache.check_room(len(ids))
    positions = np.arange(cache.length, cache.length + len(ids))
    x = embed(model, ids, positions, tap)
    for layer in range(model.config.n_layers):
        x = block(model, layer, x, positions, cache, tap)
    cache.length += len(ids)
    return x


def embed(model: Model, ids: Array, positions: Array, tap: Tap) -> Array:  # (n,), (n,) -> (n, d_model)
    """Look up the tokens' rows, plus the positions' where these are learned."""
    x = model.ops.to_float32(model.params["embed"][ids])
    tap("hook_embed", x)
    if model.config.positions == "learned":
        at = model.ops.to_float32(model.params["pos_embed"][positions + model.config.position_offset])
        tap("hook_pos_embed", at)
        x = x + at
    return x


def block(model: Model, layer: int, x: Array, positions: Array, cache: KVCache, tap: Tap) -> Array:
    # (n, d_model), (n,) -> (n, d_model)
    """Add a block's attention and FFN to the residual stream."""
    p, at = model.blocks[layer], f"blocks.{layer}."
    tap(at + "hook_resid_pre", x)
    normed = norm(model, x, p["ln1.w"], p.get("ln1.b"))
    tap(at + "ln1.hook_normalized", normed)
    out = attention(model, layer, normed, positions, cache, tap)
    tap(at + "hook_attn_out", out)
    x = x + out
    tap(at + "hook_resid_mid", x)
    normed = norm(model, x, p["ln2.w"], p.get("ln2.b"))
    tap(at + "ln2.hook_normalized", normed)
    out = ffn(model, layer, normed, tap)
    if model.gives_back:
        model.release(layer)
    tap(at + "hook_mlp_out", out)
    x = x + out
    tap(at + "hook_resid_post", x)
    return x


def norm(model: Model, x: Array, w: Array, b: Array | None) -> Array:  # (n, d_model) -> (n, d_model)
    """Apply the family's norm."""
    eps = model.config.norm_eps
    return model.ops.rms_norm(x, w, eps) if b is None else model.ops.layer_norm(x, w, b, eps)


def attention(model: Model, layer: int, x: Array, positions: Array, cache: KVCache, tap: Tap) -> Array:
    # (n, d_model), (n,) -> (n, d_model)
    """Attend over the cache and the n new positions (grouped queries where n_kv_heads < n_heads)."""
    cfg, p, ops, at = model.config, model.blocks[layer], model.ops, f"blocks.{layer}.attn."
    q, k, v = ops.linears(x, [(p[f"attn.w_{i}"], p.get(f"attn.b_{i}")) for i in "qkv"])
    q = q.reshape(len(x), cfg.n_heads, cfg.d_head)
    k, v = (y.reshape(len(x), cfg.n_kv_heads, cfg.d_head) for y in (k, v))
    for name, value in (("q", q), ("k", k), ("v", v)):
        tap(f"{at}hook_{name}", value)
    if cfg.positions == "rope":
        frequencies = ops.rope_frequencies(cfg)
        q, k = ops.rope(q, positions, frequencies), ops.rope(k, positions, frequencies)
        tap(at + "hook_rot_q", q)
        tap(at + "hook_rot_k", k)
    if cache.dtype == "int8":  # scores are products in integers
        q = ops.fake_quantize(q.reshape(len(x), -1), cfg.d_head).reshape(q.shape)
    keys, values = cache.append(layer, k, v)
    keys, values = ops.to_float32(keys), ops.to_float32(values)
    if watches(tap, at + "hook_attn_scores") or watches(tap, at + "hook_pattern"):
        scores, pattern = ops.attention_pattern(q, keys)
        tap(at + "hook_attn_scores", scores)
        tap(at + "hook_pattern", pattern)
        z = ops.attend(pattern, values)
    else:  # compiled maths has neither as a whole
        z = ops.attention(q, keys, values)
    tap(at + "hook_z", z)
    return ops.linear(z.reshape(len(x), -1), p["attn.w_o"], p.get("attn.b_o"))


def ffn(model: Model, layer: int, x: Array, tap: Tap) -> Array:  # (n, d_model) -> (n, d_model)
    """Sum the neurons' rows of ``w_out``, each times its activation."""
    cfg, p, ops, at = model.config, model.blocks[layer], model.ops, f"blocks.{layer}.mlp."
    act = ops.ACTIVATIONS[cfg.activation]
    if cfg.gated:
        a, gate = ops.linears(x, [(p[f"mlp.w_{i}"], p.get(f"mlp.b_{i}")) for i in ("in", "gate")])
        tap(at + "hook_pre", gate)
        tap(at + "hook_pre_linear", a)
        gate = act(gate)
        tap(at + "hook_gate", gate)
        a = gate * a
    else:
        a = ops.linear(x, p["mlp.w_in"], p.get("mlp.b_in"))
        tap(at + "hook_pre", a)
        gate = a = act(a)
    if GATE in p:
        a = keep_open(a, gate, float(p[GATE]))
    if TOP in p:
        a = keep_top(a, int(p[TOP]))
    tap(at + "hook_post", a)
    out = ops.weighted_rows(a, p["mlp.w_out"])
    return out + p["mlp.b_out"] if "mlp.b_out" in p else out


def unembed(model: Model, x: Array, tap: Tap) -> Array:  # (n, d_model) -> (n, n_vocab)
    """Apply the last norm and the head."""
    normed = norm(model, x, model.params["ln_f.w"], model.params.get("ln_f.b"))
    tap("ln_final.hook_normalized", normed)
    return model.ops.linear(normed, model.head)
