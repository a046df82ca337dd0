"""Exact slates under laminar quotas: bounds on how many items a slate takes from each node of a tree.

The slates of ``k`` items within the bounds are the bases of a matroid, so taking items by falling gain, each
unless some bound would then be out of reach, gives the best slate (Edmonds 1971, doi:10.1007/BF01584082). No
other slate beats it at any place of the sorted gains, so it is the best for every falling position discount
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes._compiled import COMPILED, by_blocks, njit, pick

BLOCK = 4096  # users worked on at a time, whatever the number of threads


@dataclass(frozen=True, eq=False)
class LaminarTree:
    """Quotas on nested groups of items: each slate takes ``lower`` to ``upper`` items from each node.

    Attributes:
        leaf_of_item: int32 ``(n_items,)``, the innermost node of each item; -1 for items that no slate may
            take. Inner nodes may have items of their own.
        parent: int32 ``(n_nodes,)``. Node 0 is the root, the whole slate, with parent -1; every other node
            comes after its parent.
        lower: int64 ``(n_nodes,)``.
        upper: int64 ``(n_nodes,)``. The root's bounds are both the size of the slate.

    Raises:
        SpecificationError: The arrays are no such tree.
    """

    leaf_of_item: NDArray[np.int32]
    parent: NDArray[np.int32]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("leaf_of_item", "parent", "lower", "upper"):
            dtype = np.int64 if name.endswith("er") else np.int32
            object.__setattr__(self, name, np.array(getattr(self, name), dtype))
        n = len(self.parent)
        if not len(self.lower) == len(self.upper) == n >= 1:
            raise SpecificationError(
                f"{n} parents, {len(self.lower)} lower and {len(self.upper)} upper bounds: a tree has one of "
                "each per node, and at least the root"
            )
        if self.parent[0] != -1 or (self.parent[1:] < 0).any() or (self.parent >= np.arange(n)).any():
            raise SpecificationError(
                "node 0 must be the root, with parent -1, and every other node must come after its parent"
            )
        if self.lower[0] != self.upper[0] or self.upper[0] < 1:
            raise SpecificationError(
                f"the root holds {self.lower[0]} to {self.upper[0]} items; both must be the size of the "
                "slate, at least 1"
            )
        if len(self.leaf_of_item) and not (-1 <= self.leaf_of_item.min() <= self.leaf_of_item.max() < n):
            raise SpecificationError(f"an item belongs to a node outside 0..{n - 1}; use -1 for none")

    @classmethod
    def partition(
        cls,
        category_of_item: NDArray[np.integer],
        lower: NDArray[np.integer],
        upper: NDArray[np.integer],
        k: int,
    ) -> LaminarTree:
        """The usual case: a root of ``k`` items and each item in one of ``len(lower)`` categories (or -1)."""
        category = np.asarray(category_of_item, np.int32)
        return cls(
            leaf_of_item=np.where(category < 0, -1, category + 1).astype(np.int32),
            parent=np.concatenate([[-1], np.zeros(len(lower), np.int32)]).astype(np.int32),
            lower=np.concatenate([[k], lower]).astype(np.int64),
            upper=np.concatenate([[k], upper]).astype(np.int64),
        )

    @property
    def k(self) -> int:
        """Items a slate."""
        return int(self.upper[0])

    def equals(self, other: LaminarTree) -> bool:
        """Whether another tree asks the same."""
        names = ("leaf_of_item", "parent", "lower", "upper")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    @cached_property
    def reserved(self) -> NDArray[np.int64]:
        """Places of each node that its children's lower bounds take in an empty slate, ``(n_nodes,)``."""
        reserved = np.zeros(len(self.parent), np.int64)
        for v in range(len(self.parent) - 1, 0, -1):
            reserved[self.parent[v]] += max(self.lower[v], reserved[v])
        return reserved

    @cached_property
    def contradictory(self) -> bool:
        """Whether the bounds exclude every slate, whatever the candidates."""
        return bool((np.maximum(self.lower, self.reserved) > self.upper).any())

    @cached_property
    def paths(self) -> NDArray[np.intp]:
        """Each node and the nodes above it, ``(n_nodes, depth)``, filled up with ``n_nodes``."""
        paths: list[list[int]] = []
        for v, up in enumerate(self.parent):
            paths.append([v, *(paths[up] if v else [])])
        depth = max(map(len, paths))
        return np.array([path + [len(paths)] * (depth - len(path)) for path in paths], np.intp)


@dataclass(frozen=True, eq=False)
class LaminarSlates:
    """The best slate of each user.

    Attributes:
        chosen: int32 ``(n_users, k)``, rows relative to the user's offset, ascending: by falling gain. -1
            throughout for a user without a slate.
        feasible: bool ``(n_users,)``, whether the user has a slate within the quotas.
        objective: float64 ``(n_users,)``, discounted gain of the slate, the greatest possible; 0 without one.
    """

    chosen: NDArray[np.int32]
    feasible: NDArray[np.bool_]
    objective: NDArray[np.float64]


