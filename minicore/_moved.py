"""Modules under the names they had before version 0.2: importing one warns and gives the module of today."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "minicore.bench_gpu": "minicore.bench.cuda",
    "minicore.decode": "minicore.backends",
    "minicore.experiments": "minicore.reproduce",
    "minicore.experiments.frontier": "minicore.evaluation.frontier",
    "minicore.experiments.quality": "minicore.evaluation.quality",
    "minicore.experiments.reproduce": "minicore.reproduce.runner",
    "minicore.experiments.page": "minicore.cli.reproduce_page",
    "minicore.experiments.stability": "minicore.evaluation.stability",
    "minicore.experiments.statistics": "minicore.bootstrap",
    "minicore.experiments.texts": "minicore.evaluation.texts",
    "minicore.explore": "minicore.explorer.builder",
    "minicore.fitting": "minicore.evaluation.clusters",
    "minicore.generate": "minicore.generation.stream",
    "minicore.kernels": "minicore.backends.cpu",
    "minicore.kernels.bandwidth": "minicore.backends.cpu.bandwidth",
    "minicore.kernels.packed": "minicore.quantization",
    "minicore.prediction": "minicore.generation.prediction",
    "minicore.sampling": "minicore.generation.sampling",
    "minicore.sweep": "minicore.evaluation.sweep",
    "minicore.tasks": "minicore.evaluation.tasks",
}


class MovedFinder(MetaPathFinder, Loader):
    """Finds a moved module under its old name, and what was below an old package below the new one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name."""
        return ModuleSpec(name, self) if current_name(name) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the empty one just made."""
        new = current_name(module.__name__) or ""
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def current_name(name: str) -> str | None:
    """Return the name of today of a module that moved, None for any other."""
    parent, _, last = name.rpartition(".")
    return MOVED.get(name) or (f"{MOVED[parent]}.{last}" if parent in MOVED else None)


def install() -> None:
    """Let ``import`` know the old names."""
    sys.meta_path.insert(0, MovedFinder())  # before a search of today's folder finds a second copy
