"""LoRA adapters of PEFT: read, checked, and added to the base model's tensors as those are read.

A LoRA adapter (Hu et al. 2021, arXiv:2106.09685) stores two narrow matrices for each adapted matrix W of
shape (out, in): A (r, in) and B (out, r). The adapted model computes with W + s * B @ A, where s is
alpha / r, or alpha / sqrt(r) under rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicore.checkpoint import safetensors
from minicore.checkpoint.parameters import Place
from minicore.checkpoint.settings import Settings, read_json
from minicore.checkpoint.tensors import Array, Tensor
from minicore.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys of adapter_config.json that say what the adapter computes and are followed here ...
FOLLOWED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
}
# ... and those that only concern training, or how the base model stores its matrices, which its files show.
# Any other key that is set changes the computation in a way that is not implemented.
IRRELEVANT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
    "merge_weights",
}
# Initialisations that leave the base model's weights as they are; others train a changed copy of them.
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|base_layer\.weight)"
)


class AdapterSource(NamedTuple):
    """Where an adapter was read from, and the SHA-256 of its config and weights."""

    path: str
    sha256: str

    @property
    def suffix(self) -> str:
        """What the name of an adapted model ends with: ``+`` and the name of the adapter's directory."""
        return f"+{Path(self.path).name}"


@dataclass(frozen=True)
class Module:
    """A module of the base model that holds one matrix.

    Attributes
    ----------
    tensor : str
        Name of its weight in the base model's files.
    kind : str
        ``linear``, ``embedding`` or ``head``.
    stored_in_out : bool
        Whether the file stores (in, out), as GPT-2's Conv1D does.
    """

    tensor: str
    kind: str
    stored_in_out: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter's config and tensors; nothing is checked against a base model yet.

    Attributes
    ----------
    source : AdapterSource
    settings : Settings
        adapter_config.json.
    tensors : dict of str to dict of str to Tensor
        Module -> part (such as ``lora_A.weight``) -> tensor.
    """

    source: AdapterSource
    settings: Settings = field(repr=False)
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)


def read(path: str | os.PathLike[str]) -> Adapter:
    """Read a PEFT directory: adapter_config.json and adapter_model.safetensors.

    Raises
    ------
    InputError
        If a file is missing or broken, if the config asks for anything other than plain LoRA, or if a tensor
        is not part of one. The message names the file and the key or tensor.

    Examples
    --------
    >>> read("no-such-adapter")
    Traceback (most recent call last):
    minicore.errors.InputError: no-such-adapter: has no adapter_config.json, expected ...
    """
    directory = Path(path)
    config, weights = directory / CONFIG, directory / WEIGHTS
    if not config.is_file():
        raise InputError(f"{directory}: has no {CONFIG}, expected the directory of a PEFT adapter")
    if not weights.is_file():
        pickled = ", which is pickled and not supported" if (directory / "adapter_model.bin").exists() else ""
        found = f"has adapter_model.bin{pickled}" if pickled else f"has no {WEIGHTS}"
        raise InputError(f"{directory}: {found}; expected {WEIGHTS}")
    settings = Settings(read_json(config), config)
    _check_settings(settings)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.read_file(weights).items():
        match = KEY.fullmatch(name)
        if match is None:
            raise InputError(
                f"{tensor.where} is not part of a plain LoRA adapter, expected only names such as "
                "base_model.model.MODULE.lora_A.weight"
            )
        tensors.setdefault(match["module"], {})[match["part"]] = tensor
    return Adapter(AdapterSource(str(directory.absolute()), _sha256(config, weights)), settings, tensors)


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _check_settings(settings: Settings) -> None:
    """Refuse every setting other than those of plain LoRA."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{settings.source}: peft_type is {kind!r}, which is not supported; expected LORA")
    settings.only("bias", "none")
    start = settings.get("init_lora_weights")
    if start not in INITIALISATIONS:
        raise InputError(
            f"{settings.source}: init_lora_weights is {start!r}, which changes the base model's weights; "
            "expected an adapter that was converted to plain LoRA when it was saved"
        )
    for key, value in settings.values.items():
        if value and key not in FOLLOWED | IRRELEVANT:
            raise InputError(
                f"{settings.source}: {key} is {value!r}, which is not supported; expected plain LoRA"
            )


