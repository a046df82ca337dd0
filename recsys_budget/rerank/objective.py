"""What makes one slate better than another: engagement, diversity and more, and the weights between them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Candidates, ConvexConstraint, Population, UserConstraint
from recsys_budget.constraints.amounts import novelty, slate_totals
from recsys_budget.constraints.base import require_name, require_number
from recsys_budget.constraints.engagement import (
    calibration,
    divergence_form,
    engagement,
    gains,
    require_alpha,
    require_categories,
)
from recsys_budget.constraints.form import ConcaveForm, Shortfall, SquaredNorm
from recsys_budget.constraints.positions import Discount, checked_discount, position_weights
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError

# Users whose pairs of items are compared at a time, to keep memory small.
_BLOCK = 4096


class Objective(ABC):
    """A concave function of a user's slate, to maximise; the mean over users is what a re-ranker maximises.

    ``form`` is what solvers and cvxpy see. ``value_all`` counts the value of emitted slates, without the
    form. The objectives here lie in [0, 1] for every user, so that a weight between two means the same for
    all. They add up and take weights: ``0.7 * Engagement() + 0.3 * Diversity()``.
    """

    @property
    def parts(self) -> tuple[tuple[float, Objective], ...]:
        """The objective as a weighted sum of others, or of itself alone."""
        return ((1.0, self),)

    @property
    def positional(self) -> bool:
        """Whether the order of a slate matters otherwise than that the most relevant come first."""
        return False

    @abstractmethod
    def form(self, candidates: Candidates) -> ConcaveForm:
        """The objective over selections of k of the candidates, or over assignments where ``positional``."""

    @abstractmethod
    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Objective of each slate, from its definition, shape ``(n_users,)``."""

    def value(self, chosen: NDArray[np.integer], candidates: Candidates) -> float:
        """Objective of one user's slate; chosen are rows of the candidates in the order of the slate."""
        return float(self.value_all(np.asarray(chosen)[None, :], Population.of_one(candidates))[0])

    def check(self, catalogue: ItemCatalogue, k: int) -> None:  # noqa: B027 - most suit every catalogue
        """Raise SpecificationError if this needs what the catalogue does not know."""

    def __add__(self, other: Objective) -> Objective:
        return WeightedSum(self.parts + other.parts) if isinstance(other, Objective) else NotImplemented

    def __rmul__(self, weight: float) -> Objective:
        require_number("an objective", "weight", weight, least=0.0)
        return WeightedSum(tuple((float(weight) * w, part) for w, part in self.parts))


@dataclass(frozen=True)
class WeightedSum(Objective):
    """A sum of objectives times weights that are not negative.

    Attributes:
        summands: Pairs of a weight and an objective.
    """

    summands: tuple[tuple[float, Objective], ...]

    @property
    def parts(self) -> tuple[tuple[float, Objective], ...]:
        """The summands."""
        return self.summands

    @property
    def positional(self) -> bool:
        """Whether any part is."""
        return any(part.positional for weight, part in self.parts if weight > 0.0)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """The sum of the parts' forms."""
        return sum_of_forms(
            [part.form(candidates).scaled(w) for w, part in self.parts if w > 0.0], candidates
        )

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """The sum of the parts' values."""
        total = np.zeros(len(population))
        for weight, part in self.parts:
            if weight > 0.0:
                total += weight * part.value_all(chosen, population)
        return total

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """As for each part."""
        for _, part in self.parts:
            part.check(catalogue, k)


