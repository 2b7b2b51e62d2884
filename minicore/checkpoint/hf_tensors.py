"""The tensors of a Hugging Face directory under the names and in the form that a family's name map expects.

Programs leave traces in checkpoints: prefixes of wrappers, a tied output head that is stored in place of the
embedding, heads for other tasks, buffers, and 8-bit floating-point matrices with scales.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minicore.checkpoint.families import FAMILIES, Family
from minicore.checkpoint.parameters import same_values
from minicore.checkpoint.safetensors import FLOAT8
from minicore.checkpoint.tensors import Array, Tensor
from minicore.config import ModelConfig
from minicore.errors import InputError

Tensors = dict[str, Tensor]

# What wrappers of PyTorch put into names: torch.compile, FSDP and activation checkpointing at any depth,
# DataParallel in front.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Buffers that follow from the config, and heads that some programs store next to the model without a prefix.
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|rotary\.inv_freq"
    r"|masked_bias|position_ids|causal_mask|(input|k|v|q|output)_scale)$"
)
_HEADS = re.compile(r"(score|(\w+_)?heads?|v_head|classifier|qa_outputs|summary)\.")
_OUTPUT_HEAD = "lm_head.weight"  # Transformers 5's name in every family; files of GPT-NeoX have another
# Quantization methods whose 8-bit floats times their scales are the weights.
_FLOAT8_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")
_BLOCK = (128, 128)  # rows and columns that share a scale, unless the config says otherwise


def unwrap(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors without the prefixes of wrappers: ``_orig_mod.``, ``module.``, and a second ``model.``.

    Raises
    ------
    InputError
        If two tensors have the same name then.

    Examples
    --------
    >>> from minicore.checkpoint import names, safetensors
    >>> found = safetensors.read_directory(names.resolve("minicore-opt-core"))
    >>> wrapped = {f"module._orig_mod.model.{name}": tensor for name, tensor in found.items()}
    >>> unwrap(wrapped) == found
    True
    """
    renamed = {name: _WRAPPERS.sub("", name) for name in tensors}
    while renamed and all(name.startswith("module.") for name in renamed.values()):
        renamed = {name: new.removeprefix("module.") for name, new in renamed.items()}
    known = {
        prefix + family.names[parameter].name
        for family in FAMILIES.values()
        for prefix in family.prefixes
        for parameter in ("embed", "ln_f.w")
        if parameter in family.names
    }
    inside = {new.removeprefix("model.") for new in renamed.values() if new.startswith("model.")}
    if known & inside and not known & set(renamed.values()):
        renamed = {name: new.removeprefix("model.") for name, new in renamed.items()}
    found: Tensors = {}
    for name, new in renamed.items():
        if new in found:
            raise InputError(f"{tensors[name].where} and {found[new].where} are both {new}, expected one")
        found[new] = tensors[name]
    return found


