"""Integer programs over a model, by outer approximation: slates and a proven bound.

Where the model is linear one program is the whole problem. Otherwise each convex function is replaced by
tangents that lie below it (Duran and Grossmann 1986, doi:10.1007/BF02592064), a separable one term by term,
because that bounds far better than tangents to the sum (Hijazi, Bonami and Ouorou 2014,
doi:10.1287/ijoc.1120.0545). Each program's bound then bounds the true optimum, and the selection it finds has
a true objective that is known. Tangents at that selection are added until the two meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import TOLERANCE
from recsys_budget.errors import NumericalError
from recsys_budget.rerank.model import Model, Opaque


@dataclass(frozen=True, eq=False)
class Program:
    """Maximise ``c @ v`` under ``lower <= a @ v <= upper`` and limits, some entries 0 or 1.

    Attributes:
        c: Shape ``(n,)``.
        a: Sparse, shape ``(m, n)``.
        lower: Shape ``(m,)``, -inf allowed.
        upper: Shape ``(m,)``, inf allowed.
        least: Shape ``(n,)``, -inf allowed.
        most: Shape ``(n,)``, inf allowed.
        integers: How many entries, the first ones, must be 0 or 1.
    """

    c: NDArray[np.float64]
    a: sparse.csr_array
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    integers: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver says of a program; nothing of it is trusted.

    Attributes:
        v: A solution, or None.
        bound: Upper bound on ``c @ v``; inf where the solver gives none.
        infeasible: Whether it claims that there is no solution.
        status: Its own word.
        duals: Dual values of the rows of a linear program, at least 0 for rows at their upper limit.
    """

    v: NDArray[np.float64] | None
    bound: float
    infeasible: bool
    status: str
    duals: NDArray[np.float64] | None = None


