"""Benchmarks: what they refuse, and that what they report was measured in one run."""

import json
import os
import sys

import numpy as np
import pytest

from minicore import bench, cli, plots
from minicore.backends.cpu import bandwidth
from minicore.backends.cpu.decoder import CpuDecoder
from minicore.bench.plan import BOUNDS
from minicore.bench.summary import spread
from minicore.bench.validation import relative_error
from minicore.cli.bench import report_lines
from minicore.errors import InputError
from minicore.generation.accounting import bytes_per_token
from minicore.model import load
from tests.helpers import GOLDEN, TESTS

CHECKPOINT = GOLDEN / "llama-gqa"
SMALL = bench.Plan(
    dtypes=("float32", "int8"),
    betas=(0.4,),
    threads=tuple({1, min(2, os.cpu_count() or 1)}),
    prompt_tokens=6,
    new_tokens=4,
    rounds=3,
    contexts=(6, 12),
    read_bytes=1 << 16,
)
SPREAD = {"median", "q1", "q3", "rounds"}


@pytest.fixture(scope="module")
def found():
    return bench.measure(CHECKPOINT, SMALL)


def test_report_is_json_with_the_promised_keys(found):
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        *("model", "machine", "conditions", "load_average", "validation", "compile"),
        *("bandwidth", "prefill", "decode"),
    ]
    assert found["machine"]["cpu"] and found["machine"]["cores"] == os.cpu_count()
    layers = list(range(load(CHECKPOINT).config.n_layers))
    assert found["conditions"]["threads"] == list(SMALL.threads) and found["conditions"]["layers"] == layers


def test_every_setting_is_validated_compiled_and_timed(found):
    settings = {(d, b, n) for d in SMALL.dtypes for b in (None, 0.4) for n in SMALL.threads}

    def those(rows):
        return [(row["dtype"], row["beta"], row["n_threads"]) for row in rows]

    assert {s for s in those(found["validation"]) if s in settings} == settings
    assert {row["phase"] for row in found["validation"]} == {"prefill", "decode"}
    assert all(0 <= row["error"] <= BOUNDS[row["dtype"]] for row in found["validation"])
    assert sorted(map(str, those(found["prefill"]))) == sorted(map(str, settings))
    for context in SMALL.contexts:
        here = [row for row in found["decode"] if row["context"] == context]
        assert sorted(map(str, those(here))) == sorted(map(str, settings))
    assert {(row["dtype"], row["n_threads"]) for row in found["compile"]} == {(d, n) for d, _, n in settings}
    for row in found["decode"] + found["prefill"]:
        assert row["tokens_per_s"].keys() == SPREAD and len(row["tokens_per_s"]["rounds"]) == SMALL.rounds
        assert min(row["tokens_per_s"]["rounds"]) > 0


def test_ratios_are_of_the_same_round(found):
    for rows in (found["decode"], found["prefill"]):
        for row in rows:
            same = ("dtype", "n_threads", "context")
            dense = next(r for r in rows if r["beta"] is None and all(r[k] == row[k] for k in same))
            a, b = row["tokens_per_s"]["rounds"], dense["tokens_per_s"]["rounds"]
            assert row["to_dense"]["rounds"] == [x / y for x, y in zip(a, b, strict=True)]
    reads = {row["n_threads"]: row["gb_per_s"]["rounds"] for row in found["bandwidth"]}
    for row in found["decode"]:
        rates, part = row["gb_per_s"]["rounds"], row["of_bandwidth"]["rounds"]
        np.testing.assert_allclose(
            rates, np.array(row["tokens_per_s"]["rounds"]) * row["bytes_per_token"] / 1e9
        )
        # each round's own measurement of the bandwidth, of those that the run made
        for rate, fraction in zip(rates, part, strict=True):
            assert np.isclose(rate / fraction, reads[row["n_threads"]]).any()


def test_bytes_are_those_of_the_weights_and_of_the_cache(found):
    for row in found["decode"]:
        model = load(CHECKPOINT, dtype=row["dtype"])
        cfg = model.config
        if row["beta"] is None:
            assert row["weights_bytes_per_token"] == bytes_per_token(model, None)
            assert row["core_fraction"] == 1
        else:
            assert row["weights_bytes_per_token"] < bytes_per_token(model, None)
            assert row["core_fraction"] <= 0.4
        # four tokens read 1, 2, 3 and 4 positions more than the context
        read = np.mean([row["context"] + i for i in (1, 2, 3, 4)])
        # of a key or value, with its scale
        n_bytes = cfg.d_head + 4 if row["dtype"] == "int8" else 4 * cfg.d_head
        assert row["kv_bytes_per_token"] == read * 2 * n_bytes * cfg.n_layers * cfg.n_kv_heads
        assert row["bytes_per_token"] == row["weights_bytes_per_token"] + row["kv_bytes_per_token"]


