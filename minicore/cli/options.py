"""The arguments of the subcommands, and what their texts mean."""

from __future__ import annotations

import argparse

DEFAULT_MODEL = "minicore-opt-core"  # part of the package; shows the paper's phenomena in minutes


def model_options(parser: argparse.ArgumentParser) -> None:
    model_option(parser)
    dtype_option(parser)


def model_option(parser: argparse.ArgumentParser) -> None:
    model = f"a name, a Hugging Face directory or a .gguf file (default: {DEFAULT_MODEL})"
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help=model)


def dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        metavar="D",
        help="of the weights in memory: float32, bfloat16, int8 or int4 (default: what a packed directory "
        "holds, else float32)",
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def decoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    model_options(parser)
    core = parser.add_argument_group("core neurons")
    core.add_argument(
        "--predictor",
        metavar="P",
        help="how they are chosen: stability, ...; dense means all (default: what the model recommends)",
    )
    core.add_argument(
        "--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept, 0 to 1"
    )
    core.add_argument(
        "--beta", metavar="B", type=fraction, help="of a layer's neurons kept; 0.2:0.6 rises over the layers"
    )
    core.add_argument(
        "--layers", metavar="6:27", help="the layers it applies to, a Python slice; --layers=-8: too"
    )
    core.add_argument("--clusters", metavar="FILE", help="of texts, for similarity, static and auto")
    core.add_argument("--gamma", metavar="G", type=fraction, help="as --beta, for the set of a cluster")
    core.add_argument(
        "--token-beta", metavar="B", type=fraction, help="kept by each token, for griffin+gate and such"
    )
    core.add_argument("--budget", metavar="R", help="how beta is spent over the layers: uniform or share")
    core.add_argument("--window", metavar="W", type=int, help="choose by the last W tokens")
    core.add_argument("--refresh", metavar="R", type=int, help="choose anew every R tokens")
    core.add_argument(
        "--memory-limit",
        metavar="BYTES",
        type=n_bytes,
        help="hold no more while decoding: in memory, with a model that `minicore pack` wrote, or with "
        "--backend cuda on the GPU, where of the FFN weights the core neurons' alone remain",
    )
    core.add_argument("--backend", metavar="B", help="numpy, cpu, cuda or auto (default: auto)")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "-n", "--max-new-tokens", metavar="N", type=int, help="tokens to generate at most (default: 128)"
    )
    sampling.add_argument(
        "--temperature", metavar="T", type=float, help="0 takes the likeliest token (default)"
    )
    sampling.add_argument("--top-k", metavar="K", type=int, help="draw from the K likeliest tokens")
    sampling.add_argument("--top-p", metavar="P", type=float, help="draw from the likeliest that add up to P")
    sampling.add_argument("--seed", metavar="S", type=int, help="the same seed draws the same text")
    sampling.add_argument("--stop", metavar="TEXT", action="append", help="end before TEXT; may be repeated")
    parser.add_argument("--chat", action="store_true", help="wrap the prompt in the model's chat template")
    json_option(parser)


def pull_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name that `minicore info` lists, or org/name")
    json_option(parser)


def pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a Hugging Face directory or a .gguf file")
    dtype_option(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a directory to make")
    json_option(parser)


def explore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    parser.add_argument("--and", metavar="PROMPT", dest="other", help="a second text to compare it with")
    model_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the page, such as page.html")
    parser.add_argument("--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept")
    parser.add_argument(
        "--beta",
        metavar="B",
        type=float,
        help="of a layer's neurons kept when the page opens; it has a slider",
    )
    parser.add_argument("--layers", metavar="6:27", help="the layers shown, a Python slice (default: all)")
    parser.add_argument(
        "--backend", metavar="B", default="auto", help="numpy, cpu, cuda or auto (default: auto)"
    )
    parser.add_argument(
        "-n", "--max-new-tokens", metavar="N", type=int, default=48, help="to continue with (default: 48)"
    )
    parser.add_argument("--chat", action="store_true", help="wrap the prompts in the model's chat template")


def info_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a name, directory or .gguf file; none: list names"
    )
    dtype_option(parser)
    json_option(parser)


def n_bytes(text: str) -> int:
    """Return a number of bytes: 300000000, 300e6."""
    return int(float(text))


def fraction(text: str) -> float | str:
    """Return a number, or a range of two as it is: the library reads it."""
    return text if ":" in text else float(text)


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def listed_betas(text: str) -> list[float | str]:
    """Return numbers as numbers; the library tells what a text means, or that it means nothing."""
    betas: list[float | str] = []
    for part in listed(text):
        try:
            betas.append(float(part))
        except ValueError:
            betas.append(part)
    return betas


