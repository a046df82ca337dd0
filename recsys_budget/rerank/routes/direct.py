"""Slates under any linear rules, for gain and diversity: a search by prices, and programs where it fails.

Any prices of the rules bound all slates by weak duality: with each rule priced into the gains, no slate is
worth more than the k largest. A square that is taken off, for diversity, is bounded by its tangents. For most
users a few steps of prices and a search near the bound find the best slate and prove it (:mod:`_core`). What
stays open is asked of linear programs: users who have no slate, and those for whom better prices are needed.
No answer of the solver is taken on trust: bounds and proofs of infeasibility are computed from its prices in
float64, and slates are counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes._compiled import by_blocks, over_users, pick
from recsys_budget.rerank.routes._core import OUT, SHARES, At, bound_at, canonical, look_below, search_users
from recsys_budget.rerank.routes._program import Program
from recsys_budget.rerank.routes._users import User, Users
from recsys_budget.rerank.routes.diverse import Factors

STEPS = 20_000  # slates begun, a millisecond or so, before a program is branched on
BLOCK = 32  # users worked on at a time, whatever the number of threads
_KERNELS = (bound_at, look_below, canonical)
# Nodes of the search without programs, and slates begun in each.
NODES, NODE_STEPS = 200, 500


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
        rays: For users whose linear relaxation is impossible already: multipliers of the rules, of which
            those that are not 0 name rules that conflict with each other and the size of the slate.
        solves: int64 ``(n_users,)``, linear programs solved.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    impossible: NDArray[np.bool_]
    objective: NDArray[np.float64]
    bound: NDArray[np.float64]
    rays: Mapping[int, NDArray[np.float64]]
    solves: NDArray[np.int64]
    _users: Users = field(repr=False)
    _from: tuple[NDArray[np.float64], NDArray[np.float64]] = field(repr=False)  # where bounds were taken

    def prices_of(self, users: NDArray[np.intp]) -> NDArray[np.float64]:
        """What one unit of each rule's binding bound costs these users in gain, ``(n_users, n_rules)``.

        Above 0 for an upper bound, below for a lower one; by the linear relaxation, with the square that is
        taken off replaced by its tangent at the slate. 0 for users without a slate.
        """
        prices = np.zeros((len(users), self._users.size.size))
        program = Program(self._users.k, prices.shape[1], 0, 0.0, 0.0)
        for at, u in enumerate(users):
            if self.feasible[u]:
                user = self._users.of_user(int(u)).tangent(self.chosen[u])
                program.load(user)
                prices[at] = program.solve(user.marks)[1] / self._users.size
        return prices

    @property
    def diverse(self) -> bool:
        """Whether slates were found for diversity too."""
        return bool(self._from[1].shape[1])

    @cached_property
    def prices(self) -> NDArray[np.float64]:
        """:meth:`prices_of` everybody."""
        return self.prices_of(np.arange(len(self.chosen)))

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
    factor_of_item: NDArray[np.float64] | sparse.csr_array[np.float64] | Factors | None = None,
    curvature: float = 0.0,
    linear_of_item: NDArray[np.float64] | None = None,
    *,
    fixed: NDArray[np.int8] | None = None,
    gap: float = 0.0,
    nodes: int = 100,
    time_limit: float | None = None,
    warm: DirectSlates | None = None,
    threads: int | None = None,
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
        factor_of_item: ``(n_items, n_factors)``, finite, dense or sparse; or :class:`Factors` of these for
            slates of this size, which many calls can share; None for no diversity.
        curvature: At least 0. A slate S is worth the sum of gains and linear_of_item over S, less curvature
            times the square of the length of its sum of factors, as in the diverse route.
        linear_of_item: float64 ``(n_items,)``, added to the gain; None for nothing.
        fixed: int8 ``(n_rows,)``: 1 for a row that must be in its slate, -1 for one that must not, else 0.
        gap: Relative gap, ``(bound - objective) / |objective|``, at which a user is done with; 0 asks for
            the optimum.
        nodes: Most linear programs a user, at least 1.
        time_limit: Seconds after which each user still gets one node of the search and one linear program;
            None for no limit. Only this can make two runs differ.
        warm: Answer about the same rows under rules on the same sums, whatever their bounds and gains: where
            the search starts. It changes the time taken, and which of slates within the gap are found.
        threads: Most threads at once; None takes one a core. Answers do not depend on it.

    Guarantees:
        In the unit of each rule, sums of slates exceed bounds by at most rounding, 1e-12 of what a slate
        could sum to. Without a warm start every user's answer is what a call with that user alone gives: the
        solver starts afresh. Of rows that differ in nothing the earliest are chosen.

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
    known, linear = _diversity(factor_of_item, curvature, linear_of_item, rules.shape[0], k)
    users = Users.of(
        np.asarray(offsets, np.int64),
        np.ascontiguousarray(items, np.intp),
        np.asarray(gains, np.float64) + linear[items],
        np.zeros(len(gains), np.int8) if fixed is None else np.ascontiguousarray(fixed, np.int8),
        k,
        rules,
        (least, most),
        known.matrix,
        float(curvature),
        known.attainable,
    )
    deadline = np.inf if time_limit is None else time.monotonic() + time_limit
    chosen = np.full((n_users, k), -1, np.int32)
    prices, points = np.zeros((n_users, n_rules)), np.zeros((n_users, known.matrix.shape[1]))
    if warm is not None:
        chosen, (prices, points) = warm.chosen.copy(), (each.copy() for each in warm._from)
        if (
            chosen.shape != (n_users, k)
            or prices.shape[1] != n_rules
            or points.shape[1] != known.matrix.shape[1]
        ):
            raise SpecificationError(
                "a warm start needs the same users, slates, rules and factors; solve without it"
            )
    objective, bound = np.full(n_users, np.nan), np.full(n_users, np.nan)
    settled = np.zeros(n_users, np.bool_)

    def work(first: int, last: int) -> None:
        allowed = NODES if time.monotonic() < deadline else 1
        over_users(
            search_users, first, last, len(users.items), users.offsets, users.items, users.of_items,
            users.least, users.most, users.gain, users.marks, float(gap), allowed, min(NODE_STEPS, STEPS),
            SHARES, known.matrix.shape[1], chosen, objective, bound, settled, prices, points,
        )  # fmt: skip

    by_blocks(work, n_users, block=BLOCK, threads=threads)
    impossible = settled & (chosen[:, 0] < 0)
    solves = np.zeros(n_users, np.int64)
    rays: dict[int, NDArray[np.float64]] = {}
    program = Program(k, n_rules, known.matrix.shape[1], float(curvature), gap)
    # Squares leave relaxations loose: nodes of linear programs would not close what the search has left open.
    left = ~settled if not curvature else ~settled & (chosen[:, 0] < 0)
    for u in np.flatnonzero(left):
        user = users.of_user(int(u))
        found = _Found(chosen[u].astype(np.intp))
        if chosen[u, 0] >= 0:
            found.objective = float(objective[u])
        _branch(found, user, program, float(gap), nodes, deadline)
        solves[u] = found.solves
        if found.objective > -np.inf:
            chosen[u], objective[u] = found.slate, found.objective
        elif not found.limited:
            impossible[u] = True
            if found.ray is not None:
                rays[int(u)] = found.ray / users.size
        bound[u] = min(bound[u], found.closed)
    # Slates are summed once more, in the order of rows, and may so be worth a rounding more.
    bound = np.where(impossible, np.nan, np.fmax(bound, objective + users.rounding))
    return DirectSlates(
        chosen, chosen[:, 0] >= 0, impossible, objective, bound, rays, solves, users, (prices, points)
    )


def _diversity(
    factor_of_item: Any, curvature: float, linear_of_item: NDArray[np.float64] | None, n_items: int, k: int
) -> tuple[Factors, NDArray[np.float64]]:
    """Factors, and what is added to gains, by item."""
    if factor_of_item is None or not curvature:
        factor_of_item = sparse.csr_array((n_items, 0))
    known = factor_of_item if isinstance(factor_of_item, Factors) else Factors.of(factor_of_item, k)
    linear = np.zeros(n_items) if linear_of_item is None else np.asarray(linear_of_item, np.float64)
    if known.matrix.shape[0] != n_items or known.k != k or linear.shape != (n_items,):
        raise SpecificationError(
            f"factors of {known.matrix.shape[0]} items for slates of {known.k} and linear_of_item of shape "
            f"{linear.shape} for rules of {n_items} items and slates of {k}; pass a row of each per item"
        )
    if not (np.isfinite(known.matrix.data).all() and np.isfinite(linear).all() and 0.0 <= curvature < np.inf):
        raise SpecificationError(
            f"curvature={curvature!r}, or a factor or linear_of_item is not finite; the objective must be "
            "concave, with a finite curvature of at least 0"
        )
    return known, linear


@dataclass(eq=False)
class _Found:
    """Where the search of one user stands."""

    slate: NDArray[np.intp]
    objective: float = -np.inf
    closed: float = -np.inf  # bound on all slates ruled out
    limited: bool = False
    ray: NDArray[np.float64] | None = None
    solves: int = 0


def _branch(found: _Found, user: User, program: Program, gap: float, nodes: int, deadline: float) -> None:
    """Branch and bound at the prices of linear programs, from the best slate known."""
    rows, scratch = user.rows, user.scratch()
    bounded, searched, ordered = (pick(kernel, None, len(rows.gain)) for kernel in _KERNELS)
    nothing = rows._replace(gain=np.zeros_like(rows.gain), curvature=0.0)

    def look(state: NDArray[np.int8], at: At) -> tuple[float, float, bool]:
        """Search a node: its bound, the bound on what was ruled out, and whether that is all of it."""
        active = np.flatnonzero(state != OUT)
        bound = bounded(rows, state, active, at)
        if bound == -np.inf:
            return bound, bound, True
        scratch.best[:] = found.slate
        found.objective, closed, complete = searched(
            rows, state, active, at, scratch, bound, gap, STEPS, SHARES, found.objective
        )
        found.slate = scratch.best.copy()
        return bound, closed, complete

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
        fractions, prices, slopes, ray = program.solve(state)
        found.solves += 1
        if ray is not None:
            for sign in (1.0, -1.0):
                at = user.at(sign * ray)
                if bounded(nothing, state, np.flatnonzero(state != OUT), at) < 0.0:
                    found.ray = at.price if found.solves == 1 else None
                    break
            else:
                ray = None  # proves nothing: the solver's word is not enough
            if ray is not None:
                continue
        at = user.at(prices, slopes / (2.0 * rows.curvature) if len(slopes) else slopes)
        own, closed, complete = look(state, at)
        bound = min(bound, own)
        if complete:
            found.closed = max(found.closed, min(bound, closed))
            continue
        free = np.flatnonzero(state == 0)
        doubt = np.abs(fractions[free] - 0.5)
        row = free[doubt.argmin()] if doubt.min() < 0.5 - 1e-6 else free[at.weight[free].argmax()]
        sides = (-1, 1) if fractions[row] >= 0.5 else (1, -1)  # the likelier comes off the stack first
        for side in sides:
            child = state.copy()
            child[row] = side
            stack.append((child, bound))
    if found.objective > -np.inf:
        scratch.best[:] = found.slate
        found.objective = ordered(rows, user.marks, scratch)
        found.slate = scratch.best.copy()
