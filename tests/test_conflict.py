"""Conflicts against trying every slate: minimal, and relaxed as little as can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys_budget.constraints import (
    Block,
    Calibration,
    Cap,
    CatalogueCoverage,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    Custom,
    EngagementFloor,
    ExposureMinimum,
    GroupMaximum,
    GroupParity,
    LinearConstraint,
    NoveltyMinimum,
    Pin,
    Policy,
    PopularityMaximum,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.rerank import Conflict, Diversity, Engagement, ObjectiveFloor, Reranker
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.infeasibility import alike, find_conflict
from recsys_budget.rerank.subsets import moved_by, number_of

OWN: list[Constraint] = [
    CategoryMinimum("A", 2),
    CategoryMinimum("B", 1),
    CategoryMaximum("A", 0),
    CategoryMaximum("B", 1),
    GroupMaximum(1),
    Pin("i1"),
    Pin("i0", 1),
    Pin("i1", 1),
    Block("i2"),
    Cap("cost", 2.0),
    PopularityMaximum(0.3),
    NoveltyMinimum(2.0),
    ExposureMinimum("A", 1.4),
    EngagementFloor(0.95),
    EngagementFloor(0.9, "log"),
    Calibration(0.2),
    ObjectiveFloor(Diversity(), 0.9),
    Custom(lambda x, c: c.relevance @ x, 3.0, name="modest"),
    Custom(lambda x, c: cp.norm(c.membership.T @ x, 2), 1.1, name="spread"),
]
SHARED: list[Constraint] = [
    ProviderMinimum(exposure=3),
    ProviderMinimum(share=0.9, provider="p"),
    ProviderMaximum(share=0.4),
    StockMaximum(1),
    TotalMaximum("cost", 4.0),
    CatalogueCoverage(4),
    GroupParity("A", tolerance=0.1),
]


@st.composite
def cases(draw: st.DrawFn, shared: bool) -> tuple[list[Constraint], CandidateTable]:
    n = 4 if shared else draw(st.integers(2, 5))
    k = draw(st.integers(1, 3 if shared else n + 1))
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(5)],
                "categories": [
                    ("A",),
                    ("B",),
                    *(tuple(sorted(draw(st.sets(st.sampled_from("AB"))))) for _ in range(3)),
                ],
                "provider": ["p", "q", *(draw(st.sampled_from(["p", "q", ""])) for _ in range(3))],
                "cost": [draw(st.integers(1, 8)) / 2.0 for _ in range(5)],
                "popularity": [draw(st.integers(1, 8)) / 8.0 for _ in range(5)],
            }
        ),
        category_names=["A", "B"],
        attributes=["cost", "popularity"],
    )
    users = 2 if shared else 1
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(users)], n),
            "item": list(catalogue.ids)[:n] * users,
            "relevance": [float(draw(st.integers(0, 9))) for _ in range(n * users)],
        }
    )
    history = Interactions.from_frame(pd.DataFrame({"user": ["u0"], "item": ["i0"]}), catalogue=catalogue)
    pool = [*SHARED, *OWN[:7], OWN[8], OWN[9]] if shared else OWN
    rules = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=5, unique_by=lambda rule: rule.name))
    rules.insert(draw(st.integers(0, len(rules))), SlateSize(k))
    return rules, CandidateTable.from_frame(frame, catalogue, k, history)


def selections(
    rules: Sequence[Constraint], table: CandidateTable, positional: bool
) -> Iterator[NDArray[Any]]:
    """Every way to fill slates, or any sets of items where no slate size is among the rules."""
    size = next((rule.k for rule in rules if isinstance(rule, SlateSize)), None)
    each = []
    for u in range(len(table)):
        n = len(table.of(u))
        if size is not None:
            ways = itertools.permutations if positional else itertools.combinations
            each.append(list(ways(range(n), size)))
        elif positional:  # any items at any of the k places
            rows = [*range(n), *[-1] * table.k]
            each.append(sorted(set(itertools.permutations(rows, table.k))))
        else:
            some = itertools.chain.from_iterable(itertools.combinations(range(n), r) for r in range(n + 1))
            each.append([s + (-1,) * (n - len(s)) for s in some])
    for slates in itertools.product(*each):
        yield np.array(slates, np.int32).reshape(len(table), -1)


def satisfiable(rules: Sequence[Constraint], table: CandidateTable) -> bool:
    """By trying, with what each rule measures."""
    size = next((rule.k for rule in rules if isinstance(rule, SlateSize)), table.k)
    table = replace(table, k=size)
    positional = any(rule.positional for rule in rules)
    for chosen in selections(rules, table, positional):
        for rule in rules:
            if rule.scope == "population":
                worst = rule.measure(chosen, table)
            else:
                worst = float(np.max(rule.measure_all(chosen, table)))
            if worst > 1e-6:
                break
        else:
            return True
    return False


def check(rules: list[Constraint], table: CandidateTable) -> Conflict:
    """Everything that a conflict claims."""
    conflict = find_conflict(rules, table, np.arange(len(table)))
    alone = table
    if not conflict.together and len(table) > 1:
        u = table.find(conflict.users[0])
        rows = slice(table.offsets[u], table.offsets[u + 1])
        alone = replace(
            table,
            users=table.users[[u]],
            offsets=np.array([0, rows.stop - rows.start]),
            items=table.items[rows],
            relevance=table.relevance[rows],
            history=None if table.history is None else table.history[[u]],
        )
    members = list(conflict.constraints)
    assert conflict.proven
    assert not satisfiable(members, alone)
    linear = all(isinstance(rule, LinearConstraint) and not rule.positional for rule in members)
    for member in members:
        rest = [rule for rule in members if rule is not member]
        if rest and (linear or not isinstance(member, SlateSize)):
            assert satisfiable(rest, alone), member.name
    every = rules if conflict.together else [rule for rule in rules if rule.scope == "user"]
    if conflict.together or len(table) == 1:
        for relaxation in conflict.relaxations:
            check_relaxation(conflict, relaxation, every, alone)
    return conflict


def check_relaxation(
    conflict: Conflict, relaxation: Any, every: list[Constraint], table: CandidateTable
) -> None:
    rule, relaxed = relaxation.constraint, relaxation.relaxed
    sizes = [other for other in every if isinstance(other, SlateSize)]
    asked = every if relaxation.complete else list(dict.fromkeys([*conflict.constraints, *sizes]))
    if isinstance(rule, SlateSize) and not relaxation.complete:
        asked = list(conflict.constraints)
    others = [other for other in asked if other is not rule]
    if relaxed is None:
        field, sign = number_of(rule)
        if field is not None and not isinstance(rule, SlateSize):  # even as loose as it can be
            value = getattr(rule, field)
            ends = (-value, 1 - value) if sign > 0 or field == "share" else (100,)
            loosest = moved_by(rule, field, ends[0] if sign > 0 else ends[-1])
            rest = [*sizes, *(c for c in conflict.constraints if c not in (rule, *sizes))]
            assert not satisfiable([*rest, loosest], table)
        return
    assert satisfiable([*others, relaxed], table)
    field, sign = number_of(rule) if not isinstance(rule, SlateSize) else ("k", 0)
    was, becomes = getattr(rule, field), getattr(relaxed, field)
    assert relaxation.amount == pytest.approx(abs(becomes - was), rel=1e-9)
    if isinstance(rule, SlateSize):
        for k in range(max(1, was - abs(becomes - was) + 1), was + abs(becomes - was)):
            assert not satisfiable([*others, replace(rule, k=k)], table)
    elif relaxation.exact and isinstance(was, int):
        assert not satisfiable([*others, moved_by(rule, field, becomes - was + sign)], table)
    elif relaxation.exact:
        less = (becomes - was) * 0.999 + sign * 2e-5
        assert sign * less >= 0.0 or not satisfiable([*others, moved_by(rule, field, less)], table)


@settings(max_examples=150, deadline=None)
@given(cases(shared=False))
def test_conflicts_of_one_user_are_minimal_and_relaxed_least(
    case: tuple[list[Constraint], CandidateTable],
) -> None:
    rules, table = case
    assume(not satisfiable(rules, table))
    conflict = check(rules, table)
    assert (conflict.n_users, conflict.n_without, conflict.n_unchecked) == (1, 1, 0)


@settings(max_examples=60, deadline=None)
@given(cases(shared=True))
def test_conflicts_of_everybody_are_minimal_and_relaxed_least(
    case: tuple[list[Constraint], CandidateTable],
) -> None:
    rules, table = case
    assume(any(rule.scope == "population" for rule in rules))
    assume(not satisfiable(rules, table))
    check(rules, table)


def batch(n_users: int = 6) -> tuple[pd.DataFrame, ItemCatalogue]:
    """Every user has 0, 1 or 2 candidates in A, in turn."""
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(8)],
                "categories": [("A",), ("A",), *[("B",)] * 6],
                "provider": ["<b>p</b>", *["q"] * 7],
            }
        ),
        category_names=["A", "B"],
    )
    rows = [(f"u{u}", f"i{j}") for u in range(n_users) for j in range(8) if j >= 2 or j < u % 3]
    frame = pd.DataFrame(rows, columns=["user", "item"]).assign(relevance=1.0)
    return frame, catalogue


def refused(rules: list[Constraint], frame: pd.DataFrame, catalogue: ItemCatalogue) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as caught:
        Reranker(constraints=rules).rerank(frame, catalogue, progress=False)
    return caught.value


def test_every_user_who_is_hit_counts_and_the_relaxation_serves_them_all() -> None:
    frame, catalogue = batch()
    rules = [SlateSize(3), CategoryMinimum("A", 2, reason="our remit"), Soft(CategoryMaximum("B", 1), 0.1)]
    error = refused(rules, frame, catalogue)
    conflict = error.conflict
    assert (error.user, conflict.names) == ("u0", ("at least 2 A",))
    assert (conflict.users, conflict.n_users, conflict.n_asked) == (("u0", "u1", "u3", "u4"), 4, 6)
    assert conflict.proven
    assert conflict.certified
    relaxed = conflict.relaxed("at least 2 A")
    assert [rule.name for rule in relaxed] == ["exactly 3 items", "at least 0 A", "at most 1 B"]
    Reranker(constraints=Policy("relaxed", relaxed)).rerank(frame, catalogue, progress=False)
    assert conflict.without("at least 2 A") == (rules[0], rules[2])
    for call in (conflict.relaxed, conflict.without):
        with pytest.raises(
            SpecificationError, match="is not part of this conflict, which is of 'at least 2 A'"
        ):
            call("at most 1 B")
    assert "asked because: 'our remit'" in str(error)
    assert "user 'u0' and 3 more of 6" in repr(conflict)


def test_users_without_a_slate_for_other_reasons_are_told_apart() -> None:
    frame, catalogue = batch()
    few = frame[(frame["user"] != "u5") | (frame["item"] < "i2")]
    conflict = refused([SlateSize(3), CategoryMinimum("A", 2)], few, catalogue).conflict
    assert (conflict.n_users, conflict.n_without, conflict.n_unchecked) == (4, 5, 0)
    assert "1 more users have no slate for other reasons" in str(conflict)


def test_users_are_alike_by_the_kinds_of_their_candidates() -> None:
    frame, catalogue = batch()
    table = CandidateTable.from_frame(frame, catalogue, 3)
    assert alike([CategoryMinimum("A", 2)], table, np.arange(6)) == [[0, 3], [1, 4], [2, 5]]
    assert alike([CategoryMinimum("B", 2)], table, np.arange(3)) == [[0], [1], [2]]
    assert alike([SlateSize(3), CategoryMaximum("B", 2)], table, np.array([1, 2, 4])) == [[1, 4], [2]]
    assert alike([EngagementFloor(0.5)], table, np.arange(2)) == [[0], [1]]


def test_providers_that_are_short_are_named() -> None:
    frame, catalogue = batch()
    floor = ProviderMinimum(exposure=6, provider="<b>p</b>")
    conflict = refused([SlateSize(3), floor], frame, catalogue).conflict
    assert conflict.together
    assert [(s.kind, s.who, s.amount, s.below) for s in conflict.shortages] == [
        ("provider", "<b>p</b>", 2.0, True)
    ]
    assert conflict.relaxations[0].relaxed == replace(
        floor, exposure=4, name=conflict.relaxed(floor.name)[1].name
    )
    assert "<b>" not in conflict._repr_html_()


def test_what_anybody_wrote_is_escaped() -> None:
    frame, catalogue = batch(2)
    frame["user"] = frame["user"].str.replace("u", "<script>alert(1)</script>")
    rule = CategoryMinimum("A", 2, name="<img src=x>\n$x$", reason="</table><b>")
    conflict = refused([SlateSize(3), rule], frame, catalogue).conflict
    html = conflict._repr_html_()
    for hostile in ("<script>", "<img", "</table><b>"):
        assert hostile not in html
    assert "&lt;img src=x&gt;" in html
    assert "'<img src=x>\\n$x$'" in str(conflict)


def test_a_rule_named_by_its_owner_keeps_its_name() -> None:
    rule = CategoryMinimum("A", 2, name="mine")
    assert moved_by(rule, "count", -1) == CategoryMinimum("A", 1, name="mine")
    assert moved_by(CategoryMinimum("A", 2), "count", -1) == CategoryMinimum("A", 1)
    assert moved_by(rule, "count", -3) is None


def test_a_limit_on_time_leaves_what_is_known() -> None:
    frame, catalogue = batch()
    table = CandidateTable.from_frame(frame, catalogue, 3)
    # One that certainly needs an integer program: no linear relaxation refutes it.
    rules = [SlateSize(3), CategoryMinimum("A", 2), ObjectiveFloor(Diversity(), 0.99)]
    conflict = find_conflict(rules, table, np.arange(1), deadline=-math.inf)
    assert not conflict.proven
    assert set(conflict) <= {rule.name for rule in rules}
    assert "Not proven" in str(conflict)


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ([ProviderMinimum(share=0.3, provider="p0", name="much")], {"exactly 10 items", "much"}),
        (
            [
                ProviderMinimum(exposure=80, provider="p1", name="floor"),
                ProviderMaximum(exposure=40, provider="p1", name="ceiling"),
            ],
            {"floor", "ceiling"},
        ),
    ],
)
def test_prices_prove_conflicts_of_many_users(extra: list[Constraint], names: set[str]) -> None:
    n, users = 100, 80
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(n)],
                "categories": [("AB"[j % 2],) for j in range(n)],
                "provider": [f"p{j // 50}" if j >= 2 else "p0" for j in range(n)],
            }
        )
    )
    kept = [(f"u{u}", f"i{j}") for u in range(users) for j in range(n) if j >= 48 or j in (0, 1)]
    kept += [(f"v{u}", f"i{j}") for u in range(users) for j in range(50, n)]
    frame = pd.DataFrame(kept, columns=["user", "item"])
    frame["relevance"] = np.random.default_rng(0).random(len(frame))
    assert len(frame) > 5000
    conflict = refused([SlateSize(10), CategoryMaximum("A", 9), *extra], frame, catalogue).conflict
    assert set(conflict) == names
    assert conflict.together
    assert conflict.proven


def test_one_user_without_a_slate_is_named_beside_a_soft_rule_about_all_slates() -> None:
    """A soft rule couples users, so that programs know only that somebody has no slate."""
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": ["a", "b", "c"], "categories": [("A",), (), ()], "provider": ["p", "q", "p"]})
    )
    candidates = pd.DataFrame(
        {"user": ["u"] * 3 + ["v"] * 3, "item": ["a", "b", "c"] * 2, "relevance": [0.0] * 4 + [1.0] * 2}
    )
    rules = [SlateSize(2), CategoryMinimum("A", 1), EngagementFloor(0.8), Soft(ProviderMinimum(1), 0.05)]
    with pytest.raises(InfeasibleError) as caught:
        Reranker(Engagement(), rules).rerank(candidates, catalogue, progress=False)
    assert caught.value.conflict.users == ("v",)