def test_spread_is_median_and_quartiles():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "q1": 2.0,
        "q3": 4.0,
        "rounds": [4.0, 1.0, 2.0, 3.0, 5.0],
    }


# --- what is refused ---


class Liar(CpuDecoder):
    """A decoder with one wrong logit in one setting."""

    by = 1e-2
    when = staticmethod(lambda decoder: True)

    def step(self, token_id):
        logits = super().step(token_id)
        if self.when(self):
            logits[3] += self.by * np.abs(logits).max()
        return logits


@pytest.mark.parametrize(
    ("when", "named"),
    [
        (lambda d: True, "decode, float32, dense, 1 threads"),
        (lambda d: d.held is not d.model, "decode, float32, core 0.4, 1 threads"),
    ],
)
def test_a_wrong_result_is_refused_before_anything_is_timed(monkeypatch, when, named):
    monkeypatch.setattr(Liar, "when", staticmethod(when))
    monkeypatch.setattr("minicore.backends.cpu.backend.CpuDecoder", Liar)
    timed = []
    monkeypatch.setattr("minicore.bench.run.run_rounds", lambda *args: timed.append(args))
    with pytest.raises(bench.WrongResult, match=named):
        bench.measure(CHECKPOINT, SMALL)
    assert not timed


def test_a_wrong_kernel_is_refused(monkeypatch):
    """The step itself, not the class around it: it takes the wrong token's row."""
    from minicore.backends.cpu import decoder as cpu

    step = cpu.kernels.step

    def wrong(thread, *, like, dims, weights, **rest):
        weights = weights.copy()
        weights[-1, cpu.kernels.EMBED] += dims.d_model * like.itemsize
        return step(thread, like=like, dims=dims, weights=weights, **rest)

    monkeypatch.setattr(cpu.kernels, "step", wrong)
    with pytest.raises(bench.WrongResult, match="differ from the reference"):
        bench.measure(CHECKPOINT, SMALL)


def test_a_wrong_prefill_is_refused(monkeypatch):
    from minicore.backends.cpu import prefill as ops

    monkeypatch.setattr(ops, "rope", lambda x, *rotation: x)
    with pytest.raises(bench.WrongResult, match="prefill, float32"):
        bench.measure(CHECKPOINT, SMALL)


