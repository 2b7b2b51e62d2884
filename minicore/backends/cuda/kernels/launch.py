"""How kernels are compiled, cached and launched."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from minicore.backends.cuda.kernels.intrinsics import SIMULATED, cuda

PACKAGE = Path(__file__).parent
# Files outside this package whose constants become part of the machine code.
CONSTANTS = ("quantization.py", "core/statistics.py", "backends/dims.py")


def source_checksum() -> int:
    """Return a number that changes with any file of this package or of ``CONSTANTS``.

    Numba's cache on disk only notices changes in the file of the kernel itself. So every cached kernel closes
    over this number, and what a kernel closes over is part of its key.
    """
    files = [*sorted(PACKAGE.rglob("*.py")), *(PACKAGE.parents[2] / name for name in CONSTANTS)]
    return zlib.crc32(b"".join(path.read_bytes() for path in files))


CHECKSUM = source_checksum()


def compiled(kernel: Any, signature: str, n_threads: int) -> Any:
    """Return a kernel compiled for a signature, from Numba's cache on disk if it is there."""
    options: dict[str, Any] = {} if SIMULATED else {"max_registers": registers_for(n_threads)}
    return cuda.jit(signature, cache=True, **options)(kernel)


def registers_for(n_threads: int) -> int:
    """Return the most registers per thread with which a block of n_threads fits a multiprocessor.

    A multiprocessor has 65,536 registers. Each of its four schedulers has a quarter of them and of the warps.
    """
    warps_each = -(-n_threads // (4 * 32))
    return min(65536 // (4 * 32 * warps_each) // 8 * 8, 255)


def configured(kernel: Any, n_blocks: int, n_threads: int, n_bytes: int = 0, stream: Any = 0) -> Any:
    """Return a kernel with its grid, and with n_bytes of shared memory for each block."""
    if n_bytes and not SIMULATED:
        allow_shared(kernel, n_bytes)
    return kernel[n_blocks, n_threads, stream, n_bytes]


def allow_shared(kernel: Any, n_bytes: int) -> None:
    """Allow a compiled kernel more shared memory per block than the default limit of 48 KB."""
    from numba.cuda.cudadrv.driver import binding, driver

    # all decoders of a shape share the kernel, and one with a short kv cache must not lower the limit
    if n_bytes <= getattr(kernel, "shared_bytes", 0):
        return
    kernel.shared_bytes = n_bytes
    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for compiled in kernel.overloads.values():
        function = compiled._codelibrary.get_cufunc()
        driver.cuKernelSetAttribute(attribute, n_bytes, function.handle, function.device.id)
