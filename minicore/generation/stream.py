"""Generation: prefill densely, predict the core set, decode with it, sample, stream text.

The last prompt token is read once, by prefill; its logits give the first generated token.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.backends import Decoder, check_backend, make_decoder, reader
from minicore.core.budgets import Beta, plain
from minicore.core.neurons import CoreSet
from minicore.core.predictors import Recorder
from minicore.core.rules import Selection, TokenRule
from minicore.errors import InputError
from minicore.generation.prediction import Layers, encode_prompt, make_recorder, record, recorder_tap
from minicore.generation.sampling import Sampler
from minicore.model import PER_NEURON, KVCache, prefill

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray

SHORT = 1 << 32  # weight bytes times tokens: NumPy has multiplied them before Numba is imported


@dataclass(frozen=True)
class Generation:
    """What a generation produced.

    Attributes
    ----------
    text : str
        The new text, special tokens left out.
    token_ids, prompt_ids : list of int
        New tokens (an end-of-sequence token is not among them) and the prompt's.
    core : CoreSet, TokenRule or None
        Neurons that decoding used, or how each token chose its own; None is all.
    stats : dict
        Settings, counts, seconds, tokens per second, bytes, and why it stopped.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> out = model.generate("The old house stood on", max_new_tokens=4, beta=0.3, ignore_eos=True)
    >>> len(out.token_ids), out.stats["stop_reason"], out.stats["core_fraction"] < 0.4
    (4, 'length', True)
    """

    text: str
    token_ids: list[int]
    prompt_ids: list[int]
    core: Selection | None
    stats: dict[str, Any] = field(default_factory=dict)


def generate(model: Model, prompt: str | Sequence[int], **options: Any) -> Generation:
    """Return the continuation of a prompt. :func:`stream` describes the options and the errors.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> dense = generate(model, "The old house stood", max_new_tokens=3, predictor="dense")
    >>> dense.token_ids == generate(model, dense.prompt_ids, max_new_tokens=3, predictor="dense").token_ids
    True
    """
    return stream(model, prompt, **options).run()


def stream(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    predictor: str | None = None,
    alpha: float | None = None,
    beta: Beta | None = None,
    layers: Layers = None,
    refresh: int | None = None,
    continuation: Sequence[int] | None = None,
    backend: str = "auto",
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    chat: bool = False,
    ignore_eos: bool = False,
    memory_limit: int | None = None,
    **choosing: Any,
) -> Stream:
    """Return an iterator over the pieces of a generation's text.

    Parameters
    ----------
    model : Model
    prompt : str or list of int
        Text, or token ids.
    max_new_tokens : int
        Most tokens to generate, >= 0. The model's context may end it earlier (``stop_reason``).
    predictor : str or None
        How to choose the neurons to decode with; None is what the checkpoint recommends, else dense.
    alpha, beta : float or None
        Fractions kept, in (0, 1]; None is the checkpoint's recommendation, else 0.4.
    layers : str, slice, range, list of int or None
        Layers to restrict, such as ``"6:27"``; None is the checkpoint's recommendation, else all.
    refresh : int or None
        Choose anew after every so many generated tokens: the last ``window`` tokens (all not yet read
        densely, if the predictor has no window) are read again by the whole model, which also makes good
        their keys and values. None is the predictor's own, mostly never.
    continuation : list of int or None
        Ids that ``oracle`` takes for the continuation; None decodes densely first and takes that.
    **choosing
        What predictors read besides: ``gamma``, ``token_beta``, ``budget``, ``clusters``, ``embedding``,
        ``calibration``, ``window``, ``wanted``; see :func:`minicore.generation.prediction.make_recorder`.
    backend : str
        ``numpy``, ``cpu``, ``cuda`` or ``auto`` (``cuda`` where there is a GPU for it, else ``cpu``).
    temperature, top_k, top_p, seed
        See :class:`Sampler`; temperature 0 is greedy. Without ``top_k`` and ``top_p`` a GPU draws tokens
        itself, from the same distribution but not with the same luck.
    stop : str or list of str or None
        Texts that end the generation; they are not part of it.
    chat : bool
        Put the prompt into the checkpoint's chat template.
    ignore_eos : bool
        Go on past end-of-sequence tokens.
    memory_limit : int or None
        Bytes the process may hold while it decodes. The FFN weights of a mapped model (`minicore pack`) are
        read once by prefill, layer by layer, and given back; only the core neurons' rows are copied. With
        backend ``cuda`` these are bytes on the GPU: FFN weights stay in page-locked host memory, for any
        model, pass through two buffers of a layer each, and only the core neurons' rows remain.

    Raises
    ------
    InputError
        For an empty prompt, one longer than the context, or any option outside its range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> pieces = list(stream(model, "The old house stood", max_new_tokens=3, beta=0.2))
    >>> "".join(pieces) == generate(model, "The old house stood", max_new_tokens=3, beta=0.2).text
    True
    """
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}, expected 0 or more")
    name, alpha, beta, layers = advised(model, predictor, alpha, beta, layers)
    if seed is not None and seed < 0:
        raise InputError(f"seed is {seed!r}, expected 0 or more")
    recorder = make_recorder(model, name, alpha, beta, layers, seed=seed, **choosing)
    refresh = recorder.row.refresh if refresh is None else refresh
    check_refresh(recorder, refresh)
    if continuation is not None and not recorder.row.needs_continuation:
        raise InputError(f"predictor {name} does not read the continuation, oracle does")
    sampler = Sampler(temperature, top_k, top_p, np.random.default_rng(seed))
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    if any(not text for text in stops):
        raise InputError("stop is an empty text, expected at least one character")
    ids = encode_prompt(model, prompt, chat)
    eos = () if ignore_eos else model.eos_ids
    chosen, why = check_backend(backend, model.dtype, model.config)
    return Stream(
        *(model, ids, recorder, sampler, chosen, max_new_tokens, stops, eos),
        why_backend=why,
        refresh=refresh,
        continuation=None if continuation is None else model.check_ids(continuation).tolist(),
        memory_limit=check_memory_limit(model, memory_limit, refresh, chosen),
    )


def advised(
    model: Model, predictor: str | None, alpha: float | None, beta: Beta | None, layers: Layers
) -> tuple[str, float, Beta, Layers]:
    """Return predictor, alpha, beta and layers, what was not said as the checkpoint recommends it.

    A predictor that was named is not the recommended one, and the rest of the advice not for it.
    """
    advice = model.recommended if predictor is None else {}
    return (
        predictor or advice.get("predictor", "dense"),
        advice.get("alpha", 0.4) if alpha is None else alpha,
        advice.get("beta", 0.4) if beta is None else beta,
        advice.get("layers") if layers is None else layers,
    )


def check_memory_limit(
    model: Model, memory_limit: int | None, refresh: int | None, backend: str
) -> int | None:
    """Return the limit; raise InputError if decoding cannot be held to it."""
    if memory_limit is None:
        return None
    if memory_limit < 1:
        raise InputError(f"memory_limit is {memory_limit!r}, expected a number of bytes above 0")
    if model.mapping is None and backend != "cuda":
        raise InputError(
            f"memory_limit needs a mapped model, expected {model.source} packed by `minicore pack`"
        )
    if refresh is not None:
        raise InputError("memory_limit and refresh: rows outside the first core set are no longer held")
    return memory_limit


def check_refresh(recorder: Recorder, refresh: int | None) -> None:
    """Raise InputError unless a predictor can choose anew after that many tokens."""
    if refresh is None:
        return
    if not isinstance(refresh, int | np.integer) or refresh < 1:
        raise InputError(f"refresh is {refresh!r}, expected 1 or more tokens")
    if (
        not recorder.row.records
        or recorder.row.checks_stability
        or recorder.row.needs_continuation
        or recorder.fixed
    ):
        raise InputError(f"predictor {recorder.predictor} reads no prompt that could be read again")


class Stream:
    """A generation under way: iterate for pieces of text; ``result`` is what came so far.

    Stopping early (``close``, Ctrl-C in the loop, or leaving it) loses nothing: ``result`` holds the
    tokens and text produced until then.
    """

    def __init__(
        self,
        model: Model,
        ids: list[int],
        recorder: Recorder,
        sampler: Sampler,
        backend: str,
        max_new_tokens: int,
        stops: list[str],
        eos: Sequence[int],
        *,
        refresh: int | None = None,
        continuation: list[int] | None = None,
        memory_limit: int | None = None,
        why_backend: str | None = None,
    ) -> None:
        self.model, self.ids, self.recorder, self.sampler = model, ids, recorder, sampler
        self.backend, self.why_backend, self.stops, self.eos = backend, why_backend, stops, frozenset(eos)
        self.max_new_tokens, self.memory_limit = int(max_new_tokens), memory_limit
        self.token_ids: list[int] = []
        self.core: Selection | None = None
        self.refresh, self.n_refreshed, self.continuation = refresh, 0, continuation
        self.n_read = np.zeros(model.config.n_layers, np.int64)  # neurons that tokens chose, over n_steps
        self.n_steps = 0
        self.device_bytes: int | None = None
        self.text, self.stop_reason = "", "interrupt"
        self.seconds = {"prefill_s": 0.0, "predict_s": 0.0, "compile_s": 0.0, "decode_s": 0.0}
        self._pieces = self._text_pieces()

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces; leaving the loop is stopping.

        So kv cache and copied rows are freed at once, not when garbage is collected.
        """
        try:
            yield from self._pieces
        finally:
            self.close()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop; ``result`` stays."""
        self._pieces.close()

    def run(self) -> Generation:
        """Go on to the end and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    def _text_pieces(self) -> Generator[str, None, None]:
        """Yield text as soon as no stop text can begin in it."""
        if self.model.tokenizer is None:
            for _ in self._tokens():
                yield ""
            return
        decoder, held = self.model.tokenizer.stream(), ""
        for token in self._tokens():
            held += decoder.push(token)
            if (at := self._find_stop(held)) is not None:
                self.text += held[:at]
                self.stop_reason = "stop"
                yield held[:at]
                return
            ready = len(held) - max((_overlap(held, stop) for stop in self.stops), default=0)
            if ready:
                self.text += held[:ready]
                yield held[:ready]
                held = held[ready:]
        held += decoder.flush()
        if (at := self._find_stop(held)) is not None:
            held, self.stop_reason = held[:at], "stop"
        if held:
            self.text += held
            yield held

    def _find_stop(self, text: str) -> int | None:
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        return min(found, default=None)

    def _tokens(self) -> Iterator[int]:
        """Yield new tokens: prefill, predict, then one decoder step each."""
        n_ctx = self.model.config.n_ctx
        room = n_ctx - len(self.ids) + 1  # the last token generated need not be read
        cache = self.model.new_cache(min(len(self.ids) + self.max_new_tokens, n_ctx))
        logits = self._read(cache)
        if self.max_new_tokens == 0:
            self.stop_reason = "length"
            return
        decoder: Decoder | None = None
        while True:
            token = self.sampler(logits)
            if token in self.eos:
                self.stop_reason = "eos"
                return
            self.token_ids.append(token)
            yield token
            if len(self.token_ids) == self.max_new_tokens:
                self.stop_reason = "length"
                return
            if len(self.token_ids) == room:
                self.stop_reason = "context"
                return
            if decoder is None:  # made when the first token, which is prefill's, is out
                began = time.perf_counter()
                decoder = self._decoder(cache)
                self.seconds["compile_s"] += time.perf_counter() - began
                self.device_bytes = getattr(decoder, "device_bytes", None)
                if self._device_chooses(decoder):
                    yield from self._chosen_by(decoder, token, min(self.max_new_tokens, room))
                    return
            began = time.perf_counter()
            if self.refresh and len(self.token_ids) % self.refresh == 0:
                logits = self._choose_anew(cache, decoder)
            else:
                logits = self._step(decoder, token)
            self.seconds["decode_s"] += time.perf_counter() - began

    def _read(self, cache: KVCache) -> Array:  # -> (n_vocab,)
        """Read the prompt into the cache, choose the neurons and return the logits after the prompt."""
        began = time.perf_counter()
        self.reader = reader(self.model, self.reading_backend(), self.memory_limit)
        self.seconds["compile_s"] = time.perf_counter() - began
        self._foresee()
        began = time.perf_counter()
        logits = record(self.reader, self.ids, self.recorder, cache)
        self.seconds["prefill_s"] = time.perf_counter() - began
        began = time.perf_counter()
        self.core = self.recorder.core()
        self.seconds["predict_s"] += time.perf_counter() - began
        return logits

    def reading_backend(self) -> str:
        """Return the backend that reads the prompt: a short one does not wait for Numba."""
        work = len(self.ids) * self.model.weights_bytes
        short = work < SHORT and self.model.dtype == "float32" and self.memory_limit is None
        return "numpy" if short and self.backend == "cpu" else self.backend

    def _device_chooses(self, decoder: Any) -> bool:
        """Say whether tokens can be chosen where the logits are, so that nobody waits for this process."""
        plain_draw = self.sampler.top_k is None and self.sampler.top_p is None
        return self.backend == "cuda" and not decoder.reference and plain_draw and not self.refresh

    def _chosen_by(self, decoder: Any, token: int, most: int) -> Iterator[int]:
        """Yield the tokens that a device chooses itself, until the end or until there are so many."""
        seed = int(self.sampler.rng.integers(1 << 31))
        began = time.perf_counter()
        try:
            for chosen in decoder.run(token, most - len(self.token_ids), self.sampler.temperature, seed):
                self.seconds["decode_s"] += time.perf_counter() - began
                if chosen in self.eos:
                    self.stop_reason = "eos"
                    return
                self.token_ids.append(chosen)
                yield chosen
                began = time.perf_counter()
            self.stop_reason = "length" if most == self.max_new_tokens else "context"
        finally:
            self.n_read, self.n_steps = decoder.n_used, decoder.n_steps

    def _decoder(self, cache: KVCache) -> Decoder:
        """Return the decoder: over row lists, or over copies of the core rows if memory is limited."""
        if self.memory_limit is None:
            return make_decoder(self.model, cache, self.core, self.backend)
        if not isinstance(self.core, CoreSet):
            raise InputError(f"memory_limit needs a core set, and {self.recorder.predictor} chose none")
        if self.backend == "cuda":
            self.reader.on_device.buffers.clear()  # the prompt is read
            return make_decoder(self.model, cache, self.core, self.backend, self.memory_limit)
        narrow, held = self.reader.restrict(self.core), resident_bytes()
        if held > self.memory_limit:
            raise InputError(
                f"memory_limit is {self.memory_limit} bytes, but {held} are held with "
                f"{self.core.fraction:.0%} of the neurons; expected a higher limit or a smaller beta"
            )
        return make_decoder(narrow, cache, None, self.backend)

    def _step(self, decoder: Decoder, token: int) -> Array:  # -> (n_vocab,)
        before = decoder.n_used.copy()
        logits = decoder.step(token)
        self.n_read, self.n_steps = self.n_read + decoder.n_used - before, self.n_steps + 1
        return logits

    def _choose_anew(self, cache: KVCache, decoder: Decoder) -> Array:  # -> (n_vocab,)
        """Read the last tokens densely, the new one among them, and decode with what they predict."""
        ids, window = self.ids + self.token_ids, self.recorder.window
        decoder.flush()
        if window is None:  # add to what is recorded the tokens that were read sparsely
            cache.length = len(ids) - min(self.refresh or 1, len(self.token_ids))
        else:
            cache.length = max(len(ids) - window, 0)
            self.recorder.start(None)
        tap = recorder_tap(self.recorder)
        logits = prefill(self.reader, np.array(ids[cache.length :]), cache, tap)
        self.core = self.recorder.core()
        decoder.use(self.core)
        self.n_refreshed += 1
        return logits

    def _foresee(self) -> None:
        """Let an oracle read prompt and continuation, decoding densely first if no continuation is given."""
        if not self.recorder.row.needs_continuation or self.recorder.fixed:
            return
        began, config = time.perf_counter(), self.model.config
        if self.continuation is None:
            dense = make_recorder(self.model, "dense")
            sampler = copy.deepcopy(self.sampler)
            self.continuation = (
                Stream(
                    *(self.model, self.ids, dense, sampler, self.backend, self.max_new_tokens, self.stops),
                    tuple(self.eos),
                )
                .run()
                .token_ids
            )
        whole = (self.ids + self.continuation)[: config.n_ctx]
        record(self.reader, whole, self.recorder, self.model.new_cache(len(whole)))
        self.recorder.fixed = True
        self.seconds["predict_s"] = time.perf_counter() - began

    @property
    def result(self) -> Generation:
        """Tokens, text and statistics so far."""
        return Generation(self.text, list(self.token_ids), self.ids, self.core, self._stats())

    def _stats(self) -> dict[str, Any]:
        model, recorder, n_new = self.model, self.recorder, len(self.token_ids)
        dense = recorder.row.dense
        kept = neurons_kept(model, self.core, self.n_read / self.n_steps if self.n_steps else None)
        return {
            "model": model.name,
            "backend": self.backend,
            "why_backend": self.why_backend,
            "dtype": model.dtype,
            "predictor": recorder.predictor,
            "predictor_used": recorder.used,
            "why": recorder.why or None,
            "alpha": None if dense else recorder.alpha,
            "beta": None if dense else plain(recorder.beta),
            "layers": None if dense else list(recorder.layers),
            "prompt_tokens": len(self.ids),
            "new_tokens": n_new,
            "core_fraction": float(kept.mean()) / model.config.n_neurons,
            "refreshes": self.n_refreshed,
            **self.seconds,
            "prefill_tokens_per_s": _rate(len(self.ids), self.seconds["prefill_s"]),
            "decode_tokens_per_s": _rate(max(n_new - 1, 0), self.seconds["decode_s"]),
            "weights_bytes": model.weights_bytes,
            "resident_bytes": resident_bytes(),
            "device_bytes": self.device_bytes,
            "bytes_per_token": bytes_per_token(model, self.core, kept),
            "stop_reason": self.stop_reason,
        }


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds else 0.0


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of text could be the first ones of stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def neurons_kept(model: Model, core: Selection | None, n_used: Array | None = None) -> Array:
    # (n_layers,) or None -> (n_layers,)
    """Return how many neurons' output rows a decoded token reads in each layer.

    ``n_used`` are the means that a decoder counted, for layers where each token chooses for itself; without
    them these count as all that may be chosen from.
    """
    n_neurons = model.config.n_neurons
    kept = np.full(model.config.n_layers, n_neurons, float)
    for layer, ids in core.neurons.items() if core else ():
        kept[layer] = len(ids)
    for layer, limit in core.limits.items() if isinstance(core, TokenRule) else ():
        most = min(kept[layer], limit) if isinstance(core, TokenRule) and core.kind == "top" else kept[layer]
        kept[layer] = most if n_used is None else n_used[layer]
    return kept


