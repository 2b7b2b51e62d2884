"""Plots: arrays in, matplotlib Axes out.

All functions take arrays or core sets and, as ``ax``, the Axes to draw on; without ``ax`` it makes a
figure. All return the Axes, and none shows or saves anything. The colors are safe for color-blind readers.
Text and background follow the matplotlib style in use, so dark styles give dark pictures.
"""

from minicore.plots.activations import activation_map, frequency_grid
from minicore.plots.axes import check_format, new_axes, save
from minicore.plots.quality import quality_curves, similarity_scatter
from minicore.plots.sets import (
    coordinates_over_length,
    embedding,
    overlap_matrix,
    stability_curves,
    timeline,
)
from minicore.plots.speed import bars, decode_speed, roofline
from minicore.plots.text import text_activations, top_snippets

__all__ = [
    "activation_map",
    "bars",
    "check_format",
    "coordinates_over_length",
    "decode_speed",
    "embedding",
    "frequency_grid",
    "new_axes",
    "overlap_matrix",
    "quality_curves",
    "roofline",
    "save",
    "similarity_scatter",
    "stability_curves",
    "text_activations",
    "timeline",
    "top_snippets",
]
