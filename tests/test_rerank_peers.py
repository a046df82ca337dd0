"""What the benchmark compares with is what was published, and solves the same problem."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from peers import generated, solvers
from peers.generated import K, N, broken, gained, generate, primary
from peers.heuristics import ProviderMaxMin, _within, greedy_dpp, mmr, xquad

from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.direct import solve_direct
from recsys_budget.rerank.routes.diverse import solve_diverse
from recsys_budget.rerank.routes.exposure import solve_exposure
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar


def example(seed: int, n: int = 9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Falling relevance in [0, 1] and categories, at least one an item."""
    rng = np.random.default_rng(seed)
    member = (rng.random((n, 4)) < 0.4) * 1.0
    member[np.arange(n), rng.integers(0, 4, n)] = 1.0
    return -np.sort(-rng.random(n)), member


def unit(member: NDArray[np.float64]) -> NDArray[np.float64]:
    return member / np.linalg.norm(member, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trade", [0.2, 0.7, 1.0])
def test_mmr_takes_the_best_of_its_formula_each_time(seed: int, trade: float) -> None:
    relevance, member = example(seed)
    rows = unit(member)
    slate = mmr(relevance, rows, 5, trade)
    for place, row in enumerate(slate):
        score = {
            i: trade * relevance[i] - (1 - trade) * max([0.0, *(rows[i] @ rows[j] for j in slate[:place])])
            for i in set(range(9)) - set(slate[:place].tolist())
        }
        assert score[int(row)] == pytest.approx(max(score.values()))


def test_mmr_passes_over_a_copy() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert mmr(np.array([1.0, 0.9, 0.5]), rows, 2, 0.5).tolist() == [0, 2]
    assert mmr(np.array([1.0, 0.9, 0.5]), rows, 2, 1.0).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_dpp_maximises_the_determinant_step_by_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance = -np.sort(-rng.random(9))
    rows = unit(np.abs(rng.normal(size=(9, 6))))
    slate, quality = greedy_dpp(relevance, rows, 5, 3.0), np.exp(1.5 * relevance)
    kernel = quality[:, None] * (rows @ rows.T) * quality
    for place, row in enumerate(slate):
        before = slate[:place].tolist()
        value = {
            i: np.linalg.det(kernel[np.ix_([*before, i], [*before, i])]) for i in set(range(9)) - set(before)
        }
        assert value[int(row)] == pytest.approx(max(value.values()))
    assert len(set(slate.tolist())) == 5


def test_greedy_dpp_of_more_items_than_the_rank_takes_relevant_ones() -> None:
    slate = greedy_dpp(np.array([1.0, 0.9, 0.8, 0.7]), np.ones((4, 1)), 3, 1.0)
    assert slate.tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_xquad_takes_the_best_of_its_formula_each_time(seed: int) -> None:
    relevance, member = example(seed)
    slate, trade = xquad(relevance, member, 5, 0.6), 0.6
    aspects = (member * relevance[:, None]).sum(axis=0)
    aspects /= aspects.sum()
    for place, row in enumerate(slate):
        before = slate[:place].tolist()
        score = {}
        for i in set(range(9)) - set(before):
            new = sum(
                aspects[c]
                * member[i, c]
                * relevance[i]
                * np.prod([1 - member[j, c] * relevance[j] for j in before])
                for c in range(4)
            )
            score[i] = (1 - trade) * relevance[i] + trade * new
        assert score[int(row)] == pytest.approx(max(score.values()))


def test_p_mmf_without_fairness_is_top_k_and_with_it_serves_the_least() -> None:
    rng = np.random.default_rng(0)
    n_users, n_providers = 2_000, 4
    provider = np.repeat(np.arange(n_providers), 10)
    relevance = rng.random((n_users, 40)) * np.array([1.0, 0.8, 0.6, 0.4])[provider]
    room, capacity = np.full(n_providers, 5.0), np.full(n_providers, 1e9)

    def least_shown(trade: float) -> tuple[float, float]:
        method, shown, gain = ProviderMaxMin(room, capacity, trade), np.zeros(n_providers), 0.0
        for scores in relevance:
            slate = method.choose(scores, provider, 5)
            shown += np.bincount(provider[slate], minlength=n_providers)
            gain += scores[slate].sum()
        return shown.min() / (n_users * 5 / n_providers), gain

    method = ProviderMaxMin(room, capacity, 0.0)
    for scores in relevance[:20]:
        np.testing.assert_array_equal(method.choose(scores, provider, 5), np.argsort(-scores)[:5])
    (unfair, most), (fair, less) = least_shown(0.0), least_shown(1.0)
    assert unfair < 0.1
    assert fair > 0.4
    assert 0.7 * most < less < most


def test_p_mmf_respects_capacities() -> None:
    method = ProviderMaxMin(np.full(2, np.inf), np.array([3.0, 100.0]), 1.0)
    provider, shown = np.array([0, 0, 1, 1]), np.zeros(2)
    for _ in range(5):
        shown += np.bincount(
            provider[method.choose(np.array([1.0, 0.9, 0.2, 0.1]), provider, 2)], minlength=2
        )
    assert shown[0] == 4.0  # two users' slates; a provider with one place left may fill two
    assert shown[1] == 6.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(0.1, 2.0), st.integers(0, 10_000))
