"""Kernels of the direct route: prices of any linear rules, and branch and bound at these.

At prices of the rules and a point y in the space of factors, no slate S is worth more than

    sum over S of (gain - price . rules - curvature * 2 y . factors)  +  price . bounds + curvature * |y|^2,

whatever prices and y are, and the k best rows make the sum largest. Where factors are nowhere negative and
take few values the bound is better still, by what :mod:`_search` says of the sums that slates can have.
Prices and y move along a subgradient, as far as would bring the bound down to the best slate known (Polyak
1969, doi:10.1016/0041-5553(69)90061-5). Slates are then tried by falling priced gain, cutting off what cannot
reach the best so far: the core of Balas and Zemel (1980, doi:10.1287/opre.28.5.1130), for more than one rule.
Rows whose entry, or exit, would cost more than is left to gain are settled, and where rows stay open the
search branches on one. Of rows that differ in gain alone the ones with more come first.

All these kernels stand in one file because a kernel calls no kernel of another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.routes._compiled import njit

FREE, IN, OUT = 0, 1, -1
# Rounding of a sum over a slate, as a share of the largest value it could have. Rules hold to this.
ROUNDING = 1e-12
EPS = 2.0**-52
# How far below the bound slates are looked for, one after the other.
SHARES = (1e-3, 1e-2, 1e-1, np.inf)
# Steps of prices before slates are tried; the whole of a user's slates gets three such turns, a part one.
TURNS, PRICED = 3, 12
# How far below the bound steps aim, as a share of it, where no slate is known; half of it after so many idle.
AIM, IDLE = 0.1, 6


class Rows(NamedTuple):
    """One user's rows, with rules and factors in compressed form, and what bounds them."""

    gain: NDArray[np.float64]
    kind: NDArray[np.int64]  # equal for rows with the same rules and factors
    rule_starts: NDArray[np.int64]
    rules: NDArray[np.int32]
    amounts: NDArray[np.float64]
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float64]
    norms: NDArray[np.float64]  # lengths of the rows of factors
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    curvature: float
    bars: NDArray[np.float64]  # y from which on each list of sums counts; list by list
    lists: NDArray[np.int64]  # where each list starts in ``sums``
    first: NDArray[np.int64]  # first list of each factor
    sums: NDArray[np.float64]  # what slates can sum to, rising within a list


class At(NamedTuple):
    """Prices and a point, what each row is worth there, and the best slate."""

    price: NDArray[np.float64]
    y: NDArray[np.float64]
    near: NDArray[np.float64]  # of y, the nearest sums that slates can have
    weight: NDArray[np.float64]
    slate: NDArray[np.intp]  # rows that must be in it last
    heap: NDArray[np.float64]  # weights of the rows chosen freely, rising


class Scratch(NamedTuple):
    """Working arrays of one user."""

    state: NDArray[np.int8]
    active: NDArray[np.intp]  # rows that are not out, ascending
    seen: NDArray[np.int64]  # in how many slates of this node a row was
    inside: NDArray[np.bool_]
    loads: NDArray[np.float64]
    z: NDArray[np.float64]  # of zeros between uses
    worth: NDArray[np.float64]
    trial: NDArray[np.intp]
    best: NDArray[np.intp]


