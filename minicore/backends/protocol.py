"""What every backend offers: the two protocols, and a decoder's statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from minicore.core.rules import Selection
from minicore.core.statistics import Adder

if TYPE_CHECKING:
    from minicore.forward import Hooks, Ops
    from minicore.kv_cache import KVCache
    from minicore.model import Model

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class DecoderStats:
    """What a decoder has done since it was made.

    Attributes
    ----------
    n_steps : int
        Tokens read.
    neurons_read : (n_layers,) int64 array
        Neurons whose output rows were read, added up over the steps.
    kv_bytes : int
        Bytes of keys and values.
    device_bytes : int or None
        Bytes of a device's memory that are in use, None where there is no device.
    compile_s : float
        Seconds spent on getting machine code, from disk or from the compiler.
    """

    n_steps: int
    neurons_read: Array
    kv_bytes: int
    device_bytes: int | None = None
    compile_s: float = 0.0


class Decoder(Protocol):
    """Continues a kv cache, one token or many at a time."""

    @property
    def stats(self) -> DecoderStats:
        """What it has done so far."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether :meth:`run` picks tokens without coming back for each of them."""
        ...

    def step(self, token_id: int) -> Array:  # -> (n_vocab,) float32
        """Read one token into the kv cache and return the logits after it."""
        ...

    def run(self, token_id: int, n: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Read a token and yield the n tokens picked after it, one by one.

        Temperature 0 takes the largest logit. Above it tokens are drawn from the softmax of
        logits / temperature, as a function of seed, position and logits.
        """
        ...

    def use(self, selection: Selection | None) -> None:
        """Decode with this selection from the next step on; None is all neurons."""
        ...

    def flush(self) -> None:
        """Make the kv cache in host memory hold what steps have read."""
        ...


class Backend(Protocol):
    """A model made ready to read prompts and to decode.

    Attributes
    ----------
    name : str
    model : Model
    ops : module
        The maths of whole prompts, for :class:`minicore.forward.ForwardPass`.
    adders : mapping of str to callable
        Faster versions of the predictors' sums over tokens (:data:`minicore.core.statistics.STATISTICS`).
    """

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> Model: ...
    @property
    def ops(self) -> Ops: ...
    @property
    def adders(self) -> Mapping[str, Adder]: ...

    def prefill(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n_vocab,)
        """Read a prompt into the cache and return the logits after its last token."""
        ...

    def forward(
        self, ids: Array, cache: KVCache, hooks: Hooks | Callable[[str, Array], None] | None = None
    ) -> Array:  # (n,) -> (n, n_vocab)
        """Read ids into the cache and return the logits after each of them."""
        ...

    def decoder(self, cache: KVCache, selection: Selection | None = None) -> Decoder:
        """Return a decoder that continues a prefilled cache with the selected neurons."""
        ...

    def restrict(self, selection: Selection | None) -> Backend:
        """Return the backend of the model whose FFNs are the selected neurons only."""
        ...
