"""What a public catalogue says about which items may go together, as matrices between items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from recsys_budget.data import ItemCatalogue

# Two items half the catalogue apart in an attribute's order are related by exp(-1).
_REACH = 0.5


def relations(catalogue: ItemCatalogue, positions: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
    """Relations between some items of a catalogue, by name, each symmetric, positive semi-definite, up to 1.

    * ``"provider"``: 1 where two items have the same one.
    * ``"categories"``: cosine of the angle between their memberships: 1 for the same set, 0 for none shared.
    * each attribute, by its name: ``exp(-d / 0.5)``, where d is how far apart the two stand in its order, as
      a share of the items that have it. Ranks make units and outliers irrelevant.

    An item about which nothing is known is related to none. A relation of which the catalogue has nothing for
    these items is left out.

    Args:
        catalogue: Public, so all of this is.
        positions: Of the items, shape ``(n,)``.

    Returns:
        Matrices of shape ``(n, n)``.
    """
    found: dict[str, NDArray[np.float64]] = {}
    provider = catalogue.provider_codes[positions]
    if (provider >= 0).any():
        found["provider"] = ((provider[:, None] == provider) & (provider >= 0)).astype(np.float64)
    member = catalogue.membership[positions].toarray().astype(np.float64)
    if member.any():
        member /= np.maximum(np.linalg.norm(member, axis=1, keepdims=True), 1e-12)
        found["categories"] = member @ member.T
    for name, values in catalogue.attributes.items():
        known = ~np.isnan(values[positions])
        if known.any():
            rank = np.full(len(positions), np.nan)
            rank[known] = rankdata(values[positions][known]) / known.sum()
            near = np.exp(-np.abs(rank[:, None] - rank) / _REACH)
            found[name] = np.nan_to_num(near, nan=0.0)
    return found


def centred(relation: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """A relation as it is between rows less their expectation: ``(I - 1 s^T) K (I - s 1^T)``."""
    mean = relation @ shares
    return np.asarray(relation - mean[:, None] - mean + shares @ mean)
