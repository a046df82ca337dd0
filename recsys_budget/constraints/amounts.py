"""Rules about numbers of items: caps on totals, on popularity, and on the exposure of a category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints.base import ItemConstraint, UserConstraint, require_name, require_number
from recsys_budget.constraints.candidates import Candidates, Population, category_code
from recsys_budget.constraints.positions import Discount, checked_discount, position_weights
from recsys_budget.constraints.slate import category_members
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True)
class Cap(ItemConstraint, UserConstraint):
    """A knapsack: an attribute of the chosen items sums to at most so much (latency, bytes, cost).

    Attributes:
        attribute: Name of a numeric attribute of the catalogue, known for every item.
        total: The most, in the attribute's unit.

    Examples:
        >>> Cap("latency_ms", 200).name
        'latency_ms at most 200'
    """

    tighter: ClassVar[Mapping[str, int]] = {"total": -1}

    attribute: str
    total: float

    def __post_init__(self) -> None:
        require_name("Cap", "attribute", self.attribute)
        require_number("Cap", "total", self.total)
        super().__post_init__()

    def default_name(self) -> str:
        """``latency_ms at most 200``."""
        return f"{self.attribute} at most {self.total:g}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue lacks the attribute, or an item's value."""
        known_numbers(self.name, catalogue, self.attribute)

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The most."""
        return np.array([self.total], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """The attribute."""
        return sparse.csr_array(catalogue.attribute(self.attribute)[:, None])

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """How far the total is above the most, in the attribute's unit."""
        amounts = population.catalogue.attribute(self.attribute)
        return np.maximum(0.0, slate_totals(amounts, chosen, population) - self.total)

    def explain(self, candidates: Candidates) -> str:
        """The least total that so many items can have."""
        least = np.sort(candidates.attribute(self.attribute))[: candidates.k].sum()
        return f"the {candidates.k} candidates with least {self.attribute} have {least:g}"


@dataclass(frozen=True)
class PopularityMaximum(ItemConstraint, UserConstraint):
    """The mean popularity of a slate is at most so much, written ``sum_i (popularity_i - mean) x_i <= 0``.

    Attributes:
        mean: The most, in the unit of the attribute. The violation is that of the mean times the items
            chosen.
        attribute: Name of a numeric attribute of the catalogue, known for every item. Counted from private
            data it costs budget: take a public one, or one that a mechanism released.

    Examples:
        >>> PopularityMaximum(0.1).name
        'mean popularity at most 0.1'
    """

    tighter: ClassVar[Mapping[str, int]] = {"mean": -1}

    mean: float
    attribute: str = "popularity"

    def __post_init__(self) -> None:
        require_name("PopularityMaximum", "attribute", self.attribute)
        require_number("PopularityMaximum", "mean", self.mean)
        super().__post_init__()

    def default_name(self) -> str:
        """``mean popularity at most 0.1``."""
        return f"mean {self.attribute} at most {self.mean:g}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue lacks the attribute, or an item's value."""
        known_numbers(self.name, catalogue, self.attribute)

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """Zero."""
        return np.array([0.0])

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """What each item is above the mean."""
        return sparse.csr_array((catalogue.attribute(self.attribute) - self.mean)[:, None])

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """How far the sum of popularity is above what the mean allows."""
        total = slate_totals(population.catalogue.attribute(self.attribute), chosen, population)
        allowed = self.mean * (np.asarray(chosen) >= 0).sum(axis=1)
        return np.asarray(np.maximum(0.0, total - allowed), np.float64)

    def explain(self, candidates: Candidates) -> str:
        """The least mean that so many items can have."""
        least = np.sort(candidates.attribute(self.attribute))[: candidates.k].mean()
        return f"the {candidates.k} least popular candidates have a mean {self.attribute} of {least:g}"


