"""minicore: sentence-level sparse inference from scratch, in NumPy and Numba.

``load`` a model, ``generate`` from it; ``predict`` the core neurons of a prompt (CoreInfer,
arXiv 2410.18311). Importing the package is quick: Numba is loaded when the first kernel is needed.
"""

from minicore import _moved
from minicore.core.neurons import CoreSet, sentence_core, token_core
from minicore.core.rules import TokenRule
from minicore.core.similarity import Clusters
from minicore.errors import InputError
from minicore.generation.prediction import is_stable, predict
from minicore.generation.stream import Generation
from minicore.kv_cache import KVCache
from minicore.model import Model, load

_moved.install()

__version__ = "0.2.0"
__all__ = [
    "Clusters",
    "CoreSet",
    "Generation",
    "InputError",
    "KVCache",
    "Model",
    "TokenRule",
    "is_stable",
    "load",
    "predict",
    "sentence_core",
    "token_core",
]
