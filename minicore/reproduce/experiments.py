"""The figures and tables of CoreInfer (2410.18311) that a small model can carry: a table of experiments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minicore.reproduce import (
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig8,
    fig9,
    fig11,
    fig12,
    table1,
    table2,
    table3,
    table4,
)
from minicore.reproduce.verdict import Findings


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper.

    Attributes
    ----------
    title : str
        What it shows.
    claim : str
        What the paper says about it.
    measure : callable
        From a :class:`~minicore.reproduce.material.Material` to :class:`Findings`. Its keywords are sizes.
        Intervals are 95% bootstrap intervals over texts unless it says otherwise.
    exclusive : bool
        Whether nothing else may run at the same time, since it measures speed.
    """

    title: str
    claim: str
    measure: Callable[..., Findings]
    exclusive: bool = False


EXPERIMENTS = {
    "fig2": Experiment(
        "Figure 2: what alpha and beta cost, and the sets of tokens in the plane",
        "Few neurons suffice: perplexity hardly rises when a token keeps the top 40% of its active neurons, "
        "or a text its 40% most frequent ones. The sets of one text's tokens gather.",
        fig2.measure,
    ),
    "fig3": Experiment(
        "Figure 3: meaning and core of a growing text",
        "Stability: as a fluent text grows, its core settles. It still moves below about 100 tokens, hardly "
        "at 200 to 300, and changes as little as the meaning does.",
        fig3.measure,
    ),
    "fig4": Experiment(
        "Figure 4: sentence-wise sets by topic",
        "Similarity: texts with close meaning have close core neurons. Topics form clusters, more clearly in "
        "deeper layers.",
        fig4.measure,
    ),
    "fig5": Experiment(
        "Figure 5: dense and core text side by side",
        "Text written by core neurons reads like text written by all neurons.",
        fig5.measure,
    ),
    "fig6": Experiment(
        "Figure 6: quality against beta and gamma",
        "Quality hardly falls down to 0.2 for extraction and question answering, 0.4 for translation.",
        fig6.measure,
    ),
    "fig8": Experiment(
        "Figure 8: stability in every layer",
        "The core settles in all layers.",
        fig8.measure,
    ),
    "fig9": Experiment(
        "Figure 9: similarity in every layer",
        "Texts on one topic have closer core neurons than texts on two, more clearly in deeper layers.",
        fig9.measure,
    ),
    "fig11": Experiment(
        "Figure 11: what is in a cluster",
        "Texts whose core neurons cluster together are about one subject.",
        fig11.measure,
    ),
    "fig12": Experiment(
        "Figure 12: the frequency of all neurons",
        "A few neurons are core neurons of most tokens; most neurons are core neurons of few tokens or none.",
        fig12.measure,
    ),
    "table1": Experiment(
        "Table 1: core-neuron similarity against human similarity",
        "Spearman's rho on STS-B and SICK: OPT-6.7B .56 and .42, OPT-13B .52 and .41, OPT-30B .53 and .45, "
        "LLaMA2-7B .66 and .49, LLaMA3.1-8B .65 and .51.",
        table1.measure,
    ),
    "table2": Experiment(
        "Table 2: quality after settled and short prompts",
        "Decoding with core neurons costs tasks little: stability-guided after few-shot prompts, "
        "similarity-guided after zero-shot ones. Here perplexity and agreement stand in for task scores.",
        table2.measure,
    ),
    "table3": Experiment(
        "Table 3 and figure 7: speed and memory",
        "OPT-6.7B on a TITAN XP with 12 GB: Transformers, which offloads, decodes 1.92 tokens/s, CoreInfer "
        "19.83. Where the model fits in memory the gain is 1.4 to 1.65.",
        table3.measure,
        exclusive=True,
    ),
    "table4": Experiment(
        "Table 4: stability-guided prediction forced on short prompts",
        "The set of a short prompt has not settled: it costs much more than the set of the prompt's cluster.",
        table4.measure,
    ),
}
