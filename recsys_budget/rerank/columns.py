"""Sums over all slates beside diversity or overlapping quotas: a mixture of known slates, made whole.

A linear program mixes the slates known of each user and gives prices for the sums; at these prices each
user's best slate is found anew and joins them (Dantzig and Wolfe 1960, doi:10.1287/opre.8.1.101). Prices
between the program's and the best so far settle sooner (Wentges 1997, doi:10.1016/S0969-6016(97)00001-4). At
any prices the best slates bound what all slates can reach together. A corner of the last program mixes slates
of at most as many users as there are sums; an integer program over these users' slates, and over those of
others who hardly mind, makes them whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE, CatalogueCoverage
from recsys_budget.rerank.fast import (
    direct_slates,
    diverse_slates,
    library,
    prices_of_diverse,
    prices_of_sums,
)
from recsys_budget.rerank.integer import Program, solve_highs
from recsys_budget.rerank.memory import Memory
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes.direct import DirectSlates
from recsys_budget.rerank.routes.diverse import DiverseSlates
from recsys_budget.rerank.structure import Cosines, Gains, Quotas, Sums
from recsys_budget.rerank.together import SMALL, Together, contradiction, without_slates

_ROUNDS = 60
# Users whose slates may change in the first programs, those who mind least; more where these do not do.
_FREE = 400
# Times that known slates may fail to be made whole.
_FAILURES = 6
# Seconds for an integer program.
_SECONDS = 20.0
# What a unit outside a sum's bounds costs in the linear program. A place of a slate is worth at most about 1.
_OUTSIDE = 10.0
# How near to the best prices so far the next ones are.
_CLOSE = 0.4
# How near the mixture must be to the bound, as a share of the gap, before it is made whole.
_NEAR = 0.8
# Slates of each user that are kept for the next answer.
_LAYERS = 3


@dataclass(frozen=True, eq=False)
class _Found:
    """Each user's best slate at some prices.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows of the population.
        feasible: bool ``(n_users,)``.
        impossible: bool ``(n_users,)``, whether a user is proven to have no slate.
        bound: Upper bound on the sum of objectives, less what the slates' items cost.
        solves: How much work it was.
        user_prices: float64 ``(n_rules,)``, those of rules about one slate, on demand.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    impossible: NDArray[np.bool_]
    bound: float
    solves: int
    user_prices: Callable[[], NDArray[np.float64]]