def test_the_projection_is_the_nearest_point(point: list[float], radius: float, seed: int) -> None:
    scaled = np.array(point)
    inside = _within(scaled, radius)
    assert np.maximum(0.0, -inside).sum() <= radius + 1e-9
    rng = np.random.default_rng(seed)
    for other in rng.uniform(-2, 2, (50, len(point))):
        if np.maximum(0.0, -other).sum() <= radius:
            assert np.linalg.norm(inside - scaled) <= np.linalg.norm(other - scaled) + 1e-9


def test_solvers_of_one_user_agree_with_the_routes() -> None:
    data = generate(4)
    of_item = primary(data)
    low = np.where(data.lower > 0, data.lower, -np.inf)
    high = np.where(data.upper < K, data.upper, np.inf)
    found = solve_laminar(data.offsets, data.gains.ravel(), data.items.ravel(), data.tree)
    for make, whole in itertools.product((solvers.with_cvxpy, solvers.with_highs), (False, True)):
        choose = make(data, of_item, low, high, whole=whole)
        slates = np.array([choose(u) for u in range(4)])
        np.testing.assert_allclose(gained(slates, data), found.objective, rtol=1e-9)
        assert broken(slates, of_item, data).max() == 0.0
    together = solve_direct(data.offsets, data.gains.ravel(), data.items.ravel(), K, data.member, low, high)
    choose = solvers.with_highs(data, data.member, low, high, whole=True)
    np.testing.assert_allclose(
        gained(np.array([choose(u) for u in range(4)]), data), together.objective, rtol=1e-9
    )


def test_broken_counts_from_the_slate() -> None:
    data = generate(1)
    slate = np.arange(K)[None, :]
    counts = data.member[data.items[0, :K]].sum(axis=0)
    expected = max(0.0, *(data.lower - counts), *(counts - data.upper))
    assert broken(slate, data.member, data)[0] == expected
    assert broken(np.full((1, K), -1), data.member, data)[0] == 0.0


def test_solvers_of_everybody_agree_with_the_route() -> None:
    data = generate(30, 5)
    found = solve_coupled(
        data.offsets, data.gains.ravel(), data.items.ravel(), data.tree, data.shares, gap=1e-9
    )
    users = np.flatnonzero(found.feasible)
    for slates in (
        solvers.everybody_with_highs(data, users, 60.0)[0],
        solvers.everybody_with_cvxpy(data, users, 60.0),
    ):
        gain = np.take_along_axis(data.gains[users], slates, axis=1).sum()
        assert gain == pytest.approx(found.objective, rel=1e-5)


def test_diverse_and_fair_programs_agree_with_the_routes() -> None:
    data, weight = generate(3), 0.05
    gains = (1 - weight) * data.gains / data.gains[:, :K].sum(axis=1, keepdims=True)
    pairs = K * (K - 1)
    linear = np.full(generated.N_ITEMS, weight / K + weight / pairs)
    found = solve_diverse(
        data.offsets, gains.ravel(), data.items.ravel(), data.tree, data.unit, weight / pairs, linear, gap=0.0
    )
    choose = solvers.diverse_with_cvxpy(data, gains, linear, weight / pairs)
    for u in range(3):
        items = data.items[u, choose(u)]
        z = data.unit[items].sum(axis=0)
        value = gains[u, choose(u)].sum() + linear[items].sum() - weight / pairs * (z @ z)
        assert 0.99 * found.objective[u] <= value <= found.bound[u] + 1e-9
    discount = 1.0 / np.log2(np.arange(K) + 2.0)
    group = np.where(data.first < 2, 0, 1)
    tree = LaminarTree(np.zeros(generated.N_ITEMS), [-1], [K], [K])
    rankings = solve_exposure(data.offsets, data.gains.ravel(), data.items.ravel(), tree, group, discount)
    for make in (solvers.parity_with_cvxpy, solvers.parity_with_highs):
        solve = make(data.gains, group[data.items], discount)
        for u in range(3):
            value, apart = solve(u)
            assert value == pytest.approx(rankings.objective[u], rel=1e-6)
            assert apart < 1e-6


def test_candidates_are_distinct_and_fall() -> None:
    data = generate(50, dtype=np.float32)
    assert all(len(set(items.tolist())) == N for items in data.items)
    assert (np.diff(data.gains, axis=1) <= 0.0).all()
    assert (data.member.sum(axis=1) >= 1).all()
    assert (data.member[np.arange(len(data.member)), data.first] == 1).all()
