from __future__ import annotations

import json
from itertools import combinations
from math import log, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.metrics import calibration_kl, category_coverage, intra_list_diversity, novelty

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("metrics.json").read_text(encoding="utf-8"))
CATEGORIES = {"x": ["red"], "y": ["red"], "z": ["blue"], "xz": ["red", "blue"], "g": ["green"], "none": []}
POPULARITY = [1 / 2, 1 / 4, 1, 1 / 8, 1 / 2, 0]  # in the order of CATEGORIES


def catalogue(categories=CATEGORIES):
    return ItemCatalogue.from_frame(
        pd.DataFrame({"item": list(categories), "categories": categories.values()})
    )


def ranking(lists):
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pd.DataFrame(rows, columns=["user", "item", "rank"])


def pairs(lists, categories=CATEGORIES):
    rows = [(user, item) for user, chosen in lists.items() for item in chosen]
    frame = pd.DataFrame(rows, columns=["user", "item"])
    return Interactions.from_frame(frame, catalogue=catalogue(categories))


METRICS = {
    "intra_list_diversity": lambda frame: intra_list_diversity(frame, catalogue()),
    "category_coverage": lambda frame: category_coverage(frame, catalogue()),
    "novelty": lambda frame: novelty(frame, catalogue(), np.full(len(CATEGORIES), 0.3)),
    "calibration_kl": lambda frame: calibration_kl(
        frame, pairs({"u": ["x", "g"], "v": ["z"], "w": ["none"]})
    ),
}
every_metric = pytest.mark.parametrize("name", METRICS)
item_lists = st.lists(st.sampled_from(list(CATEGORIES)), unique=True, min_size=1)
rankings = st.dictionaries(st.sampled_from(["u", "v", "w", "t"]), item_lists).map(
    lambda lists: {"u": ["x", "z"]} | lists
)


@every_metric
@settings(deadline=None, max_examples=40)
@given(lists=rankings, seed=st.integers(0, 99))
def test_values_belong_to_users_whatever_the_order_of_rows(name, lists, seed):
    frame = ranking(lists)
    values = METRICS[name](frame)
    label = "calibration_kl (not private)" if name == "calibration_kl" else name
    assert (list(values.index), values.name, values.index.name) == (list(lists), label, "user")
    bounds = {"novelty": (1.7, 1.8), "calibration_kl": (0, -log(0.01))}.get(name, (0, 1))
    assert values.dropna().between(*bounds).all()
    shuffled = METRICS[name](frame.sample(frac=1, random_state=seed))
    pd.testing.assert_series_equal(shuffled[values.index], values)


@every_metric
def test_an_empty_ranking_gives_an_empty_series(name):
    values = METRICS[name](ranking({}))
    assert values.shape == (0,)
    assert values.dtype == np.float64


@every_metric
@pytest.mark.parametrize("convert", [pl.from_pandas, pa.Table.from_pandas])
def test_reads_other_tables(name, convert):
    frame = ranking({"u": ["x", "z"], "v": ["xz", "g"]})
    pd.testing.assert_series_equal(METRICS[name](convert(frame)), METRICS[name](frame))


@every_metric
def test_names_an_unknown_item(name):
    with pytest.raises(DataError, match="'mystery' is not in the catalogue") as caught:
        METRICS[name](ranking({"u": ["x", "mystery"]}))
    assert (caught.value.line, caught.value.column) == (2, "item")


@every_metric
@pytest.mark.parametrize("column", ["item", "rank"])
def test_refuses_a_repeated_item_or_rank(name, column):
    frame = ranking({"u": ["x", "z"]})
    frame[column] = frame.at[0, column]
    with pytest.raises(DataError, match="twice"):
        METRICS[name](frame)


@pytest.mark.parametrize("function", [intra_list_diversity, category_coverage])
def test_needs_categories(function):
    bare = ItemCatalogue.from_frame(pd.DataFrame({"item": ["x"]}))
    with pytest.raises(SpecificationError, match="no categories"):
        function(ranking({"u": ["x"]}), bare)
    with pytest.raises(SpecificationError, match="no categories"):
        calibration_kl(ranking({"u": ["x"]}), Interactions.from_frame(ranking({"u": ["x"]}), catalogue=bare))


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["x", "y"], 0),
        (["x", "z", "g"], 1),
        (["x", "z", "xz"], 1 - 2 / sqrt(2) / 3),
        (["x", "y", "z"], 1 - 1 / 3),
        (["x", "y", "none"], 1 - 1 / 3),
    ],
)
def test_intra_list_diversity_by_hand(items, expected):
    value = intra_list_diversity(ranking({"u": items}), catalogue())["u"]
    assert value == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("item", ["x", "xz", "none"])
def test_the_diversity_of_one_item_is_undefined(item):
    values = intra_list_diversity(ranking({"u": [item], "v": ["x", "z"]}), catalogue())
    assert np.isnan(values["u"])
    assert values.mean() == 1


sets = st.lists(st.sets(st.sampled_from("abcdefg")), min_size=2, max_size=12)


