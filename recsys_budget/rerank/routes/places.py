"""The restricted program where places of a slate have weights: which row stands in which place.

Exchanges near the best prices, and neighbours in a slate that may as well change places, give alternatives
for a user's slate. Each row may stand where it stands in one of them.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from recsys_budget.rerank.routes.answers import BestSlates, Exchanges, row_of
from recsys_budget.rerank.routes.dual import Point
from recsys_budget.rerank.routes.master import Choice, Limits, quotas, solve
from recsys_budget.rerank.routes.rows import PopulationRows


def choose_places(
    oracle: BestSlates,
    rows: PopulationRows,
    point: Point,
    free: Exchanges,
    limits: Limits,
    *,
    everywhere: bool,
) -> Choice | None:
    """The best slates within reach, with their order; see :func:`~.master.choose`.

    Args:
        oracle: Knows the slates, ordered by net gain.
        rows: The rules.
        point: The prices at which the slates are the best, and what they add up to.
        free: The exchanges.
        limits: How to solve.
        everywhere: Let each row of everybody stand in any place.
    """
    weights, prices = oracle.discount, point.prices_of_items
    k = len(weights)
    now = oracle.slates(prices, None if everywhere else np.unique(free.user))
    owner = np.searchsorted(now.users, free.user)
    slates = now.keys
    places = np.arange(k)
    own = now.gains - prices[now.items]

    # Each exchange, with the row that enters where its net gain belongs.
    stays = slates[owner] != free.leaves[:, None]
    rest = slates[owner][stays].reshape(len(owner), k - 1)
    rest_net = own[owner][stays].reshape(len(owner), k - 1)
    net = free.gains[:, 1] - prices[free.items[:, 1]]
    # Ties go to the earlier row, as in the oracle.
    ahead = (rest_net > net[:, None]) | ((rest_net == net[:, None]) & (rest < free.enters[:, None]))
    enters_at = ahead.sum(axis=1)
    moved = np.insert(rest, 0, 0, axis=1)
    before = places < enters_at[:, None]
    moved[before] = rest[before[:, : k - 1]]
    moved[places > enters_at[:, None]] = rest[~before[:, : k - 1]]
    moved[np.arange(len(moved)), enters_at] = free.enters

    # Neighbours that change places at no more cost.
    cost = (weights[:-1] - weights[1:]) * (own[:, :-1] - own[:, 1:])
    who, place = np.nonzero(cost <= free.cost.max(initial=0.0))
    turned = slates[who]
    turned[np.arange(len(who)), place], turned[np.arange(len(who)), place + 1] = (
        slates[who, place + 1],
        slates[who, place],
    )

    options = np.vstack([slates, moved, turned])
    option_owner = np.concatenate([np.arange(len(slates)), owner, who])
    cell = (options * k + places).ravel()
    cells, first = np.unique(cell, return_index=True)
    of_cell = np.repeat(option_owner, k)[first]
    if everywhere:
        at, first = np.unique(cells // k, return_index=True)
        cells, of_cell = (at[:, None] * k + places).ravel(), np.repeat(of_cell[first], k)
    at, place = cells // k, cells % k
    inside = np.zeros(len(cells), np.bool_)
    inside[np.searchsorted(cells, (slates * k + places).ravel())] = True

    known, first = np.unique(np.concatenate([slates.ravel(), free.enters]), return_index=True)
    which = np.searchsorted(known, at)
    items = np.concatenate([now.items.ravel(), free.items[:, 1]])[first][which]
    gains = np.concatenate([now.gains.ravel(), free.gains[:, 1]])[first][which] * weights[place]
    matrix, low, high = quotas(oracle.tree, now.items, items, of_cell, inside)
    one = np.ones(len(cells))
    columns = np.arange(len(cells))
    in_place = sparse.csc_array((one, (of_cell * k + place, columns)), shape=(len(slates) * k, len(cells)))
    members, row_number = np.unique(at, return_inverse=True)
    must = np.isin(members, slates[now.pinned])
    once = sparse.csc_array((one, (row_number, columns)))
    rules = (
        sparse.csc_array(sparse.vstack([matrix, in_place, once])),
        np.concatenate([low, np.ones(in_place.shape[0]), must]),
        np.concatenate([high, np.ones(in_place.shape[0] + once.shape[0])]),
    )
    load = sparse.csc_array(rows.coefficients[:, items] * weights[place])
    found = solve(gains, of_cell, rules, load, point.loads - load @ inside, rows, limits)
    if found is None:
        return None
    taken, duals = found
    order = np.lexsort((place[taken], of_cell[taken]))
    change = taken.astype(np.float64) - inside
    chosen = row_of(at[taken][order].reshape(slates.shape))
    return Choice(now.users, chosen, duals, float((gains * change).sum()), load @ change)
