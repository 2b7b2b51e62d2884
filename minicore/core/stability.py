"""Stability of a sentence's core set: the sets of growing prefixes, and a test that needs only the prompt.

The paper observes that core sets settle as a text grows (2410.18311 secs. 3.2 and 4.1), but gives no numeric
test. The test here predicts the recall of the prompt's set against C_alpha^beta([s, g]), the set of prompt
and continuation. It uses the similarity of the sets of three growing prefixes of the prompt, and the prompt's
length.

The constants are calibrated on SmolLM2-135M-Instruct (Q4_1 file, float32, all 30 layers, alpha 0.4). The
texts are novels, WikiText-2, SciTLDR abstracts, questions with answers, and German sentences with English
translations (150,000 characters of each). There are 96 passages with prompts of 16 to 256 tokens and
continuations of 128 tokens; half of them start with the text of another passage. The commands are

    python scripts/stability_texts.py DATA -o TEXTS
    minicore eval stability TEXTS/{novel,wiki,nq,tr,sci}.txt -m smollm2-135m --passages 96

The second command fits the constants on half of the passages. On the other half (240 prompts) the error of
the predicted recall is 0.026 (root mean square), and the test is right for 92% of the prompts about whether
recall reaches 0.8, which it does for half of them. Length alone is nearly as good (0.027, 90%), similarity
alone is worse (0.040, 89%): recall depends mostly on the length of the prompt. Among prompts of one length,
similarity separates good ones from bad ones (correlation with recall 0.26 at 16 tokens, 0.58 at 64, 0.74 at
256). Another model, alpha or length of continuation needs another calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minicore.core.neurons import check_fraction, core_from_scores, jaccard, token_core
from minicore.errors import InputError

Array = np.ndarray

GROWTH = (0.5, 0.75, 1.0)  # the test compares the sets of these fractions of the prompt
SHORTEST = 8  # tokens; in shorter prompts the prefixes differ by at most one token
TEST_BETA = 0.4  # beta of the sets that the test compares, independent of the beta of decoding
WANTED = 0.8  # the predicted recall from which on a set counts as stable
# recall = CONSTANT + SCORE * similarity + DOUBLING * log2(n_tokens)
CONSTANT, SCORE, DOUBLING = 0.007, 0.660, 0.0459


def prefix_counts(a: Array, alpha: float, lengths: Sequence[int]) -> Array:
    # (n_tokens, n_neurons) -> (n_lengths, n_neurons) int64
    """Return f_alpha (eq. 3) of prefixes of the given lengths, in one pass over the tokens.

    Raises
    ------
    InputError
        If the lengths are not ascending or not within 0 to n_tokens, and as :func:`token_core`.

    Examples
    --------
    >>> prefix_counts(np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 4.0]]), alpha=0.5, lengths=[1, 3])
    array([[1, 0],
           [1, 2]])
    """
    lengths = list(lengths)
    if not all(0 <= one <= other for one, other in zip([0, *lengths], [*lengths, len(a)], strict=True)):
        raise InputError(f"lengths are {lengths}, expected ascending lengths within 0 to {len(a)}")
    core, counts = token_core(a, alpha), np.zeros((len(lengths), a.shape[1]), np.int64)
    running, start = np.zeros(a.shape[1], np.int64), 0
    for row, end in zip(counts, lengths, strict=True):
        running += core[start:end].sum(axis=0)
        row[:], start = running, end
    return counts


def prefix_cores(a: Array, alpha: float, beta: float, lengths: Sequence[int]) -> list[Array]:
    # (n_tokens, n_neurons) -> n_lengths of int32 (n_core,)
    """Return the core set of each prefix: ``sentence_core(a[:length], alpha, beta)``.

    Examples
    --------
    >>> prefix_cores(np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 4.0]]), alpha=0.5, beta=0.5, lengths=[1, 3])
    [array([0], dtype=int32), array([1], dtype=int32)]
    """
    return [core_from_scores(counts, beta) for counts in prefix_counts(a, alpha, lengths)]


def stability_curve(a: Array, alpha: float, beta: float, lengths: Sequence[int]) -> Array:
    # (n_tokens, n_neurons) -> (n_lengths - 1,) float64
    """Return the Jaccard similarity of each prefix's core set and the next longer prefix's (fig. 3b).

    Examples
    --------
    >>> a = np.array([[3.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 1.0]])
    >>> stability_curve(a, alpha=0.5, beta=0.5, lengths=[1, 2, 5])
    array([1., 0.])
    """
    cores = prefix_cores(a, alpha, beta, lengths)
    return np.array([jaccard(one, other) for one, other in zip(cores, cores[1:], strict=False)])


def growth_marks(n_tokens: int) -> list[int]:
    """Return the lengths of the prefixes that :func:`is_stable` compares; none if the prompt is too short.

    Examples
    --------
    >>> growth_marks(100), growth_marks(7)
    ([50, 75, 100], [])
    """
    return [int(share * n_tokens) for share in GROWTH] if n_tokens >= SHORTEST else []


def similarity(counts: Sequence[Array]) -> float:  # n_steps of (n_layers, n_neurons) -> in [0, 1]
    """Return the mean Jaccard similarity of the core sets of consecutive prefixes, over prefixes and layers.

    ``counts`` are f_alpha of the growing prefixes, shortest first. Their sets keep ``TEST_BETA``.

    Examples
    --------
    >>> one, two = np.array([[3, 2, 1, 0, 0]]), np.array([[5, 2, 4, 1, 0]])
    >>> similarity([one, two])  # 0 and 1, then 0 and 2
    0.3333333333333333
    """
    sets = [[core_from_scores(layer, TEST_BETA) for layer in prefix] for prefix in counts]
    pairs = [
        (one, other)
        for shorter, longer in zip(sets, sets[1:], strict=False)
        for one, other in zip(shorter, longer, strict=True)
    ]
    return float(np.mean([jaccard(one, other) for one, other in pairs]))


def is_stable(counts: Sequence[Array], n_tokens: int, wanted: float = WANTED) -> Verdict:
    """Predict from the prompt whether its core set will be right for the continuation.

    Parameters
    ----------
    counts : sequence of (n_layers, n_neurons) array
        f_alpha of the prefixes with the lengths of :func:`growth_marks`, shortest first; may be empty.
    n_tokens : int
        Length of the prompt.
    wanted : float
        Recall against C_alpha^beta([s, g]) from which on a set counts as stable.

    Examples
    --------
    >>> settled = [np.array([[9, 8, 0, 0, 0]])] * 3
    >>> print(is_stable(settled, n_tokens=256))
    stable: similarity of growing prefixes 1.000, predicted recall 1.00, required 0.80
    """
    check_fraction("wanted recall", wanted)
    if not len(counts):
        return Verdict(False, float("nan"), float("nan"), wanted)
    score = similarity(counts)
    recall = min(max(CONSTANT + SCORE * score + DOUBLING * float(np.log2(n_tokens)), 0.0), 1.0)
    return Verdict(recall >= wanted, score, recall, wanted)


@dataclass(frozen=True)
class Verdict:
    """The result of the stability test.

    Attributes
    ----------
    stable : bool
        Whether ``recall`` reaches ``wanted``.
    score : float
        Mean Jaccard similarity of the sets of consecutive prefixes; NaN if the prompt is too short.
    recall : float
        Predicted recall of the prompt's set against C_alpha^beta([s, g]).
    wanted : float
        The required recall.
    """

    stable: bool
    score: float
    recall: float
    wanted: float

    def __bool__(self) -> bool:
        return self.stable

    def __str__(self) -> str:
        if np.isnan(self.score):
            return f"the prompt has fewer than {SHORTEST} tokens, too few to test its stability"
        stable = "stable" if self.stable else "not stable"
        return (
            f"{stable}: similarity of growing prefixes {self.score:.3f}, predicted recall "
            f"{self.recall:.2f}, required {self.wanted:.2f}"
        )
