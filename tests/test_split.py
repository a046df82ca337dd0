"""Splits never let a held-out user's rows reach training, and lose or invent no row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data import Interactions, ItemCatalogue, hold_out_users, k_core, leave_last_out, time_split
from recsys_budget.errors import SpecificationError

CATALOGUE = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(8)]}))


@st.composite
def tables(draw, min_users=2):
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 7), st.integers(0, 5)),
            min_size=min_users,
            max_size=60,
        )
    )
    rows += [(user, 0, 0) for user in range(min_users)]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    frame["item"] = "i" + frame["item"].astype(str)
    return Interactions.from_frame(frame, catalogue=CATALOGUE)


def pairs(table):
    return set(table.to_frame()[["user", "item"]].itertuples(index=False, name=None))


@settings(deadline=None, max_examples=100)
@given(tables(), st.data())
def test_hold_out_users_separates_users(table, data):
    n = data.draw(st.integers(1, table.n_users - 1))
    share = data.draw(st.floats(0.05, 0.95))
    split = hold_out_users(table, n, held_out_share=share, rng=data.draw(st.integers(0, 99)))
    assert split.fold_in.n_users == split.held_out.n_users == n
    assert list(split.fold_in.users) == list(split.held_out.users)
    assert set(split.train.users).isdisjoint(split.held_out.users)
    assert pairs(split.train) | pairs(split.fold_in) | pairs(split.held_out) == pairs(table)
    assert len(split.train) + len(split.fold_in) + len(split.held_out) == len(table)
    held, folded = np.diff(split.held_out.indptr), np.diff(split.fold_in.indptr)
    assert (held >= 1).all()
    assert ((folded >= 1) | (held == 1)).all()


def test_hold_out_users_follows_the_rng():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 50, 400), "item": rng.integers(0, 8, 400)})
    table = Interactions.from_frame(frame.astype({"item": "str"}).assign(item=lambda f: "i" + f["item"]))
    one, again, other = (hold_out_users(table, 10, rng=seed) for seed in (1, 1, 2))
    assert one.held_out.to_frame().equals(again.held_out.to_frame())
    assert not one.held_out.to_frame().equals(other.held_out.to_frame())
    lengths = np.diff(one.held_out.indptr) + np.diff(one.fold_in.indptr)
    np.testing.assert_array_equal(np.diff(one.held_out.indptr), np.maximum(np.round(0.2 * lengths), 1))


@pytest.mark.parametrize("arguments", [{"n_users": 0}, {"n_users": 2}, {"n_users": 1, "held_out_share": 1.0}])
def test_hold_out_users_refuses(arguments):
    table = Interactions.from_frame(pd.DataFrame({"user": ["a", "b"], "item": ["x", "y"]}))
    with pytest.raises(SpecificationError):
        hold_out_users(table, **arguments)


@settings(deadline=None, max_examples=100)
@given(tables(), st.integers(1, 3))
def test_leave_last_out(table, n):
    train, test = leave_last_out(table, n)
    assert pairs(train) | pairs(test) == pairs(table)
    assert len(train) + len(test) == len(table)
    for user in range(table.n_users):
        before = train.timestamps[train.indptr[user] : train.indptr[user + 1]]
        after = test.timestamps[test.indptr[user] : test.indptr[user + 1]]
        assert len(before) >= 1
        if len(after):
            assert len(after) == n
            assert before.max() <= after.min()
        else:
            assert len(before) <= n


@settings(deadline=None, max_examples=50)
@given(tables(), st.integers(0, 6))
def test_time_split(table, at):
    train, test = time_split(table, at)
    assert (train.timestamps < at).all()
    assert (test.timestamps >= at).all()
    assert len(train) + len(test) == len(table)
    assert train.unaccounted == ()


def test_time_split_takes_dates():
    frame = pd.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "timestamp": [86399, 86400]})
    table = Interactions.from_frame(frame)
    assert time_split(table, "1970-01-02").train.timestamps.tolist() == [86399]
    with pytest.raises(SpecificationError, match="not a date"):
        time_split(table, "tomorrowish")


def test_time_rules_need_times():
    table = Interactions.from_frame(pd.DataFrame({"user": ["a"], "item": ["x"]}))
    for rule in (leave_last_out, lambda t: time_split(t, 0)):
        with pytest.raises(SpecificationError, match="no timestamps"):
            rule(table)


@settings(deadline=None, max_examples=100)
@given(tables(), st.integers(0, 4), st.integers(1, 4))
def test_k_core_is_the_largest_that_holds(table, per_user, per_item):
    core = k_core(table, per_user=per_user, per_item=per_item)
    assert core.unaccounted
    kept = core.to_frame()
    assert (np.diff(core.indptr) >= per_user).all()
    assert (np.bincount(core.indices, minlength=core.n_items) >= per_item).all()
    # By brute force: drop one offending row's user or item at a time until nothing offends.
    rows = table.to_frame()
    while True:
        bad = (rows.groupby("user")["item"].transform("size") < per_user) | (
            rows.groupby("item")["user"].transform("size") < per_item
        )
        if not bad.any():
            break
        rows = rows[~bad]
    assert set(rows[["user", "item"]].itertuples(index=False, name=None)) == pairs(core)
    assert set(kept["item"]) <= set(core.catalogue.ids)


def test_user_rule_alone_costs_nothing():
    frame = pd.DataFrame({"user": list("aab"), "item": ["i1", "i2", "i1"]})
    table = Interactions.from_frame(frame, catalogue=CATALOGUE)
    core = k_core(table, per_user=2)
    assert list(core.users) == ["a"]
    assert core.unaccounted == ()
    assert core.n_items == len(CATALOGUE)
    with pytest.raises(SpecificationError):
        k_core(table, per_user=-1)
