"""The CUDA backend: kernels by numba.cuda, what holds weights and cache on the device, prefill and decode."""
