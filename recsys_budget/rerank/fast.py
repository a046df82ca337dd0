"""Routes for special structure: what the language asks, as the plain arrays that they take."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE, Population
from recsys_budget.rerank import problem
from recsys_budget.rerank.general import solve_general
from recsys_budget.rerank.integer import relaxed_prices
from recsys_budget.rerank.model import assemble
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes._compiled import COMPILED
from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.laminar import bound_prices, solve_laminar
from recsys_budget.rerank.structure import Cosines, Gains, Quotas, Sums

# Users whose slates are chosen again for the prices of quotas; users whose relaxation is solved for prices.
PRICED, _RELAXED = 1000, 50
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
    diversity = Cosines.of(gains, population)
    found = solve_direct(
        population.offsets,
        gains.gains + diversity.each,
        gains.items,
        population.k,
        sparse.csr_array(sums.coefficients.T),
        sums.lower,
        sums.upper,
        diversity.factors,
        diversity.curvature,
        diversity.linear,
        gap=question.gap if gains.diversity else 0.0,
        nodes=_DIVERSE_NODES if gains.diversity else _NODES,
        time_limit=question.seconds_left,
    )
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
    prices = sums.by_rule(np.maximum(0.0, found.prices[found.feasible]).sum(axis=0), len(rules))
    prices += sums.by_rule(np.minimum(0.0, found.prices[found.feasible]).sum(axis=0), len(rules))
    prices /= max(1, int(found.feasible.sum()))
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
    found = solve_diverse(
        population.offsets,
        gains.gains + diversity.each,
        gains.items,
        quotas.tree,
        diversity.factors,
        diversity.curvature,
        diversity.linear,
        gap=question.gap,
        time_limit=question.seconds_left,
    )
    bound = np.where(found.feasible, found.bound, 0.0)
    return Outcome(
        gains.rows(found.chosen, population),
        ~found.feasible,
        bound,
        float(bound.sum()),
        int(found.visited.sum()),
        _prices_of_sample(question),
        "branch and bound",
        library(),
        question.late,
    )


def _prices_of_quotas(question: Question, gains: Gains, quotas: Quotas) -> NDArray[np.float64]:
    """Mean prices of the quotas over a sample of users; ``(n_rules,)``."""
    offsets = question.population.offsets
    users = np.arange(len(offsets) - 1)[:: max(1, -(-(len(offsets) - 1) // PRICED))]
    sizes = np.diff(offsets)[users]
    sampled = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(sampled[-1]) + np.repeat(offsets[users] - sampled[:-1], sizes)
    prices = bound_prices(sampled, gains.gains[rows], gains.items[rows], quotas.tree, discount=gains.worth)
    return quotas.by_rule(prices, len(question.constraints))


def _prices_of_sample(question: Question) -> dict[str, float]:
    """Mean prices over a few users spread evenly, from linear relaxations with tangents."""
    population = question.population
    users = range(0, len(population), max(1, -(-len(population) // _RELAXED)))
    prices = np.zeros(len(question.constraints))
    for u in users:
        model = assemble(
            question.objective, question.constraints, Population.of_one(population.of(u)), problem.express
        )
        prices += relaxed_prices(model, len(prices))
    return dict(zip((r.name for r in question.constraints), (prices / len(users)).tolist(), strict=True))


@cache
def library() -> str:
    """What runs the kernels, and its version."""
    return f"numba {version('numba')}" if COMPILED else f"numpy {version('numpy')}"
