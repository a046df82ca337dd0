"""Candidates in every form that is taken, slates in the form that came in, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recsys_budget.constraints import Calibration, CategoryMinimum, SlateSize
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import (
    BudgetExceededError,
    DataError,
    InfeasibleError,
    SolverTimeoutError,
    SpecificationError,
)
from recsys_budget.rerank import Reranker, Scores, grouping, top_k
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.grouping import Grouping

NUMBERS = ItemCatalogue.from_frame(pd.DataFrame({"item": range(30), "categories": ["A", "B"] * 15}))


def candidates(n_users: int = 40, seed: int = 0) -> pd.DataFrame:
    """Ragged, with ties, users in the order of their ids and each user's best first."""
    rng = np.random.default_rng(seed)
    parts = []
    for user in range(n_users):
        items = np.sort(rng.choice(30, rng.integers(12, 30), replace=False))
        relevance = rng.integers(-2, 3, len(items)).astype(float)
        order = np.lexsort((items, -relevance))
        parts.append(pd.DataFrame({"user": user, "item": items[order], "relevance": relevance[order]}))
    return pd.concat(parts, ignore_index=True)


def shuffled(frame: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def strings(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({"user": "str", "item": "str"})


def categories(frame: pd.DataFrame) -> pd.DataFrame:
    typed = strings(frame)
    for name in ("user", "item"):  # categories that do not occur, and in another order than the rows
        values = ["never", *sorted(typed[name].unique(), reverse=True)]
        typed[name] = pd.Categorical(typed[name], categories=values)
    return typed


FORMS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "int64": lambda frame: frame,
    "int32": lambda frame: frame.astype({"user": np.int32, "item": np.int32}),
    "nullable": lambda frame: frame.astype({"user": "Int64", "item": "Int64"}),
    "strings": strings,
    "objects": lambda frame: strings(frame).astype({"user": object, "item": object}),
    "categories": categories,
    "categories of integers": lambda frame: frame.astype({"user": "category", "item": "category"}),
    "polars": lambda frame: pl.from_pandas(strings(frame)),
    "polars categories": lambda frame: pl.from_pandas(categories(frame)),
    "pyarrow": lambda frame: pa.Table.from_pandas(strings(frame), preserve_index=False),
    "pyarrow in chunks": lambda frame: pa.concat_tables(
        [pa.Table.from_pandas(strings(part), preserve_index=False) for part in (frame[:100], frame[100:])]
    ),
    "pyarrow dictionaries": lambda frame: pa.Table.from_pandas(categories(frame), preserve_index=False),
}


def same(one: CandidateTable, other: CandidateTable) -> bool:
    return one.users.equals(other.users) and all(
        getattr(one, name).tolist() == getattr(other, name).tolist()
        for name in ("offsets", "items", "relevance")
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [None, 1, 2], ids=["in order", "shuffled", "shuffled again"])
def test_every_form_and_order_of_rows_is_read_alike(form, seed):
    frame = candidates()
    expected = CandidateTable.from_frame(frame, NUMBERS, 3)
    assert expected.items.tolist() == frame["item"].tolist()
    given_rows = frame if seed is None else shuffled(frame, seed)
    assert same(CandidateTable.from_frame(FORMS[form](given_rows), NUMBERS, 3), expected)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.5, 1e308, -1e308]), st.integers(0, 9)),
        min_size=1,
        max_size=40,
        unique_by=lambda row: (row[0], row[2]),
    ),
    st.sampled_from(["as it comes", "by user", "in order"]),
    st.sampled_from([1, 8, 1 << 20]),
)
def test_the_order_is_lexicographic(table, how, cells):
    if how != "as it comes":
        table = sorted(table, key=(lambda r: r[0]) if how == "by user" else (lambda r: (r[0], -r[1], r[2])))
    users, relevance, items = (np.array(column) for column in zip(*table, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "_CELLS", cells)
        found = Grouping.of(users, items, relevance, 6)
    assert found is not None
    assert found.offsets.tolist() == np.searchsorted(np.sort(users), range(7)).tolist()
    order = np.arange(len(users)) if found.order is None else found.order
    assert order.tolist() == np.lexsort((items, -relevance, users)).tolist()
    assert (found.order is None) == (how == "in order" or order.tolist() == list(range(len(users))))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=12))
