"""Generation: prefill densely, predict the core set, decode with it, sample, stream text.

The last prompt token is read once, by prefill; its logits give the first generated token.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from minicore.backends import Backend, Decoder, DecoderStats, make_backend
from minicore.backends.memory_limit import resident_bytes
from minicore.core.budgets import Beta, plain
from minicore.core.neurons import CoreSet
from minicore.core.recorder import Recorder
from minicore.core.rules import Selection
from minicore.errors import InputError
from minicore.generation.accounting import bytes_per_token, neurons_kept
from minicore.generation.options import Options, check_options, with_recommended
from minicore.generation.prediction import Layers, encode_prompt, make_recorder, record, recorder_hooks
from minicore.generation.sampling import Sampler, make_sampler
from minicore.generation.stops import StopText
from minicore.kv_cache import KVCache

if TYPE_CHECKING:
    from minicore.model import Model

Array = np.ndarray

SHORT = 1 << 32  # weight bytes times tokens: below it NumPy finishes before Numba could be imported


@dataclass(frozen=True)
class Generation:
    """The result of a generation.

    Attributes
    ----------
    text : str
        The new text, without special tokens.
    token_ids, prompt_ids : list of int
        The new tokens, without the end-of-sequence token, and the tokens of the prompt.
    core : CoreSet, TokenRule or None
        The neurons that decoding used, or the rule by which each token selected its own; None is all.
    stats : dict
        Settings, counts, seconds, tokens per second, bytes, and the reason for stopping.

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
    """Return the continuation of a prompt. :func:`stream` describes options and errors.

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
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    chat: bool = False,
    ignore_eos: bool = False,
    memory_limit: int | None = None,
    **choosing: Any,
) -> Stream:
    """Return an iterator over the text of a generation, piece by piece.

    Parameters
    ----------
    model : Model
    prompt : str or list of int
        Text, or token ids.
    max_new_tokens : int
        The largest number of tokens to generate, >= 0. The model's context may end it sooner
        (``stop_reason``).
    predictor : str or None
        How to select the neurons to decode with. None is what the checkpoint recommends, else dense.
    alpha, beta : float or None
        Fractions kept, in (0, 1]. None is what the checkpoint recommends, else 0.4.
    layers : str, slice, range, list of int or None
        Layers to restrict, such as ``"6:27"``. None is what the checkpoint recommends, else all.
    refresh : int or None
        Select again each time this many tokens have been generated. The dense model then reads the last
        ``window`` tokens again (without a window, all tokens it has not read), which also corrects their
        keys and values. None is the predictor's default, usually never.
    continuation : list of int or None
        The continuation that ``oracle`` reads. None decodes densely first and uses that.
    **choosing
        Further inputs of predictors: ``gamma``, ``token_beta``, ``budget``, ``clusters``, ``embedding``,
        ``calibration``, ``window``, ``wanted``. See :func:`minicore.generation.prediction.make_recorder`.
    backend : str
        ``numpy``, ``numba`` (plain compiled loops, float32; NumPy reads the prompt), ``cpu``, ``cuda`` or
        ``auto`` (``cuda`` where there is a GPU for it, else ``cpu``).
    temperature, top_k, top_p, min_p, typical_p, seed
        See :class:`Sampler`; temperature 0 is greedy. What is None is what the checkpoint's
        generation_config.json says, else off; 1 for ``top_p`` and ``typical_p`` and 0 for ``min_p`` are off.
        Where all are off a GPU draws the tokens itself: from the same distribution, but not the same tokens
        for a seed.
    repetition_penalty, no_repeat_ngram_size
        See :class:`LogitsRules`; they hold for temperature 0 as well. None is what generation_config.json
        says, else off. Its other settings that are applied: ``bad_words_ids``, ``min_length``,
        ``min_new_tokens``, ``suppress_tokens``, ``begin_suppress_tokens``; when sampling also
        ``epsilon_cutoff`` and ``eta_cutoff``.
    stop : str or list of str or None
        Texts that end the generation. They are not part of the result. Special tokens count by their names.
    chat : bool
        Render the prompt with the checkpoint's chat template.
    ignore_eos : bool
        Continue after end-of-sequence tokens.
    memory_limit : int or None
        Bytes the process may hold while it decodes. Prefill reads the FFN weights of a mapped model
        (`minicore pack`) once, layer by layer, and releases them; only the core neurons' rows are copied.
        With backend ``cuda`` it limits the bytes on the GPU, for any model: FFN weights stay in page-locked
        host memory, pass through two buffers of one layer each, and only the core neurons' rows stay.

    Raises
    ------
    InputError
        If the prompt is empty or longer than the context, or an option is out of range.

    Examples
    --------
    >>> import minicore as mc
    >>> model = mc.load("minicore-opt-core")
    >>> pieces = list(stream(model, "The old house stood", max_new_tokens=3, beta=0.2))
    >>> "".join(pieces) == generate(model, "The old house stood", max_new_tokens=3, beta=0.2).text
    True
    """
    if seed is not None and seed < 0:
        raise InputError(f"seed is {seed!r}, expected 0 or more")
    name, alpha, beta, layers = with_recommended(model, predictor, alpha, beta, layers)
    recorder = make_recorder(model, name, alpha, beta, layers, seed=seed, **choosing)
    options = check_options(
        model,
        recorder,
        backend=backend,
        max_new_tokens=max_new_tokens,
        stop=stop,
        ignore_eos=ignore_eos,
        refresh=refresh,
        continuation=continuation,
        memory_limit=memory_limit,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    given = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    sampler = make_sampler(temperature, given, model.generation, np.random.default_rng(seed))
    return Stream(model, encode_prompt(model, prompt, chat), recorder, sampler, options)


@dataclass(frozen=True)
class Prefilled:
    """A prompt that has been read already, and the neurons to decode with."""

    cache: KVCache
    logits: Array  # (n_vocab,)
    selection: Selection | None


class Stream:
    """A running generation. Iterate over it for pieces of text; ``result`` is what it has produced so far.

    Stopping early (by ``close``, by Ctrl-C, or by leaving the loop) loses nothing: ``result`` holds the
    tokens and the text produced until then.
    """

    def __init__(
        self,
        model: Model,
        ids: list[int],
        recorder: Recorder,
        sampler: Sampler,
        options: Options,
        prefilled: Prefilled | None = None,
    ) -> None:
        self.model, self.ids, self.recorder, self.sampler = model, ids, recorder, sampler
        self.options, self.prefilled = options, prefilled
        self.token_ids: list[int] = []
        self.core: Selection | None = None
        self.n_refreshed = 0
        self.decoding: DecoderStats | None = None
        self.text, self.stop_reason = "", "interrupt"
        self.seconds = {"prefill_s": 0.0, "predict_s": 0.0, "compile_s": 0.0, "decode_s": 0.0}
        self._pieces = self._text_pieces()

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces. Leaving the loop stops the generation.

        The kv cache and the copied rows are then freed at once, not at the next garbage collection.
        """
        try:
            yield from self._pieces
        finally:
            self.close()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop. ``result`` remains available."""
        self._pieces.close()

    def run(self) -> Generation:
        """Run to the end and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    def _text_pieces(self) -> Generator[str, None, None]:
        """Yield text as soon as it cannot be the start of a stop text."""
        if self.model.tokenizer is None:
            for _ in self._tokens():
                yield ""
            return
        tokenizer = self.model.tokenizer
        decoder, text = tokenizer.stream(), StopText(self.options.stops, tokenizer.special_names())
        for token in self._tokens():
            # Half a character does not go on after a special token that is part of a stop text.
            piece = decoder.flush() if token in text.names else decoder.push(token)
            piece = text.push(piece, token)
            self.text += piece
            if text.found:
                self.stop_reason = "stop"
                yield piece
                return
            if piece:
                yield piece
        piece = text.flush(decoder.flush())
        if text.found:
            self.stop_reason = "stop"
        if piece:
            self.text += piece
            yield piece

    def _tokens(self) -> Iterator[int]:
        """Yield new tokens: prefill, predict, then decode."""
        options, n_ctx = self.options, self.model.config.n_ctx
        room = n_ctx - len(self.ids) + 1  # the last generated token need not be read
        most = min(options.max_new_tokens, room)
        ended = "length" if most == options.max_new_tokens else "context"
        cache = self.model.new_cache(min(len(self.ids) + options.max_new_tokens, n_ctx))
        logits = self._read(cache)
        if most == 0:
            self.stop_reason = ended
            return
        token = self._choose(logits)  # the first token is prefill's
        if not (yield from self._told(token)):
            return
        if most > 1:
            yield from self._decode(cache, token, most)
        if self.stop_reason != "eos":
            self.stop_reason = ended

    def _told(self, token: int) -> Generator[int, None, bool]:
        """Yield a token unless it ends the text; return whether the text goes on."""
        if token in self.options.eos_ids:
            self.stop_reason = "eos"
            return False
        self.token_ids.append(token)
        yield token
        return True

    def _decode(self, cache: KVCache, token: int, most: int) -> Iterator[int]:
        """Yield the tokens after the first, until the text ends or there are ``most`` tokens."""
        began = time.perf_counter()
        decoder = self._decoder(cache)
        self.seconds["compile_s"] += time.perf_counter() - began
        try:
            tokens = self._picked(cache, decoder, token, most - len(self.token_ids))
            while True:
                began = time.perf_counter()
                picked = next(tokens, None)
                self.seconds["decode_s"] += time.perf_counter() - began
                if picked is None or not (yield from self._told(picked)):
                    return
        finally:
            self.decoding = decoder.stats

    def _picked(self, cache: KVCache, decoder: Decoder, token: int, n: int) -> Iterator[int]:
        """Yield n tokens: picked by the decoder where it runs ahead, else by the sampler."""
        if decoder.runs_ahead and self.sampler.plain and not (self.options.refresh or self.options.rules):
            seed = int(self.sampler.rng.integers(1 << 31))
            yield from decoder.run(token, n, self.sampler.temperature, seed)
            return
        for _ in range(n):
            if self.options.refresh and len(self.token_ids) % self.options.refresh == 0:
                logits = self._select_again(cache, decoder)
            else:
                logits = decoder.step(token)
            token = self._choose(logits)
            yield token

    def _choose(self, logits: Array) -> int:  # (n_vocab,) -> id
        """Return the next token: of the logits as the rules change them."""
        if rules := self.options.rules:
            logits = rules(logits, self.ids + self.token_ids, len(self.ids), self.options.eos_ids)
        return self.sampler(logits)

    def _read(self, cache: KVCache) -> Array:  # -> (n_vocab,)
        """Read the prompt into the cache, select the neurons and return the logits after the prompt."""
        if self.prefilled:
            cache.copy(self.prefilled.cache)
            self.core = self.prefilled.selection
            return self.prefilled.logits
        began = time.perf_counter()
        backend = self._reads
        self.seconds["compile_s"] = time.perf_counter() - began
        self._foresee()
        began = time.perf_counter()
        logits = record(backend, self.ids, self.recorder, cache)
        self.seconds["prefill_s"] = time.perf_counter() - began
        began = time.perf_counter()
        self.core = self.recorder.core()
        self.seconds["predict_s"] += time.perf_counter() - began
        return logits

    @cached_property
    def _reads(self) -> Backend:
        """The backend that reads prompts."""
        return make_backend(self.model, self.prefill_backend(), self.options.memory_limit)

    def prefill_backend(self) -> str:
        """Return the backend that reads the prompt. NumPy reads a short one before Numba is imported."""
        work = len(self.ids) * self.model.weights_bytes
        short = work < SHORT and self.model.dtype == "float32" and self.options.memory_limit is None
        return "numpy" if short and self.options.backend == "cpu" else self.options.backend

    def _decoder(self, cache: KVCache) -> Decoder:
        """Return the decoder, made by the backend that read the prompt if that one decodes too."""
        limit, name = self.options.memory_limit, self.options.backend
        if limit is not None and not isinstance(self.core, CoreSet):
            raise InputError(f"memory_limit needs a core set, and {self.recorder.predictor} chose none")
        same = self.prefill_backend() == name
        backend = self._reads if same else make_backend(self.model, name, limit)
        return backend.decoder(cache, self.core)

    def _select_again(self, cache: KVCache, decoder: Decoder) -> Array:  # -> (n_vocab,)
        """Read the last tokens densely, including the new one, and select from what they predict."""
        ids, window = self.ids + self.token_ids, self.recorder.window
        decoder.flush()
        if window is None:  # add the tokens that were read sparsely to what is recorded
            cache.length = len(ids) - min(self.options.refresh or 1, len(self.token_ids))
        else:
            cache.length = max(len(ids) - window, 0)
            self.recorder.start(None)
        logits = self._reads.prefill(np.array(ids[cache.length :]), cache, recorder_hooks(self.recorder))
        self.core = self.recorder.core()
        decoder.use(self.core)
        self.n_refreshed += 1
        return logits

    def _foresee(self) -> None:
        """Let an oracle read prompt and continuation; decode densely first if no continuation is given."""
        if not self.recorder.row.needs_continuation or self.recorder.fixed:
            return
        began, continuation = time.perf_counter(), self.options.continuation
        if continuation is None:
            dense = make_recorder(self.model, "dense")
            options = replace(self.options, refresh=None, memory_limit=None)
            run = Stream(self.model, self.ids, dense, copy.deepcopy(self.sampler), options).run()
            continuation = tuple(run.token_ids)
        whole = [*self.ids, *continuation][: self.model.config.n_ctx]
        record(self._reads, whole, self.recorder, self.model.new_cache(len(whole)))
        self.recorder.fix()
        self.seconds["predict_s"] = time.perf_counter() - began

    @property
    def result(self) -> Generation:
        """Tokens, text and statistics so far."""
        return Generation(self.text, list(self.token_ids), self.ids, self.core, self._stats())

    def _stats(self) -> dict[str, Any]:
        model, recorder, n_new = self.model, self.recorder, len(self.token_ids)
        dense = recorder.row.dense
        done = self.decoding
        read = done.neurons_read / done.n_steps if done and done.n_steps else None
        kept = neurons_kept(model, self.core, read)
        return {
            "model": model.name,
            "backend": self.options.backend,
            "why_backend": self.options.why_backend,
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
            "device_bytes": done.device_bytes if done else None,
            "bytes_per_token": bytes_per_token(model, self.core, kept),
            "stop_reason": self.stop_reason,
        }


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds else 0.0
