"""A slate by swaps, for when there is no time for a proof: often feasible, never certain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.model import Model


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
