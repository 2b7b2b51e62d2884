"""minicore under lm-evaluation-harness: the real harness, a local task, no network."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra lm-eval)")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the harness and its dependencies warn of

import minicore as mc  # noqa: E402
from minicore import ops  # noqa: E402
from minicore.errors import InputError  # noqa: E402
from tests.helpers import GOLDEN, run_python  # noqa: E402

TASKS = {
    "birds_choice": """
        output_type: multiple_choice
        doc_to_text: "{{text}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{answer}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "birds_until": """
        output_type: generate_until
        doc_to_text: "{{text}}"
        doc_to_target: "{{choices[answer]}}"
        generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
        metric_list: [{metric: exact_match}]
        """,
    "birds_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}} {{text}} {{text}}"
        metric_list: [{metric: bits_per_byte}]
        """,
}


def instance(*args):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0)


def lm(**options):
    from minicore.evaluation.lm_eval import MinicoreLM

    return MinicoreLM(str(options.pop("model", GOLDEN / "llama-chat")), **options)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of tasks on one file of JSON lines."""
    folder = tmp_path_factory.mktemp("tasks")
    words = "cat tree bird sun".split()
    docs = [
        {"text": f"a bird saw the {word} and sang to", "choices": ["the sun", "a cat in it"], "answer": i % 2}
        for i, word in enumerate(words)
    ]
    (folder / "birds.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    for name, body in TASKS.items():
        lines = [line.strip() for line in body.strip().splitlines()]
        files = json.dumps({"data_files": {"test": str(folder / "birds.jsonl")}})
        head = [f"task: {name}", "dataset_path: json", f"dataset_kwargs: {files}", "test_split: test"]
        (folder / f"{name}.yaml").write_text("\n".join(head + lines) + "\n", encoding="utf-8")
    return folder


def harness(tasks: Path, out: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the harness's command line offline."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env |= {"HF_HOME": str(out / "hf"), "TOKENIZERS_PARALLELISM": "false"}
    command = ["-m", "minicore.lm_eval", "--include_path", tasks]
    command += ["--tasks", ",".join(TASKS), "--output_path", str(out / "out.json"), "--log_samples", *argv]
    return run_python(*command, env=env)


def results(out: Path) -> dict:
    return json.loads(
        max(out.rglob("*.json"), key=lambda path: "result" in path.name or "out" in path.name).read_text()
    )


def test_the_command_runs_end_to_end(tasks, tmp_path):
    done = harness(
        *(tasks, tmp_path, "--model", "minicore", "--model_args"),
        f"model={GOLDEN / 'llama-chat'},predictor=stability,beta=0.4,layers=0:2,hold=8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = results(tmp_path)["results"]
    assert set(found) == set(TASKS)
    assert math.isfinite(found["birds_rolling"]["bits_per_byte,none"])
    wrong = harness(tasks, tmp_path, "--model", "minicore", "--model_args", "model=missing/,predictor=none")
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith("minicore: ")


def test_a_dense_likelihood_is_that_of_one_forward_pass():
    model = lm(predictor="dense")
    texts = [
        ("a bird saw", " the cat"),
        ("a bird saw", " it"),
        ("the tree", " heard a bird sang"),
        ("", "the cat"),
    ]
    for (context, continuation), (nats, greedy) in zip(
        texts, model.loglikelihood([instance(*text) for text in texts], disable_tqdm=True), strict=True
    ):
        front = model.tok_encode(context) if context else [model.prefix_token_id]
        ids = model.tok_encode(context + continuation) if context else front + model.tok_encode(continuation)
        log_probs = ops.log_softmax(model.model.forward(ids[:-1]))[len(front) - 1 :]
        wanted = ids[len(front) :]
        assert nats == pytest.approx(log_probs[np.arange(len(wanted)), wanted].sum(), rel=1e-5)
        assert greedy == (log_probs.argmax(axis=1) == wanted).all()


@pytest.mark.parametrize("predictor", ["stability", "griffin", "gate", "griffin+gate", "sliding"])
def test_a_likelihood_is_scored_by_what_the_context_predicts(predictor):
    """As decoding the continuation token by token with the context's choice."""
    from minicore.backends import make_decoder
    from minicore.forward import prefill
    from minicore.kv_cache import KVCache

    more = {"token_beta": 0.5} if "+" in predictor else {}
    model = lm(predictor=predictor, beta=0.3, backend="numpy", **more)
    (nats, _), (dense, _) = (
        one.loglikelihood([instance("a bird sang in the tree and", " the cat heard it")], disable_tqdm=True)[
            0
        ]
        for one in (model, lm(predictor="dense"))
    )
    context = model.tok_encode("a bird sang in the tree and")
    ids = model.tok_encode("a bird sang in the tree and the cat heard it")
    cache = KVCache(model.model.config, len(ids))
    logits = [prefill(model.model, np.array(context), cache)]
    selection = mc.predict(model.model, context, predictor, beta=0.3, backend="numpy", **more)
    decoder = make_decoder(model.model, cache, selection, "numpy")
    logits += [decoder.step(i) for i in ids[len(context) : -1]]
    wanted = ids[len(context) :]
    assert nats == pytest.approx(
        sum(ops.log_softmax(x)[i] for x, i in zip(logits, wanted, strict=True)), rel=1e-5
    )
    assert nats != pytest.approx(dense, rel=1e-5)


