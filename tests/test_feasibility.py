"""Whether slates keep to sums over everybody beside quotas that overlap, against every choice of slates."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

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
    Population,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError
from recsys_budget.rerank import Engagement, EngagementDiversity, Objective, Reranker
from recsys_budget.rerank.feasibility import Pool
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.infeasibility import find_conflict
from recsys_budget.rerank.repair import swap_together
from recsys_budget.rerank.structure import Sums
from recsys_budget.rerank.together import Together

SEEN = {True: 0, False: 0, None: 0}


def example(
    n_users: int, n_items: int, n: int, seed: int, n_providers: int = 3
) -> tuple[pd.DataFrame, ItemCatalogue]:
    """Candidates of categories that overlap."""
    rng = np.random.default_rng(seed)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(n_items)],
                "categories": [
                    tuple(sorted(rng.choice(list("ABC"), rng.integers(1, 3), replace=False)))
                    for _ in range(n_items)
                ],
                "provider": [f"p{j % n_providers}" for j in range(n_items)],
                "cost": rng.integers(1, 9, n_items) / 2.0,
            }
        ),
        category_names=["A", "B", "C"],
        attributes=("cost",),
    )
    items = np.concatenate([rng.choice(n_items, n, replace=False) for _ in range(n_users)])
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(n_users)], n),
            "item": catalogue.ids[items],
            "relevance": rng.gamma(2.0, size=len(items)),
        }
    )
    return frame, catalogue


OWN = [
    [CategoryMinimum("A", 1), CategoryMaximum("B", 1)],
    [CategoryMaximum("A", 1), CategoryMinimum("C", 1), Cap("cost", 6.0)],
    [Cap("cost", 5.0)],
]
SHARED = [
    [ProviderMinimum(2)],
    [ProviderMinimum(1), ProviderMaximum(exposure=3)],
    [StockMaximum(1)],
    [StockMaximum(2), TotalMaximum("cost", 11.0)],
    [TotalMaximum("cost", 9.0), ProviderMinimum(2, provider="p1")],
    [ProviderMaximum(exposure=2)],
]


def possible(rules: list[Constraint], table: Population) -> bool:
    """Whether any choice of slates keeps all rules, counted by their own measure."""
    own = [rule for rule in rules if rule.scope == "user"]
    shared = [rule for rule in rules if rule.scope == "population"]
    slates = []
    for u in range(len(table)):
        alone = Population.of_one(table.of(u))
        n = len(alone.items)
        slates.append(
            [
                slate
                for slate in itertools.combinations(range(n), table.k)
                if all(rule.measure_all(np.array([slate]), alone)[0] <= 1e-9 for rule in own)
            ]
        )
    return any(
        all(rule.measure(np.array(choice), table) <= 1e-9 for rule in shared)
        for choice in itertools.product(*slates)
    )


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(OWN), st.sampled_from(SHARED), st.integers(2, 3))
def test_verdicts_against_every_choice_of_slates(
    seed: int, own: list[Constraint], shared: list[Constraint], k: int
) -> None:
    frame, catalogue = example(3, 8, 5, seed)
    table = CandidateTable.from_frame(frame, catalogue, k, None)
    rules = [SlateSize(k), *own, *shared]
    alone = [possible([SlateSize(k), *own], Population.of_one(table.of(u))) for u in range(3)]
    if not all(alone):
        return
    ours, sums = Sums.of(rules, table, "user"), Sums.of(rules, table)
    assert ours is not None
    assert sums is not None
    if sums.crossing([rule.name for rule in rules]):
        return
    pool = Pool(table)
    verdict = pool.verdict(ours, sums)
    SEEN[verdict.feasible] += 1
    truth = possible(rules, table)
    if verdict.feasible is not None:
        assert verdict.feasible == truth
    if verdict.feasible:
        assert verdict.slates is not None
        for rule in rules:
            worst = rule.measure_all if rule.scope == "user" else rule.measure
            assert np.max(worst(verdict.slates, table)) <= 1e-6
    # Prices of any kind prove nothing false.
    rng = np.random.default_rng(seed)
    for _ in range(5):
        price = rng.normal(size=len(sums.lower)) * (rng.random(len(sums.lower)) < 0.6)
        assert not (pool.weigh(ours, sums, price)[1] and truth)


def test_there_were_verdicts_of_either_kind() -> None:
    if not sum(SEEN.values()):
        test_verdicts_against_every_choice_of_slates()
    assert SEEN[True] > 10
    assert SEEN[False] > 10
    assert SEEN[None] < 0.2 * sum(SEEN.values())


def test_slates_of_other_rules_are_not_believed() -> None:
    """What was found under looser rules is looked at again under tighter ones."""
    frame, catalogue = example(4, 12, 8, 5)
    table = CandidateTable.from_frame(frame, catalogue, 3, None)
    pool = Pool(table)
    loose = [SlateSize(3), CategoryMaximum("B", 3), ProviderMinimum(2)]
    tight = [SlateSize(3), CategoryMaximum("B", 1), ProviderMinimum(2)]
    for rules in (loose, tight, loose):
        own, sums = Sums.of(rules, table, "user"), Sums.of(rules, table)
        assert own is not None
        assert sums is not None
        verdict = pool.verdict(own, sums)
        assert verdict.feasible
        assert verdict.slates is not None
        assert rules[1].measure_all(verdict.slates, table).max() <= 1e-9


def overlapping(*shared: Constraint) -> list[Constraint]:
    return [SlateSize(6), CategoryMinimum("A", 3), CategoryMaximum("B", 2), *shared]


@pytest.mark.parametrize("objective", [Engagement(), EngagementDiversity(0.4)])
@pytest.mark.parametrize(
    ("shared", "relaxed"),
    [
        # 240 places for 12 providers.
        (ProviderMinimum(21), 20),
        (ProviderMinimum(share=0.09), 0.083),
        (ProviderMaximum(exposure=19), 20),
    ],
)
def test_conflicts_beside_overlapping_quotas_end_with_the_least_that_helps(
    objective: Objective, shared: Constraint, relaxed: float
) -> None:
    frame, catalogue = example(40, 120, 60, 3, n_providers=12)
    started = time.monotonic()
    with pytest.raises(InfeasibleError) as caught:
        Reranker(objective, overlapping(shared)).rerank(frame, catalogue, progress=False, time_limit=60.0)
    assert time.monotonic() - started < 60.0
    conflict = caught.value.conflict
    assert set(conflict) == {"exactly 6 items", shared.name}
    assert conflict.certified
    assert conflict.proven
    (move,) = [each for each in conflict.relaxations if each.constraint is shared]
    assert move.relaxed is not None
    assert move.exact
    assert move.complete
    assert getattr(move.relaxed, str(move.field)) == pytest.approx(relaxed, abs=4e-4)
    applied = overlapping(move.relaxed)
    slates = Reranker(objective, applied).rerank(frame, catalogue, progress=False)
    assert slates.certificate.largest_violation <= 1e-6


def test_a_quota_that_conflicts_with_a_sum_is_named_and_moved() -> None:
    """Everybody wants three of A; A items are few, and each may be shown to so many."""
    frame, catalogue = example(40, 120, 60, 3, n_providers=12)
    of_a = sum("A" in kinds for kinds in catalogue.to_frame()["categories"])
    rules = [SlateSize(6), CategoryMinimum("A", 5), CategoryMaximum("B", 2), StockMaximum(3)]
    assert 3 * of_a < 40 * 5
    with pytest.raises(InfeasibleError) as caught:
        Reranker(Engagement(), rules).rerank(frame, catalogue, progress=False, time_limit=60.0)
    conflict = caught.value.conflict
    assert set(conflict) >= {"at least 5 A", "each item in at most 3 slates"}
    table = CandidateTable.from_frame(frame, catalogue, 6, None)
    for move in conflict.relaxations:
        if move.relaxed is None or not move.complete:
            continue
        eased = [move.relaxed if rule is move.constraint else rule for rule in rules]
        own, sums = Sums.of(eased, table, "user"), Sums.of(eased, table)
        assert own is not None
        assert sums is not None
        assert Pool(table).verdict(own, sums).feasible
    # Without any member the others can be satisfied.
    for member in conflict.constraints:
        if isinstance(member, SlateSize):
            continue
        rest = [rule for rule in rules if rule is not member]
        Reranker(Engagement(), rest).rerank(frame, catalogue, progress=False)


def test_no_time_is_no_verdict() -> None:
    frame, catalogue = example(10, 30, 20, 1)
    table = CandidateTable.from_frame(frame, catalogue, 4, None)
    rules = [SlateSize(4), CategoryMinimum("A", 1), CategoryMaximum("B", 2), ProviderMinimum(12)]
    own, sums = Sums.of(rules, table, "user"), Sums.of(rules, table)
    assert own is not None
    assert sums is not None
    assert Pool(table).verdict(own, sums, -math.inf).feasible is None
    conflict = find_conflict(rules, table, np.arange(10), named=[rules[-1].name], deadline=-math.inf)
    assert not conflict.proven


def test_swaps_keep_what_is_asked_of_each_slate() -> None:
    frame, catalogue = example(30, 60, 30, 9, n_providers=6)
    table = CandidateTable.from_frame(frame, catalogue, 5, None)
    rules = [
        SlateSize(5), CategoryMinimum("A", 2), CategoryMaximum("B", 2), Cap("cost", 12.0),
        ProviderMinimum(20), ProviderMaximum(exposure=30),
    ]  # fmt: skip
    assert Together.of(rules, table) is None
    own, sums = Sums.of(rules, table, "user"), Sums.of(rules, table)
    assert own is not None
    assert sums is not None
    greedy = Reranker(Engagement(), rules[:4]).rerank(frame, catalogue, progress=False)
    ids = catalogue.ids[table.items]
    chosen = np.array(
        [
            np.flatnonzero(np.isin(ids[a:b], greedy.frame["item"][greedy.frame["user"] == user]))
            for user, a, b in zip(table.users, table.offsets[:-1], table.offsets[1:], strict=True)
        ]
    )
    assert rules[4].measure(chosen, table) > 0.0  # else swaps have nothing to do
    swapped = swap_together(table, own, sums, chosen, math.inf)
    assert swapped is not None
    for rule in rules:
        worst = rule.measure_all if rule.scope == "user" else rule.measure
        assert np.max(worst(np.sort(swapped, axis=1), table)) <= 1e-6
    impossible = replace(sums, lower=np.where(np.isfinite(sums.lower), 31.0, sums.lower))
    assert swap_together(table, own, impossible, chosen, math.inf) is None