def test_a_repeated_pair_is_found_where_it_comes_again(pairs):
    frame = pd.DataFrame(pairs, columns=["user", "item"]).assign(relevance=1.0)
    again = [row for row, pair in enumerate(pairs) if pair in pairs[:row]]
    if not again:
        assert len(CandidateTable.from_frame(frame, NUMBERS, 1).items) == len(pairs)
        return
    with pytest.raises(DataError, match="twice") as caught:
        CandidateTable.from_frame(frame, NUMBERS, 1)
    assert (caught.value.line, caught.value.column) == (again[0] + 1, "item")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("spoil", "message", "line", "column"),
    [
        (
            lambda f: f.assign(relevance=f["relevance"].where(f.index != 7, np.nan)),
            "not a finite",
            8,
            "relevance",
        ),
        (
            lambda f: f.assign(relevance=f["relevance"].where(f.index != 9, np.inf)),
            "not a finite",
            10,
            "relevance",
        ),
        (lambda f: f.assign(item=f["item"].where(f.index != 11, 77)), "'77' is not in the catal", 12, "item"),
        (lambda f: pd.concat([f, f.iloc[[3]]], ignore_index=True), "paired twice", -1, "item"),
        (lambda f: f.drop(columns="user"), "no such column", None, "user"),
        (lambda f: f.drop(columns="relevance"), "no such column", None, "relevance"),
        (lambda f: f.iloc[:0], "at least one row", None, None),
    ],
)
@pytest.mark.parametrize("seed", [None, 3], ids=["in order", "shuffled"])
def test_bad_tables_are_refused_alike_in_every_form(form, spoil, message, line, column, seed):
    frame = candidates()
    spoilt = spoil(frame if seed is None else shuffled(frame, seed))
    if column in ("user", "relevance") and column not in spoilt:
        table = FORMS[form](spoilt.assign(**{column: 0}))
        if isinstance(table, pa.Table):
            table = table.drop_columns([column])
        else:
            table = table.drop(columns=column) if isinstance(table, pd.DataFrame) else table.drop(column)
    else:
        table = FORMS[form](spoilt)
    with pytest.raises(DataError, match=message) as caught:
        CandidateTable.from_frame(table, NUMBERS, 3)
    assert caught.value.line == (len(spoilt) if line == -1 else line)
    assert caught.value.column == column


@pytest.mark.parametrize("missing", [None, np.nan])
@pytest.mark.parametrize("dtype", ["str", object, "category"])
def test_a_missing_id_is_found(missing, dtype):
    frame = strings(candidates()).astype({"user": object})
    frame.loc[5, "user"] = missing
    with pytest.raises(DataError, match="missing id") as caught:
        CandidateTable.from_frame(frame.astype({"user": dtype}), NUMBERS, 3)
    assert caught.value.line == 6


def test_integers_far_apart_and_negative_ones_are_ids():
    far = [-(2**62), -1, 0, 7, 2**62]
    frame = pd.DataFrame({"user": np.repeat(far[::-1], 2), "item": [1, 0] * 5, "relevance": 1.0})
    table = CandidateTable.from_frame(frame, NUMBERS, 1)
    assert table.users.tolist() == ["0", "7", "-1", str(2**62), str(-(2**62))]
    assert table.items.tolist() == [0, 1] * 5


def test_users_stand_in_shortlex_order_of_code_points():
    ids = ["z", "é", "\U0001f600", "\uffff", "aa", "007", "7", "NA"]
    frame = pd.DataFrame({"user": ids, "item": 0, "relevance": 1.0})
    assert CandidateTable.from_frame(frame, NUMBERS, 1).users.tolist() == sorted(
        ids, key=lambda s: (len(s), s)
    )


@pytest.mark.parametrize("form", FORMS)
def test_slates_come_in_the_kind_that_was_given(form):
    frame = candidates()
    reranker = Reranker(constraints=[SlateSize(3), CategoryMinimum("A", 1)])
    table = FORMS[form](frame)
    expected = reranker.rerank(frame, NUMBERS).frame
    assert isinstance(expected, pd.DataFrame)
    for found, wanted in (
        (reranker.rerank(table, NUMBERS).frame, expected),
        (top_k(table, NUMBERS, 3), top_k(frame, NUMBERS, 3)),
    ):
        assert type(found) is type(table)
        as_pandas = found if isinstance(found, pd.DataFrame) else found.to_pandas()
        pd.testing.assert_frame_equal(as_pandas, wanted)