@njit
def _level(rows: Rows, y: NDArray[np.float64], near: NDArray[np.float64]) -> float:
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
def bound_at(rows: Rows, state: NDArray[np.int8], active: NDArray[np.intp], at: At) -> float:
    """Bound on the worth of all slates of a node, rounding included; -inf where it has none.

    Writes weights of active rows and the best slate; of rows worth the same the earliest are chosen. Prices
    that point at an infinite bound are set to 0.
    """
    price, y, weight, slate, heap = at.price, at.y, at.weight, at.slate, at.heap
    k, total, scale = len(slate), 0.0, 0.0
    for r in range(len(price)):
        bar = rows.most[r] if price[r] > 0.0 else rows.least[r]
        if not np.isfinite(bar):
            price[r] = 0.0
        if price[r] != 0.0:
            total += price[r] * bar
            scale += abs(price[r] * bar)
    if rows.curvature > 0.0:
        total += rows.curvature * _level(rows, y, at.near)
        for j in range(len(y)):
            scale += rows.curvature * (y[j] * y[j] + (y[j] - at.near[j]) ** 2)
    slots = k
    for i in active:
        if state[i] == IN:
            slots -= 1
    filled, last, largest = 0, slots, 0.0
    if slots < 0:
        return -np.inf
    for i in active:
        paid, along = 0.0, 0.0
        for p in range(rows.rule_starts[i], rows.rule_starts[i + 1]):
            paid += price[rows.rules[p]] * rows.amounts[p]
        for p in range(rows.starts[i], rows.starts[i + 1]):
            j, value = rows.columns[p], rows.values[p]
            along += max(2.0 * y[j], value if rows.first[j] < rows.first[j + 1] else -np.inf) * value
        own = rows.gain[i] - paid - rows.curvature * along
        weight[i] = own
        largest = max(largest, abs(rows.gain[i]) + abs(paid) + rows.curvature * abs(along))
        if state[i] == IN:
            slate[last] = i
            last += 1
            total += own
        elif state[i] == FREE and slots > 0 and (filled < slots or own > heap[0]):
            if filled < slots:
                q = filled
                filled += 1
                while q > 0 and heap[q - 1] >= own:
                    heap[q], slate[q] = heap[q - 1], slate[q - 1]
                    q -= 1
            else:
                q = 0
                while q + 1 < slots and heap[q + 1] < own:
                    heap[q], slate[q] = heap[q + 1], slate[q + 1]
                    q += 1
            heap[q], slate[q] = own, i
    if filled < slots:
        return -np.inf
    for q in range(slots):
        total += heap[q]
    # Each of the sums has at most so many terms, none of them larger in sum than that.
    return total + (k + len(price) + len(y) + 8) * EPS * (k * largest + scale)


@njit
def worth_of(rows: Rows, slate: NDArray[np.intp], z: NDArray[np.float64]) -> float:
    """Worth of a slate, summed in its order; z is zeros before and after."""
    total, square = 0.0, 0.0
    for row in slate:
        total += rows.gain[row]
        for p in range(rows.starts[row], rows.starts[row + 1]):
            z[rows.columns[p]] += rows.values[p]
    for row in slate:
        for p in range(rows.starts[row], rows.starts[row + 1]):
            square += z[rows.columns[p]] * z[rows.columns[p]]
            z[rows.columns[p]] = 0.0
    return total - rows.curvature * square


@njit
def _keeps(rows: Rows, slate: NDArray[np.intp], loads: NDArray[np.float64]) -> bool:
    """Whether a slate keeps the rules; writes its sums."""
    for r in range(len(loads)):
        loads[r] = 0.0
    for row in slate:
        for p in range(rows.rule_starts[row], rows.rule_starts[row + 1]):
            loads[rows.rules[p]] += rows.amounts[p]
    slack = ROUNDING * len(slate)
    for r in range(len(loads)):
        if loads[r] < rows.least[r] - slack or loads[r] > rows.most[r] + slack:
            return False
    return True


