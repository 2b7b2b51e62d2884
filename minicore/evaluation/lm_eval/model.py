"""The harness's view of a minicore model: texts in, log-likelihoods and generations out."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import minicore
from minicore.backends import make_backend
from minicore.core.recorder import Recorder
from minicore.errors import InputError
from minicore.evaluation.lm_eval.scoring import Likelihood, Scorer
from minicore.generation.options import with_recommended
from minicore.generation.prediction import make_recorder

SAMPLING = ("temperature", "top_k", "top_p")


@register_model("minicore")
class MinicoreLM(TemplateLM):
    """A minicore model with the interface of the harness.

    Parameters
    ----------
    model : str
        A name, a Hugging Face directory or a .gguf file.
    dtype, backend : str or None
        See :func:`minicore.load` and :func:`minicore.generation.stream.stream`.
    predictor, alpha, beta, layers, **options
        How neurons are chosen, see :func:`minicore.generation.prediction.make_recorder`. What is not given
        is what the checkpoint recommends, else dense.
    max_length : int or None
        Most tokens of context and continuation; None is the model's context.
    hold : int
        Tokens after which ``loglikelihood_rolling`` selects neurons again.
    seed : int
        Random seed of random sets and of sampling.
    adapter, activation : str or None
        Directory of a LoRA adapter, and the FFN's activation, see :func:`minicore.load`.
    batch_size, max_batch_size, device
        Ignored; the harness passes them. Prompts are read one at a time, on the CPU.

    Raises
    ------
    InputError
        If the model cannot be read, or an option is out of range.
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
        adapter: str | None = None,
        activation: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = minicore.load(model, dtype=dtype, adapter=adapter, activation=activation)
        if self.model.tokenizer is None:
            raise InputError(f"{self.model.source} has no tokenizer, which the harness's texts need")
        self.text = self.model.tokenizer  # the harness's `tokenizer` is one of Transformers
        self.max_length = max_length or self.model.config.n_ctx
        if not 1 < self.max_length <= self.model.config.n_ctx or hold < 1:
            raise InputError(
                f"max_length is {max_length} and hold {hold}, expected 2 to {self.model.config.n_ctx} and 1 "
                "or more"
            )
        advice = with_recommended(self.model, predictor, alpha, beta, layers)
        self.options = dict(zip(("predictor", "alpha", "beta", "layers"), advice, strict=True)) | options
        self.backend_name, self.seed = backend, seed
        self.new_recorder()  # reports a wrong option at once
        self.scorer = Scorer(make_backend(self.model, backend), self.new_recorder, hold)

    def new_recorder(self) -> Recorder:
        return make_recorder(self.model, **self.options, seed=self.seed)

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
        # a text that begins with the prefix token already gets no second one
        twice = add_special_tokens is None and ids[:2] == [self.prefix_token_id] * 2
        return ids[1:] if twice else ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.text.render_chat(chat_history, add_generation_prompt)

    # --- requests ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop text, decoding with the context's core neurons."""
        found = []
        for context, given in tqdm([request.args for request in requests], disable=disable_tqdm):
            options = dict(normalize_gen_kwargs(given, default_max_gen_toks=256))
            n_new, stop = options.pop("max_gen_toks"), handle_stop_sequences(options.pop("until"), eos=None)
            sampled = options.pop("do_sample")
            sampling = {key: options.pop(key) for key in SAMPLING if key in options}
            if options:
                raise InputError(f"minicore does not know the generation option {', '.join(options)}")
            if n_new >= self.max_length:
                raise InputError(f"max_gen_toks is {n_new}, the context holds {self.max_length} tokens")
            out = self.model.generate(
                self.tok_encode(context)[n_new - self.max_length :],
                max_new_tokens=n_new,
                stop=[text for text in stop if text],
                backend=self.backend_name,
                seed=self.seed,
                **self.options,
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
        """Score continuations; each context is read once for all of its continuations."""
        asked: dict[tuple[int, ...], dict[tuple[int, ...], Likelihood]] = {}
        places = []
        for _texts, context, continuation in requests:
            whole = (context + continuation)[-(self.max_length + 1) :]  # the harness cuts on the left too
            at = len(whole) - len(continuation)
            if at < 1:
                raise InputError(
                    f"a continuation of {len(continuation)} tokens does not fit into {self.max_length}"
                )
            places.append((tuple(whole[:at]), tuple(whole[at:])))
            asked.setdefault(places[-1][0], {})[places[-1][1]] = (0.0, False)
        for context, scores in tqdm(asked.items(), disable=disable_tqdm):
            scores |= self.scorer.score(context, list(scores))
        found = [asked[context][continuation] for context, continuation in places]
        for (texts, _a, _b), one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, one)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood, read in the harness's windows, see :meth:`Scorer.roll`."""
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            total = sum(self._roll(window) for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def _roll(self, window: tuple[list[int], list[int]]) -> float:
        context, targets = make_disjoint_window(window)
        return self.scorer.roll(context, targets)
