"""Routes for special structure: what the language asks, as the plain arrays that they take."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import Population
from recsys_budget.rerank import problem
from recsys_budget.rerank.integer import relaxed_prices
from recsys_budget.rerank.model import assemble
from recsys_budget.rerank.objective import unit_categories
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.routes._compiled import COMPILED
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.laminar import bound_prices, solve_laminar
from recsys_budget.rerank.structure import Gains, Quotas

# Users whose slates are chosen again for the prices of quotas; users whose relaxation is solved for prices.
_SAMPLE, _RELAXED = 1000, 50


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
    return Outcome(
        gains.rows(found.chosen, population),
        ~found.feasible,
        found.objective,
        float(found.objective.sum()),
        len(population),
        _prices(question, gains, quotas),
        "greedy",
        _library(),
    )


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


def _prices(question: Question, gains: Gains, quotas: Quotas) -> dict[str, float]:
    """Mean prices of the quotas over users, or over a thousand spread evenly where there are more."""
    population, rules = question.population, question.constraints
    users = np.arange(len(population))[:: max(1, -(-len(population) // _SAMPLE))]
    offsets, rows = _part(population, users)
    prices = bound_prices(offsets, gains.gains[rows], gains.items[rows], quotas.tree, discount=gains.worth)
    by_rule = quotas.by_rule(prices, len(rules))
    return {rule.name: float(price) for rule, price in zip(rules, by_rule, strict=True)}


def _part(population: Population, users: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of some users' rows, and these rows."""
    sizes = np.diff(population.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(offsets[-1]) + np.repeat(population.offsets[users] - offsets[:-1], sizes)
    return offsets, rows


def _library() -> str:
    return f"numba {version('numba')}" if COMPILED else f"numpy {version('numpy')}"
