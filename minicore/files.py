"""Files: atomic writes of files and directories, and pointers that stand for a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from minicore.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same directory; rename it to ``path`` when the block succeeds.

    If the block fails, including by Ctrl-C or a full disk, ``path`` is unchanged and the temporary file is
    removed.
    """
    import tempfile  # lazy: takes 20 ms

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp creates 0600; the result gets ordinary permissions
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise InputError if a file's first bytes are those of a Git LFS pointer (git-lfs/docs/spec.md).

    A clone made without Git LFS has such small text files in place of the large ones.
    """
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(
            f"{path}: is a Git LFS pointer, expected the file itself; "
            f"`git lfs pull` in {path.parent} fetches it"
        )


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory next to ``path``; rename it to ``path`` when the block succeeds.

    If the block fails, nothing is left behind.

    Raises
    ------
    InputError
        If ``path`` exists or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "new"
    ...     with atomic_directory(target) as part:
    ...         _ = (part / "a.txt").write_text("a")
    ...     [path.name for path in target.iterdir()]
    ['a.txt']
    """
    import shutil
    import tempfile

    path = Path(path)
    check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield part
        part.chmod(0o755)
        os.rename(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_absent(path: Path) -> None:
    """Raise InputError if a path exists, for example before work whose result it is to hold.

    Examples
    --------
    >>> check_absent(Path("no-such-directory"))
    """
    if path.exists():
        raise InputError(f"{path}: already exists, expected the path of a new directory")