def solve_laminar(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    *,
    fixed: NDArray[np.int8] | None = None,
    discount: NDArray[np.float64] | None = None,
    threads: int | None = None,
) -> LaminarSlates:
    """The best slate of every user.

    Args:
        offsets: int64 ``(n_users + 1,)``, where each user's rows start and end.
        gains: ``(n_rows,)``, finite and falling within each user, which is not checked.
        items: ``(n_rows,)``, position of each candidate in the catalogue.
        tree: The quotas.
        fixed: int8 ``(n_rows,)``: 1 for a row that must be in its slate, -1 for one that must not, else 0.
        discount: ``(k,)``, weight of each place of the slate, at least 0 and not rising; None counts all
            alike.
        threads: Most threads at once; None takes one a core. Answers do not depend on it.

    Raises:
        SpecificationError: Weights of places that are no such weights.
    """
    n_users, k = len(offsets) - 1, tree.k
    chosen = np.full((n_users, k), -1, np.int32)
    feasible = np.zeros(n_users, np.bool_)
    objective = np.zeros(n_users)
    weights = np.ones(k) if discount is None else place_weights(discount, k)
    if not tree.contradictory:
        marks = np.zeros(0, np.int8) if fixed is None else np.ascontiguousarray(fixed, np.int8)
        kernel = pick(_greedy, greedy_numpy, len(items)) if COMPILED else greedy_numpy
        greedy = _greedy_compiled if kernel is _greedy else kernel

        def work(first: int, last: int) -> None:
            greedy(
                offsets, gains, items, tree, marks, weights, chosen, feasible, objective, range(first, last)
            )

        by_blocks(work, n_users, block=BLOCK, threads=threads)
    return LaminarSlates(chosen, feasible, objective)


