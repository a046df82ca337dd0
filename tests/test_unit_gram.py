"""The Gram matrix of unit rows: against its definition in rational numbers, and bounded for every user."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from test_queries import BUDGET, MECHANISM, Seen, table_of

from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.privacy import PrivacyLedger, PrivateQueries, SystemNoise
from recsys_budget.privacy import queries as queries_module
from recsys_budget.privacy._unit_gram import unit_gram_sum


def rows_of(histories, n):
    table = np.zeros((len(histories), n))
    for user, history in enumerate(histories):
        table[user, list(history)] = 1
    return sparse.csr_array(table)


def by_definition(rows, weights, centre):
    total = np.zeros((rows.shape[1],) * 2)
    for row in rows.toarray():
        y = weights * (row - row.sum() * centre)
        least = np.linalg.norm(weights * row) / 8
        if row.any():
            y = y / max(np.linalg.norm(y), least)
        total += np.outer(y, y)
    return total


def some_rows(rng, users=60, n=15):
    return rows_of([rng.choice(n, rng.integers(0, n + 1), replace=False) for _ in range(users)], n)


def shares(rng, n):
    return rng.dirichlet(np.full(n, 0.7)) * rng.choice([0.5, 1.0])


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_it_says(seed):
    rng = np.random.default_rng(seed)
    rows, weights = some_rows(rng), rng.uniform(0.1, 3, 15)
    centre = np.zeros(15) if seed == 0 else shares(rng, 15)
    found = unit_gram_sum(rows, weights, centre)
    np.testing.assert_allclose(found, (1 - 2.0**-10) * by_definition(rows, weights, centre), atol=1e-3)
    np.testing.assert_array_equal(found, found.T)
    # Weights count by their ratios alone.
    np.testing.assert_allclose(unit_gram_sum(rows, 7 * weights, centre), found, atol=1e-3)


def test_a_row_that_its_centre_nearly_cancels_counts_by_an_eighth_of_its_norm():
    rows, weights = rows_of([range(15)], 15), np.geomspace(1, 30, 15)
    centre = np.full(15, 0.99 / 15)
    found = unit_gram_sum(rows, weights, centre)
    np.testing.assert_allclose(found, (1 - 2.0**-10) * by_definition(rows, weights, centre), atol=1e-5)
    assert np.trace(found) == pytest.approx((8 * 0.01) ** 2, rel=0.01)


def test_the_order_of_users_changes_no_bit():
    rng = np.random.default_rng(1)
    rows, weights, centre = some_rows(rng, 500), rng.uniform(0.1, 3, 15), shares(rng, 15)
    shuffled = rows[rng.permutation(500)]
    np.testing.assert_array_equal(
        unit_gram_sum(rows, weights, centre), unit_gram_sum(shuffled, weights, centre)
    )


ADVERSARIES = {
    "nothing": [],
    "one item": [3],
    "the rarest item": [39],
    "two items": [0, 39],
    "everything": range(40),
    "all but one": range(39),
    "the popular half": range(20),
    "the rare half": range(20, 40),
}


@pytest.mark.parametrize("history", ADVERSARIES.values(), ids=ADVERSARIES)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_no_user_moves_it_by_more_than_one(history, flat, spread):
    """Among many others, and where the centre nearly cancels a row: `everything` under a flat centre."""
    rng = np.random.default_rng(2)
    others = some_rows(rng, 400, 40)
    centre = np.full(40, 1 / 40) if flat else np.geomspace(1, 1e-6, 40) / np.geomspace(1, 1e-6, 40).sum()
    weights = np.geomspace(1, spread, 40)
    both = sparse.vstack([others, rows_of([history], 40)]).tocsr()
    moved = unit_gram_sum(sparse.csr_array(both), weights, centre) - unit_gram_sum(others, weights, centre)
    assert np.linalg.norm(moved) <= 1 - 2.0**-11
    if len(history) and not (flat and len(history) == 40):
        assert np.linalg.norm(moved) > 0.99  # and nobody counts less than they may


def test_norms_hold_in_rational_numbers():
    """What a user counts, times the exact squared norm of the row, is at most 1 less the margin."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(1, 30))
        history = rng.choice(n, rng.integers(1, n + 1), replace=False)
        weights, centre = 10.0 ** rng.uniform(-1, 1, n), shares(rng, n)
        weights[0], centre = 0.1, np.floor(centre * 2**30) / 2**30
        lone = unit_gram_sum(rows_of([history], n), weights, centre)
        x = [Fraction(int(i in history)) for i in range(n)]
        y = [
            Fraction(w) * (a - len(history) * Fraction(c)) for w, a, c in zip(weights, x, centre, strict=True)
        ]
        norm = sum(v * v for v in y)
        own = sum(Fraction(w) ** 2 * a for w, a in zip(weights, x, strict=True))
        best = max(norm, own / 64)
        assert np.trace(lone) == pytest.approx(float(norm / best) * (1 - 2.0**-10), abs=2e-4)
        assert np.trace(lone) <= 1 - 2.0**-10 + 1e-9


