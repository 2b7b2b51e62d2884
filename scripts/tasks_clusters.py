"""Write texts labelled by task, from which docs/tasks.md fits clusters for similarity-guided prediction.

    python scripts/tasks_clusters.py --but 50 openqa:TruthfulQA_813.csv openqa:NQ-open.dev.jsonl \
        translation:tatoeba.deu+tatoeba.eng > tasks.jsonl
    minicore cluster fit tasks.jsonl -m MODEL -o tasks.clusters

Each text is an example's zero-shot prompt with its first right answer. Examples that `minicore eval tasks
--examples 50` would draw are excluded.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from minicore.evaluation.tasks import readers, run
from minicore.evaluation.tasks.prompts import Prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", help="TASK:FILE, or TASK:FILE+FILE of parallel text")
    parser.add_argument(
        "--but", type=int, default=50, help="examples that are measured, and excluded here (default: 50)"
    )
    parser.add_argument("--each", type=int, default=150, help="texts from each data set (default: 150)")
    args = parser.parse_args()
    for given in args.data:
        task, _, files = given.partition(":")
        found = readers.read(task, files.split("+"))
        measured = {one.id for one in run.draw(found, args.but, seed=0)}
        rest = [one for one in found if one.id not in measured]
        put = Prompts.read(rest[0].prompts)
        for i in np.random.default_rng(1).permutation(len(rest))[: args.each]:
            text = f"{put.front(rest[i], 0)}{put.fill(rest[i].fields)} {rest[i].references[0]}"
            print(json.dumps({"text": text, "label": put.name}))


if __name__ == "__main__":
    main()
