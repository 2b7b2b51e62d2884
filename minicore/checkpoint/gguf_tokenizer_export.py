"""GGUF metadata of a tokenizer.json: byte-level BPE, or BPE with byte fallback (SentencePiece)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minicore.checkpoint.exported import Exported
from minicore.checkpoint.gguf_tokenizer import build_tokenizer
from minicore.checkpoint.gguf_vocabulary import (
    CONTROL,
    END_KEYS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    read_vocabulary,
)
from minicore.checkpoint.pre_tokenizers import GPT2, PRE_TOKENIZERS
from minicore.errors import InputError

UNUSED, BYTE = 5, 6  # values of tokenizer.ggml.token_type
PUNCTUATION = r"[\p{P}$+<=>^~|`]+"  # what the library's Punctuation step means by it
# Texts on which the written tokenizer must do what the original does.
SAMPLES = (
    "The quick brown fox's friend didn't say: I'LL pay $1,234.56 (or 12345 €)!",
    "  two  spaces\n\nlines\r\n\ttabs   ",
    "na\u00efve caf\u00e9 \u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d\uc5b4 \U0001f642",
    "<=> x_1 = {a[0]}; # `q` / CamelCase ABCdef",
    "",
)


def tokenizer_metadata(model: Exported) -> tuple[dict[str, Any], list[str]]:
    """Return the ``tokenizer.*`` keys of a model's tokenizer.json, and notes.

    Raises
    ------
    InputError
        If GGUF has no tokenizer that gives the same ids.

    Examples
    --------
    >>> from pathlib import Path
    >>> import minicore as mc
    >>> config = mc.load("minicore-opt-core").config.replace(n_vocab=4)
    >>> values = {"model": "gpt2", "pre": "qwen2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    >>> inner = build_tokenizer({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "m.gguf")
    >>> about = {"params": {}, "name": "m", "source": Path(), "tokenizer": inner.to_str()}
    >>> metadata, _ = tokenizer_metadata(Exported(config=config, **about))
    >>> metadata["tokenizer.ggml.pre"], metadata["tokenizer.ggml.tokens"]
    ('qwen2', ['a', 'b', 'ab', '[PAD3]'])
    """
    assert model.tokenizer is not None
    values = json.loads(model.tokenizer)
    if values["model"]["type"] != "BPE":
        raise _not_in_gguf(model, f"its model is {values['model']['type']}, and minicore writes only BPE")
    build = _sentencepiece if values["model"].get("byte_fallback") else _byte_level
    found = build(model, values) | _tokens(model, values) | _special(model)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    for name, template in model.chat_templates.items():
        metadata["tokenizer.chat_template" + (f".{name}" if name != "default" else "")] = template
    _check(model, values, metadata)
    return metadata, _notes(model, values, metadata)


def _not_in_gguf(model: Exported, why: str) -> InputError:
    return InputError(f"{model.name}: the tokenizer cannot be written to a GGUF file: {why}")


def _byte_level(model: Exported, values: Mapping[str, Any]) -> dict[str, Any]:
    splits = tuple(_splits(model, values["pre_tokenizer"]))
    whole = bool(values["model"].get("ignore_merges"))
    names = [n for n, pre in PRE_TOKENIZERS.items() if (pre.splits, pre.ignore_merges) == (splits, whole)]
    if not names:
        raise _not_in_gguf(model, f"no pre-tokenizer of GGUF splits by {list(splits)}")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in values["model"]["merges"]]
    return {"model": "gpt2", "pre": names[0], "merges": merges}


def _splits(model: Exported, step: Mapping[str, Any] | None) -> list[str]:
    """Return the regular expressions of a pre-tokenizer and its parts."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [split for part in step["pretokenizers"] for split in _splits(model, part)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return [PUNCTUATION]
    if kind == "Split" and "Regex" in step["pattern"] and not step.get("invert"):
        if step.get("behavior") == "Isolated":
            return [step["pattern"]["Regex"]]
    raise _not_in_gguf(model, f"its pre-tokenizer has the step {json.dumps(step, ensure_ascii=False)}")


def _sentencepiece(model: Exported, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores that order merges as their ranks do."""
    scores = {token: -1e6 - i for i, token in model.vocabulary.items()}  # never the result of a merge
    for rank, merge in reversed(list(enumerate(values["model"]["merges"]))):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        scores[left + right] = -float(rank)
    ordered = [scores.get(model.vocabulary.get(i, ""), -1e9 - i) for i in range(model.config.n_vocab)]
    unknown = values["model"].get("unk_token")
    ids = {token: i for i, token in model.vocabulary.items()}
    found: dict[str, Any] = {"model": "llama", "scores": ordered, "add_space_prefix": _prepends(values)}
    return found | ({"unknown_token_id": ids[unknown]} if unknown in ids else {})


def _prepends(values: Mapping[str, Any]) -> bool:
    """Say whether a space is put in front of a text."""
    return '"Prepend"' in json.dumps(values["normalizer"]) or _prepends_by_metaspace(values)


def _prepends_by_metaspace(values: Mapping[str, Any]) -> bool:
    """Say whether the step Metaspace does that, which spares texts that begin with a space."""
    text = json.dumps(values["pre_tokenizer"])
    return any(f'"prepend_scheme": "{scheme}"' in text for scheme in ("first", "always"))


def _tokens(model: Exported, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text and type of every id up to the model's vocabulary size."""
    kinds = dict.fromkeys(model.vocabulary, NORMAL)
    byte_fallback = bool(values["model"].get("byte_fallback"))
    for i, token in model.vocabulary.items():
        if byte_fallback and len(token) == 6 and token.startswith("<0x"):
            kinds[i] = BYTE
    for token in values["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _not_in_gguf(model, f"it strips spaces around {token['content']!r}")
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
        if token["content"] == values["model"].get("unk_token"):
            kinds[token["id"]] = UNKNOWN
    ids = range(model.config.n_vocab)
    return {
        "tokens": [model.vocabulary.get(i, f"[PAD{i}]") for i in ids],
        "token_type": [kinds.get(i, UNUSED) for i in ids],
    }


def special_id_keys(model: Exported) -> dict[str, Any]:
    """Return the keys of the tokens that begin a text and end a generation; GGUF has three of the latter.

    Examples
    --------
    >>> from pathlib import Path
    >>> import minicore as mc
    >>> config = mc.load("minicore-opt-core").config
    >>> model = Exported(config=config, params={}, name="m", source=Path(), bos_id=1, eos_ids=(2, 7))
    >>> special_id_keys(model)
    {'bos_token_id': 1, 'eos_token_id': 2, 'eot_token_id': 7}
    """
    found = {} if model.bos_id is None else {"bos_token_id": model.bos_id}
    return found | {f"{key}_token_id": i for key, i in zip(END_KEYS, model.eos_ids, strict=False)}


def _special(model: Exported) -> dict[str, Any]:
    """Return the ids of special tokens, and which of them are added around a text."""
    found = special_id_keys(model)
    inner = _library_tokenizer(model)
    bare, full = (inner.encode("a", add_special_tokens=added).ids for added in (False, True))
    bos, eos = [model.bos_id], list(model.eos_ids[:1])
    for front in ([], bos):
        for back in ([], eos):
            if full == [*front, *bare, *back]:
                return found | {"add_bos_token": bool(front), "add_eos_token": bool(back)}
    raise _not_in_gguf(model, "it adds other tokens than BOS and EOS around a text")


def _library_tokenizer(model: Exported) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(model.tokenizer or "")


def _check(model: Exported, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that do not give the ids of the original."""
    original, written = _library_tokenizer(model), build_tokenizer(metadata, model.name)
    added = {token["content"] for token in values["added_tokens"]}  # found before texts are merged
    merged = [[token for token in _merged(one) if token not in added] for one in (original, written)]
    if merged[0] != merged[1]:
        raise _not_in_gguf(model, "its merges are not in the order of scores")
    special = [token for i, token in model.vocabulary.items() if i in (model.bos_id, *model.eos_ids)]
    samples = [*SAMPLES, " ".join((*special, "x", *special))]
    if _prepends_by_metaspace(values):
        samples = [sample.lstrip() for sample in SAMPLES]
    for sample in samples:
        if original.encode(sample).ids != written.encode(sample).ids:
            raise _not_in_gguf(model, f"{sample!r} would have other ids")


def _merged(tokenizer: Any) -> list[str]:
    """Return the tokens that merges make, in the order of their first merges."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return list(dict.fromkeys("".join(merge) for merge in merges))


def _notes(model: Exported, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    notes = []
    if "NFC" in json.dumps(values["normalizer"]):
        notes.append("the tokenizer normalizes texts to NFC, which GGUF files do not say")
    if _prepends_by_metaspace(values):
        notes.append(
            "the tokenizer puts a space in front of a text that does not begin with one; readers of GGUF "
            "files do so in front of every text and after special tokens"
        )
    lost = set(model.eos_ids) - set(read_vocabulary(metadata, model.name).end_ids)
    if lost:
        ends = ", ".join(repr(model.vocabulary.get(i, str(i))) for i in sorted(lost))
        notes.append(f"a GGUF file has three end tokens; these do not end a generation any more: {ends}")
    return notes
