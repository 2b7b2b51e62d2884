"""From a prompt to a selection: what predictors are given, and the hooks through which they record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore import ops
from minicore.backends import Backend, make_backend
from minicore.backends.numpy import NumpyBackend
from minicore.core.budgets import Beta
from minicore.core.neurons import CoreSet, parse_layers
from minicore.core.predictors import find_predictor
from minicore.core.recorder import Recorder
from minicore.core.rules import Selection
from minicore.core.similarity import Clusters
from minicore.core.stability import WANTED, Verdict
from minicore.errors import InputError
from minicore.forward import RecorderHooks, join_hooks
from minicore.kv_cache import KVCache

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray
Layers = str | slice | range | list[int] | None


def row_norms(model: Model, names: Sequence[str]) -> Array:  # -> (n_layers, n_neurons) float64
    """Return the product, over the matrices named, of the norms of each neuron's row."""
    norms = np.ones((model.config.n_layers, model.config.n_neurons))
    for layer, block in enumerate(model.blocks):
        for name in names:
            if name in block:
                norms[layer] *= np.sqrt(np.square(ops.to_float32(block[name]), dtype=np.float64).sum(axis=1))
    return norms


def given_arrays(model: Model, predictor: str, seed: int | None) -> dict[str, Array]:
    # -> name -> (n_layers, n_neurons)
    """Return what a predictor reads of the model itself, or draws."""
    given, shape = {}, (model.config.n_layers, model.config.n_neurons)
    for name in find_predictor(predictor).given:
        if name == "w_out_norm":
            given[name] = row_norms(model, ["mlp.w_out"])
        elif name == "weight_norm":
            given[name] = row_norms(model, ["mlp.w_gate", "mlp.w_in", "mlp.w_out"])
        elif name == "random":  # 1 - [0, 1): no neuron gets the 0 that would leave it out
            given[name] = 1 - np.random.default_rng(seed).random(shape)
    return given


def fingerprint(model: Model) -> str:
    """Return what tells a model from another: a hash of its config, norms and biases, and of its adapter.

    These are float32 in every format, so a model has one fingerprint whatever dtype it is loaded in. Options
    that came after version 0.2 count where a model has them, so files of that version stay valid.
    """
    values, defaults = asdict(model.config), {field.name: field.default for field in fields(model.config)}
    names = list(values)
    later = names[names.index("mlp_bias") + 1 :]
    config = {name: value for name, value in values.items() if name not in later or value != defaults[name]}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(model.params):
        if len(model.params[name].shape) == 1:
            digest.update(name.encode() + model.params[name].tobytes())
    if model.adapter:
        digest.update(model.adapter.sha256.encode())
    return digest.hexdigest()[:32]


def is_stable(
    model: Model, ids: Sequence[int], alpha: float = 0.4, layers: Layers = None, wanted: float = WANTED
) -> Verdict:
    """Say from a prompt alone whether its core set will still hold for the continuation.

    Parameters
    ----------
    model : Model
    ids : (n_tokens,) integers
        The prompt.
    alpha : float
        Fraction of a token's positive activations kept, in (0, 1].
    layers : str, slice, range, list of int or None
        Layers whose sets are looked at; None is all.
    wanted : float
        Recall against C_alpha^beta([s, g]) from which on a set counts as stable.

    Returns
    -------
    Verdict
        True or false, with the score, the recall to expect and, as a text, the reason.
        :mod:`minicore.core.stability` says how it was calibrated.

    Examples
    --------
    >>> import minicore as mc
    >>> print(is_stable(mc.load("minicore-opt-core"), [5, 6, 7]))
    the prompt has fewer than 8 tokens, too few to test its stability
    """
    recorder = make_recorder(model, "auto", alpha, layers=layers, wanted=wanted)
    ids = encode_prompt(model, list(ids))
    record(NumpyBackend(model), ids, recorder, model.new_cache(len(ids)))
    return recorder.verdict()


