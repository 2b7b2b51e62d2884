"""The GPU decoder: the same tests on a GPU (`pytest -m cuda`) and, from one test, in Numba's simulator."""

import ast
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minicore as mc
from minicore import bench, ops
from minicore.backends import check_backend, make_backend, make_decoder
from minicore.backends.cuda import availability as gpu
from minicore.backends.cuda.backend import CudaBackend
from minicore.backends.numpy import NumpyBackend
from minicore.cli import main
from minicore.cli.bench import report_lines
from minicore.core.neurons import CoreSet
from minicore.core.rules import TokenRule
from minicore.core.statistics import GATE_SHIFT, STATISTICS, Recording
from minicore.errors import InputError
from minicore.forward import prefill
from minicore.generation.prediction import make_recorder, record
from minicore.kv_cache import KVCache
from tests.helpers import GOLDEN, ROOT, run_python

HERE = Path(__file__).parent
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"
MODELS = [("llama-gqa", "float32"), ("opt", "bfloat16"), ("opt", "int8")]
if not SIMULATED:  # which takes a minute a model
    MODELS += [("llama-gqa", "int8"), ("gpt2", "float32"), ("qwen2", "bfloat16"), ("gpt2", "int8")]
N_READ, N_NEW = 9, 2


@pytest.fixture(autouse=True, scope="module")
def switch_threads_often():
    """In the simulator a block is threads that wait for one another."""
    before = sys.getswitchinterval()
    if SIMULATED:
        sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


# --- on a GPU ---


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request):
    if why := gpu.trouble(request.param[1]):
        pytest.skip(why)
    return mc.load(GOLDEN / request.param[0], request.param[1])


