"""Splits by user or by time, and the k-core; every random choice comes from an explicit ``rng``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from recsys_budget.data.interactions import Interactions
from recsys_budget.errors import SpecificationError

_Rng = np.random.Generator | int | None


class UserSplit(NamedTuple):
    """Training users, and held-out users whose rows are divided in two.

    Attributes:
        train: All rows of the training users.
        fold_in: Of the held-out users, the rows a model may see when it scores them.
        held_out: Of the same users in the same order, the rows to be predicted.
    """

    train: Interactions
    fold_in: Interactions
    held_out: Interactions


class RowSplit(NamedTuple):
    """The same users' rows, divided in two.

    Attributes:
        train: Rows to learn from.
        test: Rows to be predicted.
    """

    train: Interactions
    test: Interactions


def hold_out_users(
    interactions: Interactions, n_users: int, *, held_out_share: float = 0.2, rng: _Rng = None
) -> UserSplit:
    """Hold out whole users, and part of each one's rows (strong generalisation).

    No row of a held-out user reaches ``train``. Each held-out user keeps at least one row to predict, and at
    least one to fold in where they have two or more. Who is held out depends on the order of all users, so a
    privacy guarantee for what is trained on ``train`` compares tables that differ in one user of ``train``.

    Args:
        interactions: The table.
        n_users: How many users to hold out, chosen uniformly.
        held_out_share: Share of each held-out user's rows to predict, rounded.
        rng: Seed or generator.

    Raises:
        SpecificationError: Not between 1 and all but one of the users, or a share outside (0, 1).

    References:
        Marlin (2004), "Collaborative filtering: a machine learning perspective" (strong generalisation).
        Liang et al. (2018), arXiv:1802.05814, section 4.3.
    """
    if not 1 <= n_users < interactions.n_users:
        raise SpecificationError(
            f"cannot hold out {n_users} of {interactions.n_users} users; hold out and leave at least 1"
        )
    if not 0 < held_out_share < 1:
        raise SpecificationError(f"held_out_share is {held_out_share}; it must lie strictly between 0 and 1")
    rng = np.random.default_rng(rng)
    order = rng.permutation(interactions.n_users)
    train = interactions.take_users(order[n_users:])
    others = interactions.take_users(order[:n_users])
    lengths = np.diff(others.indptr)
    wanted = np.maximum(np.round(held_out_share * lengths), 1)
    wanted = np.where(lengths > 1, np.minimum(wanted, lengths - 1), wanted)
    # Rank random keys within each user: the rows that get the first ranks are held out.
    shuffled = np.lexsort((rng.random(len(others)), others.rows))
    rank = np.empty(len(others), np.int64)
    rank[shuffled] = np.arange(len(others)) - np.repeat(others.indptr[:-1], lengths)
    held = rank < np.repeat(wanted, lengths)
    return UserSplit(train, others.where(~held), others.where(held))


def leave_last_out(interactions: Interactions, n: int = 1) -> RowSplit:
    """Each user's last ``n`` interactions in time against the rest.

    Ties in time go by item order. A user with ``n`` rows or fewer keeps them all in ``train``.

    Raises:
        SpecificationError: No timestamps, or n below 1.
    """
    timestamps = _timestamps(interactions)
    if n < 1:
        raise SpecificationError(f"n is {n}; leave out at least 1 interaction")
    order = np.lexsort((interactions.indices, timestamps, interactions.rows))
    lengths = np.diff(interactions.indptr)
    from_end = np.empty(len(interactions), np.int64)
    from_end[order] = np.repeat(interactions.indptr[1:], lengths) - 1 - np.arange(len(interactions))
    last = (from_end < n) & np.repeat(lengths > n, lengths)
    return RowSplit(interactions.where(~last), interactions.where(last))


def time_split(interactions: Interactions, at: int | str | pd.Timestamp) -> RowSplit:
    """Everything before a moment against everything from it on.

    The moment is an argument and never read off the data, since a quantile of all users' times would make
    each user's split depend on the others.

    Args:
        interactions: The table.
        at: Seconds since 1970-01-01 UTC, or a date (UTC where it names no zone). The moment itself is test.

    Raises:
        SpecificationError: No timestamps, or not a date.
    """
    timestamps = _timestamps(interactions)
    if isinstance(at, int):
        seconds = float(at)
    else:
        try:
            moment = pd.Timestamp(at)
        except ValueError as error:
            raise SpecificationError(f"{at!r} is not a date; write it like 2000-12-31") from error
        seconds = moment.timestamp()
    before = timestamps < seconds
    return RowSplit(interactions.where(before), interactions.where(~before))


def k_core(interactions: Interactions, *, per_user: int = 1, per_item: int = 0) -> Interactions:
    """Keep users with at least ``per_user`` rows and items with at least ``per_item`` users.

    With ``per_item`` above 0 both rules repeat until they hold together, and dropped items leave the
    catalogue. Which items stay then depends on every user: the result says so in ``unaccounted``, and private
    models refuse it. The rule for users alone looks at each user's own rows and costs nothing.

    Raises:
        SpecificationError: A negative number.
    """
    if per_user < 0 or per_item < 0:
        raise SpecificationError(f"per_user and per_item must not be negative; got {per_user} and {per_item}")
    if per_item == 0:
        return interactions.take_users(np.flatnonzero(np.diff(interactions.indptr) >= per_user))
    rows, items = interactions.rows, interactions.indices
    keep = np.ones(len(interactions), bool)
    while True:
        users = np.bincount(rows[keep], minlength=interactions.n_users)
        used = np.bincount(items[keep], minlength=interactions.n_items)
        smaller = keep & (users[rows] >= per_user) & (used[items] >= per_item)
        if smaller.sum() == keep.sum():
            break
        keep = smaller
    core = interactions.where(keep, unaccounted="items were dropped by how many users used them")
    core = core.take_users(np.flatnonzero(users >= per_user))
    position = np.cumsum(used >= per_item) - 1
    return Interactions(
        users=core.users,
        catalogue=core.catalogue.take(np.flatnonzero(used >= per_item)),
        indptr=core.indptr,
        indices=position[core.indices].astype(np.int32),
        ratings=core.ratings,
        timestamps=core.timestamps,
        unaccounted=core.unaccounted,
    )


def _timestamps(interactions: Interactions) -> np.ndarray:
    if interactions.timestamps is None:
        raise SpecificationError("these interactions have no timestamps, so they cannot be split by time")
    return interactions.timestamps
