"""How recommendations spread over items and providers, all users together."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.metrics._ranked import Ranked

Discount = Literal["none", "log"]


def catalogue_coverage(ranking: Any, catalogue: ItemCatalogue) -> float:
    """Share of the catalogue's items that are in at least one list.

    Not private where the rankings are not: it depends on every user's list.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items that could have been ranked.

    Returns:
        A value in [0, 1]; 0 for an empty ranking.

    Raises:
        DataError: The ranking is not one, or an item is not in the catalogue.
        SpecificationError: The catalogue is empty.

    References:
        Ge, Delgado-Battenfeld and Jannach (2010), doi:10.1145/1864708.1864761.
    """
    if not len(catalogue):
        raise SpecificationError("the catalogue has no items, so no share of it can be covered")
    return len(np.unique(Ranked.read(ranking, catalogue).items)) / len(catalogue)


def item_exposure(
    ranking: Any, catalogue: ItemCatalogue, *, discount: Discount = "none"
) -> NDArray[np.float64]:
    """Exposure that each item gets, summed over all lists.

    Not private where the rankings are not: it depends on every user's list.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items.
        discount: What one place is worth: ``"none"`` 1 at every rank, so that exposure is the number of lists
            that hold the item; ``"log"`` 1 / log2(1 + rank), as in DCG.

    Returns:
        Shape ``(n_items,)``, in the order of the catalogue; 0 for items in no list.

    Raises:
        DataError: The ranking is not one, or an item is not in the catalogue.
        SpecificationError: ``discount`` is neither.

    References:
        Singh and Joachims (2018), for the logarithmic discount, arXiv:1802.07281.
    """
    if discount not in ("none", "log"):
        raise SpecificationError(f"discount={discount!r}; use 'none' or 'log'")
    ranked = Ranked.read(ranking, catalogue)
    worth = np.ones(len(ranked.ranks)) if discount == "none" else 1 / np.log2(1.0 + ranked.ranks)
    return np.asarray(np.bincount(ranked.items, worth, minlength=len(catalogue)), np.float64)


def gini(exposure: ArrayLike) -> float:
    """Gini coefficient of exposure: 0 when all items get the same, near 1 when one gets everything.

    Half the mean absolute difference between two items, over the mean. Not private where the exposure is not.

    Args:
        exposure: One value an item (or provider), at least 0, shape ``(n,)``, such as :func:`item_exposure`.
            Items with no exposure count: leave them in.

    Returns:
        A value in [0, (n - 1) / n]; the top is reached when one item has all exposure.

    Raises:
        DataError: The values are not a vector of finite numbers of at least 0, or all of them are 0.

    References:
        Gini (1912), "Variabilità e mutabilità"; for recommendations Fleder and Hosanagar (2009),
        doi:10.1287/mnsc.1080.0974.
    """
    values = np.asarray(exposure, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise DataError("exposure must be a vector of finite numbers of at least 0, not all of them 0")
    n = len(values)
    weighted = (2 * np.arange(1, n + 1) - n - 1) @ np.sort(values)
    return float(max(weighted / (n * values.sum()), 0))  # equal values may round to just below 0


def provider_exposure_disparity(
    ranking: Any,
    catalogue: ItemCatalogue,
    *,
    target: Literal["items", "uniform"] = "items",
    discount: Discount = "none",
) -> pd.Series[float]:
    """Each provider's share of exposure minus the share that is its due.

    Above 0 a provider is shown more than its due, below 0 less; the values sum to 0. ``.abs().max()`` is the
    worst off or best off, and ``.abs().sum() / 2`` the part of all exposure that would have to move. Items
    without a provider are left out of both shares.

    Not private where the rankings are not: it depends on every user's list.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items and their providers.
        target: The due share: ``"items"`` a provider's share of the catalogue's items, ``"uniform"`` the same
            for all providers.
        discount: What one place is worth, as in :func:`item_exposure`.

    Returns:
        Differences of shares, for a due share t in [-t, 1 - t], indexed by provider in the order of the
        catalogue.

    Raises:
        DataError: The ranking is not one, an item is not in the catalogue, or no ranked item has a provider
            (as in an empty ranking).
        SpecificationError: The catalogue has no providers, or ``target`` or ``discount`` is not one of the
            above.

    References:
        Marras, Boratto, Ramos and Fenu (2022), disparate exposure against a target share, arXiv:2204.11243.
    """
    if target not in ("items", "uniform"):
        raise SpecificationError(f"target={target!r}; use 'items' or 'uniform'")
    n = len(catalogue.provider_names)
    if not n:
        raise SpecificationError("the catalogue has no providers; build it with a provider column")
    owned = catalogue.provider_codes >= 0
    codes = catalogue.provider_codes[owned]
    exposure = np.bincount(codes, item_exposure(ranking, catalogue, discount=discount)[owned], minlength=n)
    if not exposure.any():
        raise DataError("no ranked item has a provider, so there are no shares of exposure to compare")
    due = np.bincount(codes, minlength=n) / len(codes) if target == "items" else np.full(n, 1 / n)
    index = pd.Index(catalogue.provider_names, dtype="str", name="provider")
    return pd.Series(exposure / exposure.sum() - due, index=index, name="exposure_disparity")
