"""The route for any structure: integer programs, or a named solver's relaxation, checked and repaired."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recsys_budget.constraints import TOLERANCE, Population
from recsys_budget.errors import NumericalError
from recsys_budget.rerank import problem
from recsys_budget.rerank.integer import Solution, search
from recsys_budget.rerank.model import Model, assemble
from recsys_budget.rerank.question import Outcome, Question
from recsys_budget.rerank.repair import swap_repair


def solve_general(question: Question) -> Outcome:
    """Slates of everybody: user by user, or together where some rule is about all.

    Raises:
        NumericalError: A solver stopped without an answer although it had time.
        SpecificationError: The named solver does not take the problem, or a rule is not convex.
    """
    population, name = question.population, question.solver or "HIGHS"
    coupled = any(rule.scope == "population" for rule in question.constraints)
    parts = [population] if coupled else [Population.of_one(population.of(u)) for u in range(len(population))]
    chosen = np.full((len(population), population.k), -1, np.int32)
    infeasible = np.zeros(len(population), bool)
    bounds = np.zeros(len(parts))
    iterations, stopped = 0, False
    prices = np.zeros(len(question.constraints))
    for at, part in enumerate(tqdm(parts, desc="re-ranking", unit="user", disable=not question.progress)):
        rows = slice(None) if coupled else slice(at, at + 1)
        model = assemble(question.objective, question.constraints, part, problem.express)
        found = _solve(question, part, model, name)
        iterations, stopped = iterations + found.solves, stopped or found.stopped
        bounds[at] = found.bound
        infeasible[rows] = found.infeasible
        slates: NDArray[np.integer] | None = None if found.z is None else model.slates(found.z)
        if slates is None and not found.infeasible and not coupled and model.places == 1:
            # No time, or an answer that breaks a rule: what swaps find is checked like any other slate.
            best = np.argsort(-model.linear, kind="stable")[: model.k]
            repaired = swap_repair(model, best)[None, :]
            if len(best) == model.k and model.holds(model.vector(repaired)):
                slates = repaired
        if slates is not None:
            if slates.shape[1] > population.k:
                raise NumericalError(
                    f"{name} offered slates of up to {slates.shape[1]} items where {population.k} are asked "
                    "for; try another solver"
                )
            chosen[rows] = _settle(model, slates, part, question)
        if found.prices is not None:
            prices += model.by_rule(found.prices, len(prices))
    user_rules = np.array([rule.scope == "user" for rule in question.constraints])
    prices = np.where(user_rules, prices / len(population), prices)
    return Outcome(
        chosen,
        infeasible,
        None if coupled else bounds,
        float(bounds.sum()),
        iterations,
        {rule.name: float(price) for rule, price in zip(question.constraints, prices, strict=True)},
        name,
        problem.versions(name),
        stopped,
    )


def _solve(question: Question, part: Population, model: Model, name: str) -> Solution:
    if question.late:
        return Solution(None, model.plain_bound(), 0, False, True, "time limit")
    if problem.solves_integers(name):
        return _search(question, model, name)
    z, multipliers, status = problem.relax(
        question.objective, question.constraints, part, name, question.deadline
    )
    if z is None:  # it may call the problem infeasible, or have failed: find out
        return _search(question, model, "HIGHS")
    rows = np.zeros(len(model.upper))
    for owner, found in enumerate(multipliers):
        here = np.flatnonzero(model.owner == owner)
        if len(found) == len(here):
            rows[here] = found
    entries = [found for owner, found in enumerate(multipliers) for o in model.opaque if o.owner == owner]
    sizes = sum(len(rule.upper) for rule in model.opaque)
    opaque = np.concatenate(entries) if entries else np.zeros(0)
    opaque = opaque if len(opaque) == sizes else np.zeros(sizes)
    bound = min(model.plain_bound(), model.dual_bound(z, np.concatenate([rows, opaque])))
    rounded = _rounded(model, z)
    if rounded is not None and bound - model.value(rounded) <= max(question.gap * abs(bound), TOLERANCE):
        return Solution(rounded, bound, 1, False, question.late, status, rows)
    repaired = _search(question, model, "HIGHS")
    best = repaired.z if repaired.z is not None else rounded
    return Solution(
        best, min(bound, repaired.bound), 1 + repaired.solves, repaired.infeasible and rounded is None,
        repaired.stopped, status, rows,
    )  # fmt: skip


def _search(question: Question, model: Model, name: str) -> Solution:
    return search(
        model,
        problem.integer_solver(name),
        gap=question.gap,
        max_solves=question.max_solves,
        deadline=question.deadline,
        prices=True,
    )


def _rounded(model: Model, z: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The k candidates that z takes most of, where they satisfy the rules, after swaps if need be."""
    if model.places > 1 or len(model.offsets) > 2:
        return None
    slate = np.argsort(-z, kind="stable")[: model.k]
    for attempt in (slate, swap_repair(model, slate)):
        vector = model.vector(attempt[None, :])
        if len(attempt) == model.k and model.holds(vector):
            return vector
    return None


def _settle(
    model: Model, slates: NDArray[np.integer], part: Population, question: Question
) -> NDArray[np.integer]:
    """Slates in their order, each candidate the first of those alike, filled up with -1."""
    settled = np.full((len(part), part.k), -1, np.int32)
    settled[:, : slates.shape[1]] = model.first_of_alike(slates)
    if model.places > 1 and not any(rule.positional for rule in question.constraints):
        # No rule reads positions: the most relevant first is best, and what everybody expects.
        settled.sort(axis=1)
        settled = np.take_along_axis(settled, np.argsort(settled < 0, axis=1, kind="stable"), axis=1)
    elif model.places > 1 and len(part) == 1:
        settled[0] = _by_relevance(model, settled[0])
    return settled


def _by_relevance(model: Model, slate: NDArray[np.integer]) -> NDArray[np.integer]:
    """The same items, the more relevant of two first wherever neither rules nor the objective mind."""
    best = model.value(model.vector(slate[None, :]))
    for first, second in itertools.combinations(range(len(slate)), 2):
        if 0 <= slate[second] < slate[first]:
            swapped = slate.copy()
            swapped[[first, second]] = slate[[second, first]]
            z = model.vector(swapped[None, :])
            if model.holds(z) and model.value(z) >= best - 1e-12:  # sums round differently place by place
                slate = swapped
    return slate
