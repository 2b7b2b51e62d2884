"""A kv cache in GPU memory, with a copy in host memory that is updated when it is asked for."""

from __future__ import annotations

import math

import numpy as np

from minicore.backends.cuda.memory import allocate
from minicore.kv_cache import FloatStorage, KVCache, Shape

Array = np.ndarray


class DeviceStorage:
    """Storage for a :class:`minicore.kv_cache.KVCache` that kernels read and write.

    Parameters
    ----------
    shape : (n_layers, n_kv_heads, capacity, d_head)
    dtype : str
        ``float32``, or ``bfloat16``, to which kernels round; on the device elements are float32 either way.

    Attributes
    ----------
    device_keys, device_values : (prod(shape),) float32 device array
    """

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.dtype, self._host = dtype, FloatStorage(shape, dtype)
        size = math.prod(shape)
        self.device_keys, self.device_values = allocate(size, np.float32), allocate(size, np.float32)
        self._newer = False  # whether the device holds what the host does not

    @property
    def keys(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """The host's copy of the keys."""
        return self._fetched().keys

    @property
    def values(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """The host's copy of the values."""
        return self._fetched().values

    @property
    def scales(self) -> Array:  # (n_layers, 2, n_kv_heads, 0)
        """None: elements are floats."""
        return self._host.scales

    def write(self, layer: int, start: int, k: Array, v: Array) -> None:  # (n_kv_heads, n, d_head) twice
        """Store n positions of a layer in the host's copy."""
        self._fetched().write(layer, start, k, v)

    def read(self, layer: int | slice, end: int | None) -> tuple[Array, Array]:
        """Return views of the host's copy."""
        return self._fetched().read(layer, end)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(self.device_keys.nbytes + self.device_values.nbytes)

    @property
    def on_device_only(self) -> bool:
        """Whether the device holds what the host's copy does not."""
        return self._newer

    def written(self) -> None:
        """Note that a kernel has been launched that writes to the device arrays."""
        self._newer = True

    def upload(self, length: int) -> None:
        """Bring the device up to date with the host's copy, if it holds positions and may have changed."""
        if length and not self._newer:
            for there, here in ((self.device_keys, self._host.keys), (self.device_values, self._host.values)):
                there.copy_to_device(here.astype(np.float32, copy=False).reshape(-1))

    def _fetched(self) -> FloatStorage:
        """Return the host's copy, up to date. The caller may write to it, so it counts as the newer one."""
        if self._newer:
            self._newer = False
            for here, there in ((self._host.keys, self.device_keys), (self._host.values, self.device_values)):
                here[:] = there.copy_to_host().reshape(here.shape)
        return self._host


def device_storage(cache: KVCache) -> DeviceStorage:
    """Return a cache's storage on the device, moving the cache there first if need be."""
    storage = cache.storage
    if not isinstance(storage, DeviceStorage):
        storage = DeviceStorage(cache.shape, "bfloat16" if cache.rounds else "float32")
        cache.convert(storage)
    storage.upload(cache.length)
    return storage
