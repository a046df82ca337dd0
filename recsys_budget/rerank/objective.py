"""What makes one slate better than another: engagement, diversity, and the weight between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import Candidates
from recsys_budget.errors import SpecificationError


@dataclass(frozen=True, eq=False)
class ConcaveForm:
    """An objective as solvers want it: ``linear @ x - curvature * ||factor.T @ x||^2``.

    Attributes:
        linear: Shape ``(n,)``, float64.
        factor: Shape ``(n, m)``, float64; m is 0 for a linear objective.
        curvature: Not negative.
    """

    linear: NDArray[np.float64]
    factor: NDArray[np.float64]
    curvature: float

    @property
    def is_linear(self) -> bool:
        """Whether there is no quadratic term."""
        return self.factor.size == 0


@dataclass(frozen=True)
class EngagementDiversity:
    """Maximise ``(1 - diversity_weight) * engagement + diversity_weight * diversity``.

    Both parts lie in [0, 1] for every user, so that one weight means the same for all of them:
    :func:`engagement` is the share kept of the best that the user's candidates allow, and :func:`diversity`
    is the intra-list diversity over categories.

    Attributes:
        diversity_weight: 0 (engagement alone) to 1 (diversity alone).

    Raises:
        SpecificationError: The weight is not within [0, 1].

    References:
        Smyth and McClave (2001), doi:10.1007/3-540-44593-5_25, for the weighted sum and the mean pairwise
        dissimilarity of a list.
    """

    diversity_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.diversity_weight <= 1.0:
            raise SpecificationError(
                f"diversity_weight={self.diversity_weight!r}; it must lie between 0 (engagement alone) and 1"
            )

    def value(self, chosen: NDArray[np.intp], candidates: Candidates) -> float:
        """Objective of a slate, in [0, 1], from the definitions of its two parts."""
        weight = self.diversity_weight
        return (1.0 - weight) * engagement(chosen, candidates) + weight * diversity(chosen, candidates)

    def form(self, candidates: Candidates, k: int) -> ConcaveForm:
        """The objective over 0/1 selections x with ``sum(x) == k``, as a concave quadratic.

        With G the rows of unit category vectors (zero rows for items without a category),
        ``||G.T x||^2 = sum_i x_i^2 |g_i|^2 + 2 sum_{i<j} x_i x_j cos_ij`` and ``x_i^2 = x_i``, so the mean of
        ``1 - cos`` over the ``k (k - 1) / 2`` pairs is

            1 - (||G.T x||^2 - sum_i |g_i|^2 x_i) / (k (k - 1)),

        which is concave in x over the relaxation to [0, 1] as well. The constant 1 is written as
        ``sum(x) / k``, so that the form has no constant term.
        """
        weight, n = self.diversity_weight, len(candidates)
        linear = (1.0 - weight) * _gains(candidates.relevance, k)
        if weight == 0.0 or k == 1:
            return ConcaveForm(linear, np.zeros((n, 0)), 0.0)
        unit = _unit_rows(candidates.membership)
        pairs = k * (k - 1)
        linear = linear + weight * (1.0 / k + np.square(unit).sum(axis=1) / pairs)
        return ConcaveForm(linear, unit, weight / pairs)


def engagement(chosen: NDArray[np.intp], candidates: Candidates) -> float:
    """Relevance of a slate as a share of the best that slate size allows, in [0, 1].

    For relevance that is nowhere negative this is the slate's total over the total of the user's top k
    candidates. Where some is negative (logits, say), the user's lowest relevance is subtracted from all
    first. Multiplying all relevance by a positive number changes nothing. 1.0 where all candidates are
    equally relevant, since every slate is then the best.

    Args:
        chosen: Rows of ``candidates``, shape ``(k,)``.
        candidates: The candidates of that user.
    """
    return float(min(1.0, _gains(candidates.relevance, len(chosen))[chosen].sum()))


def diversity(chosen: NDArray[np.intp], candidates: Candidates) -> float:
    """Intra-list diversity: the mean of ``1 - cosine`` of category vectors over pairs of a slate, in [0, 1].

    An item without categories has cosine 0 with every other. 0.0 for slates of fewer than two items.

    Args:
        chosen: Rows of ``candidates``, shape ``(k,)``.
        candidates: The candidates of that user.

    References:
        Ziegler, McNee, Konstan and Lausen (2005), doi:10.1145/1060745.1060754, up to sign.
    """
    k = len(chosen)
    if k < 2:
        return 0.0
    unit = _unit_rows(candidates.membership[chosen])
    cosines = (unit @ unit.T)[np.triu_indices(k, 1)]
    return float(np.clip(1.0 - cosines.mean(), 0.0, 1.0))


def _gains(relevance: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """What each candidate adds to engagement, shape ``(n,)``; the k largest sum to 1."""
    largest = np.abs(relevance).max()
    # Dividing first keeps sums finite where relevance is as large as float64 goes.
    scaled = relevance / largest if largest > 0.0 else relevance
    above = scaled - min(0.0, scaled.min())
    best = np.sort(above)[-k:].sum()
    return above / best if best > 0.0 else np.full(len(above), 1.0 / k)


def _unit_rows(membership: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt(np.square(membership).sum(axis=1, keepdims=True))
    return membership / np.where(norms > 0.0, norms, 1.0)
