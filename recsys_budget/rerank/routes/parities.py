"""Several rules on the exposure of groups at once: a mixture of few rankings, by column generation.

One rule has one price, and a search along it is all that is needed (:mod:`exposure`). With more, a linear
program over the rankings found so far gives prices; the best ranking at these prices, which greedy selection
finds, joins them; and when it is no better than what is there, the mixture is the best of all (Dantzig and
Wolfe 1960, doi:10.1287/opre.8.1.101). A corner of the last program mixes at most one ranking more than there
are rules. At any prices the best ranking bounds every mixture that keeps the rules, so bounds, and proofs
that there is none, are counted in float64 and not taken from the solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar

_CLOSE = 1e-9  # relative: when no further ranking is worth its place
_ROUNDS = 200
ROUNDING = 1e-12
_OPTIONS: dict[str, Any] = {
    "output_flag": False,
    "presolve": "off",
    "solver": "simplex",
    "threads": 1,
    "primal_feasibility_tolerance": 1e-10,
    "dual_feasibility_tolerance": 1e-10,
}


@dataclass(frozen=True, eq=False)
class ParityRankings:
    """Rankings of each user with their chances; in expectation they keep the rules.

    Attributes:
        rankings: int32 ``(n_users, n_rules + 1, k)``, rows relative to the user's offset, the first place
            first; the likeliest ranking first, -1 throughout where there is none.
        chances: float64 ``(n_users, n_rules + 1)``, which sum to 1 for users with a mixture; 0 for no
            ranking.
        feasible: bool ``(n_users,)``, whether a mixture was found that keeps the rules to 1e-9 or so.
        impossible: bool ``(n_users,)``, whether it is proven that there is none.
        objective: float64 ``(n_users,)``, expected discounted gain; nan without a mixture.
        bound: float64 ``(n_users,)``, at least that of every mixture that keeps the rules; nan without one.
        prices: float64 ``(n_users, n_rules)``, expected gain per unit by which a rule were looser.
        solves: int64 ``(n_users,)``, rankings tried.
    """

    rankings: NDArray[np.int32]
    chances: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    impossible: NDArray[np.bool_]
    objective: NDArray[np.float64]
    bound: NDArray[np.float64]
    prices: NDArray[np.float64]
    solves: NDArray[np.int64]


def solve_parities(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    rules: NDArray[np.float64],
    equal: NDArray[np.bool_],
    discount: NDArray[np.float64],
) -> ParityRankings:
    """The best mixture of rankings of every user that keeps rules on expected exposure.

    Args:
        offsets: int64 ``(n_users + 1,)``, where each user's rows start and end.
        gains: ``(n_rows,)``, finite.
        items: ``(n_rows,)``, position of each candidate in the catalogue.
        tree: Quotas that each ranking keeps, and its length.
        rules: float64 ``(n_rows, n_rules)``: the sum over candidates of a rule's column times expected
            exposure is at most 0.
        equal: bool ``(n_rules,)``, rules whose sum is to be 0 exactly.
        discount: float64 ``(k,)``, exposure of each place, at least 0 and not rising.

    Raises:
        SpecificationError: An argument is not as described.
    """
    places = np.asarray(discount, np.float64)
    if places.shape != (tree.k,) or not (np.diff(places, append=0.0) <= 0.0).all():
        raise SpecificationError(f"discount must hold {tree.k} numbers of at least 0 that do not rise")
    if rules.shape != (len(gains), len(equal)) or not np.isfinite(rules).all():
        raise SpecificationError("rules must hold a finite number for each candidate and rule")
    n_users, n_rules = len(offsets) - 1, len(equal)
    rankings = np.full((n_users, n_rules + 1, tree.k), -1, np.int32)
    chances, prices = np.zeros((n_users, n_rules + 1)), np.zeros((n_users, n_rules))
    impossible, solves = np.zeros(n_users, bool), np.zeros(n_users, np.int64)
    objective, bound = np.full(n_users, np.nan), np.full(n_users, np.nan)
    master = _Master(equal)
    for u in range(n_users):
        rows = slice(offsets[u], offsets[u + 1])
        size = np.abs(rules[rows]).max(axis=0, initial=0.0)
        size[size == 0.0] = 1.0
        user = _User(np.asarray(gains[rows], np.float64), items[rows], rules[rows] / size, tree, places)
        found = _generate(user, master, user.gain, 1e3 * (np.abs(user.gain).max(initial=0.0) + 1e-9))
        solves[u] = found.solves
        if found.slack > 1e-9:
            # Without gains, prices at which the best ranking is below 0 prove that no mixture keeps to them.
            proof = _generate(user, master, np.zeros_like(user.gain), 1.0)
            impossible[u] = proof.bound < 0.0
            solves[u] += proof.solves
            continue
        if not found.rankings:
            impossible[u] = True
            continue
        order = np.argsort(-found.chances, kind="stable")
        for at, c in enumerate(order):
            rankings[u, at], chances[u, at] = found.rankings[c], found.chances[c]
        objective[u] = float(found.chances @ np.array([user.worth(r, user.gain) for r in found.rankings]))
        bound[u], prices[u] = max(objective[u], found.bound), found.prices / size
    return ParityRankings(
        rankings, chances, chances[:, 0] > 0.0, impossible, objective, bound, prices, solves
    )


@dataclass(frozen=True, eq=False)
class _User:
    """One user's rows, with rules scaled to coefficients of at most 1."""

    gain: NDArray[np.float64]
    items: NDArray[np.integer]
    rules: NDArray[np.float64]
    tree: LaminarTree
    discount: NDArray[np.float64]

    def best(self, weight: NDArray[np.float64]) -> NDArray[np.intp] | None:
        """The ranking with the greatest discounted sum of weights, the earliest rows at ties."""
        order = np.argsort(-weight, kind="stable")
        found = solve_laminar(
            np.array([0, len(order)]), weight[order], self.items[order], self.tree, threads=1
        )
        return order[found.chosen[0]] if found.feasible[0] else None

    def worth(self, ranking: NDArray[np.intp], weight: NDArray[np.float64]) -> float:
        """Discounted sum of weights."""
        return float(self.discount @ weight[ranking])


