"""Sums over all slates beside diversity or overlapping quotas, against integer programs and every slate."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker

KINDS = ["A", "B", "C", "D", "E"]


def example(n_users, n_items, seed, overlapping=False, n_candidates=None):
    """Candidates and their catalogue; some items are of two kinds where categories overlap."""
    rng = np.random.default_rng(seed)
    kinds = [
        [str(k) for k in rng.choice(KINDS, 1 + (overlapping and rng.random() < 0.5), replace=False)]
        for _ in range(n_items)
    ]
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{n}" for n in range(n_items)],
                "categories": kinds,
                "provider": [f"p{n % 4}" for n in range(n_items)],
            }
        )
    )
    rows = [
        {"user": f"u{user}", "item": f"i{n}", "relevance": float(rng.random() + 0.1 + (n % 4 == 0))}
        for user in range(n_users)
        for n in rng.choice(n_items, n_candidates or n_items, replace=False)
    ]
    return pd.DataFrame(rows), catalogue


def everything(frame, catalogue, objective, rules):
    """The best sum of objectives over all ways to give each user a slate."""
    own = [rule for rule in rules if rule.scope == "user"]
    floor = next(rule for rule in rules if isinstance(rule, ProviderMinimum))
    k = rules[0].k
    provider = dict(zip(catalogue.ids, catalogue.to_frame()["provider"], strict=True))
    options = []
    for _, mine in frame.groupby("user"):
        each = []
        for slate in itertools.combinations(mine["item"], k):
            pinned = mine[mine["item"].isin(slate)]
            try:
                value = Reranker(objective, own).rerank(pinned, catalogue, progress=False)
            except InfeasibleError:
                continue
            # Engagement is a share of the best that all candidates allow.
            top = mine["relevance"].nlargest(k).sum()
            w = objective.diversity_weight
            kept = pinned["relevance"].sum() / top
            worth = (1 - w) * kept + w * value.certificate.diversity
            each.append((worth, sum(provider[item] == floor.provider for item in slate)))
        options.append(each)
    return max(
        (sum(v for v, _ in pick), -i)
        for i, pick in enumerate(itertools.product(*options))
        if sum(load for _, load in pick) >= floor.exposure
    )[0]


@pytest.mark.parametrize("overlapping", [False, True])
def test_against_every_choice_of_slates(overlapping):
    frame, catalogue = example(3, 6, 2, overlapping)
    rules = [SlateSize(2), CategoryMaximum("A", 1), ProviderMinimum(exposure=3, provider="p3")]
    objective = EngagementDiversity(0.3)
    best = everything(frame, catalogue, objective, rules)
    found = Reranker(objective, rules, gap=1e-9).rerank(frame, catalogue, progress=False).certificate
    assert found.objective * 3 == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_one_integer_program(overlapping, weight, seed):
    frame, catalogue = example(12, 30, seed, overlapping, n_candidates=16)
    rules = [
        SlateSize(5),
        CategoryMinimum("A", 1),
        CategoryMaximum("B", 2),
        ProviderMinimum(exposure=14, provider="p3"),
        ProviderMaximum(share=0.35, provider="p0"),
    ]
    objective = EngagementDiversity(weight)
    ours = Reranker(objective, rules, route="columns").rerank(frame, catalogue, progress=False)
    whole = Reranker(objective, rules, route="general", gap=1e-5).rerank(frame, catalogue, progress=False)
    certificate, exact = ours.certificate, whole.certificate
    assert certificate.route == "columns"
    assert certificate.gap <= 1e-3
    assert certificate.largest_violation == 0.0
    # What either proves holds for the other.
    assert exact.objective <= certificate.bound + 1e-6
    assert certificate.objective <= exact.bound + 1e-6
    shown = ours.frame.merge(catalogue.to_frame(), on="item")
    assert (shown["provider"] == "p3").sum() >= 14
    assert (shown["provider"] == "p0").sum() <= 0.35 * len(shown)


@pytest.fixture(scope="module")
def larger():
    return example(150, 60, 3, n_candidates=40)


def rules_with(exposure):
    return [SlateSize(5), CategoryMinimum("A", 1), ProviderMinimum(exposure=exposure, provider="p3")]


def test_it_is_what_dispatch_takes(larger):
    frame, catalogue = larger
    answer = Reranker(EngagementDiversity(0.3), rules_with(250)).rerank(frame, catalogue, progress=False)
    assert answer.certificate.route == "columns"
    assert answer.certificate.gap <= 1e-3
    assert answer.certificate.privacy == "population_not_private"


def test_a_price_bounds_what_a_tighter_rule_costs(larger):
    frame, catalogue = larger
    objective = EngagementDiversity(0.3)
    prepared = Reranker(objective, rules_with(250)).prepare(frame, catalogue)
    base = prepared.rerank(progress=False).certificate
    name = rules_with(250)[-1].name
    price = base.shadow_prices[name] * 0.7  # in the objective
    assert price > 0.0
    for exposure in (230, 265, 280):
        moved = prepared.rerank(constraints=rules_with(exposure), progress=False).certificate
        # The optimum is concave in the bound, so that the line through a point with this slope is above it.
        assert moved.objective * 150 <= base.bound * 150 - price * (exposure - 250) + 1e-6


def test_warm_answers_are_within_the_gap_and_repeat(larger):
    frame, catalogue = larger
    sequence = [(0.3, 250), (0.3, 270), (0.35, 270), (0.3, 150)]

    def run():
        prepared = Reranker(EngagementDiversity(0.3), rules_with(250)).prepare(frame, catalogue)
        return [
            prepared.rerank(
                objective=EngagementDiversity(weight), constraints=rules_with(least), progress=False
            )
            for weight, least in sequence
        ]

    first, second = run(), run()
    for (weight, least), a, b in zip(sequence, first, second, strict=True):
        pd.testing.assert_frame_equal(a.frame, b.frame)
        cold = Reranker(EngagementDiversity(weight), rules_with(least)).rerank(
            frame, catalogue, progress=False
        )
        assert a.certificate.gap <= 1e-3
        assert a.certificate.objective <= cold.certificate.bound + 1e-9
        assert cold.certificate.objective <= a.certificate.bound + 1e-9


@pytest.mark.parametrize("overlapping", [False, True])
def test_what_cannot_be_is_named(overlapping):
    frame, catalogue = example(10, 12, 1, overlapping)
    rules = [
        SlateSize(4),
        CategoryMaximum("A", 1),
        ProviderMinimum(exposure=25, provider="p1"),
        ProviderMinimum(exposure=20, provider="p2"),
    ]
    with pytest.raises(InfeasibleError) as caught:
        Reranker(EngagementDiversity(0.3), rules).rerank(frame, catalogue, progress=False)
    assert {rules[2].name, rules[3].name} <= set(caught.value.conflict.names)


def test_a_user_without_a_slate_is_named():
    frame, catalogue = example(6, 12, 1)
    of_a = catalogue.to_frame().explode("categories").query("categories == 'A'")["item"]
    frame = frame[(frame["user"] != "u2") | ~frame["item"].isin(of_a)]
    rules = [SlateSize(4), CategoryMinimum("A", 1), ProviderMinimum(exposure=2, provider="p1")]
    with pytest.raises(InfeasibleError, match="u2"):
        Reranker(EngagementDiversity(0.3), rules).rerank(frame, catalogue, progress=False)


def test_without_time_slates_still_keep_the_rules(larger):
    frame, catalogue = larger
    rules = rules_with(300)
    answer = Reranker(EngagementDiversity(0.3), rules, gap=1e-6).rerank(
        frame, catalogue, time_limit=0.3, progress=False
    )
    assert answer.certificate.largest_violation == 0.0
    assert answer.certificate.bound >= answer.certificate.objective


def test_linear_objectives_under_nested_quotas_stay_with_prices(larger):
    frame, catalogue = larger
    answer = Reranker(Engagement(), rules_with(250)).rerank(frame, catalogue, progress=False)
    assert answer.certificate.route == "coupled"
