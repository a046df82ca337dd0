"""Parity of exposure within each user's rankings, which holds in expectation over a mixture of rankings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints.base import require_name
from recsys_budget.constraints.candidates import Candidates, category_code
from recsys_budget.constraints.positions import Discount, checked_discount, position_weights
from recsys_budget.constraints.slate import category_members
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class ExposureParity:
    """Each user's candidates of two categories get the same exposure on average, in expectation.

    ``low * average of second <= average of first <= high * average of second``, where the average exposure of
    a category is over the user's candidates that are in it, shown or not. One ranking can rarely do that, so
    this is no :class:`~recsys_budget.constraints.Constraint` on a slate: a mixture of few rankings keeps it.
    For more than two groups, ask for several: of each group and another, or of each and all others.
    Users without a candidate of one of the two are free of it.

    Attributes:
        first: Name of a category.
        second: Name of another, which shares no item with it; None for all items that are not in the first.
        low: Least ratio of the averages, 0 or more.
        high: Greatest ratio; infinite for none.
        discount: What each place is worth: ``"log"``, ``"none"`` (1 at every place), or a tuple of numbers.
        name: How certificates call it; empty takes a name made from the categories.
        reason: Why the owner wants it.

    References:
        Singh and Joachims (2018), sections 3 and 4.1, arXiv:1802.07281.

    Examples:
        >>> ExposureParity("Documentary").name
        'equal exposure of Documentary and the others'
    """

    first: str
    second: str | None = None
    low: float = 1.0
    high: float = 1.0
    discount: Discount = "log"
    name: str = field(default="", kw_only=True)
    reason: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        require_name("ExposureParity", "category", self.first)
        if self.second is not None:
            require_name("ExposureParity", "category", self.second)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.low, self.high))
        if not numbers or not 0.0 <= self.low <= self.high or math.isinf(self.low):
            raise SpecificationError(
                f"ExposureParity: low={self.low!r}, high={self.high!r}; these are ratios, low finite and at "
                "least 0, high no smaller"
            )
        object.__setattr__(self, "discount", checked_discount("ExposureParity", self.discount))
        if not self.name:
            others = self.second or "the others"
            equal = "equal" if self.low == self.high == 1.0 else "comparable"
            object.__setattr__(self, "name", f"{equal} exposure of {self.first} and {others}")

    def groups(self, catalogue: ItemCatalogue) -> NDArray[np.int64]:
        """0 for items of the first category, 1 for the second, -1 for neither; shape ``(n_items,)``.

        Raises:
            SpecificationError: The catalogue has no such category, or an item is in both.
        """
        category_code(catalogue, self.first)
        first = category_members(catalogue, self.first)
        second = ~first if self.second is None else category_members(catalogue, self.second)
        if (first & second).any():
            item = catalogue.ids[int((first & second).argmax())]
            raise SpecificationError(
                f"{self.name!r}: item {item!r} is in both categories, which must not overlap"
            )
        return np.where(first, 0, np.where(second, 1, -1)).astype(np.int64)

    def rhs(self, candidates: Candidates) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(2)

    def lhs(self, x: Any, candidates: Candidates) -> Any:
        """How far the ratio is below its least and above its greatest, in exposure; shape ``(2,)``.

        Args:
            x: Chance that each candidate is at each place, shape ``(n, k)``; an array or a cvxpy Variable.
            candidates: The candidates of a user.
        """
        group = self.groups(candidates.catalogue)[candidates.items]
        rows = np.zeros((2, len(group)))
        if (group == 0).any() and (group == 1).any():
            first, second = ((group == g) / (group == g).sum() for g in (0, 1))
            rows[0] = self.low * second - first
            if math.isfinite(self.high):
                rows[1] = first - self.high * second
        return rows @ (x @ position_weights(self.discount, candidates.k))

    def measure(
        self, rankings: NDArray[np.integer], chances: NDArray[np.float64], candidates: Candidates
    ) -> float:
        """How far the expected averages are from the rule, in exposure; 0.0 when it holds.

        Args:
            rankings: Rows of the candidates, shape ``(m, k)``, the first place first; -1 for empty places.
            chances: Chance of each ranking, shape ``(m,)``.
            candidates: The candidates of that user.
        """
        group = self.groups(candidates.catalogue)[candidates.items]
        sizes = [int((group == g).sum()) for g in (0, 1)]
        if not all(sizes):
            return 0.0
        shown = [0.0, 0.0]
        for ranking, chance in zip(rankings, chances.tolist(), strict=True):
            for row, worth in zip(ranking, position_weights(self.discount, len(ranking)), strict=True):
                if row >= 0 and group[row] >= 0:
                    shown[group[row]] += chance * float(worth) / sizes[group[row]]
        below = self.low * shown[1] - shown[0]
        above = shown[0] - self.high * shown[1] if math.isfinite(self.high) else 0.0
        return max(0.0, below, above)
