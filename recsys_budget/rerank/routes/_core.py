"""Kernels of the direct route: a bound on all slates at given prices, and a search among those near it."""

from __future__ import annotations

import numpy as np

from recsys_budget.rerank.routes._compiled import njit

# Rounding of a sum over a slate, as a share of the largest value it could have. Rules hold to this.
ROUNDING = 1e-12


@njit
def bound_at(  # type: ignore[no-untyped-def]
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
def look_below(  # type: ignore[no-untyped-def]
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
