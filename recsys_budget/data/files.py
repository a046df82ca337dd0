"""Tables in files: every cell as it is written, every fault with its file, line and column."""

from __future__ import annotations

import csv
import gzip
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.interactions import Duplicates, Interactions
from recsys_budget.errors import DataError

_STAND_IN = "\x1f"  # the parsers want one character; ASCII's unit separator occurs in no real text


def read_interactions(
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    timestamp: str | None = "timestamp",
    catalogue: ItemCatalogue | None = None,
    unknown_items: Literal["error", "drop"] = "error",
    duplicates: Duplicates = "last",
) -> Interactions:
    """Read interactions from a file with one row an event.

    Args:
        path: A ``.csv`` or ``.tsv`` file in UTF-8 whose first line names the columns, either also as
            ``.csv.gz`` or ``.tsv.gz``, or a ``.parquet`` file.
        user: Column of user ids. Ids in text files stay as written: 007 and 7 are two, and NA is one.
        item: Column of item ids.
        rating: As in :meth:`Interactions.from_frame`, like all that follow.
        timestamp: Column of times; whole seconds since 1970-01-01 UTC in text files.
        catalogue: The public item catalogue; None takes the items that occur, which reads private data.
        unknown_items: What to do with an item that the catalogue lacks.
        duplicates: Which row of a repeated user-item pair to keep.

    Returns:
        The interactions.

    Raises:
        DataError: The file cannot be read, or a cell cannot be used. ``path``, ``line`` (1-based, as an
            editor counts; the row in a parquet file) and ``column`` say where.
    """
    file = table_file(path, (user, item))
    table = file.read()
    with file.located():
        return Interactions.from_frame(
            table,
            user=user,
            item=item,
            rating=rating,
            timestamp=timestamp,
            catalogue=catalogue,
            unknown_items=unknown_items,
            duplicates=duplicates,
        )


def read_catalogue(
    path: str | PathLike[str],
    *,
    item: str = "item",
    title: str | None = "title",
    categories: str | None = "categories",
    provider: str | None = "provider",
    separator: str = "|",
    category_names: Sequence[str] | None = None,
    attributes: Sequence[str] = (),
) -> ItemCatalogue:
    """Read an item catalogue from a file with one row an item.

    Args:
        path: A file as in :func:`read_interactions`.
        item: Column of item ids.
        title: Column of titles; as in :meth:`ItemCatalogue.from_frame`, like all that follow.
        categories: Column of categories, joined by ``separator`` in text files.
        provider: Column of provider names.
        separator: What joins the categories of a cell.
        category_names: The categories and their order.
        attributes: Columns of numbers to keep.

    Returns:
        The catalogue, in the order of the file.

    Raises:
        DataError: The file cannot be read, or a cell cannot be used; says where, as in
            :func:`read_interactions`.
    """
    file = table_file(path, (item,))
    table = file.read()
    with file.located():
        return ItemCatalogue.from_frame(
            table,
            item=item,
            title=title,
            categories=categories,
            provider=provider,
            separator=separator,
            category_names=category_names,
            attributes=attributes,
        )


@dataclass(frozen=True)
class TableFile(ABC):
    """A file that holds one table.

    Attributes:
        path: Where it is.
    """

    path: Path

    @abstractmethod
    def read(self) -> pa.Table:
        """The whole table, or a DataError that says where it breaks."""

    @contextmanager
    def located(self) -> Iterator[None]:
        """Turn a DataError about a row of the table into one about this file and its line."""
        try:
            yield
        except DataError as error:
            line = self._line(error)
            raise DataError(error.reason, path=self.path, line=line, column=error.column) from None

    @abstractmethod
    def _line(self, error: DataError) -> int | None:
        """Line of this file that an error about the table as a frame is about."""


@dataclass(frozen=True)
class ParquetFile(TableFile):
    """A parquet file; its rows count as lines."""

    def read(self) -> pa.Table:
        """The table, typed as stored."""
        try:
            # Not pq.read_table: that adds a column for each "name=value" folder on the way to the file.
            with pq.ParquetFile(self.path) as file:
                return file.read()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot be read as parquet: {error}", path=self.path) from error

    def _line(self, error: DataError) -> int | None:
        return error.line