def find_clusters(model: Model, clusters: Clusters | str | PathLike[str] | None) -> Clusters | None:
    """Return clusters, from their file if a path is given; raise InputError if they are another model's."""
    if isinstance(clusters, str | PathLike):
        name, clusters = f"{clusters}: ", Clusters.load(clusters)
    else:
        name = ""
    if clusters is not None and clusters.fingerprint != fingerprint(model):
        raise InputError(f"{name}{clusters!r} were fitted on another model than {model.name}")
    return clusters


def make_recorder(
    model: Model,
    predictor: str,
    alpha: float = 0.4,
    beta: Beta = 0.4,
    layers: Layers = None,
    *,
    gamma: Beta | None = None,
    token_beta: Beta | None = None,
    budget: str = "uniform",
    clusters: Clusters | str | PathLike[str] | None = None,
    frequency: Array | None = None,
    embedding: Array | None = None,
    calibration: str | Sequence[str] | Sequence[Sequence[int]] | None = None,
    window: int | None = None,
    wanted: float = WANTED,
    seed: int | None = None,
) -> Recorder:
    """Return the recorder of a predictor for a model, with all its inputs other than the prompt.

    Parameters
    ----------
    model : Model
    predictor : str
        A name of :data:`minicore.core.predictors.PREDICTORS`, or ``SET+RULE`` such as ``griffin+gate``:
        each token selects by the rule from the set.
    alpha : float
        Fraction of a token's positive activations kept, in (0, 1].
    beta : float, str or sequence of float
        Fraction of a layer's neurons kept, in (0, 1]: one number; a range ``"0.2:0.6"``, from the first
        restricted layer to the last; or one number per restricted layer.
    layers : str, slice, range, list of int or None
        Layers to restrict; None is all.
    gamma : float, str, sequence of float or None
        The fraction kept of a cluster's set; None is beta.
    token_beta : float, str, sequence of float or None
        The fraction kept by the rule of ``SET+RULE``.
    budget : str
        ``uniform``: every layer keeps beta. ``share``: the layers keep beta on average, and those keep more
        where the scores say that more is gained (:func:`minicore.core.budgets.share`).
    clusters : Clusters, path or None
        ``similarity`` and ``static`` need them; ``auto`` uses them if given.
    frequency : (n_layers, n_neurons) array or None
        Scores computed from other texts, for ``static`` without clusters.
    embedding : (d,) array or None
        The embedding of the prompt, for clusters of embeddings.
    calibration : str, list of str, list of lists of ids, or None
        Texts to record instead of the prompt. They fix the set or threshold before the prompt is known.
    window : int or None
        Record only this many tokens at the end of the prompt. None is the predictor's default, usually all.
    wanted : float
        Expected recall above which ``auto`` treats the prompt's set as stable.
    seed : int or None
        Random seed of ``random``.

    Raises
    ------
    InputError
        If a value is out of range, an input that the predictor needs is missing, or the clusters belong to
        another model.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> recorder, ids = make_recorder(model, "stability", beta=0.2), model.tokenizer.encode("The old house")
    >>> _ = record(make_backend(model), ids, recorder, model.new_cache(len(ids)))
    >>> recorder.core().fraction <= 0.2
    True
    """
    config = model.config
    recorder = Recorder(
        predictor,
        alpha,
        beta,
        parse_layers(layers, config.n_layers),
        config.n_layers,
        config.n_neurons,
        gamma=gamma,
        token_beta=token_beta,
        budget=budget,
        given=given_arrays(model, predictor, seed) | ({} if frequency is None else {"frequency": frequency}),
        clusters=find_clusters(model, clusters),
        embedding=embedding,
        window=window,
        wanted=wanted,
        gated=config.gated,
        settings={"model": model.name, "fingerprint": fingerprint(model)},
    )
    if calibration is not None:
        texts = [calibration] if isinstance(calibration, str) else calibration
        backend, hooks = NumpyBackend(model), recorder_hooks(recorder)
        for text in texts:
            ids = encode_prompt(model, text)
            backend.prefill(np.array(ids), model.new_cache(len(ids)), hooks)
        recorder.fix()
    return recorder


