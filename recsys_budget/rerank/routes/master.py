"""Slates within the rows, chosen among exchanges that cost next to nothing: a small integer program.

Near the best prices almost every user's slate is settled. The rows that could still enter or leave a slate at
little cost are variables here and everything else is fixed, so the program stays small with a million users.
Where rows are bounds on disjoint groups this is an intersection of two matroids, whose linear program has a
whole-numbered solution at every corner (Edmonds 1970, doi:10.1007/3-540-36478-1_2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.rerank.routes.answers import BestSlates, Exchanges, row_of
from recsys_budget.rerank.routes.dual import Point
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.rows import ROUNDING, PopulationRows

_NODES = 2_000  # most branches where the linear program's answer is not whole
_WHOLE = 1e-6  # how near to 0 or 1 a solver's number must be to be read as one


@dataclass(frozen=True, eq=False)
class Choice:
    """What a restricted program chose.

    Attributes:
        users: int64 ``(n,)``, numbers of the users whose slates were free to change.
        slates: int32 ``(n, k)``, their slates now: rows relative to the user's first, in the order of a
            slate.
        prices: float64 ``(n_rows,)``, duals of the rows in the linear program: near-best prices.
        gained: What total gain has gained.
        added: float64 ``(n_rows,)``, what loads have gained.
    """

    users: NDArray[np.int64]
    slates: NDArray[np.int32]
    prices: NDArray[np.float64]
    gained: float
    added: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Limits:
    """How a restricted program is solved.

    Attributes:
        penalty: ``(n_rows,)``, cost of each unit outside the bounds of a row, so that there is an answer.
            None forbids such units.
        gainless: Count the penalty alone: how little the rows can be missed by.
        slack: Objective that may be given up where the linear program's answer is not whole.
        seconds: Most seconds for the solver.
        unit: What gains, penalty and slack are measured in: a solver's tolerances are absolute.
    """

    penalty: NDArray[np.float64] | None
    gainless: bool = False
    slack: float = 0.0
    seconds: float = np.inf
    unit: float = 1.0


def choose(
    oracle: BestSlates,
    rows: PopulationRows,
    point: Point,
    free: Exchanges,
    limits: Limits,
) -> Choice | None:
    """The best slates that differ from the best ones at some prices by these exchanges.

    Args:
        oracle: Knows the slates.
        rows: The rules.
        point: The prices, and what the slates add up to.
        free: The exchanges.
        limits: How to solve.

    Returns:
        None if the solver stopped without an answer. Whether the choice keeps to the rows is for the caller
        to count.
    """
    at, first = np.unique(np.concatenate([free.leaves, free.enters]), return_index=True)
    user = np.concatenate([free.user, free.user])[first]
    items, gains = free.items.T.ravel()[first], free.gains.T.ravel()[first]
    inside = np.zeros(len(at), np.bool_)
    inside[np.searchsorted(at, free.leaves)] = True
    users, owner = np.unique(user, return_inverse=True)
    now = oracle.slates(point.prices_of_items, users)
    own = quotas(oracle.tree, now.items, items, owner, inside)
    load = rows.coefficients[:, items]
    found = solve(gains, user, own, load, point.loads - load @ inside, rows, limits)
    if found is None:
        return None
    taken, prices = found
    kept = ~np.isin(now.keys, at)
    members = np.concatenate([now.keys[kept], at[taken]])
    order = np.lexsort((members, np.concatenate([np.nonzero(kept)[0], owner[taken]])))
    change = taken.astype(np.float64) - inside
    slates = row_of(members[order].reshape(now.keys.shape))
    return Choice(users, slates, prices, float((gains * change).sum()), load @ change)


def solve(
    gains: NDArray[np.float64],
    user: NDArray[np.int64],
    own: tuple[sparse.csc_array, NDArray[np.float64], NDArray[np.float64]],
    load: sparse.csc_array,
    fixed: NDArray[np.float64],
    rows: PopulationRows,
    limits: Limits,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """The best choice of variables that are 0 or 1, by HiGHS, and the duals of the rows.

    Args:
        gains: ``(n,)``.
        user: ``(n,)``.
        own: Rules of users: a matrix with a column a variable, and its bounds.
        load: ``(n_rows, n)``, what the variables add to the rows.
        fixed: ``(n_rows,)``, what all else adds.
        rows: The rules on sums.
        limits: How to solve.

    Returns:
        None if the solver stopped without a choice that is whole and keeps to the rules of users, whatever
        status it reports.
    """
    matrix, low, high = own
    n, m = len(gains), len(rows.lower)
    eye = sparse.eye_array(m, format="csc")
    coupling = [load, -eye, eye]
    columns = sparse.csc_array(
        sparse.block_array([[matrix, None, None], coupling] if matrix.shape[0] else [coupling])
    )
    outside = (
        np.zeros(2 * m) if limits.penalty is None else np.concatenate([limits.penalty] * 2) / limits.unit
    )
    most_outside = np.full(2 * m, 0.0 if limits.penalty is None else highspy.kHighsInf)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = n + 2 * m, columns.shape[0]
    model.col_cost_ = np.concatenate([gains / -limits.unit * (not limits.gainless), outside])
    model.col_lower_ = np.zeros(n + 2 * m)
    model.col_upper_ = np.concatenate([np.ones(n), most_outside])
    model.row_lower_ = np.concatenate([low, rows.lower - fixed])
    model.row_upper_ = np.concatenate([high, rows.upper - fixed])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_, model.a_matrix_.index_ = columns.indptr, columns.indices
    model.a_matrix_.value_ = columns.data
    options: dict[str, Any] = {
        "output_flag": False,
        "threads": 1,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": limits.slack / limits.unit,
        "mip_max_nodes": _NODES,
        "primal_feasibility_tolerance": ROUNDING,
        "mip_feasibility_tolerance": ROUNDING,
    }
    if np.isfinite(limits.seconds):
        options["time_limit"] = max(limits.seconds, 0.01)
    solver = highspy.Highs()
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(model)
    solver.run()
    prices = -limits.unit * np.array(solver.getSolution().row_dual)[len(low) :]
    x = np.array(solver.getSolution().col_value)
    if len(x) != n + 2 * m:
        return None
    best = solver.getInfo().objective_function_value
    torn = np.unique(user[_fractional(x[:n])])
    if len(torn):
        # Few users are torn between slates, at most one a row but for ties. Settle these first, or else all.
        whole = np.full(n, highspy.HighsVarType.kInteger)
        solver.changeColsIntegrality(n, np.arange(n, dtype=np.int32), whole)
        settled = np.flatnonzero(~np.isin(user, torn)).astype(np.int32)
        at = np.round(x[settled])
        solver.changeColsBounds(len(settled), settled, at, at)
        solver.run()
        x = np.array(solver.getSolution().col_value)
        lost = solver.getInfo().objective_function_value - best
        if _fractional(x[:n]).any() or not lost * limits.unit <= limits.slack:
            zeros = np.zeros(len(settled))
            solver.changeColsBounds(len(settled), settled, zeros, zeros + 1.0)
            solver.run()
            x = np.array(solver.getSolution().col_value)
    if len(x) != n + 2 * m or _fractional(x[:n]).any():
        return None
    taken = x[:n] > 0.5
    counts = matrix @ taken
    return (taken, prices) if ((low <= counts) & (counts <= high)).all() else None


def _fractional(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(x - np.round(x)) > _WHOLE


def quotas(
    tree: LaminarTree,
    slates: NDArray[np.int64],
    items: NDArray[np.int64],
    owner: NDArray[np.intp],
    inside: NDArray[np.bool_],
) -> tuple[sparse.csc_array, NDArray[np.float64], NDArray[np.float64]]:
    """Each user's quotas on variables, but for those that cannot be broken.

    Args:
        tree: The quotas.
        slates: ``(n_users, k)``, items of each slate.
        items: ``(n,)``, the item that each variable takes.
        owner: ``(n,)``, position of its user among the slates.
        inside: ``(n,)``, whether the slate takes it; what it takes besides stays.

    Returns:
        A matrix with a column a variable, and the bounds.
    """
    n_nodes, n_users = len(tree.parent), len(slates)

    def count(owners: NDArray[np.intp], of_items: NDArray[np.int64]) -> NDArray[np.int64]:
        cells = owners[:, None] * (n_nodes + 1) + tree.paths[tree.leaf_of_item[of_items]]
        tally = np.bincount(cells.ravel(), minlength=n_users * (n_nodes + 1))
        return tally.reshape(n_users, n_nodes + 1)[:, :n_nodes]

    everywhere = np.repeat(np.arange(n_users), slates.shape[1])
    fixed = count(everywhere, slates.ravel()) - count(owner[inside], items[inside])
    free = count(owner, items)
    low, high = tree.lower - fixed, tree.upper - fixed
    matters = (low > 0) | (high < free)
    number = np.cumsum(matters.ravel()).reshape(matters.shape) - 1
    paths = tree.paths[tree.leaf_of_item[items]]
    column, depth = np.nonzero(paths < n_nodes)
    node = paths[column, depth]
    kept = matters[owner[column], node]
    matrix = sparse.csc_array(
        (np.ones(kept.sum()), (number[owner[column], node][kept], column[kept])),
        shape=(int(matters.sum()), len(items)),
    )
    return matrix, low[matters].astype(np.float64), high[matters].astype(np.float64)
