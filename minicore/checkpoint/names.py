"""Names of models: what they stand for, where they lie, and how they are fetched."""

from __future__ import annotations

import os
from pathlib import Path

from minicore.errors import InputError


def is_name(name_or_path: str | os.PathLike[str]) -> bool:
    return False


def resolve(name_or_path: str | os.PathLike[str], progress: bool = False) -> Path:
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: does not exist, expected a model directory or a GGUF file")
    return path
