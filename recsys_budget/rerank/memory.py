"""What answers about some candidates leave behind, so that the next one need not start afresh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import Population
from recsys_budget.rerank.feasibility import Pool
from recsys_budget.rerank.objective import Objective
from recsys_budget.rerank.routes.direct import DirectSlates
from recsys_budget.rerank.routes.diverse import Factors
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.structure import Cosines, Gains, Sums


class Memory:
    """Facts about one population that outlast an answer, and prices and slates where the next search starts.

    Only prices and slates change answers, within the gap asked for; the rest saves time alone.

    Attributes:
        slates: A few slates of everybody, int32 ``(n_users, k)`` each, from the last answer that mixed some.
    """

    def __init__(self) -> None:
        self._gains: tuple[Objective, Gains | None] | None = None
        self._factors: Factors | None = None
        self._oracle: Oracle | None = None
        self._prices: dict[tuple[bytes, bytes], float] = {}
        self.slates: list[NDArray[np.int32]] = []
        self._pool: Pool | None = None
        self._mixed: Sums | None = None
        self._direct: tuple[Sums, DirectSlates] | None = None

    def gains(self, objective: Objective, population: Population) -> Gains | None:
        """:meth:`Gains.of`, kept for the objective asked about last."""
        if self._gains is None or self._gains[0] != objective:
            self._gains = objective, Gains.of(objective, population)
        return self._gains[1]

    def factors(self, diversity: Cosines, k: int) -> Factors:
        """Those of the catalogue's categories, which no answer changes."""
        if self._factors is None or self._factors.k != k:
            self._factors = Factors.of(diversity.factors, k)
        return self._factors

    def oracle(self, gains: Gains, population: Population, tree: LaminarTree) -> Oracle:
        """The oracle of these gains and quotas, the last one if it is the same."""
        known = self._oracle
        if known is None or known.gains is not gains.gains or not known.tree.equals(tree):
            start = known.chosen if known is not None and known.items is gains.items else None
            known = Oracle(population.offsets, gains.gains, gains.items, tree, start=start)
            self._oracle = known
        return known

    def direct(self, sums: Sums, diversity: Cosines) -> DirectSlates | None:
        """What the direct route found last, if it was asked about the same sums; None otherwise."""
        known = self._direct
        if known is None or known[0].keys != sums.keys or known[1].diverse != (diversity.curvature > 0.0):
            return None
        return known[1]

    def keep(self, sums: Sums, found: DirectSlates) -> None:
        """Keep what the direct route found."""
        self._direct = sums, found

    def start(self, sums: Sums) -> NDArray[np.float64] | None:
        """Prices of the rows in the last answer, 0 for rows that are new; None without an answer."""
        if not self._prices:
            return None
        return np.array([self._prices.get(key, 0.0) for key in sums.keys])

    def pool(self, population: Population) -> Pool:
        """Slates found while it was asked whether there are any."""
        if self._pool is None:
            self._pool = Pool(population)
        return self._pool

    def knows(self, sums: Sums) -> bool:
        """Whether the last answer that mixed slates was about these very sums and bounds."""
        last = self._mixed
        return (
            last is not None
            and last.keys == sums.keys
            and np.array_equal(last.lower, sums.lower)
            and np.array_equal(last.upper, sums.upper)
        )

    def mixed(self, sums: Sums, slates: list[NDArray[np.int32]]) -> None:
        """Keep a few slates of everybody, int32 ``(n_users, k)`` each, from an answer that mixed some."""
        self._mixed, self.slates = sums, slates

    def learn(self, sums: Sums, prices: NDArray[np.float64]) -> None:
        """Keep the prices of an answer."""
        self._prices |= dict(zip(sums.keys, prices.tolist(), strict=True))
