"""Kernels that decode. Read them in this order.

shape, sizes, vectors
    What a kernel is compiled for; layouts of arenas, of shared memory and of vectors in it.
step
    The persistent kernel: a whole token, token after token, in one launch.
residual, projections, attention, ffn, sampling
    The parts of a token.
rows, int8_rows
    The dot products of which most of them consist.
claims, staging
    Which warp computes which row, and weights that are fetched before they are needed.
phases
    The same parts, a launch for each.
gather
    Copying the rows of selected neurons.
"""
