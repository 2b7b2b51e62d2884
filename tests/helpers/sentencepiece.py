"""SentencePiece's BPE as llama.cpp has it (src/llama-vocab.cpp), in plain Python: the reference for tests."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

SPACE = "\u2581"


def encode(text: str, ids: Mapping[str, int], scores: Mapping[str, float]) -> list[int]:
    """Return the ids of a text without special tokens: merge the pair whose token scores highest, leftmost
    first, until no pair is a token; then spell characters that are no tokens byte by byte."""
    symbols = list(text)
    before, after = list(range(-1, len(text) - 1)), [*range(1, len(text)), -1]
    heap: list[tuple[float, int, int, str]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (merged := symbols[left] + symbols[right]) in ids:
            heapq.heappush(heap, (-scores[merged], left, right, merged))

    for left in range(len(text) - 1):
        push(left, left + 1)
    while heap:
        _, left, right, merged = heapq.heappop(heap)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
            continue  # one of the two is part of another token by now
        symbols[left], symbols[right] = merged, ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        push(before[left], left)
        push(left, after[left])
    found: list[int] = []
    for symbol in filter(None, symbols):
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


def encode_with_prefix(text: str, ids: Mapping[str, int], scores: Mapping[str, float]) -> list[int]:
    """Return the ids of a text with the space that SentencePiece puts in front of it."""
    return encode(f" {text}".replace(" ", SPACE), ids, scores) if text else []
