"""The interactive page of `minicore explore`, which shows the core neurons of a prompt.

The page is one HTML file that needs no network: template.html, script.js and data. The data has every token's
core neurons as bits, so the script can compute core sets while the reader moves a slider. Continuations need
the model, so they are decoded here for several values of beta.
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

BETAS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # continuations are decoded with these and with the requested beta
LARGEST = 5_000_000  # bytes: maximum size of a page


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
    """Return the HTML page for one prompt, or for two prompts to compare.

    Parameters
    ----------
    model : Model
        A model with a tokenizer.
    prompts : sequence of str
        One or two texts.
    alpha, beta : float or None
        Fractions kept, in (0, 1]: of a token's positive activations, and of a layer's neurons (the initial
        position of the slider). None is the checkpoint's recommendation, or 0.4 if it has none.
    layers : str, slice, range, list of int or None
        Layers to show and to restrict, such as ``"6:27"``; None is all layers.
    max_new_tokens : int
        Length of each continuation in tokens, at least 0.
    chat : bool
        Whether to put each prompt in the model's chat template.
    backend : str
        ``numpy``, ``cpu`` or ``auto``.

    Returns
    -------
    str
        A page of at most 5 MB.

    Raises
    ------
    InputError
        If there are not one or two prompts, a prompt is empty or too long, an option is out of range, or the
        page would be too large.

    Examples
    --------
    >>> import minicore as mc
    >>> page = explore(mc.load("minicore-opt-core"), ["Bread needs flour and water."], max_new_tokens=4)
    >>> page.splitlines()[0], len(page) < 5_000_000
    ('<!doctype html>', True)
    """
    if not 1 <= len(prompts) <= 2:
        raise InputError(f"there are {len(prompts)} prompts to explore, expected one or two")
    recommended = model.recommended
    alpha = check_fraction("alpha", recommended.get("alpha", 0.4) if alpha is None else alpha)
    beta = check_fraction("beta", recommended.get("beta", 0.4) if beta is None else beta)
    shown = parse_layers(layers, model.config.n_layers)
    texts = [encode_prompt(model, prompt, chat) for prompt in prompts]
    check_size(sum(map(len, texts)) * len(shown) * -(-model.config.n_neurons // 8) * 4 // 3)
    settings = {"alpha": alpha, "layers": shown, "backend": backend, "max_new_tokens": max_new_tokens}
    continuations = continue_all(model, texts, beta, settings)
    return render({
        "model": model.name,
        "alpha": alpha,
        "beta": beta,
        "layers": shown,
        "n_neurons": model.config.n_neurons,
        "prompts": [
            {
                "pieces": pieces(model, ids),
                "core": encode_bits(token_cores(model, ids, alpha, shown, backend)),
                **continuation,
            }
            for ids, continuation in zip(texts, continuations, strict=True)
        ],
    })  # fmt: skip


def check_size(n_bytes: int) -> None:
    """Raise InputError if a page with n bytes of data would be too large."""
    if n_bytes > LARGEST - 200_000:
        raise InputError(
            f"the page would be {n_bytes / 1e6:.1f} MB, expected at most {LARGEST / 1e6:.0f} MB; shorten the "
            "prompt or show fewer layers"
        )


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """Return the text of each id."""
    assert model.tokenizer is not None  # encode_prompt has checked it
    return model.tokenizer.pieces(ids)


def token_cores(model: Model, ids: Sequence[int], alpha: float, layers: Sequence[int], backend: str) -> Array:
    # (n_tokens,) -> bool (n_layers, n_tokens, n_neurons)
    """Run a dense prefill of a prompt and return every token's core neurons in the given layers."""
    found: dict[int, list[Array]] = {layer: [] for layer in layers}

    def add(layer: int, a: Array) -> None:
        found[layer].append(token_core(a, alpha))

    hooks = {f"blocks.{layer}.mlp.hook_post": partial(add, layer) for layer in layers}
    make_backend(model, backend).prefill(np.array(ids), model.new_cache(len(ids)), hooks)
    return np.stack([np.concatenate(chunks) for chunks in found.values()])


def encode_bits(core: Array) -> str:  # bool (n_layers, n_tokens, n_neurons) -> text
    """Return masks as the script reads them: 8 neurons per byte, the first in the highest bit, in base64."""
    return base64.b64encode(np.packbits(core, axis=-1).tobytes()).decode("ascii")


def continue_all(
    model: Model, texts: Sequence[list[int]], beta: float, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return each prompt's continuations: dense, and with the prompt's core set for several betas."""
    from tqdm import tqdm

    betas = sorted({*BETAS, beta})
    bar = tqdm(
        total=len(texts) * (1 + len(betas)),
        desc="continuations",
        leave=False,
        disable=not sys.stderr.isatty(),
    )

    def continuation(ids: list[int], **options: Any) -> dict[str, Any]:
        out = model.generate(ids, **settings | options)
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


def render(data: dict[str, Any]) -> str:
    """Return the page with the data as JSON, escaped so that no text can end the script element."""
    folder = resources.files("minicore.explorer")
    template = folder.joinpath("template.html").read_text(encoding="utf-8")
    script = folder.joinpath("script.js").read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return template.replace("{{script}}", script).replace("{{data}}", text)
