"""What a place in the slate is worth."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError

Discount = Literal["none", "log"] | tuple[float, ...]


def checked_discount(owner: str, discount: object) -> Discount:
    """The discount, a sequence of numbers as a tuple.

    Raises:
        SpecificationError: It is neither "none", "log" nor falling finite numbers from above 0 down to no
            less than 0.
    """
    if isinstance(discount, str):
        if discount == "none":
            return "none"
        if discount == "log":
            return "log"
    elif isinstance(discount, tuple | list | np.ndarray):
        try:
            weights = np.asarray(discount, np.float64)
        except (TypeError, ValueError):
            weights = np.zeros(0)
        sound = weights.ndim == 1 and len(weights) > 0 and bool(np.isfinite(weights).all())
        if sound and weights[0] > 0.0 and weights[-1] >= 0.0 and (np.diff(weights) <= 0.0).all():
            return tuple(weights.tolist())
    raise SpecificationError(
        f"{owner}: discount={discount!r}; use 'none', 'log', or what each place is worth: finite numbers "
        "that never rise, the first above 0, none below"
    )


def position_weights(discount: Discount, k: int) -> NDArray[np.float64]:
    """What each of k places is worth, shape ``(k,)``, never rising.

    Args:
        discount: ``"none"`` 1 at every place; ``"log"`` 1 / log2(1 + rank), as in DCG; or the worth of each
            place, 0 after the last.
        k: Places.

    References:
        Singh and Joachims (2018), for the logarithmic discount, arXiv:1802.07281.
    """
    if discount == "none":
        return np.ones(k)
    if discount == "log":
        return np.asarray(1.0 / np.log2(2.0 + np.arange(k)))
    weights = np.zeros(k)
    weights[: len(discount)] = discount[:k]
    return weights
