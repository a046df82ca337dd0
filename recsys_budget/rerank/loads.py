"""Rules about all slates as rows that everybody's slates add to, and how much one slate adds at most.

All of it is made from the rules and the catalogue alone, which are public: no candidate is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import (
    Constraint,
    GroupParity,
    Population,
    ProviderMaximum,
    ProviderMinimum,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.constraints.base import hard_part, item_rows
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes.laminar import LaminarTree

# Rules whose bounds are known to be facts about the catalogue and the number of users. Others may read
# candidates to make theirs, so an unknown kind is refused.
_KNOWN = (ProviderMinimum, ProviderMaximum, StockMaximum, TotalMaximum, GroupParity)
# Coefficients are whole multiples of a power of two, at least 2**-26 of the largest in their row, so that
# float64 adds up to 2**26 places of them without error, in any order.
_BITS = 26


@dataclass(frozen=True, eq=False)
class Bounds:
    """What the rules ask: ``sign * load <= sign * (constant + per_user * users)`` for one row each.

    Attributes:
        row: Which row of the loads, shape ``(n_bounds,)``.
        sign: 1.0 for the most a load may be, -1.0 for the least.
        constant: Part of the bound that is the same whatever the number of users.
        per_user: What each user adds to the bound: a share of all places grows with their number.
        weight: What a unit of violation costs; inf for a hard rule.
        owner: Position of the rule among those passed.
        part: Which of the rule's own inequalities.
    """

    row: NDArray[np.intp]
    sign: NDArray[np.float64]
    constant: NDArray[np.float64]
    per_user: NDArray[np.float64]
    weight: NDArray[np.float64]
    owner: NDArray[np.intp]
    part: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def hard(self) -> NDArray[np.bool_]:
        """Which no slates may violate."""
        return np.isinf(self.weight)

    def at(self, users: float) -> NDArray[np.float64]:
        """The bounds for a number of users, in the unit of their rules."""
        return self.constant + self.per_user * users


@dataclass(frozen=True, eq=False)
class Loads:
    """What slates add up to, row by row, for rules about all slates.

    Attributes:
        size: Items a slate.
        rows: Sparse, shape ``(n_rows, n_items)``: what one show of an item adds, in the unit of its rule,
            rounded to multiples of a power of two.
        rounding: How far the rounding moves what one slate adds to each row, at most; 0 where coefficients
            are such multiples already, as counts are.
        bounds: What is asked of the rows. Bounds that hold whatever the slates are, are left out.
        most: What one slate adds to each row at most, shape ``(n_rows,)``.
        least: Likewise, at least.
        units: Powers of two, shape ``(n_rows,)``. Loads times these are what is released, so that rules of
            different units get noise of about the same size beside what one slate adds to them.
        sensitivity: Largest Euclidean norm of one slate's loads times ``units``: what adding or removing one
            user can change.
        blocks: Rows in groups within which no two share an item, and all have one largest coefficient.
    """

    size: int
    rows: sparse.csr_array
    rounding: NDArray[np.float64]
    bounds: Bounds
    most: NDArray[np.float64]
    least: NDArray[np.float64]
    units: NDArray[np.float64]
    sensitivity: float
    blocks: tuple[NDArray[np.intp], ...]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @classmethod
    def of(cls, constraints: Sequence[Constraint], catalogue: ItemCatalogue, tree: LaminarTree) -> Loads:
        """The loads of the rules about all slates.

        Args:
            constraints: All rules; those about one slate are passed over.
            catalogue: Where the coefficients come from.
            tree: Quotas that every slate keeps, which limit what one slate can add.

        Raises:
            SpecificationError: A rule about all slates is of another kind, or no slate can change whether
                any holds.
        """
        known: dict[tuple[bytes, bytes], int] = {}
        columns: list[tuple[NDArray[np.integer], NDArray[np.float64]]] = []
        asked = []
        for ask, items, data in _inequalities(constraints, catalogue, tree.k):
            key = (items.astype(np.int64).tobytes(), data.tobytes())
            if key not in known:
                known[key] = len(columns)
                columns.append((items, data))
            asked.append((known[key], *ask))
        rounded = [_on_grid(data) for _, data in columns]
        errors = [
            np.abs(near - data).max(initial=0.0) for near, (_, data) in zip(rounded, columns, strict=True)
        ]
        indptr = np.cumsum([0, *(len(items) for items, _ in columns)])
        indices = np.concatenate([np.zeros(0, np.int64), *(items for items, _ in columns)])
        data = np.concatenate([np.zeros(0), *rounded])
        rows = sparse.csr_array((data, indices, indptr), shape=(len(columns), len(catalogue)))
        above, below = _partial_sums(rows, _most_items(rows, tree), tree.k)
        blocks = _disjoint(rows)
        units, square = np.ones(len(columns)), 0.0
        for block in blocks:
            norm = _largest_norm(np.maximum(above[block], below[block]))
            if norm == 0.0:
                continue  # no slate may hold any of these items
            units[block] = 2.0 ** -math.ceil(math.log2(norm))
            square += (units[block[0]] * norm) ** 2
        if not square:
            raise SpecificationError(
                "no slate can change what the constraints about all slates are about: they hold whatever the "
                "slates are, or the quotas keep all of these items out. Drop them, or change the quotas"
            )
        row, sign, constant, per_user, weight, owner, part = (
            np.array(values) for values in zip(*asked, strict=True)
        )
        bounds = Bounds(row.astype(np.intp), sign, constant, per_user, weight, owner, part)
        sensitivity = math.sqrt(square) * (1 + 1e-12)  # float64 rounds what was derived exactly
        rounding = tree.k * np.array(errors)
        most, least = above[:, -1], -below[:, -1]
        return cls(tree.k, rows, rounding, bounds, most, least, units, sensitivity, blocks)

    def of_counts(self, counts: NDArray[np.integer]) -> NDArray[np.float64]:
        """The loads of slates that show each item so often, shape ``(n_rows,)``; exact."""
        return np.asarray(self.rows @ counts.astype(np.float64), np.float64)

    def item_prices(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """What one show of each item costs, from a price at least 0 on each bound; shape ``(n_items,)``."""
        bounds = self.bounds
        of_rows = np.bincount(bounds.row, bounds.sign * prices, minlength=len(self))
        return np.asarray(self.rows.T @ of_rows, np.float64)


def _inequalities(
    constraints: Sequence[Constraint], catalogue: ItemCatalogue, k: int
) -> Iterator[tuple[tuple[float, float, float, float, int, int], NDArray[np.integer], NDArray[np.float64]]]:
    """Each inequality: sign, constant, per user, weight, rule and part; then the coefficients of its row.

    A row begins with a coefficient above 0, so that a floor and a ceiling on the same sum share it.
    Inequalities that hold whatever the slates are left out.
    """
    nobody, one, two = (without_candidates(catalogue, k, users) for users in range(3))
    for owner, rule in enumerate(constraints):
        if rule.scope == "user":
            continue
        plain = hard_part(rule)
        if not isinstance(plain, _KNOWN) or plain.positional:
            why = "reads the order of slates" if plain.positional else "is no sum over slates known here"
            raise SpecificationError(
                f"{rule.name!r} {why}, and private prices take {', '.join(k.__name__ for k in _KNOWN)} "
                "without a discount. Drop it, or leave the ledger out and call the result not private"
            )
        table = sparse.csc_array(item_rows(plain, catalogue))
        table.eliminate_zeros()
        table.sort_indices()
        constant, first, second = (
            np.broadcast_to(np.asarray(plain.rhs(users), np.float64), table.shape[1])
            for users in (nobody, one, two)
        )
        per_user = first - constant
        assert np.allclose(second - first, per_user), "a known rule's bound is linear in the number of users"
        for part in range(table.shape[1]):
            span = slice(table.indptr[part], table.indptr[part + 1])
            items, data = table.indices[span], table.data[span]
            most = float(np.sort(np.maximum(data, 0.0))[-k:].sum())
            if constant[part] >= 0.0 and per_user[part] >= most:
                continue
            if not len(items):
                raise SpecificationError(f"{rule.name!r} asks for items that the catalogue lacks")
            sign = 1.0 if data[0] > 0.0 else -1.0
            ask = (sign, sign * constant[part], sign * per_user[part], rule.penalty, owner, part)
            yield ask, items, sign * data


def without_candidates(catalogue: ItemCatalogue, k: int, users: int) -> Population:
    """So many users without candidates: what bounds are allowed to read."""
    ids = pd.Index([str(u) for u in range(users)], dtype="str")
    return Population(catalogue, ids, np.zeros(users + 1, np.int64), np.zeros(0, np.intp), np.zeros(0), k)


def _on_grid(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to multiples of a power of two."""
    unit = 2.0 ** (math.frexp(float(np.abs(data).max()))[1] - _BITS)
    return np.asarray(np.rint(data / unit) * unit, np.float64)


