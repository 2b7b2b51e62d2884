"""Metrics of answers: ROUGE, BLEU and chrF by the usual libraries, exact match and F1 as SQuAD defines them.

A metric computes statistics of each answer, which add up over examples, and a score of their sum. So a
bootstrap can resample examples without scoring any text twice, for averages and for BLEU of a corpus alike.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minicore.errors import InputError
from minicore.evaluation.tasks.readers import NUMBER, Example

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.base import Metric as SacreMetric

Array = np.ndarray

Stats = Callable[[str, Example], Sequence[float]]


def average(x: Array) -> Array:  # (..., 2) -> (...)
    """Return the mean in percent of (sum, count)."""
    return 100 * x[..., 0] / x[..., 1]


class Metric(NamedTuple):
    """A row of the table: the statistics of an answer, and the score, 0 to 100, of their (..., k) sum."""

    stats: Stats
    score: Callable[[Array], Array] = average


def mean_of(score: Callable[[str, Example], float]) -> Metric:
    """Return the metric that is the mean of each answer's own score, 0 to 1."""
    return Metric(lambda answer, example: (score(answer, example), 1.0))


# --- questions ---


def normalise(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it: no case, ASCII punctuation, articles or extra space.

    Examples
    --------
    >>> normalise("The  Eiffel Tower!")
    'eiffel tower'
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, example: Example) -> float:
    """Return whether the answer is one of the references (1606.05250 sec. 6.1).

    Examples
    --------
    >>> example = Example("1", "a.jsonl, line 1", {}, references=("the Eiffel Tower", "Eiffel Tower"))
    >>> exact_match("eiffel tower.", example)
    1.0
    """
    return float(normalise(answer) in map(normalise, example.references))


def f1(answer: str, example: Example) -> float:
    """Return the best word overlap with a reference; two empty texts have 1, as in SQuAD 2.0.

    Examples
    --------
    >>> example = Example("1", "a.jsonl, line 1", {}, references=("the Eiffel Tower", "Eiffel Tower"))
    >>> f1("It is the tall Eiffel Tower", example)  # two of five words, and all of the reference
    0.5714285714285714
    """
    return max(_f1(normalise(answer).split(), normalise(right).split()) for right in example.references)


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    common = sum((Counter(words) & Counter(right)).values())
    return 2 * common / (len(words) + len(right))  # the harmonic mean of common / each length


def contains(answer: str, example: Example) -> float:
    """Return whether the answer contains a reference, word for word.

    Examples
    --------
    >>> example = Example("1", "a.jsonl, line 1", {}, references=("the Eiffel Tower", "Eiffel Tower"))
    >>> contains("It is the Eiffel Tower.", example), contains("It is a tower.", example)
    (1.0, 0.0)
    """
    words = f" {normalise(answer)} "
    return float(any(f" {normalise(right)} " in words for right in example.references if normalise(right)))


def number(answer: str, example: Example) -> float:
    """Return whether the last number of the answer is the reference.

    Examples
    --------
    >>> number("4 + 3 = 7, so 7.0.", Example("1", "a.jsonl, line 1", {}, references=("7",)))
    1.0
    """
    found = [float(number.replace(",", "")) for number in NUMBER.findall(answer)]
    right = [float(reference.replace(",", "")) for reference in example.references]
    return float(bool(found) and found[-1] in right)


def bleu_max(answer: str, example: Example) -> float:
    """Return the best sentence BLEU with a right answer (TruthfulQA, 2109.07958)."""
    return max(_bleu(answer, right) for right in example.references)


def bleu_truer(answer: str, example: Example) -> float:
    """Return whether :func:`bleu_max` is more than the BLEU with any wrong answer (TruthfulQA)."""
    return float(bleu_max(answer, example) > max(_bleu(answer, wrong) for wrong in example.wrong))


def _bleu(answer: str, right: str) -> float:
    return sacrebleu("BLEU", tokenize="intl").corpus_score([answer], [[right]]).score / 100


# --- texts ---


def rouge(kind: str) -> Metric:
    """Return the mean F measure of ROUGE (rouge-score, stemmed) with the best reference."""

    def score(answer: str, example: Example) -> float:
        return float(rouge_scorer(kind).score_multi(example.references, answer)[kind].fmeasure)

    return mean_of(score)


@cache
def rouge_scorer(kind: str) -> RougeScorer:
    """Return a scorer of rouge-score."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise missing("rouge-score") from None
    return RougeScorer([kind], use_stemmer=True)


@cache
def sacrebleu(name: str, tokenize: str | None = None) -> SacreMetric:
    """Return a metric of sacrebleu, such as ``BLEU``; only BLEU takes a tokenizer."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise missing("sacrebleu") from None
    options = {} if tokenize is None else {"tokenize": tokenize}
    metric: SacreMetric = getattr(metrics, name)(**options)
    return metric


def missing(package: str) -> InputError:
    """Return the error that names a missing package."""
    return InputError(
        f"the scores need the package {package}, which is not installed: pip install 'minicore-lm[tasks]'"
    )


def corpus(name: str) -> Metric:
    """Return the metric that is sacrebleu's score of the whole corpus."""

    def stats(answer: str, example: Example) -> Sequence[float]:
        references = [[right] for right in example.references]
        return list(sacrebleu(name)._extract_corpus_statistics([answer], references)[0])

    def score(x: Array) -> Array:  # (..., k) -> (...)
        from_stats = sacrebleu(name)._compute_score_from_stats
        return np.apply_along_axis(lambda sums: from_stats([round(s) for s in sums]).score, -1, x)

    return Metric(stats, score)


METRICS = {
    "f1": mean_of(f1),
    "exact": mean_of(exact_match),
    "contains": mean_of(contains),
    "number": mean_of(number),
    "bleu_max": mean_of(bleu_max),
    "truer": mean_of(bleu_truer),
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
    "bleu": corpus("BLEU"),
    "chrf": corpus("CHRF"),
}


def statistics(name: str, answers: Sequence[str], examples: Sequence[Example]) -> Array:  # -> (n, k)
    """Return a metric's statistics of each answer."""
    stats = METRICS[name].stats
    pairs = zip(answers, examples, strict=True)
    return np.array([stats(answer, example) for answer, example in pairs], float)


def score(name: str, answers: Sequence[str], examples: Sequence[Example]) -> float:
    """Return a metric's score of answers, 0 to 100."""
    return float(METRICS[name].score(statistics(name, answers, examples).sum(axis=0)))
