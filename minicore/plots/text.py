"""Texts in which the background of each token shows a neuron's activation."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
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
from minicore.plots.axes import (
    add_colorbar,
    check_length,
    checked_array,
    color_scale,
    new_axes,
    readable_on,
    text_color,
)

Array = np.ndarray

LINE = 2.7  # height of a line of text, in character widths
CHARACTER = 6.2 / 72  # width of a character in inches, in new figures


@dataclass(frozen=True)
class Piece:
    """A piece of text at a column and line; ``value`` is the index of its value, None for plain text."""

    column: int
    line: int
    text: str
    value: int | None


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
    """Draw a text in which the background of each token shows a neuron's activation.

    Parameters
    ----------
    tokens : (n_tokens,) sequence of str
        The text of each token. A line break is drawn as ↵ and starts a new line; characters that the font
        lacks are drawn as □.
    values : (n_tokens,) array
        The neuron's activations, or any other value per token.
    width : int
        Characters per line.
    vmax : float or None
        End of the color scale; None is the largest magnitude.
    label : str
        Name of the values, for the color bar.
    ax : Axes or None
        Axes to fill; None makes a figure that fits the text.
    colorbar : bool
        Whether to draw a color bar under the text.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If there is not exactly one finite value per token.

    Examples
    --------
    >>> ax = text_activations(["The", " cat", " sat"], [0.0, 3.5, 0.2])
    >>> ax.collections[0].get_array()
    masked_array(data=[0. , 3.5, 0.2],
                 mask=False,
           fill_value=1e+20)
    """
    values = checked_array("values", values, "(n_tokens,)")
    check_length("tokens", tokens, len(values), "values")
    if width < 8:
        raise InputError(f"width is {width}, expected at least 8 characters per line")
    pieces, column, line = [], 0, 0
    for i, token in enumerate(tokens):
        for text in wrapped(printable(token, text_font()), width):
            if column and column + columns(text) > width:
                column, line = 0, line + 1
            pieces.append(Piece(column, line, text, i))
            column += columns(text)
        if token.endswith("\n"):
            column, line = 0, line + 1
    ax = text_page(ax, width, line + 1, colorbar)
    colors = color_scale(ax, values, vmax)
    draw_pieces(ax, pieces, values, colors)
    if colorbar:
        below = ax.inset_axes((0, -(line + 2) * LINE, min(30, width), 1), transform=ax.transData)
        mappable = ScalarMappable(Normalize(colors["vmin"], colors["vmax"]), colors["cmap"])
        add_colorbar(ax, mappable, label, cax=below, orientation="horizontal")
    return ax


def top_snippets(
    tokens: Sequence[Sequence[str]],
    values: Sequence[Any],
    *,
    n: int = 8,
    width: int = 72,
    ax: Axes | None = None,
) -> Axes:
    """Draw the places where a neuron is most active, one per line, strongest first.

    Parameters
    ----------
    tokens : (n_texts,) sequence of sequence of str
        The tokens of each text.
    values : (n_texts,) sequence of (n_tokens,) array
        The neuron's activations in each text.
    n : int
        Maximum number of lines. No line contains the peak of another line.
    width : int
        Characters per line; tokens around the peak fill the line.
    ax : Axes or None
        Axes to fill; None makes a figure that fits the text.

    Returns
    -------
    Axes
        Each line has the activation at the peak, and the framed peak between its neighbors.

    Raises
    ------
    InputError
        If there is not exactly one finite value per token.

    Examples
    --------
    >>> ax = top_snippets([["a", " cat"], ["the", " dog", " ran"]], [[0.0, 1.0], [0.1, 4.0, 0.3]], n=2)
    >>> ax.collections[0].get_array().max()
    np.float64(4.0)
    """
    check_length("values", values, len(tokens), "texts")
    if n < 1 or width < 24 or not len(tokens):
        raise InputError(f"n is {n}, width {width}, texts {len(tokens)}; expected at least 1, 24 and 1")
    arrays = [checked_array(f"values of text {i}", one, "(n_tokens,)") for i, one in enumerate(values)]
    texts = [[printable(token, text_font()) for token in text] for text in tokens]
    for i, (text, array) in enumerate(zip(texts, arrays, strict=True)):
        check_length(f"values of text {i}", array, len(text), "tokens")
    pieces: list[Piece] = []
    drawn: list[float] = []
    frames: list[Rectangle] = []
    largest = max(abs(array).max() for array in arrays)
    digits = int(np.clip(2 - math.floor(math.log10(largest or 1)), 0, 6))
    snippets = select_snippets(texts, arrays, n, width - 12)
    for line, (i, peak, first, last) in enumerate(snippets):
        pieces.append(Piece(0, line, f"{arrays[i][peak]:9.{digits}f}", None))
        column = 11
        for j in range(first, last + 1):
            piece = texts[i][j][: width - column]
            frames += [cell(column, line, piece)] if j == peak else []
            pieces.append(Piece(column, line, piece, len(drawn)))
            drawn.append(arrays[i][j])
            column += columns(piece)
    ax = text_page(ax, width, len(snippets), False)
    draw_pieces(ax, pieces, np.array(drawn), color_scale(ax, np.array(drawn)))
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=text_color(ax), linewidth=1.2))
    ax.set_title("activation   at the framed token", loc="left", fontsize=9)
    return ax


def select_snippets(
    texts: Sequence[Sequence[str]], arrays: Sequence[Array], n: int, width: int
) -> list[tuple[int, int, int, int]]:
    """Return (text, peak, first token, last token) of at most n snippets, the highest peaks first."""
    peaks = sorted(
        ((i, j) for i, array in enumerate(arrays) for j in range(len(array))),
        key=lambda p: -arrays[p[0]][p[1]],
    )
    shown: set[tuple[int, int]] = set()
    snippets: list[tuple[int, int, int, int]] = []
    for i, peak in peaks:
        if len(snippets) < n and (i, peak) not in shown:
            first, last = around(texts[i], peak, width)
            shown |= {(i, j) for j in range(first, last + 1)}
            snippets.append((i, peak, first, last))
    return snippets


def around(text: Sequence[str], at: int, width: int) -> tuple[int, int]:
    """Return the first and last token of the longest range around a token that fits in ``width``.

    The range grows by one token on the left and one on the right in turn.
    """
    first = last = at
    room, grown = width - columns(text[at]), True
    while grown:
        grown = False
        for i in (first - 1, last + 1):
            if 0 <= i < len(text) and columns(text[i]) <= room:
                first, last = min(first, i), max(last, i)
                room, grown = room - columns(text[i]), True
    return first, last


def text_page(ax: Axes | None, width: int, n_lines: int, colorbar: bool) -> Axes:
    """Return axes without a frame for n lines of text; their unit is the width of a character."""
    height = LINE * (n_lines + (2 if colorbar else 0))
    if ax is None:
        ax = new_axes(width * CHARACTER + 0.3, height * CHARACTER + (0.45 if colorbar else 0.4))
    ax.set(xlim=(0, width), ylim=(-height, 0), aspect="equal", anchor="NW")
    ax.set_axis_off()
    return ax


def draw_pieces(ax: Axes, pieces: Sequence[Piece], values: Array, colors: dict[str, Any]) -> None:
    """Draw pieces of text, each on the color of its value.

    The letters are drawn as outlines in data coordinates, so they keep their places when the axes are
    resized.
    """
    norm = Normalize(colors["vmin"], colors["vmax"])
    with_value = [piece for piece in pieces if piece.value is not None]
    cells = [cell(piece.column, piece.line, piece.text) for piece in with_value]
    boxes = PatchCollection(cells, cmap=colors["cmap"], norm=norm, linewidth=0)
    boxes.set_array(np.array([values[piece.value] for piece in with_value]))
    ax.add_collection(boxes)
    font = text_font()
    size = 100 / character_width(font)
    for piece in pieces:
        if not piece.text.strip():
            continue  # white space has no outline
        color = text_color(ax)
        if piece.value is not None:
            color = readable_on(colors["cmap"](norm(values[piece.value])))
        position = (piece.column, -(piece.line + 0.68) * LINE)
        letters = TextPath(position, piece.text.replace("$", r"\$"), size=size, prop=font)
        ax.add_patch(PathPatch(letters, facecolor=color, linewidth=0))


def cell(column: int, line: int, text: str) -> Rectangle:
    """Return the box behind a piece of text."""
    return Rectangle((column, -(line + 0.97) * LINE), columns(text), LINE * 0.94)


def character_width(font: FontProperties) -> float:
    """Return the width of a character of a monospace font at size 100."""
    file = get_font(findfont(font))
    file.set_size(100, 72)
    return file.load_char(ord("0")).linearHoriAdvance / 65536


def text_font() -> FontProperties:
    """Return the current monospace font."""
    return FontProperties(family="monospace")


def plain_font() -> FontProperties:
    """Return the current font of labels."""
    return FontProperties()


def printable(token: str, font: FontProperties) -> str:
    """Return a token with visible line breaks and tabs, and □ for characters that the font lacks."""
    text = token.replace("\r\n", "\n").replace("\n", "↵").replace("\t", "→")
    file = get_font(findfont(font))
    return "".join(c if file.get_char_index(ord(c)) else "□" for c in text)


def columns(text: str) -> int:
    """Return the width of a text in characters, at least 1; wide East Asian characters count twice."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return max(1, len(text) + wide)


def wrapped(text: str, width: int) -> list[str]:
    """Split a token that is wider than a line; an empty token stays one piece."""
    return [text[i : i + width] for i in range(0, len(text), width)] or [""]
