"""The prompt in; notes, pieces of text, JSON and progress out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicore.errors import InputError

if TYPE_CHECKING:
    from minicore.generation.stream import Stream

KERNELS = (
    Path(__file__).parent.parent / "backends" / "cpu" / "__pycache__"
)  # where Numba keeps machine code unless told


def read_prompt(prompt: str) -> str:
    """Return the prompt, from standard input (less one final newline) if it is ``-``."""
    if prompt == "-":
        raw = sys.stdin.buffer.read() if sys.stdin is not None else b""
        where = "standard input"
    else:
        raw = os.fsencode(prompt)  # bytes of the command line that are no text come back as they were
        where = "PROMPT"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}"
        ) from None
    return text.removesuffix("\n") if prompt == "-" else text


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(sentence: str) -> int:
    note("minicore: " + " ".join(sentence.splitlines()))
    return 2


def discard_output() -> None:
    """Point standard output at nothing, so that Python's own flush at exit has nothing to complain about."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file descriptor behind it
        pass


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))


def announce_compilation(backend: str, reading: str | None = None) -> None:
    """Say what is waited for: the CPU's kernels are compiled once and kept on disk, the GPU's every time.

    reading is the backend that reads the prompt, if it is another.
    """
    if backend == "cuda":
        note("compiling the GPU's kernel for this model's shape, which takes some ten seconds")
    if backend in ("cpu", "cuda") and not kernels_cached((reading or backend) != "numpy"):
        note("compiling kernels for this machine; they are kept, and later runs start at once")


def kernels_cached(reading: bool) -> bool:
    """Say whether the machine code of decoding, and of reading prompts, is on disk already."""
    names = ["step.step", "prefill.causal_softmax"][: 1 + reading]
    if "NUMBA_CACHE_DIR" not in os.environ and all(any(KERNELS.glob(f"{name}-*.nbc")) for name in names):
        return True
    from minicore.backends.cpu import decoder as cpu  # imports Numba, which a first token need not wait for

    return cpu.kernels_cached(reading)


def print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def with_progress(stream: Stream) -> Iterable[str]:
    """Return the stream's pieces under a progress bar, for runs that print nothing as they go."""
    from tqdm import tqdm

    return tqdm(
        stream,
        desc=stream.recorder.predictor,
        total=stream.max_new_tokens,
        unit=" tokens",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
