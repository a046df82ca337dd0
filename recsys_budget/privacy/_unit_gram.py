"""The exact sum behind `PrivateQueries.unit_gram`: outer products of unit rows, one a user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# What a user counts is a whole multiple of 1 / _GRID, added in 64-bit integers: exact, in any order.
_GRID = 2**32
# A row that its centre almost cancels is divided by this share of its own norm, squared, at least.
_LEAST_NORM = 1 / 64
# Rows are this much shorter than 1: see `unit_gram_sum`.
_MARGIN = 2.0**-10


def unit_gram_sum(
    rows: sparse.csr_array, weights: NDArray[np.float64], centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum over users of ``y y^T``, where y is the user's weighted, centred row, divided by its norm.

    With x the user's 0/1 row and L the number of its ones, y is proportional to ``weights * (x - L centre)``.
    Its norm is at most ``1 - 2**-11``, so adding or removing a user moves the sum by at most ``1 - 2**-10``
    in Frobenius norm, and by at most 1 with all rounding errors.

    Written out, ``y y^T = a w w^T * (x x^T - L (x c^T + c x^T) + L^2 c c^T)`` with one number a a user. The
    sums of ``a x x^T``, ``a L x`` and ``a L^2`` are taken in whole numbers, so they have no rounding errors:
    the result is one fixed function of the three. Its own rounding, on terms of at most 64 a user in all,
    moves an n x n matrix of N users by less than N n 2**-44 in norm, which the margin of 2**-10 covers up
    to N n = 2**34 (four million users and four thousand items). A weighted sum of fewer than 2**25 users
    cannot overflow.

    Args:
        rows: Users x items, of which only the structure counts: one a stored entry.
        weights: Positive, shape ``(n_items,)``.
        centre: At least 0 and adding up to at most 1, shape ``(n_items,)``.

    Returns:
        Symmetric, shape ``(n_items, n_items)``, float64.
    """
    w = weights / weights.min()  # at least 1, so a user counts at most 64 / L times 1 / _GRID
    ones = sparse.csr_array((np.ones(len(rows.indices)), rows.indices, rows.indptr), shape=rows.shape)
    lengths = np.diff(rows.indptr).astype(np.int64)
    own = ones @ w**2
    norms = own - 2 * lengths * (ones @ (w**2 * centre)) + lengths**2 * float((w * centre) @ (w * centre))
    norms = np.maximum(norms, _LEAST_NORM * own)
    counts = np.floor(_GRID * (1 - _MARGIN) / np.where(lengths > 0, norms, 1.0)).astype(np.int64)
    counts[lengths == 0] = 0
    whole = sparse.csr_array((np.ones(len(rows.indices), np.int64), rows.indices, rows.indptr), rows.shape)
    weighted = whole.copy()
    weighted.data = np.repeat(counts, lengths)
    pairs = (whole.T @ weighted).toarray() / _GRID
    mixed = (whole.T @ (counts * lengths)) / _GRID
    lone = sum((counts * lengths * lengths).tolist()) / _GRID  # may pass 64 bits, so in Python's numbers
    crossed = np.outer(mixed, centre)
    total = (pairs - (crossed + crossed.T)) + lone * np.outer(centre, centre)
    return np.asarray(total * np.outer(w, w), np.float64)
