"""Engagement as a share of each user's best, and rules about what a user is known to like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from recsys_budget.constraints.base import (
    ConvexConstraint,
    LinearConstraint,
    UserConstraint,
    require_number,
)
from recsys_budget.constraints.candidates import Candidates, Population
from recsys_budget.constraints.form import ConcaveForm, Divergence
from recsys_budget.constraints.positions import Discount, checked_discount, position_weights
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError

_ROWS = 1 << 20  # rows worked on together, so that memory does not grow with the number of users


def gains(
    relevance: NDArray[np.float64], offsets: NDArray[np.int64], worth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What each candidate adds to its user's engagement at a place of worth 1, shape ``(n_rows,)``.

    The best slate of each user that slate size allows has engagement 1. For relevance that is nowhere
    negative, engagement is the slate's (discounted) total over that of the user's top k. Where some is
    negative (logits, say), the user's lowest relevance is subtracted from all first. Multiplying all
    relevance of a user by a positive number changes nothing. Where all candidates are equally relevant, every
    slate is the best.

    Args:
        relevance: Shape ``(n_rows,)``, finite, never rising within a user.
        offsets: Row boundaries of users, none of them without rows.
        worth: What each place is worth, shape ``(k,)``, never rising.
    """
    found = np.empty(len(relevance))
    n_users = len(offsets) - 1
    step = max(1, _ROWS * n_users // max(1, len(relevance)))
    for first in range(0, n_users, step):
        part = offsets[first : first + step + 1]
        rows = slice(part[0], part[-1])
        found[rows] = _gains(relevance[rows], part - part[0], worth)
    return found


def _gains(
    relevance: NDArray[np.float64], offsets: NDArray[np.int64], worth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """:func:`gains` of users whose rows are few enough for several copies."""
    starts, sizes = offsets[:-1], np.diff(offsets)
    largest = np.maximum(np.abs(relevance[starts]), np.abs(relevance[offsets[1:] - 1]))
    # Dividing first keeps sums finite where relevance is as large as float64 goes.
    scaled = relevance / np.repeat(np.where(largest > 0.0, largest, 1.0), sizes)
    above = scaled - np.repeat(np.minimum(0.0, scaled[offsets[1:] - 1]), sizes)
    best = np.zeros(len(starts))
    for place, weight in enumerate(worth):
        within = place < sizes
        best[within] += weight * above[starts[within] + place]
    flat = best <= 0.0
    above[np.repeat(flat, sizes)] = 1.0
    best[flat] = worth.sum()
    return np.asarray(above / np.repeat(best, sizes), np.float64)


def population_gains(population: Population, discount: Discount) -> NDArray[np.float64]:
    """:func:`gains` of everybody's candidates, worked out once; not to be changed."""
    worth = position_weights(discount, population.k)
    known = population.gains_by_worth
    if worth.tobytes() not in known:
        known[worth.tobytes()] = gains(population.relevance, population.offsets, worth)
    return known[worth.tobytes()]


@dataclass(frozen=True)
class EngagementFloor(LinearConstraint, UserConstraint):
    """A slate keeps at least so much of the engagement that the user's best slate without rules would have.

    Attributes:
        share: The least, within [0, 1].
        discount: What each place is worth: ``"none"`` (1 at every place), ``"log"``, or a tuple of numbers.

    Examples:
        >>> EngagementFloor(0.9).name
        'at least 90% of the best engagement'
    """

    tighter: ClassVar[Mapping[str, int]] = {"share": 1}

    share: float
    discount: Discount = "none"

    def __post_init__(self) -> None:
        require_number("EngagementFloor", "share", self.share, least=0.0, most=1.0)
        object.__setattr__(self, "discount", checked_discount("EngagementFloor", self.discount))
        super().__post_init__()

    def default_name(self) -> str:
        """``at least 90% of the best engagement``."""
        return f"at least {100 * self.share:g}% of the best engagement"

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """The discount."""
        return None if self.discount == "none" else position_weights(self.discount, k)

    def rhs(self, candidates: Any) -> NDArray[np.float64]:
        """The negative of the share."""
        return np.array([-self.share], np.float64)

    def coefficients(self, candidates: Any) -> Any:
        """The negative of what each candidate adds."""
        offsets = np.array([0, len(candidates)], np.int64)
        return -gains(candidates.relevance, offsets, position_weights(self.discount, candidates.k))[None, :]

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Share of engagement missing."""
        return np.maximum(0.0, self.share - engagement(chosen, population, self.discount))

    def explain(self, candidates: Candidates) -> str:
        """The share that the floor leaves for other rules."""
        return f"leaves {100 * (1 - self.share):g}% of engagement to the other rules"


@dataclass(frozen=True)
class Calibration(ConvexConstraint, UserConstraint):
    """The mix of categories in a slate stays close to that in the user's history.

    The divergence ``KL(p || (1 - alpha) q + alpha p)`` in nats is at most so much, where p is the mix of the
    history and q that of the slate: each item counts ``1 / k``, spread evenly over its categories. Where an
    item of the slate has no category, its part is missing from q, which makes the rule stricter than
    :func:`~recsys_budget.metrics.calibration_kl`. A user without a categorised item in the history has no mix
    to be held to, and any slate will do.

    Attributes:
        divergence: The most, in nats, 0 or more.
        alpha: Share of p mixed into q to keep the divergence finite, between 0 and 1, both excluded.

    References:
        Steck (2018), equations 2, 3, 6 and 7 with equal weights, doi:10.1145/3240323.3240372.

    Examples:
        >>> Calibration(0.5).name
        'calibrated to within 0.5 nats'
    """

    tighter: ClassVar[Mapping[str, int]] = {"divergence": -1}

    divergence: float
    alpha: float = 0.01

    def __post_init__(self) -> None:
        require_number("Calibration", "divergence", self.divergence, least=0.0)
        require_alpha("Calibration", self.alpha)
        super().__post_init__()

    def default_name(self) -> str:
        """``calibrated to within 0.5 nats``."""
        return f"calibrated to within {self.divergence:g} nats"

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """Raise SpecificationError if the catalogue has no categories."""
        require_categories(self.name, catalogue)

    def rhs(self, candidates: Any) -> float:
        """The most."""
        return float(self.divergence)

    def form(self, candidates: Candidates) -> ConcaveForm:
        """The negative of the divergence."""
        return divergence_form(self.name, candidates, self.alpha)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Nats beyond the most."""
        return np.maximum(0.0, calibration(self.name, chosen, population, self.alpha) - self.divergence)

    def explain(self, candidates: Candidates) -> str:
        """How many of the history's categories the candidates offer."""
        liked = required_history(self.name, candidates) > 0.0
        offered = int((candidates.membership.any(axis=0) & liked).sum())
        return f"the candidates offer {offered} of the {int(liked.sum())} categories of the user's history"


def engagement(
    chosen: NDArray[np.integer], population: Population, discount: Discount = "none"
) -> NDArray[np.float64]:
    """Engagement of each slate as a share of the user's best, shape ``(n_users,)``, within [0, 1].

    See :func:`gains`.

    Args:
        chosen: As in :class:`Population`.
        population: The candidates.
        discount: What each place is worth.
    """
    each = population_gains(population, discount)
    rows = population.rows(np.asarray(chosen))
    worth = position_weights(discount, rows.shape[1])
    total = np.zeros(len(rows))
    for place in range(rows.shape[1]):
        total += worth[place] * np.where(rows[:, place] >= 0, each[rows[:, place]], 0.0)
    return np.minimum(1.0, total)


def calibration(
    owner: str, chosen: NDArray[np.integer], population: Population, alpha: float
) -> NDArray[np.float64]:
    """Divergence of each slate's mix of categories from the history's, in nats, shape ``(n_users,)``."""
    if population.history is None:
        required_history(owner, population)
    items = population.chosen_items(np.asarray(chosen))
    mix = np.zeros((len(items), len(population.catalogue.category_names)))
    shares = category_shares(population.catalogue)
    for place in range(items.shape[1]):
        here = shares[items[:, place]].toarray()
        here[items[:, place] < 0] = 0.0
        mix += here / population.k
    p = np.asarray(population.history.toarray(), np.float64)  # type: ignore[union-attr]
    return np.asarray(special.rel_entr(p, (1.0 - alpha) * mix + alpha * p).sum(axis=1))


def divergence_form(owner: str, candidates: Candidates, alpha: float) -> ConcaveForm:
    """The negative of the divergence of a selection's mix from the history's."""
    factor = category_shares(candidates.catalogue)[candidates.items].toarray() / candidates.k
    target = required_history(owner, candidates)
    return ConcaveForm(np.zeros(len(candidates)), ((factor, Divergence(1.0, target, alpha)),))


def category_shares(catalogue: ItemCatalogue) -> sparse.csr_array:
    """Each item spread evenly over its categories, shape ``(n_items, n_categories)``, float64."""
    membership = catalogue.membership
    per_item = np.diff(membership.indptr)
    data = membership.data.astype(np.float64) / np.repeat(np.maximum(per_item, 1), per_item)
    return sparse.csr_array((data, membership.indices, membership.indptr), shape=membership.shape)


def required_history(owner: str, candidates: Any) -> NDArray[np.float64]:
    """The user's mix of categories.

    Raises:
        SpecificationError: No history was passed.
    """
    if candidates.history is None:
        raise SpecificationError(
            f"{owner!r} compares slates with what users had used; pass history=, the interactions"
        )
    return np.asarray(candidates.history, np.float64)


def require_alpha(owner: str, alpha: object) -> None:
    """Raise SpecificationError unless alpha is strictly between 0 and 1."""
    if not isinstance(alpha, float | int) or isinstance(alpha, bool) or not 0.0 < alpha < 1.0:
        raise SpecificationError(
            f"{owner}: alpha={alpha!r} is not between 0 and 1 (both excluded); Steck uses 0.01"
        )


def require_categories(owner: str, catalogue: ItemCatalogue) -> None:
    """Raise SpecificationError if the catalogue has no categories."""
    if not catalogue.category_names:
        raise SpecificationError(f"{owner!r} needs a catalogue with categories; this one has none")
