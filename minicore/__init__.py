"""minicore: sentence-level sparse inference from scratch, in NumPy and Numba.

``load`` a model, ``generate`` from it; ``predict`` the core neurons of a prompt (CoreInfer,
arXiv 2410.18311). Importing the package is quick: Numba is loaded when the first kernel is needed.
"""

from minicore.core.neurons import CoreSet, sentence_core, token_core
from minicore.errors import InputError
from minicore.generate import Generation, predict
from minicore.model import KVCache, Model, load

__version__ = "0.1.0"
__all__ = [
    "CoreSet",
    "Generation",
    "InputError",
    "KVCache",
    "Model",
    "load",
    "predict",
    "sentence_core",
    "token_core",
]
