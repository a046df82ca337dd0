"""Compiled kernels of the oracle: slates improved by exchanges of one item for another."""

from __future__ import annotations

import numpy as np

from recsys_budget.rerank.routes._compiled import njit

AHEAD = 8  # rows looked at after the last that could enter, to know how far prices may move


@njit
def _worse(net, row, a, b):  # type: ignore[no-untyped-def]
    """Whether slot a holds a lower net gain than slot b, or as low a one in a later row."""
    return net[a] < net[b] or (net[a] == net[b] and row[a] > row[b])


@njit
def _entry(  # type: ignore[no-untyped-def]
    parent, lower, upper, count, leaf, net, row, pinned, weakest, entry
):
    """For each node, the slot that an item of that node would replace, or -1.

    An item may replace another if the nodes that hold the other alone stay at or above their lower bounds,
    and those that hold the new one alone at or below their upper bounds. ``weakest[v]`` is the slot with the
    lowest net gain below v that may leave v; ``entry[v]`` is the lowest on the way up from v, as far as the
    first full node.
    """
    weakest[:] = -1
    for slot in range(len(leaf)):
        v = leaf[slot]
        if not pinned[slot] and (weakest[v] < 0 or _worse(net, row, slot, weakest[v])):
            weakest[v] = slot
    for v in range(len(parent) - 1, 0, -1):
        slot, up = weakest[v], parent[v]
        if slot >= 0 and count[v] > lower[v] and (weakest[up] < 0 or _worse(net, row, slot, weakest[up])):
            weakest[up] = slot
    entry[0] = weakest[0]
    for v in range(1, len(parent)):
        slot = weakest[v]
        if count[v] < upper[v]:
            above = entry[parent[v]]
            if slot < 0 or (above >= 0 and _worse(net, row, above, slot)):
                slot = above
        entry[v] = slot


@njit
def _stop(entry, net, lowest):  # type: ignore[no-untyped-def]
    """A gain so low that no row with it can enter; a little lower than it need be, for rounding."""
    stop = np.inf
    for v in range(len(entry)):
        if entry[v] >= 0 and lowest[v] < np.inf:
            low = net[entry[v]] + lowest[v]
            low -= 1e-15 * (abs(net[entry[v]]) + abs(lowest[v]))
            stop = min(stop, low)
    return stop


@njit
def _load(  # type: ignore[no-untyped-def]
    start, slate, items, gains, prices, leaf_of_item, parent, marks, row, net, leaf, pinned, count
):
    """Put a slate into slots, by rising row, and count it at each node."""
    count[:] = 0
    for place in range(len(slate)):
        slot = place
        while slot > 0 and row[slot - 1] > slate[place]:
            row[slot] = row[slot - 1]
            slot -= 1
        row[slot] = slate[place]
    for slot in range(len(slate)):
        at = start + row[slot]
        net[slot] = gains[at] - prices[items[at]]
        leaf[slot] = leaf_of_item[items[at]]
        pinned[slot] = len(marks) > 0 and marks[at] > 0
        v = leaf[slot]
        while v >= 0:
            count[v] += 1
            v = parent[v]


@njit
def best(  # type: ignore[no-untyped-def]
    users, offsets, gains, items, leaf_of_item, parent, lower, upper, marks, discount, prices, lowest,
    chosen, chosen_items, gain_of, margin,
):  # fmt: skip
    """Improve each slate by exchanges until a scan of the other rows, by falling gain, can find none.

    A slate is the best among its own rows. Offering it another row, in exchange for the worst that the row
    may replace, makes it the best among the rows so far, so one scan in any order finds the best of all.

    ``margin`` is a lower bound on the cost of every exchange from the slate found. What a refused row would
    have to beat only rises while the slate improves: it is the weakest row of the best circuit through it.
    """
    k, n_nodes = chosen.shape[1], len(parent)
    row, before, leaf = np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k, np.int64)
    net, pinned = np.empty(k), np.empty(k, np.bool_)
    count, weakest = np.empty(n_nodes, np.int64), np.empty(n_nodes, np.int64)
    entry = np.empty(n_nodes, np.int64)
    for t in range(len(users)):
        user = users[t]
        start, size = offsets[user], offsets[user + 1] - offsets[user]
        _load(
            start,
            chosen[user],
            items,
            gains,
            prices,
            leaf_of_item,
            parent,
            marks,
            row,
            net,
            leaf,
            pinned,
            count,
        )
        for slot in range(k):
            before[slot] = row[slot]
        _entry(parent, lower, upper, count, leaf, net, row, pinned, weakest, entry)
        stop = _stop(entry, net, lowest)
        known, further = 0, 0
        least = np.inf
        for j in range(size):
            if known < k and before[known] == j:
                known += 1
                continue
            gain = np.float64(gains[start + j])
            if gain <= stop:
                if further == AHEAD:
                    least = min(least, stop - gain)
                    break
                further += 1
            item = items[start + j]
            v = leaf_of_item[item]
            if v < 0 or (len(marks) > 0 and marks[start + j] < 0):
                continue
            slot = entry[v]
            if slot < 0:
                continue
            offer = gain - prices[item]
            if offer < net[slot] or (offer == net[slot] and j > row[slot]):
                least = min(least, net[slot] - offer)
                continue
            out_leaf, out_net = leaf[slot], net[slot]
            up = out_leaf
            while up >= 0:
                count[up] -= 1
                up = parent[up]
            up = v
            while up >= 0:
                count[up] += 1
                up = parent[up]
            row[slot], net[slot], leaf[slot] = j, offer, v
            _entry(parent, lower, upper, count, leaf, net, row, pinned, weakest, entry)
            stop = _stop(entry, net, lowest)
            least = min(least, net[entry[out_leaf]] - out_net)
        # By rising row, or by falling net gain where places are discounted.
        for i in range(1, k):
            this_row, this_net = row[i], net[i]
            slot = i
            while slot > 0 and (
                (row[slot - 1] > this_row)
                if len(discount) == 0
                else net[slot - 1] < this_net or (net[slot - 1] == this_net and row[slot - 1] > this_row)
            ):
                row[slot], net[slot] = row[slot - 1], net[slot - 1]
                slot -= 1
            row[slot], net[slot] = this_row, this_net
        if len(discount) > 0:  # the order must not change either
            for place in range(1, k):
                least = min(least, net[place - 1] - net[place])
        margin[user] = least
        total = 0.0
        for place in range(k):
            at = start + row[place]
            chosen[user, place], chosen_items[user, place] = row[place], items[at]
            total += gains[at] * (discount[place] if len(discount) > 0 else 1.0)
        gain_of[user] = total


