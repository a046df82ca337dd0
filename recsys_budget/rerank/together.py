"""Nested quotas of each slate and sums over all slates: what the language asks, answered by prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import CatalogueCoverage, Constraint, Population
from recsys_budget.rerank.fast import PRICED, library
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes.answers import BestSlates
from recsys_budget.rerank.routes.coupled import Coupled, solve_from
from recsys_budget.rerank.routes.covering import cover
from recsys_budget.rerank.routes.laminar import looser
from recsys_budget.rerank.routes.rows import PopulationRows
from recsys_budget.rerank.structure import Quotas, Sums

# Candidates up to which integer programs decide what prices leave open.
SMALL = 5_000


@dataclass(frozen=True, eq=False)
class Together:
    """Hard rules that are nested quotas, sums over all slates, and perhaps one on coverage.

    Attributes:
        rules: The rules.
        quotas: Those about one slate.
        sums: Those about sums.
        coverage: Position of the rule on coverage; None without one.
    """

    rules: tuple[Constraint, ...]
    quotas: Quotas
    sums: Sums
    coverage: int | None

    @classmethod
    def of(cls, rules: Sequence[Constraint], population: Population) -> Together | None:
        """The rules as such; None where they are something else.

        Args:
            rules: The rules.
            population: The users; of candidates, nothing but their catalogue is looked at.
        """
        if any(not rule.hard for rule in rules) or all(rule.scope == "user" for rule in rules):
            return None
        quotas, sums = Quotas.of(rules, population), Sums.of(rules, population)
        coverage = [at for at, rule in enumerate(rules) if isinstance(rule, CatalogueCoverage)]
        if quotas is None or sums is None or len(coverage) > 1:
            return None
        return cls(tuple(rules), quotas, sums, coverage[0] if coverage else None)

    @property
    def crossed(self) -> tuple[str, ...]:
        """Names of the rules that bound a sum from below and above, with nothing between; empty without."""
        return self.sums.crossing([rule.name for rule in self.rules])

    @property
    def rows(self) -> PopulationRows:
        """The sums, as prices see them; not where they are crossed."""
        lower, upper = self.sums.limits(self.sums.lower, self.sums.upper)
        return PopulationRows(sparse.csc_array(self.sums.coefficients), lower, upper)

    def solve(
        self, oracle: BestSlates, start: NDArray[np.float64] | None, gap: float, seconds: float | None
    ) -> Coupled:
        """The slates of an oracle's users under the sums, from prices of these or from none."""
        deadline = np.inf if seconds is None else perf_counter() + seconds
        if self.coverage is None:
            return solve_from(oracle, self.rows, start, gap, deadline)
        asked_for = self.rules[self.coverage]
        assert isinstance(asked_for, CatalogueCoverage)
        counted = np.ones(len(oracle.tree.leaf_of_item), np.bool_)
        return cover(oracle, self.rows, asked_for.count, counted, start, gap, deadline)

    def conflict(self, ray: NDArray[np.float64]) -> tuple[str, ...]:
        """Names of the rules that multipliers of rows prove to contradict each other."""
        n_rows = len(self.sums.lower)
        owners = self.sums.leaned_on(ray[:n_rows])
        if self.coverage is not None and ray[n_rows:].any():
            owners |= {self.coverage}
        return tuple(self.rules[owner].name for owner in sorted(owners))

    def prices(self, answer: Coupled, oracle: BestSlates) -> dict[str, float]:
        """What a unit more of each rule would add to the objective, by its name."""
        n_rows = len(self.sums.lower)
        of_rows = answer.prices[:n_rows]
        prices = self.sums.by_rule(of_rows, len(self.rules))
        if self.coverage is not None:
            prices[self.coverage] += abs(float(answer.prices[n_rows]))
        # Quotas by how much better slates would be at the same prices of items, over a sample of users.
        every = max(1, -(-oracle.served // PRICED))
        bounds = list(looser(oracle.tree))
        of_nodes = np.zeros((2, len(oracle.tree.parent)))
        if bounds and oracle.served:
            of_items = self.sums.coefficients.T @ of_rows
            base, *values = oracle.under(of_items, [oracle.tree, *(tree for _, _, tree in bounds)], every)
            for (side, node, _), value in zip(bounds, values, strict=True):
                of_nodes[side, node] = max(0.0, value - base) / -(-oracle.served // every)
        prices += self.quotas.by_rule((of_nodes[0], of_nodes[1]), len(self.rules))
        return {rule.name: float(price) for rule, price in zip(self.rules, prices, strict=True)}


def solve_sums(question: Question) -> Outcome | None:
    """Slates under nested quotas, sums over everybody and catalogue coverage; None for something else."""
    population, memory = question.population, question.memory
    together = Together.of(question.constraints, population)
    gains = None if together is None else memory.gains(question.objective, population)
    if together is None or gains is None or gains.diversity or gains.worth is not None:
        return None
    nothing = without_slates(population)
    if together.crossed:
        return contradiction(together.crossed, population)
    oracle = memory.oracle(gains, population, together.quotas.tree)
    if not oracle.feasible.all():
        return Outcome(nothing, ~oracle.feasible, None, 0.0, 0, {}, "prices", library())
    found = together.solve(oracle, memory.start(together.sums), question.gap, question.seconds_left)
    small = len(population.items) <= SMALL
    if found.ray is not None and not small:
        return contradiction(together.conflict(found.ray), population)
    if small and not question.late and not (found.satisfied and found.gap <= question.gap):
        return None  # few enough for integer programs, which close the gap that prices leave
    memory.learn(together.sums, found.prices[: len(together.sums.lower)])
    return Outcome(
        gains.rows(oracle.select(found.selection), population) if found.satisfied else nothing,
        np.zeros(len(population), bool),
        None,
        float(found.bound),
        int(np.ceil(found.evaluations)),
        together.prices(found, oracle),
        "prices",
        library(),
        question.late,
    )


def contradiction(names: Sequence[str], population: Population) -> Outcome:
    """No slates, because of these rules."""
    nothing, everybody = without_slates(population), np.ones(len(population), bool)
    return Outcome(nothing, everybody, None, 0.0, 0, {}, "prices", library(), conflict=tuple(names))


def without_slates(population: Population) -> NDArray[np.int32]:
    """What :class:`Outcome` says of users who have none."""
    return np.full((len(population), population.k), -1, np.int32)
