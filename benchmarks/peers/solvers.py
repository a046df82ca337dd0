"""General solvers on the problem of one user, or of all: cvxpy with its Parameters, and HiGHS directly.

Each makes its model once. A user's gains and memberships are then put in: into cvxpy's Parameters, whose
canonical form is kept, or into the arrays of HiGHS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import highspy
import numpy as np
from numpy.typing import NDArray
from peers.generated import Generated, K, N, block_quotas, bound_categories, primary
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Choose = Callable[[int], NDArray[np.intp]]
NONE = np.full(K, -1, np.intp)


def with_cvxpy(data: Generated, rules: NDArray[np.float64], lower: Any, upper: Any, *, whole: bool) -> Choose:
    """Linear gains under ``lower <= rules of the slate <= upper``, by HiGHS.

    Args:
        data: The users.
        rules: What each item adds, shape ``(N_ITEMS, m)``.
        lower: Shape ``(m,)``, -inf for none.
        upper: Shape ``(m,)``, inf for none.
        whole: Whether to ask for whole numbers; a linear program may answer in fractions.
    """
    low, high = np.isfinite(lower), np.isfinite(upper)
    x = cp.Variable(N, boolean=whole)
    gains, sums = cp.Parameter(N), cp.Parameter((rules.shape[1], N))
    rows = [cp.sum(x) == K, (sums @ x)[low] >= lower[low], (sums @ x)[high] <= upper[high]]
    problem = cp.Problem(cp.Maximize(gains @ x), rows if whole else [*rows, x >= 0, x <= 1])

    def choose(user: int) -> NDArray[np.intp]:
        gains.value, sums.value = data.gains[user], rules[data.items[user]].T
        problem.solve(solver=cp.HIGHS)
        return NONE if x.value is None else np.sort(np.argsort(-x.value, kind="stable")[:K])

    return choose


def with_highs(data: Generated, rules: NDArray[np.float64], lower: Any, upper: Any, *, whole: bool) -> Choose:
    """The same without cvxpy: one HiGHS object, to which each user's program is passed."""
    solver = highspy.Highs()
    for option, value in {"output_flag": False, "threads": 1, "presolve": "off", "mip_rel_gap": 0.0}.items():
        solver.setOptionValue(option, value)
    least, most = np.append(lower, K).astype(float), np.append(upper, K).astype(float)
    zeros, ones, kinds = np.zeros(N), np.ones(N), np.full(N, int(whole), np.int32)

    def choose(user: int) -> NDArray[np.intp]:
        matrix = sparse.csc_array(np.vstack([rules[data.items[user]].T, np.ones(N)]))
        solver.clearModel()
        solver.passModel(
            N, len(least), matrix.nnz, int(highspy.MatrixFormat.kColwise),
            int(highspy.ObjSense.kMaximize), 0.0, data.gains[user].astype(float), zeros, ones, least, most,
            matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data, kinds,
        )  # fmt: skip
        solver.run()
        if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            return NONE
        x = np.array(solver.getSolution().col_value)
        return np.sort(np.argsort(-x, kind="stable")[:K])

    return choose


def diverse_with_cvxpy(
    data: Generated, gains: NDArray[np.float64], linear: NDArray[np.float64], curvature: float
) -> Choose:
    """The concave relaxation of gains and diversity under quotas, by Clarabel, rounded.

    Args:
        data: The users.
        gains: Shape ``(n_users, N)``.
        linear: What each item adds besides, shape ``(N_ITEMS,)``.
        curvature: Weight of the square of the sum of unit category rows.
    """
    x, each = cp.Variable(N), cp.Parameter(N)
    unit = cp.Parameter((data.member.shape[1], N))
    count = cp.Parameter((data.member.shape[1], N))
    rows = [x >= 0, x <= 1, cp.sum(x) == K, count @ x >= data.lower, count @ x <= data.upper]
    value = each @ x - curvature * cp.sum_squares(unit @ x)
    problem = cp.Problem(cp.Maximize(value), rows)
    units, counts = data.unit, primary(data)

    def choose(user: int) -> NDArray[np.intp]:
        items = data.items[user]
        each.value, unit.value, count.value = gains[user] + linear[items], units[items].T, counts[items].T
        problem.solve(solver=cp.CLARABEL)
        return NONE if x.value is None else np.sort(np.argsort(-x.value, kind="stable")[:K])

    return choose


