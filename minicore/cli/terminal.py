"""Standard input, output and error: prompts, notes, JSON, reports and progress bars."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from minicore.errors import InputError

if TYPE_CHECKING:
    from minicore.generation.stream import Stream


def read_prompt(prompt: str) -> str:
    """Return the prompt; ``-`` reads standard input and removes one final newline, ``\\n`` or ``\\r\\n``.

    A byte order mark in front is not part of the text.
    """
    if prompt == "-":
        raw = sys.stdin.buffer.read() if sys.stdin is not None else b""
        where = "standard input"
    else:
        raw = os.fsencode(prompt)  # the original bytes, even if they are not text
        where = "PROMPT"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}"
        ) from None
    text = text.removeprefix("\ufeff")
    if prompt == "-":
        text = text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
    return text


def replace_unencodable() -> None:
    """Let standard output and error print ``?`` for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def note(text: str) -> None:
    """Print a line on standard error, if there is one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def fail(sentence: str) -> int:
    """Print an error on one line and return the exit code of bad input."""
    note("minicore: " + " ".join(sentence.splitlines()))
    return 2


def discard_output() -> None:
    """Point standard output at the null device, so that Python's flush at exit does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file descriptor behind it
        pass


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value))


def print_report(
    report: dict[str, Any], as_json: bool, report_lines: Callable[[dict[str, Any]], Iterable[str]]
) -> None:
    """Print a report as JSON, or as the lines that a function makes of it."""
    if as_json:
        print_json(report)
    else:
        print("\n".join(report_lines(report)))


def print_piece(piece: str) -> None:
    """Print a piece of generated text at once."""
    print(piece, end="", flush=True)


def show_progress() -> bool:
    """Say whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def with_progress(stream: Stream) -> Iterable[str]:
    """Return the stream's pieces under a progress bar, for runs that print nothing as they go."""
    from tqdm import tqdm

    return tqdm(
        stream,
        desc=stream.recorder.predictor,
        total=stream.options.max_new_tokens,
        unit=" tokens",
        leave=False,
        disable=not show_progress(),
    )


def announce_compilation(backend: str, reading: str | None = None) -> None:
    """Say what the user waits for: CPU kernels are compiled once, the GPU kernel in every run.

    ``reading`` is the backend that reads the prompt, if it is another one.
    """
    if backend == "cuda":
        note("compiling the GPU kernel for this model, which takes about ten seconds")
    if backend in ("cpu", "cuda") and not kernels_cached((reading or backend) != "numpy"):
        note("compiling kernels for this machine; later runs reuse them and start at once")


def kernels_cached(reading: bool) -> bool:
    """Say whether the machine code for decoding, and for reading prompts, is on disk already."""
    from minicore.backends.cpu.checksum import PACKAGE, cache_folder_name

    folder = PACKAGE / "__pycache__" / cache_folder_name()  # where Numba keeps machine code by default
    names = ["step.step", "prefill.causal_softmax"][: 1 + reading]
    if "NUMBA_CACHE_DIR" not in os.environ and all(any(folder.glob(f"{name}.*.nbc")) for name in names):
        return True
    from minicore.backends.cpu import decoder as cpu  # imports Numba: not needed before the first token

    return cpu.kernels_cached(reading)
