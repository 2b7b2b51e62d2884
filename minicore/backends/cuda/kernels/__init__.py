"""The code that runs on the GPU, written with numba.cuda."""
