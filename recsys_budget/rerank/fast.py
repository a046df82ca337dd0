"""Routes for special structure: what the language asks, as the plain arrays that they take."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE
from recsys_budget.rerank import problem
from recsys_budget.rerank.general import solve_general
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes._compiled import COMPILED
from recsys_budget.rerank.routes.direct import DirectSlates, solve_direct
from recsys_budget.rerank.routes.diverse import DiverseSlates, solve_diverse
from recsys_budget.rerank.routes.laminar import LaminarTree, bound_prices, loosened, solve_laminar
from recsys_budget.rerank.structure import Cosines, Gains, Quotas, Sums

# Users whose slates are chosen again for prices of quotas; with diversity that takes a hundred times longer.
# And users who get a linear program each, for prices of other rules.
PRICED, _PRICED_DIVERSE, _PRICED_LINEAR = 1000, 100, 50
# Programs a user of the direct route: with diversity, integer programs close sooner what few leave open.
_NODES, _DIVERSE_NODES = 100, 8


def solve_quotas(question: Question) -> Outcome | None:
    """Exact slates under nested quotas and a linear objective; None where the problem is something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = question.memory.gains(question.objective, population)
    if gains is None or gains.diversity:
        return None
    quotas = Quotas.of(rules, population)
    if quotas is None:
        return None
    found = solve_laminar(population.offsets, gains.gains, gains.items, quotas.tree, discount=gains.worth)
    prices = _prices_of_quotas(question, gains, quotas)
    return Outcome(
        gains.rows(found.chosen, population),
        ~found.feasible,
        found.objective,
        float(found.objective.sum()),
        len(population),
        dict(zip((rule.name for rule in rules), prices.tolist(), strict=True)),
        "greedy",
        library(),
    )


def solve_linear(question: Question) -> Outcome | None:
    """Slates under any rules on sums over a slate, for gain and diversity; None for something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = question.memory.gains(question.objective, population)
    if gains is None or gains.worth is not None:
        return None
    sums = Sums.of(rules, population, "user")
    if sums is None:
        return None
    users = len(population)
    if len(sums.crossed):
        nothing = np.full((users, population.k), -1, np.int32)
        return Outcome(nothing, np.ones(users, bool), None, 0.0, 0, {}, "search", library())
    found = direct_slates(question, gains, sums, Cosines.of(gains, population))
    chosen = gains.rows(found.chosen, population)
    infeasible, bound = found.impossible.copy(), np.where(found.impossible, 0.0, found.bound)
    closed = found.bound - found.objective <= np.maximum(question.gap * np.abs(found.bound), TOLERANCE)
    open_ = np.flatnonzero(~closed & ~found.impossible)
    if len(open_) and not question.late:  # the search ran into its limit of programs: integer programs decide
        rest = solve_general(replace(question, population=population.part(open_), progress=False))
        assert rest.bound is not None
        better = ~rest.infeasible & (rest.chosen[:, 0] >= 0)
        chosen[open_[better]] = rest.chosen[better]
        infeasible[open_] = rest.infeasible & ~found.feasible[open_]
        bound[open_] = np.fmin(bound[open_], rest.bound)
    prices = prices_of_sums(question, sums, found)
    return Outcome(
        chosen,
        infeasible,
        bound,
        float(bound.sum()),
        int(found.solves.sum()),
        {rule.name: float(price) for rule, price in zip(rules, prices, strict=True)},
        "HIGHS",
        problem.versions("HIGHS"),
        question.late,
    )


def solve_diversity(question: Question) -> Outcome | None:
    """Slates under nested quotas for engagement and diversity; None where the problem is something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = question.memory.gains(question.objective, population)
    if gains is None or not gains.diversity or gains.worth is not None:
        return None
    quotas = Quotas.of(rules, population)
    if quotas is None:
        return None
    diversity = Cosines.of(gains, population)
    found = diverse_slates(question, gains, quotas, diversity)
    bound = np.where(found.feasible, found.bound, 0.0)
    prices = prices_of_diverse(question, gains, quotas, diversity, found)
    return Outcome(
        gains.rows(found.chosen, population),
        ~found.feasible,
        bound,
        float(bound.sum()),
        int(found.visited.sum()),
        dict(zip((rule.name for rule in rules), prices.tolist(), strict=True)),
        "branch and bound",
        library(),
        question.late,
    )


