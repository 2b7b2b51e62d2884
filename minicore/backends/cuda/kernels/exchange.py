"""Words that carry their own arrival."""

from __future__ import annotations

from minicore.backends.cuda.kernels.intrinsics import SIMULATED, cuda, device, stop, take2

SPINS = 1 << 22  # polls of a word, some seconds: whoever waits longer waits for ever, and stops the kernel


@cuda.jit(device=True)
def settle():  # type: ignore[no-untyped-def]
    """Let all of a simulated block arrive: its threads are too slow to poll. On a GPU this is nothing."""
    if SIMULATED:
        cuda.syncthreads()


@device
def complete(words, i, pair, tag):  # type: ignore[no-untyped-def]  # -> float32, float32
    """Return the values of a pair of words that was read; read it again until it has this tag."""
    a, tag_a, b, tag_b = pair
    spins = 0
    while tag_a != tag or tag_b != tag:
        spins += 1
        if spins > SPINS:
            stop()
        a, tag_a, b, tag_b = take2(words, i, True)
    return a, b


@device
def take(words, i, tag):  # type: ignore[no-untyped-def]  # -> float32, float32
    """Wait for words 2 i and 2 i + 1 with this tag and return their values."""
    return complete(words, i, take2(words, i, True), tag)
