"""Fair exposure of two groups of items within each user's rankings: a mixture of at most two rankings.

Singh and Joachims (2018, arXiv:1802.07281) choose a doubly stochastic matrix, the chance of each item at each
place, so that the groups' average exposures agree. Average exposure is linear in that matrix, so one price on
the rule is enough: at any price the best matrix is a ranking by adjusted gain, and at the best price two
rankings tie, one on either side of the rule, whose mixture meets it exactly. No matrix does better, and
nothing needs to be decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes._compiled import by_blocks, njit, over_users
from recsys_budget.rerank.routes.laminar import LaminarTree

BLOCK = 256  # users worked on at a time, whatever the number of threads
# Rounding of a sum over places, as a share of the largest value it could have.
ROUNDING = 1e-12
_MOST_PRICES = 200


@dataclass(frozen=True, eq=False)
class ExposureRankings:
    """Two rankings a user and the chance of the first; in expectation they meet the rule.

    Attributes:
        rankings: int32 ``(n_users, 2, k)``, rows relative to the user's offset, the first place first. Both
            are the same where one ranking is enough; -1 throughout for a user without an answer.
        probability: float64 ``(n_users,)``, chance with which to show the first ranking, else the second;
            nan without an answer. Nothing is drawn here, so answers repeat.
        feasible: bool ``(n_users,)``, whether any mixture of rankings meets the rule and the quotas.
        objective: float64 ``(n_users,)``, expected discounted gain; nan without an answer.
        bound: float64 ``(n_users,)``, at least the expected discounted gain of every mixture of rankings
            that meets the rule, rounding included; nan without an answer.
        exposure: float64 ``(n_users, 2)``, expected average exposure of the items of each group, counted
            from the rankings; nan where the user has no candidate of that group, or no answer.
        violation: float64 ``(n_users,)``, by how much the first group's average exposure lies outside
            ``ratio`` times the second's; 0 where the rule does not apply, nan without an answer.
        price: float64 ``(n_users,)``, what one unit of the first group's average exposure costs in expected
            gain; above 0 where the floor binds, below where the ceiling does.
        solves: int64 ``(n_users,)``, rankings tried.
    """

    rankings: NDArray[np.int32]
    probability: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    objective: NDArray[np.float64]
    bound: NDArray[np.float64]
    exposure: NDArray[np.float64]
    violation: NDArray[np.float64]
    price: NDArray[np.float64]
    solves: NDArray[np.int64]


def solve_exposure(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    group_of_item: NDArray[np.integer],
    discount: NDArray[np.float64],
    *,
    ratio: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
    threads: int | None = None,
) -> ExposureRankings:
    """The best mixture of rankings of every user in which two groups are exposed alike.

    An item at place t has exposure ``discount[t]``, and an item that is not shown has none. A group's average
    is over the user's candidates that belong to it and to a leaf of the tree. The rule asks

        ratio[0] * average of group 1  <=  average of group 0  <=  ratio[1] * average of group 1.

    The bounds (1, 1) are demographic parity; for exposure in proportion to merit, pass each user's quotient
    of the groups' mean merits. The rule does not apply to a user with no candidate of one of the groups.

    Args:
        offsets: int64 ``(n_users + 1,)``, where each user's rows start and end.
        gains: ``(n_rows,)``, finite and falling within each user, which is not checked.
        items: ``(n_rows,)``, position of each candidate in the catalogue.
        tree: Quotas that each ranking keeps, and its length; a lone root for no quotas.
        group_of_item: ``(n_items,)``, 0 or 1, or -1 for items in neither group.
        discount: float64 ``(k,)``, exposure of each place, at least 0 and not rising.
        ratio: Lower and upper bound, each a number or ``(n_users,)``; at least 0, the upper may be inf.
        threads: Most threads at once; None takes one a core. Answers do not depend on it.

    Raises:
        SpecificationError: An argument is not as described.
    """
    n_users, k, n_items = len(offsets) - 1, tree.k, len(tree.leaf_of_item)
    places = np.ascontiguousarray(discount, np.float64)
    if places.shape != (k,) or not (np.isfinite(places).all() and (np.diff(places, append=0.0) <= 0.0).all()):
        raise SpecificationError(
            f"discount must hold {k} finite numbers, one a place, that do not rise and are at least 0"
        )
    least, most = (np.array(np.broadcast_to(bound, (n_users,)), np.float64) for bound in ratio)
    if not ((least >= 0.0) & (least <= most) & (least < np.inf)).all():
        raise SpecificationError(
            f"ratio={ratio!r}; the lower bound must be finite, at least 0 and no larger than the upper"
        )
    group = np.ascontiguousarray(group_of_item, np.int64)
    if group.shape != (n_items,) or not np.isin(group, (-1, 0, 1)).all():
        raise SpecificationError(f"group_of_item must hold 0, 1 or -1 for each of {n_items} items")
    rankings = np.full((n_users, 2, k), -1, np.int32)
    # Columns: probability, objective, bound, the two exposures, violation, price.
    figures = np.full((n_users, 7), np.nan)
    figures[:, 6] = 0.0
    solves = np.zeros(n_users, np.int64)
    rows = np.ascontiguousarray(items, np.intp)
    gain = np.ascontiguousarray(gains, np.float64)

    def work(first: int, last: int) -> None:
        over_users(
            _solve, first, last, len(rows), offsets, gain, rows, group, least, most, places,
            tree.leaf_of_item, tree.parent, tree.lower, tree.upper, tree.reserved, rankings, figures, solves,
        )  # fmt: skip

    if not tree.contradictory:
        by_blocks(work, n_users, block=BLOCK, threads=threads)
    return ExposureRankings(
        rankings=rankings,
        probability=figures[:, 0],
        feasible=rankings[:, 0, 0] >= 0,
        objective=figures[:, 1],
        bound=figures[:, 2],
        exposure=figures[:, 3:5],
        violation=figures[:, 5],
        price=figures[:, 6],
        solves=solves,
    )


@njit
def _rank(  # type: ignore[no-untyped-def]
    price, gain, share, group, leaf, starts, queue, discount, parent, lower, upper, reserved, taken, ranking
):
    """Best ranking for ``gain + price * share[group]``, or for the share alone at an infinite price.

    The rows of a group keep their order, so three sorted queues are merged; ties take the earlier row. Each
    row is taken unless the quotas would be out of reach, as in the laminar route. Returns the discounted gain
    and share, and the length reached.
    """
    taken[:] = reserved
    front = starts[:-1].copy()
    value, level, place = 0.0, 0.0, 0
    while place < len(ranking):
        best, source = -np.inf, -1
        for g in range(3):
            if front[g] < starts[g + 1]:
                row = queue[front[g]]
                weight = share[g] if price == np.inf else gain[row] + price * share[g]
                if weight > best or (weight == best and row < queue[front[source]]):
                    best, source = weight, g
        if source < 0:
            break
        row = queue[front[source]]
        front[source] += 1
        node = leaf[row]
        while node >= 0 and taken[node] >= lower[node]:
            node = -1 if taken[node] >= upper[node] else parent[node]
        if node < 0:
            continue
        above = leaf[row]
        while above != node:
            taken[above] += 1
            above = parent[above]
        taken[node] += 1
        ranking[place] = row
        value += discount[place] * gain[row]
        level += discount[place] * share[source]
        place += 1
    return value, level, place


@njit
def _solve(  # type: ignore[no-untyped-def]
    first, last, offsets, gains, items, group_of_item, least, most, discount, leaf_of_item, parent, lower,
    upper, reserved, rankings, figures, solves,
):  # fmt: skip
    """Users ``first <= u < last``: a cutting-plane search for the price at which two rankings tie."""
    k = len(discount)
    taken = np.empty_like(reserved)
    low, high, third = np.empty(k, np.intp), np.empty(k, np.intp), np.empty(k, np.intp)
    for user in range(first, last):
        start, n = offsets[user], offsets[user + 1] - offsets[user]
        gain, group, leaf = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int64)
        members = np.zeros(3, np.int64)  # of groups 0 and 1, and of neither
        for i in range(n):
            item = items[start + i]
            gain[i], leaf[i] = gains[start + i], leaf_of_item[item]
            group[i] = group_of_item[item] if group_of_item[item] >= 0 else 2
            if leaf[i] >= 0:
                members[group[i]] += 1
        starts, share = np.zeros(4, np.int64), np.zeros(3)
        for g in range(3):
            starts[g + 1] = starts[g] + members[g]
        queue, at = np.empty(starts[3], np.intp), starts[:-1].copy()
        for i in range(n):
            if leaf[i] >= 0:
                queue[at[group[i]]] = i
                at[group[i]] += 1
        facts = (gain, share, group, leaf, starts, queue, discount, parent, lower, upper, reserved, taken)
        value, level, place = _rank(0.0, *facts, low)
        solves[user] = 1
        if place < k:
            continue
        high[:] = low
        sizes = np.maximum(members, 1)
        shown = np.zeros(3)
        for q in range(k):
            shown[group[low[q]]] += discount[q] / sizes[group[low[q]]]
        chance, bound, price, sign = 1.0, value, 0.0, 0.0
        # A share of 0 or more meets the side of the rule that the best ranking breaks.
        if members[0] > 0 and members[1] > 0:
            if shown[0] < least[user] * shown[1]:
                sign, bar = 1.0, least[user]
            elif shown[0] > most[user] * shown[1]:
                sign, bar = -1.0, most[user]
        if sign != 0.0:
            share[0], share[1] = sign / sizes[0], -sign * bar / sizes[1]
            level = sign * (shown[0] - bar * shown[1])
            best, above, place = _rank(np.inf, *facts, high)
            solves[user] = 2
            unit = (1.0 / sizes[0] + bar / sizes[1]) * discount[0]
            if above < -ROUNDING * k * unit:
                continue
            largest = np.abs(gain).max()
            while True:
                slope = above - level
                if slope <= 0.0:
                    break
                # Where the two tie; a ranking that beats them there takes the place of one.
                price = max(0.0, (value - best) / slope)
                reached, crossed, place = _rank(price, *facts, third)
                solves[user] += 1
                margin = ROUNDING * k * (discount[0] * largest + price * unit)
                tied, reached_there = value + price * level, reached + price * crossed
                bound = max(tied, reached_there) + margin
                if reached_there <= tied + margin or solves[user] >= _MOST_PRICES:
                    break
                if crossed < 0.0:
                    value, level, low[:] = reached, crossed, third
                else:
                    best, above, high[:] = reached, crossed, third
            chance = min(1.0, max(0.0, above / slope)) if slope > 0.0 else 0.0
        # Everything reported is counted again from what is emitted.
        shown[:] = 0.0
        objective = 0.0
        for side in range(2):
            weight = chance if side == 0 else 1.0 - chance
            for q in range(k):
                row = low[q] if side == 0 else high[q]
                rankings[user, side, q] = row
                objective += weight * discount[q] * gain[row]
                shown[group[row]] += weight * discount[q] / sizes[group[row]]
        outside = 0.0
        if members[0] > 0 and members[1] > 0:
            outside = max(0.0, least[user] * shown[1] - shown[0])
            if most[user] < np.inf:
                outside = max(outside, shown[0] - most[user] * shown[1])
        figures[user, 0], figures[user, 1], figures[user, 2] = chance, objective, max(objective, bound)
        for g in range(2):
            figures[user, 3 + g] = shown[g] if members[g] > 0 else np.nan
        figures[user, 5], figures[user, 6] = outside, sign * price
