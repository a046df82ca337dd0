"""Rows of a long table grouped by user, best first, without sorting what stands in order already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Cells of a block of padded users, so that memory does not grow with the number of users.
_CELLS = 1 << 20


@dataclass(frozen=True, eq=False)
class Grouping:
    """Where each user's rows stand.

    Attributes:
        offsets: Row boundaries, shape ``(n_users + 1,)``, int64.
        order: Rows of the table, user by user, by falling relevance and then by item, shape ``(n_rows,)``;
            None where they stand so already.
    """

    offsets: NDArray[np.int64]
    order: NDArray[np.intp] | None

    @classmethod
    def of(
        cls,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        relevance: NDArray[np.float64],
        n_users: int,
    ) -> Grouping | None:
        """Group rows; None where some pair of user and item is there twice.

        Linear in the number of rows but for the sort of each user's own, which is left out for users whose
        rows are in order.

        Args:
            users: User of each row, from 0 to ``n_users - 1``.
            items: Item of each row, at least 0.
            relevance: Finite, without negative zeros.
            n_users: Number of users.
        """
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))]).astype(np.int64)
        order = None
        if (users[1:] < users[:-1]).any():
            order = by_user(users, n_users)
            items, relevance = items[order], relevance[order]
        if _repeats(offsets, items):
            return None
        astray = _astray(offsets, items, relevance)
        if astray.any():
            order = np.arange(len(users)) if order is None else order
            for rows, there in _padded(offsets, np.flatnonzero(astray)):
                best_first = _sorted(items, relevance, rows, there)
                order[rows[there]] = order[best_first[there]]
        return cls(offsets, order)


def by_user(users: NDArray[np.integer], n_users: int) -> NDArray[np.intp]:
    """Rows user by user, each user's in the order given: a counting sort, as a matrix is transposed."""
    n = len(users)
    rows = sparse.csr_array((np.arange(n), users, np.arange(n + 1)), shape=(n, n_users))
    return np.asarray(rows.tocsc().data, np.intp)


def _astray(
    offsets: NDArray[np.int64], items: NDArray[np.integer], relevance: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which users' rows are not in order."""
    wrong = np.zeros(len(relevance) + 1, bool)  # that a row belongs before the one above it
    wrong[1:-1] = relevance[1:] > relevance[:-1]
    tied = 1 + np.flatnonzero(relevance[1:] == relevance[:-1])
    wrong[tied] = items[tied] < items[tied - 1]
    wrong[offsets] = False  # above it stands another user's
    users = np.zeros(len(offsets) - 1, bool)
    users[np.searchsorted(offsets, np.flatnonzero(wrong), side="right") - 1] = True
    return users


def _padded(
    offsets: NDArray[np.int64], users: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Rows of users, one user a line, in blocks of users with about as many; and which cells hold one."""
    sizes = np.diff(offsets)[users]
    users = users[np.argsort(-sizes, kind="stable")]
    sizes = -np.sort(-sizes)
    start = 0
    while start < len(users):
        width = int(sizes[start])
        block = slice(start, start + max(1, _CELLS // max(1, width)))
        places = np.arange(width)
        there = places < sizes[block, None]
        rows = offsets[users[block], None] + places
        if sizes[min(block.stop, len(users)) - 1] < width:
            rows[~there] = 0
        yield rows, there
        start = block.stop


def _repeats(offsets: NDArray[np.int64], items: NDArray[np.integer]) -> bool:
    """Whether some user has an item twice."""
    for rows, there in _padded(offsets, np.arange(len(offsets) - 1)):
        held = items[rows]
        if not there.all():
            held = np.where(there, held, -1 - np.arange(rows.shape[1]))
        held.sort(axis=1)
        if (held[:, 1:] == held[:, :-1]).any():
            return True
    return False


def _sorted(
    items: NDArray[np.integer],
    relevance: NDArray[np.float64],
    rows: NDArray[np.int64],
    there: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The rows of each line by falling relevance and then by item, empty cells last."""
    falling = np.where(there, -relevance[rows], np.inf)
    places = np.argsort(falling, axis=1)
    ordered = np.take_along_axis(falling, places, axis=1)
    tied = ((ordered[:, 1:] == ordered[:, :-1]) & there[:, 1:]).any(axis=1)
    if tied.any():
        lines = np.flatnonzero(tied)
        places[lines] = np.lexsort((items[rows[lines]], falling[lines]), axis=1)
    return np.take_along_axis(rows, places, axis=1)