def selections(config):
    """All neurons, a core set of some layers, a core set of odd sizes, and gates inside it."""
    rng = np.random.default_rng(1)
    n = config.n_neurons
    some = CoreSet({0: np.sort(rng.permutation(n)[: n // 2])}, n, config.n_layers)
    odd = CoreSet(
        {i: np.sort(rng.permutation(n)[: n // 3 * 2 - i | 1]) for i in range(config.n_layers)},
        n,
        config.n_layers,
    )
    gates = TokenRule("gate", dict.fromkeys(range(config.n_layers), 0.02), n, config.n_layers, odd)
    return [None, some, odd, gates]


def new_cache(model, capacity):
    """Return a kv cache as a GPU has it, of which nothing is rounded unless inputs are, too."""
    return KVCache(model.config, capacity, "bfloat16" if model.dtype == "int8" else "float32")


def prefilled(model, ids):
    cache = new_cache(model, len(ids) + N_NEW)
    prefill(model, np.asarray(ids), cache)
    return cache


def near(model, got, expected):
    """Assert equality up to rounding; where inputs are rounded, now and then one falls the other way."""
    got, expected = ops.to_float32(got), ops.to_float32(expected)
    off, largest = np.abs(got - expected), np.abs(expected).max()
    if model.dtype == "int8":
        assert np.median(off) <= 1e-4 * largest and off.max() <= 0.05 * largest
    else:
        assert off.max() <= 1e-4 * largest


@pytest.mark.cuda
def test_decoding_is_the_references(model):
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ + N_NEW)
    cache = prefilled(model, ids[:N_READ])
    decoder = make_decoder(model, cache, None, "cuda")
    for selection in selections(model.config):
        reference = make_decoder(model, prefilled(model, ids[:N_READ]), selection, "numpy")
        cache.length, before = N_READ, decoder.stats
        decoder.use(selection)
        for token in ids[N_READ:]:
            near(model, decoder.step(int(token)), reference.step(int(token)))
        decoder.flush()
        near(model, cache.k, reference.cache.k)
        near(model, cache.v, reference.cache.v)
        # tanh-GELU rounds a tiny activation to zero on one of them alone, and int8 an input the other way
        if model.config.activation != "gelu_tanh" and model.dtype != "int8":
            read = decoder.stats.neurons_read - before.neurons_read
            np.testing.assert_array_equal(read, reference.stats.neurons_read)


@pytest.mark.cuda
def test_tokens_chosen_on_the_device_are_those_chosen_step_by_step(model):
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ)
    cache = prefilled(model, ids)
    decoder = make_decoder(model, cache, None, "cuda")
    chosen = list(decoder.run(1, N_NEW))
    cache.length, token = N_READ, 1
    for expected in chosen:
        token = int(decoder.step(token).argmax())
        assert token == expected
    drawn = []
    for _ in range(2):
        cache.length = N_READ
        drawn.append(list(decoder.run(1, N_NEW, 0.8, seed=7)))
    assert drawn[0] == drawn[1] and all(0 <= token < model.config.n_vocab for token in drawn[0])


@pytest.mark.cuda
@pytest.mark.slow
def test_a_graph_of_phases_decodes_as_the_one_kernel_does(model):
    from minicore.backends.cuda.decoder import CudaDecoder

    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ)
    caches = [prefilled(model, ids) for _ in range(2)]
    whole, graph = (CudaDecoder(model, cache, None, graph=i == 1) for i, cache in enumerate(caches))
    for selection in selections(model.config)[:: 2 if SIMULATED else 1]:
        logits, tokens = [], []
        for decoder in (whole, graph):
            decoder.cache.length = N_READ
            decoder.use(selection)
            logits.append(decoder.step(1))
            decoder.cache.length = N_READ
            tokens.append(list(decoder.run(1, N_NEW)))
            decoder.cache.length = N_READ
            tokens.append(list(decoder.run(1, N_NEW, 0.8, seed=7)))
        if SIMULATED:
            np.testing.assert_array_equal(*logits)  # the same sums in the same order, but ...
        near(model, *logits)  # a GPU's compiler fuses other multiplications with additions in another kernel
        assert tokens[:2] == tokens[2:]
        np.testing.assert_array_equal(whole.stats.neurons_read, graph.stats.neurons_read)


def prefill_by_numpy(backend, ids, cache, hooks=None):
    return NumpyBackend(backend.model).prefill(ids, cache, hooks)


@pytest.mark.cuda
@pytest.mark.slow
def test_bench_measures_a_gpu(model, monkeypatch):
    if (model.config.family, model.dtype) != ("llama", "float32"):
        pytest.skip("once is enough")
    if SIMULATED:
        monkeypatch.setattr("minicore.bench.validation.N_CHECKED", 2)
        # simulated tiles take minutes
        monkeypatch.setattr(CudaBackend, "prefill", prefill_by_numpy)
        # there are no launches to hide
        monkeypatch.setattr("minicore.backends.cuda.phases.TOKENS_PER_LAUNCH", 1)
    size = {"prompt_tokens": 3, "new_tokens": 3, "rounds": 1, "contexts": (3,), "read_bytes": 1 << 12}
    found = bench.measure(model.source, bench.Plan("cuda", ("float32",), (0.4,), **size))
    assert json.loads(json.dumps(found)) == found
    assert [(row["beta"], row["context"]) for row in found["decode"]] == [(None, 3), (0.4, 3)]
    assert all(row["error"] <= 1e-4 for row in found["validation"]) and len(found["validation"]) == 3
    dense, core = found["phases"][:7], found["phases"][7:]
    assert [row["phase"] for row in dense] == [row["phase"] for row in core] and len(core) == 7
    read = sum(row["bytes"] for row in dense)
    assert 0 <= found["decode"][0]["bytes_per_token"] - read < 0.1 * read  # norms, biases, an embedding
    assert sum(row["bytes"] for row in core) < read
    lines = report_lines(found)
    assert sum(line.startswith("decode") for line in lines) == 2 and found["gpu"]["name"] in lines[0]
    assert sum(line.startswith(("attention", "w_out")) for line in lines) == 4


@pytest.mark.cuda
def test_draws_have_the_probabilities_of_the_softmax(model):
    if model.config.family != "llama" or SIMULATED:
        pytest.skip("once is enough, and the simulator takes minutes")
    ids, temperature, n = [1, 2, 3, 4], 1.5, 2000
    cache = prefilled(model, ids)
    decoder = make_decoder(model, cache, None, "cuda")
    logits = decoder.step(5).astype(np.float64) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    counts = np.zeros(len(p))
    for seed in range(n):
        cache.length = len(ids)
        counts[next(iter(decoder.run(5, 1, temperature, seed)))] += 1
    assert np.abs(counts / n - p).max() <= 5 * np.sqrt(p.max() / n)


@pytest.mark.cuda
@pytest.mark.slow
def test_generating_is_the_cpus(model):
    if model.dtype == "int8":
        pytest.skip("a rounding the other way may choose another token")
    ids = np.random.default_rng(2).integers(0, model.config.n_vocab, N_READ).tolist()
    same = {"max_new_tokens": 4, "ignore_eos": True}
    ways = [{}, {"predictor": "griffin", "beta": 0.5}, {"predictor": "griffin", "refresh": 2}]
    for options in ways[:: 2 if SIMULATED else 1]:  # the last one's first set is such as the second one's
        expected = mc.Model.generate(model, ids, backend="numpy", **same, **options)
        got = mc.Model.generate(model, ids, backend="cuda", **same, **options)
        assert got.token_ids == expected.token_ids
        assert (got.stats["backend"], got.stats["stop_reason"]) == ("cuda", "length")
        assert got.stats["core_fraction"] == expected.stats["core_fraction"]


@pytest.mark.cuda
@pytest.mark.parametrize("chunk", [4, pytest.param(512, marks=pytest.mark.slow)])
def test_prompts_are_read_as_the_reference_reads_them(model, chunk, monkeypatch):
    """Chunk sizes do not matter, and decoding continues with the keys and values on the device."""
    from minicore.backends.cuda import prefill as cuda_prefill

    monkeypatch.setattr(cuda_prefill, "CHUNK", chunk)
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ + 1)
    caches = [new_cache(model, N_READ + 1) for _ in range(2)]
    expected = prefill(model, ids[:-1], caches[0])
    near(model, make_backend(model, "cuda").prefill(ids[:-1], caches[1]), expected)
    assert caches[1].storage.on_device_only
    decoder = make_decoder(model, caches[1], None, "cuda")
    assert caches[1].storage.on_device_only  # not copied back and forth
    near(model, decoder.step(int(ids[-1])), make_decoder(model, caches[0], None, "numpy").step(int(ids[-1])))
    near(model, caches[1].k, caches[0].k)
    near(model, caches[1].v, caches[0].v)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"window": 5}, {"layers": "1:2"}], ids=str)
