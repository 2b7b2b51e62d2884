"""The loops that decoders and benchmarks call, compiled by Numba.

Every kernel may add in any order and fuse multiply-adds (``FAST``), and no more than that: NaN and
infinity pass through as they do in NumPy.
"""

FAST = {"reassoc", "contract"}