@dataclass(eq=False)
class _Found:
    """A mixture: its rankings, chances and prices, and how far it is from the rules."""

    rankings: list[NDArray[np.intp]]
    chances: NDArray[np.float64]
    prices: NDArray[np.float64]
    bound: float
    slack: float
    solves: int


def _generate(user: _User, master: _Master, gain: NDArray[np.float64], penalty: float) -> _Found:
    """Rankings by falling use, until none is worth its place."""
    n_rules = user.rules.shape[1]
    nothing = _Found([], np.zeros(0), np.zeros(n_rules), np.inf, 0.0, 1)
    ranking = user.best(gain)
    if ranking is None:
        return nothing
    master.start(penalty * len(gain))
    rankings: list[NDArray[np.intp]] = []
    bound, largest = np.inf, float(np.abs(gain).max(initial=0.0))
    while True:
        rankings.append(ranking)
        master.add(user.worth(ranking, gain), user.discount @ user.rules[ranking])
        chances, prices, level, slack = master.solve()
        weight = gain - user.rules @ prices
        ranking = user.best(weight)
        assert ranking is not None  # as before: quotas do not depend on weights
        reached = user.worth(ranking, weight)
        scale = float(user.discount.sum()) * (largest + float(np.abs(prices).sum()))
        bound = min(bound, reached + ROUNDING * scale)
        if reached <= level + _CLOSE * max(scale, 1e-300) or len(rankings) >= _ROUNDS:
            break
    used = np.flatnonzero(chances > 1e-12)
    kept = chances[used] / chances[used].sum()
    return _Found([rankings[c] for c in used], kept, prices, bound, slack, len(rankings) + 1)


class _Master:
    """The linear program over rankings in HiGHS: a row a rule, and one in which chances sum to 1."""

    def __init__(self, equal: NDArray[np.bool_]) -> None:
        self._equal, self._rows = equal, np.arange(len(equal) + 1, dtype=np.int32)
        self._solver, self._slacks = highspy.Highs(), 0

    def start(self, penalty: float) -> None:
        """No ranking yet; what breaks a rule costs this a unit."""
        m = len(self._equal)
        self._solver.clear()
        for option, value in _OPTIONS.items():
            self._solver.setOptionValue(option, value)
        self._solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
        lower = np.where(self._equal, 0.0, -np.inf)
        none = np.zeros(0, np.int32)
        self._solver.addRows(
            m + 1, np.append(lower, 1.0), np.append(np.zeros(m), 1.0), 0, np.zeros(m + 1, np.int32), none,
            np.zeros(0),
        )  # fmt: skip
        for r in range(m):
            for sign in (-1.0, 1.0) if self._equal[r] else (-1.0,):
                self._solver.addCol(-penalty, 0.0, np.inf, 1, np.array([r], np.int32), np.array([sign]))
        self._slacks = self._solver.getNumCol()

    def add(self, value: float, loads: NDArray[np.float64]) -> None:
        """A further ranking."""
        column = np.append(loads, 1.0)
        self._solver.addCol(value, 0.0, np.inf, len(column), self._rows, column)

    def solve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float, float]:
        """Chances of the rankings, prices of the rules, the level at which rankings break even, and slack."""
        self._solver.run()
        solution = self._solver.getSolution()
        values, duals = np.array(solution.col_value), np.array(solution.row_dual)
        prices = np.where(self._equal, duals[:-1], np.maximum(0.0, duals[:-1]))
        return values[self._slacks :], prices, float(duals[-1]), float(values[: self._slacks].sum())
