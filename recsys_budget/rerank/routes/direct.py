"""Slates under any linear rules, for gain and diversity: one program a user, then a search by its prices.

The prices of the linear relaxation, whatever they are, bound all slates by weak duality: with each rule
priced into the gains, no slate is worth more than the k largest. Slates are then tried by falling priced
gain, cutting off what cannot reach the best so far, which finds the best slate and proves it with no further
linear program for most users (the core of Balas and Zemel 1980, doi:10.1287/opre.28.5.1130, for more than one
rule). Where that takes too long the user's program is branched on. A square that is taken off, for diversity,
enters the program by tangents, and the bound by its conjugate: ``-c s^2 <= p^2 / 4c - p s`` for any p. No
answer of the solver is taken on trust: bounds and proofs of infeasibility are computed from its prices in
float64, and slates are counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import highspy
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.rerank.routes._compiled import njit

# Rounding of a sum over a slate, as a share of the largest value it could have. Rules hold to this.
ROUNDING = 1e-12
STEPS = 20_000  # slates begun, a millisecond or so, before a program is branched on
_ROUNDS = 20  # most linear programs between which tangents are added
_TANGENTS = (0.5, 1.0, 2.0)  # where the first ones touch
_SHARES = (1e-3, 1e-2, 1e-1, np.inf)  # how far below the bound slates are looked for, one after the other


@dataclass(frozen=True, eq=False)
class DirectSlates:
    """The best slate of each user that the search found, with a bound on all others.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows relative to the user's offset, ascending: by falling gain. -1
            throughout where none was found.
        feasible: bool ``(n_users,)``, whether a slate was found.
        impossible: bool ``(n_users,)``, whether it is proven that there is none. A user who is neither
            ``feasible`` nor ``impossible`` ran into a limit.
        objective: float64 ``(n_users,)``, gain of the slate; nan without one.
        bound: float64 ``(n_users,)``, at least the gain of every slate within the rules, rounding included;
            nan where there is none.
        prices: float64 ``(n_users, n_rules)``, what one unit of each rule's binding bound costs in gain by
            the linear relaxation: above 0 for an upper bound, below for a lower one.
        rays: For users whose linear relaxation is impossible already: multipliers of the rules, of which
            those that are not 0 name rules that conflict with each other and the size of the slate.
        solves: int64 ``(n_users,)``, linear programs solved.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    impossible: NDArray[np.bool_]
    objective: NDArray[np.float64]
    bound: NDArray[np.float64]
    prices: NDArray[np.float64]
    rays: Mapping[int, NDArray[np.float64]]
    solves: NDArray[np.int64]

    @property
    def shadow_prices(self) -> NDArray[np.float64]:
        """Mean of ``prices`` over users with a slate, ``(n_rules,)``; 0 where nobody has one."""
        mean: NDArray[np.float64] = self.prices[self.feasible].sum(axis=0) / max(1, self.feasible.sum())
        return mean


