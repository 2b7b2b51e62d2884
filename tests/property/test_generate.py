"""Generation end to end on tiny checkpoints: laws that hold for any model, option by option."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicore as mc
from minicore.backends import make_decoder
from minicore.errors import InputError
from minicore.forward import forward, prefill
from minicore.generation.sampling import Sampler
from minicore.generation.stops import overlap
from minicore.generation.stream import Stream
from minicore.kv_cache import KVCache
from minicore.model import split_blocks
from tests.helpers import GOLDEN

FAMILIES = ["llama-gqa", "llama-bias", "opt", "gpt2", "qwen2"]
BACKENDS = ["numpy", "cpu"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return mc.load(GOLDEN / request.param)


@pytest.fixture(scope="module")
def chat_model():
    return mc.load(GOLDEN / "llama-chat")


def ids_for(model, n, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.n_vocab, n).tolist()


def steps(model, ids, new, core=None, backend="numpy"):
    """Logits of decoding ``new`` after prefilling ``ids``."""
    cache = KVCache(model.config, len(ids) + len(new))
    prefill(model, np.array(ids), cache)
    decoder = make_decoder(model, cache, core, backend)
    return np.stack([decoder.step(token) for token in new])


@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_decoding_equals_the_full_forward(model, backend):
    ids = ids_for(model, 24)
    np.testing.assert_allclose(
        steps(model, ids[:9], ids[9:], backend=backend), model.forward(ids)[9:], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_core_set_of_all_neurons_is_dense(model, backend):
    ids = ids_for(model, 12)
    n = model.config.n_neurons
    everything = mc.CoreSet({i: np.arange(n) for i in range(model.config.n_layers)}, n, model.config.n_layers)
    dense = steps(model, ids[:6], ids[6:], None, backend)
    np.testing.assert_array_equal(steps(model, ids[:6], ids[6:], everything, backend), dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_decoding_is_masked_dense_decoding(model, backend):
    """Decoding with the rows of a core set equals zeroing all other rows of w_out."""
    ids = ids_for(model, 14)
    core = mc.predict(model, ids[:8], alpha=0.5, beta=0.3)
    masked = mc.load(model.source)
    for layer, kept in core.neurons.items():
        out = masked.blocks[layer]["mlp.w_out"]
        out[np.setdiff1d(np.arange(len(out)), kept)] = 0
    cache = KVCache(model.config, 14)
    prefill(model, np.array(ids[:8]), cache)  # the prompt is read densely
    expected = forward(masked, np.array(ids[8:]), cache)
    np.testing.assert_allclose(steps(model, ids[:8], ids[8:], core, backend), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_with_any_superset_of_the_active_neurons_is_dense(backend):
    model = mc.load(GOLDEN / "opt")
    ids = ids_for(model, 10)
    _, cache = model.run_with_cache(ids, "blocks.*.mlp.hook_post")
    rng = np.random.default_rng(1)
    superset = {}
    for i in range(model.config.n_layers):
        active = (cache[f"blocks.{i}.mlp.hook_post"] > 0).any(axis=0)
        superset[i] = np.flatnonzero(active | (rng.random(model.config.n_neurons) < 0.3))
    core = mc.CoreSet(superset, model.config.n_neurons, model.config.n_layers)
    assert core.fraction < 1
    got, dense = (steps(model, ids[:5], ids[5:], c, backend) for c in (core, None))
    np.testing.assert_allclose(got, dense, rtol=0, atol=1e-5)


def test_prompts_longer_than_a_chunk_read_as_one(monkeypatch):
    model = mc.load(GOLDEN / "llama-gqa")
    ids = ids_for(model, 30)
    whole, core = model.forward(ids), mc.predict(model, ids)
    monkeypatch.setattr("minicore.forward.CHUNK", 7)
    np.testing.assert_allclose(model.forward(ids), whole, rtol=0, atol=1e-4)  # BLAS adds in another order
    assert mc.predict(model, ids) == core


def test_batch_of_tokens_equals_one_by_one(model):
    ids = ids_for(model, 10)
    cache = KVCache(model.config, 10)
    one_by_one = np.concatenate([forward(model, np.array([i]), cache) for i in ids])
    np.testing.assert_allclose(one_by_one, model.forward(ids), rtol=0, atol=1e-4)  # as BLAS adds


def test_the_first_token_comes_from_prefill_and_the_last_prompt_token_is_read_once(model):
    ids = ids_for(model, 7)
    out = model.generate(ids, max_new_tokens=6, ignore_eos=True)
    seen = list(ids)
    for token in out.token_ids:  # what plain argmax over the full forward would say
        assert token == model.forward(seen)[-1].argmax()
        seen.append(token)


def test_generate_and_stream_agree_and_a_stopped_stream_keeps_its_text(chat_model):
    whole = chat_model.generate("the sea", max_new_tokens=20, ignore_eos=True)
    assert len(whole.token_ids) == 20 and whole.stats["new_tokens"] == 20
    assert "".join(chat_model.stream("the sea", max_new_tokens=20, ignore_eos=True)) == whole.text
    assert whole.text == chat_model.tokenizer.decode(whole.token_ids, skip_special=True)
    stream = chat_model.stream("the sea", max_new_tokens=20, ignore_eos=True)
    pieces = [next(stream) for _ in range(3)]
    stream.close()
    assert stream.result.text == "".join(pieces) and stream.result.stats["stop_reason"] == "interrupt"
    assert whole.token_ids[: len(stream.result.token_ids)] == stream.result.token_ids


@pytest.mark.parametrize("n_stop", [1, 2, 5])
def test_a_stop_text_ends_the_generation_and_is_not_part_of_it(chat_model, n_stop):
    text = chat_model.generate("the sea", max_new_tokens=30, ignore_eos=True).text
    stop = text[4 : 4 + n_stop]
    out = chat_model.generate("the sea", max_new_tokens=30, ignore_eos=True, stop=["no such text", stop])
    assert out.text == text[: text.index(stop)] and out.stats["stop_reason"] == "stop"
    pieces = list(chat_model.stream("the sea", max_new_tokens=30, ignore_eos=True, stop=stop))
    assert "".join(pieces) == out.text


@given(st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=4))
def test_what_is_held_back_is_the_longest_possible_start_of_a_stop_text(text, stop):
    n = overlap(text, stop)
    starts = [k for k in range(len(stop)) if k <= len(text) and text.endswith(stop[:k])]
    assert n == max(starts)


def test_end_of_sequence_ends_it_and_is_not_among_the_tokens(chat_model):
    free = chat_model.generate("the sea", max_new_tokens=12, ignore_eos=True).token_ids
    out = replace(chat_model, eos_ids=(free[5],)).generate("the sea", max_new_tokens=12)
    assert out.token_ids == free[: free.index(free[5])] and out.stats["stop_reason"] == "eos"


def test_the_context_limit_is_said_not_overrun(model):
    n_ctx = model.config.n_ctx
    ids = ids_for(model, n_ctx - 2)
    for backend in BACKENDS:
        out = model.generate(ids, max_new_tokens=50, ignore_eos=True, backend=backend)
        assert len(out.token_ids) == 3 and out.stats["stop_reason"] == "context"
    assert len(model.generate(ids_for(model, n_ctx), max_new_tokens=9, ignore_eos=True).token_ids) == 1
    with pytest.raises(mc.InputError, match=f"{n_ctx + 1} tokens.*{n_ctx}"):
        model.generate(ids_for(model, n_ctx + 1))


def test_no_new_tokens(model):
    out = model.generate(ids_for(model, 4), max_new_tokens=0)
    assert out.token_ids == [] and out.text == "" and out.stats["stop_reason"] == "length"


def test_the_core_set_of_a_generation_is_the_prompts(model):
    ids = ids_for(model, 9)
    out = model.generate(ids, max_new_tokens=2, predictor="stability", alpha=0.4, beta=0.3, layers="1:")
    assert out.core == mc.predict(model, ids, alpha=0.4, beta=0.3, layers="1:")
    assert list(out.core) == list(range(1, model.config.n_layers))
    _, cache = model.run_with_cache(ids, "blocks.1.mlp.hook_post")
    np.testing.assert_array_equal(
        out.core.neurons[1], mc.sentence_core(cache["blocks.1.mlp.hook_post"], 0.4, 0.3)
    )
    assert out.stats["core_fraction"] == out.core.fraction < 1


def test_a_checkpoint_recommends_and_the_caller_decides(model):
    ids = ids_for(model, 9)
    advice = {"predictor": "stability", "alpha": 0.5, "beta": 0.25, "layers": "1:"}
    advised = replace(model, recommended=advice)
    out = advised.generate(ids, max_new_tokens=1)
    assert (out.stats["predictor"], out.stats["alpha"], out.stats["beta"]) == ("stability", 0.5, 0.25)
    assert list(out.core) == list(range(1, model.config.n_layers))
    assert advised.generate(ids, max_new_tokens=1, beta=0.75).stats["beta"] == 0.75
    assert advised.generate(ids, max_new_tokens=1, predictor="dense").core is None
    assert model.generate(ids, max_new_tokens=1).stats["predictor"] == "dense"


@pytest.mark.parametrize(
    "options, named",
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"alpha": 0.0, "predictor": "stability"}, "alpha is 0.0"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"predictor": "stabilty"}, "did you mean stability"),
        ({"backend": "cpuu"}, "did you mean cpu"),
        ({"layers": "0:99"}, "99 is out of range"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1e-308}, "temperature is 1e-308, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"stop": ""}, "stop is an empty text"),
        ({"chat": True}, "list of token ids"),
    ],
)
def test_options_outside_their_range_are_refused(options, named):
    model = mc.load(GOLDEN / "llama-gqa")
    with pytest.raises(mc.InputError, match=named):
        model.generate([1, 2, 3], **options)


@pytest.mark.parametrize(
    "prompt, named",
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([999], "id 999"),
        ([1.5], "dtype float64"),
        ("text", "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt, named):
    model = mc.load(GOLDEN / "llama-gqa")
    with pytest.raises(mc.InputError, match=named):
        model.generate(prompt)


def test_seeds_repeat_and_temperature_zero_is_greedy(chat_model):
    def ids(**options):
        return chat_model.generate("the sea", max_new_tokens=16, ignore_eos=True, **options).token_ids

    assert ids(temperature=1.0, seed=3) == ids(temperature=1.0, seed=3)
    assert ids(temperature=1.0, seed=3) != ids(temperature=1.0, seed=4)
    assert ids(temperature=1.0, seed=3, top_k=1) == ids() == ids(temperature=1.0, seed=3, top_p=1e-9)


@given(st.integers(2, 30), st.floats(0.2, 2), st.integers(1, 30), st.floats(0.05, 1), st.integers(0, 2**32))
def test_the_sampled_distribution(n, temperature, top_k, top_p, seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(n).astype(np.float32)
    p = Sampler(temperature, top_k, top_p).probabilities(logits)
    plain = Sampler(temperature).probabilities(logits)
    assert p.sum() == pytest.approx(1) and 1 <= (p > 0).sum() <= top_k
    kept = p > 0
    assert plain[kept].min() >= plain[~kept].max(initial=0)  # the likeliest stay
    np.testing.assert_allclose(p[kept], plain[kept] / plain[kept].sum(), rtol=1e-9)
    drawn = Sampler(temperature, top_k, top_p, np.random.default_rng(seed))(logits)
    assert kept[drawn]


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_draws_follow_the_distribution(seed):
    sampler = Sampler(0.7, rng=np.random.default_rng(seed))
    logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    drawn = np.bincount([sampler(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, sampler.probabilities(logits), atol=0.04)


def test_a_stream_is_an_iterator(chat_model):
    stream = chat_model.stream("the sea", max_new_tokens=2)
    assert isinstance(stream, Stream) and iter(stream) is not None


def test_a_loop_that_is_left_ends_the_stream_and_frees_what_it_held(chat_model):
    stream = chat_model.stream("the sea", max_new_tokens=9, predictor="stability", ignore_eos=True)
    pieces = [piece for piece, _ in zip(stream, range(3), strict=False)]
    assert next(stream, None) is None and stream.result.stats["stop_reason"] == "interrupt"
    assert stream.result.text.startswith("".join(pieces))
    alive = weakref.ref(stream)
    del stream
    assert alive() is None  # no cycle that would wait for garbage to be collected


def test_hook_names_and_shapes(model):
    cfg, n = model.config, 6
    logits, cache = model.run_with_cache(ids_for(model, n))
    np.testing.assert_array_equal(logits, model.forward(ids_for(model, n)))
    assert cache["blocks.1.mlp.hook_post"].shape == (n, cfg.n_neurons)
    assert cache["blocks.0.attn.hook_pattern"].shape == (cfg.n_heads, n, n)
    assert cache["blocks.0.attn.hook_k"].shape == (n, cfg.n_kv_heads, cfg.d_head)
    np.testing.assert_allclose(cache["blocks.0.attn.hook_pattern"].sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        cache["blocks.0.hook_resid_mid"] + cache["blocks.0.hook_mlp_out"], cache["blocks.0.hook_resid_post"]
    )
    np.testing.assert_array_equal(cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_pre"])


def test_names_filter_takes_a_name_a_list_or_a_callable(model):
    ids = ids_for(model, 3)
    assert list(model.run_with_cache(ids, "blocks.1.hook_resid_post")[1]) == ["blocks.1.hook_resid_post"]
    assert set(model.run_with_cache(ids, ["blocks.*.hook_mlp_out", "hook_embed"])[1]) == {
        "hook_embed",
        *(f"blocks.{i}.hook_mlp_out" for i in range(model.config.n_layers)),
    }
    assert all(
        name.endswith("hook_z") for name in model.run_with_cache(ids, lambda n: n.endswith("hook_z"))[1]
    )
    with pytest.raises(mc.InputError, match=r"did you mean .*blocks\.1\.mlp\.hook_post"):
        model.run_with_cache(ids, "blocks.1.mlp.hook_pots")


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_weights_mean_their_float32_values(model, backend):
    """The logits of a bfloat16 model are those of float32 weights of the same values."""
    half = mc.load(model.source, dtype="bfloat16")
    wide = mc.load(model.source)
    for name, w in half.params.items():
        wide.params[name][...] = w
    ids = ids_for(model, 10)
    cache = KVCache(model.config, len(ids), "bfloat16")  # as beside bfloat16 weights
    np.testing.assert_array_equal(half.forward(ids), forward(wide, ids, cache))
    np.testing.assert_allclose(
        steps(half, ids[:4], ids[4:], None, backend), wide.forward(ids)[4:], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("backend", ["numpy", "cpu", "numba"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_huge_weights_end_in_one_sentence(backend, temperature):
    """Finite numbers whose products leave the range of float32: no warning, and no token out of NaN."""
    model = mc.load(GOLDEN / "llama-gqa")
    params = {name: np.float32(1e30) * w if "mlp.w" in name else w for name, w in model.params.items()}
    blocks = split_blocks(params, model.config.n_layers)
    huge = replace(model, params=params, blocks=blocks)
    with pytest.raises(InputError, match="logit of token .* is nan, expected finite logits"):
        huge.generate(
            [5, 6, 7], max_new_tokens=3, predictor="dense", backend=backend, temperature=temperature
        )