@njit
def _improve(
    rows: Rows, state: NDArray[np.int8], active: NDArray[np.intp], scratch: Scratch, least_gain: float
) -> float:
    """Make the best exchange of one row of ``best`` for a free one until none gains that much; the worth.

    With f the factors, exchanging a for b gains ``worth[b] - lost(a) + 2 curvature f_a.f_b``.
    """
    slate, z, loads, worth, inside = scratch.best, scratch.z, scratch.loads, scratch.worth, scratch.inside
    curvature, slack = rows.curvature, ROUNDING * len(slate)
    for i in range(len(inside)):
        inside[i] = False
    for row in slate:
        inside[row] = True
    while True:
        objective: float = worth_of(rows, slate, z)
        _keeps(rows, slate, loads)
        for row in slate:
            for p in range(rows.starts[row], rows.starts[row + 1]):
                z[rows.columns[p]] += rows.values[p]
        for i in active:
            along = 0.0
            for p in range(rows.starts[i], rows.starts[i + 1]):
                along += (2.0 * z[rows.columns[p]] + rows.values[p]) * rows.values[p]
            worth[i] = rows.gain[i] - curvature * along
        best, place, entering = least_gain, -1, -1
        for q in range(len(slate)):
            leaving, lost = slate[q], rows.gain[slate[q]]
            if state[leaving] == IN:
                continue
            # Without the row, the sum of factors is what exchanges are measured from.
            for p in range(rows.starts[leaving], rows.starts[leaving + 1]):
                lost -= curvature * (2.0 * z[rows.columns[p]] - rows.values[p]) * rows.values[p]
            for i in active:
                if inside[i]:
                    continue
                gained, a, b = worth[i] - lost, rows.starts[leaving], rows.starts[i]
                # No product is larger than that of the lengths.
                if gained + 2.0 * curvature * rows.norms[leaving] * rows.norms[i] <= best:
                    continue
                while a < rows.starts[leaving + 1] and b < rows.starts[i + 1]:
                    if rows.columns[a] == rows.columns[b]:
                        gained += 2.0 * curvature * rows.values[a] * rows.values[b]
                        a += 1
                        b += 1
                    elif rows.columns[a] < rows.columns[b]:
                        a += 1
                    else:
                        b += 1
                if gained <= best:
                    continue
                for p in range(rows.rule_starts[leaving], rows.rule_starts[leaving + 1]):
                    loads[rows.rules[p]] -= rows.amounts[p]
                for p in range(rows.rule_starts[i], rows.rule_starts[i + 1]):
                    loads[rows.rules[p]] += rows.amounts[p]
                fits = True
                for r in range(len(loads)):
                    fits = fits and rows.least[r] - slack <= loads[r] <= rows.most[r] + slack
                for p in range(rows.rule_starts[i], rows.rule_starts[i + 1]):
                    loads[rows.rules[p]] -= rows.amounts[p]
                for p in range(rows.rule_starts[leaving], rows.rule_starts[leaving + 1]):
                    loads[rows.rules[p]] += rows.amounts[p]
                if fits:
                    best, place, entering = gained, q, i
        for j in range(len(z)):
            z[j] = 0.0
        if place < 0:
            return objective
        leaving = slate[place]
        slate[place] = entering
        # Sums that were added to and taken from may round: what counts is the slate itself.
        if not _keeps(rows, slate, loads) or worth_of(rows, slate, z) <= objective:
            slate[place] = leaving
            return objective
        inside[leaving], inside[entering] = False, True


@njit
def _sink(heap: NDArray[np.intp], size: int, at: int, weight: NDArray[np.float64]) -> None:
    """Let the row at this place sink to where it belongs: the lightest on top, and the latest of these."""
    row = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        a = heap[child]
        if child + 1 < size:
            b = heap[child + 1]
            if weight[b] < weight[a] or (weight[b] == weight[a] and b > a):
                child, a = child + 1, b
        if weight[row] < weight[a] or (weight[row] == weight[a] and row > a):
            break
        heap[at] = a
        at = child
    heap[at] = row


