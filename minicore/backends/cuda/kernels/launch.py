"""How kernels are compiled, kept on disk and launched."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from minicore.backends.cuda.kernels.intrinsics import SIMULATED, cuda

# part of the key of kernels kept on disk: Numba itself looks at a kernel's own file alone
SOURCE = zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))


def compiled(kernel: Any, signature: str, n_threads: int) -> Any:
    """Return a kernel for these types of arguments, from disk or compiled now and kept there."""
    options: dict[str, Any] = {} if SIMULATED else {"max_registers": registers_for(n_threads)}
    return cuda.jit(signature, cache=True, **options)(kernel)


def registers_for(n_threads: int) -> int:
    """Return the most registers of a thread with which a block of so many fits a multiprocessor.

    Its 65,536 belong to four schedulers, each with warps of its own.
    """
    warps_each = -(-n_threads // (4 * 32))
    return min(65536 // (4 * 32 * warps_each) // 8 * 8, 255)


def configured(kernel: Any, n_blocks: int, n_threads: int, n_bytes: int = 0, stream: Any = 0) -> Any:
    """Return a kernel ready to be called, with so many bytes of shared memory a block."""
    if n_bytes and not SIMULATED:
        allow_shared(kernel, n_bytes)
    return kernel[n_blocks, n_threads, stream, n_bytes]


def allow_shared(kernel: Any, n_bytes: int) -> None:
    """Let a block of a compiled kernel have more shared memory than the 48 KB it gets unasked."""
    from numba.cuda.cudadrv.driver import binding, driver

    # the kernel is every decoder's of its shape: one with a short kv cache must not lower what another needs
    if n_bytes <= getattr(kernel, "shared_bytes", 0):
        return
    kernel.shared_bytes = n_bytes
    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for compiled in kernel.overloads.values():
        function = compiled._codelibrary.get_cufunc()
        driver.cuKernelSetAttribute(attribute, n_bytes, function.handle, function.device.id)
