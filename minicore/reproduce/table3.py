"""Table 3 and figure 7: speed and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minicore import bench
from minicore.formatting import format_ratio
from minicore.reproduce.material import Material
from minicore.reproduce.verdict import Findings, findings, percent

GAIN = 1.4  # the paper's smallest gain where the model fits in memory


def measure(
    material: Material,
    *,
    dtypes: Sequence[str] = ("float32", "int8"),
    betas: Sequence[float] = (0.4, 0.2),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 5,
) -> Findings:
    """Measure decode speed with and without core neurons on this machine, and the bytes a token reads."""
    plan = bench.Plan(
        dtypes=tuple(dtypes),
        betas=tuple(betas),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
    )
    found = bench.measure(material.model.source, plan, progress=material.progress)
    table = [
        {
            "format": row["dtype"],
            "threads": row["n_threads"],
            "neurons": "all" if row["beta"] is None else f"core {row['beta']}",
            "tokens/s": median_and_quartiles(row["tokens_per_s"]),
            "over dense": median_and_quartiles(row["to_dense"]),
            "MB a token": row["bytes_per_token"] / 1e6,
        }
        for row in found["decode"]
    ]
    first = f"core {betas[0]}"
    gain = next(
        row["over dense"][0]
        for row in table
        if (row["threads"], row["format"], row["neurons"]) == (1, dtypes[0], first)
    )
    best = max(row["over dense"][0] for row in table)
    recording = next(row for row in found["prefill"] if row["beta"] is not None)["to_dense"]["median"]
    cpu = found["machine"]["cpu"]
    return findings(
        table=table,
        compared=[
            (
                f"decode speed, {first} / dense, {dtypes[0]}, one thread",
                "1.4 to 1.65 where the model fits in memory",
                format_ratio(gain),
            ),
            ("... largest of all settings", "10.33 where the other engine offloads", format_ratio(best)),
            ("prefill speed, with recording / without", "no cost", format_ratio(recording)),
        ],
        checks=[
            (
                gain >= GAIN,
                f"on this machine ({cpu}) {percent(betas[0])} of the neurons decode {format_ratio(gain)} "
                "times as fast as all of them",
            ),
            (best >= GAIN, f"the largest gain of all settings is {format_ratio(best)}"),
        ],
        drawn={"machine": cpu, "load_average": found["load_average"]},
    )


def median_and_quartiles(speed: Mapping[str, float]) -> tuple[float, float, float]:
    """Return a median and its quartiles."""
    return speed["median"], speed["q1"], speed["q3"]
