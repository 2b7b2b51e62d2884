"""A page to look at a prompt's core neurons in: what `minicore explore` writes.

The page holds every token's core as bits and counts with them itself, so that sets grow under the reader's
hand; continuations, which need the model, are decoded here for a few betas. It is one file, without network.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any

import numpy as np

from minicore.backends import make_backend
from minicore.core.neurons import check_fraction, parse_layers, token_core
from minicore.errors import InputError
from minicore.generation.prediction import Layers, encode_prompt
from minicore.model import Model

Array = np.ndarray

BETAS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # continuations are decoded with these, and with the one asked for
LARGEST = 5_000_000  # bytes of a page


def explore(
    model: Model,
    prompts: Sequence[str],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    layers: Layers = None,
    max_new_tokens: int = 48,
    chat: bool = False,
    backend: str = "auto",
) -> str:
    """Return the page, as HTML, for one prompt or for two to compare.

    Parameters
    ----------
    model : Model
        One with a tokenizer.
    prompts : sequence of str
        One text or two.
    alpha, beta : float or None
        Fractions kept, in (0, 1]: of a token's positive activations, and of a layer's neurons when the page
        opens; None is the checkpoint's recommendation, else 0.4.
    layers : str, slice, range, list of int or None
        Layers to show and to restrict, such as ``"6:27"``; None is all.
    max_new_tokens : int
        Of each continuation, >= 0.
    chat : bool
        Wrap each prompt in the model's chat template.
    backend : str
        ``numpy``, ``cpu`` or ``auto``.

    Returns
    -------
    str
        A page of at most 5 MB that needs no network.

    Raises
    ------
    InputError
        If there are not one or two prompts, one is empty or too long, an option is out of range, or the page
        would be larger.

    Examples
    --------
    >>> import minicore as mc
    >>> page = explore(mc.load("minicore-opt-core"), ["Bread needs flour and water."], max_new_tokens=4)
    >>> page.splitlines()[0], len(page) < 5_000_000
    ('<!doctype html>', True)
    """
    if not 1 <= len(prompts) <= 2:
        raise InputError(f"there are {len(prompts)} prompts to explore, expected one or two")
    advice = model.recommended
    alpha = check_fraction("alpha", advice.get("alpha", 0.4) if alpha is None else alpha)
    beta = check_fraction("beta", advice.get("beta", 0.4) if beta is None else beta)
    chosen = parse_layers(layers, model.config.n_layers)
    texts = [encode_prompt(model, prompt, chat) for prompt in prompts]
    check_size(sum(map(len, texts)) * len(chosen) * -(-model.config.n_neurons // 8) * 4 // 3)
    settings = {"alpha": alpha, "layers": chosen, "backend": backend, "max_new_tokens": max_new_tokens}
    told = [
        {"pieces": pieces(model, ids), "core": packed(token_cores(model, ids, alpha, chosen, backend))}
        for ids in texts
    ]
    for said, continuations in zip(told, continue_all(model, texts, beta, settings), strict=True):
        said |= continuations
    return fill({
        "model": model.name,
        "alpha": alpha,
        "beta": beta,
        "layers": chosen,
        "n_neurons": model.config.n_neurons,
        "prompts": told,
    })  # fmt: skip


def check_size(n_bytes: int) -> None:
    """Raise InputError if a page with so many bytes of data were too large."""
    if n_bytes > LARGEST - 200_000:
        raise InputError(
            f"the page would be {n_bytes / 1e6:.1f} MB, expected at most {LARGEST / 1e6:.0f}: shorten the "
            "prompt or show fewer layers"
        )


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """Return the text of each id."""
    assert model.tokenizer is not None  # or there would be no ids
    return model.tokenizer.pieces(ids)


def token_cores(model: Model, ids: Sequence[int], alpha: float, layers: Sequence[int], backend: str) -> Array:
    # (n_tokens,) -> bool (n_layers, n_tokens, n_neurons)
    """Read a prompt densely and return every token's core in the layers asked for."""
    found: dict[int, list[Array]] = {layer: [] for layer in layers}

    def add(layer: int, a: Array) -> None:
        found[layer].append(token_core(a, alpha))

    hooks = {f"blocks.{layer}.mlp.hook_post": partial(add, layer) for layer in layers}
    make_backend(model, backend).prefill(np.array(ids), model.new_cache(len(ids)), hooks)
    return np.stack([np.concatenate(chunks) for chunks in found.values()])


def packed(core: Array) -> str:  # bool (n_layers, n_tokens, n_neurons) -> text
    """Return bits as the page reads them: a token's neurons from the highest bit of a byte on, in base64."""
    return base64.b64encode(np.packbits(core, axis=-1).tobytes()).decode("ascii")


def continue_all(
    model: Model, texts: Sequence[list[int]], beta: float, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return each prompt's continuations: dense, and with the prompt's core neurons for several betas."""
    from tqdm import tqdm

    betas = sorted({*BETAS, beta})
    bar = tqdm(
        total=len(texts) * (1 + len(betas)),
        desc="continuations",
        leave=False,
        disable=not sys.stderr.isatty(),
    )

    def continuation(ids: list[int], **chosen: Any) -> dict[str, Any]:
        out = model.generate(ids, **settings | chosen)
        bar.update()
        return {"ids": out.token_ids, "pieces": pieces(model, out.token_ids)}

    with bar:
        return [
            {
                "dense": continuation(ids, predictor="dense"),
                "sparse": [
                    {"beta": one} | continuation(ids, predictor="stability", beta=one) for one in betas
                ],
            }
            for ids in texts
        ]


def fill(data: dict[str, Any]) -> str:
    """Return the template with data in it, as JSON that no text can break out of."""
    template = resources.files("minicore.explorer").joinpath("template.html").read_text(encoding="utf-8")
    told = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        told = told.replace(character, f"\\u{ord(character):04x}")
    return template.replace("{{data}}", told)
