"""What a core set costs in perplexity: settings, conditions, measurement, rows on disk, summary."""

from minicore.evaluation.quality.measurement import (  # noqa: F401
    Conditions,
    Reading,
    Row,
    Rows,
    Setting,
    evaluate,
    grid,
    key_of,
    read_others,
    reading_backend,
    study,
    write_report,
)