def bytes_per_token(model: Model, core: Selection | None, kept: Array | None = None) -> int:
    """Return the bytes of weights that one decoded token reads; of the embedding that is one row.

    Where each token chooses for itself, the rows that the choice is made from are read for all neurons of
    the set: the gate's (``w_in`` in families without one), and for the k largest ``w_in`` too.
    """
    kept = neurons_kept(model, core) if kept is None else kept
    read = float(model.head.nbytes + model.params["embed"][0].nbytes)
    for layer, block in enumerate(model.blocks):
        among = len(core.neurons[layer]) if core and layer in core.neurons else model.config.n_neurons
        first = _read_first(core, layer, model.config.gated)
        for name, w in block.items():
            n_rows = (among if name in first else kept[layer]) if name in PER_NEURON else len(w)
            read += w.nbytes // len(w) * n_rows
    return round(read)


def _read_first(core: Selection | None, layer: int, gated: bool) -> tuple[str, ...]:
    """Return the matrices a token reads before it has chosen."""
    if not isinstance(core, TokenRule) or layer not in core.limits:
        return ()
    inputs = ("mlp.w_in", "mlp.b_in")
    return (("mlp.w_gate", "mlp.b_gate") if gated else inputs) + (inputs if core.kind == "top" else ())


def resident_bytes() -> int:
    """Return the bytes of memory this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)