def solve_direct(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    k: int,
    rules_of_item: NDArray[np.float64] | sparse.csr_array[np.float64],
    lower: ArrayLike,
    upper: ArrayLike,
    factor_of_item: NDArray[np.float64] | sparse.csr_array[np.float64] | None = None,
    curvature: float = 0.0,
    linear_of_item: NDArray[np.float64] | None = None,
    *,
    fixed: NDArray[np.int8] | None = None,
    gap: float = 0.0,
    nodes: int = 100,
    time_limit: float | None = None,
) -> DirectSlates:
    """The best slate of every user among those whose sum of each rule lies between its bounds.

    Args:
        offsets: int64 ``(n_users + 1,)``, where each user's rows start and end.
        gains: ``(n_rows,)``, finite and falling within each user, which is not checked.
        items: ``(n_rows,)``, position of each candidate in the catalogue.
        k: Items a slate, at least 1.
        rules_of_item: ``(n_items, n_rules)``, what an item adds to each rule, dense or sparse, finite.
        lower: ``(n_rules,)`` or ``(n_users, n_rules)``; -inf for no bound.
        upper: Likewise; inf for no bound.
        factor_of_item: ``(n_items, n_factors)``, finite; None for no diversity.
        curvature: At least 0. A slate S is worth the sum of gains and linear_of_item over S, less curvature
            times the square of the length of its sum of factors, as in the diverse route.
        linear_of_item: float64 ``(n_items,)``, added to the gain; None for nothing.
        fixed: int8 ``(n_rows,)``: 1 for a row that must be in its slate, -1 for one that must not, else 0.
        gap: Relative gap, ``(bound - objective) / |objective|``, at which a user is done with; 0 asks for
            the optimum.
        nodes: Most linear programs a user, at least 1.
        time_limit: Seconds after which each user still gets one linear program and one search; None for no
            limit. Only this can make two runs differ.

    Guarantees:
        In the unit of each rule, sums of slates exceed bounds by at most rounding, 1e-12 of what a slate
        could sum to. Every user's answer is what a call with that user alone gives: the solver starts
        afresh, and of rows that differ in nothing the earliest are chosen.

    Raises:
        SpecificationError: An argument is not as described, or a lower bound is above its upper.
        NumericalError: The solver refused a program.
    """
    rules: Any = sparse.csr_array(cast(Any, rules_of_item)).astype(np.float64)
    n_users, n_rules = len(offsets) - 1, rules.shape[1]
    least, most = (np.broadcast_to(np.asarray(b, np.float64), (n_users, n_rules)) for b in (lower, upper))
    if k < 1 or nodes < 1 or not gap >= 0.0:
        raise SpecificationError(
            f"k={k!r}, nodes={nodes!r}, gap={gap!r}; use k and nodes of at least 1 and a gap of at least 0"
        )
    if not np.isfinite(rules.data).all() or not (least <= most).all():
        raise SpecificationError(
            "rules must be finite, and no lower bound above its upper; correct the rule at fault"
        )
    factors, linear = _diversity(factor_of_item, curvature, linear_of_item, rules.shape[0])
    # Rules are scaled to coefficients of at most 1, so that one tolerance serves them all.
    size = np.zeros(n_rules)
    np.maximum.at(size, rules.indices, np.abs(rules.data))
    size[size == 0.0] = 1.0
    counted = cast(Any, [rules / size, np.ones((rules.shape[0], 1))])  # the last rule counts the slate
    of_rows: Any = sparse.hstack(counted, format="csr")
    of_rows = of_rows[np.asarray(items, np.intp)]
    of_rows.sort_indices()
    marks = np.zeros(len(gains), np.int8) if fixed is None else np.asarray(fixed, np.int8)
    deadline = np.inf if time_limit is None else time.monotonic() + time_limit
    program = _Program(k, n_rules, factors.shape[1], float(curvature), gap)
    chosen = np.full((n_users, k), -1, np.int32)
    impossible = np.zeros(n_users, np.bool_)
    objective, bound = np.full(n_users, np.nan), np.full(n_users, np.nan)
    prices, solves = np.zeros((n_users, n_rules)), np.zeros(n_users, np.int64)
    rays: dict[int, NDArray[np.float64]] = {}
    for u in range(n_users):
        rows = slice(offsets[u], offsets[u + 1])
        at = of_rows.indptr[offsets[u] : offsets[u + 1] + 1]
        within = slice(at[0], at[-1])
        user = _User(
            np.asarray(gains[rows], np.float64) + linear[items[rows]],
            np.ascontiguousarray(least[u] / size),
            np.ascontiguousarray(most[u] / size),
            marks[rows],
            (at - at[0]).astype(np.int32),
            of_rows.indices[within],
            of_rows.data[within],
            factors[items[rows]],
            float(curvature),
        )
        found = _search(user, program, k, float(gap), nodes, deadline)
        solves[u] = found.solves
        if found.objective > -np.inf:
            chosen[u], objective[u] = found.slate, found.objective
            prices[u] = found.price / size
        elif not found.limited:
            impossible[u] = True
            if found.ray is not None:
                rays[u] = found.ray / size
        if not impossible[u]:
            bound[u] = max(found.closed, found.objective)
    return DirectSlates(chosen, chosen[:, 0] >= 0, impossible, objective, bound, prices, rays, solves)


