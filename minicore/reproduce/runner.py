"""Every figure and table of CoreInfer (2410.18311) that a small model can carry: a table of experiments.

An experiment is a function of a :class:`Material` that returns its numbers: ``table`` (rows; a value with an
interval is ``[estimate, low, high]``), ``beside`` (rows of what, the paper's figure, ours), ``agrees`` and
``sentence`` (see :mod:`minicore.reproduce.verdict`), and ``drawn``, what else its picture needs. Intervals
are 95% bootstrap intervals over texts unless the function says otherwise.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from minicore import __version__
from minicore.errors import InputError, unknown
from minicore.evaluation.sweep import ModelRef, Where, borrow, share, sweep
from minicore.files import atomic_write
from minicore.model import Model
from minicore.reproduce import decoding, meaning, settling
from minicore.reproduce.material import Material

Found = dict[str, Any]


class Experiment(NamedTuple):
    """A figure or table of the paper: what it shows, what the paper says of it, and what measures it here."""

    title: str
    claim: str
    run: Callable[..., Found]
    alone: bool = False  # measures speed: nothing else may run meanwhile


EXPERIMENTS = {
    "fig2": Experiment(
        "Figure 2: what alpha and beta cost, and tokens' sets in the plane",
        "Few neurons suffice: perplexity hardly rises when a token keeps the top 40% of its active neurons, "
        "or a text its 40% most frequent ones; the sets of one text's tokens gather.",
        settling.fig2,
    ),
    "fig3": Experiment(
        "Figure 3: meaning and core of a growing text",
        "Stability: as a fluent text grows its core settles; it still moves below about 100 tokens, hardly "
        "at 200 to 300, and changes as little as the meaning does.",
        settling.fig3,
    ),
    "fig4": Experiment(
        "Figure 4: sentence-wise sets by topic",
        "Similarity: texts of close meaning have close core neurons; topics form clusters, more clearly in "
        "deeper layers.",
        meaning.fig4,
    ),
    "fig5": Experiment(
        "Figure 5: dense and core text side by side",
        "What core neurons write reads as what all neurons write.",
        decoding.fig5,
    ),
    "fig6": Experiment(
        "Figure 6: quality against beta and gamma",
        "Quality hardly falls down to 0.2 for extraction and question answering, 0.4 for translation.",
        decoding.fig6,
    ),
    "fig8": Experiment(
        "Figure 8: stability in every layer",
        "The core settles in all layers, not in one alone.",
        settling.fig8,
    ),
    "fig9": Experiment(
        "Figure 9: similarity in every layer",
        "Texts on one topic have closer core neurons than texts on two, more clearly in deeper layers.",
        meaning.fig9,
    ),
    "fig11": Experiment(
        "Figure 11: what is in a cluster",
        "Texts whose core neurons cluster together are about one subject.",
        meaning.fig11,
    ),
    "fig12": Experiment(
        "Figure 12: the frequency of all neurons",
        "Few neurons are core neurons of most tokens, most are of few or none.",
        settling.fig12,
    ),
    "table1": Experiment(
        "Table 1: core-neuron similarity against human similarity",
        "Spearman's rho on STS-B and SICK: OPT-6.7B .56 and .42, OPT-13B .52 and .41, OPT-30B .53 and .45, "
        "LLaMA2-7B .66 and .49, LLaMA3.1-8B .65 and .51.",
        meaning.table1,
    ),
    "table2": Experiment(
        "Table 2: quality after settled and short prompts",
        "Decoding with core neurons costs tasks little: stability-guided after few-shot prompts, "
        "similarity-guided after zero-shot ones. Here perplexity and agreement stand for the tasks' scores.",
        decoding.table2,
    ),
    "table3": Experiment(
        "Table 3 and figure 7: speed and memory",
        "OPT-6.7B on a TITAN XP of 12 GB: Transformers, offloading, 1.92 tokens/s, CoreInfer 19.83; where "
        "the model fits in memory the gain is 1.4 to 1.65.",
        decoding.table3,
        alone=True,
    ),
    "table4": Experiment(
        "Table 4: stability-guided prediction forced on short prompts",
        "A short prompt has not settled: its own set costs much more than its cluster's.",
        decoding.table4,
    ),
}


def reproduce(
    names: Sequence[str],
    model: Model,
    out: str | PathLike[str],
    *,
    texts: Sequence[str | PathLike[str]] | None = None,
    pairs: Sequence[str | PathLike[str]] = (),
    seed: int = 0,
    progress: bool = False,
    sizes: dict[str, dict[str, Any]] | None = None,
    workers: Where | None = None,
) -> Iterator[tuple[str, Found]]:
    """Measure, write and draw experiments; yield each one's name and numbers as it is done.

    Parameters
    ----------
    names : sequence of str
        Keys of EXPERIMENTS; ``all`` is all of them, Table 1 if there are pairs.
    model : Model
    out : path
        Folder for NAME.json, NAME.csv and NAME.png. What is there already of the same model, texts and
        settings is not measured again, and comes first.
    texts, pairs, seed, progress
        See :class:`Material`.
    sizes : dict of str to dict or None
        Other values for the keywords of some experiments' functions.
    workers : Where or None
        Who measures, an experiment at a time; None is this process. Table 3 is left to this process, when
        all others are done.

    Raises
    ------
    InputError
        If a name is unknown, a file cannot be read, or the texts do not suffice for a figure.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> import tempfile
    >>> small = {"fig12": {"n_tokens": 64, "n_texts": 2}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, found in reproduce(["fig12"], model, folder, sizes=small):
    ...         print(name, found["agrees"], sorted(path.suffix for path in Path(folder).iterdir()))
    fig12 yes ['.csv', '.json', '.png']
    """
    chosen = [name for name in names if name != "all"]
    if "all" in names:
        chosen = [name for name in EXPERIMENTS if name != "table1" or pairs]
    for name in chosen:
        if name not in EXPERIMENTS:
            raise unknown("figure", name, [*EXPERIMENTS, "all"])
    if "table1" in chosen and len(pairs) < 2:
        raise InputError(
            "table1 needs two or more files of sentence pairs (--pairs), one to test and others to choose on"
        )
    workers = Where() if workers is None else workers
    paths = None if texts is None else tuple(map(str, texts))
    shared = Shared(share(model), paths, tuple(map(str, pairs)), seed)
    material, folder = material_of(shared, progress), Path(out)
    changed = {name: (sizes or {}).get(name, {}) for name in chosen}
    keys = {name: key_of(name, material, changed[name]) for name in chosen}
    missing = []
    for name, key in keys.items():
        found = read(folder / f"{name}.json", key)
        if found is None:
            missing.append(name)
        else:
            draw(name, found, folder)
            yield name, found
    several = workers.workers > 1 or workers.scheduler is not None  # else an experiment has bars of its own
    for where, alone in ((workers, False), (Where(threads=workers.threads), True)):
        names = [name for name in missing if EXPERIMENTS[name].alone == alone]
        jobs = [Job(shared, name, changed[name]) for name in names]
        for i, found in sweep(run, jobs, where, unit=" figures", progress=progress and several and not alone):
            found |= {"figure": names[i], "key": keys[names[i]]}
            yield names[i], keep(names[i], found, folder)


class Shared(NamedTuple):
    """What the experiments of a report have in common."""

    model: ModelRef
    texts: tuple[str, ...] | None
    pairs: tuple[str, ...]
    seed: int


class Job(NamedTuple):
    """An experiment for a worker."""

    shared: Shared
    name: str
    sizes: dict[str, Any]


# Of this process: what one experiment has read, the next need not read.
_materials: dict[Shared, Material] = {}


def material_of(shared: Shared, progress: bool = False) -> Material:
    """Return the material of a report, which this process makes once."""
    if shared not in _materials:
        _materials.clear()
        model, texts, pairs, seed = shared
        _materials[shared] = Material(borrow(model), texts, pairs, seed, progress)
    return _materials[shared]


def run(job: Job) -> Found:
    """Return an experiment's numbers and the seconds they took."""
    material, began = material_of(job.shared), time.perf_counter()
    found = EXPERIMENTS[job.name].run(material, **job.sizes)
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def key_of(name: str, material: Material, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return what an experiment's numbers are of."""
    key = material.about | {"version": __version__, "settings": settings(name, sizes)}
    return key | (material.about_pairs if name == "table1" else {})


def keep(name: str, found: Found, out: Path) -> Found:
    """Write an experiment's numbers and its picture; return the numbers as they will be read."""
    found = json.loads(json.dumps(found))  # tuples are lists
    (out / f"{name}.png").unlink(missing_ok=True)  # of other numbers
    write(out / f"{name}.csv", as_csv(found["table"]))
    write(out / f"{name}.json", json.dumps(found) + "\n")
    draw(name, found, out)
    return found


def draw(name: str, found: Found, out: Path) -> None:
    """Draw an experiment's picture if it is not there."""
    from minicore.plots import paper

    if not (out / f"{name}.png").exists():
        with atomic_write(out / f"{name}.png") as part:
            paper.draw(name, found).savefig(part, format="png", dpi=120)


def settings(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords an experiment runs with, as JSON holds them."""
    keywords = inspect.signature(EXPERIMENTS[name].run).parameters.values()
    known = {one.name: one.default for one in keywords if one.kind is one.KEYWORD_ONLY}
    for given in sizes:
        if given not in known:
            raise unknown(f"setting of {name}", given, known)
    return json.loads(json.dumps(known | sizes))


def read(path: Path, key: dict[str, Any]) -> Found | None:
    """Return the numbers in a file if they are of the same model, texts and settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def as_csv(table: list[dict[str, Any]]) -> str:
    """Return rows as comma-separated values; a value with an interval takes three columns."""
    flat = []
    for row in table:
        cells: dict[str, Any] = {}
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
