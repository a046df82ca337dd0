"""The privacy budget: a frozen value, always about users."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class PrivacyBudget:
    """A cap on what everything released from a table may reveal about any one user.

    A release is (epsilon, delta)-differentially private at user level when, for any two tables that differ
    by adding or removing all rows of one user, and any set of outcomes, the probability of the set under one
    table is at most ``exp(epsilon)`` times that under the other, plus ``delta``.

    Attributes:
        epsilon: Positive, finite. Smaller is more private.
        delta: Strictly between 0 and 1; choose it well below one over the number of users.

    Raises:
        SpecificationError: A value outside its range.

    References:
        Dwork and Roth (2014), doi:10.1561/0400000042, definition 2.4.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise SpecificationError(f"epsilon is {self.epsilon}; it must be positive and finite")
        if not 0 < self.delta < 1:
            raise SpecificationError(
                f"delta is {self.delta}; it must lie strictly between 0 and 1, well below 1 / users"
            )