@njit
def tally(users, chosen_items, gain_of, discount, prices, value, counts):  # type: ignore[no-untyped-def]
    """Net gain of each slate, and how often each item is chosen."""
    for t in range(len(users)):
        user = users[t]
        cost = 0.0
        for place in range(chosen_items.shape[1]):
            item = chosen_items[user, place]
            if len(discount) == 0:
                cost += prices[item]
                counts[0, item] += 1
            else:
                cost += discount[place] * prices[item]
                counts[place, item] += 1
        value[t] = gain_of[user] - cost


@njit
def exchanges(  # type: ignore[no-untyped-def]
    users, offsets, gains, items, leaf_of_item, parent, lower, upper, marks, discount, prices, lowest,
    chosen, numbers, within, share,
):  # fmt: skip
    """Exchanges within a cost, user by user; of these a share, in thousandths, that looks random.

    Which these are follows from the user's number and the two rows, wherever the user's rows are stored.
    """
    k, n_nodes = chosen.shape[1], len(parent)
    row, leaf = np.empty(k, np.int64), np.empty(k, np.int64)
    net, pinned = np.empty(k), np.empty(k, np.bool_)
    count, weakest = np.empty(n_nodes, np.int64), np.empty(n_nodes, np.int64)
    entry = np.empty(n_nodes, np.int64)
    on_path = np.full(n_nodes, -1, np.int64)
    size_out = 2 * len(users) + k
    who, leaves = np.empty(size_out, np.int64), np.empty(size_out, np.int64)
    enters = np.empty(size_out, np.int64)
    cost, cheapest = np.empty(size_out), np.empty(size_out, np.bool_)
    n = 0
    for t in range(len(users)):
        user = users[t]
        start, size = offsets[user], offsets[user + 1] - offsets[user]
        _load(
            start,
            chosen[user],
            items,
            gains,
            prices,
            leaf_of_item,
            parent,
            marks,
            row,
            net,
            leaf,
            pinned,
            count,
        )
        _entry(parent, lower, upper, count, leaf, net, row, pinned, weakest, entry)
        stop = _stop(entry, net, lowest) - within - 1e-15 * within
        known = 0
        on_path[:] = -1
        for j in range(size):
            if known < k and row[known] == j:
                known += 1
                continue
            at = start + j
            gain = np.float64(gains[at])
            if gain < stop:
                break
            v = leaf_of_item[items[at]]
            if v < 0 or (len(marks) > 0 and marks[at] < 0):
                continue
            offer = gain - prices[items[at]]
            if entry[v] < 0 or net[entry[v]] - offer > within:
                continue
            while True:  # the nodes within which the row may replace another
                on_path[v] = j
                if v == 0 or count[v] >= upper[v]:
                    break
                v = parent[v]
            if n + k > len(who):
                who, leaves = np.append(who, who), np.append(leaves, leaves)
                enters = np.append(enters, enters)
                cost, cheapest = np.append(cost, cost), np.append(cheapest, cheapest)
            for slot in range(k):
                if pinned[slot] or net[slot] - offer > within:
                    continue
                up = leaf[slot]
                while up >= 0 and on_path[up] != j:
                    up = parent[up] if count[up] > lower[up] else -1
                if (
                    up >= 0
                    and ((numbers[user] * 613 + j) * 7919 + row[slot] * 104729) % 1009 * 1000 < share * 1009
                ):
                    who[n], leaves[n], enters[n] = user, row[slot], j
                    cost[n] = net[slot] - offer
                    cheapest[n] = slot == entry[leaf_of_item[items[at]]]
                    n += 1
    return who[:n].copy(), leaves[:n].copy(), enters[:n].copy(), cost[:n].copy(), cheapest[:n].copy()
