"""Conflicts in populations too large for integer programs: prices that diverge prove them."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Constraint, Population
from recsys_budget.rerank.routes.coupled import CoupledSlates, solve_coupled
from recsys_budget.rerank.routes.laminar import solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows
from recsys_budget.rerank.structure import Quotas, Sums


class Prices:
    """Rules that are nested quotas and sums over everybody, of which any but the slate size may be left out.

    Where the rules conflict, prices of the sums exist at which even the cheapest slates that the quotas allow
    cost more than the bounds on the sums are worth. That is Farkas' lemma, with the exact greedy choice of
    each user's slate for the rows of the quotas.

    Args:
        rules: The rules, all hard.
        population: The candidates of everybody.
    """

    def __init__(self, rules: Sequence[Constraint], population: Population) -> None:
        self.rules, self.population = tuple(rules), population

    def solve(self, rules: Sequence[Constraint]) -> CoupledSlates | None:
        """Slates under these rules, or prices that prove that there are none; None for another structure."""
        quotas, sums = Quotas.of(rules, self.population), Sums.of(rules, self.population)
        if quotas is None or sums is None or not len(sums.lower) or (sums.lower > sums.upper).any():
            return None
        items = self.population.items
        rows = PopulationRows(sparse.csc_array(sums.coefficients), sums.lower, sums.upper)
        return solve_coupled(self.population.offsets, np.ones(len(items)), items, quotas.tree, rows, gap=0.5)

    def crossed(self) -> Set[int] | None:
        """Two rules that bound the same sum from below and above, with nothing between; None without."""
        sums = Sums.of(self.rules, self.population)
        if sums is None or not (sums.lower > sums.upper).any():
            return None
        return frozenset(sums.owners[:, int((sums.lower > sums.upper).argmax())].tolist())

    def smallest(self, kept: Set[int]) -> tuple[Set[int], bool]:
        """The rules of these that one set of prices needs to prove the conflict, and whether it does."""
        crossed = self.crossed()
        if crossed is not None:
            return crossed, True
        found = self.solve([self.rules[i] for i in sorted(kept)])
        if found is None or found.ray is None:
            return kept, False
        ray = found.ray / np.abs(found.ray).max()
        if not self._proves(kept, kept, ray):
            return kept, False
        needed = set(kept)
        for i in sorted(kept):
            rest = needed - {i}
            if self.rules[i].scope == "population" and not any(
                self.rules[j].scope == "population" for j in rest
            ):
                continue
            if rest and self._proves(kept, rest, ray):
                needed = rest
        return needed, True

    def _proves(self, priced: Set[int], rest: Set[int], ray: NDArray[np.float64]) -> bool:
        """Whether prices of the sums of some rules prove that a part of these rules conflicts."""
        rules = [self.rules[i] for i in sorted(priced)]
        sums = Sums.of(rules, self.population)
        quotas = Quotas.of([self.rules[i] for i in sorted(rest)], self.population)
        assert sums is not None
        assert quotas is not None
        side = np.where(ray > 0.0, 1, 0)
        owners = np.array(sorted(priced), np.intp)[sums.owners[side, np.arange(len(ray))]]
        price = np.where(np.isin(owners, list(rest)), ray, 0.0)
        bound = np.where(price > 0.0, sums.upper, np.where(price < 0.0, sums.lower, 0.0))
        items, offsets = self.population.items, self.population.offsets
        gains = -(sums.coefficients.T @ price)[items]
        users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((-gains, users))
        best = solve_laminar(offsets, gains[order], items[order], quotas.tree)
        value, worth = float(best.objective.sum()), float(price @ bound)
        scale = float(np.abs(price) @ np.abs(bound)) + float(np.abs(best.objective).sum())
        return value + worth < -1e-9 * max(1.0, scale)
