"""Conflicts found by prices, as in populations too large for integer programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from test_conflict import cases, check_relaxation, satisfiable

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    GroupParity,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import InfeasibleError
from recsys_budget.rerank import Conflict, Engagement, Reranker
from recsys_budget.rerank.infeasibility import find_conflict
from recsys_budget.rerank.together import Together

SEEN = {"certified": 0, "relaxed": 0}


@settings(max_examples=25, deadline=None)
@given(case=cases(shared=True))
def test_what_prices_say_of_small_populations_is_so(case) -> None:
    rules, table = case
    shared = [rule for rule in rules if rule.scope == "population"]
    own = [rule for rule in rules if rule.scope == "user"]
    assume(shared and Together.of(rules, table) is not None)
    assume(satisfiable(own, table) and not satisfiable(rules, table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys_budget.rerank.infeasibility._LARGE", -1)
        names = [rule.name for rule in shared]
        conflict = find_conflict(rules, table, np.arange(len(table)), named=names)
    if not conflict.certified:  # integer programs alone know
        return
    SEEN["certified"] += 1
    members = list(conflict.constraints)
    size = [rule for rule in rules if isinstance(rule, SlateSize)]
    assert not satisfiable(members, table)
    for member in members:
        rest = [rule for rule in dict.fromkeys([*members, *size]) if rule is not member]
        if conflict.proven and member not in size:
            assert satisfiable(rest, table), member.name
    for relaxation in conflict.relaxations:
        if relaxation.relaxed is not None:
            SEEN["relaxed"] += 1
            check_relaxation(conflict, relaxation, rules, table)


def test_there_were_conflicts_to_look_at() -> None:
    if not SEEN["certified"]:
        test_what_prices_say_of_small_populations_is_so()
    assert SEEN["certified"] > 5
    assert SEEN["relaxed"] > 5


N_USERS, N_ITEMS, N, K = 260, 90, 30, 5
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame(
        {
            "item": [f"i{j}" for j in range(N_ITEMS)],
            "categories": [("ABC"[j % 3],) for j in range(N_ITEMS)],
            "provider": [f"p{j * 7 // 3 % 5}" for j in range(N_ITEMS)],
            "cost": np.linspace(1.0, 3.0, N_ITEMS),
        }
    ),
    attributes=("cost",),
)


def candidates() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    items = np.argsort(rng.random((N_USERS, N_ITEMS)), axis=1)[:, :N].ravel()
    users = np.repeat([f"u{j}" for j in range(N_USERS)], N)
    return pd.DataFrame(
        {"user": users, "item": CATALOGUE.ids[items], "relevance": rng.gamma(2.0, size=len(items))}
    )


def outcome(rules: list[Constraint]) -> Conflict | None:
    try:
        slates = Reranker(Engagement(), rules).rerank(candidates(), CATALOGUE, progress=False)
    except InfeasibleError as error:
        return error.conflict
    assert slates.certificate.largest_violation <= 1e-6
    return None


FAIR = [SlateSize(K), CategoryMinimum("A", 1), CategoryMaximum("C", 2)]


@pytest.mark.parametrize(
    ("extra", "names", "loosened"),
    [
        # 1,300 places for five providers: none can be promised more than 260 each.
        (
            [ProviderMinimum(share=0.23), ProviderMaximum(share=0.5)],
            {"exactly 5 items", "exposure of each provider at least 23%"},
            {"exposure of each provider at least 23%": 0.2},
        ),
        (
            [ProviderMinimum(share=0.01), ProviderMaximum(exposure=250.5)],
            {"exactly 5 items", "exposure of each provider at most 250.5"},
            {"exposure of each provider at most 250.5": 260.0},
        ),
        (
            [StockMaximum(14), TotalMaximum("cost", 1e5)],
            {"exactly 5 items", "each item in at most 14 slates"},
            {"each item in at most 14 slates": 15},
        ),
        (
            [ProviderMinimum(700, provider="p1"), ProviderMaximum(300, provider="p1")],
            {"exposure of p1 at least 700", "exposure of p1 at most 300"},
            {"exposure of p1 at least 700": 300.0, "exposure of p1 at most 300": 700.0},
        ),
        (
            [CategoryMinimum("B", 2), TotalMaximum("cost", 1_450.0), GroupParity("A", "B", tolerance=9.0)],
            {"exactly 5 items", "cost of all slates at most 1450"},
            {},
        ),
    ],
)
def test_many_users(extra, names, loosened) -> None:
    rules = [*FAIR, *extra]
    conflict = outcome(rules)
    assert conflict is not None
    assert set(conflict) == names
    assert conflict.proven
    assert conflict.certified
    relaxations = {r.constraint.name: r for r in conflict.relaxations if r.relaxed is not None}
    for name, value in loosened.items():
        relaxation = relaxations[name]
        assert getattr(relaxation.relaxed, relaxation.field) == pytest.approx(value, rel=1e-9)
        assert relaxation.exact
    for name, relaxation in relaxations.items():
        assert relaxation.complete
        assert outcome(list(conflict.relaxed(name))) is None
        was, becomes = (getattr(r, relaxation.field) for r in (relaxation.constraint, relaxation.relaxed))
        less = becomes - np.sign(becomes - was) if isinstance(was, int) else was + 0.999 * (becomes - was)
        almost = replace(relaxation.constraint, **{relaxation.field: less})
        rest = [rule for rule in rules if rule is not relaxation.constraint]
        assert outcome([*rest, almost]) is not None


def test_providers_hit_are_named_with_what_they_lack() -> None:
    conflict = outcome([*FAIR, ProviderMinimum(share=0.23)])
    assert conflict is not None
    assert {(s.kind, s.who, s.below) for s in conflict.shortages} == {
        ("provider", f"p{j}", True) for j in range(5)
    }
    # At the smallest relaxation each gets 260 of the 299 places asked for.
    assert [s.amount for s in conflict.shortages] == [pytest.approx(39.0)] * 5


def test_twenty_rules_leave_the_two_that_conflict() -> None:
    rules = [
        *FAIR,
        *(ProviderMinimum(50 + j, provider=f"p{j}") for j in range(5)),
        *(ProviderMaximum(700 + j, provider=f"p{j}") for j in range(5)),
        CategoryMaximum("A", 3),
        CategoryMinimum("B", 1),
        StockMaximum(200),
        TotalMaximum("cost", 5_000.0),
        GroupParity("A", "C", tolerance=3.0),
        ProviderMinimum(690, provider="p0", name="a lot"),
        ProviderMinimum(650, provider="p1", name="as much"),
    ]
    conflict = outcome(rules)
    assert conflict is not None
    assert set(conflict) == {"exactly 5 items", "a lot", "as much"}
    assert conflict.proven
    assert {r.constraint.name: r.amount for r in conflict.relaxations if r.amount is not None}.keys() == {
        "a lot",
        "as much",
    }


def test_what_one_proof_does_not_spare_another_does(monkeypatch) -> None:
    monkeypatch.setattr("recsys_budget.rerank.divergence.Prices._still", lambda self, kept, ray: False)
    extra = [ProviderMinimum(share=0.23), ProviderMaximum(share=0.5), StockMaximum(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "conflict", lambda self, ray: tuple(rule.name for rule in self.rules))
        conflict = outcome([*FAIR, *extra])
    assert conflict is not None
    assert set(conflict) == {"exactly 5 items", "exposure of each provider at least 23%"}
    assert conflict.proven
