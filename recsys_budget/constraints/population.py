"""Rules about all users' slates together: exposure of providers, stock, cost, coverage, parity of groups."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints.amounts import known_numbers
from recsys_budget.constraints.base import (
    ConvexConstraint,
    ItemConstraint,
    PopulationConstraint,
    indicator,
    require_count,
    require_name,
    require_number,
)
from recsys_budget.constraints.candidates import Population, category_code, provider_code
from recsys_budget.constraints.form import ConcaveForm, Shortfall
from recsys_budget.constraints.positions import Discount, checked_discount, position_weights
from recsys_budget.constraints.slate import category_members
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class _ProviderExposure(ItemConstraint, PopulationConstraint):
    """A bound on the exposure of one provider or of each: what the places of its items are worth.

    Attributes:
        exposure: The bound, in first places: without a discount, the number of places. Give this or
            ``share``.
        share: The bound as a share, within [0, 1], of what all places of all slates are worth.
        provider: Name of the provider; None for each provider of the catalogue.
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"``, or a tuple of numbers.
    """

    exposure: float | None = None
    share: float | None = None
    provider: str | None = None
    discount: Discount = "none"

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if (self.exposure is None) == (self.share is None):
            raise SpecificationError(
                f"{kind}: give exposure, in places, or share of all places: one of the two"
            )
        if self.exposure is not None:
            require_number(kind, "exposure", self.exposure, least=0.0)
        else:
            require_number(kind, "share", self.share, least=0.0, most=1.0)
        if self.provider is not None:
            require_name(kind, "provider", self.provider)
        object.__setattr__(self, "discount", checked_discount(kind, self.discount))
        super().__post_init__()

    def default_name(self) -> str:
        """``exposure of each provider at least 0.5%``."""
        amount = f"{self.exposure:g}" if self.share is None else f"{100 * self.share:g}%"
        return f"exposure of {self.provider or 'each provider'} {self._word()} {amount}"

    @abstractmethod
    def _word(self) -> str:
        """``at least`` or ``at most``."""

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no providers, or not this one."""
        if self.provider is not None:
            provider_code(catalogue, self.provider)
        elif not catalogue.provider_names:
            raise SpecificationError(f"{self.name!r} needs a catalogue with providers; this one has none")

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """The discount."""
        return None if self.discount == "none" else position_weights(self.discount, k)

    def bound(self, population: Population) -> float:
        """The bound in first places."""
        if self.exposure is not None:
            return float(self.exposure)
        worth = position_weights(self.discount, population.k).sum()
        return float(self.share or 0.0) * float(worth) * len(population)

    def _columns(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        codes = catalogue.provider_codes
        if self.provider is not None:
            return indicator(codes == provider_code(catalogue, self.provider))
        rows = np.flatnonzero(codes >= 0)
        shape = (len(catalogue), len(catalogue.provider_names))
        return sparse.csr_array((np.ones(len(rows)), (rows, codes[rows])), shape=shape)

    def shown(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Exposure of each provider the rule is about, in first places, counted place by place."""
        catalogue = population.catalogue
        items = population.chosen_items(chosen)
        worth = np.broadcast_to(position_weights(self.discount, items.shape[1]), items.shape)
        owners = np.where(items >= 0, catalogue.provider_codes[items], -1)
        filled = owners >= 0
        counted = np.bincount(owners[filled], worth[filled], minlength=len(catalogue.provider_names))
        exposure = np.asarray(counted, np.float64)
        if self.provider is not None:
            return exposure[[provider_code(catalogue, self.provider)]]
        return exposure


@dataclass(frozen=True)
class ProviderMinimum(_ProviderExposure):
    """One provider, or each, gets at least so much exposure over all slates.

    Attributes:
        exposure: The least, in first places: without a discount, the number of places. Give this or
            ``share``.
        share: The least as a share, within [0, 1], of what all places of all slates are worth.
        provider: Name of the provider; None for each provider of the catalogue.
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"``, or a tuple of numbers.

    Examples:
        >>> ProviderMinimum(share=0.005).name
        'exposure of each provider at least 0.5%'
    """

    tighter: ClassVar[Mapping[str, int]] = {"exposure": 1, "share": 1}

    def _word(self) -> str:
        return "at least"

    def rhs(self, candidates: Population) -> float:
        """The negative of the least."""
        return -self.bound(candidates)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """-1 in the column of the item's provider."""
        return -self._columns(catalogue)

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """Exposure short of the least, summed over providers."""
        return float(np.maximum(0.0, self.bound(candidates) - self.shown(chosen, candidates)).sum())


@dataclass(frozen=True)
class ProviderMaximum(_ProviderExposure):
    """One provider, or each, gets at most so much exposure over all slates.

    Attributes:
        exposure: The most, in first places: without a discount, the number of places. Give this or ``share``.
        share: The most as a share, within [0, 1], of what all places of all slates are worth.
        provider: Name of the provider; None for each provider of the catalogue.
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"``, or a tuple of numbers.

    Examples:
        >>> ProviderMaximum(exposure=1000, provider="Acme").name
        'exposure of Acme at most 1000'
    """

    tighter: ClassVar[Mapping[str, int]] = {"exposure": -1, "share": -1}

    def _word(self) -> str:
        return "at most"

    def rhs(self, candidates: Population) -> float:
        """The most."""
        return self.bound(candidates)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 in the column of the item's provider."""
        return self._columns(catalogue)

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """Exposure beyond the most, summed over providers."""
        return float(np.maximum(0.0, self.shown(chosen, candidates) - self.bound(candidates)).sum())


@dataclass(frozen=True)
class StockMaximum(ItemConstraint, PopulationConstraint):
    """Each item is in at most so many slates.

    Attributes:
        count: The most, for every item; or the name of an attribute of the catalogue that holds it for each.

    Examples:
        >>> StockMaximum(500).name, StockMaximum("stock").name
        ('each item in at most 500 slates', 'each item in at most stock slates')
    """

    tighter: ClassVar[Mapping[str, int]] = {"count": -1}

    count: int | str

    def __post_init__(self) -> None:
        if not isinstance(self.count, str) or not self.count:
            require_count("StockMaximum", "count", self.count, least=0)
        super().__post_init__()

    def default_name(self) -> str:
        """``each item in at most 500 slates``."""
        return f"each item in at most {self.count} slates"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue lacks the attribute, or an item's value."""
        self._bounds(catalogue)

    def _bounds(self, catalogue: ItemCatalogue) -> NDArray[np.float64]:
        if isinstance(self.count, str):
            return known_numbers(self.name, catalogue, self.count)
        return np.full(len(catalogue), float(self.count))

    def rhs(self, candidates: Population) -> NDArray[np.float64]:
        """The most of each item."""
        return self._bounds(candidates.catalogue)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 in the item's own column."""
        return sparse.csr_array(sparse.eye_array(len(catalogue)))

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """Slates beyond the most, summed over items."""
        items = candidates.chosen_items(chosen)
        shown = np.bincount(items[items >= 0], minlength=len(candidates.catalogue))
        return float(np.maximum(0.0, shown - self._bounds(candidates.catalogue)).sum())


@dataclass(frozen=True)
class TotalMaximum(ItemConstraint, PopulationConstraint):
    """An attribute of all items of all slates sums to at most so much: a total cost.

    Attributes:
        attribute: Name of a numeric attribute of the catalogue, known for every item.
        total: The most, in the attribute's unit.

    Examples:
        >>> TotalMaximum("cost", 1e4).name
        'cost of all slates at most 10000'
    """

    tighter: ClassVar[Mapping[str, int]] = {"total": -1}

    attribute: str
    total: float

    def __post_init__(self) -> None:
        require_name("TotalMaximum", "attribute", self.attribute)
        require_number("TotalMaximum", "total", self.total)
        super().__post_init__()

    def default_name(self) -> str:
        """``cost of all slates at most 10000``."""
        return f"{self.attribute} of all slates at most {self.total:g}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue lacks the attribute, or an item's value."""
        known_numbers(self.name, catalogue, self.attribute)

    def rhs(self, candidates: Population) -> float:
        """The most."""
        return float(self.total)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """The attribute."""
        return sparse.csr_array(catalogue.attribute(self.attribute)[:, None])

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """How far the total is above the most, in the attribute's unit."""
        items = candidates.chosen_items(chosen)
        amounts = candidates.catalogue.attribute(self.attribute)
        return max(0.0, float(amounts[items[items >= 0]].sum()) - self.total)


@dataclass(frozen=True)
class CatalogueCoverage(ConvexConstraint, PopulationConstraint):
    """At least so many different items are in some slate.

    Written as ``sum_i max(0, 1 - slates with i) <= items - count``.

    Attributes:
        count: The least, 0 or more items.

    Examples:
        >>> CatalogueCoverage(1000).name
        'at least 1000 different items shown'
    """

    tighter: ClassVar[Mapping[str, int]] = {"count": 1}

    count: int

    def __post_init__(self) -> None:
        require_count("CatalogueCoverage", "count", self.count, least=0)
        super().__post_init__()

    def default_name(self) -> str:
        """``at least 1000 different items shown``."""
        return f"at least {self.count} different items shown"

    def rhs(self, candidates: Population) -> float:
        """Items that may go unseen, of those that are somebody's candidates."""
        return float(len(np.unique(candidates.items)) - self.count)

    def form(self, candidates: Population) -> ConcaveForm:
        """The negative of the number of candidates' items that are in no slate."""
        items, codes = np.unique(candidates.items, return_inverse=True)
        shape = (len(codes), len(items))
        factor = sparse.csr_array((np.ones(len(codes)), (np.arange(len(codes)), codes)), shape=shape)
        return ConcaveForm(np.zeros(len(codes)), ((factor, Shortfall(1.0, 1.0)),))

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """Items too few."""
        items = candidates.chosen_items(chosen)
        return float(max(0, self.count - len(np.unique(items[items >= 0]))))

    def explain(self, candidates: Population) -> str:
        """How many items there are to show."""
        return f"{len(np.unique(candidates.items))} different items are candidates"


@dataclass(frozen=True)
class GroupParity(ItemConstraint, PopulationConstraint):
    """Two categories get the same exposure for each of their items in the catalogue, to within a tolerance.

    Demographic parity of exposure, over all slates: ``|E(first) / n(first) - E(second) / n(second)|`` is at
    most the tolerance times the mean exposure of an item of the catalogue. An item in both counts in both.

    Attributes:
        first: Name of a category.
        second: Name of another; None for all items that are not in the first.
        tolerance: The greatest difference, as a share of the mean exposure of an item; 0 or more.
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"``, or a tuple of numbers.

    References:
        Singh and Joachims (2018), section 4.1, arXiv:1802.07281; there for one ranking, here for all of them.

    Examples:
        >>> GroupParity("Documentary", tolerance=0.1).name
        'exposure of Documentary within 10% of the others'
    """

    tighter: ClassVar[Mapping[str, int]] = {"tolerance": -1}

    first: str
    second: str | None = None
    tolerance: float = 0.1
    discount: Discount = "none"

    def __post_init__(self) -> None:
        require_name("GroupParity", "category", self.first)
        if self.second is not None:
            require_name("GroupParity", "category", self.second)
        require_number("GroupParity", "tolerance", self.tolerance, least=0.0)
        object.__setattr__(self, "discount", checked_discount("GroupParity", self.discount))
        super().__post_init__()

    def default_name(self) -> str:
        """``exposure of Documentary within 10% of the others``."""
        return f"exposure of {self.first} within {100 * self.tolerance:g}% of {self.second or 'the others'}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if a group is not known or holds no item."""
        category_code(catalogue, self.first)
        if self.second is not None:
            category_code(catalogue, self.second)
        names = (self.first, self.second or "the others")
        for members, group in zip(self._groups(catalogue), names, strict=True):
            if not members.any():
                raise SpecificationError(f"{self.name!r}: no item of the catalogue is in {group!r}")

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """The discount."""
        return None if self.discount == "none" else position_weights(self.discount, k)

    def _groups(self, catalogue: ItemCatalogue) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        first = category_members(catalogue, self.first)
        return first, ~first if self.second is None else category_members(catalogue, self.second)

    def rhs(self, candidates: Population) -> float:
        """The tolerance times an item's mean exposure, the same both ways."""
        worth = position_weights(self.discount, candidates.k).sum()
        return float(self.tolerance * worth * len(candidates) / len(candidates.catalogue))

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """The difference of exposure an item, and its negative."""
        first, second = self._groups(catalogue)
        difference = first / first.sum() - second / second.sum()
        return sparse.csr_array(np.outer(difference, [1.0, -1.0]))

    def measure(self, chosen: NDArray[np.integer], candidates: Population) -> float:
        """Exposure an item, in first places, beyond the tolerance."""
        items = candidates.chosen_items(chosen)
        worth = np.broadcast_to(position_weights(self.discount, items.shape[1]), items.shape)
        shown = np.bincount(items[items >= 0], worth[items >= 0], minlength=len(candidates.catalogue))
        first, second = self._groups(candidates.catalogue)
        return max(0.0, float(abs(shown[first].mean() - shown[second].mean())) - self.rhs(candidates))