def parity_with_cvxpy(
    gains: NDArray[np.float64], group: NDArray[np.integer], discount: NDArray[np.float64]
) -> Callable[[int], tuple[float, float]]:
    """The linear program over doubly stochastic matrices in which groups are exposed alike, by HiGHS.

    The answer is a matrix, not rankings: its value and the largest difference of the groups.

    Args:
        gains: Shape ``(n_users, N)``.
        group: Group of each candidate, shape ``(n_users, N)``, from 0.
        discount: Worth of each place.
    """
    n_groups = int(group.max()) + 1
    matrix, gain = cp.Variable((N, K), nonneg=True), cp.Parameter(N)
    share = cp.Parameter((n_groups - 1, N))
    shown = matrix @ discount
    rules = [cp.sum(matrix, axis=0) == 1, cp.sum(matrix, axis=1) <= 1, share @ shown == 0]
    problem = cp.Problem(cp.Maximize(gain @ shown), rules)

    def solve(user: int) -> tuple[float, float]:
        average = np.array([(group[user] == g) / max(1, (group[user] == g).sum()) for g in range(n_groups)])
        gain.value, share.value = gains[user], average[:-1] - average[1:]
        problem.solve(solver=cp.HIGHS)
        return float(problem.value), float(np.abs(share.value @ shown.value).max())

    return solve


def parity_with_highs(
    gains: NDArray[np.float64], group: NDArray[np.integer], discount: NDArray[np.float64]
) -> Callable[[int], tuple[float, float]]:
    """The same without cvxpy."""
    n_groups = int(group.max()) + 1
    solver = highspy.Highs()
    for option, value in {"output_flag": False, "threads": 1}.items():
        solver.setOptionValue(option, value)
    places = sparse.kron(np.ones((1, N)), sparse.eye_array(K))
    items = sparse.kron(sparse.eye_array(N), np.ones((1, K)))
    least = np.concatenate([np.ones(K), np.zeros(N), np.zeros(n_groups - 1)])
    most = np.concatenate([np.ones(K), np.ones(N), np.zeros(n_groups - 1)])

    def solve(user: int) -> tuple[float, float]:
        average = np.array([(group[user] == g) / max(1, (group[user] == g).sum()) for g in range(n_groups)])
        share = sparse.csr_array(np.kron(average[:-1] - average[1:], discount))
        matrix = sparse.csc_array(sparse.vstack([places, items, share]))
        solver.clearModel()
        solver.passModel(
            N * K, len(least), matrix.nnz, int(highspy.MatrixFormat.kColwise),
            int(highspy.ObjSense.kMaximize), 0.0, np.kron(gains[user], discount), np.zeros(N * K),
            np.ones(N * K), least, most, matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32),
            matrix.data, np.zeros(N * K, np.int32),
        )  # fmt: skip
        solver.run()
        x = np.array(solver.getSolution().col_value)
        return float(solver.getInfo().objective_function_value), float(np.abs(share @ x).max())

    return solve


def everybody_with_highs(
    data: Generated, users: NDArray[np.integer], seconds: float
) -> tuple[NDArray[np.intp], float]:
    """Slates of these users, all of which have one, from one integer program, and its bound on their gain."""
    rows = data.shares
    gains, matrix, lower, upper = _together(data, users)
    answer = milp(
        -gains,
        constraints=LinearConstraint(
            matrix, np.concatenate([lower, rows.lower]), np.concatenate([upper, rows.upper])
        ),
        integrality=np.ones(len(gains)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": seconds},
    )
    bound = np.inf if answer.mip_dual_bound is None else -float(answer.mip_dual_bound)
    return _slates(answer.x, len(users)), bound


def everybody_with_cvxpy(data: Generated, users: NDArray[np.integer], seconds: float) -> NDArray[np.intp]:
    """The same integer program, written in cvxpy and solved by HiGHS."""
    rows = data.shares
    gains, matrix, lower, upper = _together(data, users)
    x = cp.Variable(len(gains), boolean=True)
    sums, quotas = matrix @ x, len(lower)
    rules = [
        sums[:quotas] >= lower,
        sums[:quotas] <= upper,
        sums[quotas:] >= rows.lower,
        sums[quotas:] <= rows.upper,
    ]
    problem = cp.Problem(cp.Maximize(gains @ x), rules)
    problem.solve(solver=cp.HIGHS, mip_rel_gap=1e-6, time_limit=seconds)
    return _slates(x.value, len(users))


def _together(data: Generated, users: NDArray[np.integer]) -> tuple[Any, Any, Any, Any]:
    bound = bound_categories(data)
    matrix = sparse.vstack(
        [block_quotas(data, users), data.shares.coefficients[:, data.items[users].ravel()]]
    )
    lower, upper = np.append(K, data.lower[bound]), np.append(K, data.upper[bound])
    n = len(users)
    return data.gains[users].ravel(), sparse.csc_array(matrix), np.tile(lower, n), np.tile(upper, n)


def _slates(x: NDArray[np.float64] | None, n: int) -> NDArray[np.intp]:
    if x is None:
        return np.full((n, K), -1, np.intp)
    return np.sort(np.argsort(-x.reshape(n, N), axis=1, kind="stable")[:, :K], axis=1)
