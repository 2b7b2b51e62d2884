"""Return the memory that loading and compiling leave behind, before decoding starts."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Hashable
from functools import cache

from minicore.checkpoint.heap import LIBC, SMAPS

COMPILER = "libllvmlite"  # LLVM; loading cached machine code reads about 70 MB of it
DONTNEED = 4  # MADV_DONTNEED on Linux


def settle(kernel: Hashable) -> None:
    """Return freed heap to the system, and LLVM's pages when a kernel is loaded for the first time.

    Pages that were never written belong to LLVM's file, and the next use reads them again. On other systems
    than Linux with glibc this does nothing.
    """
    if LIBC and hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
        _drop_compiler(LIBC, kernel)


@cache
def _drop_compiler(libc: ctypes.CDLL, kernel: Hashable) -> None:
    for start, end in clean_pages(SMAPS.read_text(encoding="utf-8"), COMPILER):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


def clean_pages(smaps: str, name: str) -> list[tuple[int, int]]:
    """Return the address ranges of a file that are mapped read-only and hold only what the file holds."""
    found = []
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        head, _, facts = entry.partition("\n")
        place, access = head.split(maxsplit=2)[:2]
        written = re.search(r"^Anonymous: +(\d+) kB", facts, re.MULTILINE)
        if name in head and "w" not in access and written and written[1] == "0":
            start, end = place.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found
