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

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes._core import bound_at, look_below
from recsys_budget.rerank.routes._program import Program, User

STEPS = 20_000  # slates begun, a millisecond or so, before a program is branched on
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
    program = Program(k, n_rules, factors.shape[1], float(curvature), gap)
    chosen = np.full((n_users, k), -1, np.int32)
    impossible = np.zeros(n_users, np.bool_)
    objective, bound = np.full(n_users, np.nan), np.full(n_users, np.nan)
    prices, solves = np.zeros((n_users, n_rules)), np.zeros(n_users, np.int64)
    rays: dict[int, NDArray[np.float64]] = {}
    for u in range(n_users):
        rows = slice(offsets[u], offsets[u + 1])
        at = of_rows.indptr[offsets[u] : offsets[u + 1] + 1]
        within = slice(at[0], at[-1])
        user = User(
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
            bound[u] = max(found.closed, found.objective + user.rounding(k))
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


def _search(user: User, program: Program, k: int, gap: float, nodes: int, deadline: float) -> _Found:
    """Branch and bound, of which most users need the first node alone."""
    rules, n_rules = user.dense(), len(user.least)
    found = _Found(np.empty(k, np.intp), np.zeros(n_rules))
    price, weight = np.zeros(n_rules), np.empty(len(user.gain))
    slope = np.zeros(user.factors.shape[1])  # of the square, by factor
    facts = (user.gain, rules, user.least, user.most, user.factors, user.curvature)

    def look(state: NDArray[np.int8], steps: int) -> tuple[float, float, bool]:
        """Search a node: its bound, the bound on what was ruled out, and whether that is all of it."""
        bound = bound_at(*facts, price, slope, state, k, weight)
        if bound == -np.inf:
            return bound, bound, True
        order = np.argsort(-weight, kind="stable")
        found.objective, closed, complete = look_below(
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
                if bound_at(*nothing, state, k, weight) < 0.0:
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


def _canonical(user: User, rules: NDArray[np.float64], found: _Found) -> _Found:
    """Of rows that differ in nothing keep the earliest, and sum the objective in the order of rows."""
    if found.objective == -np.inf:
        return found
    slate = {int(row) for row in found.slate}
    if (np.diff(np.sort(user.gain)) == 0.0).any():
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
