"""Runs experiments and keeps their results as NAME.json and NAME.csv, so that a report is resumed."""

from __future__ import annotations

import csv
import inspect
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from minicore import __version__
from minicore.errors import InputError, unknown
from minicore.evaluation.shared_model import ModelRef, register_model, resolve_model
from minicore.evaluation.sweep import Workers, sweep
from minicore.files import atomic_write
from minicore.model import Model
from minicore.reproduce.experiments import EXPERIMENTS
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import Row

Result = dict[str, Any]  # Findings, and the experiment's name, seconds and key, as JSON holds them
Draw = Callable[[str, Result, Path], None]  # writes an experiment's picture to a PNG file


def reproduce(
    names: Sequence[str],
    model: Model,
    out: str | PathLike[str],
    *,
    texts: Sequence[str | PathLike[str]] | None = None,
    pairs: Sequence[str | PathLike[str]] = (),
    seed: int = 0,
    progress: bool = False,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    workers: Workers | None = None,
    draw: Draw | None = None,
) -> Iterator[tuple[str, Result]]:
    """Measure experiments and write their results; yield each one's name and result as it is done.

    Parameters
    ----------
    names : sequence of str
        Keys of EXPERIMENTS. ``all`` is all of them, with Table 1 if there are pairs.
    model : Model
    out : path
        Folder for NAME.json, NAME.csv and NAME.png. Results that it already holds for the same model, texts
        and settings are not measured again; they are yielded first.
    texts, pairs, seed, progress
        See :class:`Material`.
    sizes : mapping of str to mapping, or None
        Other values for the keywords of some experiments.
    workers : Workers or None
        What measures, one experiment per job; None is this process. Experiments that measure speed run in
        this process, after all others.
    draw : callable or None
        Draws the picture of a result that has none yet, from name, result and path. None draws nothing.

    Raises
    ------
    InputError
        If a name is unknown, a file cannot be read, or there are too few texts for a figure.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> import tempfile
    >>> small = {"fig12": {"n_tokens": 64, "n_texts": 2}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, found in reproduce(["fig12"], model, folder, sizes=small):
    ...         print(name, found["agrees"], sorted(path.suffix for path in Path(folder).iterdir()))
    fig12 yes ['.csv', '.json']
    """
    chosen = chosen_names(names, pairs)
    workers = Workers() if workers is None else workers
    shared = Shared(
        model=register_model(model),
        texts=None if texts is None else tuple(map(str, texts)),
        pairs=tuple(map(str, pairs)),
        seed=seed,
    )
    material, folder = material_of(shared, progress), Path(out)
    sizes = {name: (sizes or {}).get(name, {}) for name in chosen}
    keys = {name: key_of(name, material, sizes[name]) for name in chosen}
    missing = []
    for name, key in keys.items():
        found = read(folder / f"{name}.json", key)
        if found is None:
            missing.append(name)
            continue
        draw_missing(name, found, folder, draw)
        yield name, found
    here = Workers(n_threads=workers.n_threads)
    for where, exclusive in ((workers, False), (here, True)):
        todo = [name for name in missing if EXPERIMENTS[name].exclusive == exclusive]
        jobs = [Job(shared, name, sizes[name]) for name in todo]
        bar = progress and not where.in_this_process  # here, experiments have bars of their own
        for i, findings in sweep(run, jobs, where, unit=" figures", progress=bar):
            found = keep(todo[i], findings | {"figure": todo[i], "key": keys[todo[i]]}, folder)
            draw_missing(todo[i], found, folder, draw)
            yield todo[i], found


def chosen_names(names: Sequence[str], pairs: Sequence[str | PathLike[str]]) -> list[str]:
    """Return the experiments that names stand for."""
    chosen = [name for name in names if name != "all"]
    if "all" in names:
        chosen = [name for name in EXPERIMENTS if name != "table1" or pairs]
    for name in chosen:
        if name not in EXPERIMENTS:
            raise unknown("figure", name, [*EXPERIMENTS, "all"])
    if "table1" in chosen and len(pairs) < 2:
        raise InputError(
            "table1 needs two or more files of sentence pairs (--pairs): one to test on, others to choose on"
        )
    return chosen


class Shared(NamedTuple):
    """What the experiments of a report share."""

    model: ModelRef
    texts: tuple[str, ...] | None
    pairs: tuple[str, ...]
    seed: int


class Job(NamedTuple):
    """An experiment for a worker."""

    shared: Shared
    name: str
    sizes: Mapping[str, Any]


_materials: dict[Shared, Material] = {}  # at most one: what one experiment has read, the next reuses


def material_of(shared: Shared, progress: bool = False) -> Material:
    """Return the material of a report, which each process makes once."""
    if shared not in _materials:
        _materials.clear()
        model = resolve_model(shared.model)
        _materials[shared] = Material(model, shared.texts, shared.pairs, shared.seed, progress)
    return _materials[shared]


def run(job: Job) -> Result:
    """Return an experiment's findings and the seconds they took."""
    material, began = material_of(job.shared), time.perf_counter()
    findings = EXPERIMENTS[job.name].measure(material, **job.sizes)
    return {**findings, "seconds": round(time.perf_counter() - began, 1)}


def key_of(name: str, material: Material, sizes: Mapping[str, Any]) -> Result:
    """Return what identifies an experiment's result: model, texts, settings and version."""
    key = material.about | {"version": __version__, "settings": settings(name, sizes)}
    return key | (material.about_pairs if name == "table1" else {})


def settings(name: str, sizes: Mapping[str, Any]) -> Result:
    """Return the keywords that an experiment runs with, as JSON holds them."""
    keywords = inspect.signature(EXPERIMENTS[name].measure).parameters.values()
    known = {one.name: one.default for one in keywords if one.kind is one.KEYWORD_ONLY}
    for given in sizes:
        if given not in known:
            raise unknown(f"setting of {name}", given, known)
    found: Result = json.loads(json.dumps(known | dict(sizes)))
    return found


# --- files ---


def read(path: Path, key: Result) -> Result | None:
    """Return the result in a file if it has this key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def keep(name: str, found: Result, folder: Path) -> Result:
    """Write an experiment's result and return it as it will be read; its old picture is removed."""
    found = json.loads(json.dumps(found))  # tuples become lists
    (folder / f"{name}.png").unlink(missing_ok=True)
    write(folder / f"{name}.csv", as_csv(found["table"]))
    write(folder / f"{name}.json", json.dumps(found) + "\n")
    return found


def draw_missing(name: str, found: Result, folder: Path, draw: Draw | None) -> None:
    """Draw an experiment's picture if there is none."""
    if draw and not (folder / f"{name}.png").exists():
        draw(name, found, folder / f"{name}.png")


def write(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def as_csv(table: Sequence[Row]) -> str:
    """Return rows as comma-separated values; a value with an interval takes three columns."""
    flat = []
    for row in table:
        cells: Row = {}
        for column, value in row.items():
            if isinstance(value, list):
                cells |= dict(zip((column, f"{column} low", f"{column} high"), value, strict=True))
            else:
                cells[column] = value
        flat.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
