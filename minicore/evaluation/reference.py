"""What a model should compute: logits and greedy tokens of Transformers, computed now or read from a file."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from minicore import __version__
from minicore.backends import make_backend
from minicore.errors import InputError, one_line
from minicore.evaluation.texts import read_lines, sample_files
from minicore.files import atomic_write
from minicore.model import Model

Array = np.ndarray
Read = Callable[[Array], Array]  # (n,) ids -> (n, n_vocab) logits, continuing where the last call ended

FORMAT = "minicore check 1"
N_COLUMNS = 4096  # most entries of the vocabulary whose logits a file holds
N_RANDOM = 2, 24  # texts and their ids, for a model without a tokenizer
# The implementation of attention that follows the config. Of Transformers 5.23 that is "eager" (others leave
# out the softcap of Gemma 2), but Falcon's adds the ALiBi bias twice.
ATTENTION = {"falcon": "sdpa"}
SHORT_TEXTS = (
    "The old house at the end of the lane had been empty for years, and nobody knew who owned it.",
    "def mean(values):\n    return sum(values) / len(values)\n\n\nprint(mean([1, 2, 30.5]))\n",
    "Tokyo (東京) covers 2,194 km²; its naïve cafés don't charge €3.50 😀.",
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A text, as a reference model reads and continues it.

    Attributes
    ----------
    text : str or None
        None for random ids.
    ids : (n_ids,) int64 array
        All ids of the text. The model reads the first n_tokens of them, as many as its context allows.
    logits : (n_tokens, n_columns) float32 array
        After each token that was read, for some entries of the vocabulary.
    largest : float
        The largest absolute logit, over all tokens and the whole vocabulary.
    greedy : (n_new,) int64 array
        The tokens that follow, each with the largest logit. EOS does not end them.
    margins : (n_new,) float32 array
        Distance of the largest logit from the second largest at each of these steps.
    """

    text: str | None
    ids: Array
    logits: Array
    largest: float
    greedy: Array
    margins: Array


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model should compute.

    Attributes
    ----------
    made_with : str
        Name and version of the software that computed it.
    n_vocab : int
        Number of logits.
    columns : (n_columns,) int64 array
        The ids whose logits the recordings hold.
    recordings : list of Recording
    """

    made_with: str
    n_vocab: int
    columns: Array
    recordings: list[Recording]


def default_texts() -> list[str]:
    """Return three short texts, and a longer one from the sample corpus.

    Examples
    --------
    >>> [len(text) for text in default_texts()][-1]
    1000
    """
    _, text = next(read_lines(sample_files()[1]))
    return [*SHORT_TEXTS, text[:1000]]


def from_transformers(path: Path, texts: Sequence[str], n_new: int, adapter: str | None = None) -> Reference:
    """Return what Transformers computes, in float32 on the CPU.

    Parameters
    ----------
    path : Path
        A Hugging Face directory or a GGUF file.
    texts : sequence of str
        Empty: the default texts, or random ids if the model has no tokenizer.
    n_new : int
        Tokens to continue each text by.
    adapter : str or None
        Directory of a LoRA adapter, which PEFT merges.

    Raises
    ------
    InputError
        If Transformers, or PEFT for an adapter, is not installed or cannot read the model.

    Examples
    --------
    >>> from minicore.checkpoint.names import resolve
    >>> from_transformers(resolve("minicore-opt-core"), [], n_new=4).made_with  # doctest: +SKIP
    'Transformers 5.23.0'
    """
    if not has_transformers():
        raise InputError(
            "Transformers is not installed, expected it and torch, or a recorded file (--golden)"
        )
    if adapter and not importlib.util.find_spec("peft"):
        raise InputError("PEFT is not installed, expected it for an adapter, or a recorded file (--golden)")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source, options = path, {}
    if path.is_file():
        source, options = path.parent, {"gguf_file": path.name}
    try:
        kind = transformers.AutoConfig.from_pretrained(str(source), **options).model_type
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(source), dtype=torch.float32, attn_implementation=ATTENTION.get(kind, "eager"), **options
        )
        if adapter:
            import peft

            model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
        tokenizer = None
        if path.is_file() or any(path.glob("tokenizer*")) or (path / "vocab.json").exists():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), **options)
    except Exception as error:  # whatever it may be
        raise InputError(
            f"{path}: Transformers {transformers.__version__} cannot read it ({one_line(error)}), expected a "
            "recorded file (--golden)"
        ) from error
    model.eval()
    config = model.config.get_text_config()

    def start(n_tokens: int) -> Read:
        past, n_read = None, 0

        def read(ids: Array) -> Array:
            nonlocal past, n_read
            n_read += len(ids)
            mask = torch.ones(1, n_read, dtype=torch.int64)
            with torch.inference_mode():
                out = model(
                    input_ids=torch.tensor(ids)[None],
                    attention_mask=mask,
                    past_key_values=past,
                    use_cache=True,
                )
            past = out.past_key_values
            return out.logits[0].float().numpy()

        return read

    return _record(
        made_with=f"Transformers {transformers.__version__}",
        texts=texts,
        encode=None if tokenizer is None else lambda text: list(tokenizer(text)["input_ids"]),
        n_vocab=config.vocab_size,
        n_ctx=getattr(config, "max_position_embeddings", None) or 2048,
        n_new=n_new,
        start=start,
    )


def has_transformers() -> bool:
    """Say whether Transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("transformers", "torch"))


