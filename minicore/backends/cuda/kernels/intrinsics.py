"""What a GPU kernel is made of: 16-byte loads, words that carry their own arrival, sums over a warp.

Blocks of one kernel hand numbers to one another in words of 8 bytes: the number and a tag, written by one
store. Whoever needs a word reads it until the tag is the one it waits for, so that no barrier and no fence
lies between two phases, only the way to the L2 cache and back.

Under Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the same names are plain Python: a warp is one thread,
and a kernel one block.
"""

from __future__ import annotations

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
LANES = 1 if SIMULATED else 32
ALL = 0xFFFFFFFF

if not SIMULATED:
    from minicore.backends.cuda.kernels.ptx import *  # noqa: F403
else:
    from minicore.backends.cuda.kernels.simulated import *  # noqa: F403