def test_a_core_set_is_chosen_from_what_the_device_counted(model, settings):
    if model.dtype == "int8" or (settings and model.config.family != "llama"):
        pytest.skip("once is enough")
    if SIMULATED and model.config.family == "llama" and settings != {"layers": "1:2"}:
        pytest.skip("the simulator takes half a minute for each")
    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ)
    predictors = ("stability", "gate", "magnitude", "griffin", "coreinfer-code")
    for predictor in predictors[: 2 if SIMULATED and settings else None]:  # what is read: a, and the gates
        recorders = [make_recorder(model, predictor, 0.4, 0.3, **settings) for _ in range(2)]
        for recorder, backend in zip(recorders, ("numpy", "cuda"), strict=True):
            record(make_backend(model, backend), ids, recorder, KVCache(model.config, N_READ))
        expected, got = (recorder.recording.totals for recorder in recorders)
        for layer, totals in expected.items():
            for name, total in totals.items():
                # activations differ in their last bits, so here and there two of them change places; where a
                # tanh is nearly -1, one more of it leaves few right bits of a gate far below any threshold
                lowest = np.float32(1e-3).view(np.uint32) >> GATE_SHIFT if name == "gate_bins" else 0
                off = np.abs(got[layer][name] - total)[lowest:].sum()
                assert off <= (1e-5 if name == "relative_energy" else 0.02) * np.abs(total).sum(), name


@pytest.fixture(scope="module")
def rows():
    if why := gpu.trouble("float32"):
        pytest.skip(why)
    from numba import cuda

    from minicore.backends.cuda.statistics import DeviceRows

    def make(a, bad=False):
        not_finite = cuda.to_device(np.array([bad], np.int32))
        return DeviceRows(cuda.to_device(a.reshape(-1)), a.shape[1], not_finite)

    return make