def study_options(parser: argparse.ArgumentParser, predictors: list[str], passages: int) -> None:
    """Add what the commands that measure predictors on texts have in common."""
    parser.add_argument("texts", metavar="TEXTS", nargs="+", help="plain text files, or JSON lines (.jsonl)")
    model_options(parser)
    parser.add_argument(
        "--backend", metavar="B", default="auto", help="numpy, cpu, cuda or auto (default: auto)"
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--predictors",
        metavar="P,Q",
        type=listed,
        default=predictors,
        help="ways of choosing; griffin@continuation takes the set from the continuation itself, "
        f"griffin@others from texts that are not measured (default: {','.join(predictors)})",
    )
    what.add_argument(
        "--budget", default="uniform", help="how beta is spent over the layers: uniform or share"
    )
    what.add_argument(
        "--token-beta",
        metavar="B",
        help="fraction kept by the rule of SET+RULE, such as griffin+gate, whose set keeps beta",
    )
    what.add_argument("--clusters", metavar="FILE", help="of other texts, for similarity and auto")
    what.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=0.4,
        help="fraction of a token's active neurons kept (default: 0.4)",
    )
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    on = parser.add_argument_group("on what")
    on.add_argument("--prompt-tokens", metavar="N", type=int, default=256, help="read densely (default: 256)")
    on.add_argument(
        "--continuation-tokens",
        metavar="N",
        type=int,
        default=256,
        help="read with the set and scored (default: 256)",
    )
    on.add_argument(
        "--passages",
        metavar="N",
        type=int,
        default=passages,
        help=f"drawn from the texts (default: {passages})",
    )
    on.add_argument(
        "--fit-passages",
        metavar="N",
        type=int,
        default=16,
        help="further ones that hot sets are fitted on (default: 16)",
    )
    on.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="of the draw, of random sets and of the bootstrap (default: 0)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write the report as JSON; rows are kept beside it, so that a stopped run goes on",
    )
    json_option(parser)


def eval_quality_options(parser: argparse.ArgumentParser) -> None:
    study_options(parser, ["dense", "stability", "griffin"], passages=40)
    parser.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.2, 0.4, 0.6],
        help="fractions of a layer's neurons kept; 0.2:0.6 rises over the layers (default: .2,.4,.6)",
    )
    parser.add_argument(
        "--generate",
        metavar="N",
        type=int,
        default=0,
        help="also count how many of N greedy tokens come before the first that dense has not",
    )
    worker_options(parser)


def eval_frontier_options(parser: argparse.ArgumentParser) -> None:
    study_options(parser, ["stability", "griffin", "gate"], passages=24)
    parser.add_argument(
        "--losses",
        metavar="L,M",
        type=lambda text: [float(part) for part in listed(text)],
        default=[0.01, 0.05],
        help="perplexity that may be lost, as a fraction (default: .01,.05)",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=6, help="points measured after the first two (default: 6)"
    )


def eval_stability_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", metavar="TEXTS", nargs="+", help="plain text files, or JSON lines (.jsonl)")
    model_options(parser)
    parser.add_argument(
        "--passages", metavar="N", type=int, default=64, help="drawn from the texts (default: 64)"
    )
    parser.add_argument(
        "--alpha", metavar="A", type=float, default=0.4, help="of the core sets (default: 0.4)"
    )
    parser.add_argument(
        "--wanted", metavar="R", type=float, default=0.8, help="recall of a stable set (default: 0.8)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the draw (default: 0)")
    json_option(parser)