@settings(deadline=None, max_examples=60)
@given(sets=sets)
def test_intra_list_diversity_is_the_mean_over_pairs(sets):
    categories = {"spare": ["a"]} | {f"i{number}": sorted(chosen) for number, chosen in enumerate(sets)}
    value = intra_list_diversity(ranking({"u": list(categories)[1:]}), catalogue(categories))["u"]
    distances = [1 - len(a & b) / sqrt(max(len(a) * len(b), 1)) for a, b in combinations(sets, 2)]
    assert value == pytest.approx(np.mean(distances), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(chosen=st.sets(st.sampled_from("abcdefg"), min_size=1), n=st.integers(2, 12))
def test_items_with_the_same_categories_have_no_diversity(chosen, n):
    categories = {f"i{number}": sorted(chosen) for number in range(n)}
    value = intra_list_diversity(ranking({"u": list(categories)}), catalogue(categories))["u"]
    assert value == pytest.approx(0, abs=1e-12)
    assert value >= 0


def test_calibration_by_hand():
    # History half red, half blue; list three quarters red (x, and half of xz), one quarter blue.
    alpha = 0.1
    value = calibration_kl(ranking({"u": ["x", "xz"]}), pairs({"u": ["y", "z"]}), alpha=alpha)["u"]
    red, blue = 0.9 * 3 / 4 + 0.1 / 2, 0.9 / 4 + 0.1 / 2
    assert value == pytest.approx(log(0.5 / red) / 2 + log(0.5 / blue) / 2, abs=1e-15)


@settings(deadline=None, max_examples=40)
@given(items=item_lists.filter(lambda items: items != ["none"]), alpha=st.floats(0.001, 0.999))
def test_a_list_like_the_history_is_calibrated(items, alpha):
    value = calibration_kl(ranking({"u": items}), pairs({"u": items}), alpha=alpha)["u"]
    assert value == pytest.approx(0, abs=1e-12)
    assert value >= 0


@pytest.mark.parametrize("items", [["g"], ["none"], ["g", "none"]])
def test_a_list_without_any_category_of_the_history_is_as_far_as_can_be(items):
    value = calibration_kl(ranking({"u": items}), pairs({"u": ["x", "z"]}), alpha=0.05)["u"]
    assert value == pytest.approx(-log(0.05), abs=1e-12)


def test_items_without_a_category_do_not_count_for_calibration():
    with_them = calibration_kl(ranking({"u": ["x", "none"]}), pairs({"u": ["z", "x", "none"]}))
    without = calibration_kl(ranking({"u": ["x"]}), pairs({"u": ["z", "x"]}))
    assert with_them["u"] == pytest.approx(without["u"], abs=1e-15)


def test_calibration_needs_a_history():
    values = calibration_kl(ranking({"u": ["x"], "v": ["x"], "t": ["x"]}), pairs({"u": ["x"], "v": ["none"]}))
    assert values.isna().to_dict() == {"u": False, "v": True, "t": True}
    with pytest.raises(DataError, match="no user of the ranking"):
        calibration_kl(ranking({"U": ["x"]}), pairs({"u": ["x"]}))


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.1, float("nan")])
def test_calibration_refuses_alphas_that_are_no_share(alpha):
    with pytest.raises(SpecificationError, match="between 0 and 1"):
        calibration_kl(ranking({"u": ["x"]}), pairs({"u": ["x"]}), alpha=alpha)


def test_category_coverage_by_hand():
    lists = {"a": ["x", "y"], "b": ["xz", "none"], "c": ["none"], "d": ["g", "xz", "x"]}
    assert category_coverage(ranking(lists), catalogue()).to_dict() == {
        "a": 1 / 3,
        "b": 2 / 3,
        "c": 0,
        "d": 1,
    }


def test_novelty_by_hand():
    values = novelty(ranking({"u": ["x", "xz"], "v": ["z"], "w": ["y", "g", "x"]}), catalogue(), POPULARITY)
    assert values.to_dict() == pytest.approx({"u": 2, "v": 0, "w": 4 / 3})


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), float("inf")])
def test_novelty_needs_a_popularity_of_every_ranked_item(share):
    popularity = [share, *POPULARITY[1:]]
    with pytest.raises(DataError, match="popularity of item 'x'") as caught:
        novelty(ranking({"u": ["y", "x"]}), catalogue(), popularity)
    assert caught.value.line == 2
    assert novelty(ranking({"u": ["y"]}), catalogue(), popularity)["u"] == 2


def test_novelty_needs_one_popularity_an_item():
    with pytest.raises(SpecificationError, match="6 items"):
        novelty(ranking({"u": ["x"]}), catalogue(), POPULARITY[1:])


def golden_values():
    inputs = GOLDEN["inputs"]
    frame, items = ranking(inputs["ranking"]), catalogue(inputs["categories"])
    history = pairs(inputs["history"], inputs["categories"])
    popularity = np.bincount(history.indices, minlength=len(items)) / history.n_users
    return {
        "intra_list_diversity": intra_list_diversity(frame, items),
        "calibration_kl": calibration_kl(frame, history, alpha=GOLDEN["alpha"]),
        "category_coverage": category_coverage(frame, items),
        "novelty": novelty(frame, items, popularity),
    }


@every_metric
def test_agrees_with_other_libraries(name):
    expected = GOLDEN["metrics"][name]["values"]
    assert len(expected) == 9
    assert golden_values()[name].to_dict() == pytest.approx(expected, abs=1e-9)
