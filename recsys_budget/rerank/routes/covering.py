"""Slates that show at least so many different items of the catalogue, beside rules on sums.

The number of different items shown is the sum of ``min(1, shows)``, so the rule has a dual of the same kind:
a bonus for each item, paid for every show, of which the rule takes back the smallest ones, as many as there
must be items. Any bonuses give a bound. Good ones are what it costs to bring each item in, which exchanges
tell; the cheapest items then get a floor of one show.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes.answers import BestSlates
from recsys_budget.rerank.routes.coupled import Coupled, CoupledSlates, solve_from
from recsys_budget.rerank.routes.dual import price_of_bounds
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.routes.rows import PopulationRows

_ROUNDS = 6


def solve_covering(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    rows: PopulationRows,
    at_least: int,
    *,
    counted: NDArray[np.bool_] | None = None,
    fixed: NDArray[np.int8] | None = None,
    gap: float = 1e-4,
    time_limit: float | None = None,
    threads: int | None = None,
) -> CoupledSlates:
    """Slates within quotas and rows that show at least so many different items.

    Args:
        offsets: See :func:`~recsys_budget.rerank.routes.coupled.solve_coupled`, likewise the others.
        gains: Finite, at least 0, falling within each user.
        items: Positions in the catalogue.
        tree: Quotas of each slate.
        rows: Rules on sums over all slates; may have no rows.
        at_least: How many different items must be shown.
        counted: bool ``(n_items,)``, the items that count; None counts all.
        fixed: Rows of candidates that must, or must not, be chosen.
        gap: Relative distance from the bound at which to stop.
        time_limit: Seconds.
        threads: Most threads at once.

    Returns:
        Slates whose ``prices``, ``loads``, ``violations`` and ``ray`` have one entry more than there are
        rows: the last is of this rule, in different items shown. Unlike rows on sums of groups, this rule
        may be missed where it could be met, or by more than the gap from the bound: ``satisfied`` and ``gap``
        tell.

    Raises:
        SpecificationError: A negative number of items.
    """
    if at_least < 0:
        raise SpecificationError(f"at least {at_least} different items must be shown; ask for 0 or more")
    deadline = np.inf if time_limit is None else perf_counter() + time_limit
    oracle = Oracle(offsets, gains, items, tree, fixed=fixed, threads=threads)
    if counted is None:
        counted = np.ones(len(tree.leaf_of_item), np.bool_)
    return CoupledSlates.of(cover(oracle, rows, at_least, counted, None, gap, deadline), oracle)


def cover(
    oracle: BestSlates,
    rows: PopulationRows,
    at_least: int,
    counted: NDArray[np.bool_],
    start: NDArray[np.float64] | None,
    gap: float,
    deadline: float,
) -> Coupled:
    """The same for an oracle's users, from prices of the rows believed to be good, or from none."""
    answer = solve_from(oracle, rows, start, gap, deadline)
    bonus = np.zeros(len(counted))
    best = _with_rule(oracle, answer, rows, counted, bonus, at_least)
    failed = np.zeros(len(counted), np.bool_)
    floored: NDArray[np.intp] | None = None
    for _ in range(_ROUNDS):
        done = best.satisfied and best.gap <= gap
        if done or best.ray is not None or perf_counter() > deadline:
            break
        prices = answer.prices[: len(rows.lower)]
        cost = _costs(oracle, rows.coefficients.T @ prices, bonus, counted, at_least)
        order = np.lexsort((np.arange(len(cost)), cost, failed))[:at_least]
        chosen = np.sort(order[np.isfinite(cost[order])])
        if len(chosen) < at_least or (floored is not None and np.array_equal(chosen, floored)):
            break
        floored = chosen
        one_of_each = sparse.csc_array(
            (np.ones(at_least), (np.arange(at_least), floored)), shape=(at_least, len(counted))
        )
        floors = PopulationRows(
            sparse.csc_array(sparse.vstack([rows.coefficients, one_of_each])),
            np.concatenate([rows.lower, np.ones(at_least)]),
            np.concatenate([rows.upper, np.full(at_least, np.inf)]),
        )
        answer = solve_from(oracle, floors, np.concatenate([prices, -cost[floored]]), gap, deadline)
        if answer.ray is not None:
            break
        bonus = np.zeros(len(counted))
        bonus[floored] = -answer.prices[len(rows.lower) :]
        failed[floored] |= answer.violations[len(rows.lower) :] > 0.0
        new = _with_rule(oracle, answer, rows, counted, bonus, at_least)
        bound = min(best.bound, new.bound)
        if (new.violations.sum(), -new.objective) < (best.violations.sum(), -best.objective):
            best = new
        best = replace(best, bound=bound)
    return best


def _costs(
    oracle: BestSlates,
    prices: NDArray[np.float64],
    bonus: NDArray[np.float64],
    counted: NDArray[np.bool_],
    at_least: int,
) -> NDArray[np.float64]:
    """What a first show of each item costs, ``(n_items,)``: 0 if it has one anyway, infinite if unknown."""
    counts = oracle.best(prices - bonus).counts.sum(axis=0)
    shown = counted & (counts > 0)
    most = 2.0 * (oracle.largest + float(np.abs(prices - bonus).max(initial=0.0)))
    cost = np.full(len(prices), np.inf)
    within = min(oracle.spacing, most)
    while True:
        free = oracle.exchanges(prices - bonus, within)
        np.minimum.at(cost, free.items[:, 1], free.cost)
        if (shown | (counted & np.isfinite(cost))).sum() >= at_least or within >= most:
            break
        within = min(2.0 * within, most)
    cost = np.where(shown, 0.0, cost) + bonus
    return np.where(counted, cost, np.inf)


def _with_rule(
    oracle: BestSlates,
    answer: Coupled,
    rows: PopulationRows,
    counted: NDArray[np.bool_],
    bonus: NDArray[np.float64],
    at_least: int,
) -> Coupled:
    """The answer with the rule as a last row, and the bound that these bonuses give."""
    n_rows = len(rows.lower)
    seen = oracle.total(answer.selection).counts.sum(axis=0) > 0
    shown = int((seen & counted).sum())
    prices, ray = answer.prices[:n_rows], answer.ray
    dearest = float(bonus.max(initial=0.0))
    bound = answer.bound
    if counted.sum() < at_least:
        bound, ray = -np.inf, np.append(np.zeros(n_rows), -1.0)
    elif ray is not None:
        ray = np.append(ray, 0.0)
    elif at_least > 0:
        # Items without a floor would cost more than the dearest that has one.
        offered = np.where(counted & (bonus == 0.0) & ~seen, dearest, bonus)
        value = oracle.best(rows.coefficients.T @ prices - offered).value
        taken_back = float(np.sort(offered[counted])[:at_least].sum())
        bound = value + float(price_of_bounds(prices, rows).sum()) - taken_back
        bound += 1e-12 * (abs(value) + taken_back)  # rounding
    missing = float(max(0, at_least - shown))
    return replace(
        answer,
        bound=bound,
        prices=np.append(prices, -dearest),
        loads=np.append(answer.loads[:n_rows], shown),
        violations=np.append(answer.violations[:n_rows], missing),
        ray=ray,
        satisfied=rows.short(answer.loads[:n_rows]) == 0.0 and missing == 0.0,
    )