def solve_columns(question: Question) -> Outcome | None:
    """Slates under sums over everybody, with diversity or overlapping quotas; None for something else."""
    population, rules, memory = question.population, question.constraints, question.memory
    if any(not rule.hard or isinstance(rule, CatalogueCoverage) for rule in rules):
        return None
    if all(rule.scope == "user" for rule in rules):
        return None
    gains = memory.gains(question.objective, population)
    sums = Sums.of(rules, population)
    if gains is None or gains.worth is not None or sums is None:
        return None
    ask = _oracle(question, gains)
    if ask is None:
        return None
    names = [rule.name for rule in rules]
    if crossed := sums.crossing(names):
        return contradiction(crossed, population)
    lower, upper = sums.limits(sums.lower, sums.upper)
    known = _Known(len(population), len(lower))
    coefficients = sparse.csr_array(sums.coefficients.T)

    def learn(chosen: NDArray[np.int32], there: NDArray[np.bool_]) -> bool:
        value = question.objective.value_all(chosen, population)
        return known.add(chosen, there, value, _loads(chosen, population, coefficients))

    own = Sums.of(rules, population, "user")
    # Where to look first: at the prices of the last answer, or those without diversity.
    last, answer = memory.start(sums), None
    warm = memory.knows(sums)
    asked = [] if last is None else [last]
    if not warm:
        without, begun, conflict = _without_diversity(question, gains)
        if conflict:
            return contradiction(conflict, population)
        asked = [*without, *asked]
        for chosen in begun:
            learn(chosen, np.ones(len(population), bool))
            answer = _Choice(np.arange(len(population)), float(known.values.sum()))
    for chosen in memory.slates:
        learn(chosen, _keeps(question, chosen))
    prices: NDArray[np.float64] = asked.pop() if asked else np.zeros(len(lower))
    best, best_prices, solves, n_free, failed, found = np.inf, prices, 0, _FREE, 0, None
    counted = searched = False
    for _ in range(_ROUNDS):
        # Nothing is paid for bounds that are not there.
        prices = np.where(np.isfinite(np.where(prices > 0.0, upper, lower)), prices, 0.0)
        found = ask(np.asarray(sums.coefficients.T @ prices, np.float64))
        solves += found.solves
        if found.impossible.any():
            nothing = without_slates(population)
            return Outcome(nothing, found.impossible, None, 0.0, solves, {}, "prices", library())
        worth = float(prices @ np.where(prices > 0.0, upper, np.where(prices < 0.0, lower, 0.0)))
        if found.bound + worth < best:
            best, best_prices = found.bound + worth, prices
        new = learn(found.chosen, found.feasible)
        if asked:
            prices = asked.pop()
            continue
        if question.late or not known.complete:
            break
        choosing = _Choosing(known, best_prices, (lower, upper), n_free, question.gap / 4.0)
        mixture = choosing.mixture()
        if mixture is None:
            break
        verdict = None
        if own is not None and mixture.outside and not counted:
            verdict, counted = memory.pool(population).counted(own, sums), True
        if own is not None and mixture.outside and not new and not searched:
            # Whatever is gained, sums are missed: are there slates that keep to them at all?
            verdict, searched = memory.pool(population).verdict(own, sums, question.deadline), True
        if verdict is not None:
            if verdict.ray is not None:
                ray = np.array(list(verdict.ray.values()))
                return contradiction([names[at] for at in sorted(sums.leaned_on(ray))], population)
            if verdict.slates is None:
                break
            new = learn(verdict.slates, _keeps(question, verdict.slates))
        near = not mixture.outside and best - mixture.value <= _NEAR * question.gap * abs(best)
        if near or not new:
            left = question.seconds_left
            choice = choosing.whole(_SECONDS if left is None else min(_SECONDS, left))
            if choice is not None and (answer is None or choice.value > answer.value):
                answer = choice
            if answer is not None and best - answer.value <= question.gap * abs(best):
                break
            failed += 1
            if failed > _FAILURES:
                break
        if near or mixture.outside or not new:
            n_free *= 2
        # Slates that overdo it, where those known cannot be made whole.
        beyond = mixture.prices if new else best_prices * (1.0 + 0.1 * failed)
        prices = _CLOSE * best_prices + (1.0 - _CLOSE) * beyond
    if answer is None and warm and not question.late:
        return solve_columns(replace(question, memory=Memory()))  # what was known of other numbers led astray
    if answer is None or found is None:
        return None
    closed = best - answer.value <= question.gap * abs(best)
    if not closed and not question.late and len(population.items) <= SMALL:
        return None  # few enough for integer programs, which close the gap that prices leave
    assert known.slates is not None
    chosen = known.slates[answer.taken]
    memory.learn(sums, best_prices)
    memory.mixed(sums, known.layers(best_prices))
    by_rule = sums.by_rule(best_prices, len(rules)) + found.user_prices()
    return Outcome(
        chosen,
        np.zeros(len(population), bool),
        None,
        float(best),
        solves,
        {rule.name: float(price) for rule, price in zip(rules, by_rule, strict=True)},
        "prices",
        library(),
        question.late,
    )


def _oracle(question: Question, gains: Gains) -> Callable[[NDArray[np.float64]], _Found] | None:
    """What finds everybody's best slates at prices of items; None where no route does."""
    population = question.population
    diversity = Cosines.of(gains, population)
    finer = replace(question, gap=question.gap / 4.0)
    quotas = Quotas.of(question.constraints, population)
    sums = Sums.of(question.constraints, population, "user") if quotas is None else None

    if quotas is None and (sums is None or len(sums.crossed)):
        return None

    def ask(prices: NDArray[np.float64]) -> _Found:
        priced = replace(diversity, linear=diversity.linear - prices)
        found: DiverseSlates | DirectSlates
        if quotas is not None:
            found = diverse = diverse_slates(finer, gains, quotas, priced)
            impossible, work = ~diverse.feasible, diverse.visited
            user_prices = partial(prices_of_diverse, finer, gains, quotas, priced, diverse)
        else:
            assert sums is not None
            # Prices seldom move far from one time to the next.
            memory = question.memory
            found = direct = direct_slates(finer, gains, sums, priced, memory.direct(sums, diversity))
            memory.keep(sums, direct)
            impossible, work = direct.impossible, direct.solves
            user_prices = partial(prices_of_sums, finer, sums, direct)
        bound = float(np.where(impossible, 0.0, found.bound).sum())
        chosen = gains.rows(found.chosen, population)
        return _Found(chosen, found.feasible, impossible, bound, int(work.sum()), user_prices)

    return ask


