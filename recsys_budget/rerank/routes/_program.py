"""The relaxation of one user's problem in HiGHS, for the direct route."""

from __future__ import annotations

import highspy
import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import NumericalError
from recsys_budget.rerank.routes._users import User

_ROUNDS = 20  # most linear programs between which tangents are added
_TANGENTS = (0.5, 1.0, 2.0)  # where the first ones touch


class Program:
    """The relaxation in HiGHS: one object for all users, started afresh for each.

    Columns are the rows of candidates, then for each factor its sum and what lies above the square of that.
    Rows are the rules, the size of the slate, the sums, and tangents.
    """

    def __init__(self, k: int, n_rules: int, n_factors: int, curvature: float, gap: float) -> None:
        self._k, self._n_rules, self._n_factors, self._curvature = k, n_rules, n_factors, curvature
        self._close = max(gap / 4.0, 1e-6)
        self._columns, self._state = np.zeros(0, np.int32), np.zeros(0, np.int8)
        self._solver = highspy.Highs()
        for option, value in {
            "output_flag": False,
            "presolve": "off",  # costs more time than it saves on programs this small
            "solver": "simplex",
            "threads": 1,
            "primal_feasibility_tolerance": 1e-9,
            "dual_feasibility_tolerance": 1e-9,
        }.items():
            self._solver.setOptionValue(option, value)

    def load(self, user: User) -> None:
        """Take this user's model; the one before leaves nothing behind, no basis either."""
        (n, m), own, rules = user.factors.shape, user.rows, self._n_rules + 1
        self._columns, self._state = np.arange(n, dtype=np.int32), user.marks
        # Column by column: rules, the size of the slate, sums of factors.
        row, factor = np.nonzero(user.factors)
        owner = np.concatenate(
            [np.repeat(np.arange(n), np.diff(own.rule_starts)), np.arange(n), row, n + np.arange(m)]
        )
        index = np.concatenate([own.rules, np.full(n, rules - 1), rules + factor, rules + np.arange(m)])
        value = np.concatenate([own.amounts, np.ones(n), user.factors[row, factor], np.full(m, -1.0)])
        order = np.lexsort((index, owner))
        index, value = index[order].astype(np.int32), value[order]
        starts = np.searchsorted(owner[order], np.arange(n + 2 * m + 1)).astype(np.int32)
        free, none = np.full(m, np.inf), np.zeros(m)
        self._solver.clearModel()
        status = self._solver.passModel(
            n + 2 * m, rules + m, len(value), int(highspy.MatrixFormat.kColwise),
            int(highspy.ObjSense.kMaximize), 0.0,
            np.concatenate([own.gain, none, np.full(m, -self._curvature)]),
            np.concatenate([user.marks > 0, -free, none]), np.concatenate([user.marks >= 0, free, free]),
            np.concatenate([own.least, [self._k], none]), np.concatenate([own.most, [self._k], none]),
            starts, index, value, np.zeros(n + 2 * m, np.int32),
        )  # fmt: skip
        if status == highspy.HighsStatus.kError:
            raise NumericalError("HiGHS refused the linear program of a user; check the rules' coefficients")
        for point in _TANGENTS if m else ():
            self._cut(np.full(m, point), np.arange(m))

    def _cut(self, sums: NDArray[np.float64], which: NDArray[np.intp]) -> None:
        """Tangents to the squares of these factors: ``2 point s - t <= point^2``."""
        n, m, count, at = len(self._columns), self._n_factors, len(which), sums[which]
        self._solver.addRows(
            count, np.full(count, -np.inf), at * at, 2 * count, 2 * np.arange(count, dtype=np.int32),
            np.column_stack([n + which, n + m + which]).ravel().astype(np.int32),
            np.column_stack([2.0 * at, np.full(count, -1.0)]).ravel(),
        )  # fmt: skip

    def solve(
        self, state: NDArray[np.int8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
        """Fractions of rows, prices of rules and of factors, and the proof that there is no slate."""
        if state is not self._state:
            self._state = state
            self._solver.changeColsBounds(
                len(state), self._columns, (state > 0).astype(np.float64), (state >= 0).astype(np.float64)
            )
        n, m, n_rules = len(state), self._n_factors, self._n_rules
        nothing = np.zeros(n), np.zeros(n_rules), np.zeros(m)
        for _ in range(_ROUNDS if m else 1):
            self._solver.run()
            if self._solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
                _, there, ray = self._solver.getDualRay()
                if there and np.isfinite(ray).all():
                    return *nothing, np.asarray(ray[:n_rules], np.float64)
            solution = self._solver.getSolution()
            values = np.array(solution.col_value)
            if not m or len(values) != n + 2 * m or not np.isfinite(values).all():
                break
            sums, above = values[n : n + m], values[n + m :]
            short = sums * sums - above
            most = abs(self._solver.getInfo().objective_function_value)
            if self._curvature * short.sum() <= self._close * most:
                break
            self._cut(sums, np.flatnonzero(short > 1e-9))
        fractions, prices = np.array(solution.col_value)[:n], np.array(solution.row_dual)
        # Prices of any kind bound all slates, so an answer that is no answer costs time alone.
        if len(fractions) != n or not np.isfinite(fractions).all():
            fractions = nothing[0]
        if len(prices) < n_rules + 1 + m or not np.isfinite(prices).all():
            return fractions, *nothing[1:], None
        return fractions, prices[:n_rules], prices[n_rules + 1 : n_rules + 1 + m], None