@pytest.mark.cuda
@pytest.mark.parametrize("name", STATISTICS)
def test_the_same_activations_give_the_same_sums(rows, name):
    rng = np.random.default_rng(3)
    a = rng.standard_normal((7, 33)).astype(np.float32)
    a[1] = np.round(a[1])  # equal values, zeros among them
    a[2], a[3], a[4] = 0, -np.abs(a[3]), 1
    statistic = STATISTICS[name]
    for alpha in (0.05, 0.4, 1.0):
        expected, got = (np.zeros(statistic.shape(33, alpha), statistic.dtype) for _ in range(2))
        for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
            expected = statistic.add(expected, a[part], alpha)
            got = rows(a)[part].adder(name)(got, rows(a)[part], alpha)
        if name == "relative_energy":  # a token's energy is a sum in another order
            np.testing.assert_allclose(got, expected, rtol=1e-14)
        else:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.cuda
def test_nan_among_activations_on_the_device_is_an_error(rows):
    a = np.ones((3, 8), np.float32)
    a[1, 5] = np.nan
    recorder = Recording(["counts"], [2], 8)
    with pytest.raises(InputError, match="layer 2 contain NaN, first in token 1"):
        recorder.update(2, rows(a, bad=True))
    recorder.update(2, rows(np.ones((3, 8), np.float32), bad=True))  # the NaN was another layer's


@pytest.mark.cuda
def test_memory_limit_holds_the_core_rows_alone(model):
    from minicore.backends.cuda.decoder import CudaDecoder

    ids = np.random.default_rng(0).integers(0, model.config.n_vocab, N_READ + N_NEW)
    whole = CudaDecoder(model, prefilled(model, ids[:N_READ]), None)
    for core in selections(model.config)[
        1:3
    ]:  # of the first set's other layers the FFNs are whole on the device
        reference = make_decoder(model, prefilled(model, ids[:N_READ]), core, "numpy")
        needed = CudaDecoder(model, prefilled(model, ids[:N_READ]), core, memory_limit=1 << 40)
        needed = needed.stats.device_bytes
        got = CudaDecoder(model, prefilled(model, ids[:N_READ]), core, memory_limit=needed)
        for token in ids[N_READ:]:
            near(model, got.step(int(token)), reference.step(int(token)))
        assert got.stats.device_bytes == needed == got.bytes_needed(core)
        with pytest.raises(InputError, match=f"memory_limit is {needed - 1} bytes, but {needed} are needed"):
            CudaDecoder(model, prefilled(model, ids[:N_READ]), core, memory_limit=needed - 1)
    assert whole.stats.device_bytes == whole.bytes_needed(None)


@pytest.mark.cuda
def test_prompts_are_read_with_ffns_that_pass_by(model):
    if SIMULATED and model.config.family != "llama":
        pytest.skip("the simulator takes long to read")
    ids = np.random.default_rng(2).integers(0, model.config.n_vocab, 3 if SIMULATED else N_READ).tolist()
    options = {"predictor": "griffin", "beta": 0.25, "max_new_tokens": 2, "ignore_eos": True}
    if model.dtype == "int8":
        pytest.skip("a rounding the other way may choose another neuron")
    got = model.generate(ids, backend="cuda", memory_limit=1 << 40, **options)
    assert got.token_ids == model.generate(ids, backend="numpy", **options).token_ids
    with pytest.raises(InputError, match="are needed on the GPU to read"):
        model.generate(ids, backend="cuda", memory_limit=1000, **options)


