from __future__ import annotations

import json
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.metrics import catalogue_coverage, gini, item_exposure, provider_exposure_disparity

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("metrics.json").read_text(encoding="utf-8"))
PROVIDERS = {"a": "north", "b": "north", "c": "south", "d": "north", "e": ""}


def catalogue(providers=PROVIDERS):
    return ItemCatalogue.from_frame(pd.DataFrame({"item": list(providers), "provider": providers.values()}))


def ranking(lists):
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pd.DataFrame(rows, columns=["user", "item", "rank"])


TWO = ranking({"u": "ac", "v": "cae"})
METRICS = {
    "coverage": lambda frame: catalogue_coverage(frame, catalogue()),
    "exposure": lambda frame: item_exposure(frame, catalogue(), discount="log"),
    "disparity": lambda frame: provider_exposure_disparity(frame, catalogue()).to_numpy(),
}
every_metric = pytest.mark.parametrize("name", METRICS)
rankings = st.dictionaries(
    st.text("uvw", min_size=1, max_size=3), st.lists(st.sampled_from("abcde"), unique=True, min_size=1)
).map(lambda lists: lists | {"t": ["a", "c"]})


@every_metric
def test_names_an_unknown_item(name):
    with pytest.raises(DataError, match="'z' is not in the catalogue"):
        METRICS[name](ranking({"u": "az"}))


@every_metric
def test_refuses_a_repeated_item(name):
    with pytest.raises(DataError, match="twice"):
        METRICS[name](ranking({"u": "aba"}))


@every_metric
@pytest.mark.parametrize("convert", [pl.from_pandas, pa.Table.from_pandas])
def test_reads_other_tables(name, convert):
    np.testing.assert_array_equal(METRICS[name](convert(TWO)), METRICS[name](TWO))


@every_metric
@settings(deadline=None, max_examples=40)
@given(lists=rankings, seed=st.integers(0, 99))
def test_does_not_depend_on_the_order_of_rows(name, lists, seed):
    frame = ranking(lists)
    shuffled = METRICS[name](frame.sample(frac=1, random_state=seed))
    np.testing.assert_allclose(shuffled, METRICS[name](frame), atol=1e-12)


def test_catalogue_coverage_by_hand():
    assert catalogue_coverage(TWO, catalogue()) == 3 / 5
    assert catalogue_coverage(ranking({}), catalogue()) == 0
    assert catalogue_coverage(ranking({"u": "abcde"}), catalogue()) == 1


def test_an_empty_catalogue_cannot_be_covered():
    with pytest.raises(SpecificationError, match="no items"):
        catalogue_coverage(ranking({}), catalogue({}))


def test_item_exposure_by_hand():
    np.testing.assert_array_equal(item_exposure(TWO, catalogue()), [2, 0, 2, 0, 1])
    second, third = 1 / log2(3), 1 / 2
    discounted = item_exposure(TWO, catalogue(), discount="log")
    np.testing.assert_allclose(discounted, [1 + second, 0, 1 + second, 0, third])


def test_nobody_exposes_nothing():
    exposure = item_exposure(ranking({}), catalogue())
    np.testing.assert_array_equal(exposure, np.zeros(5))
    assert exposure.dtype == np.float64


def test_refuses_other_discounts():
    with pytest.raises(SpecificationError, match="'none' or 'log'"):
        item_exposure(TWO, catalogue(), discount="linear")


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [([1, 1, 1, 1], 0), ([0, 0, 0, 5], 3 / 4), ([7], 0), ([1, 3], 1 / 4), ([3, 0, 1], 1 / 2), ([0.1] * 3, 0)],
)
def test_gini_by_hand(exposure, expected):
    assert gini(exposure) == pytest.approx(expected, abs=1e-15)


amounts = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=30).filter(
    lambda values: sum(values) > 1e-3
)


