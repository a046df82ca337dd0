"""Routes for special structure: what the language asks, as the plain arrays that they take."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE, CatalogueCoverage, Constraint, Population
from recsys_budget.rerank import problem
from recsys_budget.rerank.general import solve_general
from recsys_budget.rerank.integer import relaxed_prices
from recsys_budget.rerank.model import assemble
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes._compiled import COMPILED
from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.covering import solve_covering
from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.laminar import bound_prices, solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows
from recsys_budget.rerank.structure import Cosines, Gains, Quotas, Sums

# Users whose slates are chosen again for the prices of quotas; users whose relaxation is solved for prices.
_SAMPLE, _RELAXED = 1000, 50
# Programs a user of the direct route: with diversity, integer programs close sooner what few leave open.
_NODES, _DIVERSE_NODES = 100, 8
# Candidates up to which integer programs decide what prices leave open.
_SMALL = 5_000


def solve_quotas(question: Question) -> Outcome | None:
    """Exact slates under nested quotas and a linear objective; None where the problem is something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = Gains.of(question.objective, population)
    if gains is None or gains.diversity:
        return None
    quotas = Quotas.of(rules, population)
    if quotas is None:
        return None
    found = solve_laminar(population.offsets, gains.gains, gains.items, quotas.tree, discount=gains.worth)
    prices = quotas_at(question, gains, quotas, np.zeros(len(population.catalogue)))
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


def solve_sums(question: Question) -> Outcome | None:
    """Slates under nested quotas, sums over everybody and catalogue coverage; None for something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard for rule in rules) or all(rule.scope == "user" for rule in rules):
        return None
    gains = Gains.of(question.objective, population)
    if gains is None or gains.diversity or gains.worth is not None:
        return None
    quotas, sums = Quotas.of(rules, population), Sums.of(rules, population)
    coverage = [at for at, rule in enumerate(rules) if isinstance(rule, CatalogueCoverage)]
    if quotas is None or sums is None or len(coverage) > 1:
        return None
    nothing = np.full((len(population), population.k), -1, np.int32)
    small = len(population.items) <= _SMALL
    if len(sums.crossed):
        return _contradiction(rules, set(sums.owners[:, sums.crossed[0]].tolist()), nothing)
    asked = (population.offsets, gains.gains, gains.items, quotas.tree)
    rows = PopulationRows(sparse.csc_array(sums.coefficients), sums.lower, sums.upper)
    gap, seconds = question.gap, question.seconds_left
    if coverage:
        asked_for = rules[coverage[0]]
        assert isinstance(asked_for, CatalogueCoverage)
        found = solve_covering(*asked, rows, asked_for.count, gap=gap, time_limit=seconds)
    else:
        found = solve_coupled(*asked, rows, gap=gap, time_limit=seconds)
    owners = np.hstack([sums.owners, np.tile(np.array(coverage, np.intp), (2, 1))])
    if not found.feasible.all():
        return Outcome(nothing, ~found.feasible, None, 0.0, 0, {}, "prices", library())
    if found.ray is not None and not small:
        side = np.where(found.ray > 0.0, 1, 0)
        named = np.flatnonzero(found.ray)
        return _contradiction(rules, set(owners[side[named], named].tolist()), nothing)
    if small and not question.late and not (found.satisfied and found.gap <= question.gap):
        return None  # few enough for integer programs, which close the gap that prices leave
    of_rows = found.prices[: len(sums.lower)]
    prices = sums.by_rule(of_rows, len(rules))
    prices[coverage] += np.abs(found.prices[len(sums.lower) :])
    prices += quotas_at(question, gains, quotas, sums.coefficients.T @ of_rows)
    return Outcome(
        gains.rows(found.chosen, population) if found.satisfied else nothing,
        np.zeros(len(population), bool),
        None,
        float(found.bound),
        int(np.ceil(found.evaluations)),
        {rule.name: float(price) for rule, price in zip(rules, prices, strict=True)},
        "prices",
        library(),
        question.late,
    )


def solve_linear(question: Question) -> Outcome | None:
    """Slates under any rules on sums over a slate, for gain and diversity; None for something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = Gains.of(question.objective, population)
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


def quotas_at(
    question: Question, gains: Gains, quotas: Quotas, price: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean prices of the quotas over a sample of users, where each item costs its price; ``(n_rules,)``."""
    population = question.population
    users = np.arange(len(population))[:: max(1, -(-len(population) // _SAMPLE))]
    sizes = np.diff(population.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(population.offsets[users] - offsets[:-1], sizes)
    net = gains.gains[rows] - price[gains.items[rows]]
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))
    order = np.lexsort((-net, owner))
    prices = bound_prices(offsets, net[order], gains.items[rows][order], quotas.tree, discount=gains.worth)
    return quotas.by_rule(prices, len(question.constraints))


def _contradiction(rules: tuple[Constraint, ...], owners: set[int], nothing: NDArray[np.int32]) -> Outcome:
    """No slates, because of these rules."""
    names = tuple(rules[owner].name for owner in sorted(owners) if owner >= 0)
    everybody = np.ones(len(nothing), bool)
    return Outcome(nothing, everybody, None, 0.0, 0, {}, "prices", library(), conflict=names)


def solve_diversity(question: Question) -> Outcome | None:
    """Slates under nested quotas for engagement and diversity; None where the problem is something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard or rule.scope == "population" for rule in rules):
        return None
    gains = Gains.of(question.objective, population)
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


def library() -> str:
    """What runs the kernels, and its version."""
    return f"numba {version('numba')}" if COMPILED else f"numpy {version('numpy')}"
