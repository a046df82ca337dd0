"""The item catalogue: what is publicly known about items, independent of who used them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data._columns import id_strings, numbers_or_missing, pick, text_strings
from recsys_budget.errors import DataError, SpecificationError


@dataclass(frozen=True, eq=False)
class ItemCatalogue:
    """Items in a fixed order, with titles, categories (any number an item), providers and numbers.

    A catalogue is *public*: whoever builds one declares that no private data shaped it. Private models take
    their item vocabulary from it.

    Attributes:
        ids: Item ids, shape ``(n_items,)``, unique strings.
        titles: Titles, shape ``(n_items,)``, strings; the id where no title was given. Untrusted text:
            escape before showing.
        category_names: Names of the categories, length ``n_categories``.
        membership: Sparse 0/1 matrix, float32, shape ``(n_items, n_categories)``; rows may hold several ones
            or none.
        provider_names: Names of the providers, length ``n_providers``.
        provider_codes: Position in ``provider_names`` of each item's provider, shape ``(n_items,)``, int32;
            -1 where an item has none.
        attributes: Numbers known about each item by name ("cost", "latency_ms", "popularity"): float64 arrays
            of shape ``(n_items,)``; NaN where unknown, never infinite.
    """

    ids: pd.Index[Any]
    titles: NDArray[np.object_]
    category_names: tuple[str, ...]
    membership: sparse.csr_array
    provider_names: tuple[str, ...]
    provider_codes: NDArray[np.int32]
    attributes: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not self.ids.is_unique:
            raise SpecificationError("catalogue ids repeat; keep one row an item")
        shapes = (len(self.titles), self.membership.shape[0], len(self.provider_codes))
        if shapes != (n, n, n) or self.membership.shape[1] != len(self.category_names):
            raise SpecificationError(f"catalogue columns disagree in length: {n} ids, {shapes} others")
        known = {name: np.array(values, np.float64) for name, values in self.attributes.items()}
        for name, values in known.items():
            if values.shape != (n,) or np.isinf(values).any():
                raise SpecificationError(
                    f"attribute {name!r} must be one number an item, NaN where unknown and never infinite; "
                    f"got shape {values.shape} for {n} items"
                )
        object.__setattr__(self, "attributes", MappingProxyType(known))
        arrays = (self.titles, self.provider_codes, self.membership.data, self.membership.indices)
        for array in (*arrays, *known.values()):
            array.setflags(write=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"attributes": dict(self.attributes)}  # a mapping proxy cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, attributes=MappingProxyType(state["attributes"]))

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        item: str = "item",
        title: str | None = "title",
        categories: str | None = "categories",
        provider: str | None = "provider",
        separator: str = "|",
        category_names: Sequence[str] | None = None,
        attributes: Sequence[str] = (),
    ) -> ItemCatalogue:
        """Build a catalogue from a pandas, polars or pyarrow table with one row an item.

        Args:
            frame: Any table that narwhals reads.
            item: Column of ids: strings or integers.
            title: Column of titles. The columns named here are optional unless the name differs from the
                default: absent means nothing is known.
            categories: Column of categories: lists, or strings joined by ``separator``.
            provider: Column of provider names; empty or missing means no provider.
            separator: What joins the categories of a string cell.
            category_names: The categories and their order; None takes those that occur, sorted.
            attributes: Columns of numbers to keep, such as cost or popularity; an empty cell is NaN.

        Returns:
            The catalogue, in the order of the frame.

        Raises:
            DataError: A column is missing, an id is missing, repeated or not a string or integer, a category
                is not in ``category_names``, or an attribute is neither a finite number nor missing.
        """
        table = nw.from_native(frame, eager_only=True)
        ids = id_strings(pick(table, item), item)
        again = pd.Index(ids).duplicated()
        if again.any():
            row = int(again.argmax())
            raise DataError(
                f"item id {ids[row]!r} is listed more than once; keep one row an item",
                line=row + 1,
                column=item,
            )

        def optional(name: str | None, default: str) -> nw.Series[Any] | None:
            return (
                None if name is None or (name == default and name not in table.columns) else pick(table, name)
            )

        title_column = optional(title, "title")
        titles = ids.copy() if title_column is None else text_strings(title_column)
        category_column = optional(categories, "categories")
        cells = [] if category_column is None else [_split(c, separator) for c in category_column.to_list()]
        provider_column = optional(provider, "provider")
        providers = (
            np.full(len(ids), "", object) if provider_column is None else text_strings(provider_column)
        )
        names, membership = _membership(cells or [()] * len(ids), category_names, categories or "categories")
        provider_names = tuple(sorted(set(providers) - {""}))
        position = {name: code for code, name in enumerate(provider_names)}
        return cls(
            ids=pd.Index(ids, dtype="str"),
            titles=titles,
            category_names=names,
            membership=membership,
            provider_names=provider_names,
            provider_codes=np.array([position.get(p, -1) for p in providers], np.int32),
            attributes={name: numbers_or_missing(pick(table, name), name) for name in attributes},
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"ItemCatalogue({len(self)} items, {len(self.category_names)} categories, "
            f"{len(self.provider_names)} providers)"
        )

    def positions(self, items: Iterable[str]) -> NDArray[np.intp]:
        """Position of each item id, shape ``(len(items),)``, intp; -1 for ids not in the catalogue."""
        return np.asarray(self.ids.get_indexer(pd.Index(list(items), dtype="str")), np.intp)

    def attribute(self, name: str) -> NDArray[np.float64]:
        """The named numbers, shape ``(n_items,)``.

        Raises:
            SpecificationError: The catalogue has no such attribute; the message lists those it has.
        """
        if name not in self.attributes:
            known = ", ".join(map(repr, self.attributes)) or "none at all"
            raise SpecificationError(
                f"the catalogue has no attribute {name!r}; it has {known}. Name its column in attributes= "
                "when the catalogue is read"
            )
        return self.attributes[name]

    def take(self, positions: NDArray[np.integer]) -> ItemCatalogue:
        """The catalogue of the items at these positions, in this order."""
        return ItemCatalogue(
            ids=self.ids[positions],
            titles=self.titles[positions],
            category_names=self.category_names,
            membership=sparse.csr_array(self.membership[positions]),
            provider_names=self.provider_names,
            provider_codes=self.provider_codes[positions],
            attributes={name: values[positions] for name, values in self.attributes.items()},
        )

    def to_frame(self) -> pd.DataFrame:
        """One row an item: item, title, categories (list of names), provider (or None), attributes."""
        indptr, indices = self.membership.indptr, self.membership.indices
        names = np.array(self.category_names, dtype=object)
        providers = np.array([*self.provider_names, None], dtype=object)
        return pd.DataFrame(
            {
                "item": self.ids,
                "title": self.titles,
                "categories": [list(names[indices[a:b]]) for a, b in pairwise(indptr)],
                "provider": pd.Series(providers[self.provider_codes], dtype=object),
                **self.attributes,
            }
        )


def _split(cell: Any, separator: str) -> tuple[str, ...]:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ()
    parts = cell.split(separator) if isinstance(cell, str) else list(cell)
    return tuple(dict.fromkeys(str(part) if isinstance(part, str) else part for part in parts if part))


def _membership(
    cells: Sequence[Sequence[str]], names: Sequence[str] | None, column: str
) -> tuple[tuple[str, ...], sparse.csr_array]:
    found = sorted({c for cell in cells for c in cell}) if names is None else map(str, names)
    known = tuple(found)
    position = {name: code for code, name in enumerate(known)}
    indptr = np.zeros(len(cells) + 1, np.int64)
    indices: list[int] = []
    for row, cell in enumerate(cells):
        for name in cell:
            if name not in position:
                raise DataError(f"category {name!r} is not among category_names", line=row + 1, column=column)
        indices.extend(sorted(position[name] for name in cell))
        indptr[row + 1] = len(indices)
    data = np.ones(len(indices), np.float32)
    shape = (len(cells), len(known))
    return known, sparse.csr_array((data, np.array(indices, np.int32), indptr), shape=shape)