def merge(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    where: Mapping[str, Place],
    prefix: str,
    prefixes: Iterable[str],
) -> dict[str, Tensor]:
    """Return the base model's tensors, those that the adapter changes with its update added.

    The update is added to each piece as it is read, in float32, in the layout of the file. What is done to
    tensors afterwards (splitting fused ones, transposing, quantising) applies to the sum.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The base model's; they have passed :func:`minicore.checkpoint.parameters.check`.
    where : mapping of str to Place
        Where the base model's files keep each parameter.
    prefix, prefixes : str, iterable of str
        The prefix of tensor names in the base model's files, and those that the family may have: the adapter
        may use another one.

    Raises
    ------
    InputError
        If the adapter has a tensor that the base model has no place for or that its config does not mention,
        lacks one that its config promises, or has one of a wrong shape. The message names it.

    Examples
    --------
    >>> import json, tempfile
    >>> from safetensors.numpy import save_file
    >>> import minicore as mc
    >>> module = "model.decoder.layers.0.self_attn.q_proj"
    >>> a, b = np.ones((2, 256), np.float32), np.ones((256, 2), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": [module]}
    ...     _ = Path(folder, CONFIG).write_text(json.dumps(config))
    ...     key = f"base_model.model.{module}"
    ...     save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, f"{folder}/{WEIGHTS}")
    ...     adapted = mc.load("minicore-opt-core", adapter=folder)  # calls merge
    >>> w = mc.load("minicore-opt-core").params["blocks.0.attn.w_q"]
    >>> np.array_equal(adapted.params["blocks.0.attn.w_q"], w + 1 / 2 * (b @ a))
    True
    """
    weights = Path(adapter.source.path) / WEIGHTS
    modules = _modules(adapter.tensors, tensors, where, prefix, tuple(prefixes))
    for name, parts in adapter.tensors.items():
        tensor = next(iter(parts.values()))
        if name not in modules:
            raise InputError(f"{tensor.where} is for {name}, {_why_absent(name, where)}")
        if not _is_targeted(adapter.settings, name, modules[name].kind):
            raise InputError(
                f"{tensor.where} is for {name}, expected only modules that target_modules of {CONFIG} names"
            )
    merged = dict(tensors)
    for name, module in modules.items():
        if name in adapter.tensors:
            merged[module.tensor] = _updated(adapter, name, module, tensors[module.tensor], where)
        elif _is_targeted(adapter.settings, name, module.kind):
            raise InputError(
                f"{weights}: has no tensors for {name}, expected them as target_modules names it"
            )
    return merged


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let products run in one thread each: the threads that read the tensors compute them side by side."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def _modules(
    adapted: Iterable[str],
    tensors: Mapping[str, Tensor],
    where: Mapping[str, Place],
    prefix: str,
    prefixes: tuple[str, ...],
) -> dict[str, Module]:
    """Return the base model's modules by name, under the prefix that the adapter uses."""
    found: dict[str, Module] = {}
    for parameter, place in where.items():
        tensor = tensors.get(place.name)
        if tensor is None or len(tensor.shape) != 2 or not place.name.endswith(".weight"):
            continue
        kind = {"embed": "embedding", "pos_embed": "embedding", "head": "head"}.get(parameter, "linear")
        # a w_out is stored (n_neurons, d_model), which is (in, out); other parameters are (out, in)
        stored_in_out = kind == "linear" and place.transposed != parameter.endswith(".w_out")
        short = place.name.removesuffix(".weight")
        found[short] = Module(place.name, kind, stored_in_out)
    wanted = set(adapted)

    def spelled(spelling: str) -> dict[str, Module]:
        return {
            name if module.kind == "head" else spelling + name.removeprefix(prefix): module
            for name, module in found.items()
        }

    return spelled(max(prefixes, key=lambda p: len(wanted & set(spelled(p)))))  # the first of equals


def _why_absent(name: str, where: Mapping[str, Place]) -> str:
    if name == "lm_head" and "head" not in where:
        return "which this model ties to its embedding; expected an adapter that leaves both as they are"
    return "a module that the base model does not have; expected an adapter that was made for it"


def _is_targeted(settings: Settings, name: str, kind: str) -> bool:
    """Say whether the config names a module, by the rules of PEFT's check_target_module_exists."""
    targets, excluded = settings.get("target_modules"), settings.get("exclude_modules", default=[])
    if _names(settings, "exclude_modules", excluded, name):
        return False
    if targets == "all-linear":
        return kind == "linear"
    if not _names(settings, "target_modules", targets, name):
        return False
    layers = settings.get("layers_to_transform")
    if isinstance(targets, str) or name in targets or layers is None or layers == []:
        return True
    patterns = settings.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        within = r"(?:^|.*?\.)PATTERN\.(?P<layer>\d+)\..*"
        if match := _match(settings, "layers_pattern", pattern, name, within):
            return int(match["layer"]) in (layers if isinstance(layers, list) else [layers])
    return False


