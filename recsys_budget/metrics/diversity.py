"""How varied and how unexpected each user's list is: categories, calibration and novelty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.metrics._ranked import Ranked


def intra_list_diversity(ranking: Any, catalogue: ItemCatalogue) -> pd.Series[float]:
    """Mean over the pairs of a user's list of 1 minus the cosine of their 0/1 category vectors.

    An item without a category is unlike every other: its cosines are 0. The order of the list has no say.
    Takes time linear in the length of a list: with unit vectors u_i of n items, the cosines of all ordered
    pairs sum to ||sum u_i||^2 - sum ||u_i||^2.

    Not private where the rankings are not: each value is computed from one user's list.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items and their categories.

    Returns:
        Values in [0, 1], indexed by user in order of first appearance: 0 when all items have the same
        categories, 1 when no two share one, NaN for a list of one item. Empty for an empty ranking.

    Raises:
        DataError: The ranking is not one, or an item is not in the catalogue.
        SpecificationError: The catalogue has no categories.

    References:
        Smyth and McClave (2001), doi:10.1007/3-540-44593-5_25; Ziegler, McNee, Konstan and Lausen (2005),
        doi:10.1145/1060745.1060754.
    """
    per_item = _categories_per_item(catalogue)
    ranked = Ranked.read(ranking, catalogue)
    units = catalogue.membership.multiply(1 / np.sqrt(np.maximum(per_item, 1))[:, None]).tocsr()
    squared_norm = (ranked.matrix() @ units).power(2).sum(axis=1)
    own = np.bincount(ranked.rows, per_item[ranked.items] > 0, minlength=len(ranked.users))
    n = ranked.lengths
    diversity = 1 - (squared_norm - own) / np.where(n > 1, n * (n - 1), np.nan)
    return ranked.per_user(np.clip(diversity, 0, 1), "intra_list_diversity")


def calibration_kl(ranking: Any, history: Interactions, *, alpha: float = 0.01) -> pd.Series[float]:
    """How far the mix of categories in a user's list is from that in the user's history.

    The divergence KL(p || (1 - alpha) q + alpha p) = sum over categories of p log(p / (...)) in nats, where p
    is the mix of the history and q that of the list. In both, each item counts the same and spreads its
    weight evenly over its categories; items without a category do not count. Lower is better calibrated.

    Not private: the values read the histories and are charged to no budget; their name says so.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        history: What the users had used; its catalogue says which items may be ranked, and their categories.
            Every pair counts the same, whatever its rating or time.
        alpha: Share of p mixed into q to keep the divergence finite, between 0 and 1, both excluded.

    Returns:
        Values in [0, -log(alpha)], indexed by user in order of first appearance: 0 when the mixes are equal,
        -log(alpha) when they share no category or no listed item has one, NaN for a user without a
        categorised item in the history or absent from it. Empty for an empty ranking.

    Raises:
        DataError: The ranking is not one, an item is not in the catalogue, or none of its users is in
            ``history``.
        SpecificationError: The catalogue has no categories, or ``alpha`` is out of range.

    References:
        Steck (2018), equations 2, 3, 6 and 7 with equal weights, doi:10.1145/3240323.3240372.
    """
    if not 0 < alpha < 1:
        raise SpecificationError(f"alpha={alpha!r} is not between 0 and 1 (both excluded); Steck uses 0.01")
    per_item = _categories_per_item(history.catalogue)
    ranked = Ranked.read(ranking, history.catalogue)
    shares = history.catalogue.membership.multiply(1 / np.maximum(per_item, 1)[:, None]).tocsr()
    position = ranked.positions_in(history)
    known = position >= 0
    p = np.full((len(ranked.users), shares.shape[1]), np.nan)
    p[known] = _mix(history.matrix()[position[known]] @ shares)
    q = np.nan_to_num(_mix(ranked.matrix() @ shares))
    divergence = special.rel_entr(p, (1 - alpha) * q + alpha * p).sum(axis=1)
    return ranked.per_user(np.clip(divergence, 0, -np.log(alpha)), "calibration_kl (not private)")


def category_coverage(ranking: Any, catalogue: ItemCatalogue) -> pd.Series[float]:
    """Share of the catalogue's categories that occur in a user's list.

    Not private where the rankings are not: each value is computed from one user's list.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items and their categories.

    Returns:
        Values in [0, 1], indexed by user in order of first appearance. Empty for an empty ranking.

    Raises:
        DataError: The ranking is not one, or an item is not in the catalogue.
        SpecificationError: The catalogue has no categories.
    """
    _categories_per_item(catalogue)
    ranked = Ranked.read(ranking, catalogue)
    covered = np.diff((ranked.matrix() @ catalogue.membership).indptr)
    return ranked.per_user(covered / len(catalogue.category_names), "category_coverage")


def novelty(ranking: Any, catalogue: ItemCatalogue, popularity: ArrayLike) -> pd.Series[float]:
    """Mean self-information of the items in a user's list: -log2 of the share of users who know the item.

    The popularity is an argument because counting it from private interactions is itself a private read:
    pass a public one, or one that a mechanism released, clipped to be above 0, and the metric costs no more.

    Not private where the rankings or the popularity are not.

    Args:
        ranking: Table with columns user, item, rank (integer, 1 is the top), one row a ranked item.
        catalogue: The items.
        popularity: Share of users who used each item, shape ``(n_items,)`` in the order of the catalogue;
            above 0 and at most 1 for every ranked item.

    Returns:
        Bits, at least 0, indexed by user in order of first appearance. Empty for an empty ranking.

    Raises:
        DataError: The ranking is not one, an item is not in the catalogue, or the popularity of a ranked item
            is not in (0, 1].
        SpecificationError: ``popularity`` has another shape.

    References:
        Zhou, Kuscsik, Liu, Medo, Wakeling and Zhang (2010), doi:10.1073/pnas.1000488107.
    """
    known_by = np.asarray(popularity, np.float64)
    if known_by.shape != (len(catalogue),):
        raise SpecificationError(
            f"popularity has shape {known_by.shape}; pass one share for each of the {len(catalogue)} items"
        )
    ranked = Ranked.read(ranking, catalogue)
    share = known_by[ranked.items]
    bad = ~((share > 0) & (share <= 1))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"the popularity of item {catalogue.ids[ranked.items[row]]!r} is {share[row]}, but must be above "
            "0 and at most 1; clip a released popularity first",
            line=row + 1,
            column="item",
        )
    bits = np.bincount(ranked.rows, -np.log2(share), minlength=len(ranked.users))
    return ranked.per_user(bits / ranked.lengths, "novelty")


def _categories_per_item(catalogue: ItemCatalogue) -> NDArray[np.intp]:
    if not catalogue.category_names:
        raise SpecificationError("the catalogue has no categories; build it with a categories column")
    return np.diff(catalogue.membership.indptr)


def _mix(weights: sparse.csr_array) -> NDArray[np.float64]:
    """Rows scaled to sum to 1; NaN where a row is empty."""
    dense = weights.toarray()
    with np.errstate(invalid="ignore"):
        return np.asarray(dense / dense.sum(axis=1, keepdims=True), np.float64)