def _without_diversity(
    question: Question, gains: Gains
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int32]], tuple[str, ...]]:
    """Prices to start from and slates within the sums, from the same problem without diversity.

    And names of rules that it proves to conflict: what is gained has no say in that.
    """
    together = Together.of(question.constraints, question.population)
    if together is None:
        return [], [], ()
    oracle = question.memory.oracle(replace(gains, diversity=0.0), question.population, together.quotas.tree)
    if not oracle.feasible.all():
        return [], [], ()
    found = together.solve(oracle, None, question.gap, question.seconds_left)
    if found.ray is not None:
        return [], [], together.conflict(found.ray)
    if not found.satisfied:
        return [], [], ()
    return [found.prices], [gains.rows(oracle.select(found.selection), question.population)], ()


def _keeps(question: Question, chosen: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which users' slates keep the rules about one slate."""
    keeps = chosen[:, 0] >= 0
    for rule in question.constraints:
        if rule.scope == "user" and keeps.any():
            keeps &= rule.measure_all(chosen, question.population) <= TOLERANCE
    return keeps


def _loads(chosen: NDArray[np.integer], population: Any, of_items: sparse.csr_array) -> sparse.csr_array:
    """What each user's slate adds to the sums, ``(n_users, n_sums)``; nothing for users without one."""
    users, places = np.nonzero(chosen >= 0)
    items = population.items[population.offsets[users] + chosen[users, places]]
    shape = (len(chosen), len(users))
    each = sparse.csr_array((np.ones(len(users)), (users, np.arange(len(users)))), shape=shape)
    return sparse.csr_array(each @ of_items[items])


class _Known:
    """Slates known of users, and what they come to."""

    def __init__(self, n_users: int, n_sums: int) -> None:
        self.n_users = n_users
        self._seen: set[tuple[int, bytes]] = set()
        self.users = np.zeros(0, np.intp)
        self.slates: NDArray[np.int32] | None = None
        self.values = np.zeros(0)
        self.loads = sparse.csr_array((0, n_sums))

    @property
    def complete(self) -> bool:
        """Whether every user has a slate."""
        return len(np.unique(self.users)) == self.n_users

    def add(
        self,
        chosen: NDArray[np.int32],
        there: NDArray[np.bool_],
        value: NDArray[np.float64],
        loads: sparse.csr_array,
    ) -> bool:
        """Add those slates that are there and new; whether there was any."""
        keys = [(int(u), chosen[u].tobytes()) for u in np.flatnonzero(there)]
        new = np.array([u for u, slate in keys if (u, slate) not in self._seen], np.intp)
        if not len(new):
            return False
        self._seen |= set(keys)
        self.users = np.concatenate([self.users, new])
        self.slates = chosen[new] if self.slates is None else np.concatenate([self.slates, chosen[new]])
        self.values = np.concatenate([self.values, value[new]])
        self.loads = sparse.csr_array(sparse.vstack([self.loads, loads[new]]))
        return True

    def ranked(self, prices: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp], Any]:
        """Slates by user and falling net value, where each user's start, and their net values."""
        net = self.values - self.loads @ prices
        order = np.lexsort((-net, self.users))
        return order, np.searchsorted(self.users[order], np.arange(self.n_users)), net

    def layers(self, prices: NDArray[np.float64]) -> list[NDArray[np.int32]]:
        """Everybody's best few slates at these prices, for the next answer."""
        assert self.slates is not None
        order, first, _ = self.ranked(prices)
        last = np.append(first[1:], len(order)) - 1
        return [self.slates[order[np.minimum(first + layer, last)]] for layer in range(_LAYERS)]


