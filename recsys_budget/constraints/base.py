"""What every constraint is: a named inequality, and an independent way to measure its violation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints.candidates import Candidates
from recsys_budget.data import ItemCatalogue

# A larger violation, in the constraint's own unit, is a violation.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Constraint(ABC):
    """A hard rule about one user's slate: ``lhs(x, candidates) <= rhs``, where x is 1 for chosen candidates.

    The inequality is what the rule *means*; ``measure`` counts the violation of an emitted slate item by
    item, without the inequality, and so checks solver and inequality both. Subclasses are frozen dataclasses
    of the numbers asked for.

    Attributes:
        name: How errors and certificates call the rule; unique within one re-ranker. Empty takes a name made
            from the numbers asked for.
        reason: Why the owner wants the rule, in the owner's words.
    """

    name: str = field(default="", kw_only=True)
    reason: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.default_name())

    @abstractmethod
    def default_name(self) -> str:
        """The name taken when the owner gives none."""

    @property
    @abstractmethod
    def rhs(self) -> float | NDArray[np.float64]:
        """Right-hand side: a number, or a vector as long as ``lhs``."""

    @abstractmethod
    def lhs(self, x: Any, candidates: Candidates) -> Any:
        """Left-hand side, convex in x, made of slicing and operators alone.

        One problem is compiled for many users, with a cvxpy Parameter for whatever differs between them. So
        this may read the catalogue and the ``len``, ``relevance``, ``membership`` and ``category`` of the
        candidates, but neither ``user`` nor ``items``, which are not there when compiling.

        Args:
            x: Selection, shape ``(n,)``: a 0/1 float64 array or a cvxpy Variable.
            candidates: The candidates that x selects from, with arrays or Parameters.

        Returns:
            A number or vector of x's kind.
        """

    @abstractmethod
    def measure(self, chosen: NDArray[np.intp], candidates: Candidates) -> float:
        """Violation of an emitted slate in the rule's own unit (items); 0.0 when the rule holds.

        Args:
            chosen: Rows of ``candidates``, in the order of the slate.
            candidates: The candidates of that user.
        """

    def check(self, catalogue: ItemCatalogue) -> None:  # noqa: B027 - most rules suit every catalogue
        """Raise SpecificationError if this rule asks for what the catalogue does not know."""

    def explain(self, candidates: Candidates) -> str:
        """What the rule asks beside what these candidates offer, in words, for a conflict's message."""
        return f"asked of {len(candidates)} candidates"
