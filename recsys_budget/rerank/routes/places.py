"""The restricted program where places of a slate have weights: which row stands in which place.

Exchanges near the best prices, and neighbours in a slate that may as well change places, give alternatives
for a user's slate. Each row may stand where it stands in one of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.rerank.routes.master import Choice, Limits, quotas, solve
from recsys_budget.rerank.routes.oracle import Exchanges, Oracle
from recsys_budget.rerank.routes.rows import PopulationRows


def choose_places(
    oracle: Oracle,
    rows: PopulationRows,
    loads: NDArray[np.float64],
    free: Exchanges,
    prices: NDArray[np.float64],
    limits: Limits,
    *,
    everywhere: bool,
) -> Choice | None:
    """The best slates within reach, with their order; see :func:`~.master.choose`.

    Args:
        oracle: Holds the slates, ordered by net gain.
        rows: The rules.
        loads: What the slates add up to.
        free: The exchanges.
        prices: ``(n_items,)``, at which the slates are the best.
        limits: How to solve.
        everywhere: Let each row of everybody stand in any place.
    """
    weights = oracle.discount
    k = len(weights)
    users = oracle.users if everywhere else np.unique(free.user)
    owner = np.searchsorted(users, free.user)
    slates = oracle.offsets[users, None] + oracle.chosen[users]
    places = np.arange(k)

    # Each exchange, with the row that enters where its net gain belongs.
    rest = slates[owner]
    rest = rest[rest != free.leaves[:, None]].reshape(len(owner), k - 1)
    net = oracle.gains[free.enters].astype(np.float64) - prices[oracle.items[free.enters]]
    rest_net = oracle.gains[rest].astype(np.float64) - prices[oracle.items[rest]]
    # Ties go to the earlier row, as in the oracle.
    ahead = (rest_net > net[:, None]) | ((rest_net == net[:, None]) & (rest < free.enters[:, None]))
    enters_at = ahead.sum(axis=1)
    moved = np.insert(rest, 0, 0, axis=1)
    before = places < enters_at[:, None]
    moved[before] = rest[before[:, : k - 1]]
    moved[places > enters_at[:, None]] = rest[~before[:, : k - 1]]
    moved[np.arange(len(moved)), enters_at] = free.enters

    # Neighbours that change places at no more cost.
    own = oracle.gains[slates].astype(np.float64) - prices[oracle.items[slates]]
    cost = (weights[:-1] - weights[1:]) * (own[:, :-1] - own[:, 1:])
    who, place = np.nonzero(cost <= free.cost.max(initial=0.0))
    turned = slates[who]
    turned[np.arange(len(who)), place], turned[np.arange(len(who)), place + 1] = (
        slates[who, place + 1],
        slates[who, place],
    )

    options = np.vstack([slates, moved, turned])
    option_owner = np.concatenate([np.arange(len(users)), owner, who])
    cell = (options * k + places).ravel()
    cells, first = np.unique(cell, return_index=True)
    of_cell = np.repeat(option_owner, k)[first]
    if everywhere:
        at, first = np.unique(cells // k, return_index=True)
        cells, of_cell = (at[:, None] * k + places).ravel(), np.repeat(of_cell[first], k)
    at, place = cells // k, cells % k
    now = np.zeros(len(cells), np.bool_)
    now[np.searchsorted(cells, (slates * k + places).ravel())] = True

    matrix, low, high = quotas(oracle, at, users[of_cell], now)
    one = np.ones(len(cells))
    columns = np.arange(len(cells))
    in_place = sparse.csc_array((one, (of_cell * k + place, columns)), shape=(len(users) * k, len(cells)))
    members, row_number = np.unique(at, return_inverse=True)
    must = oracle.marks[members] > 0 if len(oracle.marks) else np.zeros(len(members), np.bool_)
    once = sparse.csc_array((one, (row_number, columns)))
    rules = (
        sparse.csc_array(sparse.vstack([matrix, in_place, once])),
        np.concatenate([low, np.ones(in_place.shape[0]), must]),
        np.concatenate([high, np.ones(in_place.shape[0] + once.shape[0])]),
    )
    load = sparse.csc_array(rows.coefficients[:, oracle.items[at]] * weights[place])
    gains = oracle.gains[at].astype(np.float64) * weights[place]
    found = solve(gains, of_cell, rules, load, loads - load @ now, rows, limits)
    if found is None:
        return None
    taken, duals = found
    order = np.lexsort((place[taken], of_cell[taken]))
    return Choice(users, at[taken][order].reshape(slates.shape), duals)
