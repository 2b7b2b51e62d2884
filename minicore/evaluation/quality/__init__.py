"""What a core set costs in perplexity, compared with dense: ``minicore eval quality``.

``settings`` holds the configuration, ``measurement`` measures one passage, ``hot_sets`` reads other texts,
``storage`` keeps rows on disk, ``summary`` computes means and intervals, and ``study`` runs it all.
"""

from minicore.evaluation.quality.measurement import Reading, Row  # noqa: F401
from minicore.evaluation.quality.settings import DENSE, Conditions, Setting, grid  # noqa: F401
from minicore.evaluation.quality.storage import Rows, write_report  # noqa: F401
from minicore.evaluation.quality.study import evaluate, study  # noqa: F401
from minicore.evaluation.quality.summary import summarise  # noqa: F401