def test_sums_past_53_bits_are_exact():
    """Ten thousand equal users, whose shares add up past what float64 adds without error."""
    rows = rows_of([range(3)] * 10_000, 5)
    lone = unit_gram_sum(rows_of([range(3)], 5), np.ones(5), np.zeros(5))
    np.testing.assert_array_equal(unit_gram_sum(rows, np.ones(5), np.zeros(5)), 10_000 * lone)


def test_the_query_hands_over_what_was_asked(monkeypatch):
    seen = Seen()
    monkeypatch.setattr(queries_module, "release_sum", seen)
    rng = np.random.default_rng(4)
    histories = [rng.choice(12, rng.integers(1, 13), replace=False) for _ in range(50)]
    chosen, weights, centre = [7, 0, 11], np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.25, 0.25])
    gram = PrivateQueries(table_of(histories), PrivacyLedger(BUDGET)).unit_gram(
        MECHANISM, items=[f"i{k}" for k in chosen], weights=weights, centre=centre
    )
    expected = unit_gram_sum(rows_of(histories, 12)[:, chosen], weights, centre)
    np.testing.assert_array_equal(gram.matrix, expected)
    assert gram.items.tolist() == ["i7", "i0", "i11"]
    assert seen.sensitivity == gram.sensitivity == 1.0
    assert seen.mechanism == gram.mechanism == MECHANISM
    assert gram.standard_error == pytest.approx(3.0 / np.sqrt(2))


def test_its_noise_has_the_size_it_states():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(300)]}))
    nobody = table_of([], catalogue)
    gram = PrivateQueries(nobody, PrivacyLedger(BUDGET)).unit_gram(MECHANISM)
    above = gram.matrix[np.triu_indices(300, 1)]
    assert above.std() / gram.standard_error == pytest.approx(1, abs=0.02)  # 45,000 draws: 0.0033
    assert np.diag(gram.matrix).std() / (gram.standard_error * np.sqrt(2)) == pytest.approx(1, abs=0.2)
    assert SystemNoise.private
    assert gram.private


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": np.ones(11)},
        {"weights": np.zeros(12)},
        {"weights": -np.ones(12)},
        {"weights": np.full(12, np.nan)},
        {"weights": np.full(12, np.inf)},
        {"weights": np.geomspace(1, 101, 12)},
        {"centre": np.full(11, 0.01)},
        {"centre": np.full(12, 0.1)},
        {"centre": np.full(12, np.nan)},
        {"centre": np.linspace(-0.01, 0.1, 12)},
        {"items": ["i0", "i0"]},
        {"items": []},
        {"items": ["nowhere"]},
    ],
)
def test_wrong_arguments_cost_nothing(wrong):
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(SpecificationError):
        PrivateQueries(table_of([[1, 2]]), ledger).unit_gram(MECHANISM, **wrong)
    assert ledger.spent == 0
