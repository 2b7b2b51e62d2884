"""Texts with each token on the colour of a neuron's activation."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.textpath import TextPath

from minicore.errors import InputError
from minicore.plots.axes import add_colorbar, ink, new_axes, numbers, readable_on, same_length, scale

Array = np.ndarray

LINE = 2.7  # height of a line of text, in widths of a character
CHARACTER = 6.2 / 72  # inches that a character is wide in a figure of our own


def text_activations(
    tokens: Sequence[str],
    values: Any,
    *,
    width: int = 72,
    vmax: float | None = None,
    label: str = "activation",
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Write a text with each token on the colour of a neuron's activation.

    Parameters
    ----------
    tokens : (n_tokens,) sequence of str
        The text, in pieces. Line breaks show as ↵ and break the line; what the font lacks shows as □.
    values : (n_tokens,) array
        The neuron's activations, or any number a token.
    width : int
        Characters to a line.
    vmax : float or None
        Where the colours end; None is the largest magnitude.
    label : str
        What the values are, for the colour bar.
    ax : Axes or None
        Where to write, as large as fits; None makes a figure of the size that the text needs.
    colorbar : bool
        Whether to draw one under the text.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If there is not one number, and no NaN, for each token.

    Examples
    --------
    >>> ax = text_activations(["The", " cat", " sat"], [0.0, 3.5, 0.2])
    >>> ax.collections[0].get_array()
    masked_array(data=[0. , 3.5, 0.2],
                 mask=False,
           fill_value=1e+20)
    """
    values = numbers("values", values, "(n_tokens,)")
    same_length("tokens", tokens, len(values), "values")
    if width < 8:
        raise InputError(f"width is {width}, expected at least 8 characters to a line")
    pieces, x, line = [], 0, 0
    for i, token in enumerate(tokens):
        for text in wrapped(printable(token, text_font()), width):
            if x and x + columns(text) > width:
                x, line = 0, line + 1
            pieces.append((x, line, text, i))
            x += columns(text)
        if token.endswith("\n"):
            x, line = 0, line + 1
    ax = page(ax, width, line + 1, colorbar)
    write(
        ax,
        pieces,
        values,
        scale(ax, values, vmax),
        (0, -(line + 2) * LINE, min(30, width)) if colorbar else None,
        label,
    )
    return ax


def top_snippets(
    tokens: Sequence[Sequence[str]],
    values: Sequence[Any],
    *,
    n: int = 8,
    width: int = 72,
    ax: Axes | None = None,
) -> Axes:
    """Write the places where a neuron is most active, a line each, strongest first.

    Parameters
    ----------
    tokens : (n_texts,) sequence of sequence of str
        Texts in pieces.
    values : (n_texts,) sequence of (n_tokens,) array
        The neuron's activations in each.
    n : int
        Lines, fewer where the texts hold fewer. No line shows the peak of another.
    width : int
        Characters to a line; the tokens around the peak fill it.
    ax : Axes or None
        Where to write, as large as fits; None makes a figure of the size that the text needs.

    Returns
    -------
    Axes
        The activation at the peak, and the peak, framed, among its neighbours.

    Raises
    ------
    InputError
        If there is not one number, and no NaN, for each token.

    Examples
    --------
    >>> ax = top_snippets([["a", " cat"], ["the", " dog", " ran"]], [[0.0, 1.0], [0.1, 4.0, 0.3]], n=2)
    >>> ax.collections[0].get_array().max()
    np.float64(4.0)
    """
    same_length("values", values, len(tokens), "texts")
    if n < 1 or width < 24 or not len(tokens):
        raise InputError(f"n is {n}, width {width}, texts {len(tokens)}; expected at least 1, 24 and 1")
    given = [numbers(f"values of text {i}", one, "(n_tokens,)") for i, one in enumerate(values)]
    texts = [[printable(token, text_font()) for token in text] for text in tokens]
    for i, (text, one) in enumerate(zip(texts, given, strict=True)):
        same_length(f"values of text {i}", one, len(text), "tokens")
    peaks = sorted(
        ((i, at) for i, one in enumerate(given) for at in range(len(one))), key=lambda p: -given[p[0]][p[1]]
    )
    pieces: list[tuple[int, int, str, int]] = []
    drawn: list[float] = []
    frames: list[Rectangle] = []
    shown: set[tuple[int, int]] = set()
    line = 0
    digits = int(np.clip(2 - math.floor(math.log10(max(abs(one).max() for one in given) or 1)), 0, 6))
    for i, at in peaks:
        first, last = around(texts[i], at, width - 12)
        if line == n or (i, at) in shown:
            continue
        shown |= {(i, j) for j in range(first, last + 1)}
        x = 11
        pieces.append((0, line, f"{given[i][at]:9.{digits}f}", -1))
        for j in range(first, last + 1):
            piece = texts[i][j][: width - x]
            frames += [cell(x, line, piece)] if j == at else []
            pieces.append((x, line, piece, len(drawn)))
            drawn.append(given[i][j])
            x += columns(piece)
        line += 1
    ax = page(ax, width, line, False)
    coloured = np.array(drawn)
    write(ax, pieces, coloured, scale(ax, coloured), None)
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=ink(ax), linewidth=1.2))
    ax.set_title("activation   at the framed token", loc="left", fontsize=9)
    return ax


