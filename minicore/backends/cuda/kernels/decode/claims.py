"""Dynamic scheduling: rows beyond a warp's first go to the first warp that finishes.

Multiprocessors are not equally far from the memory. If each had the same number of rows, all would wait for
the slowest. So a warp claims its next row from a counter in global memory.
"""

from __future__ import annotations

import numpy as np

from minicore.backends.cuda.kernels.decode.shape import N_COUNTERS
from minicore.backends.cuda.kernels.intrinsics import cuda, device, store
from minicore.backends.cuda.kernels.warp import broadcast_first


@device
def claim_row(s, m, thread, counter, i, n_rows):
    """Return the row that the warp computes after row i; only the first lane gets the right one.

    The claim is made before row i is computed, so that no warp waits for the counter. Rows are dealt out
    evenly if there is no counter (-1) or if there are at most as many rows as warps.
    """
    if counter >= 0 and n_rows > s.n_grid_warps and thread.lane == 0:
        return np.int32(s.n_grid_warps + cuda.atomic.add(m.counters, counter, np.int32(1)))
    return np.int32(i + s.n_grid_warps)


@device
def claimed_row(s, claimed, n_rows):
    """Return a claimed row to all lanes; n_rows, the end, if every warp has one row at most."""
    return broadcast_first(claimed) if n_rows > s.n_grid_warps else np.int32(n_rows)


@device
def reset_counters(s, m, thread, counter):
    """Reset a layer's counters for the next token. No warp claims from them before this token is chosen."""
    if s.claims_rows and thread.block == 0:
        for k in range(thread.tid, N_COUNTERS, s.n_threads):
            store(m.counters, counter + k, np.int32(0))
