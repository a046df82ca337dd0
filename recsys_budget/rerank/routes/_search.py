"""Kernels of the diverse route: branch and bound over the slates of one user.

For any point y, the objective of a slate S with sum of factors z is at most that of the tangent at y,

    linear(S) - curvature * |z|^2 <= linear(S) - curvature * (2 y.z - |y|^2),

by exactly ``curvature * |z - y|^2``. The right-hand side is linear in S, so greedy selection maximises it:
one greedy pass bounds all slates. Two facts about factors that are nowhere negative and take few values v
make the bound better still, much so where diversity weighs most. A slate's sum in a factor is one of a list,
so that ``(z - y)^2`` is at least the square of y's distance to its nearest entry. And since the products of
different rows are not negative, ``z^2`` is at least the sum of the ``v^2``: a row may cost ``v^2`` where that
is more than ``2 y v``, and then only rows with ``v < 2 y`` make up the list that counts.

A bound as low as some target needs a y within a certain distance of the z of every slate, and moving y
towards the ball of the slate just found, again and again, finds such a point where there is one (Bregman
1965, doi:10.1016/0041-5553(67)90040-7). Exchange costs at y settle most rows on
the way, since forcing a row in or out would cost more than is left to gain. Where rows stay open, the search
branches on one.

``taken[v]`` of a node of the tree counts places as in the laminar route. All these kernels stand in one file
because a kernel calls no kernel of another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.routes._compiled import njit

FREE, IN, OUT, CHOSEN = 0, 1, 2, 3
# Rounding of a slate's terms, as a share of the largest sum they could have.
ROUNDING = 1e-12
STEPS = 3  # of Newton, towards the bound that is wanted of one slate


class Quotas(NamedTuple):
    """The arrays of a ``LaminarTree`` without its items."""

    parent: NDArray[np.int32]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    reserved: NDArray[np.int64]


class Rows(NamedTuple):
    """One user's rows: what each adds, its leaf, and its factors in compressed form."""

    linear: NDArray[np.float64]
    leaf: NDArray[np.int32]
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float64]
    norms: NDArray[np.float64]
    curvature: float
    bars: NDArray[np.float64]  # y from which on each list of sums counts; list by list
    lists: NDArray[np.int64]  # where each list starts in ``sums``
    first: NDArray[np.int64]  # first list of each factor
    sums: NDArray[np.float64]  # what slates can sum to, rising within a list


class Scratch(NamedTuple):
    """One user's working arrays."""

    state: NDArray[np.int8]
    seen: NDArray[np.intp]  # in how many slates of this node a row was
    free: NDArray[np.intp]
    heap: NDArray[np.intp]
    trail: NDArray[np.intp]  # settled rows, in the order in which they were settled
    weight: NDArray[np.float64]
    worth: NDArray[np.float64]
    slate: NDArray[np.intp]
    best: NDArray[np.intp]
    y: NDArray[np.float64]
    z: NDArray[np.float64]
    near: NDArray[np.float64]
    slope: NDArray[np.float64]
    taken: NDArray[np.int64]
    spare: NDArray[np.int64]
    costs: NDArray[np.float64]


class Reached(NamedTuple):
    """Where a search stands."""

    objective: float  # of the best slate so far
    enough: float  # a bound at which a node is done with
    closed: float  # bound on all slates that were ruled out
    margin: float  # rounding of any of these


@njit
def _fits(node: int, taken: NDArray[np.int64], quotas: Quotas) -> bool:
    while node >= 0 and taken[node] >= quotas.lower[node]:
        if taken[node] >= quotas.upper[node]:
            return False
        node = quotas.parent[node]
    return True


@njit
def _put(node: int, taken: NDArray[np.int64], quotas: Quotas) -> None:
    while node >= 0:
        taken[node] += 1
        if taken[node] <= quotas.lower[node]:
            return
        node = quotas.parent[node]


@njit
def _drop(node: int, taken: NDArray[np.int64], quotas: Quotas) -> None:
    while node >= 0:
        taken[node] -= 1
        if taken[node] < quotas.lower[node]:
            return
        node = quotas.parent[node]


