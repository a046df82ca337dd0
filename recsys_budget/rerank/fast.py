"""Routes for special structure: what the language asks, as the plain arrays that they take."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import Constraint, Population
from recsys_budget.rerank import problem
from recsys_budget.rerank.integer import relaxed_prices
from recsys_budget.rerank.model import assemble
from recsys_budget.rerank.objective import unit_categories
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes._compiled import COMPILED
from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.laminar import bound_prices, solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows
from recsys_budget.rerank.structure import Gains, Quotas, Sums

# Users whose slates are chosen again for the prices of quotas; users whose relaxation is solved for prices.
_SAMPLE, _RELAXED = 1000, 50
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
        _library(),
    )


def solve_sums(question: Question) -> Outcome | None:
    """Slates under nested quotas and sums over everybody; None where the problem is something else."""
    population, rules = question.population, question.constraints
    if any(not rule.hard for rule in rules) or all(rule.scope == "user" for rule in rules):
        return None
    gains = Gains.of(question.objective, population)
    if gains is None or gains.diversity or gains.worth is not None:
        return None
    quotas, sums = Quotas.of(rules, population), Sums.of(rules, population)
    if quotas is None or sums is None:
        return None
    users, k = len(population), population.k
    nothing = np.full((users, k), -1, np.int32)
    small = len(population.items) <= _SMALL
    none = {rule.name: 0.0 for rule in rules}
    crossed = np.flatnonzero(sums.lower > sums.upper)
    if len(crossed):
        return _contradiction(rules, set(sums.owners[:, crossed[0]].tolist()), nothing)
    found = solve_coupled(
        population.offsets,
        gains.gains,
        gains.items,
        quotas.tree,
        PopulationRows(sparse.csc_array(sums.coefficients), sums.lower, sums.upper),
        gap=question.gap,
        time_limit=question.seconds_left,
    )
    if not found.feasible.all():
        return Outcome(nothing, ~found.feasible, None, 0.0, 0, none, "prices", _library())
    if found.ray is not None and not small:
        side = np.where(found.ray > 0.0, 1, 0)
        rows = np.flatnonzero(found.ray)
        return _contradiction(rules, set(sums.owners[side[rows], rows].tolist()), nothing)
    if small and not question.late and not (found.satisfied and found.gap <= question.gap):
        return None  # few enough for integer programs, which close the gap that prices leave
    prices = sums.by_rule(found.prices, len(rules))
    prices += quotas_at(question, gains, quotas, sums.coefficients.T @ found.prices)
    return Outcome(
        gains.rows(found.chosen, population) if found.satisfied else nothing,
        np.zeros(users, bool),
        None,
        float(found.bound),
        int(np.ceil(found.evaluations)),
        {rule.name: float(price) for rule, price in zip(rules, prices, strict=True)},
        "prices",
        _library(),
        question.late,
    )


def quotas_at(
    question: Question, gains: Gains, quotas: Quotas, price: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean prices of the quotas where each item costs its price, shape ``(n_rules,)``; from a sample of users."""
    population = question.population
    users = np.arange(len(population))[:: max(1, -(-len(population) // _SAMPLE))]
    offsets, rows = _part(population, users)
    net = gains.gains[rows] - price[gains.items[rows]]
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))
    order = np.lexsort((-net, owner))
    prices = bound_prices(offsets, net[order], gains.items[rows][order], quotas.tree, discount=gains.worth)
    return quotas.by_rule(prices, len(question.constraints))


def _contradiction(rules: tuple[Constraint, ...], owners: set[int], nothing: NDArray[np.int32]) -> Outcome:
    """No slates, because of these rules."""
    names = tuple(rules[owner].name for owner in sorted(owners) if owner >= 0)
    everybody = np.ones(len(nothing), bool)
    return Outcome(nothing, everybody, None, 0.0, 0, {}, "prices", _library(), conflict=names)


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
    k = population.k
    curvature = gains.diversity / (k * (k - 1)) if k > 1 else 0.0
    units = unit_categories(population.catalogue)
    found = solve_diverse(
        population.offsets,
        gains.gains
        + (gains.diversity / k if k > 1 else 0.0),  # so that its objective is ours, and its gap too
        gains.items,
        quotas.tree,
        units,
        curvature,
        curvature * np.asarray(units.power(2).sum(axis=1)).ravel(),
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
        _library(),
        question.late,
    )


def _prices_of_sample(question: Question) -> dict[str, float]:
    """Mean prices over a few users spread evenly, from linear relaxations with tangents to the concave terms."""
    population = question.population
    users = range(0, len(population), max(1, -(-len(population) // _RELAXED)))
    prices = np.zeros(len(question.constraints))
    for u in users:
        model = assemble(
            question.objective, question.constraints, Population.of_one(population.of(u)), problem.express
        )
        prices += relaxed_prices(model, len(prices))
    return dict(zip((r.name for r in question.constraints), (prices / len(users)).tolist(), strict=True))


def _part(population: Population, users: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of some users' rows, and these rows."""
    sizes = np.diff(population.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(population.offsets[users] - offsets[:-1], sizes)
    return offsets, rows


def _library() -> str:
    return f"numba {version('numba')}" if COMPILED else f"numpy {version('numpy')}"
