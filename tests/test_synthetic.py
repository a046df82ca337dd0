"""The generator: did the stated truth make the data, and is the bundled edition the same to the byte?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from recsys_budget.data._names import HOSTILE_TITLES
from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.interactions import Interactions
from recsys_budget.data.synthetic import (
    BUNDLED,
    BUNDLED_SEED,
    LARGE,
    SyntheticData,
    SyntheticSpec,
    make_interactions,
)
from recsys_budget.errors import SpecificationError

COMMITTED = Path(__file__).resolve().parents[1] / "data" / "bundled"


@pytest.fixture(scope="module")
def bundled() -> SyntheticData:
    return make_interactions(BUNDLED, BUNDLED_SEED)


@pytest.fixture(scope="module")
def crowd() -> SyntheticData:
    """More users than are made at once, on few items."""
    return make_interactions(SyntheticSpec(25_000, 40, 6, 4, mean_draws=12, cold_start_share=0.2), 5)


def assert_same(left: Interactions, right: Interactions) -> None:
    assert left.users.equals(right.users)
    assert left.catalogue.ids.equals(right.catalogue.ids)
    for name in ("indptr", "indices", "ratings", "timestamps"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.catalogue.category_names == right.catalogue.category_names
    assert left.catalogue.provider_names == right.catalogue.provider_names
    np.testing.assert_array_equal(left.catalogue.titles, right.catalogue.titles)
    np.testing.assert_array_equal(left.catalogue.provider_codes, right.catalogue.provider_codes)
    np.testing.assert_array_equal(left.catalogue.membership.toarray(), right.catalogue.membership.toarray())


# The bundled edition


def test_bundled_edition_is_recreated_byte_for_byte(bundled: SyntheticData, tmp_path: Path) -> None:
    bundled.to_csv(tmp_path / "made" / "here")
    for name in ("interactions.csv", "items.csv"):
        assert (tmp_path / "made" / "here" / name).read_bytes() == (COMMITTED / name).read_bytes()


def test_bundled_edition_is_small() -> None:
    assert (COMMITTED / "interactions.csv").stat().st_size < 2_900_000
    assert b"\r" not in (COMMITTED / "items.csv").read_bytes()


def test_files_read_back_as_the_same_interactions(bundled: SyntheticData) -> None:
    items = pd.read_csv(COMMITTED / "items.csv", dtype=str, keep_default_na=False)
    rows = pd.read_csv(COMMITTED / "interactions.csv", dtype={"user": str, "item": str})
    catalogue = ItemCatalogue.from_frame(items)
    assert_same(Interactions.from_frame(rows, catalogue=catalogue, duplicates="error"), bundled.interactions)


def test_data_card_states_the_figures_of_the_data(bundled: SyntheticData) -> None:
    card = (COMMITTED / "README.md").read_text(encoding="utf-8")
    table = bundled.interactions
    counts = np.sort(np.bincount(table.indices, minlength=table.n_items))[::-1]
    ratings = np.asarray(table.ratings)
    figures = {
        "users": f"{table.n_users:,}",
        "cold-start users": f"{(bundled.draws <= 4).sum():,}",
        "items": f"{table.n_items:,}",
        "categories": str(len(table.catalogue.category_names)),
        "providers": str(len(table.catalogue.provider_names)),
        "interactions": f"{len(table):,}",
        "rated 4 or 5": f"{(ratings >= 4).mean():.1%}",
        "share of the most used 10% of items": f"{counts[: table.n_items // 10].sum() / counts.sum():.1%}",
        "Gini coefficient of item use": f"{gini(counts):.2f}",
    }
    for what, figure in figures.items():
        assert f"| {what} | {figure} |" in card
    for title in HOSTILE_TITLES:
        assert f"`{title}`".replace("|", "\\|") in card
    for field in dataclasses.fields(BUNDLED):
        assert f"`{field.name}={getattr(BUNDLED, field.name)}`" in card
    assert f"seed {BUNDLED_SEED}" in card


def gini(counts: NDArray[np.int64]) -> float:
    ascending = np.sort(counts)
    ranks = np.arange(1, len(counts) + 1)
    return float(2 * (ranks * ascending).sum() / (len(counts) * ascending.sum()) - 1 - 1 / len(counts))


def test_bundled_edition_rewards_personalisation(bundled: SyntheticData) -> None:
    """Recall@20 of held-out users' positives: popularity, an item-item model, and the truth."""
    table = bundled.interactions.positives(4.0)
    rng = np.random.default_rng(0)
    n_positives = np.diff(table.indptr)
    test = rng.choice(np.flatnonzero(n_positives >= 5), 500, replace=False)
    train = np.setdiff1d(np.arange(table.n_users), test)
    known = table.matrix()[test].toarray()
    hidden = np.zeros_like(known)
    for row in range(len(test)):
        items = rng.permutation(np.flatnonzero(known[row]))
        items = items[: round(0.2 * len(items))]
        known[row, items], hidden[row, items] = 0, 1

    gram = (table.matrix()[train].T @ table.matrix()[train]).toarray().astype(np.float64)
    precision = np.linalg.inv(gram + 300 * np.eye(len(gram)))
    weights = np.eye(len(gram)) - precision / np.diag(precision)  # EASE, Steck 2019, arXiv:1905.03375

    def recall(scores: NDArray[np.float64]) -> float:
        top = np.argsort(np.where(known > 0, -np.inf, scores), axis=1)[:, -20:]
        return float((np.take_along_axis(hidden, top, 1).sum(1) / np.minimum(20, hidden.sum(1))).mean())

    popularity = recall(np.broadcast_to(np.diag(gram), known.shape))
    ease = recall(known @ weights)
    truth = recall(bundled.affinity(test))
    assert 0.18 < popularity < 0.26
    assert 1.6 * popularity < ease < truth