@dataclass(frozen=True)
class Engagement(Objective):
    """Relevance of a slate, as a share of the best that the user's candidates allow, in [0, 1].

    For relevance that is nowhere negative this is the slate's (discounted) total over that of the user's top
    k candidates; see ``gains`` in ``constraints/engagement.py`` for the rest.

    Attributes:
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"`` (as in DCG), or a tuple
            of numbers that never rise.
    """

    discount: Discount = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "discount", checked_discount("Engagement", self.discount))

    @property
    def positional(self) -> bool:
        """Whether places count differently."""
        return self.discount != "none"

    def form(self, candidates: Candidates) -> ConcaveForm:
        """What each candidate adds, times what each place is worth."""
        worth = position_weights(self.discount, candidates.k)
        each = gains(candidates.relevance, np.array([0, len(candidates)], np.int64), worth)
        return ConcaveForm(np.outer(each, worth) if self.positional else each)

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Shares of the best."""
        return engagement(chosen, population, self.discount)


@dataclass(frozen=True)
class Diversity(Objective):
    """Intra-list diversity: the mean of ``1 - cosine`` of categories over pairs of a slate, in [0, 1].

    An item without categories has cosine 0 with every other. 0 for slates of one item.

    References:
        Smyth and McClave (2001), doi:10.1007/3-540-44593-5_25; Ziegler, McNee, Konstan and Lausen (2005),
        doi:10.1145/1060745.1060754, up to sign.
    """

    def form(self, candidates: Candidates) -> ConcaveForm:
        """A concave quadratic over selections x with ``sum(x) == k``.

        With G the rows of unit category vectors (zero rows for items without a category),
        ``||G.T x||^2 = sum_i x_i^2 |g_i|^2 + 2 sum_{i<j} x_i x_j cos_ij`` and ``x_i^2 = x_i``, so the mean of
        ``1 - cos`` over the ``k (k - 1) / 2`` pairs is
        ``1 - (||G.T x||^2 - sum_i |g_i|^2 x_i) / (k (k - 1))``,
        which is concave in x over the relaxation to [0, 1] as well.
        """
        k = candidates.k
        if k == 1:
            return ConcaveForm(np.zeros(len(candidates)))
        unit = unit_rows(candidates.membership)
        pairs = k * (k - 1)
        return ConcaveForm(np.square(unit).sum(axis=1) / pairs, ((unit, SquaredNorm(1.0 / pairs)),), 1.0)

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Mean over pairs, from the cosines of the items of each slate."""
        items = population.chosen_items(chosen)
        k = items.shape[1]
        means = np.zeros(len(items))
        earlier = np.triu(np.ones((k, k), bool), 1)
        shown = np.bincount(items[items >= 0], minlength=len(population.catalogue)) > 0
        position = np.cumsum(shown) - 1
        known = population.catalogue.membership[np.flatnonzero(shown)].toarray().astype(np.float64)
        units = unit_rows(known)
        for start in range(0, len(items) if k > 1 and shown.any() else 0, _BLOCK):
            block = items[start : start + _BLOCK]
            there = block >= 0
            unit = units[position[block]]  # of empty places any row: they are not counted
            unlike = 1.0 - unit @ unit.transpose(0, 2, 1)
            counts = earlier[None] if there.all() else there[:, :, None] & there[:, None, :] & earlier
            pairs = np.maximum(counts.sum(axis=(1, 2)), 1)
            means[start : start + _BLOCK] = (unlike * counts).reshape(len(block), -1).sum(axis=1) / pairs
        return np.clip(means, 0.0, 1.0)


@dataclass(frozen=True)
class Coverage(Objective):
    """Share of the catalogue's categories that occur in a slate, in [0, 1]."""

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no categories."""
        require_categories("Coverage", catalogue)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """``1 - sum_c max(0, 1 - members of c) / n_categories``."""
        membership = candidates.membership
        missing = Shortfall(1.0 / membership.shape[1], 1.0)
        return ConcaveForm(np.zeros(len(candidates)), ((membership, missing),), 1.0)

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Categories seen over categories there are."""
        items = population.chosen_items(chosen)
        membership = population.catalogue.membership
        seen = np.zeros((len(items), membership.shape[1]), bool)
        for place in range(items.shape[1]):
            here = membership[items[:, place]].toarray() > 0
            seen |= here & (items[:, place] >= 0)[:, None]
        return np.asarray(seen.mean(axis=1))


@dataclass(frozen=True)
class HistoryMatch(Objective):
    """How close the mix of categories in a slate is to that in the user's history, in [0, 1].

    1 minus the divergence of :class:`~recsys_budget.constraints.Calibration` over its greatest value,
    ``-log(alpha)``. 1 for a user without a categorised item in the history.

    Attributes:
        alpha: Share of the history's mix that keeps the divergence finite, between 0 and 1, both excluded.

    References:
        Steck (2018), doi:10.1145/3240323.3240372.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        require_alpha("HistoryMatch", self.alpha)

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no categories."""
        require_categories("HistoryMatch", catalogue)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """1 minus the scaled divergence."""
        form = divergence_form("HistoryMatch", candidates, self.alpha).scaled(-1.0 / math.log(self.alpha))
        return ConcaveForm(form.linear, form.terms, 1.0)

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """1 minus the scaled divergence, counted place by place."""
        nats = calibration("HistoryMatch", chosen, population, self.alpha)
        return 1.0 + nats / math.log(self.alpha)


