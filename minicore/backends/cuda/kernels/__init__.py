"""The code that runs on the GPU, written with numba.cuda. Read it in this order.

intrinsics
    What kernels use that numba.cuda lacks: ptx.py on a GPU, simulated.py under Numba's simulator.
warp
    Sums, maxima and argmaxima over the lanes of a warp.
ll_protocol
    How blocks of one kernel exchange values without a barrier.
elements
    Single elements of stored weights, activation functions.
launch
    How kernels are compiled, cached and launched.
decode
    Kernels that read one token after the other.
prefill
    Kernels that read a prompt.
"""
