"""The CUDA backend, in reading order.

availability
    Whether there is a GPU that can be used.
backend
    The backend: its prefill and its decoders.
memory, arena, weights, core_rows, kv_cache
    What is in GPU memory.
prefill, statistics
    Reading prompts, and what predictors sum over their tokens.
decoder, grid
    Decoding, and the shape that its kernel is compiled for.
graph, phases
    The decode step as a graph of launches, to compare and to time.
kernels
    The code that runs on the GPU.
"""