def _names(settings: Settings, key: str, value: Any, name: str) -> bool:
    """Say whether a regular expression, or a list of names or of their last parts, names a module."""
    if isinstance(value, str):
        return _match(settings, key, value, name) is not None
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(
            f"{settings.source}: {key} is {value!r}, expected a list of names or a regular expression"
        )
    return any(name == part or name.endswith(f".{part}") for part in value)


def _match(
    settings: Settings, key: str, pattern: str, name: str, within: str = "PATTERN"
) -> re.Match[str] | None:
    """Match a whole name with a regular expression from the config, put in place of PATTERN in another."""
    try:
        return re.fullmatch(within.replace("PATTERN", pattern), name)
    except re.error as error:
        raise InputError(
            f"{settings.source}: {key} has {pattern!r}, expected a regular expression ({error})"
        ) from error


def _for_module(settings: Settings, key: str, pattern_key: str, name: str) -> float:
    """Return r or lora_alpha of a module: the first entry of the pattern table that matches, else the key."""
    table = settings.get(pattern_key, default={})
    if not isinstance(table, dict):
        raise InputError(f"{settings.source}: {pattern_key} is {table!r}, expected an object")
    for pattern in table:
        if _match(settings, pattern_key, pattern, name, r"(.*\.)?(PATTERN)"):
            entry = f"{pattern_key}.{pattern}"
            return Settings({entry: table[pattern]}, settings.source).number(entry)
    return settings.number(key, default=8.0)


def _updated(adapter: Adapter, name: str, module: Module, base: Tensor, where: Mapping[str, Place]) -> Tensor:
    """Return a tensor whose rows are the base tensor's plus the adapter's update."""
    if module.kind == "embedding" and "head" not in where and module.tensor == where["embed"].name:
        tensor = next(iter(adapter.tensors[name].values()))
        raise InputError(f"{tensor.where} is for {name}, {_why_absent('lm_head', where)}")
    parts = dict(adapter.tensors[name])
    if "base_layer.weight" in parts:  # PEFT saves embeddings and heads with their update, and loads them back
        base = _whole(parts.pop("base_layer.weight"), base)
    left, right = _factors(adapter, name, module, parts, base)

    def rows(start: int, stop: int) -> Array:
        piece: Array = base.rows(start, stop).astype(np.float32, copy=False)
        return piece + left[start:stop] @ right

    return replace(base, rows=rows)


def _whole(saved: Tensor, base: Tensor) -> Tensor:
    if saved.shape != base.shape:
        raise InputError(
            f"{saved.where} has shape {saved.shape}, expected {base.shape}, that of the base model's"
        )
    saved.rows(0, 0)
    return saved


def _factors(
    adapter: Adapter, name: str, module: Module, parts: dict[str, Tensor], base: Tensor
) -> tuple[Array, Array]:  # -> (n_rows, r), (r, n_columns) float32
    """Return two matrices whose product is the update of a tensor, in the layout of the file."""
    settings = adapter.settings
    embedding = module.kind == "embedding"
    a_name, b_name = (
        ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    )
    r = _for_module(settings, "r", "rank_pattern", name)
    alpha = _for_module(settings, "lora_alpha", "alpha_pattern", name)
    scale = alpha / (math.sqrt(r) if settings.flag("use_rslora", False) else r)
    if r != int(r):
        raise InputError(f"{settings.source}: the rank of {name} is {r}, expected an integer")
    swapped = embedding or module.stored_in_out
    n_out, n_in = base.shape[::-1] if swapped else base.shape
    a = _matrix(adapter, name, parts, a_name, (int(r), n_in))
    b = _matrix(adapter, name, parts, b_name, (n_out, int(r)))
    if parts:
        tensor = next(iter(parts.values()))
        raise InputError(
            f"{tensor.where} does not belong to a module such as {name}, expected {a_name} and {b_name}"
        )
    b *= np.float32(scale)
    return (a.T, b.T) if swapped else (b, a)


def _matrix(
    adapter: Adapter, name: str, parts: dict[str, Tensor], part: str, shape: tuple[int, int]
) -> Array:
    """Remove a tensor from ``parts`` and return it, checked, as a float32 copy."""
    if part not in parts:
        weights = Path(adapter.source.path) / WEIGHTS
        raise InputError(
            f"{weights}: tensor base_model.model.{name}.{part} is missing, expected one of shape {shape}"
        )
    tensor = parts.pop(part)
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.where} has shape {tensor.shape}, expected {shape} by {CONFIG} and the base model"
        )
    matrix = tensor.rows(0, shape[0]).astype(np.float32)
    tensor.release(0, shape[0])
    if not np.isfinite(matrix).all():
        raise InputError(f"{tensor.where} holds NaN or infinity, expected finite numbers")
    return matrix
