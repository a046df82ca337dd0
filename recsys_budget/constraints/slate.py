"""Rules about which items a user's slate holds: how many, of which categories, groups and single items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints.base import (
    ItemConstraint,
    UserConstraint,
    indicator,
    require_count,
    require_name,
)
from recsys_budget.constraints.candidates import Candidates, Population, category_code, item_code
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class SlateSize(ItemConstraint, UserConstraint):
    """Exactly ``k`` different items.

    Attributes:
        k: Items a slate, at least 1.

    Examples:
        >>> SlateSize(10).name
        'exactly 10 items'
    """

    k: int

    def __post_init__(self) -> None:
        require_count("SlateSize", "k", self.k, least=1)
        super().__post_init__()

    def default_name(self) -> str:
        """``exactly 10 items``."""
        return f"exactly {self.k} items"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """At most k, and at most -k of the negative count."""
        return np.array([self.k, -self.k], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """The count and its negative."""
        return sparse.csr_array(np.tile([1.0, -1.0], (len(catalogue), 1)))

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Slots too many or too few; a repeated item fills one slot only."""
        items = np.sort(population.chosen_items(chosen), axis=1)
        filled = (items >= 0).sum(axis=1)
        repeats = ((np.diff(items, axis=1) == 0) & (items[:, 1:] >= 0)).sum(axis=1)
        wrong = np.maximum(np.abs(filled - self.k), np.abs(filled - repeats - self.k))
        return np.asarray(wrong, np.float64)

    def explain(self, candidates: Candidates) -> str:
        """The size against the number of candidates."""
        return f"asks for {self.k} of {len(candidates)} candidates"