@njit
def _sift(heap: NDArray[np.intp], size: int, at: int, weight: NDArray[np.float64]) -> None:
    """Let the row at this place sink to where it belongs: the heaviest on top, and the earliest of these."""
    row = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        a = heap[child]
        if child + 1 < size:
            b = heap[child + 1]
            if weight[b] > weight[a] or (weight[b] == weight[a] and b < a):
                child, a = child + 1, b
        if weight[row] > weight[a] or (weight[row] == weight[a] and row < a):
            break
        heap[at] = a
        at = child
    heap[at] = row


@njit
def _greedy(
    slate: NDArray[np.intp], filled: int, free: NDArray[np.intp], weight: NDArray[np.float64],
    leaf: NDArray[np.int32], taken: NDArray[np.int64], quotas: Quotas, heap: NDArray[np.intp],
) -> int:  # fmt: skip
    """Fill ``slate[filled:]`` from the free rows by falling weight; how many places are filled then."""
    size = len(free)
    for at in range(size):
        heap[at] = free[at]
    for at in range(size // 2 - 1, -1, -1):
        _sift(heap, size, at, weight)
    full = np.zeros(len(taken), np.bool_)
    while filled < len(slate) and size > 0:
        row = heap[0]
        if _fits(leaf[row], taken, quotas):
            _put(leaf[row], taken, quotas)
            slate[filled] = row
            filled += 1
            size -= 1
            heap[0] = heap[size]
            _sift(heap, size, 0, weight)
        else:  # what does not fit now never will
            for node in range(len(taken)):
                full[node] = full[node] or not _fits(node, taken, quotas)
            kept = 0
            for other in heap[:size]:
                if not full[leaf[other]]:
                    heap[kept] = other
                    kept += 1
            size = kept
            for at in range(size // 2 - 1, -1, -1):
                _sift(heap, size, at, weight)
    return filled


@njit
def _level(y: NDArray[np.float64], rows: Rows, near: NDArray[np.float64]) -> float:
    """Sum of ``y^2 - (y - near)^2`` over factors, with ``near`` the nearest sum that slates can have."""
    total = 0.0
    for j in range(len(y)):
        at, low, high = rows.first[j + 1] - 1, 0, 0
        while at > rows.first[j] and rows.bars[at] >= y[j]:
            at -= 1
        if at >= rows.first[j]:
            low, high = rows.lists[at], rows.lists[at + 1]
        near[j] = y[j]
        # Beyond the last sum that is listed nothing is known, but for a list of one: the sum of nothing.
        if high - low == 1 or (low < high and y[j] < rows.sums[high - 1]):
            at = low
            while at + 1 < high and rows.sums[at + 1] <= y[j]:
                at += 1
            near[j] = rows.sums[at]
            if at + 1 < high and rows.sums[at + 1] - y[j] < y[j] - rows.sums[at]:
                near[j] = rows.sums[at + 1]
        total += y[j] * y[j] - (y[j] - near[j]) ** 2
    return total


@njit
def _tangent(
    which: NDArray[np.intp], rows: Rows, y: NDArray[np.float64], weight: NDArray[np.float64]
) -> None:
    """Write what each of these rows adds to the tangent at y."""
    starts, columns, values = rows.starts, rows.columns, rows.values
    for row in which:
        along = 0.0
        for p in range(starts[row], starts[row + 1]):
            j, value = columns[p], values[p]
            along += max(2.0 * y[j], value if rows.first[j] < rows.first[j + 1] else -np.inf) * value
        weight[row] = rows.linear[row] - rows.curvature * along


@njit
def _above(
    slate: NDArray[np.intp], rows: Rows, y: NDArray[np.float64], near: NDArray[np.float64],
    z: NDArray[np.float64], slope: NDArray[np.float64],
) -> float:  # fmt: skip
    """How far the bound at y is above the objective of this slate, by curvature; and a slope of it in y.

    The slope leaves out that rows may cost ``v^2``: with it, y would stay where all rows do.
    """
    over: float = _level(y, rows, near)
    for j in range(len(y)):
        slope[j] = 2.0 * (near[j] - z[j])
        over += z[j] * z[j]
    for row in slate:
        for p in range(rows.starts[row], rows.starts[row + 1]):
            j, value = rows.columns[p], rows.values[p]
            if rows.first[j] < rows.first[j + 1] and value >= 2.0 * y[j]:
                over -= value * value
            else:
                over -= 2.0 * y[j] * value
    return over


@njit
def _evaluate(slate: NDArray[np.intp], rows: Rows, z: NDArray[np.float64]) -> float:
    """Objective of a slate; leaves the sum of its factors in z."""
    z[:] = 0.0
    total, square = 0.0, 0.0
    for row in slate:
        total += rows.linear[row]
        for p in range(rows.starts[row], rows.starts[row + 1]):
            z[rows.columns[p]] += rows.values[p]
    for j in range(len(z)):
        square += z[j] * z[j]
    return total - rows.curvature * square


@njit
def _alike(a: int, b: int, rows: Rows) -> bool:
    """Whether two rows differ in nothing but what they add."""
    first, second, size = rows.starts[a], rows.starts[b], rows.starts[a + 1] - rows.starts[a]
    if rows.leaf[a] != rows.leaf[b] or rows.starts[b + 1] - second != size:
        return False
    for p in range(size):
        if rows.columns[first + p] != rows.columns[second + p]:
            return False
        if rows.values[first + p] != rows.values[second + p]:
            return False
    return True


@njit
def _ahead(a: int, b: int, linear: NDArray[np.float64]) -> bool:
    return linear[a] > linear[b] or (linear[a] == linear[b] and a < b)


@njit
def _improve(
    slate: NDArray[np.intp], fixed: int, free: NDArray[np.intp], rows: Rows, taken: NDArray[np.int64],
    quotas: Quotas, z: NDArray[np.float64], worth: NDArray[np.float64], least: float,
) -> float:  # fmt: skip
    """Make the best exchange of one row of ``slate[fixed:]`` for a free one until none gains ``least``.

    With f the factors, exchanging a for b gains ``worth[b] - lost(a) + 2 curvature f_a.f_b``.
    """
    starts, columns, values, norms = rows.starts, rows.columns, rows.values, rows.norms
    inside, spread = np.zeros(len(worth), np.bool_), np.zeros(len(z))
    for row in slate:
        inside[row] = True
    while True:
        objective: float = _evaluate(slate, rows, z)
        for row in free:
            along = norms[row] * norms[row]
            for p in range(starts[row], starts[row + 1]):
                along += 2.0 * z[columns[p]] * values[p]
            worth[row] = rows.linear[row] - rows.curvature * along
        best, place, entering = least, -1, -1
        for q in range(fixed, len(slate)):
            leaving, along = slate[q], 0.0
            for p in range(starts[leaving], starts[leaving + 1]):
                spread[columns[p]] = 2.0 * rows.curvature * values[p]
                along += spread[columns[p]] * z[columns[p]]
            lost = rows.linear[leaving] - along + rows.curvature * norms[leaving] * norms[leaving]
            _drop(rows.leaf[leaving], taken, quotas)
            for row in free:
                gained = worth[row] - lost
                # No product is larger than that of the norms.
                if inside[row] or gained + 2.0 * rows.curvature * norms[leaving] * norms[row] <= best:
                    continue
                for p in range(starts[row], starts[row + 1]):
                    gained += spread[columns[p]] * values[p]
                if gained > best and _fits(rows.leaf[row], taken, quotas):
                    best, place, entering = gained, q, row
            _put(rows.leaf[leaving], taken, quotas)
            for p in range(starts[leaving], starts[leaving + 1]):
                spread[columns[p]] = 0.0
        if place < 0:
            return objective
        _drop(rows.leaf[slate[place]], taken, quotas)
        _put(rows.leaf[entering], taken, quotas)
        inside[slate[place]], inside[entering] = False, True
        slate[place] = entering


@njit
def _exchange(
    slate: NDArray[np.intp], fixed: int, free: NDArray[np.intp], state: NDArray[np.int8],
    weight: NDArray[np.float64], leaf: NDArray[np.int32], taken: NDArray[np.int64], quotas: Quotas,
    scratch: NDArray[np.float64],
) -> None:  # fmt: skip
    """Per leaf, what a row of it must outweigh to come in, and what can replace one that leaves.

    In the slate that is best for ``weight``, a row outside costs ``scratch[2, leaf] - weight`` to force in,
    and a row inside ``weight - scratch[3, leaf]`` to force out.
    """
    lightest, heaviest, entry, exits = scratch[0], scratch[1], scratch[2], scratch[3]
    lightest[:] = np.inf
    heaviest[:] = -np.inf
    entry[:] = np.inf
    exits[:] = -np.inf
    for q in range(fixed, len(slate)):
        lightest[leaf[slate[q]]] = min(lightest[leaf[slate[q]]], weight[slate[q]])
    for row in free:
        if state[row] == FREE:
            heaviest[leaf[row]] = max(heaviest[leaf[row]], weight[row])
    for a in range(len(lightest)):
        if lightest[a] == np.inf:
            continue
        _drop(a, taken, quotas)
        for b in range(len(lightest)):
            # Whether one fits is looked up only where it would change something.
            if (
                heaviest[b] > -np.inf
                and (lightest[a] < entry[b] or heaviest[b] > exits[a])
                and _fits(b, taken, quotas)
            ):
                entry[b] = min(entry[b], lightest[a])
                exits[a] = max(exits[a], heaviest[b])
        _put(a, taken, quotas)


@njit
def _copy(values: NDArray[np.int64], into: NDArray[np.int64]) -> None:
    """``into[:] = values``, which would take numba two seconds more to compile."""
    for at in range(len(values)):
        into[at] = values[at]


@njit
def _hold(settled: NDArray[np.intp], rows: Rows, quotas: Quotas, scratch: Scratch) -> int:
    """Start a slate with the settled rows that must be in it: how many, or -1 where they do not fit."""
    _copy(quotas.reserved, scratch.taken)
    fixed = 0
    for row in settled:
        if scratch.state[row] == IN:
            if not _fits(rows.leaf[row], scratch.taken, quotas):
                return -1
            _put(rows.leaf[row], scratch.taken, quotas)
            scratch.slate[fixed] = row
            fixed += 1
    return fixed


@njit
def _node(
    bound: float, depth: int, tries: int, reached: Reached, gap: float, rows: Rows, quotas: Quotas,
    scratch: Scratch,
) -> tuple[float, int, int, int, Reached]:  # fmt: skip
    """Bound one node of the tree, settle rows of it, and keep the best slate that turns up.

    Returns the bound, the new depth of the trail, how many rows are left free (none where the node is done
    with), the slates tried, and what is reached by now.
    """
    objective, enough, closed, margin = reached
    state, free, trail, y, z = scratch.state, scratch.free, scratch.trail, scratch.y, scratch.z
    weight, slate, taken, costs = scratch.weight, scratch.slate, scratch.taken, scratch.costs
    near, slope = scratch.near, scratch.slope
    size = 0
    for row in range(len(state)):
        if state[row] == FREE:
            free[size], scratch.seen[row] = row, 0
            size += 1
    for attempt in range(tries):
        # The slate that is best for the tangent at y bounds every slate of this node.
        fixed = _hold(trail[:depth], rows, quotas, scratch)
        if fixed < 0:
            return -np.inf, depth, 0, attempt, Reached(objective, enough, closed, margin)
        _tangent(slate[:fixed], rows, y, weight)
        _tangent(free[:size], rows, y, weight)
        filled = _greedy(slate, fixed, free[:size], weight, rows.leaf, taken, quotas, scratch.heap)
        if filled < len(slate):
            return -np.inf, depth, 0, attempt, Reached(objective, enough, closed, margin)
        value, highest = _evaluate(slate, rows, z), rows.curvature * _level(y, rows, near)
        for row in slate:
            highest += weight[row]
        if value > objective:
            _copy(slate, scratch.best)
            _copy(taken, scratch.spare)
            objective = _improve(
                scratch.best, fixed, free[:size], rows, scratch.spare, quotas, z, scratch.worth, margin
            )
            enough = objective + max(gap * abs(objective), 3.0 * margin)
            _evaluate(slate, rows, z)
        bound = min(bound, highest)
        if bound + margin <= enough:
            return bound, depth, 0, attempt, Reached(objective, enough, closed, margin)
        # Rows whose entry, or exit, would cost more than is left to gain are settled.
        for row in slate[fixed:]:
            scratch.seen[row] += 1
            state[row] = CHOSEN
        _exchange(slate, fixed, free[:size], state, weight, rows.leaf, taken, quotas, costs)
        kept = 0
        for row in free[:size]:
            inside = state[row] == CHOSEN
            leaf = rows.leaf[row]
            other = highest - (weight[row] - costs[3, leaf] if inside else costs[2, leaf] - weight[row])
            if other + margin <= enough:
                closed = max(closed, other)
                state[row] = IN if inside else OUT
                trail[depth] = row
                depth += 1
            else:
                state[row] = FREE
                free[kept] = row
                kept += 1
        size = kept
        if size == 0:  # this slate is the only one left
            return value, depth, 0, attempt, Reached(objective, enough, closed, margin)
        # Towards a point where this slate's own bound is low enough, by Newton's steps.
        room = max(0.0, enough - 2.0 * margin - value)
        for _ in range(STEPS if rows.curvature > 0.0 else 0):
            over = rows.curvature * _above(slate, rows, y, near, z, slope) - room
            square = 0.0
            for j in range(len(y)):
                square += slope[j] * slope[j]
            if over <= 0.0 or square == 0.0:
                break
            for j in range(len(y)):
                y[j] -= over / rows.curvature * slope[j] / square
    return bound, depth, size, tries, Reached(objective, enough, closed, margin)


@njit
def _search(
    rows: Rows, pinned: NDArray[np.intp], quotas: Quotas, gap: float, nodes: int, tries: int,
    scratch: Scratch,
) -> tuple[float, float, int]:  # fmt: skip
    """Objective (-inf where there is no slate), bound and nodes visited; ``best`` holds the slate."""
    n, k = len(rows.linear), len(scratch.best)
    state, trail, weight = scratch.state, scratch.trail, scratch.weight
    # Open nodes: a row to settle on top of the first `depth` entries of the trail.
    open_y, open_bound, open_depth = (
        np.empty((n + 2, len(scratch.y))),
        np.empty(n + 2),
        np.empty(n + 2, np.intp),
    )
    open_row, open_state = np.empty(n + 2, np.intp), np.empty(n + 2, np.int8)
    largest, longest = 0.0, 0.0
    for row in range(n):
        largest, longest = max(largest, abs(rows.linear[row])), max(longest, rows.norms[row])
    margin = ROUNDING * k * (largest + rows.curvature * k * longest * longest)
    reached = Reached(-np.inf, -np.inf, -np.inf, margin)
    for q in range(len(pinned)):
        state[pinned[q]], trail[q] = IN, pinned[q]
    open_y[0, :] = 0.0
    open_bound[0], open_depth[0], open_row[0], open_state[0] = np.inf, len(pinned), -1, FREE
    top, depth, visited = 1, len(pinned), 0
    while top > 0:
        top -= 1
        while depth > open_depth[top]:
            depth -= 1
            state[trail[depth]] = FREE
        bound = open_bound[top]
        if visited > 0 and (bound + margin <= reached.enough or visited >= nodes):
            reached = Reached(reached.objective, reached.enough, max(reached.closed, bound), margin)
            continue
        branched, side = open_row[top], open_state[top]
        if branched >= 0:
            state[branched], trail[depth] = side, branched
            depth += 1
            # Of rows alike, one that adds more comes first: some best slate is still reached.
            for row in range(n):
                if (
                    state[row] == FREE
                    and _ahead(row, branched, rows.linear) == (side == IN)
                    and _alike(row, branched, rows)
                ):
                    state[row], trail[depth] = side, row
                    depth += 1
        for j in range(len(scratch.y)):
            scratch.y[j] = open_y[top, j]
        attempts = tries if visited == 0 else max(1, tries // 4)
        visited += 1
        bound, depth, size, attempts, reached = _node(
            bound, depth, attempts, reached, gap, rows, quotas, scratch
        )
        if size == 0:
            reached = Reached(reached.objective, reached.enough, max(reached.closed, bound), margin)
            continue
        # Branch on the row that the last slates were least sure of; the likelier side comes first.
        branched, doubt = -1, -1
        for row in scratch.free[:size]:
            split = min(scratch.seen[row], attempts - scratch.seen[row])
            if split > doubt or (split == doubt and weight[row] > weight[branched]):
                branched, doubt = row, split
        likely = IN if 2 * scratch.seen[branched] >= attempts else OUT
        for side in (IN + OUT - likely, likely):
            for j in range(len(scratch.y)):
                open_y[top, j] = scratch.y[j]
            open_bound[top], open_depth[top], open_row[top], open_state[top] = bound, depth, branched, side
            top += 1
    if reached.objective == -np.inf:
        return -np.inf, -np.inf, visited
    objective = _canonical(rows, pinned, scratch)
    return objective, max(objective, reached.closed + margin), visited


@njit
def _canonical(rows: Rows, pinned: NDArray[np.intp], scratch: Scratch) -> float:
    """Of rows alike, keep those that add most, and of these the earliest; the objective of the best slate."""
    state, best = scratch.state, scratch.best
    state[:] = FREE
    for row in best:
        state[row] = CHOSEN
    for row in pinned:
        state[row] = IN
    for q in range(len(best)):
        if state[best[q]] == CHOSEN:
            for row in range(len(state)):
                if state[row] == FREE and _ahead(row, best[q], rows.linear) and _alike(row, best[q], rows):
                    state[best[q]], state[row] = FREE, CHOSEN
                    best[q] = row
    for q in range(1, len(best)):
        row, at = best[q], q
        while at > 0 and best[at - 1] > row:
            best[at] = best[at - 1]
            at -= 1
        best[at] = row
    objective: float = _evaluate(best, rows, scratch.z)
    return objective


@njit
def search_users(
    first: int, last: int, offsets: NDArray[np.int64], items: NDArray[np.intp], gains: NDArray[np.float64],
    marks: NDArray[np.int8], of_items: Rows, quotas: Quotas, gap: float, nodes: int, tries: int,
    n_factors: int, chosen: NDArray[np.int32], objective: NDArray[np.float64], bound: NDArray[np.float64],
    visited: NDArray[np.int64],
) -> None:  # fmt: skip
    """Solve users ``first <= u < last``, and write the last four arrays where there is a slate.

    ``of_items`` holds the facts of the whole catalogue, ``marks`` 1 and -1 for pinned and blocked rows.
    """
    k = chosen.shape[1]
    for user in range(first, last):
        start, n, stored = offsets[user], 0, 0
        kept = np.empty(offsets[user + 1] - start, np.intp)
        pinned, n_pinned, possible = np.empty(len(kept), np.intp), 0, True
        for row in range(start, offsets[user + 1]):
            item, mark = items[row], marks[row] if len(marks) > 0 else 0
            if of_items.leaf[item] >= 0 and mark >= 0:
                if mark > 0:
                    pinned[n_pinned] = n
                    n_pinned += 1
                kept[n] = row
                n += 1
                stored += of_items.starts[item + 1] - of_items.starts[item]
            elif mark > 0:
                possible = False
        if n < k or not possible:
            continue
        rows = Rows(
            np.empty(n), np.empty(n, np.int32), np.zeros(n + 1, np.int64), np.empty(stored, np.int32),
            np.empty(stored), np.empty(n), of_items.curvature, of_items.bars, of_items.lists, of_items.first,
            of_items.sums,
        )  # fmt: skip
        at = 0
        for i in range(n):
            item = items[kept[i]]
            rows.linear[i] = gains[kept[i]] + of_items.linear[item]
            rows.leaf[i], rows.norms[i] = of_items.leaf[item], of_items.norms[item]
            for p in range(of_items.starts[item], of_items.starts[item + 1]):
                rows.columns[at], rows.values[at] = of_items.columns[p], of_items.values[p]
                at += 1
            rows.starts[i + 1] = at
        scratch = Scratch(
            np.zeros(n, np.int8), np.zeros(n, np.intp), np.empty(n, np.intp), np.empty(n, np.intp),
            np.empty(n, np.intp), np.zeros(n), np.empty(n), np.empty(k, np.intp), np.empty(k, np.intp),
            np.zeros(n_factors), np.zeros(n_factors), np.zeros(n_factors), np.zeros(n_factors),
            quotas.reserved.copy(), quotas.reserved.copy(), np.empty((4, len(quotas.parent))),
        )  # fmt: skip
        value, above, tried = _search(rows, pinned[:n_pinned], quotas, gap, nodes, tries, scratch)
        visited[user] = tried
        if value > -np.inf:
            objective[user], bound[user] = value, above
            for q in range(k):
                chosen[user, q] = kept[scratch.best[q]] - start
