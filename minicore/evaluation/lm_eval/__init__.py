"""minicore as a model of lm-evaluation-harness (extra ``lm-eval``): importing this registers ``minicore``.

The harness's own command knows its own models alone (0.4.13 loads no plug-in), so the same command line
goes through this module::

    python -m minicore.lm_eval --model minicore --model_args model=smollm2-135m,predictor=griffin,beta=0.4 ...

Whatever is asked, the context is read densely, and what follows it is generated or scored with the neurons
chosen from the context. (The authors' code, as others, stays dense wherever several tokens are read at
once, so that a log-likelihood task never meets the sparse path.) With ``predictor=dense`` all is as the
harness's Hugging Face model has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import minicore
from minicore import ops
from minicore.backends import Backend, make_backend
from minicore.core.recorder import Recorder
from minicore.errors import InputError
from minicore.forward import Hooks
from minicore.generation.options import with_recommended
from minicore.generation.prediction import make_recorder, record, recorder_hooks
from minicore.kv_cache import KVCache

Array = np.ndarray

CHUNK = 256  # tokens at a time: logits stay (256, n_vocab)
SAMPLING = ("temperature", "top_k", "top_p")
Likelihood = tuple[float, bool]  # nats, and whether every token was the likeliest


@register_model("minicore")
class MinicoreLM(TemplateLM):
    """A model of minicore's, as the harness sees models.

    Parameters
    ----------
    model : str
        A name, a Hugging Face directory or a .gguf file.
    dtype, backend : str or None
        As :func:`minicore.load` and :func:`minicore.generation.stream.stream` have them.
    predictor, alpha, beta, layers, **choosing
        How neurons are chosen, see :func:`minicore.generation.prediction.make_recorder`; what is not
        said, as the checkpoint recommends it, else dense.
    max_length : int or None
        Most tokens of context and continuation; None is the model's context.
    hold : int
        ``loglikelihood_rolling`` chooses anew after so many tokens.
    seed : int
        Of random sets and of sampling.
    batch_size, max_batch_size, device : from the harness
        Not used: prompts are read one at a time, on the CPU.

    Raises
    ------
    InputError
        If the model cannot be read, or an option is outside its range.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        dtype: str | None = None,
        predictor: str | None = None,
        alpha: float | None = None,
        beta: float | str | None = None,
        layers: str | None = None,
        backend: str = "auto",
        max_length: int | None = None,
        hold: int = 256,
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **choosing: Any,
    ) -> None:
        super().__init__()
        self.model = minicore.load(model, dtype=dtype)
        if self.model.tokenizer is None:
            raise InputError(f"{self.model.source} has no tokenizer, which the harness's texts need")
        self.text = self.model.tokenizer  # `tokenizer` is for those of Transformers
        self.engine = make_backend(self.model, backend)
        self.max_length = max_length or self.model.config.n_ctx
        if not 1 < self.max_length <= self.model.config.n_ctx or hold < 1:
            raise InputError(
                f"max_length is {max_length} and hold {hold}, expected 2 to {self.model.config.n_ctx} and 1 "
                "or more"
            )
        advice = with_recommended(self.model, predictor, alpha, beta, layers)
        self.choosing = dict(zip(("predictor", "alpha", "beta", "layers"), advice, strict=True)) | choosing
        self.backend_name, self.hold, self.seed = backend, hold, seed
        self.recorder()  # a wrong option is told at once

    def recorder(self) -> Recorder:
        return make_recorder(self.model, **self.choosing, seed=self.seed)

    # --- texts and ids ---

    @property
    def eot_token_id(self) -> int:
        if not self.model.eos_ids:
            raise InputError(f"{self.model.source} names no token that ends a text, which the harness needs")
        return self.model.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.model.bos_id is None else self.model.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.model.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.text.encode(string, special=add_special_tokens is not False)
        twice = (
            add_special_tokens is None and ids[:2] == [self.prefix_token_id] * 2
        )  # the text has it already
        return ids[1:] if twice else ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.text.render_chat(chat_history, add_generation_prompt)

    # --- what the harness asks ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context until a stop text, decoded with the context's core neurons."""
        found = []
        for context, given in tqdm([request.args for request in requests], disable=disable_tqdm):
            said = dict(normalize_gen_kwargs(given, default_max_gen_toks=256))
            n_new, stop = said.pop("max_gen_toks"), handle_stop_sequences(said.pop("until"), eos=None)
            sampled = said.pop("do_sample")
            sampling = {key: said.pop(key) for key in SAMPLING if key in said}
            if said:
                raise InputError(f"minicore does not know the generation option {', '.join(said)}")
            if n_new >= self.max_length:
                raise InputError(f"max_gen_toks is {n_new}, the context holds {self.max_length} tokens")
            out = self.model.generate(
                self.tok_encode(context)[n_new - self.max_length :],
                max_new_tokens=n_new,
                stop=[text for text in stop if text],
                backend=self.backend_name,
                seed=self.seed,
                **self.choosing,
                **(sampling if sampled else {}),
            )
            self.cache_hook.add_partial("generate_until", (context, given), out.text)
            found.append(out.text)
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[Likelihood]:
        """Score continuations; those of one context are scored on one reading of it."""
        asked: dict[tuple[int, ...], dict[tuple[int, ...], Likelihood]] = {}
        places = []
        for _texts, context, continuation in requests:
            whole = (context + continuation)[-(self.max_length + 1) :]  # cut on the left, as the harness does
            at = len(whole) - len(continuation)
            if at < 1:
                raise InputError(
                    f"a continuation of {len(continuation)} tokens does not fit into {self.max_length}"
                )
            places.append((tuple(whole[:at]), tuple(whole[at:])))
            asked.setdefault(places[-1][0], {})[places[-1][1]] = (0.0, False)
        for context, scores in tqdm(asked.items(), disable=disable_tqdm):
            scores |= self.score(context, list(scores))
        found = [asked[context][continuation] for context, continuation in places]
        for (texts, _a, _b), one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, one)
        return found

    def score(
        self, context: Sequence[int], continuations: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Likelihood]:
        """Return each continuation's likelihood after the context, with the neurons that it predicts."""
        recorder = self.recorder()
        if recorder.row.needs_continuation:
            raise InputError(f"predictor {recorder.predictor} reads what is scored, which is no prediction")
        n = len(context)
        cache = self.model.new_cache(n + max(len(ids) for ids in continuations) - 1)
        first = record(self.engine, context, recorder, cache)  # (n_vocab,)
        restricted, found = self.engine.restrict(recorder.core()), {}
        for ids in continuations:
            cache.length = n
            sums = Sums()
            sums.add(first[None], ids[:1])
            self.read(restricted, ids[:-1], cache, sums, ids[1:])
            found[ids] = sums.likelihood
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return every text's log-likelihood, read in the harness's windows.

        Within a window the first ``hold`` tokens are scored densely: there is nothing yet to predict from.
        Then, ``hold`` tokens at a time, those ahead are scored with the neurons that all before them in the
        window predict, and then read densely for the next.
        """
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            total = sum(self.roll(*make_disjoint_window(window)) for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def roll(self, context: list[int], targets: list[int]) -> float:
        """Return the log-likelihood of the last ids of a window after its first ones."""
        recorder = self.recorder()
        if recorder.row.needs_continuation or recorder.row.checks_stability or recorder.window:
            raise InputError(
                f"predictor {recorder.predictor} needs to know where a prompt ends, and rolling has no prompt"
            )
        ids, sums = (context + targets)[:-1], Sums()
        wanted = [-1] * (len(context) - 1) + targets  # -1 is not scored
        recorder.start(None, self.engine.adders)
        cache, hooks = self.model.new_cache(len(ids)), recorder_hooks(recorder)
        first = max(self.hold, len(context))
        self.read(self.engine, ids[:first], cache, sums, wanted[:first], hooks)
        for end in range(first, len(ids), self.hold):
            block = slice(end, end + self.hold)
            selection = recorder.core()
            self.read(self.engine.restrict(selection), ids[block], cache, sums, wanted[block])
            if selection is not None:
                cache.length = end
                self.engine.prefill(np.array(ids[block]), cache, hooks)
        return sums.likelihood[0]

    def read(
        self,
        backend: Backend,
        ids: Sequence[int],
        cache: KVCache,
        sums: Sums,
        targets: Sequence[int],
        hooks: Hooks | None = None,
    ) -> None:
        """Read ids on a cache, chunk by chunk, and score what each one's successor was."""
        for start in range(0, len(ids), CHUNK):
            chunk = slice(start, start + CHUNK)
            sums.add(backend.forward(np.array(ids[chunk]), cache, hooks), targets[chunk])


class Sums:
    """The log-likelihood of tokens so far, and whether each was the likeliest."""

    def __init__(self) -> None:
        self.nats, self.greedy = 0.0, True

    def add(self, logits: Array, targets: Sequence[int]) -> None:  # (n, n_vocab), (n,)
        """Add the tokens that came after n others; -1 is left out."""
        scored = np.array(targets) >= 0
        if not scored.any():
            return
        logits, ids = logits[scored], np.array(targets)[scored]
        log_probs = ops.log_softmax(logits)
        self.nats += float(log_probs[np.arange(len(ids)), ids].sum(dtype=np.float64))
        self.greedy &= bool((log_probs.argmax(axis=1) == ids).all())

    @property
    def likelihood(self) -> Likelihood:
        return self.nats, self.greedy
