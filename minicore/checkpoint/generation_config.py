"""generation_config.json: how a checkpoint's tokens are to be chosen."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minicore.errors import InputError

Check = tuple[Callable[[Any], bool], str]


def _integer(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(low: float, high: float) -> Check:
    def valid(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return valid, f"a number from {low} to {high}" if high < math.inf else f"a number from {low}"


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_integer, value))


_COUNT: Check = (_integer, "an integer from 0")
_IDS: Check = (_ids, "a list of token ids")
_FLAG: Check = (lambda value: isinstance(value, bool), "true or false")
_SEQUENCES: Check = (
    lambda value: isinstance(value, list) and all(_ids(ids) and ids for ids in value),
    "a list of lists of token ids",
)
# What is applied, and what is valid.
APPLIED: dict[str, Check] = {
    "repetition_penalty": (lambda v: type(v) in (int, float) and 0 < v < math.inf, "a number above 0"),
    "no_repeat_ngram_size": _COUNT,
    "bad_words_ids": _SEQUENCES,
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "top_k": _COUNT,
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1),
    "epsilon_cutoff": _number(0, 1),
    "eta_cutoff": _number(0, 1),
    "do_sample": _FLAG,
    "temperature": _number(0, math.inf),
}
# What changes the tokens in Transformers and is not applied, with the values that change nothing.
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("guidance_scale", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("penalty_alpha", "diversity_penalty", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("remove_invalid_values", "token_healing"), (False,)),
    **dict.fromkeys(
        (
            *("sequence_bias", "constraints", "force_words_ids", "forced_bos_token_id"),
            *("forced_eos_token_id", "forced_decoder_ids", "exponential_decay_length_penalty"),
            *("watermarking_config", "top_h", "dola_layers", "stop_strings", "max_time"),
        ),
        (),
    ),
}


def read_generation(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of generation_config.json that are applied; log those that are not.

    Raises
    ------
    InputError
        If a value is not valid. The message names file and key.

    Examples
    --------
    >>> read_generation({"repetition_penalty": 1.1, "top_k": None, "use_cache": True}, Path("x.json"))
    {'repetition_penalty': 1.1}
    """
    found = {key: values[key] for key in APPLIED if values.get(key) is not None}
    for key, value in found.items():
        valid, expected = APPLIED[key]
        if not valid(value):
            raise InputError(f"{path}: {key} is {value!r}, expected {expected}")
    others = [
        f"{key} {values[key]!r}"
        for key, neutral in NOT_APPLIED.items()
        if values.get(key) is not None and values[key] not in neutral
    ]
    if others:
        logging.getLogger("minicore").warning("%s: not applied: %s", path, ", ".join(others))
    return found