def test_a_logit_that_is_not_finite_is_an_error_without_bound():
    expected = np.array([1.0, -2.0, 0.5])
    assert relative_error(expected, expected) == 0
    assert relative_error(np.array([1.0, -2.0, 1.5]), expected) == 0.5
    assert relative_error(np.array([1.0, np.nan, 0.5]), expected) == np.inf
    assert relative_error(np.full(3, np.nan), np.full(3, np.nan)) == np.inf


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": 0}, "rounds"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"threads": (0,)}, "threads is 0"),
        ({"backend": "cudo"}, "cuda"),
        ({"threads": (100_000,)}, "cores of this machine"),
        ({"contexts": (0,)}, "contexts"),
        ({"contexts": (100_000,)}, "context of"),
        ({"dtypes": ()}, "dtypes"),
        ({"dtypes": ("int7",)}, "int7"),
        ({"betas": (1.5,)}, "beta"),
        ({"layers": "9:12"}, "layers"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_plans_that_cannot_be(changes, named):
    with pytest.raises(InputError, match=named):
        bench.measure(CHECKPOINT, bench.Plan(**SMALL.__dict__ | changes))


# --- bandwidth ---


def test_bandwidth_reads_every_number():
    for n in range(1000, 1004):  # whole quarters, and those with something left over
        x = bandwidth.buffer(4 * n)
        assert x.shape == (n,) and bandwidth.read(x) == n
    for n_threads in (1, 3):
        assert 0 < bandwidth.bandwidth(x, n_threads, passes=2) < 1e13


def test_the_buffer_is_larger_than_the_last_cache():
    assert bandwidth.last_cache_bytes() >= 1 << 16
    assert bandwidth.SMALLEST <= bandwidth.buffer().nbytes <= bandwidth.LARGEST


# --- the command ---


def run(capsys, *options):
    code = cli.main(["bench", "-m", str(CHECKPOINT), *map(str, options)])
    out, err = capsys.readouterr()
    return code, out, err


QUICK = "--dtypes float32 --threads 1 --prompt-tokens 4 --new-tokens 2 --rounds 2".split()


def test_command_prints_a_table(capsys, monkeypatch):
    monkeypatch.setattr(bandwidth, "SMALLEST", 1 << 16)
    monkeypatch.setattr(bandwidth, "LARGEST", 1 << 16)
    code, out, err = run(capsys, *QUICK, "--betas", ".2,.4", "--contexts", "4,8")
    assert code == 0 and err == ""
    assert [line.split()[2:5] for line in out.splitlines() if line.startswith("decode")] == [
        ["all", "1", "4"],
        ["core", "0.2", "1"],
        ["core", "0.4", "1"],
        ["all", "1", "8"],
        ["core", "0.2", "1"],
        ["core", "0.4", "1"],
    ]
    assert "interleaved" in out and "GB/s" in out


def test_command_prints_json_and_draws(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bandwidth, "SMALLEST", 1 << 16)
    monkeypatch.setattr(bandwidth, "LARGEST", 1 << 16)
    code, out, _ = run(capsys, *QUICK, "--betas", "", "--json", "--plot", tmp_path / "speed.png")
    assert code == 0
    assert [row["beta"] for row in json.loads(out)["decode"]] == [None]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["speed.png"]


def test_a_wrong_result_exits_1(capsys, monkeypatch):
    monkeypatch.setattr("minicore.backends.cpu.backend.CpuDecoder", Liar)
    code, out, err = run(capsys, *QUICK)
    assert code == 1 and out == ""
    assert len(err.splitlines()) == 1 and "reference" in err and "nothing was timed" in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dtypes", "float23"], "float32"),
        (["--threads", "two"], "--threads"),
        (["--threads", "0"], "threads"),
        (["--rounds", "0"], "rounds"),
        (["--betas", "2"], "beta"),
        (["--contexts", "1000000"], "context"),
        (["--plot", "speed.xyz"], ".png"),
        (["--plot", "speed"], ".png"),
        (["-m", "./no/such/model"], "no/such/model"),
    ],
)
def test_bad_options_are_one_sentence(capsys, options, named):
    code, out, err = run(capsys, *QUICK, *options)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("minicore: ") and named in err


def test_plot_shows_every_setting_and_its_limit(found):
    ax = plots.decode_speed(found, context=12)
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["float32", "float32\ncore 0.4", "int8", "int8\ncore 0.4"]
    bars = [bar.get_height() for container in ax.containers for bar in getattr(container, "patches", [])]
    medians = [row["tokens_per_s"]["median"] for row in found["decode"] if row["context"] == 12]
    assert sorted(bars) == sorted(medians)
    assert ax.get_ylim()[0] == 0 and "12 tokens" in ax.get_title()


def test_lines_name_machine_and_conditions(found):
    lines = report_lines(found)
    assert found["machine"]["cpu"] in lines[0]
    assert f"{SMALL.rounds} interleaved rounds" in lines[-2]
    assert sum(line.startswith("decode") for line in lines) == len(found["decode"])


# --- the comparison with other engines ---


