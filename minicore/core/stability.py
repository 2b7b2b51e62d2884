"""How settled a sentence's core is: sets of growing prefixes, and a test on the prompt alone.

The paper observes that core sets settle as a text grows (2410.18311 secs. 3.2 and 4.1) and gives no number
to tell a settled one. The test here predicts the recall of the prompt's set against C_alpha^beta([s, g]),
the set of prompt and continuation, from how alike the sets of the prompt's last growth steps are, and from
its length.

The constants are calibrated on SmolLM2-135M-Instruct (Q4_1 file, float32, all 30 layers, alpha 0.4): 96
passages of novels, WikiText-2, SciTLDR abstracts and lists of questions with answers and of German sentences
with English ones (150,000 characters of each), prompts of 16 to 256 tokens, continuations of 128; half of
the passages begin with another passage's text. The commands are

    python scripts/stability_texts.py DATA -o TEXTS
    minicore eval stability TEXTS/{novel,wiki,nq,tr,sci}.txt -m smollm2-135m --passages 96

and the second fits half of the passages. On the other half (240 prompts) the recall told is off by 0.026
(root mean square), and whether it reaches 0.8 is told right for 92% of the prompts; for half of them it
does. The length alone does nearly as well (0.027, 90%), the similarity alone worse (0.040, 89%): recall is
mostly a matter of how long the prompt is, and among prompts of one length similarity tells the better ones
from the worse (correlation with recall 0.26 at 16 tokens, 0.58 at 64, 0.74 at 256). Another model, alpha or
length of continuation asks for another calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minicore.core.neurons import check_fraction, core_from_scores, jaccard, token_core
from minicore.errors import InputError

Array = np.ndarray

GROWTH = (0.5, 0.75, 1.0)  # the shares of the prompt whose sets the test compares
SHORTEST = 8  # tokens; with fewer a growth step is one token or none
TEST_BETA = 0.4  # of the sets the test compares, whatever beta decodes
WANTED = 0.8  # recall of C([s, g]) that a set must be expected to have to count as stable
CONSTANT, SCORE, DOUBLING = (
    0.007,
    0.660,
    0.0459,
)  # recall = CONSTANT + SCORE * similarity + DOUBLING * log2(n)


def prefix_counts(a: Array, alpha: float, lengths: Sequence[int]) -> Array:
    # (n_tokens, n_neurons) -> (n_lengths, n_neurons) int64
    """Return f_alpha (eq. 3) of every prefix of the lengths given, ascending, in one pass over the tokens.

    Raises
    ------
    InputError
        If the lengths do not ascend or are not within 0 to n_tokens; as :func:`token_core`.

    Examples
    --------
    >>> prefix_counts(np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 4.0]]), alpha=0.5, lengths=[1, 3])
    array([[1, 0],
           [1, 2]])
    """
    lengths = list(lengths)
    if not all(0 <= one <= other for one, other in zip([0, *lengths], [*lengths, len(a)], strict=True)):
        raise InputError(f"lengths are {lengths}, expected ascending ones within 0 to {len(a)}")
    core, counts = token_core(a, alpha), np.zeros((len(lengths), a.shape[1]), np.int64)
    running, start = np.zeros(a.shape[1], np.int64), 0
    for row, end in zip(counts, lengths, strict=True):
        running += core[start:end].sum(axis=0)
        row[:], start = running, end
    return counts


def prefix_cores(a: Array, alpha: float, beta: float, lengths: Sequence[int]) -> list[Array]:
    # (n_tokens, n_neurons) -> n_lengths of int32 (n_core,)
    """Return the sentence-wise core of every prefix; each equals ``sentence_core(a[:length], ...)``.

    Examples
    --------
    >>> prefix_cores(np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 4.0]]), alpha=0.5, beta=0.5, lengths=[1, 3])
    [array([0], dtype=int32), array([1], dtype=int32)]
    """
    return [core_from_scores(counts, beta) for counts in prefix_counts(a, alpha, lengths)]


def stability_curve(a: Array, alpha: float, beta: float, lengths: Sequence[int]) -> Array:
    # (n_tokens, n_neurons) -> (n_lengths - 1,) float64
    """Return the similarity of each prefix's core set to its extension's, the next longer one (fig. 3b).

    Examples
    --------
    >>> a = np.array([[3.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 1.0]])
    >>> stability_curve(a, alpha=0.5, beta=0.5, lengths=[1, 2, 5])
    array([1., 0.])
    """
    cores = prefix_cores(a, alpha, beta, lengths)
    return np.array([jaccard(one, other) for one, other in zip(cores, cores[1:], strict=False)])


def growth_marks(n_tokens: int) -> list[int]:
    """Return the prefix lengths whose sets :func:`is_stable` compares; none for too short a prompt.

    Examples
    --------
    >>> growth_marks(100), growth_marks(7)
    ([50, 75, 100], [])
    """
    return [int(share * n_tokens) for share in GROWTH] if n_tokens >= SHORTEST else []


def similarity(counts: Sequence[Array]) -> float:  # n_steps of (n_layers, n_neurons) -> in [0, 1]
    """Return the mean Jaccard similarity of consecutive growth steps' core sets, over steps and layers.

    ``counts`` are f_alpha of the growing prefixes, shortest first; the sets are of ``TEST_BETA``.

    Examples
    --------
    >>> one, two = np.array([[3, 2, 1, 0, 0]]), np.array([[5, 2, 4, 1, 0]])
    >>> similarity([one, two])  # 0 and 1, then 0 and 2
    0.3333333333333333
    """
    sets = [[core_from_scores(layer, TEST_BETA) for layer in step] for step in counts]
    steps = zip(sets, sets[1:], strict=False)
    return float(np.mean([[jaccard(*pair) for pair in zip(*step, strict=True)] for step in steps]))


def is_stable(counts: Sequence[Array], n_tokens: int, wanted: float = WANTED) -> Verdict:
    """Say from a prompt alone whether its core set will still hold for the continuation.

    Parameters
    ----------
    counts : sequence of (n_layers, n_neurons) array
        f_alpha of the prefixes of :func:`growth_marks` lengths, shortest first; none if there are none.
    n_tokens : int
        Length of the prompt.
    wanted : float
        Recall against C_alpha^beta([s, g]) from which on a set counts as stable.

    Examples
    --------
    >>> settled = [np.array([[9, 8, 0, 0, 0]])] * 3
    >>> print(is_stable(settled, n_tokens=256))
    settled: similarity of the last growth steps 1.000, expected recall 1.00, wanted 0.80
    """
    check_fraction("wanted recall", wanted)
    if not len(counts):
        return Verdict(False, float("nan"), float("nan"), wanted)
    score = similarity(counts)
    recall = min(max(CONSTANT + SCORE * score + DOUBLING * float(np.log2(n_tokens)), 0.0), 1.0)
    return Verdict(recall >= wanted, score, recall, wanted)


@dataclass(frozen=True)
class Verdict:
    """What the stability test says of a prompt.

    Attributes
    ----------
    stable : bool
        Whether ``recall`` reaches what was asked for.
    score : float
        Mean Jaccard similarity of the sets of consecutive growth steps, over steps and layers; NaN for a
        prompt too short to tell.
    recall : float
        The recall against C_alpha^beta([s, g]) to expect of the prompt's set, from the calibration.
    wanted : float
        The recall asked for.
    """

    stable: bool
    score: float
    recall: float
    wanted: float

    def __bool__(self) -> bool:
        return self.stable

    def __str__(self) -> str:
        if np.isnan(self.score):
            return f"the prompt has fewer than {SHORTEST} tokens, too few to tell whether its set is settled"
        settled = "settled" if self.stable else "not settled"
        return (
            f"{settled}: similarity of the last growth steps {self.score:.3f}, expected recall "
            f"{self.recall:.2f}, wanted {self.wanted:.2f}"
        )
