"""The CPU backend: decoding and prefill in kernels that Numba compiles."""
