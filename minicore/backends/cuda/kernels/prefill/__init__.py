"""Kernels that read a prompt: all tokens of a chunk at once, a launch for each step of a block.

products, tensor_cores
    Activations times weights, plain and on tensor cores.
norms, attention, elementwise
    What is between the products.
statistics
    What predictors sum over tokens.
block_reduce
    Sums and maxima over a block.
"""