@dataclass(frozen=True)
class _CategoryCount(ItemConstraint, UserConstraint):
    """A bound on the number of items of one category; an item counts in each of its categories.

    Attributes:
        category: Name of the category, as the catalogue writes it.
        count: The bound, 0 or more items.
    """

    category: str
    count: int

    def __post_init__(self) -> None:
        require_name(type(self).__name__, "category", self.category)
        require_count(type(self).__name__, "count", self.count, least=0)
        super().__post_init__()

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no such category."""
        category_code(catalogue, self.category)

    def _column(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        column = catalogue.membership[:, [category_code(catalogue, self.category)]]
        return sparse.csr_array(column).astype(np.float64)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Items short of the minimum, or beyond the maximum."""
        members = category_members(population.catalogue, self.category)
        return np.maximum(0.0, self._excess(count_members(members, chosen, population)))

    @abstractmethod
    def _excess(self, members: NDArray[np.intp]) -> NDArray[np.intp]:
        """Violation of slates with so many members; not positive when they satisfy the bound."""

    def explain(self, candidates: Candidates) -> str:
        """The bound against the number of candidates in the category."""
        members = int(category_members(candidates.catalogue, self.category)[candidates.items].sum())
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

    tighter: ClassVar[Mapping[str, int]] = {"count": 1}

    def default_name(self) -> str:
        """``at least 2 Documentary``."""
        return f"at least {self.count} {self.category}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The negative of the bound, since the inequality points down."""
        return np.array([-self.count], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """-1 for members."""
        return -self._column(catalogue)

    def _excess(self, members: NDArray[np.intp]) -> NDArray[np.intp]:
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

    tighter: ClassVar[Mapping[str, int]] = {"count": -1}

    def default_name(self) -> str:
        """``at most 4 Drama``."""
        return f"at most {self.count} {self.category}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The bound."""
        return np.array([self.count], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 for members."""
        return self._column(catalogue)

    def _excess(self, members: NDArray[np.intp]) -> NDArray[np.intp]:
        return members - self.count


@dataclass(frozen=True)
class GroupMaximum(ItemConstraint, UserConstraint):
    """At most ``count`` items of any one group: of one provider, one series, one artist.

    Attributes:
        count: Most items of a group, at least 1.
        by: What makes a group: ``"provider"``, or the name of a numeric attribute of the catalogue, whose
            equal values make a group. Items without a provider, or with NaN, belong to none.

    Examples:
        >>> GroupMaximum(1).name
        'at most 1 a provider'
    """

    tighter: ClassVar[Mapping[str, int]] = {"count": -1}

    count: int = 1
    by: str = "provider"

    def __post_init__(self) -> None:
        require_count("GroupMaximum", "count", self.count, least=1)
        require_name("GroupMaximum", "grouping", self.by)
        super().__post_init__()

    def default_name(self) -> str:
        """``at most 1 a provider``."""
        return f"at most {self.count} a {self.by}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no such attribute."""
        self._labels(catalogue)

    def _labels(self, catalogue: ItemCatalogue) -> NDArray[np.intp]:
        """A group number an item, -1 for none."""
        if self.by == "provider":
            return catalogue.provider_codes.astype(np.intp)
        values = catalogue.attribute(self.by)
        labels = np.unique(values, return_inverse=True)[1].astype(np.intp)
        return np.where(np.isnan(values), -1, labels)

    def rhs(self, candidates: Any) -> float:
        """The bound, the same for each group."""
        return float(self.count)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 in the column of the item's group."""
        labels = self._labels(catalogue)
        rows = np.flatnonzero(labels >= 0)
        shape = (len(labels), max(int(labels.max(initial=-1)) + 1, 1))
        return sparse.csr_array((np.ones(len(rows)), (rows, labels[rows])), shape=shape)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Items beyond the bound, summed over groups."""
        items = population.chosen_items(chosen)
        labels = np.sort(np.where(items >= 0, self._labels(population.catalogue)[items], -1), axis=1)
        beyond = np.zeros(len(items))
        for later in range(self.count, labels.shape[1]):
            # In sorted order, an item is beyond the bound when the one ``count`` places before is of its
            # group.
            beyond += (labels[:, later] == labels[:, later - self.count]) & (labels[:, later] >= 0)
        return beyond

    def explain(self, candidates: Candidates) -> str:
        """How many groups there are among the candidates."""
        labels = self._labels(candidates.catalogue)[candidates.items]
        groups = len(np.unique(labels[labels >= 0]))
        return f"the {len(candidates)} candidates are of {groups} groups by {self.by}"


@dataclass(frozen=True)
class _ItemRule(ItemConstraint, UserConstraint):
    """A rule about one item, at any place or at one.

    Attributes:
        item: Id of the item.
        position: Place in the slate, from 1; None for any.
    """

    item: str
    position: int | None = None

    def __post_init__(self) -> None:
        require_name(type(self).__name__, "item", self.item)
        if self.position is not None:
            require_count(type(self).__name__, "position", self.position, least=1)
        super().__post_init__()

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if there is no such item in the catalogue or no such place in a slate."""
        item_code(catalogue, self.item)
        if self.position is not None and self.position > k:
            raise SpecificationError(f"{self.name!r} names place {self.position} of a slate of {k}")

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """1 at the place alone."""
        return None if self.position is None else (np.arange(1, k + 1) == self.position).astype(np.float64)

    def _where(self) -> str:
        return "" if self.position is None else f" at place {self.position}"

    def _column(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        return indicator(np.arange(len(catalogue)) == item_code(catalogue, self.item))

    def _present(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        items = population.chosen_items(chosen)
        if self.position is not None:
            items = items[:, self.position - 1 : self.position]
        present = (items == item_code(population.catalogue, self.item)).sum(axis=1)
        return np.asarray(present, np.float64)

    def explain(self, candidates: Candidates) -> str:
        """Whether the item is a candidate."""
        among = item_code(candidates.catalogue, self.item) in candidates.items
        return f"item {self.item!r} is {'' if among else 'not '}among the {len(candidates)} candidates"


@dataclass(frozen=True)
class Pin(_ItemRule):
    """An item that every slate holds, at any place or at one.

    A user whose candidates lack the item has no slate.

    Attributes:
        item: Id of the item.
        position: Place in the slate, from 1; None for any.

    Examples:
        >>> Pin("i7", 1).name
        "'i7' at place 1"
    """

    def default_name(self) -> str:
        """``'i7' at place 1``."""
        return f"{self.item!r}{self._where() or ' in the slate'}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """At least one, as the negative of one."""
        return np.array([-1.0])

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """-1 for the item."""
        return -self._column(catalogue)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """1 where the item is not there."""
        return np.maximum(0.0, 1.0 - self._present(chosen, population))


@dataclass(frozen=True)
class Block(_ItemRule):
    """An item that no slate holds, at any place or at one.

    Attributes:
        item: Id of the item.
        position: Place in the slate, from 1; None for any.

    Examples:
        >>> Block("i7").name
        "no 'i7'"
    """

    def default_name(self) -> str:
        """``no 'i7' at place 1``."""
        return f"no {self.item!r}{self._where()}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """None."""
        return np.array([0.0])

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 for the item."""
        return self._column(catalogue)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """How often the item is there."""
        return self._present(chosen, population)


def category_members(catalogue: ItemCatalogue, category: str) -> NDArray[np.bool_]:
    """Which items the catalogue lists in the category, shape ``(n_items,)``, looked up item by item."""
    code = category_code(catalogue, category)
    indptr, indices = catalogue.membership.indptr, catalogue.membership.indices
    members = np.zeros(len(catalogue), bool)
    members[np.repeat(np.arange(len(catalogue)), np.diff(indptr))[indices == code]] = True
    return members


def count_members(
    members: NDArray[np.bool_], chosen: NDArray[np.integer], population: Population
) -> NDArray[np.intp]:
    """How many places of each slate hold a member, shape ``(n_users,)``."""
    items = population.chosen_items(chosen)
    return np.asarray((members[items] & (items >= 0)).sum(axis=1))