# Solves a program to a relative gap, within so many seconds (inf for no limit).
Solve = Callable[[Program, float, float], Answer]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a search brought.

    Attributes:
        z: The best 0/1 vector found that satisfies every hard rule; None where there is none.
        bound: Upper bound on the objective of any.
        solves: Programs solved.
        infeasible: Whether the solver claims that no vector satisfies the rules.
        stopped: Whether the time limit ended the search.
        status: The solver's last word.
        prices: What the objective gains, in the linear relaxation, when a unit more is allowed of each row;
            None where that was not asked for.
    """

    z: NDArray[np.float64] | None
    bound: float
    solves: int
    infeasible: bool
    stopped: bool
    status: str
    prices: NDArray[np.float64] | None = None


def search(
    model: Model, solve: Solve, *, gap: float, max_solves: int, deadline: float = np.inf, prices: bool = False
) -> Solution:
    """The best vector of a model, and a bound on all.

    Args:
        model: The problem.
        solve: The solver of programs.
        gap: Relative gap at which to stop.
        max_solves: Most programs.
        deadline: When to stop, by ``time.monotonic``.
        prices: Whether to solve the last linear relaxation for the prices of rows.

    Raises:
        NumericalError: The solver stopped without an answer although it had time, or its answers make no
            progress.
    """
    tangents = _Tangents(model)
    best, best_value = None, -np.inf
    bound = model.plain_bound()  # holds whatever the solver says
    solves, infeasible, stopped, status = 0, False, False, ""
    for _ in range(max_solves if not model.is_linear else 1):
        left = deadline - time.monotonic()
        if left <= 0.0:
            stopped = True
            break
        program = tangents.program()
        answer = solve(program, 0.0 if model.is_linear else gap / 10.0, left)
        solves, status = solves + 1, answer.status
        if answer.infeasible:
            infeasible = best is None
            break
        bound = min(bound, answer.bound + model.constant)
        if not np.isfinite(answer.bound):  # the solver gives none: weak duality does
            bound = min(bound, _relaxation(model, program, deadline)[1])
        if answer.v is None:
            if time.monotonic() < deadline:
                raise NumericalError(
                    f"the solver stopped without an answer ({answer.status}); try another solver"
                )
            stopped = True
            break
        z = (answer.v[: program.integers] > 0.5).astype(np.float64)
        if model.holds(z):  # or the solver's word was not worth anything
            value = model.value(z)
            if value > best_value:
                best, best_value = z, value
        stopped = time.monotonic() >= deadline
        if model.is_linear or stopped or bound - best_value <= max(gap * abs(bound), TOLERANCE):
            break
        if not tangents.add(z):
            break
    found = None
    if prices and not infeasible and not stopped:
        found, relaxed = _relaxation(model, tangents.program(), deadline)
        bound = min(bound, relaxed)
    return Solution(best, bound, solves, infeasible, stopped, status, found)


def relaxed_prices(model: Model, n_rules: int) -> NDArray[np.float64]:
    """Prices of constraints in the linear relaxation with first tangents, shape ``(n_rules,)``."""
    rows, _ = _relaxation(model, _Tangents(model).program(), np.inf)
    return np.zeros(n_rules) if rows is None else model.by_rule(rows, n_rules)


def _relaxation(model: Model, program: Program, deadline: float) -> tuple[NDArray[np.float64] | None, float]:
    """Prices of rows in the linear relaxation of a program, and the bound that they prove."""
    linear = Program(program.c, program.a, program.lower, program.upper, program.least, program.most, 0)
    answer = solve_highs(linear, 0.0, deadline - time.monotonic())
    if answer.duals is None or answer.v is None:
        return None, np.inf
    rows = np.maximum(0.0, answer.duals[: len(model.upper)])
    entries = np.zeros(sum(len(rule.upper) for rule in model.opaque))
    z = np.clip(answer.v[: len(model.linear)], 0.0, 1.0)
    return rows, model.dual_bound(z, np.concatenate([rows, entries]))


class _Tangents:
    """A model as programs, whose tangents grow in number.

    The variables are z, then for each curve ``y = factor.T @ z`` and t above the tangents of its terms, then
    the excess of each soft row, then the excess of each entry of an opaque rule.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        n_z, n_rows = len(model.linear), len(model.upper)
        sizes = [curve.factor.shape[1] for curve in model.curves]
        self._y = n_z + 2 * np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        soft = np.flatnonzero(np.isfinite(model.penalty))
        at_soft = int(self._y[-1])
        self._opaque = (
            at_soft + len(soft) + np.concatenate([[0], np.cumsum([len(o.upper) for o in model.opaque])])
        )
        self._opaque = self._opaque.astype(np.int64)
        n = int(self._opaque[-1])

        c = np.zeros(n)
        c[:n_z] = model.linear
        least, most = np.full(n, -np.inf), np.full(n, np.inf)
        least[:n_z], most[:n_z] = 0.0, 1.0
        least[at_soft:] = 0.0
        c[at_soft : at_soft + len(soft)] = -model.penalty[soft]
        for rule, first, last in zip(model.opaque, self._opaque[:-1], self._opaque[1:], strict=True):
            if np.isfinite(rule.penalty):
                c[first:last] = -rule.penalty
            else:
                most[first:last] = 0.0

        rows = sparse.coo_array(model.rows)
        data: list[NDArray[np.float64]] = [rows.data]
        row: list[NDArray[np.integer]] = [rows.coords[0]]
        column: list[NDArray[np.integer]] = [rows.coords[1]]
        data.append(np.full(len(soft), -1.0))
        row.append(soft)
        column.append(at_soft + np.arange(len(soft)))
        m = n_rows
        for curve, first, size in zip(model.curves, self._y[:-1], sizes, strict=True):
            t = first + size + np.arange(size)
            if curve.row < 0:
                c[t] = -1.0
            else:
                data.append(np.ones(size))
                row.append(np.full(size, curve.row))
                column.append(t)
            factor = sparse.coo_array(curve.factor)
            data += [factor.data, np.full(size, -1.0)]
            row += [m + factor.coords[1], m + np.arange(size)]
            column += [factor.coords[0], first + np.arange(size)]
            m += size
        n_y = m - n_rows
        self._base = sparse.csr_array(
            (np.concatenate(data), (np.concatenate(row), np.concatenate(column))), shape=(m, n)
        )
        self._lower = [np.full(n_rows, -np.inf), np.zeros(n_y)]
        self._upper = [model.upper, np.zeros(n_y)]
        self._c, self._least, self._most, self._n = c, least, most, n
        self._cuts: list[sparse.csr_array] = []
        for j, curve in enumerate(model.curves):
            size = curve.factor.shape[1]
            for point in curve.function.points(model.k):
                self._at(j, np.broadcast_to(point, size))

    def program(self) -> Program:
        """The program with all tangents so far."""
        a = sparse.csr_array(sparse.vstack([self._base, *self._cuts])) if self._cuts else self._base
        return Program(
            self._c, a, np.concatenate(self._lower), np.concatenate(self._upper), self._least, self._most,
            len(self._model.linear),
        )  # fmt: skip

    def add(self, z: NDArray[np.float64]) -> bool:
        """Add tangents at a 0/1 vector; whether there was any to add."""
        for j, curve in enumerate(self._model.curves):
            self._at(j, curve.factor.T @ z)
        for j, rule in enumerate(self._model.opaque):
            self._cut(j, rule, z)
        return bool(self._model.curves or self._model.opaque)

    def _at(self, j: int, y: NDArray[np.float64]) -> None:
        """``t >= value + slope * (y - point)``, as ``slope * y - t <= slope * point - value``."""
        values, slopes = self._model.curves[j].function.tangents(np.asarray(y, np.float64))
        size, first = len(values), int(self._y[j])
        rows = np.arange(size)
        self._cuts.append(
            sparse.csr_array(
                (
                    np.concatenate([slopes, np.full(size, -1.0)]),
                    (np.tile(rows, 2), np.concatenate([first + rows, first + size + rows])),
                ),
                shape=(size, self._n),
            )
        )
        self._lower.append(np.full(size, -np.inf))
        self._upper.append(slopes * y - values)

    def _cut(self, j: int, rule: Opaque, z: NDArray[np.float64]) -> None:
        """``value + gradient @ (z - point) - excess <= upper``; and off with a hard rule's violator."""
        values, gradients = rule.evaluate(z[rule.at])
        size = len(values)
        dense = sparse.lil_array((size, self._n))
        dense[:, rule.at] = gradients
        dense[:, int(self._opaque[j]) : int(self._opaque[j + 1])] = -np.eye(size)
        self._cuts.append(sparse.csr_array(dense))
        self._lower.append(np.full(size, -np.inf))
        self._upper.append(rule.upper - values + gradients @ z[rule.at])
        if np.isinf(rule.penalty) and (values > rule.upper + TOLERANCE).any():
            # A gradient may be too flat to exclude the point within a solver's tolerance; this never is.
            here = np.zeros(self._n)
            here[rule.at] = np.where(z[rule.at] > 0.5, 1.0, -1.0)
            self._cuts.append(sparse.csr_array(here[None, :]))
            self._lower.append(np.array([-np.inf]))
            self._upper.append(np.array([(here > 0.0).sum() - 1.0]))


