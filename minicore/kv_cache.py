"""The kv cache: keys and values of the positions read so far, and one storage class per kind of element."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from minicore.checkpoint.tensors import DTYPES
from minicore.config import ModelConfig
from minicore.errors import InputError
from minicore.quantization import quantize_int8

Array = np.ndarray
Shape = tuple[int, int, int, int]  # n_layers, n_kv_heads, capacity, d_head


class Storage(Protocol):
    """Where a cache keeps its elements. A backend may bring a kind of its own, such as a device's memory."""

    dtype: str

    @property
    def keys(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """Keys as they lie in memory; may be written to."""
        ...

    @property
    def values(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """Values, likewise."""
        ...

    @property
    def scales(self) -> Array:  # (n_layers, 2, n_kv_heads, capacity), float32
        """What each key (0) and value (1) is multiplied by; without positions where nothing is."""
        ...

    def write(self, layer: int, start: int, k: Array, v: Array) -> None:  # (n_kv_heads, n, d_head) twice
        """Store n positions of a layer."""
        ...

    def read(self, layer: int | slice, end: int | None) -> tuple[Array, Array]:
        # -> (..., n_kv_heads, end, d_head) twice
        """Return the numbers that keys and values before a position stand for."""
        ...


class FloatStorage:
    """float32 elements, or bfloat16 ones, to which keys and values are rounded as they are written."""

    def __init__(self, shape: Shape, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.keys, self.values = (aligned_zeros(shape, np.dtype(DTYPES[dtype])) for _ in range(2))
        self.scales = np.zeros((shape[0], 2, shape[1], 0), np.float32)

    def write(self, layer: int, start: int, k: Array, v: Array) -> None:  # (n_kv_heads, n, d_head) twice
        """Store n positions of a layer."""
        end = start + k.shape[1]
        self.keys[layer, :, start:end], self.values[layer, :, start:end] = k, v

    def read(self, layer: int | slice, end: int | None) -> tuple[Array, Array]:
        """Return views of keys and values."""
        return self.keys[layer][..., :end, :], self.values[layer][..., :end, :]


class Int8Storage:
    """int8 elements and a float32 scale for each key and value of a head (``quantize_int8``)."""

    dtype = "int8"

    def __init__(self, shape: Shape) -> None:
        n_layers, n_kv_heads, capacity, _ = shape
        self.keys, self.values = (aligned_zeros(shape, np.dtype(np.int8)) for _ in range(2))
        self.scales = np.zeros((n_layers, 2, n_kv_heads, capacity), np.float32)

    def write(self, layer: int, start: int, k: Array, v: Array) -> None:  # (n_kv_heads, n, d_head) twice
        """Quantize and store n positions of a layer."""
        end = start + k.shape[1]
        for which, (codes, new) in enumerate(((self.keys, k), (self.values, v))):
            codes[layer, :, start:end], self.scales[layer, which, :, start:end, None] = quantize_int8(new)

    def read(self, layer: int | slice, end: int | None) -> tuple[Array, Array]:
        """Return keys and values in float32."""
        scales = self.scales[layer][..., :end, None]
        k, v = scales[..., 0, :, :, :], scales[..., 1, :, :, :]
        return self.keys[layer][..., :end, :] * k, self.values[layer][..., :end, :] * v


def new_storage(shape: Shape, dtype: str) -> Storage:
    """Return empty storage for elements of a dtype: ``float32``, ``bfloat16`` or ``int8``."""
    return Int8Storage(shape) if dtype == "int8" else FloatStorage(shape, dtype)


class KVCache:
    """Keys (rotated) and values of the positions read so far.

    Parameters
    ----------
    config : ModelConfig
    capacity : int
        Positions there is room for, at most ``n_ctx``.
    dtype : str
        ``float32``, ``bfloat16`` or ``int8``.

    Attributes
    ----------
    storage : Storage
        Where the elements are. It is head-major: a head's keys are one contiguous block.
    length : int
        Positions filled. Who has written all layers moves it, and who moves it back forgets what follows.

    Raises
    ------
    InputError
        If the capacity exceeds the model's context.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> cache = model.new_cache(capacity=16)
    >>> from minicore.forward import forward
    >>> logits = forward(model, np.array([5, 6, 7]), cache)
    >>> cache.length, cache.k.shape[2]
    (3, 16)
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: str = "float32") -> None:
        if capacity > config.n_ctx:
            raise InputError(f"{capacity} tokens do not fit the model's context of {config.n_ctx}")
        self.shape: Shape = (config.n_layers, config.n_kv_heads, capacity, config.d_head)
        self.storage = new_storage(self.shape, dtype)
        self.length = 0

    @property
    def dtype(self) -> str:
        """Dtype of the elements."""
        return self.storage.dtype

    @property
    def k(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """Keys: of an int8 cache a copy in float32, else the elements themselves."""
        return self.storage.read(slice(None), None)[0]

    @property
    def v(self) -> Array:  # (n_layers, n_kv_heads, capacity, d_head)
        """Values, likewise."""
        return self.storage.read(slice(None), None)[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales."""
        return self.storage.keys.nbytes + self.storage.values.nbytes + self.storage.scales.nbytes

    @property
    def rounds(self) -> bool:
        """Whether keys and values are rounded as they are stored."""
        return self.dtype != "float32"

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.shape[2]

    def check_room(self, n: int) -> None:
        """Raise InputError unless there is room for n positions more.

        Examples
        --------
        >>> import minicore as mc
        >>> cache = mc.load("minicore-opt-core").new_cache(4)
        >>> cache.check_room(4)
        >>> cache.check_room(5)
        Traceback (most recent call last):
        minicore.errors.InputError: 5 tokens do not fit the 4 positions of the kv cache
        """
        if self.length + n > self.capacity:
            raise InputError(
                f"{self.length + n} tokens do not fit the {self.capacity} positions of the kv cache"
            )

    def rewind(self, length: int) -> None:
        """Forget the positions from ``length`` on; what is read next overwrites them.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> cache = model.new_cache(4)
        >>> from minicore.forward import forward
        >>> logits = forward(model, np.array([5, 6, 7]), cache)
        >>> cache.rewind(2)
        >>> cache.length, cache.check_room(2)
        (2, None)
        """
        if not 0 <= length <= self.length:
            raise InputError(f"length is {length}, expected 0 to {self.length}, the positions filled")
        self.length = length

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        # (n, n_kv_heads, d_head) twice -> (n_kv_heads, length + n, d_head) twice
        """Store a layer's new keys and values after the old ones and return all of them.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> cache = model.new_cache(4)
        >>> new = np.ones((2, model.config.n_kv_heads, model.config.d_head), np.float32)
        >>> keys, values = cache.append(0, new, new)
        >>> keys.shape[1], cache.length  # the caller moves the length once all layers have theirs
        (2, 0)
        """
        self.storage.write(layer, self.length, k.transpose(1, 0, 2), v.transpose(1, 0, 2))
        return self.storage.read(layer, self.length + len(k))

    def copy(self, other: KVCache) -> None:
        """Take over another cache's dtype and positions, for which there must be room.

        Examples
        --------
        >>> import minicore as mc
        >>> model = mc.load("minicore-opt-core")
        >>> short, long = model.new_cache(4), model.new_cache(8)
        >>> from minicore.forward import forward
        >>> logits = forward(model, np.array([5, 6, 7]), short)
        >>> long.copy(short)
        >>> long.length, bool((long.k[:, :, :3] == short.k[:, :, :3]).all())
        (3, True)
        """
        if self.dtype != other.dtype:
            self.storage = new_storage(self.shape, other.dtype)
        n, mine, theirs = other.length, self.storage, other.storage
        mine.keys[:, :, :n], mine.values[:, :, :n] = theirs.keys[:, :, :n], theirs.values[:, :, :n]
        mine.scales[..., :n] = theirs.scales[..., :n]
        self.length = n

    def convert(self, storage: Storage) -> None:
        """Move the positions held so far into other storage of the same shape, and go on there.

        Examples
        --------
        >>> import minicore as mc
        >>> cache = mc.load("minicore-opt-core", dtype="int8").new_cache(4)
        >>> before = cache.dtype
        >>> cache.convert(FloatStorage(cache.shape, "bfloat16"))
        >>> before, cache.dtype
        ('int8', 'bfloat16')
        """
        k, v = self.storage.read(slice(None), self.length)
        storage.keys[:, :, : self.length], storage.values[:, :, : self.length] = k, v
        self.storage = storage


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros that begin on a cache line, so that reading one vector touches one line."""
    n_bytes, line = math.prod(shape) * dtype.itemsize, 64
    memory = np.zeros(n_bytes + line, np.uint8)
    first = -memory.ctypes.data % line
    return memory[first : first + n_bytes].view(dtype).reshape(shape)