@settings(deadline=None, max_examples=80)
@given(values=amounts, factor=st.floats(0.01, 100))
def test_gini_is_half_the_relative_mean_difference(values, factor):
    x, n = np.array(values), len(values)
    expected = np.abs(x[:, None] - x).sum() / (2 * n * n * x.mean())
    assert gini(values) == pytest.approx(expected, abs=1e-9)
    assert 0 <= gini(values) <= (n - 1) / n + 1e-12
    assert gini(x[::-1] * factor) == pytest.approx(gini(values), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 50), amount=st.floats(1e-3, 1e6))
def test_gini_of_equal_shares_and_of_one_winner(n, amount):
    assert gini(np.full(n, amount)) == pytest.approx(0, abs=1e-12)
    assert gini(np.eye(n)[0] * amount) == pytest.approx((n - 1) / n, abs=1e-12)


@pytest.mark.parametrize(
    "exposure", [[], [0, 0], [1, -1], [1, np.nan], [1, np.inf], [[1, 2], [3, 4]], 3.0], ids=str
)
def test_gini_refuses_what_is_no_exposure(exposure):
    with pytest.raises(DataError, match="finite numbers of at least 0"):
        gini(exposure)


def test_provider_disparity_by_hand():
    # Item e has no provider; north owns 3 of the other 4 items and gets 2 of the 4 places left.
    disparity = provider_exposure_disparity(TWO, catalogue())
    assert disparity.to_dict() == {"north": 2 / 4 - 3 / 4, "south": 2 / 4 - 1 / 4}
    assert disparity.index.name == "provider"
    uniform = provider_exposure_disparity(TWO, catalogue(), target="uniform")
    assert uniform.to_dict() == {"north": 0, "south": 0}


def test_provider_disparity_discounts_ranks_where_asked():
    frame = ranking({"u": "ac"})
    north = 1 / (1 + 1 / log2(3))
    disparity = provider_exposure_disparity(frame, catalogue(), target="uniform", discount="log")
    assert disparity.to_dict() == pytest.approx({"north": north - 1 / 2, "south": 1 / 2 - north})


@settings(deadline=None, max_examples=40)
@given(
    lists=rankings, target=st.sampled_from(["items", "uniform"]), discount=st.sampled_from(["none", "log"])
)
def test_provider_disparities_balance(lists, target, discount):
    disparity = provider_exposure_disparity(ranking(lists), catalogue(), target=target, discount=discount)
    due = pd.Series(
        {"north": 3 / 4, "south": 1 / 4} if target == "items" else {"north": 1 / 2, "south": 1 / 2}
    )
    assert disparity.sum() == pytest.approx(0, abs=1e-12)
    assert disparity.between(-due - 1e-12, 1 - due + 1e-12).all()


def test_a_provider_shown_alone_is_over_by_what_the_others_are_due():
    disparity = provider_exposure_disparity(ranking({"u": "c"}), catalogue())
    assert disparity.to_dict() == {"north": -3 / 4, "south": 3 / 4}


def test_provider_disparity_refuses_what_it_cannot_compare():
    with pytest.raises(SpecificationError, match="no providers"):
        provider_exposure_disparity(TWO, catalogue(dict.fromkeys(PROVIDERS, "")))
    with pytest.raises(SpecificationError, match="'items' or 'uniform'"):
        provider_exposure_disparity(TWO, catalogue(), target="merit")
    for frame in (ranking({}), ranking({"u": "e"})):
        with pytest.raises(DataError, match="no ranked item has a provider"):
            provider_exposure_disparity(frame, catalogue())


def test_agrees_with_other_libraries():
    inputs = GOLDEN["inputs"]
    golden = {name: entry["values"] for name, entry in GOLDEN["metrics"].items()}
    frame, items = ranking(inputs["ranking"]), catalogue(inputs["providers"])
    assert catalogue_coverage(frame, items) == pytest.approx(golden["catalogue_coverage"], abs=1e-9)
    assert gini(item_exposure(frame, items)) == pytest.approx(golden["gini"], abs=1e-9)
    disparity = provider_exposure_disparity(frame, items, discount="log")
    assert disparity.to_dict() == pytest.approx(golden["provider_exposure_disparity"], abs=1e-9)
