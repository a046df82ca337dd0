"""The kernels of the oracle without numba: the same answers, for many users at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys_budget.rerank.routes.laminar import LaminarTree, greedy_numpy


def best(
    users: NDArray[np.int64],
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    leaf_of_item: NDArray[np.int32],
    parent: NDArray[np.int32],
    lower: NDArray[np.int64],
    upper: NDArray[np.int64],
    marks: NDArray[np.int8],
    discount: NDArray[np.float64],
    prices: NDArray[np.float64],
    lowest: NDArray[np.float64],
    chosen: NDArray[np.int32],
    chosen_items: NDArray[np.int32],
    gain_of: NDArray[np.float64],
    margin: NDArray[np.float64],
) -> None:
    """Greedy selection from the rows sorted by net gain; it learns no margin."""
    k = chosen.shape[1]
    owner, rank, rows = _rows(users, offsets)
    net = gains[rows].astype(np.float64) - prices[items[rows]]
    order = np.lexsort((rank, -net, owner))  # rows of the block by user and falling net gain
    sizes = offsets[users + 1] - offsets[users]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = np.full((len(users), k), -1, np.int32)
    found, total = np.zeros(len(users), np.bool_), np.zeros(len(users))
    greedy_numpy(
        starts,
        net[order],
        items[rows[order]],
        LaminarTree(leaf_of_item, parent, lower, upper),
        marks[rows[order]] if len(marks) else marks,
        np.ones(k),
        places,
        found,
        total,
        range(len(users)),
    )
    slates = order[starts[:-1, None] + places]  # positions in the block's rows
    if not len(discount):
        slates.sort(axis=1)
    chosen[users], chosen_items[users] = rank[slates], items[rows[slates]]
    total = np.zeros(len(users))
    for place in range(k):
        weight = discount[place] if len(discount) else 1.0
        total += gains[rows[slates[:, place]]].astype(np.float64) * weight
    gain_of[users] = total
    margin[users] = 0.0


def tally(
    users: NDArray[np.int64],
    chosen_items: NDArray[np.int32],
    gain_of: NDArray[np.float64],
    discount: NDArray[np.float64],
    prices: NDArray[np.float64],
    value: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """Net gain of each slate, and how often each item is chosen."""
    cost = np.zeros(len(users))
    for place in range(chosen_items.shape[1]):
        at = chosen_items[users, place]
        cost += prices[at] * (discount[place] if len(discount) else 1.0)
        counts[place if len(discount) else 0] += np.bincount(at, minlength=counts.shape[1])
    value[:] = gain_of[users] - cost


def exchanges(
    users: NDArray[np.int64],
    offsets: NDArray[np.int64],
    gains: NDArray[np.floating],
    items: NDArray[np.integer],
    leaf_of_item: NDArray[np.int32],
    parent: NDArray[np.int32],
    lower: NDArray[np.int64],
    upper: NDArray[np.int64],
    marks: NDArray[np.int8],
    discount: NDArray[np.float64],
    prices: NDArray[np.float64],
    lowest: NDArray[np.float64],
    chosen: NDArray[np.int32],
    numbers: NDArray[np.int64],
    within: float,
    share: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Exchanges within a cost."""
    n, k = len(users), chosen.shape[1]
    n_nodes = len(parent)
    slates = np.sort(chosen[users].astype(np.int64), axis=1)
    slots = offsets[users, None] + slates
    net = gains[slots].astype(np.float64) - prices[items[slots]]
    leaf = leaf_of_item[items[slots]].astype(np.intp)
    pinned = marks[slots] > 0 if len(marks) else np.zeros(slots.shape, np.bool_)
    each = np.arange(n)[:, None]
    count = np.zeros((n, n_nodes + 1), np.int64)
    above = leaf
    up_of = np.append(parent, n_nodes).astype(np.intp)  # the last node stands for "beyond the root"
    up_of[0] = n_nodes
    while (above < n_nodes).any():
        np.add.at(count, (np.broadcast_to(each, above.shape), above), 1)
        above = up_of[above]
    may_leave = count[:, :n_nodes] > lower

    # Slots by falling badness: rank 0 is the worst, rank k stands for none.
    by_rank = np.lexsort((-slates, net), axis=1)
    badness = np.empty_like(by_rank)
    np.put_along_axis(badness, by_rank, np.broadcast_to(np.arange(k), by_rank.shape), axis=1)
    weakest = np.full((n, n_nodes), k)
    np.minimum.at(weakest, (np.broadcast_to(each, leaf.shape), leaf), np.where(pinned, k, badness))
    for v in range(n_nodes - 1, 0, -1):
        up = parent[v]
        weakest[:, up] = np.minimum(weakest[:, up], np.where(may_leave[:, v], weakest[:, v], k))
    entry = weakest.copy()
    full = count[:, :n_nodes] >= upper
    for v in range(1, n_nodes):
        entry[:, v] = np.where(full[:, v], entry[:, v], np.minimum(entry[:, v], entry[:, parent[v]]))

    owner, rank, rows = _rows(users, offsets)
    v = leaf_of_item[items[rows]].astype(np.intp)
    offer = gains[rows].astype(np.float64) - prices[items[rows]]
    by_rank = np.hstack([by_rank, np.zeros((n, 1), np.intp)])
    worst = entry[owner, v]
    fits = (v >= 0) & (worst < k)
    fits &= net[owner, by_rank[owner, worst]] - offer <= within
    if len(marks):
        fits &= marks[rows] >= 0
    first = np.flatnonzero(rank == 0)  # every user here has rows
    fits[(first[:, None] + slates).ravel()] = False
    owner, rank, rows, v, offer = owner[fits], rank[fits], rows[fits], v[fits], offer[fits]

    reached = np.zeros((len(rows), n_nodes + 1), np.bool_)
    climbing = np.arange(len(rows))
    node = v.copy()
    while len(climbing):
        reached[climbing, node[climbing]] = True
        climbing = climbing[(node[climbing] > 0) & ~full[owner[climbing], node[climbing]]]
        node[climbing] = parent[node[climbing]]
    cost = net[owner] - offer[:, None]
    at = leaf[owner]
    candidate = np.arange(len(rows))[:, None]
    swaps = np.zeros(at.shape, np.bool_)
    leaving = ~pinned[owner] & (cost <= within)
    while leaving.any():
        swaps |= leaving & reached[candidate, at]
        leaving &= ~swaps & (at < n_nodes)
        leaving &= np.append(may_leave, np.zeros((n, 1), np.bool_), axis=1)[owner[:, None], at]
        at = np.where(leaving, up_of[at], at)
    drawn = (numbers[users][owner] * 613 + rank)[:, None] * 7919 + slates[owner] * 104729
    swaps &= drawn % 1009 * 1000 < share * 1009
    c, slot = np.nonzero(swaps)
    cheapest = slot == by_rank[owner[c], entry[owner[c], v[c]]]
    return users[owner[c]], slates[owner[c], slot], rank[c], cost[c, slot], cheapest


def _rows(
    users: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Position of the user, rank and absolute number of every row of these users."""
    sizes = offsets[users + 1] - offsets[users]
    owner = np.repeat(np.arange(len(users)), sizes)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return owner, rank, offsets[users][owner] + rank