@dataclass(frozen=True)
class Novelty(Objective):
    """Mean self-information of a slate's items over the greatest in the catalogue, in [0, 1].

    Attributes:
        attribute: Name of an attribute of the catalogue: the share of users who know an item, above 0 and at
            most 1. Counted from private data it costs budget: take a public one, or one that a mechanism
            released.

    References:
        Zhou, Kuscsik, Liu, Medo, Wakeling and Zhang (2010), doi:10.1073/pnas.1000488107.
    """

    attribute: str = "popularity"

    def __post_init__(self) -> None:
        require_name("Novelty", "attribute", self.attribute)

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError unless the attribute is a share of users for every item."""
        novelty("Novelty", catalogue, self.attribute)

    def each(self, catalogue: ItemCatalogue, k: int) -> NDArray[np.float64]:
        """What each item of the catalogue adds to a slate of k, shape ``(n_items,)``."""
        bits = novelty("Novelty", catalogue, self.attribute)
        most = bits.max(initial=0.0)
        return bits / ((most if most > 0.0 else 1.0) * k)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """Linear."""
        return ConcaveForm(self.each(candidates.catalogue, candidates.k)[candidates.items])

    def value_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Mean over places."""
        return slate_totals(self.each(population.catalogue, population.k), chosen, population)


@dataclass(frozen=True)
class EngagementDiversity(WeightedSum):
    """``(1 - diversity_weight) * Engagement() + diversity_weight * Diversity()``.

    Attributes:
        diversity_weight: 0 (engagement alone) to 1 (diversity alone).

    Raises:
        SpecificationError: The weight is not within [0, 1].
    """

    summands: tuple[tuple[float, Objective], ...] = ()
    diversity_weight: float = 0.0

    def __init__(self, diversity_weight: float = 0.0) -> None:
        if not isinstance(diversity_weight, float | int | np.number) or not 0.0 <= diversity_weight <= 1.0:
            raise SpecificationError(
                f"diversity_weight={diversity_weight!r}; it must lie between 0 (engagement alone) and 1"
            )
        weight = float(diversity_weight)
        object.__setattr__(self, "diversity_weight", weight)
        object.__setattr__(self, "summands", ((1.0 - weight, Engagement()), (weight, Diversity())))

    def __repr__(self) -> str:
        return f"EngagementDiversity({self.diversity_weight:g})"


@dataclass(frozen=True)
class ObjectiveFloor(ConvexConstraint, UserConstraint):
    """A slate's value by some objective is at least so much: maximise one objective, bound another.

    This is the epsilon-constraint form of a trade-off (Haimes, Lasdon and Wismer 1971,
    doi:10.1109/TSMC.1971.4308298), which reaches points that no weighted sum does.

    Attributes:
        objective: The objective that is bounded.
        least: The least, in the objective's unit.

    Examples:
        >>> ObjectiveFloor(Diversity(), 0.8).name
        'Diversity() at least 0.8'
    """

    tighter: ClassVar[Mapping[str, int]] = {"least": 1}

    objective: Objective
    least: float

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise SpecificationError(f"ObjectiveFloor bounds an objective, not {self.objective!r}")
        require_number("ObjectiveFloor", "least", self.least)
        super().__post_init__()

    @property
    def positional(self) -> bool:
        """As the objective is."""
        return self.objective.positional

    def default_name(self) -> str:
        """``Diversity() at least 0.8``."""
        return f"{self.objective!r} at least {self.least:g}"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """As for the objective."""
        self.objective.check(catalogue, k)

    def rhs(self, candidates: Any) -> float:
        """The negative of the least."""
        return -float(self.least)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """The objective."""
        return self.objective.form(candidates)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """How far the objective is below the least."""
        return np.maximum(0.0, self.least - self.objective.value_all(chosen, population))


def sum_of_forms(forms: list[ConcaveForm], candidates: Candidates) -> ConcaveForm:
    """The sum of concave functions of the same selection; 0 of none."""
    total = ConcaveForm(np.zeros(len(candidates)))
    for form in forms:
        total = total + form
    return total


def unit_rows(membership: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to length 1; rows of zeros as they are."""
    norms = np.sqrt(np.square(membership).sum(axis=1, keepdims=True))
    return membership / np.where(norms > 0.0, norms, 1.0)


def unit_categories(catalogue: ItemCatalogue) -> sparse.csr_array:
    """Each item's category vector scaled to length 1, shape ``(n_items, n_categories)``, float64."""
    membership = catalogue.membership
    per_item = np.diff(membership.indptr)
    data = membership.data / np.repeat(np.sqrt(np.maximum(per_item, 1.0)), per_item)
    return sparse.csr_array((data, membership.indices, membership.indptr), shape=membership.shape)