@dataclass(frozen=True, eq=False)
class _Mixture:
    """The best mixture of known slates.

    Attributes:
        value: Sum of objectives, what lies outside the bounds of sums paid for.
        prices: float64 ``(n_sums,)``.
        outside: Whether a sum is outside its bounds.
    """

    value: float
    prices: NDArray[np.float64]
    outside: bool


@dataclass(frozen=True, eq=False)
class _Choice:
    """One slate a user that keep to the sums.

    Attributes:
        taken: int64 ``(n_users,)``, which of the known slates each user has.
        value: Sum of objectives.
    """

    taken: NDArray[np.intp]
    value: float


class _Choosing:
    """A program that chooses among known slates at some prices.

    Users with another slate that is nearly as good at these prices are free, the others have their best.
    """

    def __init__(
        self,
        known: _Known,
        prices: NDArray[np.float64],
        limits: tuple[NDArray[np.float64], NDArray[np.float64]],
        n_free: int,
        gap: float,
    ) -> None:
        order, first, net = known.ranked(prices)
        self._known, self._limits, self._gap = known, limits, gap
        self._best = order[first]
        second = np.full(known.n_users, np.inf)
        more = np.flatnonzero(np.diff(np.append(first, len(order))) > 1)
        second[more] = net[self._best[more]] - net[order[first[more] + 1]]
        self._free = np.zeros(known.n_users, bool)
        self._free[np.argsort(second, kind="stable")[:n_free]] = True
        rest: NDArray[np.float64] = known.loads[self._best[~self._free]].sum(axis=0)
        self._here = np.flatnonzero(self._free[known.users])
        self._own = (np.cumsum(self._free) - 1)[known.users[self._here]]
        n, m, u = len(self._here), known.loads.shape[1], int(self._free.sum())
        one = sparse.csr_array((np.ones(n), (self._own, np.arange(n))), shape=(u, n))
        beyond = sparse.csr_array(sparse.hstack([sparse.eye_array(m), -sparse.eye_array(m)]))
        blocks: list[list[Any]] = [[one, None], [known.loads[self._here].T, beyond]]
        self._relaxed = Program(
            np.concatenate([known.values[self._here], np.full(2 * m, -_OUTSIDE)]),
            sparse.csr_array(sparse.block_array(blocks)),
            np.concatenate([np.ones(u), limits[0] - rest]),
            np.concatenate([np.ones(u), limits[1] - rest]),
            np.zeros(n + 2 * m),
            np.concatenate([np.ones(n), np.full(2 * m, np.inf)]),
            0,
        )

    def mixture(self) -> _Mixture | None:
        """The best mixture; None where the solver has none."""
        answer = solve_highs(self._relaxed, self._gap, np.inf)
        if answer.v is None or answer.duals is None:
            return None
        settled = self._known.values[self._best[~self._free]].sum()
        outside = bool(answer.v[len(self._here) :].sum() > 1e-7)
        prices = answer.duals[int(self._free.sum()) :]
        return _Mixture(float(settled + self._relaxed.c @ answer.v), prices, outside)

    def whole(self, seconds: float) -> _Choice | None:
        """The best slates, one a user; None where none were found that keep to the sums."""
        n, known = len(self._here), self._known
        most = self._relaxed.most.copy()
        most[n:] = 0.0
        answer = solve_highs(replace(self._relaxed, most=most, integers=n), self._gap, seconds)
        if answer.v is None:
            return None
        taken = self._best.copy()
        at = np.lexsort((answer.v[:n], self._own))
        last = np.searchsorted(self._own[at], np.arange(self._free.sum()), side="right") - 1
        taken[self._free] = self._here[at[last]]
        total: NDArray[np.float64] = known.loads[taken].sum(axis=0)
        kept = (total >= self._limits[0] - TOLERANCE) & (total <= self._limits[1] + TOLERANCE)
        return _Choice(taken, float(known.values[taken].sum())) if kept.all() else None
