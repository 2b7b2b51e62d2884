"""How CPU kernels are compiled and where their machine code is kept.

``kernel`` marks the functions that Python calls, ``inner`` those that only kernels call. Inner functions
get no Python wrapper: unpacking a decoder's buffers for a call that never comes is slow to compile
(docs/notes/compile-time.md).

All of them may add in any order and fuse multiply-adds (``FAST``), and no more than that: NaN and infinity
pass through as they do in NumPy.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import numba as nb
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator

from minicore.backends.cpu.checksum import cache_folder_name, source_checksum

FAST = {"reassoc", "contract"}
DIGEST = hashlib.sha256().digest_size  # bytes before the data of a cache file, which tell a damaged one
# No check for zero at each division, which would keep loops from being vectorised, and no reference counts:
# kernels own no arrays.
COMMON: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
# For numba.extending.overload, whose functions have no Python wrapper anyway.
OVERLOAD: dict[str, Any] = {**COMMON, "fastmath": FAST}


class _Folder(_CacheLocator):
    """A folder named by the checksum of the kernels' sources, below the folder that Numba chose."""

    def __init__(self, chosen: _CacheLocator) -> None:
        self.parent = Path(chosen.get_cache_path())

    def get_cache_path(self) -> str:
        return str(self.parent / cache_folder_name())

    def ensure_cache_path(self) -> None:
        for stale in self.parent.glob("kernels-*"):
            if stale.name != cache_folder_name():
                rmtree(stale, ignore_errors=True)
        super().ensure_cache_path()

    def get_source_stamp(self) -> str:
        return source_checksum()

    def get_disambiguator(self) -> str:
        raise NotImplementedError("names of kernels are unique in their module")


class _KernelCacheImpl(CompileResultCacheImpl):
    @property
    def locator(self) -> _Folder:
        return _Folder(super().locator)

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"{fullname}.py{sys.version_info[0]}{sys.version_info[1]}{abiflags}"


class _Files(IndexDataCacheFile):
    """Numba's data files, named by the signature that each holds.

    Numba itself numbers them and keeps an index. Two processes that compile different signatures at the same
    time can then take the same number, and a later process runs machine code of the wrong signature.
    """

    def __init__(self, folder: str, name: str, stamp: str) -> None:
        super().__init__(folder, name, stamp)
        self.name = name

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._file_of(key), data)

    def load(self, key: Any) -> Any:
        """Return what was saved under a key; None if nothing was, or not what is there now."""
        try:
            content = Path(self._cache_path, self._file_of(key)).read_bytes()
        except OSError:
            return None
        digest, data = content[:DIGEST], content[DIGEST:]
        return pickle.loads(data) if hashlib.sha256(data).digest() == digest else None

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(str(Path(self._cache_path, name))) as file:
            file.write(hashlib.sha256(dumped).digest() + dumped)

    def flush(self) -> None:
        for path in Path(self._cache_path).glob(f"{self.name}.*.nbc"):
            path.unlink(missing_ok=True)

    def _file_of(self, key: Any) -> str:
        digest = hashlib.sha256(repr((nb.__version__, key)).encode()).hexdigest()
        return f"{self.name}.{digest[:16]}.nbc"


class KernelCache(FunctionCache):
    """Numba's cache on disk, fresh only as long as no source file of the kernels has changed.

    Numba itself compares the file of the function that Python calls. Most of a kernel is in other files.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, source_checksum())

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code on disk; where that fails, say so once and go on without."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            say_once(f"{self._cache_path}: cannot be written ({error.strerror})")


@cache
def say_once(why: str) -> None:
    """Say on stderr why compiled kernels are not kept."""
    if sys.stderr is not None:
        print(f"minicore: {why}; each run compiles its kernels again", file=sys.stderr)


def keep_on_disk(compiled: Any, function: Callable[..., Any]) -> Any:
    """Give a compiled function a cache on disk, as ``enable_caching()`` does with Numba's own class."""
    try:
        compiled._cache = KernelCache(function)
    except RuntimeError:  # Numba finds no folder that can be written to
        say_once("no folder can be written to for compiled kernels, expected one in NUMBA_CACHE_DIR")
    return compiled


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls: without the GIL, its machine code kept on disk."""
    return _cached(function, fastmath=FAST)


def exact_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel whose operations keep their order."""
    return _cached(function)


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    return keep_on_disk(nb.njit(nogil=True, **options, **COMMON)(function), function)


def plain(function: Callable[..., Any]) -> Any:
    """Compile a function that may allocate arrays, and that both Python and other functions call."""
    return keep_on_disk(nb.njit(fastmath=FAST, error_model="numpy")(function), function)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call."""
    return nb.njit(fastmath=FAST, no_cpython_wrapper=True, **COMMON)(function)


def exact(function: Callable[..., Any]) -> Any:
    """Compile an inner function whose operations keep their order."""
    return nb.njit(no_cpython_wrapper=True, **COMMON)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function part of the one kernel that calls it: on its own it would be optimised twice."""
    return nb.njit(inline="always", **COMMON)(function)


def callable_from_python(function: Any) -> Any:
    """Return an inner function compiled by itself, for tests and benchmarks."""
    return nb.njit(nogil=True, fastmath=FAST, **COMMON)(function.py_func)