def diverse_slates(question: Question, gains: Gains, quotas: Quotas, diversity: Cosines) -> DiverseSlates:
    """The diverse route's slates, rows in the order of the gains."""
    return _diverse(question, diversity, question.population.offsets, gains.gains, gains.items, quotas.tree)


def _diverse(
    question: Question,
    diversity: Cosines,
    offsets: NDArray[np.int64],
    gains: NDArray[np.float64],
    items: NDArray[np.intp],
    tree: LaminarTree,
) -> DiverseSlates:
    return solve_diverse(
        offsets,
        gains + diversity.each,
        items,
        tree,
        question.memory.factors(diversity, question.population.k),
        diversity.curvature,
        diversity.linear,
        gap=question.gap,
        time_limit=question.seconds_left,
    )


def direct_slates(
    question: Question, gains: Gains, sums: Sums, diversity: Cosines, warm: DirectSlates | None = None
) -> DirectSlates:
    """The direct route's slates, rows in the order of the gains."""
    return solve_direct(
        question.population.offsets,
        gains.gains + diversity.each,
        gains.items,
        question.population.k,
        sparse.csr_array(sums.coefficients.T),
        sums.lower,
        sums.upper,
        question.memory.factors(diversity, question.population.k) if gains.diversity else None,
        diversity.curvature,
        diversity.linear,
        gap=question.gap if gains.diversity else 0.0,
        nodes=_DIVERSE_NODES if gains.diversity else _NODES,
        time_limit=question.seconds_left,
        warm=warm,
    )


def prices_of_sums(question: Question, sums: Sums, found: DirectSlates) -> NDArray[np.float64]:
    """Mean prices of the rules about one slate over a sample of users who have one; ``(n_rules,)``."""
    n_rules = len(question.constraints)
    users = np.flatnonzero(found.feasible)
    users = users[:: max(1, -(-len(users) // _PRICED_LINEAR))]
    each = found.prices_of(users)
    prices = sums.by_rule(np.maximum(0.0, each).sum(axis=0), n_rules)
    prices += sums.by_rule(np.minimum(0.0, each).sum(axis=0), n_rules)
    return prices / max(1, len(users))


def _prices_of_quotas(question: Question, gains: Gains, quotas: Quotas) -> NDArray[np.float64]:
    """Mean prices of the quotas over a sample of users; ``(n_rules,)``."""
    _, sampled, rows = _sample(question.population.offsets, PRICED)
    prices = bound_prices(sampled, gains.gains[rows], gains.items[rows], quotas.tree, discount=gains.worth)
    return quotas.by_rule(prices, len(question.constraints))


def prices_of_diverse(
    question: Question, gains: Gains, quotas: Quotas, diversity: Cosines, found: DiverseSlates
) -> NDArray[np.float64]:
    """The same with diversity: what the best slates found gain when a bound alone is one item looser.

    Both are within the gap, and mostly optimal, so the difference is good to the gap at worst.
    """
    users, sampled, rows = _sample(question.population.offsets, _PRICED_DIVERSE)

    def objective(tree: LaminarTree) -> NDArray[np.float64]:
        return _diverse(question, diversity, sampled, gains.gains[rows], gains.items[rows], tree).objective

    had = found.feasible[users] & (not question.late)
    prices = loosened(quotas.tree, found.objective[users], had, objective)
    return quotas.by_rule(prices, len(question.constraints))


def _sample(
    offsets: NDArray[np.int64], most: int
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """At most so many users spread evenly, offsets of their own, and their rows."""
    users = np.arange(len(offsets) - 1)[:: max(1, -(-(len(offsets) - 1) // most))]
    sizes = np.diff(offsets)[users]
    sampled = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return users, sampled, np.arange(sampled[-1]) + np.repeat(offsets[users] - sampled[:-1], sizes)


@cache
def library() -> str:
    """What runs the kernels, and its version."""
    return f"numba {version('numba')}" if COMPILED else f"numpy {version('numpy')}"
