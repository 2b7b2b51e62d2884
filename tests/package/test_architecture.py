"""The architecture, read from the sources: imports run one way, and constructs that hide state stay out.

An import counts wherever it stands: at module level, in a function, and under ``if TYPE_CHECKING``. The last
kind never runs, but a signature that names a class of a higher layer cannot be read without that layer.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.numpy

PACKAGE = ROOT / "minicore"
MAX_LINES = 500

# From the top down. A module imports from its own layer and from those below. A name stands for a module of
# the package or for a subpackage with all its modules; "" is the package's own __init__.
LAYERS = [
    {"cli", "__main__"},
    {"evaluation", "reproduce", "explorer", "bench", "plots", "testing", "lm_eval"},
    {""},
    {"generation"},
    {"backends"},
    {"model", "forward", "kv_cache", "core"},
    {"checkpoint", "tokenizer"},
    {"ops", "quantization", "config", "errors", "files", "formatting", "bootstrap", "projection", "_moved"},
]
# What one part may import where its layer would allow more.
ONLY = {"core": {"core", "ops", "quantization", "config", "errors", "files"}}  # core sees arrays only
IMPORT_PLOTS = {"cli", "plots"}
# The one sanctioned upward call, a convenience: these methods of Model, and the types of what they return.
SANCTIONED = {"generate", "stream", "TYPE_CHECKING"}

# What is still to be mended. These may only shrink.
KNOWN_UPWARD: set[tuple[str, str]] = set()
KNOWN_PLOTS: set[tuple[str, str]] = set()
KNOWN_CYCLES: set[frozenset[str]] = set()
KNOWN_LONG: set[str] = set()
KNOWN_COPIES: dict[str, int] = {}
KNOWN_SPLATS = {}


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Return path and syntax tree of each module, by its name below ``minicore``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(name: str) -> Iterator[tuple[str, str]]:
    """Yield the modules of the package that a module imports, by their names below ``minicore``, and where.

    That is the name of the function an import stands in, "TYPE_CHECKING", or "" for the module's level.
    """
    path, tree = sources()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, where in nodes_within(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:  # relative: from . import x
                above = ["minicore", *package.split(".")][: len(package.split(".")) + 2 - node.level]
                start = ".".join([*filter(None, above), *filter(None, [start])])
            wanted = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for one in wanted:
            if one.split(".")[0] == "minicore":
                below = one.partition(".")[2]
                yield below if below in sources() else below.rpartition(".")[0], where


def nodes_within(node: ast.AST, where: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield all nodes and the innermost function, or ``if TYPE_CHECKING``, that each stands in."""
    for child in ast.iter_child_nodes(node):
        yield child, where
        inside = getattr(child, "name", where) if isinstance(child, ast.FunctionDef) else where
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            inside = "TYPE_CHECKING"
        yield from nodes_within(child, inside)


def edges() -> set[tuple[str, str]]:
    """Return who imports whom, but for the sanctioned calls."""
    return {
        (name, other)
        for name in sources()
        for other, where in imports_of(name)
        if other != name and not (name == "model" and other.startswith("generation.") and where in SANCTIONED)
    }


def layer_of(name: str) -> int:
    part = name.split(".")[0]
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def test_every_module_has_a_layer():
    known = set().union(*LAYERS)
    assert {name.split(".")[0] for name in sources()} <= known, "add the new part to LAYERS"


def test_imports_run_one_way():
    upward = {
        (name, other)
        for name, other in edges()
        if layer_of(other) < layer_of(name)
        or other.split(".")[0] not in ONLY.get(name.split(".")[0], {other.split(".")[0]})
    }
    assert upward <= KNOWN_UPWARD


def test_only_the_command_line_imports_plots():
    importers = {
        (name, other)
        for name, other in edges()
        if other.split(".")[0] == "plots" and name.split(".")[0] not in IMPORT_PLOTS
    }
    assert importers <= KNOWN_PLOTS


def test_no_modules_import_one_another():
    graph: dict[str, set[str]] = {name: set() for name in sources()}
    for name, other in edges():
        graph[name].add(other)
    assert set(cycles(graph)) <= KNOWN_CYCLES


