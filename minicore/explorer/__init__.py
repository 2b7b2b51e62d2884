"""The offline page of `minicore explore`."""