def place_weights(discount: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The weights of ``k`` places as float64.

    Raises:
        SpecificationError: They are not ``k`` finite numbers, at least 0 and not rising.
    """
    weights = np.array(discount, np.float64)
    if weights.shape != (k,) or not (
        np.isfinite(weights).all() and (np.diff(weights, append=0.0) <= 0).all()
    ):
        raise SpecificationError(
            f"the {k} places of a slate have weights {weights.tolist()}; give {k} finite numbers, each at "
            "least 0 and at most the one before"
        )
    return weights


def bound_prices(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    *,
    fixed: NDArray[np.int8] | None = None,
    discount: NDArray[np.float64] | None = None,
    threads: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each bound costs: mean objective gained over users with a slate when it alone is one item looser.

    Each figure is the difference of two exact optima. Bounds that no slate can feel are not tried. Arguments
    are those of :func:`solve_laminar`.

    Returns:
        Prices of ``lower`` and of ``upper``, each ``(n_nodes,)`` and at least 0; 0 at the root, whose bounds
        are the size of the slate.
    """

    def solve(quotas: LaminarTree) -> LaminarSlates:
        return solve_laminar(offsets, gains, items, quotas, fixed=fixed, discount=discount, threads=threads)

    base = solve(tree)
    return loosened(tree, base.objective, base.feasible, lambda quotas: solve(quotas).objective)


def loosened(
    tree: LaminarTree,
    base: NDArray[np.float64],
    had: NDArray[np.bool_],
    solve: Callable[[LaminarTree], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean objective gained over some users when a bound alone is one item looser.

    Args:
        tree: The quotas.
        base: Objectives under them, ``(n_users,)``.
        had: Which users count, ``(n_users,)``.
        solve: Objectives under other quotas.

    Returns:
        As :func:`bound_prices`; all 0 where no user counts.
    """
    prices = np.zeros((2, len(tree.parent)))
    for side, v, quotas in looser(tree) if had.any() else ():
        gained = solve(quotas)[had] - base[had]
        prices[side, v] = max(0.0, float(gained.mean()))  # two sums round apart, two searches stop apart
    return prices[0], prices[1]


def looser(tree: LaminarTree) -> Iterator[tuple[int, int, LaminarTree]]:
    """Each bound that a slate can feel, as side (0 for lower) and node, and the quotas with it one looser."""
    for v in range(1, len(tree.parent)):
        step = (np.arange(len(tree.parent)) == v).astype(np.int64)
        if tree.lower[v] > 0:
            yield 0, v, replace(tree, lower=tree.lower - step)
        if tree.upper[v] < tree.upper[tree.parent[v]]:
            yield 1, v, replace(tree, upper=tree.upper + step)


def _greedy_compiled(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    marks: NDArray[np.int8],
    weights: NDArray[np.float64],
    chosen: NDArray[np.int32],
    feasible: NDArray[np.bool_],
    objective: NDArray[np.float64],
    users: range,
) -> None:
    facts = (tree.leaf_of_item, tree.parent, tree.lower, tree.upper, tree.reserved)
    _greedy(
        offsets, gains, items, *facts, marks, weights, chosen, feasible, objective, users.start, users.stop
    )


@njit
def _greedy(  # type: ignore[no-untyped-def]
    offsets, gains, items, leaf_of_item, parent, lower, upper, reserved, marks, weights,
    chosen, feasible, objective, first, last,
):  # fmt: skip
    """Greedy selection, user by user.

    ``taken[v]`` counts the places of node v that are taken by chosen items or reserved for what its children
    still need. A new item takes a place at its leaf and at each node above, up to the first where it fills a
    reserved one; it is refused where it would need a place beyond ``upper``. Every bound stays in reach, so
    a user has a slate if and only if k items are found.
    """
    k = chosen.shape[1]
    taken = np.empty_like(reserved)
    for user in range(first, last):
        for node in range(len(reserved)):  # copied so, numba compiles a second less
            taken[node] = reserved[node]
        start, stop = offsets[user], offsets[user + 1]
        found = 0
        possible = True
        for wanted in range(1, -1, -1):  # pinned items, then the others
            if wanted == 1 and len(marks) == 0:
                continue
            for row in range(start, stop):
                if found == k and wanted == 0:
                    break
                if len(marks) and marks[row] != wanted:
                    continue
                leaf = leaf_of_item[items[row]]
                node = leaf
                while node >= 0 and taken[node] >= lower[node]:
                    node = -1 if taken[node] >= upper[node] else parent[node]
                if node < 0:
                    if wanted == 1:
                        possible = False
                    continue
                above = leaf
                while above != node:
                    taken[above] += 1
                    above = parent[above]
                taken[node] += 1
                place = found  # rows stay sorted
                while place > 0 and chosen[user, place - 1] > row - start:
                    chosen[user, place] = chosen[user, place - 1]
                    place -= 1
                chosen[user, place] = row - start
                found += 1
        if found == k and possible:
            feasible[user] = True
            total = 0.0
            for place in range(k):
                total += weights[place] * gains[start + chosen[user, place]]
            objective[user] = total
        else:
            chosen[user, :] = -1


def greedy_numpy(
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    tree: LaminarTree,
    marks: NDArray[np.int8],
    weights: NDArray[np.float64],
    chosen: NDArray[np.int32],
    feasible: NDArray[np.bool_],
    objective: NDArray[np.float64],
    users: range,
) -> None:
    """The same selection for many users at once, one rank after the other."""
    k, n_nodes = tree.k, len(tree.parent)
    start, stop = offsets[users.start : users.stop], offsets[users.start + 1 : users.stop + 1]
    slates = chosen[users.start : users.stop]
    # A node beyond the root stands for the empty ends of paths; nothing ever stops there.
    lower, upper = np.append(tree.lower, np.iinfo(np.int64).max), np.append(tree.upper, 0)
    paths = np.vstack([tree.paths, np.full(tree.paths.shape[1], n_nodes)])  # the last is of leaf -1
    lowers, uppers = lower[paths], upper[paths]
    taken = np.tile(np.append(tree.reserved, 0), (len(users), 1))
    flat = taken.ravel()
    found = np.zeros(len(users), np.intp)
    possible = np.ones(len(users), np.bool_)
    for wanted in (1, 0) if len(marks) else (0,):
        active = np.flatnonzero(found < k) if wanted == 0 else np.arange(len(users))
        rank = 0
        while len(active := active[start[active] + rank < stop[active]]):
            rows = start[active] + rank
            fits = np.ones(len(active), np.bool_) if not len(marks) else marks[rows] == wanted
            leaf = tree.leaf_of_item[items[rows]]
            at = active[:, None] * (n_nodes + 1) + paths[leaf]
            places = flat[at]
            inside = np.logical_and.accumulate(places >= lowers[leaf], axis=1)  # below the reserved place
            room = (leaf >= 0) & ~((places >= uppers[leaf]) & inside).any(axis=1)
            if wanted == 1:
                possible[active[fits & ~room]] = False
            takes = fits & room
            takers = active[takes]
            inside = inside[takes]
            grows = np.ones_like(inside)
            grows[:, 1:] = inside[:, :-1]  # up to and with the node of the reserved place
            flat[at[takes][grows]] += 1
            slates[takers, found[takers]] = rank
            found[takers] += 1
            rank += 1
            if wanted == 0:
                active = active[found[active] < k]
    done = (found == k) & possible
    slates[~done] = -1
    if len(marks):
        slates.sort(axis=1)
    feasible[users.start : users.stop] = done
    at = start[done]
    total = np.zeros(len(at))
    for place in range(k):
        total += weights[place] * gains[at + slates[done, place]].astype(np.float64)
    objective[users.start : users.stop][done] = total