def cycles(graph: dict[str, set[str]]) -> Iterator[frozenset[str]]:
    """Yield the sets of modules that all reach one another."""
    reached = {name: reachable(graph, name) for name in graph}
    for name in graph:
        circle = frozenset(other for other in reached[name] if name in reached[other])
        if len(circle) > 1 and name == min(circle):
            yield circle


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def test_no_file_is_longer_than_a_reader_bears():
    long = {
        path.relative_to(PACKAGE).as_posix()
        for path, _ in sources().values()
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert long <= KNOWN_LONG


def test_every_module_says_what_it_is_for():
    assert not [name for name, (_, tree) in sources().items() if not ast.get_docstring(tree)]


def test_no_object_is_copied_behind_its_constructor():
    """Neither ``object.__new__`` nor ``__dict__``: dataclasses.replace, or a constructor."""
    found = count_per_file(
        lambda node: (
            isinstance(node, ast.Attribute)
            and (
                node.attr == "__dict__"
                or (node.attr == "__new__" and isinstance(node.value, ast.Name) and node.value.id == "object")
            )
        )
    )
    assert not Counter(found) - Counter(KNOWN_COPIES)


def count_per_file(wanted) -> dict[str, int]:
    """Count the nodes that are wanted, by file."""
    counts = {
        path.relative_to(PACKAGE).as_posix(): sum(map(wanted, ast.walk(tree)))
        for path, tree in sources().values()
    }
    return {name: n for name, n in counts.items() if n}


def test_no_tuple_is_spliced_into_positional_parameters():
    """``f(*(a, b))`` and ``f(*pair)`` hide which parameter gets what, unless ``f`` itself takes ``*args``."""
    found = Counter()
    for name, (path, tree) in sources().items():
        functions = functions_seen_by(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and any(map(is_splice(node, functions), node.args)):
                found[path.relative_to(PACKAGE).as_posix()] += 1
    assert not found - Counter(KNOWN_SPLATS)


def is_splice(call: ast.Call, functions: dict[str, ast.AST]):
    """Return a check of one argument of a call."""
    function = functions.get(ast.unparse(call.func))
    ours = function is not None and not takes_any_number(function)

    def check(argument: ast.expr) -> bool:
        literal = isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
        return literal or (ours and isinstance(argument, ast.Starred))

    return check


def takes_any_number(made: ast.AST) -> bool:
    """Say whether a function, or what makes an object of a class, has a parameter ``*args``."""
    if isinstance(made, ast.ClassDef):
        made = next((f for f in made.body if getattr(f, "name", "") in ("__init__", "__new__")), made)
    return isinstance(made, ast.FunctionDef) and made.args.vararg is not None


def functions_seen_by(name: str) -> dict[str, ast.AST]:
    """Return the package's functions and classes that a module can call, as it writes them."""
    _, tree = sources()[name]
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("minicore"):
            continue
        for alias in node.names:
            written = alias.asname or alias.name
            module = f"{node.module}.{alias.name}".partition(".")[2]
            if module in sources():  # from minicore.core import neurons: neurons.f
                found |= {f"{written}.{key}": made for key, made in defined_in(module).items()}
            else:
                made = defined_in(node.module.partition(".")[2]).get(alias.name)
                found |= {written: made} if made else {}
    return found


def defined_in(name: str) -> dict[str, ast.AST]:
    _, tree = sources().get(name, (None, ast.Module([], [])))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


# --- the checks themselves ---


def test_the_checks_see_what_they_look_for(tmp_path, monkeypatch):
    """A package with one of each fault: lazy, relative and type-only imports are all seen."""
    files = {
        "__init__.py": '"""A package."""\n',
        "model.py": (
            '"""A model."""\ndef f():\n    from minicore.cli import main\n'
            "def stream():\n    from minicore.generation.stream import Stream\n"
            "def other():\n    from minicore.generation.options import Options\n"
        ),
        "generation/stream.py": '"""Streams."""\n',
        "generation/options.py": '"""Options."""\n',
        "core.py": '"""Rules."""\nif TYPE_CHECKING:\n    from . import model\n',
        "ops.py": '"""Maths."""\nimport minicore.core\ndef g(a, b):\n    g(*(a, b))\n    print(*a)\n',
        "cli.py": "x = object.__new__(int)\n" + "\n" * MAX_LINES + "from minicore import plots\n",
        "plots.py": '"""Plots."""\nfrom minicore.cli import x\n',
    }
    (tmp_path / "generation").mkdir()
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    sources.cache_clear()
    try:
        assert edges() == {
            ("model", "cli"),
            ("model", "generation.options"),
            ("core", "model"),
            ("ops", "core"),
            ("cli", "plots"),
            ("plots", "cli"),
        }
        for check in (
            test_imports_run_one_way,
            test_no_modules_import_one_another,
            test_no_file_is_longer_than_a_reader_bears,
            test_every_module_says_what_it_is_for,
            test_no_object_is_copied_behind_its_constructor,
            test_no_tuple_is_spliced_into_positional_parameters,
        ):
            with pytest.raises(AssertionError):
                check()
    finally:
        sources.cache_clear()