@pytest.mark.cuda
def test_offloaded_layers_are_the_models(model):
    """Layers pass through two buffers, in any order and any number of times."""
    from minicore.backends.cuda.weights import Weights

    offloaded, whole = Weights(model, offload_ffn=True), Weights(model)
    every = whole.ffn.copy_to_host().reshape(model.config.n_layers, -1)
    for layers in ([0], range(model.config.n_layers), [1, 0, 1, 0, 1]):
        seen = []
        for layer, ffn, row in offloaded.ffns(layers):
            seen.append(layer)
            np.testing.assert_array_equal(ffn.copy_to_host(), every[layer])
            moved = np.where((whole.ffn_layout[layer] >= 0) & (np.arange(len(row)) < 5), layer, 0)
            np.testing.assert_array_equal(row + moved * (every.shape[1] // 4), whole.ffn_layout[layer])
        assert seen == list(layers)


# --- anywhere ---


def run_simulated(*argv):
    """Run a Python program in which ``numba.cuda`` is Numba's simulator."""
    for package in ("numba_cuda", "greenlet"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    done = run_python(*argv, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    "tests", ["cuda and not slow", pytest.param("cuda and slow", marks=pytest.mark.slow)]
)
def test_the_simulator_runs_the_tests_above(tests):
    options = ["-q", "-n0", "-p", "no:cacheprovider"]
    assert "passed" in run_simulated("-m", "pytest", *options, "-m", tests, __file__)


@pytest.mark.parametrize("family", ["llama-gqa", pytest.param("opt", marks=pytest.mark.slow)])
def test_several_blocks_of_warps_agree_with_the_reference(family):
    run_simulated(HERE / "grid.py", GOLDEN / family)


def test_tensor_cores_get_what_the_ptx_isa_says():
    run_simulated(HERE / "tiles.py")


class Driver:
    """A CUDA driver that says what it is told to."""

    def __init__(self, code: int, version: int) -> None:
        self.code, self.version = code, version

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDriverGetVersion(self, number: object) -> int:
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


@pytest.fixture
def ask_again(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    ask = gpu.ask
    ask.cache_clear()
    yield monkeypatch
    ask.cache_clear()


def no_library(name):
    raise OSError(name)


@pytest.mark.parametrize(
    ("driver", "packages", "there", "said"),
    [
        (no_library, {}, False, "no NVIDIA driver was found"),
        (lambda name: Driver(100, 13000), {}, False, "finds no GPU"),
        (lambda name: Driver(0, 11080), {}, True, "supports CUDA 11.8, expected 12.0"),
        (lambda name: Driver(0, 13000), {"spec": None}, True, "numba-cuda is not installed"),
        (lambda name: Driver(0, 13000), {"numpy": "2.5.1"}, True, "NumPy 2.5.1 is too new"),
        (lambda name: Driver(0, 13000), {"device": "no libnvvm"}, True, "cannot use the GPU (no libnvvm)"),
    ],
)
def test_every_reason_is_a_sentence(ask_again, capsys, driver, packages, there, said):
    ask_again.setattr(ctypes, "CDLL", driver)
    ask_again.setattr(importlib.util, "find_spec", lambda name: packages.get("spec", object()))
    ask_again.setattr(gpu, "version", lambda name: "0.30.4")
    ask_again.setattr(gpu.np, "__version__", packages.get("numpy", "2.4.6"))
    why = packages.get("device")
    ask_again.setattr(gpu, "_device", lambda: why and f"numba-cuda cannot use the GPU ({why})")
    assert check_backend("auto") == ("cpu", gpu.ask().trouble if there else None)
    with pytest.raises(InputError, match="backend cuda: ") as error:
        check_backend("cuda")
    assert said in str(error.value) and "\n" not in str(error.value)
    for command in (["generate", "a b"], ["bench"]):
        assert main([*command, "-m", str(GOLDEN / "llama-chat"), "--backend", "cuda"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and said in err


def test_a_gpu_is_taken_where_there_is_one_for_the_dtype(ask_again):
    ask_again.setattr(gpu, "ask", lambda: gpu.Answer(True, None))
    assert check_backend("auto") == ("cuda", None) == check_backend("cuda")
    assert check_backend("cpu") == ("cpu", None)
    backend, why = check_backend("auto", "int4")
    assert backend == "cpu" and "int4" in why
    with pytest.raises(InputError, match="int4"):
        check_backend("cuda", "int4")


@pytest.mark.parametrize(("n_neurons", "int8", "n_threads"), [
    (80, False, 256), (1300, False, 384), (1536, False, 384), (1700, False, 256), (16384, False, 256),
    (1536, True, 384), (1800, True, 512), (16384, True, 512),
])  # fmt: skip
def test_a_block_of_the_grid_fits_a_multiprocessor(n_neurons, int8, n_threads):
    """Four schedulers have 16,384 registers each, given out in eights to a thread, by whole warps."""
    pytest.importorskip("numba_cuda")
    from minicore.backends.cuda.grid import threads_for
    from minicore.backends.cuda.kernels.launch import registers_for

    config = replace(mc.load(GOLDEN / "llama-gqa").config, n_neurons=n_neurons)
    assert threads_for(config, 132, int8) == n_threads
    for n in (n_threads, 96, 288, 320, 416):
        per_scheduler = -(-n // 32 // 4) if n % 32 == 0 else 1
        n_registers = min(-(-registers_for(n) // 8) * 8, 256)
        assert per_scheduler * 32 * n_registers <= 16384, n
        assert per_scheduler * 32 * (registers_for(n) + 9) > 16384 or registers_for(n) == 255


def test_the_key_of_cached_kernels_covers_all_their_sources(monkeypatch, tmp_path):
    pytest.importorskip("numba_cuda")
    from minicore.backends.cuda.kernels import launch

    package = ROOT / "minicore"
    taken = set()  # modules elsewhere from which kernels take constants
    for path in launch.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("minicore."):
                taken.add(str(node.module).partition(".")[2].replace(".", "/") + ".py")
    assert {name for name in taken if not name.startswith("backends/cuda/kernels")} == set(launch.CONSTANTS)
    kernels = launch.PACKAGE.relative_to(package)
    shutil.copytree(launch.PACKAGE, tmp_path / kernels, ignore=shutil.ignore_patterns("__pycache__"))
    for name in launch.CONSTANTS:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(package / name, tmp_path / name)
    monkeypatch.setattr(launch, "PACKAGE", tmp_path / kernels)
    seen = {launch.source_checksum()}
    assert seen == {launch.CHECKSUM}
    for n, path in enumerate(sorted(tmp_path.rglob("*.py")), 2):
        path.write_text(path.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
        seen.add(launch.source_checksum())
        assert len(seen) == n, path


def test_heads_that_the_kernels_cannot_read_are_refused(ask_again, capsys):
    """Heads of 6 elements: a load of 4 would reach into the next key."""
    ask_again.setattr(gpu, "ask", lambda: gpu.Answer(True, None))
    odd = mc.load(GOLDEN / "llama-chat")
    assert odd.config.d_head % 4
    backend, why = check_backend("auto", odd.dtype, odd.config)
    assert backend == "cpu" and "multiple of 4" in why
    assert check_backend("cuda", "float32", mc.load(GOLDEN / "llama-gqa").config) == ("cuda", None)
    command = ["generate", "a b", "-m", str(GOLDEN / "llama-chat"), "-n", "2", "--backend"]
    assert main([*command, "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "multiple of 4" in err
    assert main([*command, "auto"]) == 0
    assert "multiple of 4" in capsys.readouterr().err


def test_falling_back_is_said(ask_again, capsys):
    ask_again.setattr(gpu, "ask", lambda: gpu.Answer(True, "the driver sleeps"))
    model = mc.load(GOLDEN / "llama-gqa")
    assert model.generate([1, 2, 3], max_new_tokens=2).stats["why_backend"] == "the driver sleeps"
    assert main(["generate", "a b", "-m", str(GOLDEN / "llama-chat"), "-n", "2"]) == 0
    assert "not on the GPU: the driver sleeps" in capsys.readouterr().err


def test_without_a_driver_nothing_of_cuda_is_imported():
    code = (
        "import ctypes, sys\n"
        "libraries = ctypes.CDLL\n"
        "def without_cuda(name):\n"
        "    if name and 'cuda' in name: raise OSError\n"
        "    return libraries(name)\n"
        "ctypes.CDLL = without_cuda\n"
        "from minicore.backends import check_backend\n"
        "assert check_backend('auto') == ('cpu', None)\n"
        "assert not [m for m in sys.modules if m.startswith(('numba', 'cuda'))]"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_packages_named_are_those_installed():
    if importlib.util.find_spec("numba_cuda") is None:
        assert "not installed" in gpu._packages()
    else:
        assert importlib.metadata.version("numba-cuda")