def dequantize(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    """Return config and tensors with 8-bit floats multiplied by their scales, as Transformers does on a CPU.

    A matrix ``X.weight`` of kind F8_E4M3 or F8_E5M2 is multiplied by ``X.weight_scale`` (one, or one for each
    row; compressed-tensors, FBGEMM) or ``X.weight_scale_inv`` (one for each block of
    ``quantization_config.weight_block_size``; DeepSeek's format). Without either it is taken as it is.
    Activations are not quantized. The config comes back without a ``quantization_config`` that says so.

    Raises
    ------
    InputError
        If scales do not fit their matrix.

    Examples
    --------
    >>> about = {"quantization_config": {"quant_method": "fp8"}}
    >>> dequantize(about, {})  # no 8-bit floats: whoever reads the config refuses the method
    ({'quantization_config': {'quant_method': 'fp8'}}, {})
    """
    about = values.get("quantization_config")
    about = about if isinstance(about, dict) else {}
    found, blocks = dict(tensors), about.get("weight_block_size") or _BLOCK
    if not any(tensor.kind in FLOAT8 for tensor in found.values()):
        return dict(values), found
    for name, tensor in tensors.items():
        scales = [s for s in (f"{name}_scale", f"{name}_scale_inv") if s in tensors]
        if tensor.kind in FLOAT8 and scales:
            found[name] = _scaled(tensor, found.pop(scales[0]), blocks)
    known = about.get("quant_method") in _FLOAT8_METHODS
    if about.get("quant_method") == "compressed-tensors":
        known = about.get("format") == "float-quantized"
    return {key: value for key, value in values.items() if key != "quantization_config" or not known}, found


def _scaled(tensor: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Return a tensor times its scales: one, one for each row, or one for each block."""
    factors = np.asarray(scales.rows(0, scales.shape[0]) if scales.shape else scales.rows(0, 1), np.float32)
    n_rows, n_columns = tensor.shape[0], math.prod(tensor.shape[1:])
    by_block = scales.name.endswith("_inv") and factors.ndim == 2
    if by_block:
        fits = factors.shape == (-(-n_rows // block[0]), -(-n_columns // block[1]))
    else:
        fits = factors.size in (1, n_rows)
    if not fits:
        raise InputError(f"{scales.where} has shape {scales.shape}, which does not fit {tensor.shape}")

    def rows(start: int, stop: int) -> Array:
        values = tensor.rows(start, stop).astype(np.float32)
        if by_block:
            wide = factors[np.arange(start, stop) // block[0]].repeat(block[1], axis=1)
            return np.multiply(values, wide[:, :n_columns])
        if factors.size == 1:
            return np.multiply(values, factors.reshape(-1)[0])
        return np.multiply(values, factors.reshape(n_rows, *[1] * (values.ndim - 1))[start:stop])

    return replace(tensor, rows=rows)


def settle_head(
    config: ModelConfig, family: Family, prefix: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> tuple[ModelConfig, Tensors]:
    """Return config and tensors that agree about the output head. Where they differ, the tensors decide.

    As in Transformers, a head without an embedding is both if the config ties them, and a head that differs
    from the embedding is not tied. Beyond that, an embedding without a head is both, if the config names no
    architecture that has another head. Differences from the config are logged.

    Examples
    --------
    >>> from minicore.checkpoint import families, names, safetensors
    >>> import json
    >>> folder = names.resolve("minicore-opt-core")
    >>> values = json.loads((folder / "config.json").read_text())
    >>> found = safetensors.read_directory(folder)
    >>> family, config, prefix = families.read_config(values, folder, found)
    >>> found["lm_head.weight"] = found.pop("model.decoder.embed_tokens.weight")
    >>> config, found = settle_head(config, family, prefix, found, values)
    >>> config.tied_head, "model.decoder.embed_tokens.weight" in found
    (True, True)
    """
    head, embed = family.names["head"].name, prefix + family.names["embed"].name
    found = dict(tensors)
    if head not in found and _OUTPUT_HEAD in found:
        found[head] = found.pop(_OUTPUT_HEAD)
    flag = f"tie_word_embeddings is {str(config.tied_head).lower()}"
    if head in found and embed not in found:
        if not config.tied_head:
            _log(found[head], f"there is no {embed}: this tensor is the embedding too, although {flag}")
        found[embed] = found.pop(head)
        return config.replace(tied_head=True), found
    if head in found and config.tied_head:
        if same_values(found[head], found[embed]):
            del found[head]
            return config, found
        _log(found[head], f"differs from {embed}, so they are not tied, although {flag}")
        return config.replace(tied_head=False), found
    if head not in found and embed in found and not config.tied_head:
        named = values.get("architectures") or ["ForCausalLM"]
        if isinstance(named, list) and all(
            str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in named
        ):
            _log(found[embed], f"there is no {head}: the embedding is the output head too, although {flag}")
            return config.replace(tied_head=True), found
    return config, found


def unused_by(family: Family, prefix: str) -> Callable[[str], bool]:
    """Return a function that says of a tensor's name whether no computation of the language model uses it.

    That holds for buffers that follow from the config and for heads of other tasks, which lie outside the
    module that holds the model. A name within that module, or within the output head, is never unused.

    Examples
    --------
    >>> unused = unused_by(FAMILIES["llama"], "model.")
    >>> [unused(name) for name in ("v_head.weight", "model.layers.0.mlp.norm.weight", "lm_head.bias")]
    [True, False, False]
    """
    head = family.names["head"].name.split(".")[0]
    model = {prefix.split(".")[0]} if prefix else {p.name.split(".")[0] for p in family.names.values()}

    def unused(name: str) -> bool:
        module = name.split(".")[0]
        if _BUFFERS.search(name) or re.search(family.ignored, name):
            return True
        return module not in (*model, head) and (bool(prefix) or bool(_HEADS.match(name)))

    return unused


def log_unused(source: Path, unused: Iterable[str]) -> None:
    """Log the tensors that are not used, in one line; ``{i}`` stands for a layer.

    Examples
    --------
    >>> log_unused(Path("model"), ["v_head.weight", "h.0.attn.bias", "h.1.attn.bias"])  # doctest: +SKIP
    model: not used: v_head.weight, h.{i}.attn.bias
    """
    folded = dict.fromkeys(re.sub(r"\.\d+\.", ".{i}.", name) for name in unused)
    if folded:
        logging.getLogger("minicore").warning("%s: not used: %s", source, ", ".join(folded))


def _log(tensor: Tensor, sentence: str) -> None:
    logging.getLogger("minicore").warning("%s: %s", tensor.where, sentence)
