"""Kernels that read prompts."""
