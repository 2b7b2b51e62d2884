"""Configuration of a quality study: the settings it compares and the conditions they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TypedDict

from minicore.core.budgets import BUDGETS, layer_betas
from minicore.core.neurons import check_fraction, parse_layers
from minicore.core.predictors import find_predictor
from minicore.errors import InputError, unknown
from minicore.generation.prediction import Layers, fingerprint
from minicore.model import Model

SOURCES = ("prompt", "continuation", "all", "others")


@dataclass(frozen=True)
class Setting:
    """A predictor, and how many neurons it keeps.

    Attributes
    ----------
    predictor : str
        A name of the table of predictors, or ``SET+RULE``. ``name@source`` applies the same predictor to
        other tokens than the prompt's: to the ``continuation``, to ``all`` of the passage, or to
        ``others``, texts that are not measured (a static hot set).
    beta : float or str
        Fraction of a layer's neurons kept, or a range over the layers such as ``"0.2:0.6"``.
    budget : str
        How beta is divided among the layers, a name of :data:`minicore.core.budgets.BUDGETS`.
    token_beta : float, str or None
        Like beta, for the rule of ``SET+RULE``.

    Examples
    --------
    >>> setting = Setting("griffin@others", 0.4)
    >>> setting.name, setting.source
    ('griffin', 'others')
    """

    predictor: str
    beta: float | str
    budget: str = "uniform"
    token_beta: float | str | None = None

    @property
    def name(self) -> str:
        """The predictor without its source."""
        return self.predictor.partition("@")[0]

    @property
    def source(self) -> str:
        """The tokens that the set is made from, one of SOURCES."""
        given = self.predictor.partition("@")[2]
        return given or ("all" if find_predictor(self.name).needs_continuation else "prompt")


DENSE = Setting("dense", 1.0)


def grid(
    predictors: Sequence[str],
    betas: Sequence[float | str],
    budget: str = "uniform",
    token_beta: float | str | None = None,
) -> list[Setting]:
    """Return every predictor at every beta; ``dense``, which has no beta, appears once.

    Raises
    ------
    InputError
        If there are none, a predictor, source or budget is unknown, or a beta is not a fraction.

    Examples
    --------
    >>> [(one.predictor, one.beta) for one in grid(["dense", "griffin"], [0.2, 0.4])]
    [('dense', 1.0), ('griffin', 0.2), ('griffin', 0.4)]
    """
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    for beta in [*betas, *([] if token_beta is None else [token_beta])]:
        layer_betas(beta, 2)
    for predictor in predictors:
        setting = Setting(predictor, 1.0)
        find_predictor(setting.name)
        if "+" in setting.name and token_beta is None:
            raise InputError(f"{predictor} needs a token_beta, the fraction of neurons that each token keeps")
        if setting.source not in SOURCES:
            raise unknown(f"source of the set in {predictor}", setting.source, SOURCES)
    chosen = [
        Setting(predictor, beta, budget, token_beta if "+" in predictor else None)
        for predictor in predictors
        for beta in ([1.0] if predictor == "dense" else betas)
    ]
    if not chosen:
        raise InputError("there is nothing to measure, expected at least one predictor and one beta")
    return list(dict.fromkeys(chosen))


class ConditionOptions(TypedDict, total=False):
    """The keywords of :meth:`Conditions.of`, which the functions that make a study pass on."""

    prompt_tokens: int
    continuation_tokens: int
    alpha: float
    layers: Layers
    fit_passages: int
    clusters: str | PathLike[str] | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all rows of a study share. Rows measured under other conditions are never mixed with them.

    Attributes
    ----------
    model, dtype, fingerprint : str
        The model's name and dtype, and its :func:`~minicore.generation.prediction.fingerprint`.
    clusters : str or None
        File of the clusters that ``similarity`` reads.
    prompt_tokens, continuation_tokens : int
        Length of the prompt, and number of predictions that are scored.
    alpha : float
        Fraction of a token's positive activations kept.
    layers : tuple of int
        The layers that are restricted.
    fit_passages : int
        Number of other passages that hot sets are fitted on.
    seed : int
        Seed for drawing passages, for random sets and for the bootstrap.
    """

    model: str
    dtype: str
    fingerprint: str
    clusters: str | None
    prompt_tokens: int
    continuation_tokens: int
    alpha: float
    layers: tuple[int, ...]
    fit_passages: int
    seed: int

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        prompt_tokens: int = 256,
        continuation_tokens: int = 256,
        alpha: float = 0.4,
        layers: Layers = None,
        fit_passages: int = 16,
        clusters: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> Conditions:
        """Return the conditions of a study of this model; InputError names an option out of range."""
        for name, value, least in (
            ("prompt-tokens", prompt_tokens, 1),
            ("continuation-tokens", continuation_tokens, 1),
            ("fit-passages", fit_passages, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, expected {least} or more")
        return cls(
            model=model.name,
            dtype=model.dtype,
            fingerprint=fingerprint(model),
            clusters=None if clusters is None else str(clusters),
            prompt_tokens=prompt_tokens,
            continuation_tokens=continuation_tokens,
            alpha=check_fraction("alpha", alpha),
            layers=tuple(parse_layers(layers, model.config.n_layers)),
            fit_passages=fit_passages,
            seed=seed,
        )

    @property
    def n_tokens(self) -> int:
        """Length of a passage: prompt, one more token, and the continuation."""
        return self.prompt_tokens + 1 + self.continuation_tokens