def around(text: Sequence[str], at: int, width: int) -> tuple[int, int]:
    """Return the first and last token of the longest stretch about a token that fits, left before right."""
    first = last = at
    room, grown = width - columns(text[at]), True
    while grown:
        grown = False
        for step in (first - 1, last + 1):
            if 0 <= step < len(text) and columns(text[step]) <= room:
                first, last = min(first, step), max(last, step)
                room, grown = room - columns(text[step]), True
    return first, last


def page(ax: Axes | None, width: int, n_lines: int, bar: bool) -> Axes:
    """Return axes without a frame whose unit is the width of a character, with room for n lines."""
    height = LINE * (n_lines + (2 if bar else 0))
    if ax is None:
        ax = new_axes(width * CHARACTER + 0.3, height * CHARACTER + (0.45 if bar else 0.4))
    ax.set(xlim=(0, width), ylim=(-height, 0), aspect="equal", anchor="NW")
    ax.set_axis_off()
    return ax


def write(
    ax: Axes,
    pieces: Sequence[tuple[int, int, str, int]],
    values: Array,
    colours: dict[str, Any],
    bar: tuple[float, float, float] | None,
    label: str = "activation",
) -> None:
    """Write pieces of text (column, line, text, which value or -1), each on the colour of its value.

    The letters are drawn as outlines in the axes' own unit: they keep their places whatever becomes of the
    size of the axes.
    """
    norm = Normalize(colours["vmin"], colours["vmax"])
    cells = [cell(x, line, text) for x, line, text, which in pieces if which >= 0]
    boxes = PatchCollection(cells, cmap=colours["cmap"], norm=norm, linewidth=0)
    boxes.set_array(np.array([values[which] for *_, which in pieces if which >= 0]))
    ax.add_collection(boxes)
    font = text_font()
    size = 100 / get_width(font)
    for x, line, text, which in pieces:
        if not text.strip():
            continue  # nothing to see, and no path
        colour = ink(ax) if which < 0 else readable_on(colours["cmap"](norm(values[which])))
        letters = TextPath((x, -(line + 0.68) * LINE), text.replace("$", r"\$"), size=size, prop=font)
        ax.add_patch(PathPatch(letters, facecolor=colour, linewidth=0))
    if bar is not None:
        below = ax.inset_axes((*bar, 1), transform=ax.transData)
        mappable = ScalarMappable(norm, colours["cmap"])
        add_colorbar(ax, mappable, label, cax=below, orientation="horizontal")


def cell(x: int, line: int, text: str) -> Rectangle:
    """Return the box behind a piece of text."""
    return Rectangle((x, -(line + 0.97) * LINE), columns(text), LINE * 0.94)


def get_width(font: FontProperties) -> float:
    """Return how wide a character is at size 100 in the monospace font."""
    file = get_font(findfont(font))
    file.set_size(100, 72)
    return file.load_char(ord("0")).linearHoriAdvance / 65536


def text_font() -> FontProperties:
    """Return the monospace font in use."""
    return FontProperties(family="monospace")


def plain_font() -> FontProperties:
    """Return the font of labels in use."""
    return FontProperties()


def printable(token: str, font: FontProperties) -> str:
    """Return a token without line breaks or tabs, and □ for what the font has no picture of."""
    text = token.replace("\r\n", "\n").replace("\n", "↵").replace("\t", "→")
    file = get_font(findfont(font))
    return "".join(c if file.get_char_index(ord(c)) else "□" for c in text)


def columns(text: str) -> int:
    """Return how many characters wide a text is, at least one: wide East Asian characters count twice."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return max(1, len(text) + wide)


def wrapped(text: str, width: int) -> list[str]:
    """Cut a piece that alone is wider than a line; an empty one stays one piece."""
    return [text[i : i + width] for i in range(0, len(text), width)] or [""]
