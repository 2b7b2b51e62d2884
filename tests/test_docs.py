"""What the docstrings show is what comes out, and every public name shows something."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import minicore
from minicore.core.similarity import fit
from minicore.explore import explore
from minicore.fitting import fit_clusters
from minicore.model import Model
from minicore.sweep import sweep
from minicore.tasks.readers import read
from minicore.tokenizer import Tokenizer

NOT_IMPORTED = ("minicore.__main__", "cuda", "device")  # runs the program; need a GPU's compiler
MODULES = [
    module.name
    for module in pkgutil.walk_packages(minicore.__path__, "minicore.")
    if not module.name.endswith(NOT_IMPORTED)
]


def defined(module: ModuleType) -> list[object]:
    """Return a module's public functions: those it names, else those it makes."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    made = [one for one in map(vars(module).get, names) if inspect.isfunction(one)]
    return [one for one in made if one.__module__.startswith(module.__name__)]


WHOLE = ("core.stability", "ops", "plots")  # all that they make
PUBLIC = [
    *(getattr(minicore, name) for name in minicore.__all__),
    *(getattr(Model, name) for name in ("forward", "run_with_cache", "generate", "stream", "restrict")),
    *(getattr(minicore.CoreSet, name) for name in ("jaccard", "overlap", "recall", "save")),
    *(getattr(Tokenizer, name) for name in ("encode", "pieces")),
    explore,
    fit_clusters,
    fit,
    read,
    sweep,
    *(thing for name in WHOLE for thing in defined(importlib.import_module(f"minicore.{name}"))),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, capsys):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed (an extra)")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not found.failed, capsys.readouterr().out


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__qualname__)
def test_every_public_name_has_an_example(thing):
    assert ">>> " in inspect.getdoc(thing)


@pytest.mark.parametrize("thing", [minicore.load, minicore.predict, explore, fit_clusters])
def test_every_parameter_is_described(thing):
    described = inspect.getdoc(thing)
    missing = [name for name in inspect.signature(thing).parameters if name not in described]
    assert not missing
