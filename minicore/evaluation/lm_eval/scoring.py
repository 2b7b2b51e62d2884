"""Log-likelihoods with core neurons: of continuations of a context, and of whole texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minicore import ops
from minicore.backends import Backend
from minicore.core.recorder import Recorder
from minicore.errors import InputError
from minicore.forward import Hooks
from minicore.generation.prediction import record, recorder_hooks
from minicore.kv_cache import KVCache

Array = np.ndarray

CHUNK = 256  # tokens read at a time: logits stay (256, n_vocab)
NOT_SCORED = -1  # a target that is skipped
Likelihood = tuple[float, bool]  # nats, and whether every token was the most likely one


class Scorer:
    """Scores token ids with the neurons that the ids before them predict.

    Parameters
    ----------
    backend : Backend
        The model on a backend.
    new_recorder : callable
        Returns a fresh recorder of the predictor.
    hold : int
        Tokens of a whole text after which neurons are selected again.
    """

    def __init__(self, backend: Backend, new_recorder: Callable[[], Recorder], hold: int) -> None:
        self.backend, self.new_recorder, self.hold = backend, new_recorder, hold

    def score(
        self, context: Sequence[int], continuations: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Likelihood]:
        """Return each continuation's likelihood, with the neurons that the context predicts.

        Raises
        ------
        InputError
            If the predictor reads the continuation, which is no prediction.

        Examples
        --------
        >>> import minicore as mc
        >>> from minicore.backends import make_backend
        >>> from minicore.generation.prediction import make_recorder
        >>> model = mc.load("minicore-opt-core")
        >>> scorer = Scorer(make_backend(model), lambda: make_recorder(model, "stability"), hold=256)
        >>> [(ids, (nats, _))] = scorer.score([5, 6, 7], [(8, 9)]).items()
        >>> ids, nats < 0
        ((8, 9), True)
        """
        recorder = self.new_recorder()
        if recorder.row.needs_continuation:
            raise InputError(f"predictor {recorder.predictor} reads what is scored, which is no prediction")
        n = len(context)
        cache = self.backend.model.new_cache(n + max(len(ids) for ids in continuations) - 1)
        first = record(self.backend, context, recorder, cache)  # (n_vocab,)
        restricted, found = self.backend.restrict(recorder.core()), {}
        for ids in continuations:
            cache.rewind(n)
            total = LogLikelihood()
            total.add(first[None], ids[:1])
            read(restricted, ids[:-1], ids[1:], cache, total)
            found[ids] = total.value
        return found

    def roll(self, context: Sequence[int], targets: Sequence[int]) -> float:
        """Return the log-likelihood of the targets, which follow the context, in nats.

        The first ``hold`` tokens are scored densely, as there is nothing yet to predict from. Then, ``hold``
        tokens at a time, the next ones are scored with the neurons that all tokens before them predict, and
        read densely to predict the next.

        Raises
        ------
        InputError
            If the predictor needs to know where a prompt ends, which a whole text does not have.

        Examples
        --------
        >>> import minicore as mc
        >>> from minicore.backends import make_backend
        >>> from minicore.generation.prediction import make_recorder
        >>> model = mc.load("minicore-opt-core")
        >>> scorer = Scorer(make_backend(model), lambda: make_recorder(model, "griffin"), hold=2)
        >>> scorer.roll([5], [6, 7, 8, 9]) < 0
        True
        """
        recorder = self.new_recorder()
        if recorder.row.needs_continuation or recorder.row.checks_stability or recorder.window:
            raise InputError(
                f"predictor {recorder.predictor} needs to know where a prompt ends, and rolling has no prompt"
            )
        ids, total = [*context, *targets][:-1], LogLikelihood()
        wanted = [NOT_SCORED] * (len(context) - 1) + list(targets)
        recorder.start(None, self.backend.adders)
        cache, hooks = self.backend.model.new_cache(len(ids)), recorder_hooks(recorder)
        first = max(self.hold, len(context))
        read(self.backend, ids[:first], wanted[:first], cache, total, hooks)
        for end in range(first, len(ids), self.hold):
            block = slice(end, end + self.hold)
            selection = recorder.core()
            read(self.backend.restrict(selection), ids[block], wanted[block], cache, total)
            if selection is not None:
                cache.rewind(end)
                self.backend.prefill(np.array(ids[block]), cache, hooks)
        return total.nats


def read(
    backend: Backend,
    ids: Sequence[int],
    targets: Sequence[int],
    cache: KVCache,
    total: LogLikelihood,
    hooks: Hooks | None = None,
) -> None:
    """Read ids into a cache, chunk by chunk, and add the log-likelihood of the ids that follow each."""
    for start in range(0, len(ids), CHUNK):
        chunk = slice(start, start + CHUNK)
        total.add(backend.forward(np.array(ids[chunk]), cache, hooks), targets[chunk])


class LogLikelihood:
    """The log-likelihood of tokens so far, in nats, and whether each was the most likely one."""

    def __init__(self) -> None:
        self.nats, self.greedy = 0.0, True

    def add(self, logits: Array, targets: Sequence[int]) -> None:  # (n, n_vocab), (n,)
        """Add the targets of n logits, without those that are NOT_SCORED."""
        scored = np.array(targets) != NOT_SCORED
        if not scored.any():
            return
        logits, ids = logits[scored], np.array(targets)[scored]
        log_probs = ops.log_softmax(logits)
        self.nats += float(log_probs[np.arange(len(ids)), ids].sum(dtype=np.float64))
        self.greedy &= bool((log_probs.argmax(axis=1) == ids).all())

    @property
    def value(self) -> Likelihood:
        """Nats, and whether every token was the most likely one."""
        return self.nats, self.greedy
