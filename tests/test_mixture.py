"""Mixtures of rankings against the linear program that defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.constraints import (
    Cap,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    ExposureParity,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError, NumericalError, SpecificationError
from recsys_budget.rerank import ParityReranker
from recsys_budget.rerank.routes import parities
from recsys_budget.rerank.routes.exposure import solve_exposure
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.parities import solve_parities


def example(seed: int, n: int = 12, users: int = 3) -> tuple[pd.DataFrame, ItemCatalogue]:
    rng = np.random.default_rng(seed)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(20)],
                "categories": [["A"], ["B"], ["C"], []] * 5,
                "cost": rng.random(20),
            }
        ),
        category_names=["A", "B", "C"],
        attributes=["cost"],
    )
    items = np.concatenate([rng.choice(20, n, replace=False) for _ in range(users)])
    relevance = rng.gamma(1.0, size=n * users) + 2.0 * (items % 4 == 1)
    return pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(users)], n),
            "item": catalogue.ids[items],
            "relevance": relevance,
        }
    ), catalogue


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(
        [ExposureParity("A"), ExposureParity("A", "B", 0.8, 1.25), ExposureParity("C", discount="none")]
    ),
    st.sampled_from([[], [CategoryMaximum("B", 2)], [CategoryMinimum("C", 1), CategoryMaximum("A", 3)]]),
)
def test_a_mixture_reaches_the_linear_program(
    seed: int, parity: ExposureParity, quotas: list[Constraint]
) -> None:
    frame, catalogue = example(seed)
    reranker = ParityReranker(parity, [SlateSize(4), *quotas])
    try:
        mixtures = reranker.rerank(frame, catalogue)
    except InfeasibleError as error:
        plain = reranker.to_cvxpy(frame, catalogue, str(error.user))
        plain.solve(solver="HIGHS")
        assert plain.status == "infeasible"
        return
    certificate = mixtures.certificate
    assert max(certificate.violations.values()) <= 1e-6
    for row, user in enumerate(certificate.per_user["user"]):
        plain = reranker.to_cvxpy(frame, catalogue, user)
        assert plain.solve(solver="HIGHS") == pytest.approx(certificate.per_user["objective"][row], abs=1e-6)
        assert plain.value <= certificate.per_user["bound"][row] + 1e-6


def test_the_emitted_frame_meets_parity_in_expectation() -> None:
    frame, catalogue = example(1)
    mixtures = ParityReranker(ExposureParity("A", discount="log"), [SlateSize(4)]).rerank(frame, catalogue)
    shown = mixtures.frame
    assert shown.groupby(["user", "ranking"]).size().eq(4).all()
    assert (
        shown.groupby(["user", "ranking"])["probability"].first().groupby("user").sum().tolist() == [1.0] * 3
    )
    assert (shown["ranking"] == 2).any()
    members = catalogue.membership[:, 0].toarray().ravel() > 0
    for user, part in shown.groupby("user"):
        mine = catalogue.positions(frame.loc[frame["user"] == user, "item"])
        worth = part["probability"] / np.log2(1.0 + part["rank"])
        inside = members[catalogue.positions(part["item"])]
        first = worth[inside].sum() / members[mine].sum()
        assert first == pytest.approx(worth[~inside].sum() / (~members[mine]).sum(), abs=1e-9)
    assert "exposure with price search" in repr(mixtures)
    assert len(mixtures) == 3


def test_draws_follow_the_chances_and_the_seed() -> None:
    frame, catalogue = example(1)
    mixtures = ParityReranker(ExposureParity("A"), [SlateSize(4)]).rerank(frame, catalogue)
    pd.testing.assert_frame_equal(mixtures.draw(3), mixtures.draw(3))
    assert list(mixtures.draw(3).columns) == ["user", "item", "rank", "relevance"]
    rng = np.random.default_rng(0)
    user = mixtures.frame.loc[mixtures.frame["ranking"] == 2, "user"].iloc[0]
    mine = mixtures.frame[mixtures.frame["user"] == user]
    first = mine.loc[mine["ranking"] == 1, "item"].tolist()
    drawn = [mixtures.draw(rng) for _ in range(400)]
    draws = [ranking.loc[ranking["user"] == user, "item"].tolist() == first for ranking in drawn]
    chance = mine["probability"].iloc[0]
    assert abs(np.mean(draws) - chance) <= 5.0 * np.sqrt(chance * (1.0 - chance) / 400)  # once in two million


def test_batch_equals_single() -> None:
    frame, catalogue = example(2)
    reranker = ParityReranker(ExposureParity("A"), [SlateSize(4), CategoryMaximum("B", 2)])
    together = reranker.rerank(frame, catalogue).frame
    alone = [reranker.rerank(part, catalogue).frame for _, part in frame.groupby("user")]
    pd.testing.assert_frame_equal(pd.concat(alone, ignore_index=True), together)


def test_what_no_mixture_can_do_is_named() -> None:
    frame, catalogue = example(3)
    with pytest.raises(InfeasibleError, match="widen low and high") as caught:
        ParityReranker(ExposureParity("A"), [SlateSize(4), CategoryMaximum("A", 0)]).rerank(frame, catalogue)
    assert caught.value.conflict[0] == "equal exposure of A and the others"
    with pytest.raises(InfeasibleError, match="asks for 13 of 12 candidates"):
        ParityReranker(ExposureParity("A"), [SlateSize(13)]).rerank(frame, catalogue)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExposureParity(""), "name of a category"),
        (lambda: ExposureParity("A", low=2.0), "low=2.0, high=1.0"),
        (lambda: ExposureParity("A", low=float("nan")), "low=nan"),
        (lambda: ExposureParity("A", discount="dcg"), "discount='dcg'"),  # type: ignore[arg-type]
        (lambda: ParityReranker(ExposureParity("A"), []), "exactly one SlateSize"),
        (
            lambda: ParityReranker(ExposureParity("A"), [SlateSize(2), ProviderMinimum(exposure=1)]),
            "about one slate",
        ),
        (
            lambda: ParityReranker(ExposureParity("A"), [SlateSize(2), Soft(CategoryMaximum("A", 1), 1.0)]),
            "hard",
        ),
        (lambda: ParityReranker(ExposureParity("Z"), [SlateSize(2)]).rerank(*example(0)), "no category 'Z'"),
        (
            lambda: ParityReranker(ExposureParity("A"), [SlateSize(2), Cap("cost", 1.0)]).rerank(*example(0)),
            "nested or disjoint",
        ),
        (lambda: ParityReranker(ExposureParity("A", "A"), [SlateSize(2)]).rerank(*example(0)), "is in both"),
    ],
)
def test_bad_requests(make: object, message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        make()  # type: ignore[operator]


SEVERAL = [
    [ExposureParity("A", "B"), ExposureParity("A", "C")],
    [ExposureParity("A"), ExposureParity("B"), ExposureParity("C")],
    [ExposureParity("A", "B", 0.5, 1.5), ExposureParity("C", low=0.2, high=float("inf"))],
    [ExposureParity("A", "B", discount="none"), ExposureParity("B", "C", 0.0, 2.0, discount="none")],
]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(SEVERAL),
    st.sampled_from([[], [CategoryMaximum("B", 2)], [CategoryMinimum("C", 1), CategoryMaximum("A", 3)]]),
)
def test_several_rules_reach_the_linear_program(
    seed: int, asked: list[ExposureParity], quotas: list[Constraint]
) -> None:
    frame, catalogue = example(seed)
    reranker = ParityReranker(asked, [SlateSize(4), *quotas])
    try:
        mixtures = reranker.rerank(frame, catalogue)
    except InfeasibleError as error:
        plain = reranker.to_cvxpy(frame, catalogue, str(error.user))
        plain.solve(solver="HIGHS")
        assert plain.status == "infeasible"
        return
    certificate = mixtures.certificate
    assert max(certificate.violations.values()) <= 1e-6
    assert certificate.solver == "HIGHS"
    assert certificate.gap <= 1e-6
    shown = mixtures.frame.drop_duplicates(["user", "ranking"])
    assert shown.groupby("user")["probability"].sum().to_numpy() == pytest.approx(1.0)
    assert shown.groupby("user").size().max() <= 2 * len(asked) + 1
    for row, user in enumerate(certificate.per_user["user"]):
        plain = reranker.to_cvxpy(frame, catalogue, user)
        assert plain.solve(solver="HIGHS") == pytest.approx(certificate.per_user["objective"][row], abs=1e-6)
        assert plain.value <= certificate.per_user["bound"][row] + 1e-6


def test_three_groups_are_exposed_alike_in_the_frame() -> None:
    frame, catalogue = example(1)
    reranker = ParityReranker([ExposureParity("A", "B"), ExposureParity("B", "C")], [SlateSize(4)])
    shown = reranker.rerank(frame, catalogue).frame
    assert (shown["ranking"] == 3).any()
    for user, part in shown.groupby("user"):
        mine = catalogue.positions(frame.loc[frame["user"] == user, "item"])
        worth = part["probability"] / np.log2(1.0 + part["rank"])
        averages = []
        for category in range(3):
            members = catalogue.membership[:, category].toarray().ravel() > 0
            averages.append(worth[members[catalogue.positions(part["item"])]].sum() / members[mine].sum())
        assert averages == pytest.approx([averages[0]] * 3, abs=1e-8)


def test_several_rules_batch_equals_single_and_repeats() -> None:
    frame, catalogue = example(2)
    reranker = ParityReranker(SEVERAL[1], [SlateSize(4), CategoryMaximum("B", 2)])
    together = reranker.rerank(frame, catalogue).frame
    pd.testing.assert_frame_equal(reranker.rerank(frame, catalogue).frame, together)
    alone = [reranker.rerank(part, catalogue).frame for _, part in frame.groupby("user")]
    pd.testing.assert_frame_equal(pd.concat(alone, ignore_index=True), together)


def test_draws_of_three_rankings_follow_their_chances() -> None:
    frame, catalogue = example(1)
    mixtures = ParityReranker(SEVERAL[0], [SlateSize(4)]).rerank(frame, catalogue)
    user = mixtures.frame.loc[mixtures.frame["ranking"] == 3, "user"].iloc[0]
    mine = mixtures.frame[mixtures.frame["user"] == user]
    rankings = [part["item"].tolist() for _, part in mine.groupby("ranking")]
    chances = mine.groupby("ranking")["probability"].first().to_numpy()
    rng, times = np.random.default_rng(0), np.zeros(len(rankings))
    for _ in range(600):
        drawn = mixtures.draw(rng)
        times[rankings.index(drawn.loc[drawn["user"] == user, "item"].tolist())] += 1
    assert (np.abs(times / 600 - chances) <= 5.0 * np.sqrt(chances * (1.0 - chances) / 600)).all()


def test_several_rules_that_no_mixture_keeps_are_named() -> None:
    frame, catalogue = example(3)
    with pytest.raises(InfeasibleError, match="equal exposure of A and B', 'equal exposure of A and C'"):
        ParityReranker(SEVERAL[0], [SlateSize(4), CategoryMaximum("A", 0)]).rerank(frame, catalogue)


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        ([], "one ExposureParity or several"),
        ([ExposureParity("A"), "B"], "one ExposureParity or several"),
        ([ExposureParity("A"), ExposureParity("B", discount="none")], "one discount"),
        ([ExposureParity("A"), ExposureParity("A")], "same name"),
    ],
)
def test_bad_lists_of_rules(parity: Any, message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        ParityReranker(parity, [SlateSize(2)])


def test_one_rule_is_the_price_search_to_rounding() -> None:
    rng, n, k = np.random.default_rng(0), 40, 5
    gains, items = -np.sort(-rng.gamma(2.0, size=(20, n)), axis=1).ravel(), np.tile(np.arange(n), 20)
    tree, worth = LaminarTree(np.zeros(n), [-1], [k], [k]), 1.0 / np.log2(np.arange(k) + 2.0)
    group, offsets = rng.integers(0, 2, n), np.arange(21) * n
    rules = np.tile((group == 0) / (group == 0).sum() - (group == 1) / (group == 1).sum(), 20)[:, None]
    one = solve_exposure(offsets, gains, items, tree, group, worth)
    several = solve_parities(offsets, gains, items, tree, rules, np.array([True]), worth)
    np.testing.assert_allclose(several.objective, one.objective, rtol=1e-9)
    assert (several.bound >= one.objective - 1e-12).all()
    np.testing.assert_allclose(np.abs(several.prices[:, 0]), np.abs(one.price), rtol=1e-4, atol=1e-6)


def test_a_solver_that_lies_about_prices_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = example(1)
    reranker = ParityReranker(SEVERAL[0], [SlateSize(4)])
    truth = reranker.rerank(frame, catalogue).certificate
    honest = parities._Master.solve

    def solve(self: Any) -> Any:
        chances, prices, level, _ = honest(self)
        return chances, prices + 0.3, level + 1e9, 1.0

    monkeypatch.setattr(parities._Master, "solve", solve)
    with pytest.raises(NumericalError, match="no proof"):
        reranker.rerank(frame, catalogue)
    monkeypatch.setattr(parities._Master, "solve", lambda self: (*honest(self)[:2], 1e9, 0.0))
    with pytest.raises(NumericalError, match="violates"):
        reranker.rerank(frame, catalogue)
    assert truth.gap <= 1e-9
