"""Linear rules over everybody's slates together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError

ROUNDING = 1e-9  # how far a sum may lie outside its bounds, relative to itself: sums of floats round


@dataclass(frozen=True, eq=False)
class PopulationRows:
    """For each row, a sum over all users and all chosen items must lie between two bounds.

    Attributes:
        coefficients: Sparse float64 ``(n_rows, n_items)``, what one show of an item adds.
        lower: float64 ``(n_rows,)``, ``-inf`` for none.
        upper: float64 ``(n_rows,)``, ``inf`` for none.

    Raises:
        SpecificationError: Shapes that do not fit, numbers that are none, or a lower bound above its upper.
    """

    coefficients: sparse.csc_array
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    def __post_init__(self) -> None:
        coefficients = sparse.csc_array(self.coefficients, dtype=np.float64)
        coefficients.sum_duplicates()
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "lower", np.array(self.lower, np.float64))
        object.__setattr__(self, "upper", np.array(self.upper, np.float64))
        n = coefficients.shape[0]
        if self.lower.shape != (n,) or self.upper.shape != (n,):
            raise SpecificationError(
                f"{n} rows of coefficients, {self.lower.shape} lower and {self.upper.shape} upper bounds: "
                "every row needs one of each"
            )
        if not np.isfinite(coefficients.data).all():
            raise SpecificationError("a coefficient of a population row is not finite; check its numbers")
        wrong = ~(self.lower <= self.upper) | (self.lower == np.inf) | (self.upper == -np.inf)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise SpecificationError(
                f"population row {row} must lie between {self.lower[row]} and {self.upper[row]}; the lower "
                "bound must be a number at most the upper"
            )

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """Largest coefficient of each row, ``(n_rows,)``; 1 for a row of zeros."""
        largest = np.zeros(len(self.lower))
        np.maximum.at(largest, self.coefficients.indices, np.abs(self.coefficients.data))
        return np.where(largest > 0, largest, 1.0)

    @classmethod
    def groups(cls, group_of_item: NDArray[np.integer], lower: ArrayLike, upper: ArrayLike) -> PopulationRows:
        """Bounds on how often the items of each group are shown: providers, or single items.

        Args:
            group_of_item: ``(n_items,)``, row of each item's group; -1 for items in none.
            lower: ``(n_groups,)`` or one number for all, likewise ``upper``.
            upper: See ``lower``.
        """
        group = np.asarray(group_of_item)
        n = max(np.size(lower), np.size(upper), int(group.max(initial=-1)) + 1)
        member = np.flatnonzero(group >= 0)
        ones = sparse.csc_array((np.ones(len(member)), (group[member], member)), shape=(n, len(group)))
        return cls(ones, np.broadcast_to(lower, n), np.broadcast_to(upper, n))

    def loads(self, counts: NDArray[np.integer], discount: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of each row.

        Args:
            counts: ``(n_places, n_items)``, how often an item stands in a place.
            discount: ``(n_places,)``, weight of each place.
        """
        return self.coefficients @ (discount @ counts)

    def violations(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far each sum lies outside its bounds, ``(n_rows,)``; 0 inside."""
        return np.maximum(0.0, np.maximum(self.lower - loads, loads - self.upper))

    def short(self, loads: NDArray[np.float64]) -> float:
        """How many shows too many or too few there are in all rows, roughly; 0 if every row is met."""
        outside = self.violations(loads)
        outside[outside <= ROUNDING * np.maximum(1.0, np.abs(loads))] = 0.0
        return float((outside / self.scale).sum())