def solve_highs(program: Program, gap: float, seconds: float) -> Answer:
    """Solve with HiGHS, one thread, from scratch, so that an answer depends on the program alone."""
    solver = highspy.Highs()
    options: dict[str, Any] = {
        "output_flag": False,
        "threads": 1,
        "mip_rel_gap": gap,
        "mip_abs_gap": 0.0 if gap == 0.0 else 1e-9,
        # What is off costs more time than it saves on problems this small.
        "presolve": "off" if len(program.c) < 20_000 else "choose",
        "mip_heuristic_run_feasibility_jump": False,
    }
    if np.isfinite(seconds):
        options["time_limit"] = max(seconds, 1e-3)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    a = program.a
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(program.c), len(program.lower)
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_, model.col_lower_, model.col_upper_ = program.c, program.least, program.most
    model.row_lower_, model.row_upper_ = program.lower, program.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_, model.a_matrix_.value_ = a.indptr, a.indices, a.data
    if program.integers:
        kinds = [highspy.HighsVarType.kInteger] * program.integers
        model.integrality_ = kinds + [highspy.HighsVarType.kContinuous] * (len(program.c) - program.integers)
    solver.passModel(model)
    solver.run()
    status = solver.getModelStatus()
    word = solver.modelStatusToString(status)
    info, found = solver.getInfo(), solver.getSolution()
    infeasible = status == highspy.HighsModelStatus.kInfeasible
    has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    v = np.array(found.col_value) if has_point else None
    if program.integers:
        bound = float(info.mip_dual_bound)
        return Answer(v, bound if np.isfinite(bound) else np.inf, infeasible, word)
    optimal = status == highspy.HighsModelStatus.kOptimal
    # HiGHS gives duals as the change of the objective a unit of the right-hand side.
    duals = np.array(found.row_dual) if found.dual_valid else None
    return Answer(v, float(info.objective_function_value) if optimal else np.inf, infeasible, word, duals)
