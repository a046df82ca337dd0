"""Candidates read once for many answers: the same promises, in less time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from test_route_coupled import population, random_instance

from recsys_budget.constraints import (
    Cap,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    Policy,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
)
from recsys_budget.constraints.engagement import gains
from recsys_budget.constraints.positions import position_weights
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.rerank import (
    Engagement,
    EngagementDiversity,
    HistoryMatch,
    Novelty,
    Objective,
    Reranker,
    Scores,
    Slates,
)
from recsys_budget.rerank.routes import laminar, oracle
from recsys_budget.rerank.routes.answers import Exchanges
from recsys_budget.rerank.routes.laminar import LaminarTree, looser, solve_laminar
from recsys_budget.rerank.routes.oracle import Oracle

N_USERS, N_ITEMS, N = 300, 80, 24
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame(
        {
            "item": [f"i{j}" for j in range(N_ITEMS)],
            "categories": [("ABCD"[j % 4],) for j in range(N_ITEMS)],
            "provider": [f"p{j * 7 // 3 % 5}" for j in range(N_ITEMS)],
            "cost": np.linspace(1.0, 3.0, N_ITEMS),
            "popularity": np.linspace(0.9, 0.02, N_ITEMS),
        }
    ),
    attributes=("cost", "popularity"),
)


def candidates(n_users: int = N_USERS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    items = np.argsort(rng.random((n_users, N_ITEMS)), axis=1)[:, :N].ravel()
    users = np.repeat([f"u{j}" for j in range(n_users)], N)
    relevance = rng.gamma(2.0, size=len(items)) * (1.0 + (items % 5 == 0))
    return pd.DataFrame({"user": users, "item": CATALOGUE.ids[items], "relevance": relevance})


def own(least: int = 1, most: int = 2, k: int = 5) -> list[Constraint]:
    return [SlateSize(k), CategoryMinimum("A", least), CategoryMaximum("B", most)]


def fair(floor: float = 0.17, **quotas: int) -> list[Constraint]:
    return [*own(**quotas), ProviderMinimum(share=floor), ProviderMaximum(share=0.25)]


def without_time(slates: Slates) -> dict[str, Any]:
    return replace(slates.certificate, seconds=0.0).to_dict()


def check_equal(one: Slates, other: Slates) -> None:
    pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
    assert without_time(one) == without_time(other)
    pd.testing.assert_frame_equal(one.certificate.per_user, other.certificate.per_user, check_exact=True)


def test_rules_about_one_slate_give_what_a_fresh_call_gives() -> None:
    frame = candidates(40)
    asked: list[tuple[Objective, Sequence[Constraint], str]] = [
        (Engagement(), own(), "laminar"),
        (Engagement(), own(least=2), "laminar"),
        (EngagementDiversity(0.3), own(least=2), "diverse"),
        (EngagementDiversity(0.4), own(), "diverse"),
        (Engagement(), [*own(), Cap("cost", 9.0)], "direct"),
        (0.5 * Engagement() + 0.5 * HistoryMatch(), own(k=2), "general"),
        (0.8 * Engagement() + 0.2 * Novelty(), own(k=7), "laminar"),
        (Engagement("log"), own(), "laminar"),
        (Engagement(), own(), "laminar"),
    ]
    used = pd.DataFrame({"user": [f"u{j}" for j in range(40)], "item": "i3"})
    history = Interactions.from_frame(used, catalogue=CATALOGUE)
    prepared = Reranker(*asked[0][:2]).prepare(frame, CATALOGUE, history=history)
    assert len(prepared) == 40
    for objective, rules, route in asked:
        again = prepared.rerank(objective=objective, constraints=rules, progress=False)
        fresh = Reranker(objective, rules).rerank(frame, CATALOGUE, history=history, progress=False)
        check_equal(again, fresh)
        assert again.certificate.route == route


CHANGES: list[dict[str, Any]] = [
    {},
    {"constraints": fair(0.18)},
    {"constraints": fair(0.19)},
    {"constraints": fair(0.18, least=2)},
    {"objective": 0.9 * Engagement() + 0.1 * Novelty(), "constraints": fair(0.18, least=2)},
    {"objective": 0.8 * Engagement() + 0.2 * Novelty(), "constraints": fair(0.18, most=1)},
    {"constraints": [*fair(0.15), ProviderMaximum(300, provider="p0")]},
    {"constraints": fair(0.15, k=6)},
    {"constraints": [*own(), ProviderMinimum(share=0.1)]},
    {"constraints": own()},
    {"constraints": fair(0.19)},
]


def test_rules_about_all_slates_keep_every_promise_and_repeat() -> None:
    frame = candidates()
    reranker = Reranker(Engagement(), fair(), gap=1e-4)
    first, second = (reranker.prepare(frame, CATALOGUE) for _ in range(2))
    for change in CHANGES:
        slates = first.rerank(**change, progress=False)
        check_equal(slates, second.rerank(**change, progress=False))
        fresh = replace(reranker, **change).rerank(frame, CATALOGUE, progress=False)
        certificate = slates.certificate
        assert certificate.route == fresh.certificate.route
        assert certificate.largest_violation <= 1e-9  # 17% of 1,500 rounds
        assert certificate.gap <= 1e-4
        # Each is within the gap of the other's bound.
        assert certificate.objective <= fresh.certificate.bound + 1e-9
        assert fresh.certificate.objective <= certificate.bound + 1e-9
        assert certificate.objective >= (1.0 - 1e-4) * fresh.certificate.objective - 1e-6
    assert first.rerank(progress=False).certificate.violations.keys() == {rule.name for rule in fair()}


def test_a_small_change_takes_fewer_evaluations() -> None:
    frame = candidates()
    reranker = Reranker(Engagement(), fair(0.18), gap=1e-4)
    cold = reranker.rerank(frame, CATALOGUE, progress=False).certificate
    prepared = reranker.prepare(frame, CATALOGUE)
    prepared.rerank(constraints=fair(0.181), progress=False)
    warm = prepared.rerank(progress=False).certificate
    assert warm.iterations < cold.iterations


def test_a_conflict_on_the_way_changes_nothing() -> None:
    frame = candidates()
    straight, crooked = (Reranker(Engagement(), fair(), gap=1e-4).prepare(frame, CATALOGUE) for _ in range(2))
    for prepared in (straight, crooked):
        prepared.rerank(progress=False)
    with pytest.raises(InfeasibleError):
        crooked.rerank(constraints=fair(0.22), progress=False)
    with pytest.raises(SpecificationError, match="exactly one SlateSize"):
        crooked.rerank(constraints=[])
    with pytest.raises(SpecificationError, match="no category 'Z'"):
        crooked.rerank(constraints=[SlateSize(2), CategoryMinimum("Z", 1)])
    with pytest.raises(SpecificationError, match="time_limit"):
        crooked.rerank(time_limit=0.0)
    check_equal(
        *(prepared.rerank(constraints=fair(0.18), progress=False) for prepared in (straight, crooked))
    )


def test_a_ledger_refuses_each_time() -> None:
    prepared = Reranker(Engagement(), own()).prepare(candidates(5), CATALOGUE)
    ledger = PrivacyLedger(PrivacyBudget(1.0, 1e-6))
    assert prepared.rerank(ledger=ledger, progress=False).certificate.privacy == "per_user"
    with pytest.raises(SpecificationError, match="a ledger governs"):
        prepared.rerank(constraints=fair(), ledger=ledger, progress=False)


def test_a_policy_will_do() -> None:
    prepared = Reranker(Engagement(), own()).prepare(candidates(5), CATALOGUE)
    policy = Policy("house rules", own(least=2))
    check_equal(
        prepared.rerank(constraints=policy, progress=False),
        prepared.rerank(constraints=own(least=2), progress=False),
    )


# What these rest on


def other_tree(rng: np.random.Generator, tree: LaminarTree) -> LaminarTree:
    """The same sets with other bounds."""
    lower = np.maximum(0, tree.lower + rng.integers(-1, 2, len(tree.lower)))
    upper = np.maximum(lower, tree.upper + rng.integers(-1, 2, len(tree.upper)))
    lower[0] = upper[0] = tree.k
    return LaminarTree(tree.leaf_of_item, tree.parent, lower, upper)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_slates_to_start_from_change_no_answer(seed: int) -> None:
    offsets, gain, items, tree, _ = random_instance(seed, ties=seed % 2 == 0, n_users=10)
    rng = np.random.default_rng(seed)
    before = Oracle(offsets, gain, items, tree)
    before.best(rng.normal(size=len(tree.leaf_of_item)))
    changed, prices = other_tree(rng, tree), rng.normal(size=len(tree.leaf_of_item))
    fresh = Oracle(offsets, gain, items, changed)
    started = Oracle(offsets, gain, items, changed, start=before.chosen)
    one, other = fresh.best(prices), started.best(prices)
    assert np.array_equal(fresh.chosen, started.chosen)
    assert (one.value, one.gain, fresh.spacing) == (other.value, other.gain, started.spacing)
    assert np.array_equal(one.counts, other.counts)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), compiled=st.booleans(), every=st.integers(1, 3))
def test_looser_quotas_are_worth_what_a_fresh_search_finds(seed: int, compiled: bool, every: int) -> None:
    offsets, gain, items, tree, fixed = random_instance(seed, ties=seed % 2 == 0, n_users=10)
    prices = np.random.default_rng(seed).normal(size=len(tree.leaf_of_item))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "COMPILED", compiled and laminar.COMPILED)
        asked = Oracle(offsets, gain, items, tree, fixed=fixed)
        trees = [tree, *(quotas for _, _, quotas in looser(tree))]
        found = asked.under(prices, trees, every)
    sampled = asked.users[::every]
    net = gain - prices[items]
    for quotas, value in zip(trees, found, strict=True):
        expected = 0.0
        for user in sampled:
            rows = np.arange(offsets[user], offsets[user + 1])
            rows = rows[np.argsort(-net[rows], kind="stable")]
            best = solve_laminar(np.array([0, len(rows)]), net[rows], items[rows], quotas, fixed=fixed[rows])
            expected += best.objective[0]
        assert value == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_parts_add_up_to_the_whole_exactly(seed: int) -> None:
    every_one = random_instance(seed, ties=seed % 2 == 0, n_users=30)
    served = np.flatnonzero(solve_laminar(*every_one[:4], fixed=every_one[4]).feasible)
    assume(len(served) >= 5)
    offsets, gain, items, tree, fixed = part_of(every_one, served)
    n_users = len(served)
    whole = Oracle(offsets, gain, items, tree, fixed=fixed)
    rng = np.random.default_rng(seed)
    prices = 10.0 ** rng.integers(-6, 7) * rng.normal(size=len(tree.leaf_of_item))
    which = rng.integers(0, 4, n_users)
    in_units = whole.units(prices)
    parts = []
    for part in range(4):
        users = np.flatnonzero(which == part)
        alone = part_of((offsets, gain, items, tree, fixed), users)
        parts.append(Oracle(*alone[:4], fixed=alone[4]).among(users, whole.largest, n_users))
    within = 0.5 * (whole.largest + np.abs(prices).max())
    for every in (1, 2, 5):
        one = whole.sums(prices, every, in_units)
        some = [part.sums(prices, every, in_units) for part in parts]
        assert one.value == sum(part.value for part in some)
        assert one.gain == sum(part.gain for part in some)
        assert one.users == sum(part.users for part in some)
        assert np.array_equal(one.counts, sum(part.counts for part in some))
        free = Exchanges.of_all([part.exchanges(prices, within, every) for part in parts])
        listed = whole.exchanges(prices, within, every)
        assert all(np.array_equal(getattr(free, each), getattr(listed, each)) for each in vars(listed))
        drawn = [part.exchanges(prices, within, every, 300) for part in parts]
        assert np.array_equal(Exchanges.of_all(drawn).cost, whole.exchanges(prices, within, every, 300).cost)
    # Rounding up is what makes the sum a bound, and it is no more than rounding.
    exact = float(np.sort(net_gains(whole, prices)).sum())
    priced = whole.best(prices)
    assert exact <= priced.value + 1e-12 * abs(exact)
    assert priced.value <= exact + 1e-10 * (whole.largest + np.abs(prices).max()) * n_users * tree.k


def part_of(instance: Any, users: np.ndarray) -> Any:
    """Some of the users."""
    offsets, gain, items, tree, fixed = instance
    rows = np.concatenate([np.arange(offsets[u], offsets[u + 1]) for u in users] or [np.zeros(0, int)])
    cut = np.concatenate([[0], np.cumsum(np.diff(offsets)[users])])
    return cut, gain[rows], items[rows], tree, fixed[rows]


def net_gains(asked: Oracle, prices: np.ndarray) -> list[float]:
    rows = asked.offsets[asked.users, None] + asked.chosen[asked.users]
    return (asked.gains[rows] - prices[asked.items[rows]]).sum(axis=1).tolist()


def test_blocks_change_no_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, relevance, *_ = population(200, 3)
    worth = position_weights("log", 5)
    relevance = relevance - 1.0  # some below 0
    whole = gains(relevance, offsets, worth)
    monkeypatch.setattr("recsys_budget.constraints.engagement._ROWS", 37)
    assert np.array_equal(gains(relevance, offsets, worth), whole)


@pytest.mark.parametrize("n", [None, 4])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array, sparse.coo_array])
def test_blocks_change_no_scores(monkeypatch: pytest.MonkeyPatch, kind: Any, n: int | None) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.integers(1, 9, (30, 12)).astype(np.float32)
    if kind is np.asarray:
        matrix[rng.random(matrix.shape) < 0.3] = -np.inf
    else:
        matrix[rng.random(matrix.shape) < 0.3] = 0.0
    given = Scores(kind(matrix), rng.permutation(30), n)
    whole = given.rows(12)
    monkeypatch.setattr("recsys_budget.rerank.scores._CELLS", 40)
    for one, other in zip(given.rows(12), whole, strict=True):
        assert np.array_equal(one, other)
    for u, user in enumerate(whole[0]):  # against a plain sort
        row = matrix[list(given.users).index(int(user))]
        there = np.flatnonzero(np.isfinite(row) if kind is np.asarray else row)
        best = there[np.argsort(-row[there], kind="stable")][:n]
        mine = slice(whole[1][u], whole[1][u + 1])
        assert whole[2][mine].tolist() == best.tolist()
        assert whole[3][mine].tolist() == row[best].tolist()
