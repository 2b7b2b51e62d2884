"""Model: a config, its parameters and a tokenizer."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.checkpoint import Checkpoint, mapped, read
from minicore.checkpoint.adapters import AdapterSource
from minicore.config import ModelConfig
from minicore.core.rules import Selection, TokenRule
from minicore.errors import InputError, unknown
from minicore.forward import chunks, forward, hook_names
from minicore.kv_cache import KVCache
from minicore.quantization import FORMATS
from minicore.tokenizer import Tokenizer, from_source

if TYPE_CHECKING:
    from minicore.checkpoint.export import Written
    from minicore.generation.stream import Generation, Stream

Array = np.ndarray

PER_NEURON = ("mlp.w_gate", "mlp.w_in", "mlp.w_out", "mlp.b_gate", "mlp.b_in")  # row i is neuron i


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Model:
    """A loaded checkpoint. Nothing changes it: what differs is a new Model that shares the arrays.

    Attributes
    ----------
    config : ModelConfig
    params : dict of str to array
        Names and shapes of ``config.shapes()``; matrices in ``dtype``, vectors float32.
    blocks : sequence of dict
        The same parameters block by block, under their names inside a block.
    tokenizer : Tokenizer or None
        None if the checkpoint came without one; such a model takes lists of ids.
    name, source : str, Path
        What was asked for, and the file or directory it was read from. An adapter's name follows after ``+``.
    file_dtype : str
        What the file holds, such as ``"F16"``.
    bos_id, eos_ids : int or None, tuple of int
        The token that begins a text, and those that end a generation.
    recommended : dict
        Predictor settings the checkpoint recommends, possibly empty.
    generation : dict
        How the checkpoint wants tokens to be chosen: what is applied of its generation_config.json.
    mapping : MappedWeights or None
        The file behind the parameters, if they are mapped (`minicore pack`).
    adapter : AdapterSource or None
        The LoRA adapter that is part of the weights: its path and SHA-256.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> model.config.family, model.dtype, sorted(model.recommended)
    ('opt', 'float32', ['alpha', 'beta', 'predictor'])
    """

    config: ModelConfig
    params: dict[str, Array]
    blocks: Sequence[dict[str, Array]]
    tokenizer: Tokenizer | None = None
    name: str = "model"
    source: Path = Path()
    file_dtype: str = ""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    recommended: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    mapping: mapped.MappedWeights | None = None
    adapter: AdapterSource | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Model:
        """Return the model in a checkpoint.

        Examples
        --------
        >>> from minicore.checkpoint import read
        >>> Model.of(read("minicore-opt-core"), tokenizer=None)
        Model(minicore-opt-core, 5 layers, d_model 256, 2048 neurons, float32)
        """
        return cls(
            config=checkpoint.config,
            params=checkpoint.params,
            blocks=split_blocks(checkpoint.params, checkpoint.config.n_layers),
            tokenizer=tokenizer,
            name=checkpoint.name,
            source=checkpoint.source,
            file_dtype=checkpoint.file_dtype,
            bos_id=checkpoint.bos_id,
            eos_ids=checkpoint.eos_ids,
            recommended=checkpoint.recommended,
            generation=checkpoint.generation,
            mapping=checkpoint.mapping,
            adapter=checkpoint.adapter,
        )

    def __repr__(self) -> str:
        c = self.config
        shape = f"{c.n_layers} layers, d_model {c.d_model}, {c.n_neurons} neurons"
        return f"Model({self.name}, {shape}, {self.dtype})"

    @property
    def head(self) -> Array:  # (n_vocab, d_model)
        """The matrix that gives logits: the embedding where the two are tied."""
        return self.params["embed" if self.config.tied_head else "head"]

    @property
    def dtype(self) -> str:
        """Dtype of the matrices."""
        return str(self.params["embed"].dtype)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(w.nbytes for w in self.params.values())

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty kv cache with elements as long as the weights'; int8 for int4 weights.

        Longer elements would soon be most of what a token reads. A GPU holds an int8 cache in bfloat16.

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
            bad = int(array[(array < 0) | (array >= self.config.n_vocab)][0])
            token = self.tokenizer.token(bad) if self.tokenizer else None
            named = f" (the tokenizer's {token!r})" if token is not None else ""
            raise InputError(f"token id {bad}{named} is not in the vocabulary of {self.config.n_vocab}")
        return array.astype(np.int64)

    def restrict(
        self, selection: Selection | None, after_layer: Callable[[int], None] | None = None
    ) -> Model:
        """Return the model whose FFNs are the selected neurons only, sharing everything else.

        A neuron is a row of ``w_in``, ``w_gate`` and ``w_out``: decoding with a core set is decoding with
        a narrower FFN (CoreInfer, sec. 4). A :class:`TokenRule` adds its limits to the blocks, where the
        forward pass finds them. ``after_layer`` is called once a layer's rows have been copied.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> few = mc.CoreSet({0: np.arange(10)}, model.config.n_neurons, model.config.n_layers)
        >>> model.restrict(few).blocks[0]["mlp.w_in"].shape[0]
        10
        """
        self.check_selection(selection)
        if selection is None:
            return self
        blocks = [dict(block) for block in self.blocks]
        for layer, ids in selection.neurons.items():
            block = self.blocks[layer]
            blocks[layer] |= {name: block[name][ids] for name in PER_NEURON if name in block}
            if after_layer:
                after_layer(layer)
        if isinstance(selection, TokenRule):
            blocks = [block | selection.parameters(i) for i, block in enumerate(blocks)]
        return replace(self, blocks=blocks)

    def check_selection(self, selection: Selection | None) -> None:
        """Raise InputError if the neurons were selected for a model of another shape.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> from minicore import CoreSet
        >>> model.check_selection(CoreSet({0: np.array([1])}, n_neurons=8, n_layers=1))
        Traceback (most recent call last):
        minicore.errors.InputError: ... does not fit ...
        """
        shape = self.config.n_layers, self.config.n_neurons
        if selection and (selection.n_layers, selection.n_neurons) != shape:
            raise InputError(f"{selection!r} does not fit {self!r}")

    def release(self, layer: int) -> None:
        """Give back the memory of a mapped layer's FFN weights; the next use reads them from the file.

        Examples
        --------
        >>> model = load("minicore-opt-core")
        >>> model.release(0)  # nothing happens where the weights are not mapped
        """
        if self.mapping is not None:
            self.mapping.release(f"blocks.{layer}.{name}" for name in PER_NEURON)

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
        from minicore.checkpoint import hf_export  # reading a model does not need it

        about: dict[str, Any] = {
            "bos_id": self.bos_id,
            "eos_ids": list(self.eos_ids),
            "recommended": self.recommended,
            "generation": self.generation,
        }
        if original := hf_export.original(self.source):
            about["original"] = {"values": original.values, "tensors": original.tensors}
        if self.adapter:
            about["adapter"] = [self.adapter.path, self.adapter.sha256]
        tokenizer = self.tokenizer.to_json() if self.tokenizer else None
        settings = self.tokenizer.to_config() if self.tokenizer else None
        mapped.write(Path(directory), self.config, self.params, self.dtype, tokenizer, settings, **about)

    def export(
        self,
        path: str | PathLike[str],
        format: str = "hf",
        dtype: str | None = None,
        *,
        progress: bool = False,
    ) -> Written:
        """Write the model for other engines: a Hugging Face directory, or a GGUF file.

        Parameters
        ----------
        path : str or path
            A directory to create; for ``gguf`` also a file whose name ends in .gguf.
        format : str
            ``hf`` or ``gguf``.
        dtype : str or None
            Type of the matrices in the file: ``float32``, ``float16`` or ``bfloat16``; for GGUF also
            ``q8_0``, ``q4_0`` and ``q4_1``. None is bfloat16 for a model in bfloat16, else float32, so that
            nothing is rounded.
        progress : bool
            Show a progress bar on stderr if it is a terminal.

        Returns
        -------
        Written
            ``path``, what to load, and ``notes``, what users of other engines must know.

        Raises
        ------
        InputError
            If the path exists, or the format cannot say what the model computes.

        Examples
        --------
        >>> import tempfile
        >>> model = load("minicore-opt-core")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = model.export(f"{folder}/mine", "hf", "float16")
        ...     load(written.path).recommended == model.recommended
        True
        """
        from minicore.checkpoint import export  # reading a model does not need it

        same = "bfloat16" if self.dtype == "bfloat16" else "float32"
        exported = export.Exported(
            config=self.config,
            params=self.params,
            name=self.name,
            source=self.source,
            tokenizer=self.tokenizer.to_json() if self.tokenizer else None,
            tokenizer_config=self.tokenizer.to_config() if self.tokenizer else {},
            bos_id=self.bos_id,
            eos_ids=self.eos_ids,
            recommended=self.recommended,
        )
        return export.export(exported, Path(path), format, dtype or same, progress)

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
        return np.concatenate([forward(self, chunk, cache) for chunk in chunks(ids)])

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

        def copy(name: str, value: Array) -> None:
            cache[name] = value.copy()  # the pass goes on to reuse its buffers

        hooks = {name: partial(copy, name) for name in keep}
        return forward(self, ids, self.new_cache(len(ids)), hooks), cache

    # The only imports that run upwards: these two methods save users from importing a function.

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


def split_blocks(params: dict[str, Array], n_layers: int) -> list[dict[str, Array]]:
    """Return the parameters of each block, under their names inside it."""
    blocks: list[dict[str, Array]] = [{} for _ in range(n_layers)]
    for name, w in params.items():
        if name.startswith("blocks."):
            _, layer, short = name.split(".", 2)
            blocks[int(layer)][short] = w
    return blocks


def load(
    name: str | PathLike[str],
    dtype: str | None = None,
    *,
    activation: str | None = None,
    adapter: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Model:
    """Load a model by name (``smollm2-135m``), Hugging Face directory or .gguf file.

    Parameters
    ----------
    name : str or path
        A name is fetched once and kept in the user's cache directory; a path is read where it is.
    dtype : str or None
        What matrices are held in: ``float32``, ``bfloat16``, ``int8`` or ``int4``; None is what a directory
        of `minicore pack` holds, float32 for anything else.
    activation : str or None
        The FFN's activation, such as ``relu`` or ``fatrelu:0.01`` (with its threshold), in place of the
        checkpoint's. GGUF files do not record it, so those of ReLU models (ReluLLaMA, ProSparse) need it.
    adapter : path or None
        Directory of a PEFT LoRA adapter (adapter_config.json, adapter_model.safetensors) for the model. It is
        added to the weights while they are read, before they are converted to ``dtype``.
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
    checkpoint = read(name, dtype=dtype, progress=progress, activation=activation, adapter=adapter)
    tokenizer = from_source(
        checkpoint.tokenizer_source,
        checkpoint.chat_template,
        checkpoint.bos_id,
        checkpoint.eos_ids[0] if checkpoint.eos_ids else None,
        checkpoint.config.n_vocab,
        str(checkpoint.source),
    )
    return Model.of(checkpoint, tokenizer)


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


def __getattr__(name: str) -> Any:
    """Import :func:`minicore.forward.prefill` from here as before version 0.2."""
    if name != "prefill":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("minicore.model.prefill is now minicore.forward.prefill", DeprecationWarning, stacklevel=2)
    from minicore.forward import prefill

    return prefill
