"""The table of who used what: frozen, one row a user-item pair, ids kept as strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data._columns import epoch_seconds, finite_numbers, id_codes, pick, shortlex
from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError

Duplicates = Literal["last", "first", "max", "error"]


@dataclass(frozen=True, eq=False)
class Interactions:
    """Users' interactions with the items of a catalogue, at most one a user-item pair.

    Stored as compressed sparse rows (user by user, items ascending within a user). All arrays are read-only.
    Build one with :meth:`from_frame`, :func:`~recsys_budget.data.read_interactions` or
    :func:`~recsys_budget.data.load_dataset`.

    Attributes:
        users: User ids, shape ``(n_users,)``, unique strings, shorter ids first and then alphabetically, so
            that "2" precedes "10" and the order does not depend on the order of the rows.
        catalogue: The items.
        indptr: Row boundaries, shape ``(n_users + 1,)``, int64.
        indices: Item positions in the catalogue, shape ``(n_interactions,)``, int32.
        ratings: Explicit ratings, shape ``(n_interactions,)``, float32, all finite; None for implicit data.
        timestamps: Seconds since 1970-01-01 UTC, shape ``(n_interactions,)``, int64; None when unknown.
        unaccounted: Reads of private data that shaped this table without being charged to a budget, in words.
            Private models refuse a table where this is not empty.
    """

    users: pd.Index[Any]
    catalogue: ItemCatalogue
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    ratings: NDArray[np.float32] | None = None
    timestamps: NDArray[np.int64] | None = None
    unaccounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Sensitivities rest on one row a pair, so that is checked however the table was made.
        if not all(np.issubdtype(a.dtype, np.integer) for a in (self.indptr, self.indices)):
            raise SpecificationError(
                f"indptr is {self.indptr.dtype}, indices {self.indices.dtype}; both must hold whole numbers"
            )
        lengths = np.diff(self.indptr)
        same_user = np.ones(max(len(self.indices) - 1, 0), bool)
        starts = self.indptr[1:-1]
        same_user[starts[(starts > 0) & (starts < len(self.indices))] - 1] = False
        sound = (
            len(self.indptr) == len(self.users) + 1
            and self.indptr[0] == 0
            and self.indptr[-1] == len(self.indices)
            and bool((lengths >= 0).all())
            and bool(((self.indices >= 0) & (self.indices < len(self.catalogue))).all())
            and bool((np.diff(self.indices) > 0)[same_user].all())
            and all(a is None or len(a) == len(self.indices) for a in (self.ratings, self.timestamps))
            and self.users.is_unique
        )
        if not sound:
            raise SpecificationError(
                "these arrays are no table of interactions: rows need items of the catalogue in strictly "
                "ascending order within each user; use Interactions.from_frame"
            )
        for array in (self.indptr, self.indices, self.ratings, self.timestamps):
            if array is not None:
                array.setflags(write=False)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        user: str = "user",
        item: str = "item",
        rating: str | None = "rating",
        timestamp: str | None = "timestamp",
        catalogue: ItemCatalogue | None = None,
        unknown_items: Literal["error", "drop"] = "error",
        duplicates: Duplicates = "last",
    ) -> Interactions:
        """Build from a pandas, polars or pyarrow table with one row an event.

        Args:
            frame: Any table that narwhals reads.
            user: Column of user ids: strings or integers.
            item: Column of item ids: strings or integers.
            rating: Column of ratings. Absent means implicit data, unless the name differs from the default.
            timestamp: Column of times: integer seconds since 1970 or datetimes (naive means UTC). Absent
                means unknown, unless the name differs from the default.
            catalogue: The public item catalogue. None takes the items that occur, which reads private data:
                the result says so in ``unaccounted``.
            unknown_items: What to do with an item that the catalogue lacks.
            duplicates: Which row of a repeated user-item pair to keep: the ``"last"`` (by time where times
                are known, then by row), the ``"first"``, the one with the ``"max"`` rating, or ``"error"``.

        Returns:
            The interactions. Users without a row left are not in it.

        Raises:
            DataError: A missing column, a missing or ambiguous id, a rating that is not finite, a time that
                is none, an unknown item, or a repeated pair under ``duplicates="error"``.
        """
        if duplicates not in ("last", "first", "max", "error"):
            raise SpecificationError(f"duplicates={duplicates!r}; use 'last', 'first', 'max' or 'error'")
        if unknown_items not in ("error", "drop"):
            raise SpecificationError(f"unknown_items={unknown_items!r}; use 'error' or 'drop'")
        table = nw.from_native(frame, eager_only=True)
        user_codes, user_ids = id_codes(pick(table, user), user)
        item_codes, item_ids = id_codes(pick(table, item), item)
        ratings = timestamps = None
        if rating is not None and (rating in table.columns or rating != "rating"):
            ratings = finite_numbers(pick(table, rating), rating, np.float32)
        if timestamp is not None and (timestamp in table.columns or timestamp != "timestamp"):
            timestamps = epoch_seconds(pick(table, timestamp), timestamp)
        if duplicates == "max" and ratings is None:
            raise SpecificationError("duplicates='max' needs ratings; use 'last' or 'first'")

        unaccounted: tuple[str, ...] = ()
        if catalogue is None:
            catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": shortlex(item_ids)}))
            unaccounted = ("the item vocabulary was read from the interactions",)
        items = catalogue.positions(item_ids)[item_codes]
        known = items >= 0
        if not known.all():
            if unknown_items == "error":
                row = int(known.argmin())
                raise DataError(
                    f"item {item_ids[item_codes[row]]!r} is not in the catalogue ({(~known).sum()} such "
                    "rows); add it, or pass unknown_items='drop'",
                    line=row + 1,
                    column=item,
                )
            user_codes, items = user_codes[known], items[known]
            ratings = None if ratings is None else ratings[known]
            timestamps = None if timestamps is None else timestamps[known]

        users = pd.Index(shortlex(user_ids[np.unique(user_codes)]), dtype="str")
        rows = np.asarray(users.get_indexer(pd.Index(user_ids, dtype="str")), np.int64)[user_codes]
        kept = _one_a_pair(rows, items, ratings, timestamps, duplicates, user, users, catalogue.ids)
        rows = rows[kept]
        return cls(
            users=users,
            catalogue=catalogue,
            indptr=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(users)))]).astype(np.int64),
            indices=items[kept].astype(np.int32),
            ratings=None if ratings is None else ratings[kept],
            timestamps=None if timestamps is None else timestamps[kept],
            unaccounted=unaccounted,
        )

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """Number of items in the catalogue, used or not."""
        return len(self.catalogue)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        kind = "implicit" if self.ratings is None else "rated"
        return f"Interactions({self.n_users} users x {self.n_items} items, {len(self)} {kind} pairs)"

    @property
    def rows(self) -> NDArray[np.int64]:
        """User position of each interaction, shape ``(n_interactions,)``."""
        return np.repeat(np.arange(self.n_users), np.diff(self.indptr))

    def matrix(self) -> sparse.csr_array:
        """Users x items, float32, 1 where a pair is present; shares its (read-only) structure with this."""
        ones = np.ones(len(self), np.float32)
        return sparse.csr_array((ones, self.indices, self.indptr), shape=(self.n_users, self.n_items))

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: user, item, and rating and timestamp where known."""
        columns: dict[str, Any] = {
            "user": self.users.take(self.rows),
            "item": self.catalogue.ids.take(self.indices),
        }
        if self.ratings is not None:
            columns["rating"] = self.ratings
        if self.timestamps is not None:
            columns["timestamp"] = self.timestamps
        return pd.DataFrame(columns)

    def require_accounted(self) -> None:
        """Raise SpecificationError if unaccounted reads have shaped this table: no budget covers those."""
        if self.unaccounted:
            raise SpecificationError(
                "this table was shaped by reads of private data that no budget paid for: "
                f"{'; '.join(self.unaccounted)}. Declare a public catalogue instead"
            )

    def where(self, keep: NDArray[np.bool_], *, unaccounted: str | None = None) -> Interactions:
        """The interactions where ``keep`` is true; every user stays, if need be with an empty row.

        Args:
            keep: Mask of shape ``(n_interactions,)``.
            unaccounted: What private data the mask depends on beyond each user's own rows, in words; None
                when it depends on nothing else.
        """
        counts = np.bincount(self.rows[keep], minlength=self.n_users)
        return Interactions(
            users=self.users,
            catalogue=self.catalogue,
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            indices=self.indices[keep],
            ratings=None if self.ratings is None else self.ratings[keep],
            timestamps=None if self.timestamps is None else self.timestamps[keep],
            unaccounted=self.unaccounted + (() if unaccounted is None else (unaccounted,)),
        )

    def take_users(self, positions: Sequence[int] | NDArray[np.integer]) -> Interactions:
        """The users at these positions in ``users``, in ascending order whatever order is given."""
        chosen = np.zeros(self.n_users, bool)
        chosen[np.asarray(positions, np.intp)] = True
        kept = self.where(np.repeat(chosen, np.diff(self.indptr)))
        return Interactions(
            users=self.users[chosen],
            catalogue=self.catalogue,
            indptr=np.concatenate([[0], np.diff(kept.indptr)[chosen].cumsum()]).astype(np.int64),
            indices=kept.indices,
            ratings=kept.ratings,
            timestamps=kept.timestamps,
            unaccounted=self.unaccounted,
        )

    def positives(self, threshold: float) -> Interactions:
        """Implicit feedback: the pairs rated at least ``threshold``, without their ratings.

        Looks at each user's own rows alone, so it costs no privacy.

        Raises:
            SpecificationError: There are no ratings.
        """
        if self.ratings is None:
            raise SpecificationError("these interactions have no ratings; they are implicit already")
        kept = self.where(self.ratings >= threshold)
        return Interactions(
            kept.users, kept.catalogue, kept.indptr, kept.indices, None, kept.timestamps, kept.unaccounted
        )


def _one_a_pair(
    rows: NDArray[np.int64],
    items: NDArray[np.intp],
    ratings: NDArray[np.float32] | None,
    timestamps: NDArray[np.int64] | None,
    duplicates: Duplicates,
    column: str,
    users: pd.Index[Any],
    ids: pd.Index[Any],
) -> NDArray[np.intp]:
    """Positions of the rows to keep, in CSR order. Sorts so that the row to keep is the last of its pair."""
    arrival = np.arange(len(rows))
    keys: list[NDArray[Any]] = [arrival]  # least significant first, as np.lexsort wants
    if timestamps is not None:
        keys.append(timestamps)
    if duplicates == "first":
        keys = [-key for key in keys]
    if duplicates == "max" and ratings is not None:
        keys.append(ratings)
    order = np.lexsort((*keys, items, rows))
    again = (np.diff(rows[order]) == 0) & (np.diff(items[order]) == 0)
    if duplicates == "error" and again.any():
        row = int(order[1:][again].min())
        raise DataError(
            f"user {users[rows[row]]!r} and item {ids[items[row]]!r} are paired twice; choose "
            "duplicates='last', 'first' or 'max'",
            line=row + 1,
            column=column,
        )
    return order[np.append(~again, True)] if len(order) else order
