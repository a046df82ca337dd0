"""The privacy budget: a frozen value, always about users."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

from recsys_budget.errors import PrivacyWarning, SpecificationError


@dataclass(frozen=True)
class PrivacyBudget:
    """A cap on what everything released from a table may reveal about any one user.

    A release is (epsilon, delta)-differentially private at user level when, for any two tables that differ
    by adding or removing all rows of one user, and any set of outcomes, the probability of the set under one
    table is at most ``exp(epsilon)`` times that under the other, plus ``delta``.

    Attributes:
        epsilon: Positive, finite. Smaller is more private.
        delta: Strictly between 0 and 1; choose it well below one over the number of users.
        users: About how many users there are, as publicly known; None where that is not said. Part of no
            comparison.

    Raises:
        SpecificationError: A value outside its range.

    Warns:
        PrivacyWarning: delta is not below ``1 / users``: such a delta allows a release that publishes one
            user's data outright.

    References:
        Dwork and Roth (2014), doi:10.1561/0400000042, definition 2.4.
    """

    epsilon: float
    delta: float
    users: int | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise SpecificationError(f"epsilon is {self.epsilon}; it must be positive and finite")
        if not 0 < self.delta < 1:
            raise SpecificationError(
                f"delta is {self.delta}; it must lie strictly between 0 and 1, well below 1 / users"
            )
        if self.users is not None:
            if isinstance(self.users, bool) or not isinstance(self.users, int) or self.users < 1:
                raise SpecificationError(f"users is {self.users!r}; give a whole number of at least 1")
            self.warn_about(self.users)

    def warn_about(self, users: int) -> None:
        """Warn when delta is too large for so many users, as publicly known."""
        if self.delta >= 1 / users:
            warnings.warn(
                f"delta is {self.delta:g}, and there are about {users:,} users: with delta at or above "
                f"1 / users, publishing one user's data outright would be allowed. Take at most "
                f"{0.1 / users:.0e}",
                PrivacyWarning,
                stacklevel=3,
            )
