"""``minicore bench``: how fast a machine decodes and reads prompts, compared with what its memory allows.

:class:`Plan` says what is measured, :func:`measure` does it and returns the report. Results come first: a
setting whose logits are not those of the NumPy reference ends the run before anything is timed.

Other work on a machine, and the states its memory goes through, change speeds by more than most
improvements do. So settings are interleaved: each runs once per round, in a random order, right after the
bandwidth was measured with as many threads. What is compared is compared within a round, and the report has
medians and quartiles over rounds.
"""

from minicore.bench.plan import Plan
from minicore.bench.run import measure
from minicore.bench.validation import WrongResult

__all__ = ["Plan", "WrongResult", "measure"]
