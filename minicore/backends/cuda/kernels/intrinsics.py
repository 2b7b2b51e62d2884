"""What kernels use that ``numba.cuda`` lacks, or that the simulator does otherwise.

On a GPU these are intrinsics (ptx.py). Under Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) they are Python
functions (simulated.py, which documents them); a warp is one thread there, and a grid one block.
"""

from __future__ import annotations

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
WARP_SIZE = 1 if SIMULATED else 32
ALL_LANES = 0xFFFFFFFF  # the mask of shuffles

if not SIMULATED:
    from minicore.backends.cuda.kernels.ptx import *  # noqa: F403
else:
    from minicore.backends.cuda.kernels.simulated import *  # noqa: F403
