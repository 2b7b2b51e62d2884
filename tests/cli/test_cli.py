"""The command line as a shell sees it: what goes where, exit codes, one sentence for bad input."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import minicore
from minicore import cli
from minicore.cli import compare, eval_stability, generate
from minicore.errors import InputError
from minicore.evaluation.agreement import agreement
from minicore.formatting import format_bytes
from tests.helpers import GOLDEN, ROOT, run_minicore

CHECKPOINT = GOLDEN / "llama-chat"
PROMPT = "a bird sang"


@pytest.fixture(scope="module")
def model() -> minicore.Model:
    return minicore.load(CHECKPOINT)


# --- generate ---


def test_text_goes_to_stdout_and_the_summary_to_stderr(run_cli, model):
    code, out, err = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 12)
    assert code == 0
    assert out.rstrip("\n") == model.generate(PROMPT, max_new_tokens=12).text.rstrip("\n")
    assert out.endswith("\n")
    assert "prefill" in err.splitlines()[-1] and "core 100%" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "options", [{}, {"predictor": "stability", "alpha": 0.5, "beta": 0.25, "layers": "0:1"}]
)
def test_json_is_one_object_with_the_promised_keys(run_cli, model, options):
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    code, out, err = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 12, "--json", *flags)
    assert code == 0
    printed = json.loads(out)
    assert list(printed)[: len(cli.JSON_KEYS)] == list(cli.JSON_KEYS)
    expected = model.generate(PROMPT, max_new_tokens=12, **options)
    assert printed["token_ids"] == expected.token_ids
    assert printed["text"] == expected.text
    assert printed["prompt_tokens"] == len(expected.prompt_ids)
    assert printed["core_fraction"] == expected.stats["core_fraction"]
    assert (printed["core_fraction"] < 1) == bool(options)
    assert printed["weights_bytes"] == model.weights_bytes


def test_sampling_options_reach_the_library(run_cli, model):
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 7, "stop": ["e"]}
    flags = ["--temperature", 1.5, "--top-k", 40, "--top-p", 0.9, "--seed", 7, "--stop", "e"]
    _, out, _ = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 20, "--json", *flags)
    assert json.loads(out)["token_ids"] == model.generate(PROMPT, max_new_tokens=20, **options).token_ids


def test_chat_wraps_the_prompt(run_cli, model):
    _, out, _ = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 1, "--json", "--chat")
    assert json.loads(out)["prompt_tokens"] == len(model.tokenizer.chat(PROMPT))


def test_dash_reads_standard_input(model):
    done = run_minicore("generate", "-", "-m", CHECKPOINT, "-n", 6, "--json", input=f"{PROMPT}\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == model.generate(PROMPT, max_new_tokens=6).token_ids


def test_nothing_to_generate_prints_nothing(run_cli):
    code, out, _ = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 0)
    assert (code, out) == (0, "")


@pytest.mark.slow
def test_only_the_first_run_announces_compilation(tmp_path):
    # NUMBA_OPT: what is compiled only for this test need not be fast
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "1"}
    runs = [run_minicore("generate", PROMPT, "-m", CHECKPOINT, "-n", 2, env=env) for _ in range(2)]
    assert [done.returncode for done in runs] == [0, 0], runs
    assert ["compiling" in done.stderr for done in runs] == [True, False]
    assert runs[0].stdout == runs[1].stdout


def test_ctrl_c_keeps_what_was_printed(run_cli, monkeypatch, model):
    """The interrupt falls on the fourth piece; three are on stdout, the summary on stderr."""
    whole = model.generate(PROMPT, max_new_tokens=40)
    pushed = []
    printer = generate.print_piece

    def interrupt_on_the_fourth(piece: str) -> None:
        if len(pushed) == 3:
            raise KeyboardInterrupt
        pushed.append(piece)
        printer(piece)

    monkeypatch.setattr(generate, "print_piece", interrupt_on_the_fourth)
    code, out, err = run_cli("generate", PROMPT, "-m", CHECKPOINT, "-n", 40)
    assert code == 130
    assert out.startswith("".join(pushed)) and whole.text.startswith(out.rstrip("\n"))
    assert "interrupted" in err.splitlines()[-1] and "prefill" in err.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a child")
@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="begun with SIGINT ignored")
def test_ctrl_c_from_the_terminal_exits_130_without_a_traceback():
    command = [sys.executable, "-m", "minicore", "generate", "-", "-m", str(CHECKPOINT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdin.write(b"a bird sang " * 100_000)  # more than a pipe holds: the child is reading
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, "-m", "minicore", "generate", PROMPT, "-m", str(CHECKPOINT), "-n", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        err = child.stderr.read()
        child.wait(timeout=300)
    assert child.returncode == 141
    assert b"Traceback" not in err and b"BrokenPipe" not in err


# --- bad input ---


def broken(tmp_path: Path, how: str) -> Path:
    """Copy the checkpoint and spoil it."""
    path = tmp_path / how
    shutil.copytree(CHECKPOINT, path)
    weights, config = path / "model.safetensors", path / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no-config":
        config.unlink()
    elif how == "unknown-family":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "perceptron"}))
    elif how == "not-json":
        config.write_text("{")
    elif how == "no-weights":
        weights.unlink()
    elif how == "gguf":
        path = path / "model.gguf"
        path.write_bytes(b"not a GGUF file at all")
    return path


BROKEN = ["truncated", "no-config", "unknown-family", "not-json", "no-weights", "gguf"]
BAD = {
    "missing path": (["-m", "./no/such/model"], "no/such/model"),
    "missing gguf": (["-m", "no-such.gguf"], "no-such.gguf"),
    "unknown name": (["-m", "smollm2-135n"], "smollm2-135m"),
    "empty name": (["-m", ""], ""),
    "alpha 0": (["--alpha", "0"], "alpha"),
    "alpha above 1": (["--alpha", "1.01"], "alpha"),
    "alpha nan": (["--alpha", "nan"], "alpha"),
    "alpha no number": (["--alpha", "much"], "--alpha"),
    "beta 0": (["--beta", "0"], "beta"),
    "beta negative": (["--beta", "-0.4"], "beta"),
    "beta above 1": (["--beta", "2"], "beta"),
    "n negative": (["-n", "-1"], "-1"),
    "n no integer": (["-n", "1.5"], "1.5"),
    "predictor": (["--predictor", "stabilty"], "stability"),
    "backend": (["--backend", "cuba"], "cuba"),
    "dtype": (["--dtype", "float23"], "float32"),
    "layers beyond the last": (["--layers", "90:99"], "layers"),
    "layers no slice": (["--layers", "first"], "layers"),
    "layers empty": (["--layers", "1:1"], "layers"),
    "temperature": (["--temperature", "-1"], "temperature"),
    "top-k": (["--top-k", "0"], "top_k"),
    "top-p": (["--top-p", "1.5"], "top_p"),
    "seed": (["--seed", "-3"], "seed"),
    "empty stop": (["--stop", ""], "stop"),
    "memory limit infinite": (["--memory-limit", "inf"], "--memory-limit"),
    "memory limit no number": (["--memory-limit", "300M"], "--memory-limit"),
    "unknown option": (["--wings", "2"], "--wings"),
}


def assert_one_sentence(code: int, out: str, err: str, named: str) -> None:
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("minicore: "), err
    assert named in err


@pytest.mark.parametrize("case", BAD)
def test_bad_options(run_cli, case):
    options, named = BAD[case]
    given = [] if "-m" in options else ["-m", CHECKPOINT]
    core = [] if "--predictor" in options else ["--predictor", "stability"]
    assert_one_sentence(*run_cli("generate", PROMPT, *given, *core, *options), named)


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("command", [("generate", PROMPT, "-m"), ("compare", PROMPT, "-m"), ("info",)])
def test_bad_checkpoints(run_cli, tmp_path, command, how):
    path = broken(tmp_path, how)
    assert_one_sentence(*run_cli(*command, path), str(path))


def test_directory_that_is_empty(run_cli, tmp_path):
    assert_one_sentence(*run_cli("generate", PROMPT, "-m", tmp_path), str(tmp_path))


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize(("prompt", "named"), [("", "prompt"), ("bird " * 5000, "context")])
def test_bad_prompts(run_cli, command, prompt, named):
    assert_one_sentence(*run_cli(command, prompt, "-m", CHECKPOINT), named)


def test_a_prompt_that_is_no_text():
    done = run_minicore(
        "generate", "-", "-m", CHECKPOINT, input="\udcff", encoding="utf-8", errors="surrogateescape"
    )
    assert_one_sentence(done.returncode, done.stdout, done.stderr, "standard input")


@pytest.mark.parametrize("argv", [[], ["generat"], ["generate"], ["pull"], ["info", "a", "b"], ["--wings"]])
def test_bad_command_lines(run_cli, argv):
    assert_one_sentence(*run_cli(*argv), "--help")


def test_pull_of_an_unknown_name(run_cli):
    assert_one_sentence(*run_cli("pull", "smollm2-135n"), "smollm2-135m")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "minicore", "info", str(CHECKPOINT)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_one_sentence(done.returncode, "", done.stderr, "No space left")


# --- compare ---


def test_compare_shows_both(run_cli, model):
    code, out, _ = run_cli("compare", PROMPT, "-m", CHECKPOINT, "-n", 16, "--beta", 0.3)
    assert code == 0
    assert model.generate(PROMPT, max_new_tokens=16).text in out
    assert model.generate(PROMPT, max_new_tokens=16, predictor="stability", beta=0.3).text in out
    for word in ("dense", "stability", "agreement", "tokens/s", "read per token"):
        assert word in out


def test_compare_json(run_cli, model):
    _, out, _ = run_cli("compare", PROMPT, "-m", CHECKPOINT, "-n", 16, "--beta", 0.3, "--json")
    printed = json.loads(out)
    assert printed["dense"]["core_fraction"] == 1 > printed["core"]["core_fraction"]
    assert printed["core"]["bytes_per_token"] < printed["dense"]["bytes_per_token"]
    a, b = printed["dense"]["token_ids"], printed["core"]["token_ids"]
    assert (printed["common_prefix"], printed["equal_positions"]) == agreement(a, b)
    assert a == model.generate(PROMPT, max_new_tokens=16).token_ids


@pytest.mark.parametrize(
    ("a", "b", "prefix", "equal"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 4, 1.0),
        ([1, 2, 3, 4], [1, 9, 3, 4], 1, 0.75),
        ([1, 2, 3, 4], [1, 2], 2, 0.5),
        ([5], [6], 0, 0.0),
        ([], [7], 0, 0.0),
        ([], [], 0, 1.0),
    ],
)
def test_agreement(a, b, prefix, equal):
    assert agreement(a, b) == (prefix, equal)
    assert agreement(b, a) == (prefix, equal)


def test_columns_fit_and_lose_no_word():
    left, right = "the quick brown fox " * 12, "one line\n\nand another " + "x" * 100
    shown = compare.side_by_side(["left", "right"], [left, right], 90)
    assert max(map(len, shown.splitlines())) <= 90
    cells = [line.split(" | ") if " | " in line else line.split(" |") for line in shown.splitlines()[2:]]
    assert " ".join(cell[0] for cell in cells).split() == left.split()
    assert "".join("".join(cell[1:]) for cell in cells).replace(" ", "") == "".join(right.split())


@pytest.mark.parametrize("width", [0, 40])
def test_narrow_output_is_stacked(width):
    shown = compare.side_by_side(["left", "right"], ["a\nb", "c"], width)
    assert shown == "--- left\na\nb\n\n--- right\nc"


# --- eval stability ---


def test_stability_is_calibrated_as_the_table_says(run_cli):
    argv = ["eval", "stability", ROOT / "tutorials" / "data" / "long.jsonl", "--passages", 4]
    code, out, _ = run_cli(*argv, "--json")
    assert code == 0
    printed = json.loads(out)
    assert len(printed["rows"]) == 4 * 5 and printed["n_fit"] == printed["n_held_out"] == 10
    code, out, _ = run_cli(*argv)
    assert code == 0 and out.splitlines() == eval_stability.report_lines(printed)
    fit = next(line for line in out.splitlines() if line.startswith("score and length"))
    assert f"{printed['score and length']['rmse']:.4f}" in fit


# --- info, pull, help ---


def test_info_adds_up(run_cli, model):
    code, out, _ = run_cli("info", CHECKPOINT, "--json")
    printed = json.loads(out)
    assert code == 0
    assert sum(printed["bytes"].values()) == model.weights_bytes
    assert printed["parameters"] == sum(array.size for array in model.params.values())
    assert printed["bytes"]["FFN"] == sum(w.nbytes for name, w in model.params.items() if ".mlp." in name)
    assert printed["config"]["n_neurons"] == model.config.n_neurons
    assert printed["source"] == str(CHECKPOINT)


def test_info_for_people(run_cli, model):
    _, out, _ = run_cli("info", CHECKPOINT)
    for part in (
        "embedding",
        "attention",
        "FFN",
        "norms",
        "head",
        str(model.config.n_neurons),
        str(CHECKPOINT),
    ):
        assert part in out


def test_info_without_a_model_lists_names(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("MINICORE_HOME", str(tmp_path))
    code, out, _ = run_cli("info")
    assert code == 0
    assert "smollm2-135m" in out and "minicore pull smollm2-135m" in out
    _, out, _ = run_cli("info", "--json")
    assert json.loads(out)["smollm2-135m"] is None


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_examples_that_parse(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command.split(), "--help"])
    help_text = capsys.readouterr().out
    examples = [line.strip() for line in help_text.split("examples:\n")[1].splitlines()]
    assert examples and all("minicore " in line for line in examples)
    parser = cli.make_parser()
    for line in examples:
        words = shlex.split(line.split(" < ")[0])
        parser.parse_args(words[words.index("minicore") + 1 :])


def test_only_the_command_that_runs_is_imported():
    code = "import sys; from minicore.cli import make_parser; make_parser().parse_args(['info'])"
    code += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [name for name in cli.COMMANDS if f"minicore.cli.{name.replace(' ', '_')}" in loaded] == ["info"]


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"minicore {minicore.__version__}\n"


def test_size_has_three_digits():
    shown = [format_bytes(n) for n in (0, 999, 1000, 12_340, 538_000_000, 1_230_000_000, 12_300_000_000)]
    assert shown == ["0 B", "999 B", "1.00 kB", "12.3 kB", "538 MB", "1.23 GB", "12.3 GB"]


def test_parser_raises_input_errors():
    with pytest.raises(InputError, match="--alpha"):
        cli.make_parser().parse_args(["generate", PROMPT, "--alpha", "x"])
