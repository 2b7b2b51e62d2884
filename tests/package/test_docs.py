"""What the docstrings show is what comes out, and every public name shows something."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import minicore
from minicore.evaluation.clusters import fit_clusters
from minicore.explorer.builder import explore
from tests.helpers import ROOT

# These run the program, or need a GPU to show anything.
NOT_SHOWN = re.compile(r"minicore\.(__main__|backends\.cuda\.(decoder|kernels)(\..*)?)")
MODULES = [
    "minicore",
    *(
        module.name
        for module in pkgutil.walk_packages(minicore.__path__, "minicore.")
        if not NOT_SHOWN.fullmatch(module.name)
    ),
]
SECTION = re.compile(r"^(Parameters|Returns|Yields|Raises)\n---", re.MULTILINE)
SHOWN_WHOLE = ("minicore.core.stability", "minicore.ops")  # functions of arrays, called from notebooks


def imported(name: str) -> ModuleType:
    """Return a module; skip the test where that needs an extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed (an extra)")


def methods(made: type) -> Iterator[Callable[..., Any]]:
    """Yield a class's own methods, those of the class itself too; properties are data."""
    for name, value in vars(made).items():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield function


def public(module: ModuleType) -> Iterator[Callable[..., Any]]:
    """Yield what callers elsewhere are meant to use.

    That is what ``__all__`` names, with all methods of a class; and of everything else the functions and
    methods whose docstrings describe parameters, results or errors, which is done for callers elsewhere.
    """
    for name in getattr(module, "__all__", []):
        made = getattr(module, name)
        if inspect.isclass(made):
            yield from (made, *methods(made))
        elif inspect.isfunction(made):
            yield made
    for name, made in vars(module).items():
        if name.startswith("_") or getattr(made, "__module__", None) != module.__name__:
            continue
        for one in methods(made) if inspect.isclass(made) else [made] * inspect.isfunction(made):
            if module.__name__ in SHOWN_WHOLE or SECTION.search(inspect.getdoc(one) or ""):
                yield one


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, capsys):
    found = doctest.testmod(imported(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not found.failed, capsys.readouterr().out


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_an_example(name):
    missing = {
        one.__qualname__ for one in public(imported(name)) if ">>> " not in (inspect.getdoc(one) or "")
    }
    assert not missing


def test_the_public_surface_is_found():
    assert {"load", "Model", "Model.stream", "CoreSet.load"} <= {one.__qualname__ for one in public(minicore)}
    for module in ("generation.stream", "evaluation.tasks.run", "reproduce.runner"):
        assert list(public(importlib.import_module(f"minicore.{module}")))


@pytest.mark.parametrize("thing", [minicore.load, minicore.predict, explore, fit_clusters])
def test_every_parameter_is_described(thing):
    described = inspect.getdoc(thing)
    missing = [name for name in inspect.signature(thing).parameters if name not in described]
    assert not missing


def test_the_table_of_families_is_the_table_of_the_code():
    """Between the marks of docs/models.md; a failure prints what belongs there."""
    from minicore.checkpoint.families import FAMILIES

    rows = ["| family | checkpoints and variants | refused |", "|---|---|---|"]
    rows += [f"| `{name}` | {row.models} | {row.refused} |" for name, row in FAMILIES.items()]
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    between = text.split("<!-- families -->")[1].strip()
    assert between == "\n".join(rows), "\n".join(rows)
    assert all(row.models for row in FAMILIES.values())