def from_model(model: Model, texts: Sequence[str], n_new: int) -> Reference:
    """Return what minicore's NumPy backend computes, to compare other backends and versions with.

    Examples
    --------
    >>> import minicore as mc
    >>> reference = from_model(mc.load("minicore-opt-core"), ["The old house"], n_new=3)
    >>> reference.recordings[0].greedy.shape
    (3,)
    """
    backend = make_backend(model, "numpy")

    def start(n_tokens: int) -> Read:
        cache = model.new_cache(n_tokens)
        return lambda ids: backend.forward(ids, cache)

    return _record(
        made_with=f"minicore {__version__} ({model.dtype}, numpy)",
        texts=texts,
        encode=model.tokenizer.encode if model.tokenizer else None,
        n_vocab=model.config.n_vocab,
        n_ctx=model.config.n_ctx,
        n_new=n_new,
        start=start,
    )


def _record(
    *,
    made_with: str,
    texts: Sequence[str],
    encode: Callable[[str], list[int]] | None,
    n_vocab: int,
    n_ctx: int,
    n_new: int,
    start: Callable[[int], Read],
) -> Reference:
    """Record all texts. ``start`` returns the function that reads a text of at most that many tokens."""
    n_new = min(n_new, max(1, n_ctx // 2))
    pairs: list[tuple[str | None, Array]]
    if encode is None:
        if texts:
            raise InputError("the model has no tokenizer, expected no TEXT: it is checked with random ids")
        rng = np.random.default_rng(0)
        pairs = [(None, rng.integers(0, n_vocab, N_RANDOM[1])) for _ in range(N_RANDOM[0])]
    else:
        pairs = [(text, np.array(encode(text), np.int64)) for text in texts or default_texts()]
    if any(not len(ids) for _, ids in pairs):
        raise InputError("a text has no tokens, expected at least one")
    recordings = []
    for text, ids in pairs:
        read = start(n_ctx)
        logits = read(ids[: n_ctx - n_new])
        greedy, margins, row = [], [], logits[-1]
        while True:
            second, first = np.partition(row, -2)[-2:]
            greedy.append(int(row.argmax()))
            margins.append(first - second)
            if len(greedy) == n_new:
                break
            row = read(np.array(greedy[-1:]))[-1]
        recordings.append(
            Recording(
                text=text,
                ids=ids,
                logits=logits,
                largest=float(np.abs(logits).max()),
                greedy=np.array(greedy),
                margins=np.array(margins, np.float32),
            )
        )
    return Reference(made_with=made_with, n_vocab=n_vocab, columns=np.arange(n_vocab), recordings=recordings)


def save(reference: Reference, path: str | PathLike[str]) -> None:
    """Write a reference to a file, with the logits of at most 4096 entries of the vocabulary.

    Examples
    --------
    >>> import tempfile
    >>> import minicore as mc
    >>> reference = from_model(mc.load("minicore-opt-core"), ["The old house"], n_new=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(reference, f"{folder}/golden.npz")
    ...     len(load(f"{folder}/golden.npz").columns)
    3072
    """
    step = -(-len(reference.columns) // N_COLUMNS)
    columns = np.arange(0, len(reference.columns), step)
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "made_with": reference.made_with,
        "n_vocab": reference.n_vocab,
        "n_texts": len(reference.recordings),
        "columns": reference.columns[columns],
    }
    for i, one in enumerate(reference.recordings):
        arrays |= {f"{key}_{i}": value for key, value in vars(one).items() if value is not None}
        arrays[f"logits_{i}"] = one.logits[:, columns]
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load(path: str | PathLike[str]) -> Reference:
    """Read a file that :func:`save` wrote.

    Raises
    ------
    InputError
        If it cannot be read, or is another file.

    Examples
    --------
    >>> load("no-such-file.npz")
    Traceback (most recent call last):
    minicore.errors.InputError: no-such-file.npz: cannot be read (No such file or directory)
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file) if hasattr(file, "files") else {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    except (ValueError, zipfile.BadZipFile, EOFError):
        arrays = {}
    if "format" not in arrays or str(arrays["format"]) != FORMAT:
        raise InputError(f"{path}: is not such a file, expected one that `minicore check --write` made")
    try:
        recordings = [
            Recording(
                text=str(arrays[f"text_{i}"]) if f"text_{i}" in arrays else None,
                ids=arrays[f"ids_{i}"].astype(np.int64),
                logits=arrays[f"logits_{i}"],
                largest=float(arrays[f"largest_{i}"]),
                greedy=arrays[f"greedy_{i}"].astype(np.int64),
                margins=arrays[f"margins_{i}"],
            )
            for i in range(int(arrays["n_texts"]))
        ]
        return Reference(
            made_with=str(arrays["made_with"]),
            n_vocab=int(arrays["n_vocab"]),
            columns=arrays["columns"].astype(np.int64),
            recordings=recordings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is incomplete ({one_line(error)}), expected all of its arrays") from error
