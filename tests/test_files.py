"""Files as tables: nothing is lost or merged, and every fault is named with file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.files import DelimitedFile, read_catalogue, read_interactions
from recsys_budget.errors import DataError

GOOD = "user,item,rating,timestamp\n007,a,5,10\n7,a,3.5,11\nNA,b,1,12\n"


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path: Path, **columns: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read_interactions(path, **columns)  # type: ignore[arg-type]
    assert caught.value.path == path
    return caught.value


def place(error: DataError) -> tuple[int | None, str | None]:
    return error.line, error.column


# What survives


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", GOOD.encode()),
        ("t.tsv", GOOD.replace(",", "\t").encode()),
        ("t.csv.gz", gzip.compress(GOOD.encode(), mtime=0)),
        ("t.tsv.gz", gzip.compress(GOOD.replace(",", "\t").encode(), mtime=0)),
        ("bom.csv", b"\xef\xbb\xbf" + GOOD.encode()),
        ("crlf.csv", GOOD.replace("\n", "\r\n").encode()),
        ("quoted.csv", GOOD.replace("NA", '"NA"').encode()),
        ("T.CSV", GOOD.encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ids_stay_as_written(tmp_path: Path, name: str, content: bytes) -> None:
    table = read_interactions(write(tmp_path, content, name))
    assert list(table.users) == ["7", "NA", "007"]
    assert table.ratings is not None
    assert table.timestamps is not None
    assert table.ratings.tolist() == [3.5, 1.0, 5.0]
    assert table.timestamps.tolist() == [11, 12, 10]
    assert table.unaccounted


def test_other_columns_may_be_there_and_names_may_differ(tmp_path: Path) -> None:
    path = write(tmp_path, "note,who,what,stars\n007,u,1,2\n,v,2,4\n")
    table = read_interactions(path, user="who", item="what", rating="stars")
    assert table.to_frame().values.tolist() == [["u", "1", 2.0], ["v", "2", 4.0]]
    assert table.timestamps is None


def test_parquet_keeps_strings_and_turns_integers_into_strings(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": ["007", "7", "NA"], "item": [10, 2, 10], "rating": [1.0, 2.0, 3.0]})
    path = tmp_path / "year=2020" / "t.parquet"  # a folder name that must not become a column
    path.parent.mkdir()
    frame.to_parquet(path)
    table = read_interactions(path, catalogue=ItemCatalogue.from_frame(pd.DataFrame({"item": ["2", "10"]})))
    assert sorted(table.users) == ["007", "7", "NA"]
    assert table.catalogue.ids.take(table.indices).tolist() == ["2", "10", "10"]
    assert table.unaccounted == ()


def test_no_rows_is_no_fault(tmp_path: Path) -> None:
    assert len(read_interactions(write(tmp_path, "user,item\n"))) == 0


def test_a_catalogue_with_quoted_titles(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'item,title,categories,provider\n1,"Heat, or\nnot ""so"" hot",b|a,P\n02,NA,,\n',
        "items.csv",
    )
    catalogue = read_catalogue(path)
    assert list(catalogue.ids) == ["1", "02"]
    assert catalogue.titles.tolist() == ['Heat, or\nnot "so" hot', "NA"]
    assert catalogue.category_names == ("a", "b")
    assert catalogue.membership.toarray().tolist() == [[1, 1], [0, 0]]
    assert catalogue.provider_codes.tolist() == [0, -1]


def test_catalogue_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "id\tname\ttags\tseller\n1\tOne\tx;y\tS\n", "items.tsv")
    catalogue = read_catalogue(
        path,
        item="id",
        title="name",
        categories="tags",
        provider="seller",
        separator=";",
        category_names=["y", "x", "z"],
    )
    assert catalogue.to_frame().values.tolist() == [["1", "One", ["y", "x"], "S"]]
    assert catalogue.category_names == ("y", "x", "z")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(TEXT, TEXT)))
def test_any_text_survives_a_csv_file(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("user", "item"), *rows])
    path = write(tmp_path_factory.mktemp("any"), buffer.getvalue())
    table = read_interactions(path)
    assert set(table.to_frame()[["user", "item"]].itertuples(index=False, name=None)) == set(rows)


# What is refused, and where it says the fault is


def test_wrong_separator(tmp_path: Path) -> None:
    error = fault(write(tmp_path, GOOD.replace(",", ";")))
    assert place(error) == (1, "user")
    assert "'user;item;rating;timestamp'" in str(error)


def test_missing_column(tmp_path: Path) -> None:
    error = fault(write(tmp_path, "\nuser,rating\nu,1\n"))
    assert place(error) == (2, "item")
    assert "'user', 'rating'" in str(error)


def test_missing_column_that_was_named(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, GOOD), rating="stars")) == (1, "stars")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, "user,item,item\nu,a,b\n"))) == (1, "item")


@pytest.mark.parametrize("bad", ["nan", "NaN", "inf", "-inf", "1e39", "five", "", "NA"])
def test_rating_that_is_no_finite_number(tmp_path: Path, bad: str) -> None:
    error = fault(write(tmp_path, f"user,item,rating\nu,a,1\nv,b,{bad}\n"))
    assert place(error) == (3, "rating")
    assert error.reason == f"{bad!r} is not a finite number"
    assert str(error) == f"{error.path}, line 3, column 'rating': {error.reason}"


def test_timestamp_that_is_no_time(tmp_path: Path) -> None:
    error = fault(write(tmp_path, "user,item,timestamp\nu,a,1\nv,b,yesterday\n"))
    assert place(error) == (3, "timestamp")


def test_empty_id(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, "user,item\nu,a\n,b\n"))) == (3, "user")


def test_item_that_the_catalogue_lacks(tmp_path: Path) -> None:
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a"]}))
    path = write(tmp_path, GOOD)
    assert place(fault(path, catalogue=catalogue)) == (4, "item")
    assert len(read_interactions(path, catalogue=catalogue, unknown_items="drop")) == 2


def test_repeated_pair_where_none_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "user,item\nu,a\nv,a\nu,a\n")
    assert place(fault(path, duplicates="error")) == (4, "user")


def test_category_that_is_not_named(tmp_path: Path) -> None:
    path = write(tmp_path, "item,categories\n1,a\n2,b\n")
    with pytest.raises(DataError) as caught:
        read_catalogue(path, category_names=["a"])
    assert (caught.value.path, *place(caught.value)) == (path, 3, "categories")


def test_too_few_fields(tmp_path: Path) -> None:
    error = fault(write(tmp_path, "user,item,rating\nu,a,1\nv,b\nw,c,2\n"))
    assert place(error) == (3, "rating")


def test_too_many_fields(tmp_path: Path) -> None:
    error = fault(write(tmp_path, "user,item\nu,a\nv,b,c\n"))
    assert place(error) == (3, None)
    assert "3 fields, but 2 are expected" in error.reason


def test_latin_1_bytes_in_a_utf_8_file(tmp_path: Path) -> None:
    error = fault(write(tmp_path, "user,item,title\nu,a,x\nv,b,Les Misérables\n".encode("latin-1")))
    assert place(error) == (3, "title")
    assert r"b'Les Mis\xe9rables' is not utf-8 text" in error.reason


def test_undecodable_header(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, b"user,it\xe9m\nu,a\n"))) == (1, "it\udce9m")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    assert "the file is empty" in str(fault(write(tmp_path, content)))


def test_quote_that_is_never_closed(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, 'user,item\nu,a\n\nv,"b\nw,c\n')))[0] == 4


def test_quote_that_swallows_a_line_and_closes_on_another(tmp_path: Path) -> None:
    assert place(fault(write(tmp_path, 'user,item\nu,"a\nv,"b"\nw,c\n')))[0] == 2


def test_quote_that_swallows_more_than_the_parsers_hold(tmp_path: Path) -> None:
    path = write(tmp_path, 'user,item\nu,a\nv,"b\n' + "w,c\n" * 600_000)
    assert place(fault(path))[0] == 3


def test_quotes_may_stand_for_themselves(tmp_path: Path) -> None:
    table = read_interactions(write(tmp_path, 'user,item\nu,7" single\n'))
    assert list(table.catalogue.ids) == ['7" single']


@settings(deadline=None, max_examples=60)
@given(
    before=st.lists(st.sampled_from(["u,a,1\n", "\n", 'u,"a\nb",1\n', 'u,"a\r\n\n""b",1\n', "u,a,1\r\n"])),
    bad=st.sampled_from(['v,"a\nb",nan\n', "v,a,nan\n"]),
    after=st.lists(st.sampled_from(["w,a,nan\n", "\n"])),
)
def test_the_line_is_the_one_an_editor_shows(
    before: list[str], bad: str, after: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(["\nuser,item,rating\n", *before, bad, *after])
    error = fault(write(tmp_path_factory.mktemp("lines"), text))
    assert place(error) == (3 + sum(part.count("\n") for part in before), "rating")


@pytest.mark.parametrize("keep", [10, -9])
def test_truncated_gzip(tmp_path: Path, keep: int) -> None:
    lines = "".join(f"{n},{n * n}\n" for n in range(5000))
    fault(write(tmp_path, gzip.compress(f"user,item\n{lines}".encode())[:keep], "t.csv.gz"))


def test_no_gzip_at_all(tmp_path: Path) -> None:
    fault(write(tmp_path, GOOD, "t.csv.gz"))


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    assert "No such file" in str(fault(tmp_path / name))


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.parquet.gz", "t.gz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    assert "use .csv" in str(fault(write(tmp_path, GOOD, name)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "no parquet", "page"])
def test_broken_parquet(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"user": ["u"] * 999, "item": [str(n) for n in range(999)]}).to_parquet(path)
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-20],
        "empty": b"",
        "no parquet": GOOD.encode(),
        "page": whole[:4] + b"\xff" * 50 + whole[54:],
    }
    assert "cannot be read as parquet" in str(fault(write(tmp_path, broken[damage], "t.parquet")))


def test_faults_in_a_parquet_file_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "rating": [1.0, np.inf]}).to_parquet(path)
    assert place(fault(path)) == (2, "rating")
    pd.DataFrame({"user": [1.0, 2.0], "item": ["a", "b"]}).to_parquet(path)
    assert place(fault(path)) == (None, "user")
    pd.DataFrame({"user": ["u"]}).to_parquet(path)
    assert place(fault(path)) == (None, "item")


# Separators of several characters, no header


def test_double_colons_leave_single_colons_quotes_and_tabs_alone(tmp_path: Path) -> None:
    content = '1::"Heat: Hot\t(1995)::Drama\n\n2::Misérables, Les (1995)::\n'.encode("latin-1")
    file = DelimitedFile(
        write(tmp_path, content), "::", ("id", "title", "genre"), False, "latin-1", quoted=False
    )
    assert file.read().to_pydict() == {
        "id": ["1", "2"],
        "title": ['"Heat: Hot\t(1995)', "Misérables, Les (1995)"],
        "genre": ["Drama", ""],
    }


@pytest.mark.parametrize(("line", "column"), [("1:2:3", "title"), ("1::2", "genre"), ("1::2::3::4", None)])
def test_double_colons_in_the_wrong_number(tmp_path: Path, line: str, column: str | None) -> None:
    path = write(tmp_path, f"1::a::b\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        DelimitedFile(path, "::", ("id", "title", "genre"), header=False, quoted=False).read()
    assert (caught.value.path, *place(caught.value)) == (path, 3, column)