@dataclass(frozen=True)
class DelimitedFile(TableFile):
    """A text file, plain or gzipped, with one record a line; blank lines are skipped.

    Attributes:
        separator: What stands between fields: one character, or several as in MovieLens ("::").
        columns: Columns that must be there. Without a header line: all columns, in order.
        header: Whether the first line names the columns.
        encoding: "utf-8" (a byte order mark is skipped) or "latin-1".
        quoted: Whether double quotes may enclose a field, which can then hold separators and newlines.
    """

    separator: str = ","
    columns: tuple[str, ...] = ()
    header: bool = True
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    quoted: bool = True

    def read(self) -> pa.Table:
        """The table, every cell a string as written; "NA" and the empty string are strings too."""
        names = self._names()
        try:
            table = pa.csv.read_csv(
                self._stream(),
                pa.csv.ReadOptions(column_names=None if self.header else names, encoding=self.encoding),
                pa.csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char='"' if self.quoted else False,
                    newlines_in_values=self.quoted,
                ),
                pa.csv.ConvertOptions(column_types={name: pa.string() for name in names}),
            )
        except (OSError, pa.ArrowException) as error:
            self._check(names)
            raise DataError(str(error), path=self.path) from error
        # Arrow lets a quote that is never closed swallow the lines after it.
        if self.quoted and any(pc.any(pc.match_substring(c, "\n")).as_py() for c in table.columns):
            self._check(names)
        return table

    def _line(self, error: DataError) -> int | None:
        if error.line is None:  # a column as a whole is the header's affair
            return next(self._records())[0] if self.header and error.column is not None else None
        lines = (line for line, _ in self._records())
        return next(islice(lines, error.line - 1 + self.header, None))

    @property
    def _delimiter(self) -> str:
        return self.separator if len(self.separator) == 1 else _STAND_IN

    def _stream(self) -> pa.NativeFile:
        stream = pa.input_stream(self.path)
        if len(self.separator) == 1:
            return stream
        return pa.BufferReader(stream.read().replace(self.separator.encode(), _STAND_IN.encode()))

    def _names(self) -> list[str]:
        line, first = next(self._records(), (None, []))
        if line is None:
            raise DataError("the file is empty", path=self.path)
        if self.header:
            self._check_record(line, first, first)
        names = first if self.header else list(self.columns)
        for name in names:
            if names.count(name) > 1:
                raise DataError("two columns have this name", path=self.path, line=line, column=name)
        for name in self.columns:
            if name not in names:
                found = ", ".join(map(repr, names))
                reason = f"no such column; split at {self.separator!r}, the line has {found}"
                raise DataError(reason, path=self.path, line=line, column=name)
        return names

    def _check(self, names: list[str]) -> None:
        """Find the first record that is not what it should be, slowly, after the fast parser refused."""
        for line, fields in self._records():
            self._check_record(line, fields, names)

    def _check_record(self, line: int, fields: list[str], names: list[str]) -> None:
        if len(fields) != len(names):
            raise DataError(
                f"{len(fields)} fields, but {len(names)} are expected, with {self.separator!r} between them",
                path=self.path,
                line=line,
                column=names[len(fields)] if len(fields) < len(names) else None,
            )
        for name, field in zip(names, fields, strict=True):
            if any("\udc80" <= character <= "\udcff" for character in field):  # see errors= in _records
                raw = field.encode(errors="surrogateescape")
                raise DataError(
                    f"{raw!r} is not {self.encoding} text", path=self.path, line=line, column=name
                )

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Each record with the line it starts on."""
        opened = gzip.open if self.path.suffix == ".gz" else open
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        line = 1
        try:
            with opened(self.path, "rt", encoding=encoding, errors="surrogateescape", newline="") as text:
                reader = csv.reader(
                    (part.replace(self.separator, self._delimiter) for part in text),
                    delimiter=self._delimiter,
                    quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
                    strict=True,
                )
                for fields in reader:
                    if fields:
                        yield line, fields
                    line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{error}; is a quote not closed?", path=self.path, line=line) from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read: {error}", path=self.path) from error


def table_file(path: str | PathLike[str], columns: tuple[str, ...]) -> TableFile:
    """The file as its suffix says, as in :func:`read_interactions`.

    Args:
        path: Where it is.
        columns: Columns that a text file must have.

    Raises:
        DataError: The suffix is not known.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    match suffix.removesuffix(".gz").lower():
        case ".csv":
            return DelimitedFile(path, ",", columns)
        case ".tsv":
            return DelimitedFile(path, "\t", columns)
        case ".parquet" if suffix != ".parquet.gz":
            return ParquetFile(path)
    raise DataError(
        f"the suffix {suffix!r} is not known; use .csv, .tsv, .csv.gz, .tsv.gz or .parquet, or read the "
        "table yourself, with ids as strings, and pass it to from_frame",
        path=path,
    )
