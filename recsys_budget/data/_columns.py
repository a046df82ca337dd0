"""Columns of anybody's table, turned into arrays that keep ids apart and refuse what is not a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_budget.errors import DataError

Float = TypeVar("Float", np.float32, np.float64)


def pick(table: nw.DataFrame[Any], name: str) -> nw.Series[Any]:
    """The named column, or a DataError that lists the columns there are."""
    if name not in table.columns:
        raise DataError(f"no such column; the table has {', '.join(map(repr, table.columns))}", column=name)
    return table.get_column(name)


def id_strings(column: nw.Series[Any], name: str) -> NDArray[np.object_]:
    """Ids as strings, one a row; see :func:`id_codes`."""
    codes, names = id_codes(column, name)
    return names[codes]


def id_codes(column: nw.Series[Any], name: str) -> tuple[NDArray[np.intp], NDArray[np.object_]]:
    """Ids as positions in an array of distinct strings, each as written: "007" and "7" stay two ids.

    "NA" is an id too.

    Args:
        column: Strings, integers, or a categorical of either.
        name: Name of the column, for errors.

    Raises:
        DataError: An id is missing or empty, or the column holds floats or a mixture: converting those would
            merge ids that differ.
    """
    codes, values = _distinct(column.to_pandas())  # checked once an id, not once a row
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError("a missing id; fill or drop such rows first", line=row + 1, column=name)
    kind = pd.api.types.infer_dtype(values, skipna=False)
    if kind not in ("string", "integer") and len(values):
        raise DataError(
            f"ids are {kind}, but must be strings or integers (floats and mixtures merge ids that differ); "
            "convert the column yourself, or read the file with string ids",
            column=name,
        )
    strings = np.asarray(pd.Index(values).astype(str), dtype=object)
    empty = np.flatnonzero(strings == "")
    if len(empty):
        raise DataError("an empty id", line=int((codes == empty[0]).argmax()) + 1, column=name)
    return np.asarray(codes, np.intp), strings


def _distinct(rows: pd.Series[Any]) -> tuple[NDArray[np.intp], Any]:
    """Position of each row's value among the distinct ones, -1 where it is missing; and these values.

    As ``pandas.factorize``, faster where values are few (a categorical), dense (integers that count
    something) or come in runs (a table sorted by user).
    """
    values: Any = rows.array
    if isinstance(rows.dtype, pd.CategoricalDtype):
        codes = rows.cat.codes.to_numpy()
        used = np.bincount(codes[codes >= 0], minlength=len(rows.cat.categories)) > 0
        position = np.append(np.cumsum(used) - 1, -1)  # a missing value's code is -1, the last
        return position[codes], rows.cat.categories[used]
    plain = rows.dtype in (np.dtype(np.int64), np.dtype(np.int32))
    if plain or rows.dtype == "str":
        values = rows.to_numpy() if plain else values
        some = values[:4096]  # they tell whether to look for runs
        if len(some) and np.count_nonzero(some[1:] != some[:-1]) < len(some) // 4:
            starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
            codes, distinct = pd.factorize(values[starts])
            return np.repeat(codes, np.diff(starts, append=len(rows))), distinct
    if len(rows) and plain and int(values.max()) - (low := int(values.min())) <= len(rows):
        dense = values.astype(np.int64) - low
        seen = np.bincount(dense) > 0
        return (np.cumsum(seen) - 1)[dense], np.flatnonzero(seen) + low
    return pd.factorize(rows)


def shortlex(ids: Iterable[str]) -> list[str]:
    """The distinct ids, shorter ones first and then alphabetically, so that "2" precedes "10"."""
    return sorted(set(ids), key=lambda s: (len(s), s))


def in_shortlex(ids: NDArray[np.object_]) -> tuple[pd.Index[Any], NDArray[np.int64]]:
    """Distinct ids in the order of :func:`shortlex`, and the place of each id in it."""
    texts = pa.array(ids, pa.large_string())  # whose order by bytes is that by code points
    keys = pa.table({"length": pc.utf8_length(texts), "text": texts})
    order = pc.sort_indices(keys, [("length", "ascending"), ("text", "ascending")]).to_numpy()
    places = np.empty(len(ids), np.int64)
    places[order] = np.arange(len(ids))
    return pd.Index(ids[order], dtype="str"), places


def text_strings(column: nw.Series[Any]) -> NDArray[np.object_]:
    """Free text as Python strings; the empty string where the cell is missing."""
    values = column.to_pandas()
    return np.array(["" if m else str(v) for v, m in zip(values, values.isna(), strict=True)], dtype=object)


def finite_numbers(column: nw.Series[Any], name: str, dtype: type[Float]) -> NDArray[Float]:
    """Numbers of this dtype, all finite; otherwise a DataError that names the row."""
    values = column.to_pandas()
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(dtype)
    bad = ~np.isfinite(narrow)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{values.iloc[row]!r} is not a finite number", line=row + 1, column=name)
    return narrow


def numbers_or_missing(column: nw.Series[Any], name: str) -> NDArray[np.float64]:
    """Finite numbers, NaN where a cell is missing or empty; otherwise a DataError that names the row."""
    values = column.to_pandas()
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    missing = values.isna().to_numpy() | (values.astype(object) == "").to_numpy()
    bad = ~np.isfinite(numbers) & ~missing
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{values.iloc[row]!r} is not a finite number", line=row + 1, column=name)
    return numbers


def epoch_seconds(column: nw.Series[Any], name: str) -> NDArray[np.int64]:
    """Timestamps as whole seconds since 1970-01-01 UTC, from integers or datetimes (naive means UTC)."""
    values = column.to_pandas()
    numbers: NDArray[np.int64]
    if pd.api.types.is_datetime64_any_dtype(values):
        moments = pd.to_datetime(values, utc=True).dt.tz_localize(None)
        numbers = moments.to_numpy("datetime64[s]").astype(np.int64)
        missing = values.isna().to_numpy()
    else:
        floats = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        missing = ~(np.abs(floats) < 2**53)  # also for NaN and infinities; float64 is exact below 2**53
        numbers = np.where(missing, 0, floats).astype(np.int64)
    if missing.any():
        row = int(missing.argmax())
        raise DataError(f"{values.iloc[row]!r} is not a time", line=row + 1, column=name)
    return numbers
