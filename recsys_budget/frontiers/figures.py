"""What a set of slates comes to, in figures: for users, for providers, and against what is possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.data import ItemCatalogue
from recsys_budget.metrics import gini, item_exposure
from recsys_budget.rerank import Slates

_CERTIFIED = ("engagement", "diversity", "objective", "bound", "gap", "largest_violation")
_OVER_USERS = ("engagement", "diversity", "objective")

# Which way each figure is better, for those that are a goal of somebody's.
_BETTER: Mapping[str, str] = {
    "engagement": "more",
    "diversity": "more",
    "objective": "more",
    "gap": "less",
    "largest_violation": "less",
    "provider_gini": "less",
    "provider_coverage": "more",
    "epsilon": "less",
    "steps": "less",
}


def figures(slates: Slates | None, catalogue: ItemCatalogue) -> dict[str, float]:
    """The figures of a set of slates: a row of a frontier's frame.

    * ``engagement``, ``diversity``, ``objective``, ``bound``, ``gap``, ``largest_violation``: those of the
      certificate.
    * ``engagement_error``, ``diversity_error``, ``objective_error``: the standard error of the mean over
      users; NaN of one user.
    * where the catalogue names providers, those of :func:`provider_figures`.

    Not private where the slates are not.

    Args:
        slates: The slates; None where there are none, and then every figure is NaN.
        catalogue: The items that could be shown.

    Raises:
        DataError: An item of the slates is not in the catalogue.
    """
    names = (*_CERTIFIED, *(f"{name}_error" for name in _OVER_USERS))
    found = dict.fromkeys(names, math.nan)
    if slates is not None:
        certificate = slates.certificate
        found |= {name: float(getattr(certificate, name)) for name in _CERTIFIED}
        for name in _OVER_USERS:
            found[f"{name}_error"] = standard_error(certificate.per_user[name].to_numpy(np.float64))
    return found | provider_figures(None if slates is None else slates.frame, catalogue)


def better(column: str) -> str | None:
    """``"more"`` or ``"less"``: which of a figure is better; None where neither is, or it is not known."""
    return "more" if "@" in column else _BETTER.get(column)  # recall@20 and the like


def provider_figures(lists: Any, catalogue: ItemCatalogue) -> dict[str, float]:
    """How the places of all lists together spread over the providers that the catalogue names.

    * ``provider_gini``: :func:`~recsys_budget.metrics.gini` of the number of places that each provider has,
      over all providers of the catalogue, those without a place too; each provider counts once, however many
      items it has. 0 when all have as many, near 1 when one has all. Places of items without a provider are
      left out; NaN where no place is left.
    * ``provider_coverage``: share of the catalogue's providers with at least one place.

    Args:
        lists: Table with columns user, item and rank; None where there is none, and then both are NaN.
        catalogue: The items and their providers.

    Returns:
        Both figures; nothing where the catalogue names no provider.

    Raises:
        DataError: The lists are no ranking, or an item is not in the catalogue.
    """
    if not catalogue.provider_names:
        return {}
    if lists is None:
        return {"provider_gini": math.nan, "provider_coverage": math.nan}
    places = provider_places(lists, catalogue)
    return {
        "provider_gini": gini(places) if places.any() else math.nan,
        "provider_coverage": float((places > 0.0).mean()),
    }


def provider_places(lists: Any, catalogue: ItemCatalogue) -> NDArray[np.float64]:
    """Places that each provider has in all lists together, shape ``(n_providers,)``.

    Args:
        lists: Table with columns user, item and rank.
        catalogue: The items and their providers; places of items without one are not counted.

    Raises:
        DataError: The lists are no ranking, or an item is not in the catalogue.
    """
    owned = catalogue.provider_codes >= 0
    shown = item_exposure(lists, catalogue)[owned]
    n = len(catalogue.provider_names)
    return np.asarray(np.bincount(catalogue.provider_codes[owned], shown, minlength=n), np.float64)


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean of values, shape ``(n,)``; NaN of one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
