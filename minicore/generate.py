"""Generation: prefill densely, predict the core set, decode with it, sample, stream text.

The last prompt token is read once, by prefill; its logits give the first generated token.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.core.neurons import CoreSet
from minicore.core.predictors import Recorder
from minicore.decode import check_backend, make_decoder
from minicore.errors import InputError
from minicore.model import PER_NEURON, KVCache
from minicore.prediction import make_recorder, record
from minicore.prediction import recorder_tap as recorder_tap
from minicore.sampling import Sampler

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray


@dataclass(frozen=True)
class Generation:
    """What a generation produced.

    Attributes
    ----------
    text : str
        The new text, special tokens left out.
    token_ids, prompt_ids : list of int
        New tokens (an end-of-sequence token is not among them) and the prompt's.
    core : CoreSet or None
        Neurons that decoding used; None is all.
    stats : dict
        Settings, counts, seconds, tokens per second, bytes, and why it stopped.
    """

    text: str
    token_ids: list[int]
    prompt_ids: list[int]
    core: CoreSet | None
    stats: dict[str, Any] = field(default_factory=dict)


def generate(model: Model, prompt: str | Sequence[int], **options: Any) -> Generation:
    """Return the continuation of a prompt. :func:`stream` describes the options and the errors."""
    return stream(model, prompt, **options).run()


def stream(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    predictor: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    layers: str | slice | range | list[int] | None = None,
    backend: str = "auto",
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    chat: bool = False,
    ignore_eos: bool = False,
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
    backend : str
        ``numpy``, ``cpu`` or ``auto``.
    temperature, top_k, top_p, seed
        See :class:`Sampler`; temperature 0 is greedy.
    stop : str or list of str or None
        Texts that end the generation; they are not part of it.
    chat : bool
        Put the prompt into the checkpoint's chat template.
    ignore_eos : bool
        Go on past end-of-sequence tokens.

    Raises
    ------
    InputError
        For an empty prompt, one longer than the context, or any option outside its range.
    """
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}, expected 0 or more")
    advice = model.recommended if predictor is None else {}
    alpha, beta = (
        given if given is not None else advice.get(name, 0.4)
        for name, given in (("alpha", alpha), ("beta", beta))
    )
    layers = advice.get("layers") if layers is None else layers
    name = predictor or advice.get("predictor", "dense")
    recorder = make_recorder(model, name, alpha, beta, layers)
    if seed is not None and seed < 0:
        raise InputError(f"seed is {seed!r}, expected 0 or more")
    sampler = Sampler(temperature, top_k, top_p, np.random.default_rng(seed))
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    if any(not text for text in stops):
        raise InputError("stop is an empty text, expected at least one character")
    ids = encode_prompt(model, prompt, chat)
    eos = () if ignore_eos else model.eos_ids
    return Stream(model, ids, recorder, sampler, check_backend(backend), max_new_tokens, stops, eos)


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


def predict(
    model: Model,
    ids: Sequence[int],
    predictor: str = "stability",
    alpha: float = 0.4,
    beta: float = 0.4,
    layers: str | slice | range | list[int] | None = None,
) -> CoreSet:
    """Return the core set a predictor chooses for a prompt (CoreInfer, sec. 4.1).

    Parameters
    ----------
    model : Model
    ids : (n_tokens,) integers
        The prompt.
    predictor : str
        A name of :data:`minicore.core.predictors.PREDICTORS`.
    alpha, beta : float
        Fractions kept, in (0, 1].
    layers : str, slice, range, list of int or None
        Layers to restrict; None is all.

    Raises
    ------
    InputError
        As :func:`stream`.
    """
    ids = encode_prompt(model, list(ids))
    config = model.config
    recorder = make_recorder(model, predictor, alpha, beta, layers)
    record(model, ids, recorder, KVCache(config, len(ids)))
    return recorder.core() or CoreSet({}, config.n_neurons, config.n_layers, {"predictor": predictor})


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
    ) -> None:
        self.model, self.ids, self.recorder, self.sampler = model, ids, recorder, sampler
        self.backend, self.stops, self.eos = backend, stops, frozenset(eos)
        self.max_new_tokens = int(max_new_tokens)
        self.token_ids: list[int] = []
        self.core: CoreSet | None = None
        self.text, self.stop_reason = "", "interrupt"
        self.seconds = {"prefill_s": 0.0, "predict_s": 0.0, "compile_s": 0.0, "decode_s": 0.0}
        self._pieces = self._text_pieces()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

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
        cache = KVCache(self.model.config, min(len(self.ids) + self.max_new_tokens, n_ctx))
        began = time.perf_counter()
        logits = record(self.model, self.ids, self.recorder, cache)
        self.seconds["prefill_s"] = time.perf_counter() - began
        began = time.perf_counter()
        self.core = self.recorder.core()
        self.seconds["predict_s"] = time.perf_counter() - began
        if self.max_new_tokens == 0:
            self.stop_reason = "length"
            return
        began = time.perf_counter()
        decoder = make_decoder(self.model, cache, self.core, self.backend)
        self.seconds["compile_s"] = time.perf_counter() - began
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
            began = time.perf_counter()
            logits = decoder.step(token)
            self.seconds["decode_s"] += time.perf_counter() - began

    @property
    def result(self) -> Generation:
        """Tokens, text and statistics so far."""
        return Generation(self.text, list(self.token_ids), self.ids, self.core, self._stats())

    def _stats(self) -> dict[str, Any]:
        model, recorder, n_new = self.model, self.recorder, len(self.token_ids)
        dense = recorder.row.dense
        fraction = self.core.fraction if self.core else 1.0
        return {
            "model": model.name,
            "backend": self.backend,
            "dtype": model.dtype,
            "predictor": recorder.predictor,
            "alpha": None if dense else recorder.alpha,
            "beta": None if dense else recorder.beta,
            "layers": None if dense else list(recorder.layers),
            "prompt_tokens": len(self.ids),
            "new_tokens": n_new,
            "core_fraction": fraction,
            **self.seconds,
            "prefill_tokens_per_s": _rate(len(self.ids), self.seconds["prefill_s"]),
            "decode_tokens_per_s": _rate(max(n_new - 1, 0), self.seconds["decode_s"]),
            "weights_bytes": model.weights_bytes,
            "resident_bytes": resident_bytes(),
            "bytes_per_token": bytes_per_token(model, self.core),
            "stop_reason": self.stop_reason,
        }


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds else 0.0


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of text could be the first ones of stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def bytes_per_token(model: Model, core: CoreSet | None) -> int:
    """Return the bytes of weights that one decoded token reads; of the embedding that is one row."""
    read = model.head.nbytes + model.params["embed"][0].nbytes
    for layer, block in enumerate(model.blocks):
        kept = len(core.neurons[layer]) if core and layer in core.neurons else model.config.n_neurons
        for name, w in block.items():
            read += w.nbytes // len(w) * kept if name in PER_NEURON else w.nbytes
    return read


def resident_bytes() -> int:
    """Return the bytes of memory this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)
