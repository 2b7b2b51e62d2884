"""The recipe of the shipped models: its core sets are minicore's, a run cut in two gives the same bits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import WEIGHTS

torch = pytest.importorskip("torch", reason="the recipe is written in PyTorch (extra `train`)")
sys.path.insert(0, str(WEIGHTS / "train"))

import export  # noqa: E402
import opt  # noqa: E402
import train  # noqa: E402

import minicore as mc  # noqa: E402

SHAPE = opt.Shape(n_vocab=96, n_ctx=32, d_model=32, n_layers=2, n_heads=4, n_neurons=64)


def activations(
    rng: np.random.Generator, n_tokens: int, tied: bool
) -> np.ndarray:  # -> (n_tokens, 64) float32, some zero
    if tied:
        return rng.integers(-3, 4, (n_tokens, 64)).clip(min=0).astype(np.float32)
    distinct = np.stack([rng.permutation(64) for _ in range(n_tokens)])
    return (distinct - 24).clip(min=0).astype(np.float32)


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_exact_sets_are_those_of_minicore(beta: float, tied: bool) -> None:
    a = activations(np.random.default_rng(0), 40, tied)
    found = opt.sentence_core(torch.from_numpy(a), 0.4, beta).nonzero()[:, 0].numpy()
    np.testing.assert_array_equal(found, mc.sentence_core(a, 0.4, beta))


def test_halving_finds_the_top_fraction_where_values_differ() -> None:
    a = activations(np.random.default_rng(1), 40, tied=False)
    np.testing.assert_array_equal(opt.token_core(torch.from_numpy(a)).numpy(), mc.token_core(a, 0.4))


def test_the_mask_counts_only_tokens_before_each_split() -> None:
    rng = np.random.default_rng(2)
    a = np.stack([activations(rng, 30, tied=False) for _ in range(3)])
    split, n_kept = [5, 12, 30], [6, 25, 64]
    mask = opt.core_mask(torch.from_numpy(a), torch.tensor(split), torch.tensor(n_kept)).numpy()
    for row, text, n, k in zip(mask, a, split, n_kept, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), mc.sentence_core(text[:n], 0.4, k / 64))


def test_the_masked_pass_is_dense_before_the_split_and_masked_after() -> None:
    torch.manual_seed(0)
    model, ids = opt.OPT(SHAPE), torch.randint(0, 96, (2, 32))
    dense = model(ids)
    none_cut, _, _ = model.masked(ids, torch.tensor([32, 32]), torch.tensor([64, 64]))
    torch.testing.assert_close(none_cut, dense)
    cut, outside, _ = model.masked(ids, torch.tensor([10, 20]), torch.tensor([3, 3]))
    for row, n in enumerate((10, 20)):
        torch.testing.assert_close(cut[row, :n], dense[row, :n])
        assert not torch.allclose(cut[row, n:], dense[row, n:])
    outside.backward()
    assert model.blocks[0].fc1.weight.grad.abs().sum() > 0


def test_levels_change_which_neurons_are_core_and_nothing_else() -> None:
    torch.manual_seed(1)
    model, ids = opt.OPT(SHAPE), torch.randint(0, 96, (4, 32))
    whole, split, few = torch.full((4,), 32), torch.full((4,), 16), torch.full((4,), 6)
    dense, cut = model(ids), model.masked(ids, split, few)[0]
    model.level(ids)
    torch.testing.assert_close(model(ids), dense)
    torch.testing.assert_close(model.masked(ids, whole, few)[0], dense)
    levelled_cut = model.masked(ids, split, few)[0]
    assert not torch.allclose(levelled_cut, cut)
    shipped = export.levelled(model)  # the levels in its weights, none beside them
    torch.testing.assert_close(shipped(ids), dense)
    torch.testing.assert_close(shipped.masked(ids, split, few)[0], levelled_cut)
    assert all((block.level == 1).all() for block in shipped.blocks)


@pytest.fixture
def corpus(tmp_path: Path) -> train.Corpus:
    rng = np.random.default_rng(3)
    np.save(tmp_path / "prose.npy", rng.integers(0, 96, 500).astype(np.uint16))
    np.save(tmp_path / "sampled.npy", rng.integers(0, 96, 500).astype(np.uint16))
    np.save(tmp_path / "sampled.starts.npy", np.arange(0, 500, 25))
    return train.Corpus(tmp_path, "cpu", SHAPE.n_ctx)


def test_every_text_begins_with_end_of_text(corpus: train.Corpus) -> None:
    ids = corpus.batch(np.random.default_rng(0), 8, 0.5)
    assert ids.shape == (8, 33) and (ids[:, 0] == train.END_ID).all() and ids[:, 1:].any(1).all()
    assert corpus.prose.any() and corpus.sampled.any()  # the corpus itself is left alone


@pytest.mark.parametrize("tuned", [False, True])
def test_a_run_cut_in_two_gives_the_same_bits(tmp_path: Path, corpus: train.Corpus, tuned: bool) -> None:
    torch.manual_seed(7)
    teacher = opt.OPT(SHAPE) if tuned else None
    trainer = train.Trainer(corpus, "cpu", compiled=False)
    settings = train.Settings(
        steps=8, batch=4, warmup=2, window=SHAPE.n_ctx, outside=0.3, level_every=2, shape=SHAPE
    )
    whole = trainer.run(settings, teacher)
    out = tmp_path / "run.pt"
    trainer.run(settings, teacher, out, time_limit=0.0, look_every=3)  # stops after step 3
    assert torch.load(out, weights_only=True)["step"] == 3
    resumed = trainer.run(settings, teacher, out)
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    with pytest.raises(SystemExit, match="other settings"):
        trainer.run(train.Settings(steps=9, batch=4, shape=SHAPE), teacher, out)


def test_an_exported_model_computes_the_same_in_minicore(tmp_path: Path) -> None:
    from tokenizer import train as train_tokenizer

    torch.manual_seed(5)
    shape = opt.Shape(n_vocab=300, n_ctx=32, d_model=32, n_layers=2, n_heads=4, n_neurons=64)
    model = opt.OPT(shape)
    with torch.no_grad():  # as the file holds them
        for parameter in model.parameters():
            parameter.copy_(export.half(parameter + 0.02 * torch.randn_like(parameter)).float())
    train.save(tmp_path / "model.pt", model, train.Settings(shape=shape), 0, [])
    train_tokenizer(iter(["a text of few words and the year 1984"] * 3), 300).save(
        str(tmp_path / "tokenizer.json")
    )
    folder = tmp_path / "exported"
    argv = [
        "--checkpoint",
        tmp_path / "model.pt",
        "--tokenizer",
        tmp_path / "tokenizer.json",
        "--out",
        folder,
        "--beta",
        "0.3",
    ]
    export.main([str(part) for part in argv])
    loaded = mc.load(folder)
    ids = np.random.default_rng(0).integers(0, 256, 20)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0].numpy()
    np.testing.assert_allclose(loaded.forward(ids.tolist()), expected, atol=2e-4)
    assert loaded.recommended == {"predictor": "stability", "alpha": 0.4, "beta": 0.3}
