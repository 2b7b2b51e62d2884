"""Print the table of docs/reproduction.md from reports of `minicore reproduce`.

    python scripts/reproduction_table.py report report-smollm2

Each report is a column; a figure that a report lacks has a dash.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minicore.reproduce.experiments import EXPERIMENTS


def read(report: Path) -> dict[str, Any]:
    """Return a report's figures by name."""
    paths = ((name, report / f"{name}.json") for name in EXPERIMENTS if name != "table1")  # has its own table
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths if path.exists()}


def rows(name: str, reports: list[dict[str, Any]]) -> list[list[str]]:
    """Return a figure's rows: what, the paper, each model's value and, in the first, whether it agrees."""
    title = EXPERIMENTS[name].title.partition(":")[0].replace(" and figure 7", "")
    there = [report.get(name) for report in reports]
    first = next(found for found in there if found)
    table = []
    for i, (what, paper, _) in enumerate(first["beside"]):
        ours = []
        for found in there:
            verdict = "" if i else "-" if found is None else found["agrees"]
            ours += ["-" if found is None else found["beside"][i][2], verdict]
        table.append([title if i == 0 else "", what, paper, *ours])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="folders that `minicore reproduce -o` wrote")
    reports = [read(path) for path in parser.parse_args().reports]
    measured = [name for name in EXPERIMENTS if any(name in report for report in reports)]
    models = [next(iter(report.values()))["key"]["model"] for report in reports]
    head = ["figure", "what", "the paper", *(name for model in models for name in (model, "agrees"))]
    for row in [head, ["---"] * len(head), *(row for name in measured for row in rows(name, reports))]:
        print(f"| {' | '.join(row)} |".replace("|  |", "| |"))
    for report, model in zip(reports, models, strict=True):
        print(
            f"\n{model}, seconds: "
            + ", ".join(f"{name} {one['seconds']:.0f}" for name, one in report.items())
        )


if __name__ == "__main__":
    main()
