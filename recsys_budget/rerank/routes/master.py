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

from recsys_budget.rerank.routes.oracle import Exchanges, Oracle
from recsys_budget.rerank.routes.rows import ROUNDING, PopulationRows

_NODES = 20_000  # most branches where the linear program's answer is not whole
_WHOLE = 1e-6  # how near to 0 or 1 a solver's number must be to be read as one


@dataclass(frozen=True, eq=False)
class Choice:
    """What the restricted program chose.

    Attributes:
        rows: int64, absolute rows that were free.
        users: int64, user of each.
        before: bool, whether the oracle's slate has it.
        after: bool, whether the chosen slate has it.
        prices: float64 ``(n_rows,)``, duals of the rows in the linear program: near-best prices.
    """

    rows: NDArray[np.int64]
    users: NDArray[np.int64]
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    prices: NDArray[np.float64]


def choose(
    oracle: Oracle,
    rows: PopulationRows,
    loads: NDArray[np.float64],
    free: Exchanges,
    *,
    penalty: NDArray[np.float64] | None,
    gainless: bool = False,
    slack: float = 0.0,
    seconds: float = np.inf,
) -> Choice | None:
    """The best slates that differ from the oracle's by these exchanges.

    Args:
        oracle: Holds the slates.
        rows: The rules.
        loads: What the slates add up to.
        free: The exchanges.
        penalty: ``(n_rows,)``, cost of each unit outside the bounds of a row, so that there is an answer.
            None forbids such units.
        gainless: Count the penalty alone: how little the rows can be missed by.
        slack: Objective that may be given up where the linear program's answer is not whole.
        seconds: Most seconds for the solver.

    Returns:
        None if the solver stopped without an answer. Whether the choice keeps to the rows is for the caller
        to count.
    """
    at, first = np.unique(np.concatenate([free.leaves, free.enters]), return_index=True)
    user = np.concatenate([free.user, free.user])[first]
    inside = np.zeros(len(at), np.bool_)
    inside[np.searchsorted(at, free.leaves)] = True
    quotas, low, high = _quotas(oracle, at, user, inside)
    load = rows.coefficients[:, oracle.items[at]]
    fixed = loads - load @ inside
    n, m = len(at), len(rows.lower)
    eye = sparse.eye_array(m, format="csc")
    matrix = sparse.csc_array(
        sparse.block_array(
            [[quotas, None, None], [load, -eye, eye]] if quotas.shape[0] else [[load, -eye, eye]]
        )
    )
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = n + 2 * m, matrix.shape[0]
    outside = np.zeros(2 * m) if penalty is None else np.concatenate([penalty, penalty])
    model.col_cost_ = np.concatenate([oracle.gains[at].astype(np.float64) * -(not gainless), outside])
    model.col_lower_ = np.zeros(n + 2 * m)
    model.col_upper_ = np.concatenate(
        [np.ones(n), np.full(2 * m, 0.0 if penalty is None else highspy.kHighsInf)]
    )
    model.row_lower_ = np.concatenate([low, rows.lower - fixed])
    model.row_upper_ = np.concatenate([high, rows.upper - fixed])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_, model.a_matrix_.index_ = matrix.indptr, matrix.indices
    model.a_matrix_.value_ = matrix.data
    solver = highspy.Highs()
    options: dict[str, Any] = {"output_flag": False, "threads": 1, "mip_rel_gap": 0.0, "mip_abs_gap": slack}
    options["mip_max_nodes"] = _NODES
    for kind in ("primal", "mip"):
        options[f"{kind}_feasibility_tolerance"] = ROUNDING
    if np.isfinite(seconds):
        options["time_limit"] = max(seconds, 0.01)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(model)
    solver.run()
    prices = -np.array(solver.getSolution().row_dual)[len(low) :]
    if len(prices) != m:
        return None
    taken = _read(solver, n, quotas, low, high)
    if taken is None:
        whole = np.full(n, highspy.HighsVarType.kInteger)
        solver.changeColsIntegrality(n, np.arange(n, dtype=np.int32), whole)
        solver.run()
        taken = _read(solver, n, quotas, low, high)
    return None if taken is None else Choice(at, user, inside, taken, prices)


def _read(
    solver: highspy.Highs,
    n: int,
    quotas: sparse.csc_array,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.bool_] | None:
    """The solver's choice if it is whole and within the quotas, whatever status it reports."""
    x = np.array(solver.getSolution().col_value)[:n]
    if len(x) != n or np.abs(x - np.round(x)).max(initial=0.0) > _WHOLE:
        return None
    counts = quotas @ np.round(x)
    return x > 0.5 if ((low <= counts) & (counts <= high)).all() else None


def _quotas(
    oracle: Oracle, at: NDArray[np.int64], user: NDArray[np.int64], inside: NDArray[np.bool_]
) -> tuple[sparse.csc_array, NDArray[np.float64], NDArray[np.float64]]:
    """Each user's quotas on the free rows, but for those that cannot be broken."""
    tree, items = oracle.tree, oracle.items
    n_nodes = len(tree.parent)
    who, owner = np.unique(user, return_inverse=True)

    def count(owners: NDArray[np.intp], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        cells = owners[:, None] * (n_nodes + 1) + tree.paths[tree.leaf_of_item[items[rows]]]
        tally = np.bincount(cells.ravel(), minlength=len(who) * (n_nodes + 1))
        return tally.reshape(len(who), n_nodes + 1)[:, :n_nodes]

    slates = oracle.offsets[who, None] + oracle.chosen[who]
    k = slates.shape[1]
    fixed = count(np.repeat(np.arange(len(who)), k), slates.ravel()) - count(owner[inside], at[inside])
    free = count(owner, at)
    low, high = tree.lower - fixed, tree.upper - fixed
    matters = (low > 0) | (high < free)
    number = np.cumsum(matters.ravel()).reshape(matters.shape) - 1
    paths = tree.paths[tree.leaf_of_item[items[at]]]
    column, depth = np.nonzero(paths < n_nodes)
    node = paths[column, depth]
    kept = matters[owner[column], node]
    matrix = sparse.csc_array(
        (np.ones(kept.sum()), (number[owner[column], node][kept], column[kept])),
        shape=(int(matters.sum()), len(at)),
    )
    return matrix, low[matters].astype(np.float64), high[matters].astype(np.float64)
