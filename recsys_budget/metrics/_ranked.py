"""A ranking as arrays: what every metric reads, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.data._columns import id_codes, pick
from recsys_budget.errors import DataError


@dataclass(frozen=True, eq=False)
class Ranked:
    """Lists of items, one a user, in the form that metrics compute with.

    Attributes:
        users: User ids in order of first appearance, shape ``(n_users,)``, unique strings.
        rows: Position in ``users`` of each ranked item, shape ``(n_rows,)``, intp.
        items: Position in the catalogue of each ranked item, shape ``(n_rows,)``, intp.
        ranks: Place of each ranked item in its list, shape ``(n_rows,)``, int64, 1 is the top.
        n_items: Number of items in the catalogue.
    """

    users: pd.Index[Any]
    rows: NDArray[np.intp]
    items: NDArray[np.intp]
    ranks: NDArray[np.int64]
    n_items: int

    @classmethod
    def read(cls, ranking: Any, catalogue: ItemCatalogue) -> Ranked:
        """Check a ranking and turn it into arrays.

        Args:
            ranking: Pandas, polars or pyarrow table with columns user, item and rank, one row a ranked item,
                rows in any order. Ranks are integers from 1; a gap is an empty place. An empty table is a
                ranking of nobody.
            catalogue: The items that may be ranked.

        Raises:
            DataError: A column is missing, an id is missing or not a string or integer, an item is not in
                the catalogue, a rank is not an integer from 1 to the number of items, or a user has an item
                or a rank twice.
        """
        table = nw.from_native(ranking, eager_only=True)
        rows, users = id_codes(pick(table, "user"), "user")
        codes, names = id_codes(pick(table, "item"), "item")
        ranks = _ranks(pick(table, "rank"), len(catalogue))
        items = catalogue.positions(names)[codes]
        unknown = items < 0
        if unknown.any():
            row = int(unknown.argmax())
            raise DataError(
                f"item {names[codes[row]]!r} is not in the catalogue ({unknown.sum()} such rows); rank only "
                "its items, or pass the catalogue that they are from",
                line=row + 1,
                column="item",
            )
        for column, values in (("item", items), ("rank", ranks)):
            again = pd.Series(rows * (len(catalogue) + 1) + values).duplicated().to_numpy()
            if again.any():
                row = int(again.argmax())
                value = names[codes[row]] if column == "item" else int(ranks[row])
                raise DataError(
                    f"user {users[rows[row]]!r} has {column} {value!r} twice; keep one row a user "
                    f"and {column}",
                    line=row + 1,
                    column=column,
                )
        return cls(pd.Index(users, dtype="str", name="user"), rows, items, ranks, len(catalogue))

    @property
    def lengths(self) -> NDArray[np.intp]:
        """Number of items in each user's list, shape ``(n_users,)``, at least 1."""
        return np.bincount(self.rows, minlength=len(self.users))

    def matrix(self) -> sparse.csr_array:
        """Users x items, float64, 1 where the item is in the user's list."""
        shape = (len(self.users), self.n_items)
        return sparse.csr_array((np.ones(len(self.rows)), (self.rows, self.items)), shape=shape)

    def per_user(self, values: NDArray[np.float64], name: str) -> pd.Series[float]:
        """A Series of one value a user, indexed by user id."""
        return pd.Series(values, index=self.users, name=name)

    def positions_in(self, interactions: Interactions) -> NDArray[np.intp]:
        """Position of each user among the users of a table, shape ``(n_users,)``; -1 where absent.

        Raises:
            DataError: Both have users and share none: their ids must be written differently.
        """
        positions = np.asarray(interactions.users.get_indexer(self.users), np.intp)
        if len(positions) and interactions.n_users and (positions < 0).all():
            raise DataError(
                f"no user of the ranking (such as {self.users[0]!r}) is a user of the interactions (such as "
                f"{interactions.users[0]!r}); write the ids alike in both",
                column="user",
            )
        return positions


def _ranks(column: nw.Series[Any], n_items: int) -> NDArray[np.int64]:
    values = column.to_pandas()
    if len(values) and not pd.api.types.is_integer_dtype(values.dtype):
        raise DataError(f"ranks are {values.dtype}, but must be integers from 1", column="rank")
    outside = ~values.between(1, n_items).to_numpy(dtype=bool, na_value=False)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"rank {values.iloc[row]} is not from 1 (the top) to {n_items} (the number of items)",
            line=row + 1,
            column="rank",
        )
    return values.to_numpy(dtype=np.int64)