def _most_items(rows: sparse.csr_array, tree: LaminarTree) -> NDArray[np.int64]:
    """How many of each row's items a slate can hold at most, by the upper quotas; shape ``(n_rows,)``.

    From the leaves up, a node holds no more than its quota, and no more than there are.
    """
    owner = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    leaf = tree.leaf_of_item[rows.indices]
    there = leaf >= 0
    shape = (len(tree.parent), rows.shape[0])
    held = sparse.coo_array((np.ones(there.sum(), np.int64), (leaf[there], owner[there])), shape).toarray()
    for node in range(len(tree.parent) - 1, -1, -1):
        held[node] = np.minimum(held[node], tree.upper[node])
        if node:
            held[tree.parent[node]] += held[node]
    return np.asarray(held[0], np.int64)


def _partial_sums(
    rows: sparse.csr_array, limit: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The most that q items add to each row above and below 0, ``(n_rows, k + 1)`` each: q from 0 to k."""
    sums = np.zeros((2, rows.shape[0], k + 1))
    for row in range(rows.shape[0]):
        data = rows.data[rows.indptr[row] : rows.indptr[row + 1]]
        for side, sign in enumerate((1.0, -1.0)):
            best = np.sort(np.maximum(sign * data, 0.0))[::-1][: min(k, int(limit[row]))]
            sums[side, row, 1 : len(best) + 1] = np.cumsum(best)
            sums[side, row, len(best) + 1 :] = sums[side, row, len(best)]
    return sums[0], sums[1]


def _disjoint(rows: sparse.csr_array) -> tuple[NDArray[np.intp], ...]:
    """Rows in groups of one unit, that of their largest coefficient, within which no two share an item."""
    taken: list[tuple[float, NDArray[np.bool_]]] = []
    blocks: list[list[int]] = []
    largest = abs(rows).max(axis=1).toarray().ravel()
    for row in range(rows.shape[0]):
        items = rows.indices[rows.indptr[row] : rows.indptr[row + 1]]
        fits = (b for b, (unit, used) in enumerate(taken) if unit == largest[row] and not used[items].any())
        at = next(fits, len(blocks))
        if at == len(blocks):
            taken.append((largest[row], np.zeros(rows.shape[1], np.bool_)))
            blocks.append([])
        taken[at][1][items] = True
        blocks[at].append(row)
    return tuple(np.array(block, np.intp) for block in blocks)


def _largest_norm(most: NDArray[np.float64]) -> float:
    """Largest Euclidean norm over rows that share no item, of what k items add to them.

    With q items on a row it moves by at most ``most[row, q]``, so the answer is the greatest sum of
    ``most[row, q_row] ** 2`` over ways of sharing k items among rows, which dynamic programming finds. For
    each q only the k rows that gain most matter: another row used with q items could be changed for an
    unused one of these.

    Args:
        most: Shape ``(n_rows, k + 1)``, from 0 and never falling along a row.
    """
    square = np.square(most)
    k = square.shape[1] - 1
    some = np.unique(np.argsort(-square[:, 1:], axis=0, kind="stable")[:k])
    best = np.zeros(k + 1)
    for gain in square[some]:
        before = best.copy()
        for q in range(1, k + 1):
            best[q:] = np.maximum(best[q:], before[: k + 1 - q] + gain[q])
    return math.sqrt(best[k])
