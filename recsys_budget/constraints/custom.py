"""A rule of the user's own, from a function that makes a cvxpy expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints.base import Constraint, require_number
from recsys_budget.constraints.candidates import Candidates
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class Custom(Constraint):
    """``function(x, candidates) <= bound``, for any function that is convex by cvxpy's rules.

    Attributes:
        function: From the selection, shape ``(n,)``, and the :class:`Candidates` (see ``to_frame``) to a
            convex cvxpy expression: a number, or a vector whose entries all obey the bound. Called with a
            Variable to solve and, unless ``count`` is given, with a 0/1 array to measure.
        bound: The right-hand side.
        count: An independent account for ``measure``: from the rows chosen, in the order of the slate, and
            the candidates to the violation. Without it the function measures itself, on 0/1 numbers, and a
            mistake in it is not noticed.
        name: How errors and certificates call the rule; required.

    Examples:
        >>> rule = Custom(lambda x, c: c.attribute("minutes") @ x, 90.0, name="an evening")
    """

    function: Callable[[Any, Candidates], Any]
    bound: float
    count: Callable[[NDArray[np.intp], Candidates], float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function) or not (self.count is None or callable(self.count)):
            raise SpecificationError(
                "Custom takes functions: function(x, candidates) and count(chosen, candidates)"
            )
        require_number("Custom", "bound", self.bound)
        super().__post_init__()

    def default_name(self) -> str:
        """There is none.

        Raises:
            SpecificationError: Always: nothing here says what the rule is about.
        """
        raise SpecificationError("Custom needs name=, since nothing else says what the rule is about")

    def rhs(self, candidates: Any) -> float:
        """The bound."""
        return float(self.bound)

    def lhs(self, x: Any, candidates: Any) -> Any:
        """What the function makes."""
        return self.function(x, candidates)

    def measure(self, chosen: NDArray[np.integer], candidates: Any) -> float:
        """What ``count`` says, or how far the function is above the bound on 0/1 numbers."""
        if self.count is not None:
            return float(self.count(np.asarray(chosen, np.intp), candidates))
        x = np.zeros(len(candidates))
        x[np.asarray(chosen, np.intp)] = 1.0
        made = self.function(x, candidates)
        value = made if isinstance(made, np.ndarray | float | int | np.generic) else made.value
        return float(np.maximum(0.0, np.atleast_1d(np.asarray(value, np.float64)) - self.bound).sum())