def _diversity(
    factor_of_item: Any, curvature: float, linear_of_item: NDArray[np.float64] | None, n_items: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dense factors and what is added to gains, by item."""
    factors = np.zeros((n_items, 0))
    if factor_of_item is not None and curvature:
        dense = sparse.csr_array(factor_of_item).toarray()
        factors = np.ascontiguousarray(dense, np.float64)
    linear = np.zeros(n_items) if linear_of_item is None else np.asarray(linear_of_item, np.float64)
    if len(factors) != n_items or linear.shape != (n_items,):
        raise SpecificationError(
            f"factors of {len(factors)} items and linear_of_item of shape {linear.shape} for rules of "
            f"{n_items} items; pass a row of each per item"
        )
    if not (np.isfinite(factors).all() and np.isfinite(linear).all() and 0.0 <= curvature < np.inf):
        raise SpecificationError(
            f"curvature={curvature!r}, or a factor or linear_of_item is not finite; the objective must be "
            "concave, with a finite curvature of at least 0"
        )
    return factors, linear


@dataclass(frozen=True, eq=False)
class _User:
    """One user's rows: gain, scaled rules in compressed form (the last counts the slate), and bounds."""

    gain: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    marks: NDArray[np.int8]
    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float64]
    factors: NDArray[np.float64]
    curvature: float

    def worth(self, slate: NDArray[np.intp]) -> float:
        """Objective of a slate, summed in the order of rows."""
        z = self.factors[slate].sum(axis=0)
        return float(sum(self.gain[slate].tolist())) - self.curvature * float(z @ z)

    def dense(self) -> NDArray[np.float64]:
        """The rules without the count, ``(n, n_rules)``."""
        rules = np.zeros((len(self.gain), len(self.least) + 1))
        rules[np.repeat(np.arange(len(self.gain)), np.diff(self.starts)), self.columns] = self.values
        return np.ascontiguousarray(rules[:, :-1])


@dataclass(eq=False)
class _Found:
    """Where the search of one user stands."""

    slate: NDArray[np.intp]
    price: NDArray[np.float64]
    objective: float = -np.inf
    closed: float = -np.inf  # bound on all slates ruled out
    limited: bool = False
    ray: NDArray[np.float64] | None = None
    solves: int = 0


def _search(user: _User, program: _Program, k: int, gap: float, nodes: int, deadline: float) -> _Found:
    """Branch and bound, of which most users need the first node alone."""
    rules, n_rules = user.dense(), len(user.least)
    found = _Found(np.empty(k, np.intp), np.zeros(n_rules))
    price, weight = np.zeros(n_rules), np.empty(len(user.gain))
    slope = np.zeros(user.factors.shape[1])  # of the square, by factor
    facts = (user.gain, rules, user.least, user.most, user.factors, user.curvature)

    def look(state: NDArray[np.int8], steps: int) -> tuple[float, float, bool]:
        """Search a node: its bound, the bound on what was ruled out, and whether that is all of it."""
        bound = _bound(*facts, price, slope, state, k, weight)
        if bound == -np.inf:
            return bound, bound, True
        order = np.argsort(-weight, kind="stable")
        found.objective, closed, complete = _look(
            *facts, state, weight, order, bound, gap, steps, _SHARES, found.objective, found.slate
        )
        return bound, closed, complete

    # The best slate for no prices at all may keep the rules.
    _, closed, complete = look(user.marks, k)
    if complete:
        found.closed = closed
        return _canonical(user, rules, found)
    program.load(user)
    stack = [(user.marks, np.inf)]
    while stack:
        state, bound = stack.pop()
        if found.objective > -np.inf and bound <= found.objective + gap * abs(found.objective):
            found.closed = max(found.closed, bound)
            continue
        if found.solves and (found.solves >= nodes or time.monotonic() > deadline):
            found.closed, found.limited = max(found.closed, bound), True
            continue
        fractions, multipliers, slopes, ray = program.solve(state)
        found.solves += 1
        if ray is not None:
            for sign in (1.0, -1.0):
                price[:] = sign * ray
                nothing = np.zeros_like(user.gain), *facts[1:5], 0.0, price, np.zeros_like(slope)
                if _bound(*nothing, state, k, weight) < 0.0:
                    break
            else:
                ray = None  # proves nothing: the solver's word is not enough
            if ray is not None:
                found.ray = price.copy() if found.solves == 1 else None
                continue
        price[:], slope[:] = multipliers, slopes
        own, closed, complete = look(state, STEPS)
        bound = min(bound, own)
        if found.solves == 1:
            found.price = price.copy()
        if complete:
            found.closed = max(found.closed, min(bound, closed))
            continue
        free = np.flatnonzero(state == 0)
        doubt = np.abs(fractions[free] - 0.5)
        row = free[doubt.argmin()] if doubt.min() < 0.5 - 1e-6 else free[weight[free].argmax()]
        sides = (-1, 1) if fractions[row] >= 0.5 else (1, -1)  # the likelier comes off the stack first
        for side in sides:
            child = state.copy()
            child[row] = side
            stack.append((child, bound))
    return _canonical(user, rules, found)


