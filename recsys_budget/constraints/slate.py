"""Rules about a single user's slate: how long it is, and how many items of a category it holds."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints.base import Constraint
from recsys_budget.constraints.candidates import Candidates, category_code
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class SlateSize(Constraint):
    """Exactly ``k`` different items.

    Attributes:
        k: Items a slate, at least 1.

    Examples:
        >>> SlateSize(10).name
        'exactly 10 items'
    """

    k: int

    def __post_init__(self) -> None:
        _require_count("SlateSize", "k", self.k, least=1)
        super().__post_init__()

    def default_name(self) -> str:
        """``exactly 10 items``."""
        return f"exactly {self.k} items"

    @property
    def rhs(self) -> NDArray[np.float64]:
        """At most k, and at most -k of the negative count."""
        return np.array([self.k, -self.k], np.float64)

    def lhs(self, x: Any, candidates: Candidates) -> Any:
        """The count and its negative, shape ``(2,)``."""
        return np.outer([1.0, -1.0], np.ones(len(candidates))) @ x

    def measure(self, chosen: NDArray[np.intp], candidates: Candidates) -> float:
        """Slots too many or too few; a repeated item fills one slot only."""
        distinct = len({int(item) for item in candidates.items[chosen]})
        return float(max(abs(len(chosen) - self.k), abs(distinct - self.k)))

    def explain(self, candidates: Candidates) -> str:
        """The size against the number of candidates."""
        return f"asks for {self.k} of {len(candidates)} candidates"


@dataclass(frozen=True)
class _CategoryCount(Constraint):
    """A bound on the number of items of one category; an item counts in each of its categories.

    Attributes:
        category: Name of the category, as the catalogue writes it.
        count: The bound, 0 or more items.
    """

    category: str
    count: int

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if not isinstance(self.category, str) or not self.category:
            raise SpecificationError(f"{kind} needs the name of a category, not {self.category!r}")
        _require_count(kind, "count", self.count, least=0)
        super().__post_init__()

    def check(self, catalogue: ItemCatalogue) -> None:
        """Raise SpecificationError if the catalogue has no such category."""
        category_code(catalogue, self.category)

    def measure(self, chosen: NDArray[np.intp], candidates: Candidates) -> float:
        """Items short of the minimum, or beyond the maximum."""
        return float(max(0, self._excess(_members(candidates.items[chosen], candidates, self.category))))

    @abstractmethod
    def _excess(self, members: int) -> int:
        """Violation of a slate with so many members; not positive when it satisfies the bound."""

    def explain(self, candidates: Candidates) -> str:
        """The bound against the number of candidates in the category."""
        members = _members(candidates.items, candidates, self.category)
        return f"{members} of {len(candidates)} candidates are {self.category}"


@dataclass(frozen=True)
class CategoryMinimum(_CategoryCount):
    """At least ``count`` items of a category; an item counts in each of its categories.

    Attributes:
        category: Name of the category, as the catalogue writes it.
        count: Fewest items, 0 or more.

    Examples:
        >>> CategoryMinimum("Documentary", 2, reason="public service remit").name
        'at least 2 Documentary'
    """

    def default_name(self) -> str:
        """``at least 2 Documentary``."""
        return f"at least {self.count} {self.category}"

    @property
    def rhs(self) -> float:
        """The negative of the bound, since the inequality points down."""
        return -float(self.count)

    def lhs(self, x: Any, candidates: Candidates) -> Any:
        """The negative of the number of members chosen."""
        return -(candidates.category(self.category) @ x)

    def _excess(self, members: int) -> int:
        return self.count - members


@dataclass(frozen=True)
class CategoryMaximum(_CategoryCount):
    """At most ``count`` items of a category; an item counts in each of its categories.

    Attributes:
        category: Name of the category, as the catalogue writes it.
        count: Most items, 0 or more.

    Examples:
        >>> CategoryMaximum("Drama", 4).name
        'at most 4 Drama'
    """

    def default_name(self) -> str:
        """``at most 4 Drama``."""
        return f"at most {self.count} {self.category}"

    @property
    def rhs(self) -> float:
        """The bound."""
        return float(self.count)

    def lhs(self, x: Any, candidates: Candidates) -> Any:
        """The number of members chosen."""
        return candidates.category(self.category) @ x

    def _excess(self, members: int) -> int:
        return members - self.count


def _members(items: NDArray[np.intp], candidates: Candidates, category: str) -> int:
    """How many of the items the catalogue lists in the category, looked up item by item."""
    code = category_code(candidates.catalogue, category)
    indptr, indices = candidates.catalogue.membership.indptr, candidates.catalogue.membership.indices
    return sum(code in indices[indptr[item] : indptr[item + 1]] for item in items.tolist())


def _require_count(kind: str, field: str, value: object, *, least: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise SpecificationError(f"{kind}: {field}={value!r}, but it must be a whole number, {least} or more")