@dataclass(frozen=True)
class NoveltyMinimum(ItemConstraint, UserConstraint):
    """The mean self-information of a slate, -log2 of popularity, is at least so many bits.

    Written ``sum_i (bits - novelty_i) x_i <= 0``.

    Attributes:
        bits: The least. The violation is that of the mean times the items chosen.
        attribute: Name of an attribute of the catalogue: the share of users who know an item, above 0 and at
            most 1. Counted from private data it costs budget: take a public one, or one that a mechanism
            released.

    References:
        Zhou, Kuscsik, Liu, Medo, Wakeling and Zhang (2010), doi:10.1073/pnas.1000488107.

    Examples:
        >>> NoveltyMinimum(6).name
        'mean novelty at least 6 bits'
    """

    tighter: ClassVar[Mapping[str, int]] = {"bits": 1}

    bits: float
    attribute: str = "popularity"

    def __post_init__(self) -> None:
        require_name("NoveltyMinimum", "attribute", self.attribute)
        require_number("NoveltyMinimum", "bits", self.bits)
        super().__post_init__()

    def default_name(self) -> str:
        """``mean novelty at least 6 bits``."""
        return f"mean novelty at least {self.bits:g} bits"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError unless the attribute is a share of users for every item."""
        novelty(self.name, catalogue, self.attribute)

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """Zero."""
        return np.array([0.0])

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """How far each item is short of the bits."""
        return sparse.csr_array((self.bits - novelty(self.name, catalogue, self.attribute))[:, None])

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """How far the sum of bits is below what the mean asks."""
        bits = -np.log2(population.catalogue.attribute(self.attribute))
        filled = (np.asarray(chosen) >= 0).sum(axis=1)
        short = self.bits * filled - slate_totals(bits, chosen, population)
        return np.asarray(np.maximum(0.0, short), np.float64)

    def explain(self, candidates: Candidates) -> str:
        """The greatest mean that so many items can have."""
        bits = np.sort(novelty(self.name, candidates.catalogue, self.attribute)[candidates.items])
        return (
            f"the {candidates.k} least known candidates have {bits[-candidates.k :].mean():g} bits on average"
        )


@dataclass(frozen=True)
class _CategoryExposure(ItemConstraint, UserConstraint):
    """A bound on the worth of the places that a category holds in a slate.

    Attributes:
        category: Name of the category.
        exposure: The bound, in first places: with a logarithmic discount, 1.5 is less than places 1 and 2.
        discount: What each place is worth: ``"log"``, ``"none"`` (1 at every place), or a tuple of numbers.
    """

    category: str
    exposure: float
    discount: Discount = "log"

    def __post_init__(self) -> None:
        require_name(type(self).__name__, "category", self.category)
        require_number(type(self).__name__, "exposure", self.exposure, least=0.0)
        object.__setattr__(self, "discount", checked_discount(type(self).__name__, self.discount))
        super().__post_init__()

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no such category."""
        category_code(catalogue, self.category)

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """The discount."""
        return None if self.discount == "none" else position_weights(self.discount, k)

    def _column(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        column = catalogue.membership[:, [category_code(catalogue, self.category)]]
        return sparse.csr_array(column).astype(np.float64)

    def _shown(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        members = category_members(population.catalogue, self.category).astype(np.float64)
        return slate_totals(members, chosen, population, position_weights(self.discount, chosen.shape[1]))

    def explain(self, candidates: Candidates) -> str:
        """The number of candidates in the category."""
        members = int(category_members(candidates.catalogue, self.category)[candidates.items].sum())
        worth = position_weights(self.discount, candidates.k)
        return (
            f"{members} of {len(candidates)} candidates are {self.category}, worth at most "
            f"{worth[:members].sum():g} at the top"
        )


@dataclass(frozen=True)
class ExposureMinimum(_CategoryExposure):
    """The places that a category holds are worth at least so much.

    Attributes:
        category: Name of the category.
        exposure: The least, 0 or more, in first places.
        discount: What each place is worth.

    Examples:
        >>> ExposureMinimum("Documentary", 1.2).name
        'exposure of Documentary at least 1.2'
    """

    tighter: ClassVar[Mapping[str, int]] = {"exposure": 1}

    def default_name(self) -> str:
        """``exposure of Documentary at least 1.2``."""
        return f"exposure of {self.category} at least {self.exposure:g}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The negative of the least."""
        return np.array([-self.exposure], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """-1 for members."""
        return -self._column(catalogue)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Exposure short of the least."""
        return np.maximum(0.0, self.exposure - self._shown(np.asarray(chosen), population))


@dataclass(frozen=True)
class ExposureMaximum(_CategoryExposure):
    """The places that a category holds are worth at most so much.

    Attributes:
        category: Name of the category.
        exposure: The most, 0 or more, in first places.
        discount: What each place is worth.

    Examples:
        >>> ExposureMaximum("Drama", 2).name
        'exposure of Drama at most 2'
    """

    tighter: ClassVar[Mapping[str, int]] = {"exposure": -1}

    def default_name(self) -> str:
        """``exposure of Drama at most 2``."""
        return f"exposure of {self.category} at most {self.exposure:g}"

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The most."""
        return np.array([self.exposure], np.float64)

    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """1 for members."""
        return self._column(catalogue)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Exposure beyond the most."""
        return np.maximum(0.0, self._shown(np.asarray(chosen), population) - self.exposure)


def slate_totals(
    amounts: NDArray[np.float64],
    chosen: NDArray[np.integer],
    population: Population,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Sum over each slate of a number per item, times what its place is worth; shape ``(n_users,)``."""
    items = population.chosen_items(chosen)
    total = np.zeros(len(items))
    for place in range(
        items.shape[1]
    ):  # in the order of places, so that sums do not depend on who else is there
        here = np.where(items[:, place] >= 0, amounts[items[:, place]], 0.0)
        total += here if weights is None else weights[place] * here
    return total


def known_numbers(owner: str, catalogue: ItemCatalogue, attribute: str) -> NDArray[np.float64]:
    """An attribute that is known for every item.

    Raises:
        SpecificationError: The catalogue has no such attribute, or not for every item.
    """
    numbers = catalogue.attribute(attribute)
    unknown = np.isnan(numbers)
    if unknown.any():
        raise SpecificationError(
            f"{owner!r} needs {attribute!r} of every item, but {int(unknown.sum())} lack it, the first "
            f"{catalogue.ids[int(unknown.argmax())]!r}; fill them in the catalogue"
        )
    return numbers


def novelty(owner: str, catalogue: ItemCatalogue, attribute: str) -> NDArray[np.float64]:
    """Self-information of each item in bits, from the share of users who know it.

    Raises:
        SpecificationError: The attribute is not such a share for every item.
    """
    share = known_numbers(owner, catalogue, attribute)
    bad = ~((share > 0.0) & (share <= 1.0))
    if bad.any():
        at = int(bad.argmax())
        raise SpecificationError(
            f"{owner!r}: {attribute!r} of item {catalogue.ids[at]!r} is {share[at]:g}, but must be a share "
            "of users above 0 and at most 1; clip released counts first"
        )
    return -np.log2(share)
