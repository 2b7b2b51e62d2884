"""The recipe that tunes SmolLM2: its model and core sets agree with minicore, and runs resume exactly."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import WEIGHTS

torch = pytest.importorskip("torch", reason="the recipe is written in PyTorch (extra `train`)")
sys.path.insert(0, str(WEIGHTS / "train"))

import compact  # noqa: E402
import decoding  # noqa: E402
import dialogues  # noqa: E402
import distil  # noqa: E402
import encode_prose  # noqa: E402
import export_gguf  # noqa: E402
import judge  # noqa: E402
import llama  # noqa: E402
import mixture  # noqa: E402
import muon  # noqa: E402
import neurons  # noqa: E402
import openings  # noqa: E402
import streams  # noqa: E402
import tune  # noqa: E402
import typography  # noqa: E402

import minicore as mc  # noqa: E402
from minicore.core.neurons import core_from_scores  # noqa: E402
from minicore.forward import forward  # noqa: E402

SHAPE = llama.Shape(n_vocab=96, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_head=32, n_neurons=128)


@pytest.fixture
def model() -> llama.Llama:
    torch.manual_seed(0)
    model = llama.Llama(SHAPE)
    with torch.no_grad():
        for norm in (model.norm, model.norm1, model.norm2):
            norm.add_(0.3 * torch.randn_like(norm))
    return model


@pytest.fixture
def base(tmp_path: Path, model: llama.Llama) -> Path:
    """A GGUF file whose metadata the exporter copies: byte tokens, three special ones and two merges."""
    from gguf import GGUFWriter

    path = tmp_path / "base.gguf"
    writer = GGUFWriter(path, "llama")
    for name, key in llama.GGUF_KEYS.items():
        value = getattr(SHAPE, name)
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_uint32("llama.context_length", 64)
    writer.add_string("general.name", "base")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [chr(code) for code in range(33, 124)]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", [*special, *letters, "th", "the"])
    writer.add_array("tokenizer.ggml.token_type", [3] * 3 + [1] * 93)
    writer.add_array("tokenizer.ggml.merges", ["t h", "th e"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_string("tokenizer.chat_template", "{{ messages[0]['content'] }}")
    for name, array in llama.to_gguf(model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 96, (n, length)))


def cut(split: list[int], kept: list[int], rule: list[int], whole: bool = False) -> llama.Cut:
    return llama.Cut(*map(torch.tensor, (split, kept, rule, [whole] * len(split))))


# --- the model and its file ---


def test_minicore_computes_the_same_logits_and_activations(base: Path, model: llama.Llama) -> None:
    ids, loaded = tokens(1, 30), mc.load(base)
    with torch.no_grad():
        logits, activations = model.logits(model.hidden(ids))[0], model.activations(ids)
    found, cache = loaded.run_with_cache(ids[0].tolist(), lambda name: name.endswith("mlp.hook_post"))
    np.testing.assert_allclose(found, logits.numpy(), atol=2e-5)
    for layer, a in enumerate(activations):
        np.testing.assert_allclose(cache[f"blocks.{layer}.mlp.hook_post"], a[0].numpy(), atol=2e-5)


def test_a_gguf_file_holds_the_same_weights(base: Path, model: llama.Llama) -> None:
    for (name, one), other in zip(
        model.state_dict().items(), llama.load(base).state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("matrices", "embedding", "error"), [("Q8_0", "Q8_0", 0.05), ("Q4_1", "Q5_0", 0.5)])
def test_an_exported_file_agrees_within_its_quantisation(
    tmp_path: Path, base: Path, model: llama.Llama, matrices: str, embedding: str, error: float
) -> None:
    out = tmp_path / "out" / "model.gguf"
    argv = [
        "--checkpoint",
        base,
        "--base",
        base,
        "--out",
        out,
        "--matrices",
        matrices,
        "--embedding",
        embedding,
    ]
    export_gguf.main([str(part) for part in argv])
    ids, loaded = tokens(1, 30), mc.load(out)
    with torch.no_grad():
        expected = model.logits(model.hidden(ids))[0].numpy()
        rounded = llama.load(out)
        exact = rounded.logits(rounded.hidden(ids))[0].numpy()
    found = loaded.forward(ids[0].tolist())
    np.testing.assert_allclose(found, exact, atol=5e-5)
    assert 0 < np.linalg.norm(found - expected) < error * np.linalg.norm(expected)
    assert loaded.tokenizer.encode("the") == [95]
    assert loaded.tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_compact_parts_give_the_model_back(tmp_path: Path, base: Path, model: llama.Llama) -> None:
    checkpoint, parts, back = tmp_path / "a.pt", tmp_path / "parts", tmp_path / "b.pt"
    tune.save(checkpoint, model, tune.Settings(), 7, [])
    compact.main(["pack", str(checkpoint), str(parts)])
    compact.main(["unpack", str(parts), str(back), "--base", str(base)])
    found, state = tune.load(back)
    assert state["step"] == 7
    for (name, one), other in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        largest = one.abs().max().item()
        torch.testing.assert_close(other, one, atol=largest / 200, rtol=0, msg=name)
    assert torch.equal(found.embed, model.embed) and torch.equal(found.norm1, model.norm1)


# --- core sets ---


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_choose_the_neurons_of_minicore(beta: float, tied: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-3, 4, (40, 128)) if tied else rng.standard_normal((40, 128))
    a = a.astype(np.float32)
    scores = neurons.exact_scores(torch.from_numpy(a), neurons.COUNTS).float()[None]
    kept = torch.tensor([int(beta * 128 + 1e-9)])
    found = neurons.choose(scores, kept, torch.tensor([neurons.COUNTS]))[0].nonzero()[:, 0]
    np.testing.assert_array_equal(found.numpy(), mc.sentence_core(a, 0.4, beta))


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.4, 1.0])
def test_energy_chooses_the_neurons_of_griffin(base: Path, model: llama.Llama, beta: float) -> None:
    ids = tokens(1, 40, seed=1)
    core = mc.predict(mc.load(base), ids[0].tolist(), predictor="griffin", beta=beta)
    for layer, a in enumerate(model.activations(ids)):
        scores = neurons.exact_scores(a[0], neurons.ENERGY).float()[None]
        kept = torch.tensor([int(beta * 128 + 1e-9)])
        found = neurons.choose(scores, kept, torch.tensor([neurons.ENERGY]))[0].nonzero()[:, 0]
        np.testing.assert_array_equal(found.numpy(), core.neurons[layer])


def test_scores_see_only_tokens_before_the_split() -> None:
    a = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 30, 128)).astype(np.float32))
    found = neurons.scores(a, torch.tensor([5, 12]), torch.tensor([neurons.ENERGY, neurons.COUNTS]))
    torch.testing.assert_close(found[0], neurons.exact_scores(a[0, :5], neurons.ENERGY).float())
    torch.testing.assert_close(found[1], neurons.exact_scores(a[1, :12], neurons.COUNTS).float())
    kept = neurons.choose(found, torch.tensor([20, 30]), torch.tensor([0, 1]))
    expected = core_from_scores(found[0].numpy(), 20.5 / 128)
    np.testing.assert_array_equal(kept[0].nonzero()[:, 0].numpy(), expected)


def test_the_mask_acts_after_the_split_only(model: llama.Llama) -> None:
    ids = tokens(2, 32)
    with torch.no_grad():
        dense = model.hidden(ids)
        same, nothing = model.masked(ids, llama.dense_cut(2, 32, 128, "cpu"))
        masked, outside = model.masked(ids, cut([10, 20], [12, 12], [neurons.ENERGY, neurons.COUNTS]))
    torch.testing.assert_close(same, dense)
    assert not nothing.any()
    for row, share, n in zip(range(2), outside, (10, 20), strict=True):
        torch.testing.assert_close(masked[row, :n], dense[row, :n])
        assert not torch.isclose(masked[row, n:], dense[row, n:]).all(-1).any()
        assert not share[:n].any() and (share[n:] > 0).all() and (share < 1).all()


def test_the_masked_pass_is_minicores_restricted_model(base: Path, model: llama.Llama) -> None:
    ids, n = tokens(1, 40, seed=3), 24
    loaded = mc.load(base)
    core = mc.predict(loaded, ids[0, :n].tolist(), predictor="griffin", beta=0.25)
    cache = loaded.new_cache(40)
    forward(loaded, ids[0, :n].numpy(), cache)
    expected = forward(loaded.restrict(core), ids[0, n:].numpy(), cache)
    with torch.no_grad():
        hidden, _ = model.masked(ids, cut([n], [32], [neurons.ENERGY]))
        found = model.logits(hidden)[0, n:].numpy()
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_the_energy_outside_has_a_gradient_for_neurons_that_are_cut(model: llama.Llama) -> None:
    _, outside = model.masked(tokens(2, 32), cut([10, 20], [12, 12], [0, 0]))
    outside.sum().backward()
    assert (model.gate_up.grad.abs().sum((0, 1, 3)) > 0).all()


def test_leaning_positive_changes_signs_and_nothing_else(model: llama.Llama) -> None:
    ids = tokens(4, 32)
    with torch.no_grad():
        dense, before = model.hidden(ids), model.activations(ids)
        model.lean_positive(ids)
        torch.testing.assert_close(model.hidden(ids), dense)
    for one, other in zip(before, model.activations(ids), strict=True):
        torch.testing.assert_close(one.abs(), other.abs())
        assert ((other * other.abs()).sum((0, 1)) >= -1e-4).all()


# --- loss and optimiser ---


def test_the_divergence_and_its_gradient_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "PIECE", 5)
    torch.manual_seed(1)
    hidden, taught, embed = (
        torch.randn(2, 6, 16, requires_grad=True),
        torch.randn(2, 6, 16),
        torch.randn(50, 16),
    )
    weight = torch.rand(2, 6)
    found = distil.divergence(hidden, taught, embed)
    (gradient,) = torch.autograd.grad((found * weight).sum(), hidden)
    student, teacher = (hidden @ embed.T).log_softmax(-1), (taught @ embed.T).log_softmax(-1)
    expected = (teacher.exp() * (teacher - student)).sum(-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad((expected * weight).sum(), hidden)[0])


def test_muon_steps_as_pytorchs_own_does() -> None:
    torch.manual_seed(2)
    stack = torch.nn.Parameter(torch.randn(2, 24, 16))
    single = [
        torch.nn.Parameter(matrix.detach().clone()) for i in range(2) for matrix in stack[i].split([16, 8])
    ]
    ours = muon.Muon([stack], [[16, 8]], lr=0.02)
    theirs = torch.optim.Muon(single, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(2, 24, 16)
        stack.grad = gradient.clone()
        for p, g in zip(single, [part for i in range(2) for part in gradient[i].split([16, 8])], strict=True):
            p.grad = g.clone()
        ours.step()
        theirs.step()
    expected = torch.stack([torch.cat(single[:2]), torch.cat(single[2:])])
    torch.testing.assert_close(stack, expected, atol=2e-3, rtol=0)


# --- sampling ---


def test_streams_force_their_script_and_sample_between(model: llama.Llama) -> None:
    script = streams.Script("chat", [[5, 6, 7], [8, 9]], 0.0, 0.1, 0.0, streams.END_OF_TURN)
    other = replace(script, pieces=[[10], [11]], temperature=1.0)
    rows, lasted = streams.Streams(model, 2, 40, width=16).run([script, other], seed=3)
    assert rows[0, :3].tolist() == [5, 6, 7] and rows[1, 0] == 10
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        greedy = model.logits(model.hidden(ids))[0].argmax(-1)
    ends = [int(at) for at in np.flatnonzero(np.isin(rows[0], (0, 2)))]
    until = (ends or [40])[0]
    assert rows[0, 3:until].tolist() == greedy[2 : until - 1].tolist()
    if ends and lasted[0]:
        assert rows[0, ends[0] + 1 : ends[0] + 3].tolist() == [8, 9]


def test_a_turn_that_ends_is_followed_by_the_next_piece(model: llama.Llama) -> None:
    with torch.no_grad():  # the model always says token 0, which ends a turn
        model.embed[1:] *= 0.01
        model.embed[0] = model.embed[0].abs().sum() * torch.sign(model.norm) / 64
        model.norm.abs_()
        model.down.zero_(), model.o.zero_()
        model.embed[3:] = model.embed[0] * 0.01
    script = streams.Script("plain", [[5, 6], [7], [8]], 0.0, 0.1, 0.0, streams.END_OF_TURN)
    rows, lasted = streams.Streams(model, 1, 12, width=8).run([script], seed=0)
    assert rows[0].tolist() == [5, 6, 2, 7, 2, 8, 2, 2, 2, 2, 2, 2]
    assert not lasted[0]


def test_sampling_keeps_to_likely_tokens_at_their_odds() -> None:
    torch.manual_seed(4)
    logits = torch.randn(1, 20)
    draws = [
        decoding.sample(logits, torch.ones(1), torch.tensor([np.log(0.2)]), torch.tensor([seed])).item()
        for seed in range(3000)
    ]
    p = logits[0].softmax(-1)
    p = torch.where(p >= 0.2 * p.max(), p, 0.0)
    found = np.bincount(draws, minlength=20) / 3000
    np.testing.assert_allclose(found, (p / p.sum()).numpy(), atol=0.04)
    assert not found[p.numpy() == 0].any()


def test_every_template_of_an_opening_can_be_filled() -> None:
    rng = np.random.default_rng(5)
    drawn = [openings.opening(kind, rng) for kind in openings.SHARES for _ in range(60)]
    assert not any("{" in text.replace("{\n", "") and "}" in text for text in drawn if "function" not in text)
    assert sum(openings.SHARES.values()) == pytest.approx(1)
    assert (
        openings.plain("= = Plot = = | A sea @-@ plane ( small ) , 3 @.@ 5 m")
        == "Plot\n\nA sea-plane (small), 3.5 m"
    )


def test_text_takes_the_typography_of_tokenised_corpora() -> None:
    text = 'It cost 1,234.5 dollars (about "half") of Mr. Bell\'s well-known hoard—all.\n\nPlot\n\nThe end.'
    assert typography.tokenised(text) == (
        ' It cost 1 @,@ 234 @.@ 5 dollars ( about " half " ) of Mr. Bell \'s well @-@ known hoard – all . \n'
        " \n = = Plot = = \n \n The end . \n"
    )


def test_a_share_of_the_sections_is_restyled() -> None:
    document = "\n\n".join(f"Line {i}, here." for i in range(10 * encode_prose.SECTION))
    styled = ["here ." in section for section in encode_prose.restyled([document] * 20, 0.5, seed=1)]
    assert len(styled) == 200 and 0.4 < np.mean(styled) < 0.6


def test_scripts_begin_with_special_tokens_and_are_repeatable() -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i + 3 for i, letter in enumerate(alphabet)} | {"<unk>": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    found = dialogues.scripts(40, 3, tokenizer, ["a passage of text"], 0.5)
    start, end = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|endoftext|>"))
    assert [s.pieces[0][0] for s in found] == [start] * 20 + [end] * 20
    drawn = {s.min_p for s in dialogues.scripts(40, 3, tokenizer, ["a passage"], 0.0, min_p=(0.001, 0.01))}
    assert len(drawn) == 40 and 0.001 <= min(drawn) < 0.003 and 0.003 < max(drawn) <= 0.01
    assert found == dialogues.scripts(40, 3, tokenizer, ["a passage of text"], 0.5)


# --- tuning ---


@pytest.fixture
def data(tmp_path: Path) -> mixture.Mixture:
    rng = np.random.default_rng(6)
    for kind in ("chat", "plain"):
        np.save(tmp_path / f"{kind}.1.npy", rng.integers(0, 96, (40, 32)).astype(np.uint16))
    np.save(tmp_path / "prose.npy", rng.integers(0, 96, 2000).astype(np.uint16))
    return mixture.Mixture(tmp_path, "cpu", 32)


SETTINGS = tune.Settings(steps=8, batch=6, window=32, warmup=2, counts_share=0.5, shortest=4)


def test_batches_depend_on_seed_and_step_and_leave_out_held_out_rows(data: mixture.Mixture) -> None:
    one, other = (data.batch(np.random.default_rng([1, 2]), (0.5, 0.3, 0.2), 10) for _ in range(2))
    assert torch.equal(one[0], other[0]) and one[0].shape == (10, 32) and len(one[1].unique()) == 3
    assert len(data.heldout["chat"]) == 10 and len(data.rows["chat"]) == 30
    firsts = {tuple(row.tolist()) for row in data.rows["chat"]}
    assert {tuple(row.tolist()) for row in one[0][one[1] == 0]} <= firsts


def test_a_run_cut_in_two_gives_the_same_bits(
    tmp_path: Path, model: llama.Llama, data: mixture.Mixture
) -> None:
    out, teacher = tmp_path / "run.pt", model.requires_grad_(False)
    whole = tune.run(SETTINGS, teacher, teacher, data)
    tune.run(SETTINGS, teacher, teacher, data, out, time_limit=0.0, look_every=3)  # stops after step 3
    assert torch.load(out, weights_only=True)["step"] == 3
    resumed = tune.run(SETTINGS, teacher, teacher, data, out)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(whole.embed, teacher.embed)
    with pytest.raises(SystemExit, match="other settings"):
        tune.run(replace(SETTINGS, steps=9), teacher, teacher, data, out)


def test_the_pull_keeps_the_weights_near_the_untuned_ones(model: llama.Llama, data: mixture.Mixture) -> None:
    teacher = model.requires_grad_(False)

    def distance(tuned: llama.Llama) -> float:
        pairs = zip(tuned.matrices(), tuned.anchors(teacher), strict=True)
        return sum((one - other).square().sum().item() for one, other in pairs) ** 0.5

    free, pulled = (
        tune.run(replace(SETTINGS, steps=20, pull=pull), teacher, teacher, data) for pull in (0.0, 100.0)
    )
    assert distance(teacher) == 0 and 0 < distance(pulled) < 0.5 * distance(free)


def test_a_run_is_saved_and_measured_on_the_way(
    tmp_path: Path, model: llama.Llama, data: mixture.Mixture, capsys: pytest.CaptureFixture[str]
) -> None:
    out, texts = tmp_path / "run.pt", {"noise": torch.randint(0, 96, (3, 300))}
    run = replace(SETTINGS, steps=3)
    tune.run(run, model.requires_grad_(False), model, data, out, texts=texts, judge_every=2)
    said = capsys.readouterr().out
    assert said.count("noise") == 1 and "stability 0.4" in said and "nan" not in said


def test_a_new_run_starts_from_the_weights_of_another(
    tmp_path: Path, base: Path, model: llama.Llama, data: mixture.Mixture
) -> None:
    first = tmp_path / "first.pt"
    tune.save(first, model, SETTINGS, 8, [])
    out = tmp_path / "second.pt"
    argv = [
        "--model",
        base,
        "--start",
        first,
        "--data",
        tmp_path,
        "--out",
        out,
        "--device",
        "cpu",
        "--steps",
        2,
    ]
    argv += ["--window", 32, "--batch", 3, "--warmup", 1, "--ramp", 0]
    tune.main([str(part) for part in argv])
    tuned, state = tune.load(out)
    assert state["step"] == 2 and state["settings"] == asdict(
        replace(tune.Settings(), steps=2, window=32, batch=3, warmup=1, ramp=0.0)
    )
    change = (tuned.down.abs() - model.down.abs()).norm() / model.down.norm()  # signs may be flipped
    assert 0 < change < 0.1


def test_tuning_brings_the_masked_model_closer_to_the_teacher(
    model: llama.Llama, data: mixture.Mixture
) -> None:
    teacher = model.requires_grad_(False)
    ids, chosen = tokens(8, 32, seed=9), cut([8] * 8, [20] * 8, [0] * 8)

    def distance(student: llama.Llama) -> float:
        with torch.no_grad():
            return tune.losses(student, teacher, ids, chosen, 0.0)[0].item()

    tuned = tune.run(replace(SETTINGS, steps=60, batch=12, warmup=5, lr=0.004), teacher, teacher, data)
    assert distance(tuned) < 0.95 * distance(teacher)


def test_the_table_is_what_minicore_measures(base: Path, model: llama.Llama) -> None:
    windows = tokens(3, 25, seed=7)
    found = judge.table(model, {"text": windows}, 12, betas=(0.25,), whole=False)["text"]
    loaded = mc.load(base)
    nats: dict[str, list[float]] = {"dense": [], "griffin": []}
    for ids in windows.numpy():
        for name in nats:
            core = mc.predict(loaded, ids[:12].tolist(), predictor="griffin", beta=0.25)
            chosen = loaded.restrict(core) if name == "griffin" else loaded
            cache = loaded.new_cache(24)
            forward(loaded, ids[:12], cache)
            logits = forward(chosen, ids[12:24], cache).astype(np.float64)
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            nats[name] += (-logits[np.arange(12), ids[13:]]).tolist()
    assert found["dense"] == pytest.approx(np.exp(np.mean(nats["dense"])), rel=1e-4)
    ratio = np.exp(np.mean(nats["griffin"]) - np.mean(nats["dense"]))
    assert found["griffin 0.25"] == pytest.approx(ratio, rel=1e-4)