def eval_tasks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", metavar="T", required=True, help="summary, qa, openqa, translation or steps"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        default=[],
        help="XSum or SciTLDR (.jsonl), SQuAD (.json), TruthfulQA (.csv), NQ-open or TriviaQA (.jsonl), two "
        "files of parallel text (news.de news.en), or hub:NAME[:CONFIG]@SPLIT; steps has a set of its own",
    )
    model_options(parser)
    parser.add_argument("--backend", metavar="B", default="auto", help="numpy, cpu or auto (default: auto)")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--predictors",
        metavar="P,Q",
        type=listed,
        default=["dense", "stability"],
        help="ways of choosing (default: dense,stability)",
    )
    what.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.4],
        help="fractions of a layer's neurons kept (default: .4)",
    )
    what.add_argument(
        "--budget", default="uniform", help="how beta is spent over the layers: uniform or share"
    )
    what.add_argument("--token-beta", metavar="B", help="kept by each token, for griffin+gate and such")
    what.add_argument("--clusters", metavar="FILE", help="of other texts, for similarity, static and auto")
    what.add_argument(
        "--alpha", metavar="A", type=float, default=0.4, help="of a token's active neurons (default: 0.4)"
    )
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    on = parser.add_argument_group("on what")
    on.add_argument(
        "--shots", metavar="N", type=int, default=0, help="worked examples before each prompt (default: 0)"
    )
    on.add_argument("--prompts", metavar="FILE", help="other prompts than those that fit the data (.toml)")
    on.add_argument(
        "--examples", metavar="N", type=int, default=100, help="drawn from the data (default: 100)"
    )
    on.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="of the draw, of random sets and of the bootstrap (default: 0)",
    )
    worker_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="keep every answer as it comes, so that a stopped run goes on, and write the report as JSON",
    )
    json_option(parser)


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add what says who works the jobs of a study off."""
    by = parser.add_argument_group("by whom")
    by.add_argument("--workers", metavar="N", type=int, default=1, help="processes here (default: 1)")
    by.add_argument("--threads", metavar="N", type=int, default=1, help="of each worker (default: 1)")
    by.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster's instead: tcp://host:8786")


def cluster_fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        metavar="TEXTS",
        help='one text a line, or JSON lines (.jsonl) with "text" and perhaps "label"',
    )
    model_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the clusters, for --clusters")
    parser.add_argument("--no-labels", action="store_true", help="cluster by k-means though there are labels")
    parser.add_argument(
        "--k", metavar="K", type=int, help="clusters of k-means (default: where the curve bends)"
    )
    parser.add_argument(
        "--layer", metavar="L", type=int, help="whose core sets are clustered (default: at 25/32)"
    )
    parser.add_argument(
        "--predictor", metavar="P", default="stability", help="makes the sets (default: stability)"
    )
    parser.add_argument("--alpha", metavar="A", type=float, default=0.4, help="of the sets (default: 0.4)")
    parser.add_argument("--beta", metavar="B", type=float, default=0.4, help="of the sets (default: 0.4)")
    parser.add_argument("--max-tokens", metavar="N", type=int, default=512, help="of a text (default: 512)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of k-means (default: 0)")
    worker_options(parser)
    json_option(parser)


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in listed(text))


counts.__name__ = "list of integers"  # as argparse calls it when it complains


def bench_options(parser: argparse.ArgumentParser) -> None:
    model_option(parser)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--backend", metavar="B", help="cpu or cuda (default: cpu)")
    what.add_argument(
        "--dtypes",
        metavar="D,E",
        type=lambda text: tuple(listed(text)),
        help="weight formats, all in memory at once (default: all that the backend reads)",
    )
    what.add_argument(
        "--betas",
        metavar="B,C",
        type=lambda text: tuple(listed_betas(text)),
        help="fractions of the neurons kept, beside dense; '' measures dense alone (default: 0.4)",
    )
    what.add_argument("--alpha", metavar="A", type=float, help="fraction of a token's active neurons kept")
    what.add_argument("--layers", metavar="6:27", help="the layers restricted, a Python slice (default: all)")
    what.add_argument(
        "--threads", metavar="N,M", type=counts, help="of the CPU (default: 1 and as many as there are cores)"
    )
    what.add_argument("--prompt-tokens", metavar="N", type=int, help="that prefill is timed on (default: 64)")
    what.add_argument(
        "--contexts",
        metavar="N,M",
        type=counts,
        help="tokens in the kv cache when decoding begins (default: as --prompt-tokens)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--new-tokens", metavar="N", type=int, help="decoded at a time (default: 128)")
    how.add_argument("--rounds", metavar="N", type=int, help="how often each is timed (default: 5)")
    how.add_argument("--seed", metavar="S", type=int, help="of the order within a round (default: 0)")
    parser.add_argument("--plot", metavar="FILE", help="draw decode speeds (.png, .svg, .pdf, ...)")
    json_option(parser)


def eval_sts_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILES",
        nargs="+",
        help="lines of score, tab, sentence, tab, sentence; measure and layer are chosen on all files but "
        "the last and tested on the last",
    )
    model_options(parser)
    parser.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        default=0.4,
        help="fraction of a token's active neurons kept (default: 0.4)",
    )
    parser.add_argument(
        "--betas",
        metavar="B,C",
        type=listed_betas,
        default=[0.1, 0.2, 0.4],
        help="fractions of a layer's neurons in the sets compared (default: .1,.2,.4)",
    )
    parser.add_argument(
        "--layers", metavar="6:27", help="the layers looked at, a Python slice (default: all)"
    )
    parser.add_argument("--pairs", metavar="N", type=int, help="read the first N of each file (default: all)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the figures as JSON")
    json_option(parser)


def reproduce_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "figures",
        metavar="FIGURE",
        nargs="+",
        help="fig2, fig3, fig4, fig5, fig6, fig8, fig9, fig11, fig12, table1, table2, table3, table4, or "
        "all, which writes report.html too",
    )
    model_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="for FIGURE.json, .csv and .png; what is there of the same model, texts and settings is kept",
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        nargs="+",
        help='JSON lines (.jsonl) with "text" and, for topics, "label", or plain text (default: a sample)',
    )
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        nargs="+",
        default=[],
        help="for table1, two or more: lines of score, tab, sentence, tab, sentence",
    )
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="of draws, clusters and layouts (default: 0)"
    )
    worker_options(parser)
    json_option(parser)