@njit
def _by_weight(free: NDArray[np.intp], weight: NDArray[np.float64]) -> None:
    """Order rows by falling weight, the earliest of equal ones first."""
    for at in range(len(free) // 2 - 1, -1, -1):
        _sink(free, len(free), at, weight)
    for size in range(len(free) - 1, 0, -1):
        free[0], free[size] = free[size], free[0]
        _sink(free, size, 0, weight)


@njit
def look_below(
    rows: Rows, state: NDArray[np.int8], active: NDArray[np.intp], at: At, scratch: Scratch, bound: float,
    gap: float, steps: int, shares: tuple[float, ...], objective: float,
) -> tuple[float, float, bool]:  # fmt: skip
    """Try the slates of a node by falling priced gain, each level of ``shares`` deeper below the bound.

    Returns the best worth so far (its slate in ``best``), the bound on what was ruled out, and whether that
    is all but slates no better than the best.
    """
    weight, slate = at.weight, scratch.best
    k, n_rules = len(slate), len(rows.least)
    taken_rows, n_fixed = np.empty(k, np.intp), 0
    free, n, largest = np.empty(len(active), np.intp), 0, 0.0
    for i in active:
        largest = max(largest, abs(rows.gain[i]))
        if state[i] == IN:
            taken_rows[n_fixed] = i
            n_fixed += 1
        elif state[i] == FREE:
            free[n] = i
            n += 1
    free = free[:n]
    _by_weight(free, weight)
    slots = k - n_fixed
    # Of rows of one kind, one is tried only where the one before it is in.
    before, n_kinds = np.full(n, -1, np.intp), 0
    for p in range(n):
        n_kinds = max(n_kinds, rows.kind[free[p]] + 1)
    latest = np.full(n_kinds, -1, np.intp)
    for p in range(n):
        before[p] = latest[rows.kind[free[p]]]
        latest[rows.kind[free[p]]] = p
    # What the best `slots` free rows from each place on add, and what any can add to each rule.
    sums, most_left, least_left = np.zeros(n + 1), np.zeros((n + 1, n_rules)), np.zeros((n + 1, n_rules))
    for p in range(n):
        sums[p + 1] = sums[p] + weight[free[p]]
    for r in range(n_rules):
        most_left[n, r], least_left[n, r] = -np.inf, np.inf
    dense = scratch.loads
    for p in range(n - 1, -1, -1):
        for r in range(n_rules):
            dense[r] = 0.0
        for e in range(rows.rule_starts[free[p]], rows.rule_starts[free[p] + 1]):
            dense[rows.rules[e]] = rows.amounts[e]
        for r in range(n_rules):
            most_left[p, r] = max(most_left[p + 1, r], dense[r])
            least_left[p, r] = min(least_left[p + 1, r], dense[r])
    slack = ROUNDING * k
    shift = bound - sums[slots]  # bound of a slate, less what its free rows add
    place, priced = np.zeros(slots + 1, np.intp), np.zeros(slots + 1)
    used, there = np.zeros((slots + 1, n_rules)), np.zeros(n + 1, np.bool_)
    for q in range(n_fixed):
        for e in range(rows.rule_starts[taken_rows[q]], rows.rule_starts[taken_rows[q] + 1]):
            used[0, rows.rules[e]] += rows.amounts[e]
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
                    fits = rows.least[r] - slack <= used[depth, r] <= rows.most[r] + slack
                else:
                    fits = (
                        used[depth, r] + wanted * most_left[p, r] >= rows.least[r] - slack
                        and used[depth, r] + wanted * least_left[p, r] <= rows.most[r] + slack
                    )
            if fits and wanted > 0:
                if before[p] >= 0 and not there[before[p]]:
                    continue
                taken += 1
                if taken > steps:
                    return objective, bound, False
                priced[depth + 1] = priced[depth] + weight[free[p]]
                for r in range(n_rules):
                    used[depth + 1, r] = used[depth, r]
                for e in range(rows.rule_starts[free[p]], rows.rule_starts[free[p] + 1]):
                    used[depth + 1, rows.rules[e]] += rows.amounts[e]
                there[p] = True
                taken_rows[n_fixed + depth] = free[p]
                depth += 1
                place[depth] = p
                continue
            if fits:
                worth = worth_of(rows, taken_rows, scratch.z)
                if worth > objective:
                    objective = worth
                    for q in range(k):
                        slate[q] = taken_rows[q]
            # Nor does what comes later.
            depth -= 1
            if depth >= 0:
                there[place[depth]] = False
        if floor <= objective:
            break
    return objective, max(closed, objective), True


@njit
def _step(rows: Rows, at: At, scratch: Scratch, far: float) -> bool:
    """Move prices and y along a subgradient of the bound, as if it were to fall so far.

    False where the subgradient is 0: no prices do better. A price of one unit of a rule counts as much as
    what moves the factors of a slate by as much.
    """
    price, y, z, loads, curvature = at.price, at.y, scratch.z, scratch.loads, rows.curvature
    unit = np.sqrt(2.0 * curvature) if curvature > 0.0 else 1.0
    square = 0.0
    for r in range(len(price)):
        over = 0.0
        if price[r] > 0.0 or loads[r] > rows.most[r]:
            over = loads[r] - rows.most[r]
        elif price[r] < 0.0 or loads[r] < rows.least[r]:
            over = loads[r] - rows.least[r]
        loads[r] = unit * over
        square += loads[r] * loads[r]
    if curvature > 0.0:
        for row in at.slate:
            for p in range(rows.starts[row], rows.starts[row + 1]):
                z[rows.columns[p]] += rows.values[p]
        for j in range(len(y)):
            z[j] = unit * (at.near[j] - z[j])
            square += z[j] * z[j]
    if square > 0.0:
        step = far / square
        for r in range(len(price)):
            moved = price[r] + step * unit * loads[r]
            # Not past 0, where a price leans on the other bound.
            price[r] = 0.0 if moved * price[r] < 0.0 else moved
        if curvature > 0.0:
            for j in range(len(y)):
                y[j] -= step * z[j] / unit
    if curvature > 0.0:
        for j in range(len(y)):
            z[j] = 0.0
    return square > 0.0


@njit
def _settle(
    active: NDArray[np.intp], at: At, scratch: Scratch, bound: float, enough: float, closed: float
) -> float:
    """Settle rows whose entry or exit leaves no more than enough; the bound on what that rules out."""
    state, inside, weight, slots = scratch.state, scratch.inside, at.weight, len(at.slate)
    for i in active:
        inside[i] = False
        if state[i] == IN:
            slots -= 1
    if slots == 0:
        return closed
    for q in range(slots):
        inside[at.slate[q]] = True
    lightest, heaviest = at.heap[0], -np.inf
    for i in active:
        if state[i] == FREE and not inside[i]:
            heaviest = max(heaviest, weight[i])
    for i in active:
        if state[i] == FREE:
            other = bound - (weight[i] - heaviest if inside[i] else lightest - weight[i])
            if other <= enough:
                state[i] = IN if inside[i] else OUT
                closed = max(closed, other)
    return closed


@njit
def _activate(state: NDArray[np.int8], active: NDArray[np.intp]) -> int:
    """Write which rows are not out; how many these are."""
    n = 0
    for i in range(len(state)):
        if state[i] != OUT:
            active[n] = i
            n += 1
    return n


@njit
def _copy(values: NDArray[np.float64], into: NDArray[np.float64]) -> None:
    """``into[:] = values``, which numba takes long to compile."""
    for i in range(len(values)):
        into[i] = values[i]


@njit
def _highest(bounds: NDArray[np.float64], n: int) -> float:
    """The highest of the first n bounds."""
    highest = -np.inf
    for i in range(n):
        highest = max(highest, bounds[i])
    return highest


@njit
def _search(
    rows: Rows, marks: NDArray[np.int8], k: int, gap: float, nodes: int, steps: int,
    shares: tuple[float, ...], scratch: Scratch, price: NDArray[np.float64], y: NDArray[np.float64],
    known: bool,
) -> tuple[float, float, bool]:  # fmt: skip
    """Worth of the best slate found (-inf for none), bound on all others, and whether that is the last word.

    Starts from a price and y, and leaves there the best of the first node; and from the slate in ``best``
    where one is known. Gives up on a user for whom the first node turned up no slate.
    """
    n, n_rules, state, best = len(rows.gain), len(rows.least), scratch.state, scratch.best
    at, low = (
        At(
            np.zeros(n_rules), np.zeros(len(scratch.z)), np.zeros(len(scratch.z)), np.zeros(n),
            np.zeros(k, np.intp), np.zeros(k),
        ),
        At(
            np.zeros(n_rules), np.zeros(len(scratch.z)), np.zeros(len(scratch.z)), np.zeros(n),
            np.zeros(k, np.intp), np.zeros(k),
        ),
    )  # fmt: skip
    # Open nodes, each with the prices of the one above.
    deep = 64
    open_state, open_bound = np.empty((deep, n), np.int8), np.empty(deep)
    open_price, open_y = np.empty((deep, n_rules)), np.empty((deep, len(scratch.z)))
    largest, longest = 0.0, 0.0
    for i in range(n):
        largest, longest = max(largest, abs(rows.gain[i])), max(longest, rows.norms[i])
        open_state[0, i] = marks[i]
    terms = k + n_rules + len(y) + 8
    margin = 4.0 * EPS * terms * k * (largest + rows.curvature * k * longest * longest)
    _copy(price, open_price[0])
    _copy(y, open_y[0])
    open_bound[0] = np.inf
    objective, enough, closed, visited, top = -np.inf, -np.inf, -np.inf, 0, 1
    if known:
        pinned = 0
        for i in range(n):
            pinned += marks[i] == IN
        for row in best:
            known = known and marks[row] != OUT
            pinned -= marks[row] == IN
        if known and pinned == 0 and _keeps(rows, best, scratch.loads):
            objective = worth_of(rows, best, scratch.z)
            enough = objective + max(gap * abs(objective), margin)
    while top > 0:
        top -= 1
        bound, done = open_bound[top], False
        if bound <= enough:
            closed = max(closed, bound)
            continue
        if visited >= nodes or top + 2 > deep:
            return objective, max(closed, bound, _highest(open_bound, top)), False
        visited += 1
        for i in range(n):
            state[i], scratch.seen[i] = open_state[top, i], 0
        active = scratch.active[: _activate(state, scratch.active)]
        _copy(open_price[top], low.price)
        _copy(open_y[top], low.y)
        tried, aim = 0, AIM
        for _turn in range(TURNS if visited == 1 else 1):
            _copy(low.price, at.price)
            _copy(low.y, at.y)
            lowest, idle = np.inf, 0
            for _ in range(PRICED):
                here = bound_at(rows, state, active, at)
                if here == -np.inf:
                    done = True  # nothing is left but what was ruled out
                    break
                tried += 1
                for row in at.slate:
                    scratch.seen[row] += 1
                idle = 0 if here < lowest - 1e-4 * abs(lowest) else idle + 1
                if here < lowest:
                    lowest = here
                    _copy(at.price, low.price)
                    _copy(at.y, low.y)
                kept = _keeps(rows, at.slate, scratch.loads)
                if kept:
                    worth = worth_of(rows, at.slate, scratch.z)
                    if worth > objective:
                        objective = worth
                        enough = objective + max(gap * abs(objective), margin)
                        for q in range(k):
                            best[q] = at.slate[q]
                bound = min(bound, here)
                if bound <= enough:
                    closed, done = max(closed, bound), True
                    break
                if objective > -np.inf:
                    closed = _settle(active, at, scratch, here, enough, closed)
                    active = scratch.active[: _activate(state, scratch.active)]
                if idle >= IDLE:
                    idle, aim = 0, aim / 2.0
                    _copy(low.price, at.price)
                    _copy(low.y, at.y)
                if not _step(rows, at, scratch, here - max(enough, lowest - aim * abs(lowest))):
                    break
            if done:
                break
            here = bound_at(rows, state, active, low)
            if here == -np.inf:
                done = True
                break
            before = objective
            objective, ruled_out, done = look_below(
                rows, state, active, low, scratch, here, gap, steps, shares, objective
            )
            if done:
                closed = max(closed, min(bound, ruled_out))
                break
            if objective > before:
                objective = _improve(rows, state, active, scratch, margin)
                enough = objective + max(gap * abs(objective), margin)
        if visited == 1:
            _copy(low.price, price)
            _copy(low.y, y)
        if done:
            continue
        if objective == -np.inf:
            return objective, bound, False
        # Branch on the row that the last slates were least sure of; the likelier side comes first.
        branched, doubt = -1, -1
        for i in active:
            if state[i] == FREE:
                split = min(scratch.seen[i], tried - scratch.seen[i])
                if split > doubt or (split == doubt and low.weight[i] > low.weight[branched]):
                    branched, doubt = i, split
        if branched < 0:  # one slate is left, and look_below would have tried it
            return objective, max(closed, bound, _highest(open_bound, top)), False
        likely = IN if 2 * scratch.seen[branched] >= tried else OUT
        for side in (-likely, likely):
            for i in range(n):
                alike = state[i] == FREE and rows.kind[i] == rows.kind[branched]
                ahead = rows.gain[i] > rows.gain[branched] or (
                    rows.gain[i] == rows.gain[branched] and i <= branched
                )
                follows = alike and (ahead if side == IN else not ahead or i == branched)
                open_state[top, i] = side if follows else state[i]
            _copy(low.price, open_price[top])
            _copy(low.y, open_y[top])
            open_bound[top] = bound
            top += 1
    return objective, max(closed, objective), True


@njit
def canonical(rows: Rows, marks: NDArray[np.int8], scratch: Scratch) -> float:
    """Of rows of a kind keep those that add most, and of these the earliest; the worth of the best slate."""
    best, inside = scratch.best, scratch.inside
    for i in range(len(inside)):
        inside[i] = False
    for row in best:
        inside[row] = True
    for q in range(len(best)):
        for i in range(len(inside)):
            row = best[q]
            ahead = rows.gain[i] > rows.gain[row] or (rows.gain[i] == rows.gain[row] and i < row)
            free = marks[i] == FREE and marks[row] == FREE and not inside[i]
            if ahead and free and rows.kind[i] == rows.kind[row]:
                inside[row], inside[i] = False, True
                best[q] = i
    for q in range(1, len(best)):
        row, at = best[q], q
        while at > 0 and best[at - 1] > row:
            best[at] = best[at - 1]
            at -= 1
        best[at] = row
    objective: float = worth_of(rows, best, scratch.z)
    return objective


@njit
def search_users(
    first: int, last: int, offsets: NDArray[np.int64], items: NDArray[np.intp], of_items: Rows,
    least: NDArray[np.float64], most: NDArray[np.float64], gain: NDArray[np.float64], marks: NDArray[np.int8],
    gap: float, nodes: int, steps: int, shares: tuple[float, ...], n_factors: int, chosen: NDArray[np.int32],
    objective: NDArray[np.float64], bound: NDArray[np.float64], settled: NDArray[np.bool_],
    prices: NDArray[np.float64], points: NDArray[np.float64],
) -> None:  # fmt: skip
    """Search for users ``first <= u < last``, and write the last six arrays.

    The search of a user starts from prices, a point and a slate, if one is there. ``of_items`` holds the
    facts of the whole catalogue; ``settled`` says where the search was the last word.
    """
    k = chosen.shape[1]
    for user in range(first, last):
        start = offsets[user]
        n, of_rules, of_factors = offsets[user + 1] - start, 0, 0
        for item in items[start : start + n]:
            of_rules += of_items.rule_starts[item + 1] - of_items.rule_starts[item]
            of_factors += of_items.starts[item + 1] - of_items.starts[item]
        rows = Rows(
            gain[start : start + n], np.empty(n, np.int64), np.zeros(n + 1, np.int64),
            np.empty(of_rules, np.int32), np.empty(of_rules), np.zeros(n + 1, np.int64),
            np.empty(of_factors, np.int32), np.empty(of_factors), np.empty(n), least[user], most[user],
            of_items.curvature, of_items.bars, of_items.lists, of_items.first, of_items.sums,
        )  # fmt: skip
        a, b = 0, 0
        for i in range(n):
            item = items[start + i]
            rows.kind[i], rows.norms[i] = of_items.kind[item], of_items.norms[item]
            for p in range(of_items.rule_starts[item], of_items.rule_starts[item + 1]):
                rows.rules[a], rows.amounts[a] = of_items.rules[p], of_items.amounts[p]
                a += 1
            for p in range(of_items.starts[item], of_items.starts[item + 1]):
                rows.columns[b], rows.values[b] = of_items.columns[p], of_items.values[p]
                b += 1
            rows.rule_starts[i + 1], rows.starts[i + 1] = a, b
        scratch = Scratch(
            np.zeros(n, np.int8), np.zeros(n, np.intp), np.zeros(n, np.int64), np.zeros(n, np.bool_),
            np.zeros(least.shape[1]),
            np.zeros(n_factors), np.zeros(n), np.zeros(k, np.intp), np.zeros(k, np.intp),
        )  # fmt: skip
        mine = marks[start : start + n]
        known = chosen[user, 0] >= 0
        for q in range(k):
            scratch.best[q], chosen[user, q] = chosen[user, q], -1
        worth, above, done = _search(
            rows, mine, k, gap, nodes, steps, shares, scratch, prices[user], points[user], known
        )
        bound[user], settled[user] = above, done
        if worth > -np.inf:
            if of_items.curvature > 0.0:  # what is within the gap may still be better for an exchange
                active = scratch.active[: _activate(mine, scratch.active)]
                _improve(rows, mine, active, scratch, 1e-9 * abs(worth))
            objective[user] = canonical(rows, mine, scratch)
            for q in range(k):
                chosen[user, q] = scratch.best[q]