def matrix(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    dense = np.full((frame["user"].nunique(), 30), -np.inf)
    dense[frame["user"], frame["item"]] = frame["relevance"]
    return dense


@pytest.mark.parametrize("n", [None, 5, 12, 100])
@pytest.mark.parametrize("cells", [1, 1 << 22])
def test_a_matrix_of_scores_is_read_as_its_table_is(n, cells, monkeypatch):
    monkeypatch.setattr("recsys_budget.rerank.scores._CELLS", cells)
    frame = candidates()
    best = frame if n is None else frame.groupby("user").head(n)
    expected = CandidateTable.from_frame(best, NUMBERS, 3)
    users = list(range(40))
    stored = sparse.csr_array((frame["relevance"], (frame["user"], frame["item"])), shape=(40, 30))
    assert stored.nnz == len(frame)  # scores of 0 are candidates too
    backwards = np.arange(40)[::-1]
    for given_matrix, ids in (
        (matrix(frame), users),
        (matrix(frame).astype(np.float32), users),
        (stored, users),
        (stored.tocoo(), users),
        (matrix(frame)[backwards], backwards.tolist()),
    ):
        assert same(CandidateTable.read(Scores(given_matrix, ids, n), NUMBERS, 3), expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_whole_numbers_are_scores_too(kind):
    scores = Scores(np.eye(30, dtype=kind)[:2], ["u", "v"], n=2)
    assert CandidateTable.read(scores, NUMBERS, 1).items.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda: Scores(np.zeros((2, 3)), ["u"]), "shape"),
        (lambda: Scores(np.zeros(3), ["u"] * 3), "shape"),
        (lambda: Scores(np.zeros((1, 30)), ["u"], n=0), "n=0"),
        (lambda: Scores(np.full((1, 30), "x"), ["u"]), "no numbers"),
        (lambda: Scores(np.zeros((1, 3)), ["u"]), "3 columns for 30 items"),
        (lambda: Scores(np.zeros((2, 30)), ["u", "u"]), "'u' is listed twice"),
        (lambda: Scores(np.zeros((2, 30)), ["u", None]), "missing id"),
        (lambda: Scores(np.zeros((2, 30)), [0.5, 1.5]), "ids are floating"),
        (lambda: Scores(np.zeros((0, 30)), []), "at least one row"),
        (lambda: Scores(np.full((1, 30), np.nan), ["u"], n=2), "nan, which is not a finite number"),
        (lambda: Scores(np.full((1, 30), np.inf), ["u"]), "inf, which is not a finite number"),
        (lambda: Scores(np.full((1, 30), -np.inf), ["u"]), "'u' has no candidate"),
        (lambda: Scores(sparse.csr_array(([-np.inf], ([0], [3])), (1, 30)), ["u"]), "item 3"),
        (lambda: Scores(sparse.csr_array((2, 30)), ["u", "v"]), "'u' has no candidate"),
        (lambda: Scores(sparse.coo_array(([1.0, 2.0], ([0, 0], [3, 3])), (1, 30)), ["u"]), "twice"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises((DataError, SpecificationError), match=message):
        Reranker(constraints=[SlateSize(1)]).rerank(scores(), NUMBERS)


class Fitted:
    """Offers the same candidates to everybody."""

    def recommend(self, interactions: Interactions, k: int) -> pd.DataFrame:
        users = interactions.users.repeat(k)
        items = list(interactions.catalogue.ids[:k]) * len(interactions.users)
        scores = np.tile(np.arange(k, 0, -1.0), len(interactions.users))
        return pd.DataFrame({"user": users, "item": items, "relevance": scores})


def test_a_model_and_interactions_are_enough():
    used = pd.DataFrame({"user": ["u", "u", "v"], "item": ["20", "22", "23"]})
    interactions = Interactions.from_frame(used, catalogue=NUMBERS)
    reranker = Reranker(constraints=[SlateSize(2), Calibration(0.1)])
    slates = reranker.recommend(Fitted(), interactions, n_candidates=4)
    # Who used even items alone gets even ones, of category A; and the other way round.
    assert slates.frame["item"].tolist() == ["0", "2", "1", "3"]
    with pytest.raises(SpecificationError, match="n_candidates=1"):
        reranker.recommend(Fitted(), interactions, n_candidates=1)


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad", path="a.csv", line=3, column="item"),
        BudgetExceededError("too much", requested=2.0, remaining=1.0, cap=3.0),
        InfeasibleError("no slate", user="u", conflict=["a", "b"]),
        SolverTimeoutError("late", time_limit=1.0, users=["u"], n_users=1),
    ],
)
def test_errors_survive_the_way_between_processes(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