# What every edition promises


@settings(max_examples=40, deadline=None)
@given(
    n_users=st.integers(1, 40),
    extra_items=st.integers(0, 30),
    n_categories=st.integers(2, 24),
    n_providers=st.integers(1, 40),
    cold_start_share=st.sampled_from([0.0, 0.5, 1.0]),
    concentration=st.sampled_from([0.01, 1.0, 20.0]),
    exponent=st.sampled_from([0.0, 1.5, 10.0]),
    seed=st.integers(0, 2**32),
)
def test_any_edition_is_well_formed(
    n_users: int,
    extra_items: int,
    n_categories: int,
    n_providers: int,
    cold_start_share: float,
    concentration: float,
    exponent: float,
    seed: int,
) -> None:
    spec = SyntheticSpec(
        n_users,
        max(n_categories, n_providers) + extra_items,
        n_categories,
        n_providers,
        cold_start_share=cold_start_share,
        concentration=concentration,
        exponent=exponent,
    )
    data = make_interactions(spec, seed)
    table, catalogue = data.interactions, data.interactions.catalogue
    assert table.unaccounted == ()
    assert (table.indptr.dtype.name, table.indices.dtype.name) == ("int64", "int32")
    assert table.ratings is not None
    assert table.timestamps is not None
    assert (table.ratings.dtype.name, table.timestamps.dtype.name) == ("float32", "int64")
    assert set(np.unique(table.ratings)) <= {1, 2, 3, 4, 5}
    # from_frame sorts and refuses repeated pairs, so what it leaves alone is in order and free of repeats.
    frame = table.to_frame()
    assert_same(Interactions.from_frame(frame, catalogue=catalogue, duplicates="error"), table)
    assert (np.diff(table.indptr) >= 1).all()
    assert (np.diff(table.indptr) <= data.draws).all()
    assert len(catalogue) == spec.n_items
    n_categories_of_item = np.diff(catalogue.membership.indptr)
    assert 1 <= n_categories_of_item.min() <= n_categories_of_item.max() <= 4
    assert set(catalogue.membership.indices) == set(range(n_categories))
    assert set(catalogue.provider_codes) == set(range(n_providers))
    assert (data.draws <= 4).all() or cold_start_share < 1
    assert (data.draws >= 10).all() or cold_start_share > 0
    assert not frame.duplicated(["user", "timestamp"]).any()
    np.testing.assert_allclose(data.affinity(np.arange(n_users)).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(data.theta.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(data.phi.toarray().T > 0, catalogue.membership.toarray() > 0)


def test_the_seed_decides_everything() -> None:
    spec = SyntheticSpec(50, 100)
    first = make_interactions(spec, 3)
    again = make_interactions(spec, np.random.default_rng(3))
    assert_same(first.interactions, again.interactions)
    np.testing.assert_array_equal(first.theta, again.theta)
    np.testing.assert_array_equal(first.phi.toarray(), again.phi.toarray())
    np.testing.assert_array_equal(first.draws, again.draws)
    other = make_interactions(spec, 4)
    assert not np.array_equal(first.interactions.indices, other.interactions.indices)
    unseeded = make_interactions(spec), make_interactions(spec)
    assert not np.array_equal(unseeded[0].theta, unseeded[1].theta)


def test_arrays_are_read_only(bundled: SyntheticData) -> None:
    for array in (bundled.theta, bundled.phi.data, bundled.draws, bundled.interactions.indices):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# Does the data follow the stated truth?


def misfit(data: SyntheticData, theta: NDArray[np.float32]) -> float:
    """Chi-square-like distance, a degree of freedom, from what ``theta`` makes probable; about 1 if true.

    Users are grouped by their strongest category, and item i is in a user's set with probability
    1 - (1 - p_i) ** draws, whatever the other users do: so each cell's count has a known mean and variance.
    """
    chance = 1 - (1 - theta @ data.phi.toarray()) ** data.draws[:, None]
    groups = np.eye(data.spec.n_categories)[data.theta.argmax(axis=1)]
    seen = groups.T @ data.interactions.matrix().toarray()
    z2 = (seen - groups.T @ chance) ** 2 / (groups.T @ (chance * (1 - chance)))
    return float(z2.mean())


def test_choices_follow_tastes_and_item_distributions(crowd: SyntheticData) -> None:
    cells = crowd.spec.n_categories * crowd.spec.n_items
    low, high = (stats.chi2.ppf(level, cells) / cells for level in (1e-4, 1 - 1e-4))
    assert low < misfit(crowd, crowd.theta) < high
    flatter = 0.95 * crowd.theta + 0.05 / crowd.spec.n_categories
    assert misfit(crowd, flatter) > high  # the test has power against tastes that are a little off
    assert misfit(crowd, np.roll(crowd.theta, 1, axis=0)) > 10 * high  # and against users mixed up


def test_tastes_are_dirichlet(crowd: SyntheticData) -> None:
    """With concentration a and means b_c, the variance of theta_c is b_c (1 - b_c) / (a + 1)."""
    base = crowd.theta.mean(axis=0)
    expected = base * (1 - base) / (crowd.spec.concentration + 1)
    np.testing.assert_allclose(crowd.theta.var(axis=0), expected, rtol=0.05)
    few = make_interactions(dataclasses.replace(crowd.spec, n_users=2_000, concentration=0.2), 5)
    assert few.theta.max(axis=1).mean() > crowd.theta.max(axis=1).mean() + 0.1


def test_numbers_of_draws(crowd: SyntheticData, bundled: SyntheticData) -> None:
    for data, share in ((crowd, 0.2), (bundled, 0.1)):
        cold = data.draws <= 4
        assert abs(cold.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(cold))
        np.testing.assert_allclose(np.bincount(data.draws[cold])[1:] / cold.sum(), 0.25, atol=0.07)
        assert data.draws[~cold].min() >= 10
        assert data.draws.max() <= 10 * data.spec.mean_draws
    usual = bundled.draws[bundled.draws > 4]
    assert abs(usual.mean() / bundled.spec.mean_draws - 1) < 0.05
    assert abs(np.log(usual).std() / 0.6 - 1) < 0.1


def test_item_use_has_a_long_tail(bundled: SyntheticData) -> None:
    counts = np.sort(np.bincount(bundled.interactions.indices, minlength=600))[::-1]
    assert 0.4 < counts[:60].sum() / counts.sum() < 0.6
    assert counts[-1] > 0
    flat = make_interactions(dataclasses.replace(BUNDLED, exponent=0.0), BUNDLED_SEED)
    flat_counts = np.sort(np.bincount(flat.interactions.indices, minlength=600))[::-1]
    assert flat_counts[:60].sum() / flat_counts.sum() < 0.25


def test_ratings_rise_with_affinity(bundled: SyntheticData) -> None:
    table = bundled.interactions
    ratings = np.asarray(table.ratings)
    assert 0.55 < (ratings >= 4).mean() < 0.6
    assert np.bincount(ratings.astype(int), minlength=6)[1:].min() > 0.02 * len(table)
    # Affinity against what everyone thinks of the item, so that popular items get no credit.
    affinity = bundled.affinity(np.arange(table.n_users))
    lift = (affinity / affinity.mean(axis=0))[table.rows, table.indices]
    by_quarter = [q["rating"].mean() for _, q in table.to_frame().groupby(pd.qcut(lift, 4, labels=False))]
    assert (np.diff(by_quarter) > 0.1).all()


def test_times_come_in_sessions(bundled: SyntheticData) -> None:
    frame = bundled.interactions.to_frame().sort_values(["user", "timestamp"])
    start = pd.Timestamp("2020-01-01").timestamp()
    joined = frame.groupby("user")["timestamp"].min()
    assert joined.between(start, start + 731 * 86_400).all()
    gaps = frame.groupby("user")["timestamp"].diff().dropna()
    assert gaps.min() >= 40
    pauses = gaps < 20 * 60
    assert 0.6 < pauses.mean() < 0.85
    assert gaps[~pauses].mean() > 4 * 86_400


def test_providers_are_uneven_and_lean_towards_categories() -> None:
    catalogue = make_interactions(SyntheticSpec(1, 20_000), 0).interactions.catalogue
    sizes = np.sort(np.bincount(catalogue.provider_codes))[::-1]
    assert sizes[0] > 5 * np.median(sizes)
    providers = np.eye(len(sizes))[catalogue.provider_codes]
    shares = providers.T @ catalogue.membership.toarray()
    shares /= shares.sum(axis=1, keepdims=True)
    overall = catalogue.membership.sum(axis=0) / catalogue.membership.sum()
    assert np.median((shares / overall).max(axis=1)) > 2


def test_titles_differ_and_hostile_ones_are_met(bundled: SyntheticData) -> None:
    catalogue = bundled.interactions.catalogue
    assert len(set(catalogue.titles)) == len(catalogue)
    hostile = np.isin(catalogue.titles, HOSTILE_TITLES)
    assert hostile.sum() == len(HOSTILE_TITLES)
    counts = np.bincount(bundled.interactions.indices, minlength=len(catalogue))
    assert np.median(counts[hostile]) > 3 * np.median(counts)
    many = make_interactions(dataclasses.replace(LARGE, n_users=1), 0).interactions.catalogue
    assert len(set(many.titles)) == 100_000


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_users": 0}, r"n_users=0; use a whole number from 1"),
        ({"n_users": 10.0}, r"n_users=10.0; use a whole number"),
        ({"n_items": 59}, r"n_items=59; use a whole number from 60"),
        ({"n_items": 17, "n_providers": 3}, r"n_items=17; use a whole number from 18"),
        ({"n_categories": 1}, r"n_categories=1; .* from 2 to 24"),
        ({"n_categories": 25}, r"n_categories=25"),
        ({"n_providers": 0}, r"n_providers=0"),
        ({"mean_draws": 0.5}, r"mean_draws=0.5; use a number from 1 to 1000"),
        ({"mean_draws": float("nan")}, r"mean_draws=nan"),
        ({"cold_start_share": 1.1}, r"cold_start_share=1.1; .* from 0 to 1"),
        ({"concentration": 0.0}, r"concentration=0.0"),
        ({"exponent": -1.0}, r"exponent=-1.0"),
        ({"shift": float("inf")}, r"shift=inf"),
        ({"shift": "5"}, r"shift='5'"),
    ],
)
def test_impossible_specifications_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        SyntheticSpec(**{"n_users": 10, "n_items": 100, **change})  # type: ignore[arg-type]