def _canonical(user: _User, rules: NDArray[np.float64], found: _Found) -> _Found:
    """Of rows that differ in nothing keep the earliest, and sum the objective in the order of rows."""
    if found.objective == -np.inf:
        return found
    slate = {int(row) for row in found.slate}
    if len(np.unique(user.gain)) < len(user.gain):
        for row in sorted(slate):
            same = np.flatnonzero((user.gain[:row] == user.gain[row]) & (user.marks[:row] == 0))
            equal = (rules[same] == rules[row]).all(axis=1)
            alike = same[equal & (user.factors[same] == user.factors[row]).all(axis=1)]
            spare = [int(other) for other in alike if int(other) not in slate]
            if spare and user.marks[row] == 0:
                slate = slate - {row} | {spare[0]}
    found.slate = np.array(sorted(slate), np.intp)
    found.objective = user.worth(found.slate)
    return found


class _Program:
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

    def load(self, user: _User) -> None:
        """Take this user's model; the one before leaves nothing behind, no basis either."""
        n, m, rules = len(user.gain), self._n_factors, self._n_rules + 1
        self._columns, self._state = np.arange(n, dtype=np.int32), user.marks
        starts, index, value = user.starts, user.columns, user.values
        if m:
            rows = np.repeat(np.arange(n), np.diff(user.starts)), np.nonzero(user.factors)
            owner = np.concatenate([rows[0], rows[1][0], n + np.arange(m)])
            index = np.concatenate([index, rules + rows[1][1], rules + np.arange(m)]).astype(np.int32)
            value = np.concatenate([value, user.factors[rows[1]], np.full(m, -1.0)])
            order = np.lexsort((index, owner))
            index, value = index[order], value[order]
            starts = np.searchsorted(owner[order], np.arange(n + 2 * m + 1)).astype(np.int32)
        free, none = np.full(m, np.inf), np.zeros(m)
        self._solver.clearModel()
        status = self._solver.passModel(
            n + 2 * m, rules + m, len(value), int(highspy.MatrixFormat.kColwise),
            int(highspy.ObjSense.kMaximize), 0.0,
            np.concatenate([user.gain, none, np.full(m, -self._curvature)]),
            np.concatenate([user.marks > 0, -free, none]), np.concatenate([user.marks >= 0, free, free]),
            np.concatenate([user.least, [self._k], none]), np.concatenate([user.most, [self._k], none]),
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


@njit
def _bound(  # type: ignore[no-untyped-def]
    gain, rules, least, most, factors, curvature, price, slope, state, k, weight
):
    """Bound on the gain of all slates of a node at these prices, rounding included; writes priced gains.

    Prices that point at an infinite bound are set to 0.
    """
    total, scale = 0.0, 0.0
    for r in range(len(price)):
        bar = most[r] if price[r] > 0.0 else least[r]
        if not np.isfinite(bar):
            price[r] = 0.0
        if price[r] != 0.0:
            total += price[r] * bar
            scale += abs(price[r]) * (abs(bar) + k)
    for j in range(len(slope)):
        if curvature > 0.0:
            total += slope[j] * slope[j] / (4.0 * curvature)
            scale += slope[j] * slope[j] / (4.0 * curvature) + abs(slope[j]) * k
        else:
            slope[j] = 0.0
    slots, free = k, 0
    largest = 0.0
    for i in range(len(gain)):
        priced = gain[i]
        for j in range(len(slope)):
            priced -= slope[j] * factors[i, j]
        for r in range(len(price)):
            priced -= price[r] * rules[i, r]
        weight[i] = priced
        largest = max(largest, abs(gain[i]))
        if state[i] > 0:
            total += priced
            slots -= 1
        elif state[i] == 0:
            free += 1
    if slots < 0 or free < slots:
        return -np.inf
    # The `slots` largest of the free, kept in order from the least of them.
    best = np.empty(slots)
    kept = 0
    for i in range(len(gain)):
        if state[i] == 0 and slots > 0 and (kept < slots or weight[i] > best[0]):
            if kept < slots:
                at = kept
                kept += 1
                while at > 0 and best[at - 1] > weight[i]:
                    best[at] = best[at - 1]
                    at -= 1
            else:
                at = 0
                while at + 1 < slots and best[at + 1] < weight[i]:
                    best[at] = best[at + 1]
                    at += 1
            best[at] = weight[i]
    for q in range(slots):
        total += best[q]
    return total + ROUNDING * (k * largest + scale)


@njit
def _look(  # type: ignore[no-untyped-def]
    gain,
    rules,
    least,
    most,
    factors,
    curvature,
    state,
    weight,
    order,
    bound,
    gap,
    steps,
    shares,
    objective,
    slate,
):
    """Try the slates of a node by falling priced gain, each level of ``shares`` deeper below the bound.

    Returns the best gain so far (its slate in ``slate``), the bound on what was ruled out, and whether that
    is all but slates no better than the best.
    """
    k, n_rules, n_factors = len(slate), len(least), factors.shape[1]
    fixed, n_fixed = np.empty(k, np.intp), 0
    free, n = np.empty(len(gain), np.intp), 0
    largest = 0.0
    for i in order:
        largest = max(largest, abs(gain[i]))
        if state[i] > 0:
            fixed[n_fixed] = i
            n_fixed += 1
        elif state[i] == 0:
            free[n] = i
            n += 1
    slots = k - n_fixed
    # What the best `slots` free rows from each place on add, and what any can add to each rule.
    sums, most_left, least_left = np.zeros(n + 1), np.zeros((n + 1, n_rules)), np.zeros((n + 1, n_rules))
    for p in range(n):
        sums[p + 1] = sums[p] + weight[free[p]]
    most_left[n, :] = -np.inf
    least_left[n, :] = np.inf
    for p in range(n - 1, -1, -1):
        for r in range(n_rules):
            most_left[p, r] = max(most_left[p + 1, r], rules[free[p], r])
            least_left[p, r] = min(least_left[p + 1, r], rules[free[p], r])
    slack = ROUNDING * k
    shift = bound - sums[slots]  # bound of a slate, less what its free rows add
    place, priced, value = np.zeros(slots + 1, np.intp), np.zeros(slots + 1), np.zeros(slots + 1)
    used, z = np.zeros((slots + 1, n_rules)), np.zeros((slots + 1, n_factors))
    for i in fixed[:n_fixed]:
        value[0] += gain[i]
        for j in range(n_factors):
            z[0, j] += factors[i, j]
        for r in range(n_rules):
            used[0, r] += rules[i, r]
    taken, closed = 0, -np.inf
    for share in shares:
        floor = bound - share * max(abs(bound), largest) if share < np.inf else -np.inf
        closed, depth = -np.inf, 0
        place[0] = -1
        while depth >= 0:
            place[depth] += 1
            p, wanted = place[depth], slots - depth
            reach = shift + priced[depth] + (sums[p + wanted] - sums[p] if p + wanted <= n else -np.inf)
            target = floor
            if objective > -np.inf:
                target = max(floor, objective + max(gap * abs(objective), 4.0 * ROUNDING * k * largest))
            fits = reach > target
            if not fits:
                closed = max(closed, reach)
            for r in range(n_rules):
                if not fits:
                    break
                if wanted == 0:
                    fits = least[r] - slack <= used[depth, r] <= most[r] + slack
                else:
                    fits = (
                        used[depth, r] + wanted * most_left[p, r] >= least[r] - slack
                        and used[depth, r] + wanted * least_left[p, r] <= most[r] + slack
                    )
            if not fits:  # nor does what comes later
                depth -= 1
                continue
            if wanted == 0:
                worth = value[depth]
                for j in range(n_factors):
                    worth -= curvature * z[depth, j] * z[depth, j]
                if worth > objective:
                    objective = worth
                    for q in range(k):
                        slate[q] = fixed[q] if q < n_fixed else free[place[q - n_fixed]]
                depth -= 1
                continue
            taken += 1
            if taken > steps:
                return objective, bound, False
            priced[depth + 1] = priced[depth] + weight[free[p]]
            value[depth + 1] = value[depth] + gain[free[p]]
            for j in range(n_factors):
                z[depth + 1, j] = z[depth, j] + factors[free[p], j]
            for r in range(n_rules):
                used[depth + 1, r] = used[depth, r] + rules[free[p], r]
            depth += 1
            place[depth] = p
        if floor <= objective:
            break
    return objective, max(closed, objective), True
