"""Slates by swaps, where programs have none or would take too long: often feasible, never certain."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE, Population
from recsys_budget.rerank.model import Model
from recsys_budget.rerank.structure import Sums


def swap_repair(model: Model, chosen: NDArray[np.integer]) -> NDArray[np.integer]:
    """Swap items of one user's slate, one at a time, while that lowers the violation of linear rules.

    Of the swaps that lower it most, the one that costs the least objective is taken, and of those the first.
    What comes out need not satisfy the rules: measure it.

    Args:
        model: The problem of one user, without positions.
        chosen: Rows of k candidates.

    Returns:
        Rows of k candidates, ascending.
    """
    linear_rows = np.ones(len(model.upper), bool)
    linear_rows[[curve.row for curve in model.curves if curve.row >= 0]] = False
    a = model.rows[linear_rows].toarray()
    upper, price = model.upper[linear_rows], np.minimum(model.penalty[linear_rows], 1e9)
    slate = np.sort(np.asarray(chosen))
    lhs = a[:, slate].sum(axis=1)
    violation = float(price @ np.maximum(0.0, lhs - upper))
    for _ in range(4 * model.k):
        if violation <= 0.0:
            break
        others = np.setdiff1d(np.arange(len(model.linear)), slate)
        after = (lhs - upper)[:, None, None] - a[:, slate, None] + a[:, None, others]
        left = np.tensordot(price, np.maximum(0.0, after), axes=1)
        lost = model.linear[slate, None] - model.linear[None, others]
        if not left.size:
            break
        best = int(np.lexsort((lost.ravel(), left.ravel()))[0])
        if left.ravel()[best] >= violation:
            break
        out, into = np.unravel_index(best, left.shape)
        lhs = lhs - a[:, slate[out]] + a[:, others[into]]
        violation = float(left[out, into])
        slate = np.sort(np.append(np.delete(slate, out), others[into]))
    return slate


def swap_together(
    population: Population, own: Sums, sums: Sums, chosen: NDArray[np.integer], deadline: float
) -> NDArray[np.integer] | None:
    """Swap items of anybody's slate, one at a time, until sums over everybody are within their bounds.

    Swaps keep what rules ask of each slate. A sum that is missed is helped by the swap that harms others
    least; where each harms as much as it helps, by one that hands on what is missed to a sum that was not
    missed of late.

    Args:
        population: The candidates.
        own: What rules ask of each slate, but for its size.
        sums: What rules ask of all slates.
        chosen: ``(n_users, k)``, rows of slates that keep the rules about one slate.
        deadline: When to stop, by ``time.monotonic``.

    Returns:
        Slates that keep to the sums; None where swaps did not lead there.
    """
    chosen = np.array(chosen)
    lower, upper = sums.limits(sums.lower, sums.upper)
    start, items = population.offsets[:-1], population.items
    owner = np.repeat(np.arange(len(population)), np.diff(population.offsets))
    adds, asks = sparse.csr_array(sums.coefficients.T), own.coefficients.T.toarray()
    per_row = sparse.csc_array(adds[items])
    up, down = adds.maximum(0.0), (-adds).maximum(0.0)
    unit = np.maximum(sums.largest, 1e-300)
    slack = TOLERANCE * np.maximum(1.0, own.largest)
    inside = np.zeros(len(items), np.bool_)
    inside[start[:, None] + chosen] = True
    loads = asks[items[start[:, None] + chosen]].sum(axis=1)
    shown = np.bincount(items[start[:, None] + chosen].ravel(), minlength=len(population.catalogue))
    total = np.asarray(sums.coefficients @ shown.astype(np.float64))
    helped = np.full(len(total), -1e9)
    for turn in range(20 * len(total) + 200):
        short, over = np.maximum(0.0, lower - total), np.maximum(0.0, total - upper)
        missed = (short + over) / unit
        if not (missed > TOLERANCE).any():
            return chosen
        if time.monotonic() >= deadline:
            return None
        worst = int(np.lexsort((helped, -missed))[0])
        # What one more of each sum is worth, and one less. Not to go in circles, those that were helped of
        # late are spared most.
        harm = -(1.0 + 1.0 / (2.0 + turn - helped)) / unit
        more = np.where(short > 0.0, 1.0 / unit, np.where(total >= upper, harm, 0.0))
        less = np.where(over > 0.0, 1.0 / unit, np.where(total <= lower, harm, 0.0))
        enters, leaves = up @ more + down @ less, up @ less + down @ more
        wanted = np.zeros(len(items))
        span = slice(per_row.indptr[worst], per_row.indptr[worst + 1])
        wanted[per_row.indices[span]] = per_row.data[span] * (1.0 if short[worst] > 0.0 else -1.0)
        # Rows that the sum wants, for any of the slate; and of the slate what it does not want, for any row.
        new, old = np.flatnonzero((wanted > 0.0) & ~inside), np.flatnonzero((wanted < 0.0) & inside)
        sizes = np.diff(population.offsets)[owner[old]]
        others = np.repeat(start[owner[old]], sizes) + _counted(sizes)
        into = np.concatenate([np.repeat(new, population.k), others])
        out = np.concatenate(
            [(start[owner[new]][:, None] + chosen[owner[new]]).ravel(), np.repeat(old, sizes)]
        )
        better = ~inside[into] & (wanted[into] > wanted[out])
        into, out = into[better], out[better]
        after = loads[owner[into]] + asks[items[into]] - asks[items[out]]
        fits = ((after >= own.lower - slack) & (after <= own.upper + slack)).all(axis=1)
        into, out = into[fits], out[fits]
        if not len(into):
            return None
        at = int((enters[items[into]] + leaves[items[out]]).argmax())
        row, gone = into[at], out[at]
        user = owner[row]
        inside[gone], inside[row] = False, True
        loads[user] += asks[items[row]] - asks[items[gone]]
        chosen[user, chosen[user] == gone - start[user]] = row - start[user]
        shown[items[row]] += 1
        shown[items[gone]] -= 1
        total = np.asarray(sums.coefficients @ shown.astype(np.float64))
        helped[worst] = turn
    return None


def _counted(sizes: NDArray[np.integer]) -> NDArray[np.integer]:
    """0, 1, ... up to each of these sizes, one after the other."""
    counted: NDArray[np.integer] = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return counted
