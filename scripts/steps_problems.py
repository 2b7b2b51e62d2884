"""Write the problems of one to three steps of `minicore eval tasks --task steps`.

    python scripts/steps_problems.py > minicore/evaluation/tasks/steps.jsonl

Each use of a template draws new names and numbers; answers are non-negative integers.
"""

from __future__ import annotations

import json

import numpy as np

NAMES = ["Anna", "Tom", "Lena", "Omar", "Rosa", "Finn", "Nadia", "Hugo", "Iris", "Paul"]
THINGS = ["books", "stamps", "apples", "marbles", "shells", "coins", "cards", "eggs", "pencils", "plums"]

# text with fields, number of steps, the answer from the numbers a, b and c
TEMPLATES = [
    ("{x} has {a} {t}. {x} finds {b} more. How many {t} does {x} have now?", 1, lambda a, b, c: a + b),
    ("{x} had {d} {t}. {x} gave away {a}. How many {t} are left?", 1, lambda a, b, c: b),
    ("A box holds {a} {t}. How many {t} do {b} boxes hold?", 1, lambda a, b, c: a * b),
    ("{e} {t} are shared by {a} children. How many {t} does each child get?", 1, lambda a, b, c: b),
    (
        "{x} has {a} {t} and buys {b} more. Then {y} gives {x} another {c}. How many {t} does {x} have now?",
        2,
        lambda a, b, c: a + b + c,
    ),
    (
        "There are {a} boxes with {b} {t} each, and {c} {t} lie beside them. How many {t} are there?",
        2,
        lambda a, b, c: a * b + c,
    ),
    (
        "{x} has {a} {t} and {y} has {b} more than {x}. How many {t} do they have together?",
        2,
        lambda a, b, c: 2 * a + b,
    ),
    (
        "{x} has {a} {t}, {y} has {b} times as many, and {z} has {c} more than {y}. "
        "How many {t} does {z} have?",
        2,
        lambda a, b, c: a * b + c,
    ),
    (
        "{x}, {y} and {z} each have {a} {t}. {x} finds {b} more and {y} finds {c} more. "
        "How many {t} do they have in all?",
        3,
        lambda a, b, c: 3 * a + b + c,
    ),
    (
        "{x} packs {a} boxes of {b} {t} and then as many boxes of {c} {t}. How many {t} are packed?",
        3,
        lambda a, b, c: a * b + a * c,
    ),
]


def problems(n: int = 100, seed: int = 0) -> list[dict[str, object]]:
    """Return n different problems, using the templates in turn."""
    rng, found = np.random.default_rng(seed), dict[str, dict[str, object]]()
    while len(found) < n:
        text, steps, answer = TEMPLATES[len(found) % len(TEMPLATES)]
        a, b, c = (int(i) for i in rng.integers(2, 13, 3))
        x, y, z = rng.choice(NAMES, 3, replace=False)
        question = text.format(a=a, b=b, c=c, d=a + b, e=a * b, x=x, y=y, z=z, t=rng.choice(THINGS))
        found[question] = {"question": question, "answer": str(answer(a, b, c)), "steps": steps}
    return list(found.values())


if __name__ == "__main__":
    for problem in problems():
        print(json.dumps(problem))