def test_what_does_not_fit_is_cut_on_the_left():
    model = lm(predictor="dense", max_length=8)
    ids = list(range(5, 25))
    ((nats, _),) = model._loglikelihood_tokens([(("", ""), ids[:17], ids[17:])], disable_tqdm=True)
    log_probs = ops.log_softmax(model.model.forward(ids[-9:-1]))[-3:]
    assert nats == pytest.approx(log_probs[np.arange(3), ids[17:]].sum(), rel=1e-5)
    with pytest.raises(InputError, match="does not fit"):
        model._loglikelihood_tokens([(("", ""), ids[:2], ids[2:])], disable_tqdm=True)


def test_a_dense_rolling_likelihood_is_that_of_its_windows():
    """In windows of 16 tokens, each begun by the last one of the window before."""
    text = "a bird sang in the tree and the cat heard it. " * 3
    model = lm(predictor="dense", max_length=16, hold=5)
    (total,) = model.loglikelihood_rolling([instance(text)], disable_tqdm=True)
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    direct = 0.0
    for window in get_rolling_token_windows(model.tok_encode(text), model.prefix_token_id, 16, 1):
        context, targets = make_disjoint_window(window)
        log_probs = ops.log_softmax(model.model.forward((context + targets)[:-1]))[len(context) - 1 :]
        direct += log_probs[np.arange(len(targets)), targets].sum()
    assert total == pytest.approx(direct, rel=1e-5)


def test_a_rolling_likelihood_chooses_anew_from_all_before():
    model = lm(predictor="griffin", beta=0.3, backend="numpy", hold=6)
    ids = model.tok_encode("a bird sang in the tree and the cat heard it")[:20]
    from minicore.forward import forward, prefill
    from minicore.kv_cache import KVCache

    front, whole = [model.prefix_token_id], [model.prefix_token_id, *ids]
    logits = []
    for start in range(0, len(ids), 6):
        cache = KVCache(model.model.config, 32)
        narrow = model.model
        if start:
            prefill(model.model, np.array(whole[:start]), cache)
            narrow = model.model.restrict(
                mc.predict(model.model, whole[:start], "griffin", beta=0.3, backend="numpy")
            )
        logits.append(forward(narrow, np.array(whole[:-1][start : start + 6]), cache))
    log_probs = ops.log_softmax(np.concatenate(logits))
    assert model.scorer.roll(front, ids) == pytest.approx(log_probs[np.arange(len(ids)), ids].sum(), rel=1e-5)


def test_generation_is_generates():
    model = lm(predictor="griffin", beta=0.4)
    until = {"until": [".", ""], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0}
    found = model.generate_until([instance("a bird saw", until)], disable_tqdm=True)
    out = model.model.generate("a bird saw", max_new_tokens=9, stop=".", predictor="griffin", beta=0.4)
    assert found == [out.text]
    sampled = {"do_sample": True, "temperature": 0.9, "top_k": 5, "max_gen_toks": 9}
    drawn = model.generate_until([instance("a bird saw", sampled)] * 2, disable_tqdm=True)
    assert drawn[0] == drawn[1]  # by the seed
    with pytest.raises(InputError, match="repetition_penalty"):
        model.generate_until([instance("a bird saw", until | {"repetition_penalty": 2})], disable_tqdm=True)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "missing/"},
        {"predictor": "none"},
        {"beta": 2},
        {"max_length": 10**6},
        {"hold": 0},
    ],
)
def test_wrong_options_are_told_at_once(options):
    with pytest.raises(InputError):
        lm(**options)


def test_predictors_that_cannot_do_it_say_so():
    with pytest.raises(InputError, match="no prediction"):
        lm(predictor="oracle").loglikelihood([instance("a", " cat")], disable_tqdm=True)
    for predictor in ("oracle", "auto", "sliding"):
        with pytest.raises(InputError, match="rolling has no prompt"):
            lm(predictor=predictor).loglikelihood_rolling([instance("a cat")], disable_tqdm=True)


def test_dense_is_the_harnesss_own_model_to_the_printed_digits(tasks, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    import lm_eval
    from lm_eval.tasks import TaskManager

    import minicore.evaluation.lm_eval  # noqa: F401  (registers the model)

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    manager, printed = TaskManager(include_path=str(tasks), include_defaults=False), []
    for name, args in (("hf", "pretrained={},dtype=float32"), ("minicore", "model={},predictor=dense")):
        found = lm_eval.simple_evaluate(
            model=name,
            model_args=args.format(GOLDEN / "llama-chat"),
            tasks=list(TASKS),
            task_manager=manager,
            device="cpu",
            bootstrap_iters=0,
        )
        printed.append(
            {
                (task, metric): f"{value:.4f}"
                for task, values in found["results"].items()
                for metric, value in values.items()
                if isinstance(value, float)
            }
        )
    assert printed[0] == printed[1] and len(printed[0]) >= 4
