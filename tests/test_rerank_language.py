"""Every rule and every objective through the re-ranker, against brute force and against cvxpy's meaning."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    ExposureMaximum,
    ExposureMinimum,
    GroupMaximum,
    GroupParity,
    NoveltyMinimum,
    Pin,
    PopularityMaximum,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, NumericalError, SolverTimeoutError, SpecificationError
from recsys_budget.rerank import (
    Coverage,
    Diversity,
    Engagement,
    EngagementDiversity,
    HistoryMatch,
    Novelty,
    Objective,
    ObjectiveFloor,
    Reranker,
    problem,
)
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.integer import search
from recsys_budget.rerank.model import assemble

SLACK = 3e-6  # what a solver's own tolerances may cost

OWN: list[Constraint] = [
    CategoryMinimum("A", 1),
    CategoryMaximum("A", 1),
    GroupMaximum(1),
    Pin("i1"),
    Pin("i1", 2),
    Block("i2"),
    Block("i0", 1),
    Cap("cost", 5.0),
    PopularityMaximum(0.5),
    NoveltyMinimum(1.0),
    ExposureMinimum("A", 0.9),
    ExposureMaximum("A", 0.7),
    EngagementFloor(0.8),
    EngagementFloor(0.8, "log"),
    Calibration(0.8),
    ObjectiveFloor(Diversity(), 0.5),
    Custom(lambda x, c: c.relevance @ x, 9.0, name="modest"),
    Custom(lambda x, c: cp.norm(c.membership.T @ x, 2), 1.6, name="spread"),
]
SHARED: list[Constraint] = [
    ProviderMinimum(exposure=1),
    ProviderMinimum(share=0.4, provider="p", discount="log"),
    ProviderMaximum(share=0.6),
    StockMaximum(1),
    TotalMaximum("cost", 8.0),
    CatalogueCoverage(3),
    GroupParity("A", tolerance=0.3),
]
OBJECTIVES: list[Objective] = [
    Engagement(),
    Engagement("log"),
    Engagement((1.0, 0.2)),
    Novelty(),
    EngagementDiversity(0.4),
    0.5 * Engagement() + 0.5 * Novelty(),
    0.6 * Engagement() + 0.4 * Coverage(),
    0.5 * Engagement("log") + 0.5 * HistoryMatch(),
]


def catalogue_of(draw: st.DrawFn, n: int) -> ItemCatalogue:
    return ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(n)],
                "categories": [
                    ("A",),
                    *(tuple(sorted(draw(st.sets(st.sampled_from("AB"))))) for _ in range(n - 1)),
                ],
                "provider": ["p", "q", *(draw(st.sampled_from(["p", "q", ""])) for _ in range(n - 2))],
                "cost": [draw(st.integers(1, 8)) / 2.0 for _ in range(n)],
                "popularity": [draw(st.integers(1, 8)) / 8.0 for _ in range(n)],
            }
        ),
        category_names=["A", "B"],
        attributes=["cost", "popularity"],
    )


@st.composite
def cases(draw: st.DrawFn, shared: bool) -> tuple[Reranker, pd.DataFrame, ItemCatalogue, Interactions]:
    n = draw(st.integers(3, 4)) if shared else draw(st.integers(3, 6))
    catalogue = catalogue_of(draw, n)
    users = 2 if shared else 1
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(users)], n),
            "item": list(catalogue.ids) * users,
            "relevance": [float(draw(st.integers(-2, 9))) for _ in range(n * users)],
        }
    )
    known = draw(st.sets(st.sampled_from(list(catalogue.ids)), min_size=1))
    history = Interactions.from_frame(
        pd.DataFrame({"user": "u0", "item": sorted(known)}), catalogue=catalogue
    )
    pool = OWN + SHARED if shared else OWN
    rules = draw(st.lists(st.sampled_from(pool), max_size=3, unique_by=lambda rule: rule.name))
    if shared and not any(rule.scope == "population" for rule in rules):
        rules = [*rules, draw(st.sampled_from(SHARED))]
    rules = [
        Soft(rule, draw(st.sampled_from([0.05, 1.0]))) if draw(st.booleans()) else rule for rule in rules
    ]
    objective = draw(st.sampled_from(OBJECTIVES))
    return Reranker(objective, [SlateSize(2), *rules], gap=1e-6, max_solves=60), frame, catalogue, history


def best_by_trying(reranker: Reranker, table: CandidateTable) -> float:
    """Sum of objectives less penalties of the best slates, from measures and definitions alone."""
    each = [list(itertools.permutations(range(len(table.of(u))), table.k)) for u in range(len(table))]
    best = -math.inf
    for slates in itertools.product(*each):
        chosen = np.array(slates)
        value = float(reranker.objective.value_all(chosen, table).sum())
        for rule in reranker.constraints:
            shared = rule.scope == "population"
            violation = (
                rule.measure(chosen, table) if shared else float(rule.measure_all(chosen, table).sum())
            )
            if rule.hard and violation > 1e-9:
                value = -math.inf
                break
            value -= rule.penalty * violation if not rule.hard else 0.0
        best = max(best, value)
    return best


def check_against_trying(case: tuple[Reranker, pd.DataFrame, ItemCatalogue, Interactions]) -> None:
    reranker, frame, catalogue, history = case
    try:
        for rule in reranker.constraints:
            rule.check(catalogue, 2)
    except SpecificationError:  # a group that no item is in
        with pytest.raises(SpecificationError):
            reranker.rerank(frame, catalogue, history=history)
        return
    table = CandidateTable.from_frame(frame, catalogue, 2, history)
    best = best_by_trying(reranker, table)
    if best == -math.inf:
        with pytest.raises(InfeasibleError) as caught:
            reranker.rerank(frame, catalogue, history=history, progress=False)
        assert set(caught.value.conflict) <= {rule.name for rule in reranker.constraints if rule.hard}
        return
    slates = reranker.rerank(frame, catalogue, history=history, progress=False)
    certificate, users = slates.certificate, len(table)
    assert certificate.largest_violation <= 1e-6
    assert certificate.bound * users >= best - SLACK
    assert best - certificate.objective * users <= certificate.gap * abs(certificate.bound) * users + SLACK
    assert certificate.gap <= 1e-5 or certificate.iterations >= 60
    assert set(certificate.shadow_prices) == {rule.name for rule in reranker.constraints}
    assert certificate.privacy == ("per_user" if users == 1 else "population_not_private")

    plain = reranker.to_cvxpy(frame, catalogue, history=history)
    (x,) = plain.variables()
    placed = np.zeros((len(frame), 2))
    ids = catalogue.ids[table.items]
    owner = np.repeat(table.users, np.diff(table.offsets))
    for row in slates.frame.itertuples():
        placed[np.flatnonzero((ids == row.item) & (owner == row.user))[0], row.rank - 1] = 1.0
    x.value = placed if x.ndim == 2 else placed.sum(axis=1)
    assert all(np.all(rule.violation() <= 1e-6) for rule in plain.constraints)
    assert plain.objective.value == pytest.approx(certificate.objective * users, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(cases(shared=False))
def test_one_user_against_trying_every_slate(
    case: tuple[Reranker, pd.DataFrame, ItemCatalogue, Interactions],
) -> None:
    check_against_trying(case)


@settings(max_examples=60, deadline=None)
@given(cases(shared=True))
def test_users_together_against_trying_every_slate(
    case: tuple[Reranker, pd.DataFrame, ItemCatalogue, Interactions],
) -> None:
    check_against_trying(case)


def example(
    n_users: int = 3, n: int = 30, seed: int = 0, nested: bool = False
) -> tuple[pd.DataFrame, ItemCatalogue]:
    rng = np.random.default_rng(seed)
    names = list("ABCDE")
    categories = [
        [names[rng.integers(5)]] if nested else [c for c in names if rng.random() < 0.3] for _ in range(60)
    ]
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(60)],
                "categories": categories,
                "provider": [f"p{j % 7}" for j in range(60)],
                "cost": rng.integers(1, 9, 60) / 2.0,
                "popularity": rng.random(60) * 0.9 + 0.05,
            }
        ),
        category_names=names,
        attributes=["cost", "popularity"],
    )
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{u}" for u in range(n_users)], n),
            "item": catalogue.ids[np.concatenate([rng.choice(60, n, replace=False) for _ in range(n_users)])],
            "relevance": rng.gamma(2.0, size=n_users * n),
        }
    )
    return frame, catalogue


RULES: list[Constraint] = [SlateSize(6), CategoryMinimum("A", 2), CategoryMaximum("B", 1)]


@pytest.mark.parametrize(
    ("objective", "rules", "nested", "route"),
    [
        (Engagement(), RULES, True, "laminar"),
        (Engagement("log"), RULES, True, "laminar"),
        (Novelty(), RULES, True, "laminar"),
        (0.5 * Engagement() + 0.5 * Novelty(), [*RULES, Pin("i7"), Block("i9")], True, "laminar"),
        (EngagementDiversity(0.3), RULES, True, "diverse"),
        (Engagement(), [*RULES, Cap("cost", 9.0)], True, None),
        (Engagement(), RULES, False, None),
        (EngagementDiversity(0.3), RULES, False, "direct"),
        (EngagementDiversity(0.8), [*RULES, Cap("cost", 9.0)], True, "direct"),
        (Engagement("log"), RULES, False, "general"),
        (Engagement(), [*RULES, ExposureMinimum("A", 1.2)], True, "general"),
        (Engagement(), [*RULES, Soft(CategoryMinimum("C", 1), 0.1)], True, "general"),
    ],
)
def test_structure_is_found_and_every_route_agrees_with_the_general_one(
    objective: Objective, rules: list[Constraint], nested: bool, route: str | None
) -> None:
    frame, catalogue = example(nested=nested)
    frame = pd.concat([frame, frame.head(0)])
    if any(isinstance(rule, Pin) for rule in rules):
        pinned = pd.DataFrame({"user": [f"u{u}" for u in range(3)], "item": "i7", "relevance": 0.1})
        frame = pd.concat([frame[frame["item"] != "i7"], pinned])
    ours = Reranker(objective, rules, gap=1e-6).rerank(frame, catalogue, progress=False).certificate
    general = Reranker(objective, rules, gap=1e-6, route="general", max_solves=30)
    theirs = general.rerank(frame, catalogue, progress=False).certificate
    assert route is None or ours.route == route
    assert theirs.route == "general"
    assert ours.largest_violation == 0.0
    assert ours.objective <= theirs.bound + SLACK
    assert theirs.objective <= ours.bound + SLACK


def test_a_route_that_does_not_know_the_structure_says_so() -> None:
    frame, catalogue = example()
    with pytest.raises(SpecificationError, match="route 'laminar' does not take problems of this structure"):
        Reranker(constraints=RULES, route="laminar").rerank(frame, catalogue)
    with pytest.raises(SpecificationError, match="route='fast'"):
        Reranker(constraints=RULES, route="fast")


# Solvers by name


@pytest.mark.parametrize("solver", ["HIGHS", "SCIPY", "CLARABEL", "SCS", "OSQP"])
@pytest.mark.parametrize(
    "objective", [Engagement(), EngagementDiversity(0.4), 0.6 * Engagement() + 0.4 * Coverage()]
)
def test_any_solver_brings_checked_slates(solver: str, objective: Objective) -> None:
    frame, catalogue = example()
    rules = [*RULES, Soft(CategoryMinimum("C", 2), 0.05)]
    best = (
        Reranker(objective, rules, gap=1e-6, max_solves=30)
        .rerank(frame, catalogue, progress=False)
        .certificate
    )
    named = Reranker(objective, rules, solver=solver, max_solves=30).rerank(frame, catalogue, progress=False)
    certificate = named.certificate
    assert certificate.solver == solver
    assert certificate.solver_version
    assert certificate.largest_violation == 0.0
    assert best.objective <= certificate.bound + SLACK
    assert certificate.gap <= 2e-3


def test_a_solver_that_cannot_take_the_problem_is_refused_by_name() -> None:
    frame, catalogue = example(1)
    history = Interactions.from_frame(frame[["user", "item"]].head(4), catalogue=catalogue)
    reranker = Reranker(HistoryMatch(), RULES, solver="OSQP")
    with pytest.raises(SpecificationError, match="OSQP does not take such a problem"):
        reranker.rerank(frame, catalogue, history=history)


@pytest.mark.parametrize(
    "lie",
    [
        lambda x: np.full_like(x, np.nan),
        lambda x: np.full_like(x, 3.68),
        lambda x: np.zeros_like(x),
        lambda x: np.where(np.arange(len(x)) < 6, 1.0, 0.0),
    ],
)
def test_a_relaxation_that_lies_is_repaired(
    lie: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, catalogue = example(1)
    honest = cp.Problem.solve

    def solve(self: cp.Problem, *args: Any, **options: Any) -> Any:
        value = honest(self, *args, **options)
        (x,) = self.variables()
        x.save_value(lie(x.value))
        for rule in self.constraints:
            rule.save_dual_value(np.full(rule.shape, -5.0))
        return value

    best = (
        Reranker(EngagementDiversity(0.3), RULES, gap=1e-6, max_solves=30)
        .rerank(frame, catalogue)
        .certificate
    )
    monkeypatch.setattr(cp.Problem, "solve", solve)
    certificate = (
        Reranker(EngagementDiversity(0.3), RULES, solver="CLARABEL").rerank(frame, catalogue).certificate
    )
    assert certificate.largest_violation == 0.0
    assert certificate.bound >= best.objective - SLACK
    assert certificate.objective <= best.bound + SLACK


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_the_dual_bound_holds_for_any_prices_and_any_point(seed: int, data: st.DataObject) -> None:
    frame, catalogue = example(1, 12, seed % 5)
    objective = data.draw(
        st.sampled_from([EngagementDiversity(0.5), 0.5 * Engagement("log") + 0.5 * Coverage()])
    )
    rules = [SlateSize(3), CategoryMinimum("A", 1), Soft(CategoryMaximum("B", 0), 0.2), OWN[-1]]
    table = CandidateTable.from_frame(frame, catalogue, 3)
    model = assemble(objective, rules, table, problem.express)
    rng = np.random.default_rng(seed)
    prices = rng.exponential(0.05, len(model.upper) + sum(len(o.upper) for o in model.opaque))
    bound = model.dual_bound(rng.random(len(model.linear)), prices)
    found = search(model, problem.integer_solver("HIGHS"), gap=1e-6, max_solves=60)
    if found.z is not None:
        assert model.value(found.z) <= bound + 1e-9


# Time


def test_out_of_time_hands_out_checked_slates_with_their_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = example(5)
    now = itertools.count(0.0, 0.4)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))  # no wall clock: each look takes 0.4 s
    reranker = Reranker(EngagementDiversity(0.3), RULES, route="general")
    slates = reranker.rerank(frame, catalogue, time_limit=4.0)
    certificate = slates.certificate
    assert certificate.timed_out
    assert certificate.largest_violation == 0.0
    assert len(slates.frame) == 30
    late = certificate.per_user["gap"].iloc[-1]
    assert 0.0 < late < 1.0
    monkeypatch.undo()
    best = Reranker(EngagementDiversity(0.3), RULES).rerank(frame, catalogue).certificate
    assert not best.timed_out
    assert certificate.bound >= best.objective - SLACK


def test_out_of_time_without_a_slate_says_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = example(4)
    now = itertools.count(0.0, 10.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    rules = [*RULES, ExposureMinimum("A", 1.2)]
    with pytest.raises(
        SolverTimeoutError, match=r"1 s were not enough.* 4 of 4 users, the first 'u0'"
    ) as caught:
        Reranker(Engagement(), rules).rerank(frame, catalogue, time_limit=1.0)
    assert (caught.value.time_limit, caught.value.n_users, caught.value.users[0]) == (1.0, 4, "u0")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), "soon"])
def test_bad_time_limits(limit: Any) -> None:
    with pytest.raises(SpecificationError, match="time_limit"):
        Reranker(constraints=RULES).rerank(*example(1), time_limit=limit)


# Privacy


def test_a_rule_about_everybody_is_labelled_and_refused_under_a_ledger() -> None:
    frame, catalogue = example()
    shared = Reranker(constraints=[*RULES, ProviderMaximum(share=0.5)])
    assert shared.rerank(frame, catalogue).certificate.privacy == "population_not_private"
    assert "population_not_private" in repr(shared.rerank(frame, catalogue))
    with pytest.raises(SpecificationError, match=r"'exposure of each provider at most 50%'.*ledger governs"):
        shared.rerank("not even a frame", catalogue, ledger=object())
    own = Reranker(constraints=RULES).rerank(frame, catalogue, ledger=object())
    assert own.certificate.privacy == "per_user"


# Prices, conflicts, input


def test_shadow_prices_are_what_loosening_a_quota_brings() -> None:
    frame, catalogue = example(20, nested=True)
    base = Reranker(constraints=RULES).rerank(frame, catalogue, progress=False).certificate
    looser = Reranker(constraints=[RULES[0], CategoryMinimum("A", 1), RULES[2]])
    gained = looser.rerank(frame, catalogue, progress=False).certificate.engagement - base.engagement
    assert base.shadow_prices["at least 2 A"] == pytest.approx(gained, abs=1e-12)
    assert gained > 0.0
    by_relaxation = (
        Reranker(constraints=RULES, route="general").rerank(frame, catalogue, progress=False).certificate
    )
    assert by_relaxation.shadow_prices["at least 2 A"] == pytest.approx(gained, rel=0.5)
    weighted = Reranker(EngagementDiversity(1.0), RULES).rerank(frame, catalogue, progress=False).certificate
    assert weighted.shadow_prices["at least 2 A"] is None
    assert "null" in weighted.to_json()


def test_shadow_prices_with_diversity_are_what_loosening_a_quota_brings() -> None:
    frame, catalogue = example(20, nested=True)
    objective = EngagementDiversity(0.3)

    def answer(*rules):
        reranker = Reranker(objective, [RULES[0], *rules], gap=1e-9)
        return reranker.rerank(frame, catalogue, progress=False).certificate

    base = answer(*RULES[1:])
    assert base.route == "diverse"
    loosened = {
        RULES[1].name: answer(CategoryMinimum("A", 1), RULES[2]),
        RULES[2].name: answer(RULES[1], CategoryMaximum("B", 2)),
    }
    for name, looser in loosened.items():
        gained = (looser.objective - base.objective) / 0.7  # a price is in engagement
        assert base.shadow_prices[name] == pytest.approx(gained, abs=1e-9)
    assert base.shadow_prices[RULES[1].name] > 0.0
    assert base.shadow_prices[RULES[0].name] == 0.0


def test_soft_rules_are_measured_and_paid_for() -> None:
    frame, catalogue = example()
    wish = CategoryMinimum("E", 6)
    plain = Reranker(constraints=RULES).rerank(frame, catalogue).certificate
    faint = Reranker(constraints=[*RULES, Soft(wish, 1e-4)]).rerank(frame, catalogue).certificate
    strong = Reranker(constraints=[*RULES, Soft(wish, 10.0)]).rerank(frame, catalogue).certificate
    assert faint.engagement == pytest.approx(plain.engagement)
    assert strong.violations[wish.name] < faint.violations[wish.name]
    assert strong.objective < strong.engagement
    assert strong.soft == (wish.name,)
    assert "1 soft, 1 of them violated" in repr(strong)
    with pytest.raises(SpecificationError, match="exactly one SlateSize, not 0, and a hard one"):
        Reranker(constraints=[Soft(SlateSize(3), 1.0)])


def test_contradictory_pins_are_a_conflict() -> None:
    frame, catalogue = example(1)
    here = frame["item"].tolist()
    for rules, names in [
        ([Pin(here[0], 1), Pin(here[1], 1)], {f"{here[0]!r} at place 1", f"{here[1]!r} at place 1"}),
        ([Pin(here[0]), Block(here[0])], {f"{here[0]!r} in the slate", f"no {here[0]!r}"}),
        ([Pin(here[0], 1), Pin(here[0], 2)], {f"{here[0]!r} at place 1", f"{here[0]!r} at place 2"}),
    ]:
        with pytest.raises(InfeasibleError) as caught:
            Reranker(constraints=[*RULES, *rules]).rerank(frame, catalogue)
        assert set(caught.value.conflict) == names


def test_a_pinned_item_that_is_no_candidate_is_named() -> None:
    frame, catalogue = example(1)
    absent = next(item for item in catalogue.ids if item not in set(frame["item"]))
    with pytest.raises(InfeasibleError, match=f"item '{absent}' is not among the 30 candidates"):
        Reranker(constraints=[*RULES, Pin(absent)]).rerank(frame, catalogue)


def test_rules_about_everybody_that_conflict_name_no_user() -> None:
    frame, catalogue = example()
    rules = [*RULES, ProviderMinimum(share=0.9, provider="p1"), ProviderMaximum(share=0.5)]
    with pytest.raises(InfeasibleError, match="all 3 users together") as caught:
        Reranker(constraints=rules).rerank(frame, catalogue)
    assert caught.value.user is None
    assert "exposure of p1 at least 90%" in caught.value.conflict


def test_pins_and_exposure_set_the_order() -> None:
    frame, catalogue = example(2)
    last = frame.sort_values(["user", "relevance"]).groupby("user")["item"].first()
    rules = [SlateSize(6), ExposureMinimum("A", 1.5), CategoryMaximum("A", 2)]
    slates = Reranker(Engagement("log"), rules).rerank(frame, catalogue)
    top = slates.frame[slates.frame["rank"] <= 3].groupby("user")["item"].agg(list)
    members = catalogue.membership[:, 0].toarray().ravel() > 0
    assert all(sum(members[catalogue.positions(items)]) == 2 for items in top)
    pinned = Reranker(constraints=[SlateSize(6), Pin(last["u0"], 1)])
    first = pinned.rerank(frame[frame["user"] == "u0"], catalogue).frame
    assert first["item"].iloc[0] == last["u0"]
    assert first["relevance"].iloc[1:].is_monotonic_decreasing


def test_calibration_needs_history_and_uses_it() -> None:
    frame, catalogue = example(2)
    members = catalogue.membership.toarray() > 0
    only_a = catalogue.ids[members[:, 0] & (members.sum(axis=1) == 1)]
    history = Interactions.from_frame(pd.DataFrame({"user": "u0", "item": only_a[:2]}), catalogue=catalogue)
    rule = Calibration(1.2)
    with pytest.raises(SpecificationError, match="history="):
        Reranker(constraints=[SlateSize(4), rule]).rerank(frame, catalogue)
    free = Reranker(constraints=[SlateSize(4)]).rerank(frame, catalogue).frame
    held = Reranker(constraints=[SlateSize(4), rule]).rerank(frame, catalogue, history=history)
    assert held.certificate.largest_violation <= 1e-6
    changed = held.frame["item"].ne(free["item"]).groupby(free["user"]).any()
    assert changed.to_dict() == {"u0": True, "u1": False}  # nobody knows what u1 likes
    other = ItemCatalogue.from_frame(pd.DataFrame({"item": ["i0"], "categories": [["Z"]]}))
    strange = Interactions.from_frame(pd.DataFrame({"user": ["u0"], "item": ["i0"]}), catalogue=other)
    with pytest.raises(SpecificationError, match="other categories"):
        Reranker(constraints=[SlateSize(4), rule]).rerank(frame, catalogue, history=strange)


def test_batch_equals_single_for_every_rule_about_one_user() -> None:
    frame, catalogue = example(4)
    history = Interactions.from_frame(frame[["user", "item"]].sample(40, random_state=0), catalogue=catalogue)
    rules = [*RULES, GroupMaximum(2), Cap("cost", 14.0), Calibration(1.5), Soft(NoveltyMinimum(2.0), 0.01)]
    reranker = Reranker(0.6 * Engagement() + 0.4 * Coverage(), rules)
    together = reranker.rerank(frame, catalogue, history=history)
    alone = [reranker.rerank(part, catalogue, history=history) for _, part in frame.groupby("user")]
    pd.testing.assert_frame_equal(pd.concat([a.frame for a in alone], ignore_index=True), together.frame)
    per_user = pd.concat([a.certificate.per_user for a in alone], ignore_index=True)
    pd.testing.assert_frame_equal(per_user, together.certificate.per_user, check_exact=True)
    again = reranker.rerank(frame, catalogue, history=history)
    pd.testing.assert_frame_equal(again.frame, together.frame)


def test_objectives_add_up() -> None:
    frame, catalogue = example(2)
    table = CandidateTable.from_frame(frame, catalogue, 6)
    chosen = np.array([[0, 2, 4, 6, 8, 10]] * 2)
    mixed = 0.5 * (Engagement() + 2.0 * Diversity()) + 0.25 * Coverage()
    parts = [Engagement(), Diversity(), Coverage()]
    values = [part.value_all(chosen, table) for part in parts]
    assert mixed.value_all(chosen, table) == pytest.approx(0.5 * values[0] + values[1] + 0.25 * values[2])
    assert [w for w, _ in mixed.parts] == [0.5, 1.0, 0.25]
    for part in [*parts, Novelty(), Engagement("log")]:
        each = part.value_all(chosen, table)
        assert ((each >= 0.0) & (each <= 1.0)).all()
    with pytest.raises(SpecificationError, match="weight=-1"):
        -1.0 * Engagement()
    with pytest.raises(SpecificationError, match="is no objective"):
        Reranker("engagement", RULES)  # type: ignore[arg-type]


def test_a_custom_rule_without_a_gradient_is_refused() -> None:
    frame, catalogue = example(1)
    broken = Custom(
        lambda x, c: cp.inv_pos(c.category("A") @ x - 50.0), 1.0, count=lambda i, c: 0.0, name="broken"
    )
    with pytest.raises(NumericalError, match="'broken' has no value or gradient"):
        Reranker(constraints=[*RULES, broken]).rerank(frame, catalogue)


def test_equal_sets_are_one_however_wide_their_numbers_are():
    """A pin and a provider's limit about the same single item once made two nodes beside each other."""
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {"item": ["i0", "i1", "i2"], "provider": ["p", "q", "p"], "categories": [["A"], ["A"], []]}
        )
    )
    frame = pd.DataFrame({"user": "u0", "item": ["i0", "i1", "i2"], "relevance": 0.0})
    rules = [SlateSize(2), Pin("i1"), GroupMaximum(1, by="provider")]
    for route in (None, "laminar", "direct", "general"):
        slates = Reranker(Engagement(), rules, route=route).rerank(frame, catalogue, progress=False)
        assert slates.frame["item"].tolist() == ["i0", "i1"]


def test_a_size_that_a_rule_cannot_be_asked_of_is_no_relaxation():
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": ["i0", "i1", "i2"], "categories": [["A"]] * 3})
    )
    frame = pd.DataFrame({"user": "u0", "item": ["i0", "i1", "i2"], "relevance": 0.0})
    rules = [SlateSize(2), Pin("i1", 2), Block("i2"), CategoryMaximum("A", 1)]
    with pytest.raises(InfeasibleError) as caught:
        Reranker(Engagement(), rules).rerank(frame, catalogue, progress=False)
    assert "at most 1 A" in set(caught.value.conflict)
    sizes = [r for r in caught.value.conflict.relaxations if isinstance(r.constraint, SlateSize)]
    # One item would settle the conflict's own rules, but then the pin has no place.
    assert sizes
    assert not any(r.complete for r in sizes)