@pytest.fixture(scope="module")
def peers():
    folder = str(TESTS / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import peers as module
    finally:
        sys.path.remove(folder)
    return module


def made_up(peers, speeds, n_rounds=3, n_threads=2):
    """Return a run in which the machine is half as fast in its second round."""
    runs = []
    for round_, pace in enumerate([1.0, 0.5, 1.0][:n_rounds], 1):
        for name, speed in speeds.items():
            about = {"bytes_per_token": 538e6, "weights_bytes": 538e6, "kv_bytes": 8e6}
            for prompt in (64, 512):
                runs.append(
                    {"name": name, "n_threads": n_threads, "prompt": prompt, "round": round_}
                    | {"read": 60e9 * pace, "decode": speed * pace, "prefill": 500 * pace}
                    | {"ids": [1, 2, 3, 4 if "int" in name else 5], "rss": 6e8, "about": about}
                )
    conditions = {"model": "m.gguf", "prompts": [64, 512], "new_tokens": 4, "rounds": n_rounds}
    return {
        "machine": {"cpu": "a cpu", "cores": 2, "flags": ["avx2"]},
        "load_average": {"before": 0.1, "after": 0.2},
        "versions": {"numpy": "2"},
        "conditions": conditions | {"threads": [n_threads]},
        "skipped": {"CTranslate2 int8": "ctranslate2 is not installed"},
        "runs": runs,
        "contexts": [
            {"dtype": "float32", "n_threads": 2, "context": 64, "tokens_per_s": {"rounds": [10, 5, 10]}},
            {"dtype": "float32", "n_threads": 2, "context": 4096, "tokens_per_s": {"rounds": [7, 4, 7]}},
        ],
    }


def test_peer_ratios_are_of_the_same_round(peers):
    speeds = {"Transformers float32": 20, "llama.cpp F32": 50, "minicore float32": 60, "minicore int8": 150}
    results = peers.Results(made_up(peers, speeds))
    met = [line for line in peers.requirements(results) if not line.startswith(" ")]
    over = [line for line in met if line.startswith("minicore float32 over llama.cpp F32")]
    assert over[0].split()[-4:] == ["1.20", "[1.20,", "1.20]", "yes"]
    missed = [line for line in met if line.startswith("minicore int8 over Transformers float32")]
    assert missed[0].split()[-4:] == ["7.50", "[7.50,", "7.50]", "NO"]
    part = [line for line in met if line.startswith("minicore float32 of the bandwidth")]
    assert part[0].split()[-4] == "0.538"
    long = [line for line in met if line.startswith("minicore float32 after 4,096")]
    assert long[0].split()[-4:] == ["0.700", "[0.700,", "0.750]", "yes"]
    assert any("int4" in line and line.endswith("not measured") for line in met)


def test_peer_table_tells_identical_texts_and_skipped_engines(peers):
    speeds = {"Transformers float32": 20, "llama.cpp F32": 50, "minicore float32": 60, "minicore int8": 150}
    lines = list(peers.table(peers.Results(made_up(peers, speeds))))
    rows = {line.split("  ")[0]: line for line in lines}
    assert rows["minicore float32"].endswith("all") and rows["minicore int8"].endswith("3")
    assert "CTranslate2 int8 was skipped: ctranslate2 is not installed" in lines
    assert "1.20 [1.20, 1.20]" in rows["minicore float32"]
    del speeds["Transformers float32"]  # without it nobody's text is compared with anything
    lines = list(peers.table(peers.Results(made_up(peers, speeds))))
    assert {line.split("  ")[0]: line for line in lines}["minicore float32"].endswith(" -")


def test_what_must_be_shown_is_measured(peers):
    """Every line of the requirements reads contestants that the run has."""
    speeds = dict.fromkeys(peers.CONTESTANTS, 10)
    for n_threads in (1, 2):
        found = made_up(peers, speeds, n_threads=n_threads)
        found["contexts"] = [
            {"dtype": d, "n_threads": n_threads, "context": c, "tokens_per_s": {"rounds": [1, 1, 1]}}
            for d in BOUNDS
            for c in (64, 4096)
        ]
        lines = list(peers.requirements(peers.Results(found)))
        assert len(lines) > 15 and not any("not measured" in line for line in lines)


def test_a_worker_decodes_as_the_library_does(peers, smollm2_path):
    worker = peers.Worker()
    try:
        assert worker.ask(
            do="load",
            engine="minicore",
            files={"Q4_1": str(smollm2_path)},
            n_threads=1,
            n_ctx=64,
            options={"dtype": "float32"},
        )["load_s"] > 0  # fmt: skip
        ids = list(range(100, 110))
        got = worker.ask(do="run", ids=ids, n_new=4, settings={"predictor": "dense"})
        assert len(got["seconds"]) == 4 and got["seconds"] == sorted(got["seconds"])
        model = load(smollm2_path)
        out = model.generate(ids, max_new_tokens=4, ignore_eos=True, predictor="dense")
        assert got["ids"] == out.token_ids
        assert got["about"]["bytes_per_token"] == bytes_per_token(model, None)
        with pytest.raises(RuntimeError, match="nothing"):
            worker.ask(do="load", engine="nothing", files={}, n_threads=1, n_ctx=1, options={})
    finally:
        worker.close()