def recorder_hooks(*recorders: Recorder) -> RecorderHooks:
    """Return the hooks that hand a forward pass's FFN activations to recorders."""
    return RecorderHooks(join_hooks(chain.from_iterable(recorder.hooks() for recorder in recorders)))


def record(backend: Backend, ids: Sequence[int], recorder: Recorder, cache: KVCache) -> Array:
    # -> (n_vocab,)
    """Prefill the cache while the recorder sees the FFN activations; return the last logits."""
    return record_all(backend, ids, [recorder], cache)


def record_all(
    backend: Backend, ids: Sequence[int], recorders: Sequence[Recorder], cache: KVCache
) -> Array:  # -> (n_vocab,)
    """Prefill the cache once for several recorders; fixed ones record nothing."""
    reading = [recorder for recorder in recorders if not recorder.fixed]
    for recorder in reading:
        recorder.start(len(ids), backend.adders)
    return backend.prefill(np.asarray(ids), cache, recorder_hooks(*reading))


def predict(
    model: Model,
    ids: Sequence[int],
    predictor: str = "stability",
    alpha: float = 0.4,
    beta: Beta = 0.4,
    layers: Layers = None,
    *,
    continuation: Sequence[int] | None = None,
    backend: str = "auto",
    **choosing: Any,
) -> Selection:
    """Return the core set a predictor chooses for a prompt (CoreInfer, sec. 4.1).

    Parameters
    ----------
    model : Model
    ids : (n_tokens,) integers
        The prompt.
    predictor, alpha, beta, layers, **choosing
        See :func:`make_recorder`.
    continuation : (n,) integers or None
        The ids that follow the prompt, for ``oracle`` alone.
    backend : str
        What reads the prompt: ``numpy``, ``cpu`` or ``auto``.

    Returns
    -------
    CoreSet or TokenRule
        A rule where each token chooses for itself; dense decoding is a CoreSet that restricts no layer.

    Raises
    ------
    InputError
        For an empty prompt, one longer than the context, or any option outside its range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> ids = model.tokenizer.encode("The old house stood on a hill above the sea.")
    >>> core = predict(model, ids, "stability", alpha=0.4, beta=0.3)
    >>> len(core.neurons) == model.config.n_layers, core.settings["predictor"], core.fraction <= 0.3
    (True, 'stability', True)
    """
    recorder = make_recorder(model, predictor, alpha, beta, layers, **choosing)
    if recorder.row.needs_continuation != (continuation is not None):
        needs = "needs" if recorder.row.needs_continuation else "does not read"
        raise InputError(f"predictor {predictor} {needs} the continuation, the ids that follow the prompt")
    ids = encode_prompt(model, [*ids, *(continuation or ())])
    if recorder.recording.names and not recorder.fixed:
        record(make_backend(model, backend), ids, recorder, model.new_cache(len(ids)))
    selection = recorder.core()
    if selection is None:
        settings: dict[str, object] = {"predictor": recorder.used}
        settings |= {"why": recorder.why} if recorder.why else {}
        return CoreSet({}, model.config.n_neurons, model.config.n_layers, settings)
    return selection


def encode_prompt(model: Model, prompt: str | Sequence[int], chat: bool = False) -> list[int]:
    """Return a prompt's token ids; raise InputError if there are none or more than the context holds."""
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("the prompt is empty, expected at least one character")
        if model.tokenizer is None:
            raise InputError(f"{model.source} has no tokenizer, expected a prompt of token ids")
        ids = model.tokenizer.chat(prompt) if chat else model.tokenizer.encode(prompt)
    else:
        if chat:
            raise InputError("chat is set but the prompt is a list of token ids, expected text")
        ids = list(prompt)
    if not ids:
        raise InputError("the prompt is empty, expected at least one token")
    if len(ids) > model.config.n_ctx:
        raise InputError(f"the prompt has {len(ids)} tokens, the model's context holds {model.config.n_ctx}")
    return [int(i) for i in model.check_ids(ids)]
