"""The report of all figures: one HTML page that contains its pictures and needs no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from minicore.files import atomic_write
from minicore.formatting import format_cell
from minicore.reproduce.experiments import EXPERIMENTS

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CoreInfer's figures on {{ model }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fcfcfa; --line: #d0d0c8; --soft: #5c5c58; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e1; --paper: #191a1c; --line: #45464a; --soft: #a8a8a2; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h2 { margin: 3.5rem 0 .3rem; line-height: 1.25; }
a { color: inherit; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; }
td { border-top: 1px solid var(--line); }
th { font-weight: 600; }
figure { margin: 1rem 0; padding: .5rem; background: #fff; border-radius: .4rem; overflow-x: auto; }
img { display: block; width: 100%; min-width: 52rem; height: auto; }
.verdict { border-left: .3rem solid var(--line); padding-left: .8rem; }
.yes { border-color: #009e73; } .no { border-color: #d55e00; } .part { border-color: #e69f00; }
code { font-size: .9em; }
details { margin: .5rem 0; }
</style>
</head>
<body>
<h1>CoreInfer's figures on {{ model }}</h1>
<p>Measured by minicore {{ version }} in {{ dtype }}, in {{ minutes }} minutes. Each section has what the
paper (arXiv 2410.18311) says, what was measured here, and a sentence, computed from the numbers, that says
whether the two agree. The paper's models have 6.7 billion parameters or more; a small model need not behave
like them. Brackets hold 95% bootstrap intervals over texts (figure 4: the range over seeds of k-means; table
1: over pairs; table 3: quartiles over rounds).</p>
<div class="scroll"><table>
<tr><th>figure</th><th>agrees</th></tr>
{% for name, one in sections.items() -%}
<tr><td><a href="#{{ name }}">{{ one.title }}</a></td><td>{{ one.found.agrees }}</td></tr>
{% endfor -%}
</table></div>
{% for name, one in sections.items() %}
<section id="{{ name }}">
<h2>{{ one.title }}</h2>
<p><span class="soft">The paper:</span> {{ one.claim }}</p>
<p class="verdict {{ one.found.agrees.split()[-1] }}">{{ one.found.sentence }}</p>
<figure><img alt="{{ one.title }}" src="data:image/png;base64,{{ one.picture }}"></figure>
<div class="scroll"><table>
<tr><th></th><th>the paper</th><th>here</th></tr>
{% for what, paper, ours in one.found.beside -%}
<tr><td>{{ what }}</td><td>{{ paper }}</td><td>{{ ours }}</td></tr>
{% endfor -%}
</table></div>
<details><summary>All numbers</summary><div class="scroll"><table>
<tr>{% for column in one.found.table[0] %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in one.found.table -%}
<tr>{% for value in row.values() %}<td>{{ value | cell }}</td>{% endfor %}</tr>
{% endfor -%}
</table></div></details>
<p class="soft"><code>minicore reproduce {{ name }} -m {{ model }} -o DIR</code>, {{ one.found.seconds }} s;
settings {{ one.settings }}</p>
</section>
{% endfor %}
</body>
</html>
"""


def write_page(results: Mapping[str, dict[str, Any]], out: str | PathLike[str]) -> Path:
    """Write OUT/report.html about experiments whose pictures are in OUT, and return its path."""
    from jinja2 import Environment

    sections = {
        name: {
            "title": EXPERIMENTS[name].title,
            "claim": EXPERIMENTS[name].claim,
            "found": found,
            "picture": base64.b64encode((Path(out) / f"{name}.png").read_bytes()).decode(),
            "settings": ", ".join(f"{key} {value}" for key, value in found["key"]["settings"].items())
            or "none",
        }
        for name in EXPERIMENTS  # in the paper's order
        if (found := results.get(name))
    }
    key = next(iter(results.values()))["key"]
    environment = Environment(autoescape=True)
    environment.filters["cell"] = format_cell
    page = environment.from_string(PAGE).render(
        sections=sections,
        model=key["model"],
        dtype=key["dtype"],
        version=key["version"],
        minutes=f"{sum(found['seconds'] for found in results.values()) / 60:.1f}",
    )
    path = Path(out) / "report.html"
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
    return path
