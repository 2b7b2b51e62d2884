"""The checksum of the sources of CPU kernels, which names the folder of their machine code."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# Files outside this package whose constants become part of the machine code.
CONSTANTS = ("quantization.py", "core/statistics.py", "backends/dims.py")


@cache
def source_checksum() -> str:
    """Return 16 hexadecimal digits that change with any file of this package or of ``CONSTANTS``."""
    files = [*sorted(PACKAGE.glob("*.py")), *(PACKAGE.parents[1] / name for name in CONSTANTS)]
    digest = hashlib.sha256()
    for path in files:
        source = path.read_bytes()
        digest.update(f"{path.name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:16]


def cache_folder_name() -> str:
    """Return the name of the folder, below the one that Numba chooses, that holds the machine code."""
    return f"kernels-{source_checksum()}"
