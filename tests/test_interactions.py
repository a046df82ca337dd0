"""Interactions and the catalogue: ids stay apart, duplicates follow the rule, bad input is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError

EVENTS = {
    "user": ["007", "7", "NA", "7"],
    "item": [3, 20, 3, 20],
    "rating": [1.0, 2.0, 3.0, 5.0],
    "timestamp": [1, 9, 3, 4],
}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_any_frame_keeps_ids_apart(make):
    table = Interactions.from_frame(make(EVENTS))
    assert list(table.users) == ["7", "NA", "007"]
    assert list(table.catalogue.ids) == ["3", "20"]
    # The pair (7, 20) came twice; the later one in time stays.
    assert table.to_frame().to_dict("list") == {
        "user": ["7", "NA", "007"],
        "item": ["20", "3", "3"],
        "rating": [2.0, 3.0, 1.0],
        "timestamp": [9, 3, 1],
    }
    np.testing.assert_array_equal(table.matrix().toarray(), [[0, 1], [1, 0], [1, 0]])


@pytest.mark.parametrize(
    ("rule", "rating"), [("last", 2.0), ("first", 5.0), ("max", 5.0)], ids=["last", "first", "max"]
)
def test_duplicates_rule(rule, rating):
    table = Interactions.from_frame(pd.DataFrame(EVENTS), duplicates=rule)
    assert table.ratings[0] == rating


def test_duplicates_without_times_go_by_row():
    events = pd.DataFrame(EVENTS).drop(columns="timestamp")
    assert Interactions.from_frame(events, duplicates="last").ratings[0] == 5.0
    assert Interactions.from_frame(events, duplicates="first").ratings[0] == 2.0


def test_duplicates_error_names_the_row():
    with pytest.raises(DataError, match="'7' and item '20'") as caught:
        Interactions.from_frame(pd.DataFrame(EVENTS), duplicates="error")
    assert (caught.value.line, caught.value.column) == (2, "user")


def test_max_without_ratings_is_refused():
    with pytest.raises(SpecificationError, match="needs ratings"):
        Interactions.from_frame(pd.DataFrame(EVENTS), rating=None, duplicates="max")


@pytest.mark.parametrize("argument", [{"duplicates": "mean"}, {"unknown_items": "add"}])
def test_unknown_rules_are_refused(argument):
    with pytest.raises(SpecificationError):
        Interactions.from_frame(pd.DataFrame(EVENTS), **argument)


def test_categorical_ids_are_what_their_categories_are():
    users = pd.Series(["b", "a", "b"], dtype="category")
    table = Interactions.from_frame(
        pd.DataFrame({"user": users, "item": [1, 2, 3]}).astype({"item": "category"})
    )
    assert list(table.users) == ["a", "b"]
    assert list(table.catalogue.ids) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("users", "line"),
    [([1.0, 2.0], None), (["a", None], 2), (["a", 3], None), (["", "b"], 1), ([True, False], None)],
    ids=["float", "missing", "mixed", "empty", "bool"],
)
def test_ambiguous_ids_are_refused(users, line):
    with pytest.raises(DataError) as caught:
        Interactions.from_frame(pd.DataFrame({"user": users, "item": ["x", "y"]}))
    assert (caught.value.line, caught.value.column) == (line, "user")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, "five"])
def test_ratings_must_be_finite(bad):
    with pytest.raises(DataError, match="finite number") as caught:
        Interactions.from_frame(pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "rating": [1.0, bad]}))
    assert (caught.value.line, caught.value.column) == (2, "rating")


@pytest.mark.parametrize("bad", [None, "yesterday", np.inf, 1e30])
def test_times_must_be_times(bad):
    with pytest.raises(DataError, match="not a time") as caught:
        Interactions.from_frame(pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1, bad]}))
    assert (caught.value.line, caught.value.column) == (2, "timestamp")


def test_datetimes_become_utc_seconds():
    naive = pd.to_datetime(["2001-09-09 01:46:40", "1970-01-01 00:00:00"])
    frame = pd.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "timestamp": naive})
    np.testing.assert_array_equal(Interactions.from_frame(frame).timestamps, [1_000_000_000, 0])
    frame["timestamp"] = naive.tz_localize("Europe/Paris")
    np.testing.assert_array_equal(Interactions.from_frame(frame).timestamps, [1_000_000_000 - 7200, -3600])


def test_missing_column_lists_those_there():
    with pytest.raises(DataError, match="'who', 'item'") as caught:
        Interactions.from_frame(pd.DataFrame({"who": ["a"], "item": ["x"]}))
    assert caught.value.column == "user"


def test_vocabulary_from_data_is_marked_and_declared_is_not():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["3", "20", "99"]}))
    assert Interactions.from_frame(pd.DataFrame(EVENTS)).unaccounted
    declared = Interactions.from_frame(pd.DataFrame(EVENTS), catalogue=catalogue)
    assert declared.unaccounted == ()
    assert declared.n_items == 3


def test_unknown_items():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["3"]}))
    with pytest.raises(DataError, match="'20' is not in the catalogue") as caught:
        Interactions.from_frame(pd.DataFrame(EVENTS), catalogue=catalogue)
    assert (caught.value.line, caught.value.column) == (2, "item")
    dropped = Interactions.from_frame(pd.DataFrame(EVENTS), catalogue=catalogue, unknown_items="drop")
    assert list(dropped.users) == ["NA", "007"]


def test_arrays_are_read_only():
    table = Interactions.from_frame(pd.DataFrame(EVENTS))
    for array in (table.indptr, table.indices, table.ratings, table.timestamps, table.catalogue.titles):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [
        ([0, 2, 3], [0, 0, 1]),
        ([0, 2, 3], [1, 0, 1]),
        ([0, 2, 3], [0, 5, 1]),
        ([0, 2, 3], [-1, 0, 1]),
        ([0, 3, 2], [0, 1, 1]),
        ([1, 2, 3], [0, 1, 1]),
        ([0, 2], [0, 1, 1]),
        ([0, 2, 4], [0, 1, 1]),
    ],
    ids=["repeated", "unsorted", "beyond", "negative", "backwards", "late start", "too few", "too long"],
)
def test_arrays_that_are_no_table_are_refused(indptr, indices):
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["x", "y"]}))
    users = pd.Index(["a", "b"], dtype="str")
    good = Interactions(users, catalogue, np.array([0, 2, 3]), np.array([0, 1, 1], np.int32))
    assert len(good) == 3
    with pytest.raises(SpecificationError, match="no table"):
        Interactions(users, catalogue, np.array(indptr), np.array(indices, np.int32))
    with pytest.raises(SpecificationError, match="whole numbers"):
        Interactions(users, catalogue, np.array([0, 2, 3]), np.array([0.0, 1.0, 1.0]))


def test_positives_drop_ratings_and_keep_users():
    positive = Interactions.from_frame(pd.DataFrame(EVENTS)).positives(2.5)
    assert positive.ratings is None
    assert positive.n_users == 3
    assert positive.to_frame()["user"].tolist() == ["NA"]
    with pytest.raises(SpecificationError, match="no ratings"):
        positive.positives(1.0)


def test_empty_table():
    table = Interactions.from_frame(pd.DataFrame({"user": [], "item": []}, dtype="str"))
    assert (len(table), table.n_users, table.n_items) == (0, 0, 0)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.text("ab01 é", min_size=1, max_size=3), st.text("xyz", min_size=1, max_size=2)),
        max_size=30,
    )
)
def test_frame_round_trip(pairs):
    frame = pd.DataFrame(pairs, columns=["user", "item"], dtype="str")
    table = Interactions.from_frame(frame)
    assert set(table.to_frame().itertuples(index=False, name=None)) == set(pairs)
    assert len(table) == len(set(pairs))
    assert all(
        np.all(np.diff(table.indices[a:b]) > 0) for a, b in zip(table.indptr, table.indptr[1:], strict=False)
    )
    shuffled = Interactions.from_frame(frame.sample(frac=1, random_state=0))
    assert shuffled.to_frame().equals(table.to_frame())


def test_catalogue_reads_categories_and_providers():
    frame = pd.DataFrame(
        {
            "item": ["1", "2", "3"],
            "title": ["A", None, "<b>C</b>"],
            "categories": ["Drama|War", "", ["War", "War"]],
            "provider": ["p2", None, "p1"],
        }
    )
    catalogue = ItemCatalogue.from_frame(frame)
    assert catalogue.category_names == ("Drama", "War")
    np.testing.assert_array_equal(catalogue.membership.toarray(), [[1, 1], [0, 0], [0, 1]])
    assert catalogue.provider_names == ("p1", "p2")
    np.testing.assert_array_equal(catalogue.provider_codes, [1, -1, 0])
    assert list(catalogue.titles) == ["A", "", "<b>C</b>"]
    assert catalogue.to_frame()["categories"].tolist() == [["Drama", "War"], [], ["War"]]
    assert catalogue.to_frame()["provider"].tolist() == ["p2", None, "p1"]
    again = ItemCatalogue.from_frame(pl.from_pandas(catalogue.to_frame()))
    np.testing.assert_array_equal(again.membership.toarray(), catalogue.membership.toarray())
    np.testing.assert_array_equal(catalogue.positions(["3", "nope", "1"]), [2, -1, 0])
    assert list(catalogue.take(np.array([2, 0])).ids) == ["3", "1"]


def test_catalogue_refuses_repeats_and_foreign_categories():
    with pytest.raises(DataError, match="'1' is listed more than once"):
        ItemCatalogue.from_frame(pd.DataFrame({"item": ["1", "1"]}))
    with pytest.raises(DataError, match="'Opera'") as caught:
        ItemCatalogue.from_frame(
            pd.DataFrame({"item": ["1", "2"], "categories": ["War", "Opera"]}), category_names=["War"]
        )
    assert (caught.value.line, caught.value.column) == (2, "categories")
