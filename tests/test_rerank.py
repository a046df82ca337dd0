"""The re-ranker against brute force, against liars, and against bad input."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys_budget.constraints import (
    Candidates,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    Custom,
    SlateSize,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, InfeasibleError, NumericalError, SpecificationError
from recsys_budget.metrics import intra_list_diversity
from recsys_budget.rerank import EngagementDiversity, Reranker, general, problem, top_k
from recsys_budget.rerank.integer import Answer, Program, solve_highs

NAMES = ("A", "B", "C")
# What the solver's own tolerances may cost; see Certificate.bound.
SLACK = 2e-6


@dataclass(frozen=True)
class Tiny:
    """One user, few enough candidates to try every slate."""

    categories: list[tuple[str, ...]]
    relevance: list[float]
    constraints: list[Constraint]
    weight: float

    @property
    def k(self) -> int:
        return next(c.k for c in self.constraints if isinstance(c, SlateSize))

    @property
    def catalogue(self) -> ItemCatalogue:
        items = [f"i{j}" for j in range(len(self.categories))]
        return ItemCatalogue.from_frame(
            pd.DataFrame({"item": items, "categories": self.categories}), category_names=NAMES
        )

    @property
    def frame(self) -> pd.DataFrame:
        items = [f"i{j}" for j in range(len(self.categories))]
        return pd.DataFrame({"user": "u", "item": items, "relevance": self.relevance})

    def satisfies(self, slate: tuple[int, ...], rule: Constraint) -> bool:
        if isinstance(rule, SlateSize):
            return len(slate) == rule.k
        assert isinstance(rule, CategoryMinimum | CategoryMaximum)
        members = sum(rule.category in self.categories[j] for j in slate)
        return members >= rule.count if isinstance(rule, CategoryMinimum) else members <= rule.count

    def selections(self, rules: list[Constraint]) -> Iterator[tuple[int, ...]]:
        for size in range(len(self.categories) + 1):
            for slate in itertools.combinations(range(len(self.categories)), size):
                if all(self.satisfies(slate, rule) for rule in rules):
                    yield slate

    def objective(self, slate: tuple[int, ...]) -> float:
        """Straight from the words: share of the best engagement, mean of 1 - cosine over pairs."""
        floor = min(0.0, *self.relevance)
        above = [r - floor for r in self.relevance]
        best = sum(sorted(above)[-self.k :])
        engagement = sum(above[j] for j in slate) / best if best > 0 else 1.0

        def cosine(i: int, j: int) -> float:
            a, b = set(self.categories[i]), set(self.categories[j])
            return len(a & b) / np.sqrt(len(a) * len(b)) if a and b else 0.0

        pairs = list(itertools.combinations(slate, 2))
        diversity = float(np.mean([1.0 - cosine(i, j) for i, j in pairs])) if pairs else 0.0
        return (1.0 - self.weight) * engagement + self.weight * diversity


@st.composite
def tiny(draw: st.DrawFn, most: int = 7) -> Tiny:
    n = draw(st.integers(1, most))
    rules: list[Constraint] = [SlateSize(draw(st.integers(1, min(n + 1, 4))))]
    for name in NAMES:
        kind = draw(st.sampled_from([None, CategoryMinimum, CategoryMaximum]))
        if kind is not None:
            rules.append(kind(name, draw(st.integers(0, 3))))
    return Tiny(
        categories=[tuple(sorted(draw(st.sets(st.sampled_from(NAMES))))) for _ in range(n)],
        relevance=[draw(st.integers(-8, 20)) / 4.0 for _ in range(n)],
        constraints=draw(st.permutations(rules)),
        weight=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
    )


@settings(max_examples=60, deadline=None)
@given(tiny())
def test_brute_force_agrees(case: Tiny) -> None:
    reranker = Reranker(EngagementDiversity(case.weight), case.constraints)
    possible = list(case.selections(case.constraints))
    if not possible:
        with pytest.raises(InfeasibleError):
            reranker.rerank(case.frame, case.catalogue)
        return
    slates = reranker.rerank(case.frame, case.catalogue)
    slate = tuple(int(item[1:]) for item in slates.frame["item"])
    assert set(slate) in [set(other) for other in possible]
    certificate = slates.certificate
    optimum = max(case.objective(other) for other in possible)
    assert certificate.objective == pytest.approx(case.objective(slate), abs=1e-12)
    assert certificate.bound >= optimum - SLACK
    assert optimum - certificate.objective <= certificate.gap * certificate.bound + SLACK
    assert certificate.gap <= 1e-3
    assert set(certificate.violations.values()) == {0.0}


@settings(max_examples=60, deadline=None)
@given(tiny(most=6))
def test_conflicts_are_minimal(case: Tiny) -> None:
    assume(next(case.selections(case.constraints), None) is None)
    with pytest.raises(InfeasibleError) as caught:
        Reranker(constraints=case.constraints).rerank(case.frame, case.catalogue)
    assert caught.value.user == "u"
    rules = [c for c in case.constraints if c.name in caught.value.conflict]
    assert len(rules) == len(caught.value.conflict)
    assert next(case.selections(rules), None) is None
    for spare in rules:
        assert next(case.selections([c for c in rules if c is not spare]), None) is not None


def random_case(n_users: int, n: int = 30, seed: int = 0) -> tuple[pd.DataFrame, ItemCatalogue]:
    rng = np.random.default_rng(seed)
    categories = [[c for c in "ABCDE" if rng.random() < 0.3] for _ in range(60)]
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": [f"i{j}" for j in range(60)], "categories": categories}),
        category_names=list("ABCDE"),
    )
    frame = pd.concat(
        pd.DataFrame(
            {
                "user": f"u{user}",
                "item": catalogue.ids[rng.choice(60, n - user % 2, replace=False)],
                "relevance": rng.gamma(2.0, size=n - user % 2),
            }
        )
        for user in range(n_users)
    )
    return frame.reset_index(drop=True), catalogue


RULES: list[Constraint] = [SlateSize(6), CategoryMinimum("A", 2), CategoryMaximum("B", 1)]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_batch_equals_single_and_row_order_has_no_say(weight: float) -> None:
    frame, catalogue = random_case(6)
    reranker = Reranker(EngagementDiversity(weight), RULES)
    together = reranker.rerank(frame, catalogue)
    assert len(together) == 6
    shuffled = reranker.rerank(frame.sample(frac=1.0, random_state=1), catalogue)
    alone = [reranker.rerank(part, catalogue) for _, part in frame.groupby("user")]
    pd.testing.assert_frame_equal(shuffled.frame, together.frame)
    pd.testing.assert_frame_equal(pd.concat([a.frame for a in alone], ignore_index=True), together.frame)
    per_user = pd.concat([a.certificate.per_user for a in alone], ignore_index=True)
    pd.testing.assert_frame_equal(per_user, together.certificate.per_user, check_exact=True)
    pd.testing.assert_frame_equal(
        shuffled.certificate.per_user, together.certificate.per_user, check_exact=True
    )


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_solvers_agree(weight: float) -> None:
    frame, catalogue = random_case(3)
    first, second = (
        Reranker(EngagementDiversity(weight), RULES, solver=solver).rerank(frame, catalogue).certificate
        for solver in ("HIGHS", "SCIPY")
    )
    assert first.solver_version.startswith("highspy ")
    assert second.solver_version.startswith("scipy ")
    assert first.objective <= second.bound + SLACK
    assert second.objective <= first.bound + SLACK


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_cvxpy_problem_defines_the_objective(weight: float) -> None:
    frame, catalogue = random_case(2)
    reranker = Reranker(EngagementDiversity(weight), RULES)
    slates = reranker.rerank(frame, catalogue)
    for row, (user, slate) in enumerate(slates.frame.groupby("user")):
        plain = reranker.to_cvxpy(frame, catalogue, str(user))
        (x,) = plain.variables()
        best_first = top_k(frame, catalogue, 60).query("user == @user")["item"]
        x.value = best_first.isin(slate["item"]).to_numpy(np.float64)
        assert all(constraint.value() for constraint in plain.constraints)
        objective = slates.certificate.per_user["objective"][row]
        assert plain.objective.value == pytest.approx(objective, abs=1e-12)
        if weight == 0.0:
            assert plain.solve(solver=cp.HIGHS) == pytest.approx(objective, abs=SLACK)


def test_without_rules_or_diversity_the_slates_are_the_top_k() -> None:
    frame, catalogue = random_case(4)
    slates = Reranker(constraints=[SlateSize(5)]).rerank(frame, catalogue)
    pd.testing.assert_frame_equal(slates.frame, top_k(frame, catalogue, 5))
    assert slates.certificate.engagement == pytest.approx(1.0)
    assert slates.frame["rank"].tolist() == [1, 2, 3, 4, 5] * 4
    assert slates.frame["relevance"].groupby(slates.frame["user"]).is_monotonic_decreasing.all()


def test_diversity_is_the_metric() -> None:
    frame, catalogue = random_case(4)
    slates = Reranker(EngagementDiversity(0.5), RULES).rerank(frame, catalogue)
    metric = intra_list_diversity(slates.frame, catalogue)
    np.testing.assert_allclose(slates.certificate.per_user["diversity"], metric, atol=1e-12)


def test_more_weight_on_diversity_buys_diversity() -> None:
    frame, catalogue = random_case(4)
    plain, mixed, diverse = (
        Reranker(EngagementDiversity(w), RULES, gap=1e-4).rerank(frame, catalogue).certificate
        for w in (0.0, 0.3, 0.9)
    )
    assert plain.diversity < mixed.diversity < diverse.diversity
    assert plain.engagement > mixed.engagement > diverse.engagement


def test_overlapping_categories_count_in_each() -> None:
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": list("wxyz"), "categories": [["A", "B"], ["A"], ["B"], []]})
    )
    frame = pd.DataFrame({"user": "u", "item": list("wxyz"), "relevance": [1.0, 3.0, 3.0, 9.0]})
    rules = [SlateSize(2), CategoryMinimum("A", 1), CategoryMinimum("B", 1)]
    assert Reranker(constraints=rules).rerank(frame, catalogue).frame["item"].tolist() == ["z", "w"]


def test_ties_break_by_catalogue_order() -> None:
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": [f"i{j}" for j in range(20)], "categories": [["A"], ["B"]] * 10})
    )
    frame = pd.DataFrame({"user": "u", "item": [f"i{j}" for j in reversed(range(20))], "relevance": 0.5})
    rules = [SlateSize(4), CategoryMinimum("A", 2), CategoryMinimum("B", 2)]
    for weight in (0.0, 0.5):
        slates = Reranker(EngagementDiversity(weight), rules).rerank(frame, catalogue)
        assert slates.frame["item"].tolist() == ["i0", "i1", "i2", "i3"]
        assert slates.certificate.engagement == pytest.approx(1.0)


@pytest.mark.parametrize(
    "relevance",
    [
        [1e308, 1.7e308, -1.7e308, 5.0],
        [0.0, 0.0, 0.0, 0.0],
        [-2.0, -2.0, -2.0, -2.0],
        [5e-324, 0.0, 1e-320, 0.0],
        [-0.0, 0.0, -1.0, -3.0],
    ],
)
def test_extreme_relevance(relevance: list[float]) -> None:
    case = Tiny([("A",), ("B",), ("A",), ()], relevance, [SlateSize(2), CategoryMinimum("A", 1)], 0.3)
    slates = Reranker(EngagementDiversity(0.3), case.constraints).rerank(case.frame, case.catalogue)
    assert 0.0 <= slates.certificate.engagement <= 1.0
    assert np.isfinite(slates.certificate.bound)
    if len(set(relevance)) == 1:
        assert slates.certificate.engagement == pytest.approx(1.0)


def test_engagement_is_a_share_of_the_best_and_free_of_scale() -> None:
    case = Tiny([(), (), ("A",)], [3.0, 1.0, 1.0], [SlateSize(2), CategoryMaximum("A", 0)], 0.0)
    frame = case.frame
    rules = [SlateSize(2), CategoryMinimum("A", 1), CategoryMaximum("B", 2)]
    for factor in (1.0, 1e-9, 1e9):
        scaled = frame.assign(relevance=frame["relevance"] * factor)
        assert Reranker(constraints=rules).rerank(scaled, case.catalogue).certificate.engagement == 1.0
    logits = frame.assign(relevance=[4.0, 2.0, -2.0])
    # Above the lowest: 6, 4, 0. The best two make 10, the slate with the third 6.
    assert Reranker(constraints=rules).rerank(logits, case.catalogue).certificate.engagement == 0.6


def test_without_categories_every_slate_is_diverse() -> None:
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a", "b", "c"]}))
    frame = pd.DataFrame({"user": "u", "item": ["a", "b", "c"], "relevance": [1.0, 3.0, 2.0]})
    for k, diverse in ((2, 1.0), (1, 0.0)):
        slates = Reranker(EngagementDiversity(0.3), [SlateSize(k)]).rerank(frame, catalogue)
        assert slates.frame["item"].tolist() == ["b", "c"][:k]
        assert slates.certificate.diversity == diverse


@dataclass(frozen=True)
class RelevanceCeiling(Constraint):
    """A rule of somebody's own: the slate's relevance sums to at most so much."""

    most: float

    def default_name(self) -> str:
        return f"relevance at most {self.most:g}"

    def rhs(self, candidates: Candidates) -> float:
        return self.most

    def lhs(self, x: Any, candidates: Candidates) -> Any:
        return candidates.relevance @ x

    def measure(self, chosen: NDArray[np.intp], candidates: Candidates) -> float:
        return max(0.0, sum(candidates.relevance[row] for row in chosen) - self.most)


def test_a_rule_of_ones_own_holds_for_every_user_of_a_batch() -> None:
    frame, catalogue = random_case(4)
    slates = Reranker(constraints=[*RULES, RelevanceCeiling(12.0)]).rerank(frame, catalogue)
    totals = slates.frame.groupby("user")["relevance"].sum()
    assert (totals <= 12.0).all()
    assert (totals > 11.9).all()


def test_users_stand_in_the_order_of_their_ids_which_stay_apart() -> None:
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a", "b"]}))
    users = ["10", "7", "NA", "007", "2"]
    frame = pd.DataFrame({"user": np.repeat(users, 2), "item": ["b", "a"] * 5, "relevance": [1, 2] * 5})
    slates = Reranker(constraints=[SlateSize(1)]).rerank(frame, catalogue)
    assert slates.frame["user"].tolist() == ["2", "7", "10", "NA", "007"]
    assert slates.frame["item"].tolist() == ["a"] * 5


@pytest.mark.parametrize("convert", [pl.from_pandas, pa.Table.from_pandas])
def test_other_frames(convert: Callable[[pd.DataFrame], Any]) -> None:
    frame, catalogue = random_case(2)
    reranker = Reranker(constraints=RULES)
    expected = reranker.rerank(frame, catalogue).frame
    slates = reranker.rerank(convert(frame), catalogue).frame
    pd.testing.assert_frame_equal(slates.to_pandas(), expected)


def test_certificate_round_trips_as_json_and_reads_well() -> None:
    frame, catalogue = random_case(3)
    slates = Reranker(EngagementDiversity(0.3), RULES).rerank(frame, catalogue, progress=True)
    certificate = slates.certificate
    plain = json.loads(certificate.to_json())
    assert plain == certificate.to_dict()
    assert plain["violations"] == {"exactly 6 items": 0.0, "at least 2 A": 0.0, "at most 1 B": 0.0}
    assert plain["privacy"] == "per_user"
    assert plain["route"] == certificate.route
    assert plain["largest_gap"] == certificate.per_user["gap"].max()
    assert certificate.objective == pytest.approx(certificate.per_user["objective"].mean())
    assert certificate.gap == pytest.approx(1.0 - certificate.objective / certificate.bound)
    assert "none violated" in repr(certificate)
    assert repr(slates).startswith("Slates(3 users, 18 items; Certificate(")


def test_a_search_cut_short_states_its_gap() -> None:
    frame, catalogue = random_case(8)
    hasty = Reranker(EngagementDiversity(0.9), RULES, gap=1e-9, max_solves=1, route="general").rerank(
        frame, catalogue
    )
    patient = Reranker(EngagementDiversity(0.9), RULES, gap=1e-4).rerank(frame, catalogue).certificate
    assert hasty.certificate.iterations == 8
    assert hasty.certificate.gap > 1e-9
    assert hasty.certificate.bound >= patient.objective - SLACK


# Refusals


def test_conflict_names_rules_and_counts() -> None:
    case = Tiny(
        [("A",), ("B",), ("B",), ("B",)],
        [4.0, 3.0, 2.0, 1.0],
        [SlateSize(3), CategoryMinimum("A", 2), CategoryMaximum("C", 1)],
        0.0,
    )
    with pytest.raises(InfeasibleError, match="1 of 4 candidates are A") as caught:
        Reranker(constraints=case.constraints).rerank(case.frame, case.catalogue)
    assert caught.value.conflict.names == ("at least 2 A",)


def test_three_rules_that_conflict_only_together() -> None:
    case = Tiny(
        [("A",)] * 3 + [("B",)] * 3,
        [1.0] * 6,
        [CategoryMinimum("A", 2), CategoryMinimum("B", 2), SlateSize(3), CategoryMaximum("C", 0)],
        0.0,
    )
    with pytest.raises(InfeasibleError, match="together") as caught:
        Reranker(EngagementDiversity(0.3), case.constraints).rerank(case.frame, case.catalogue)
    assert caught.value.conflict.names == ("at least 2 A", "at least 2 B", "exactly 3 items")


def test_fewer_candidates_than_the_slate_holds() -> None:
    frame, catalogue = random_case(2)
    short = frame[(frame["user"] != "u1") | (frame.groupby("user").cumcount() < 5)]
    with pytest.raises(InfeasibleError, match="asks for 6 of 5 candidates") as caught:
        Reranker(constraints=[*RULES, CategoryMinimum("C", 6)]).rerank(short, catalogue)
    assert (caught.value.user, caught.value.conflict.names) == ("u1", ("exactly 6 items",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": [1.0, np.nan, 2.0]}, "row 2, column 'relevance'"),
        ({"relevance": [1.0, 2.0, -np.inf]}, "row 3, column 'relevance'"),
        ({"relevance": ["1", "2", "high"]}, "row 3, column 'relevance'.*'high'"),
        ({"item": ["a", "b", "a"]}, "row 3, column 'item'.*twice"),
        ({"item": ["a", "b", "q"]}, "row 3, column 'item'.*'q' is not in the catalogue"),
        ({"item": ["a", None, "c"]}, "row 2, column 'item'"),
        ({"user": [1.0, 1.0, 1.0]}, "column 'user'"),
        ({"user": ["u", "", "u"]}, "row 2, column 'user'"),
    ],
)
def test_bad_candidates_are_refused_by_row_and_column(change: dict[str, Any], message: str) -> None:
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": ["a", "b", "c"]}))
    frame = pd.DataFrame({"user": "u", "item": ["a", "b", "c"], "relevance": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match=message):
        Reranker(constraints=[SlateSize(1)]).rerank(frame.assign(**change), catalogue)


def test_missing_column_and_empty_frame() -> None:
    frame, catalogue = random_case(1)
    reranker = Reranker(constraints=[SlateSize(1)])
    with pytest.raises(DataError, match="relevance"):
        reranker.rerank(frame.drop(columns="relevance"), catalogue)
    with pytest.raises(DataError, match="no candidate"):
        reranker.rerank(frame.head(0), catalogue)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reranker(), "exactly one SlateSize, not 0"),
        (lambda: Reranker(constraints=[SlateSize(1), SlateSize(2)]), "exactly one SlateSize, not 2"),
        (lambda: Reranker(constraints=[*RULES, CategoryMinimum("A", 2)]), "share the name 'at least 2 A'"),
        (lambda: Reranker(constraints=RULES, solver="ORACLE"), "'ORACLE'.*HIGHS"),
        (lambda: Reranker(constraints=RULES, gap=0.0), "gap=0.0"),
        (lambda: Reranker(constraints=RULES, gap=float("nan")), "gap=nan"),
        (lambda: Reranker(constraints=RULES, max_solves=0), "max_solves=0"),
        (lambda: EngagementDiversity(1.5), "diversity_weight=1.5"),
        (lambda: EngagementDiversity(float("nan")), "diversity_weight=nan"),
        (lambda: top_k(*random_case(1), 0), "k=0"),
        (lambda: Reranker(constraints=RULES).to_cvxpy(*random_case(1), "nobody"), "'nobody'"),
    ],
)
def test_bad_requests_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        make()


def test_unknown_category_is_refused_before_anything_is_read() -> None:
    _, catalogue = random_case(1)
    reranker = Reranker(constraints=[SlateSize(1), CategoryMinimum("Western", 1)])
    with pytest.raises(SpecificationError, match="'Western'"):
        reranker.rerank("not even a frame", catalogue)


@dataclass(frozen=True)
class NotConvex(RelevanceCeiling):
    """A rule of somebody's own, written against the rules of cvxpy."""

    def lhs(self, x: Any, candidates: Any) -> Any:
        return -((candidates.category("A") @ x) ** 2)


def test_a_rule_that_is_not_convex_is_refused_by_name() -> None:
    frame, catalogue = random_case(1)
    reranker = Reranker(constraints=[SlateSize(2), NotConvex(3.0, name="odd")])
    for ask in (reranker.rerank, reranker.to_cvxpy):
        with pytest.raises(SpecificationError, match="'odd'"):
            ask(frame, catalogue)


# Solvers that lie


def lying_solver(monkeypatch: pytest.MonkeyPatch, lie: Callable[[Program, Answer], Answer]) -> None:
    """HiGHS, whose answers to integer programs are changed; the re-ranker is told to use it."""

    def solve(program: Program, gap: float, seconds: float) -> Answer:
        return lie(program, solve_highs(program, gap, seconds))

    monkeypatch.setattr(problem, "solve_highs", solve)


def first_entries(program: Program, wanted: int, value: float = 1.0) -> NDArray[np.float64]:
    v = np.zeros(len(program.c))
    v[:wanted] = value
    return v


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize(("wanted", "value"), [(6, 1.0), (30, 0.2), (5, 1.0), (7, 1.0)])
def test_an_answer_that_breaks_a_rule_is_repaired(
    wanted: int, value: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, catalogue = random_case(1)
    before = top_k(frame, catalogue, 6)["item"]
    assert catalogue.membership[catalogue.positions(before), 0].sum() < 2  # or the lie would be true
    reranker = Reranker(EngagementDiversity(weight), RULES, solver="HIGHS")
    honest = reranker.rerank(frame, catalogue).certificate
    lying_solver(
        monkeypatch, lambda program, answer: replace(answer, v=first_entries(program, wanted, value))
    )
    slates = reranker.rerank(frame, catalogue)
    assert len(slates.frame) == 6
    assert slates.certificate.largest_violation == 0.0
    assert honest.objective <= slates.certificate.bound + SLACK
    assert slates.certificate.objective <= honest.bound + SLACK


def test_what_swaps_cannot_repair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = random_case(1)
    lying_solver(monkeypatch, lambda program, answer: replace(answer, v=first_entries(program, 6)))
    monkeypatch.setattr(general, "swap_repair", lambda model, chosen: chosen)
    with pytest.raises(NumericalError, match="found no slate for 1 users, the first 'u0'"):
        Reranker(constraints=RULES, solver="HIGHS").rerank(frame, catalogue)


def test_a_slate_is_measured_without_the_inequality_that_made_it() -> None:
    frame, catalogue = random_case(1)
    careless = Custom(
        lambda x, c: 0.0 * x[0], 1.0, count=lambda chosen, c: float(len(chosen)), name="careless"
    )
    with pytest.raises(NumericalError, match="violates 'careless' by 6"):
        Reranker(constraints=[*RULES, careless]).rerank(frame, catalogue)


def test_a_bound_below_the_slate_is_never_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = random_case(1)
    lying_solver(monkeypatch, lambda program, answer: replace(answer, bound=0.5))
    with pytest.raises(NumericalError, match="bound"):
        Reranker(constraints=RULES, solver="HIGHS").rerank(frame, catalogue)


def test_infeasible_is_not_believed_without_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = random_case(1)
    lies = iter([True])

    def once(program: Program, answer: Answer) -> Answer:
        return replace(answer, v=None, infeasible=True) if next(lies, False) else answer

    lying_solver(monkeypatch, once)
    with pytest.raises(NumericalError, match="found no slate, and then one"):
        Reranker(constraints=RULES, solver="HIGHS").rerank(frame, catalogue)


def test_a_lie_inside_the_conflict_search_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rules: list[Constraint] = [SlateSize(1), CategoryMinimum("A", 1), CategoryMinimum("B", 1)]
    case = Tiny([("A",), ("B",)], [1.0, 1.0], rules, 0.0)

    def everything(program: Program, answer: Answer) -> Answer:
        return answer if answer.infeasible else replace(answer, v=first_entries(program, 2))

    lying_solver(monkeypatch, everything)
    with pytest.raises(NumericalError, match="neither found a slate nor a proof"):
        Reranker(constraints=case.constraints).rerank(case.frame, case.catalogue)


def test_a_solver_that_gives_up_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, catalogue = random_case(1)

    def crash(self: cp.Problem, **options: Any) -> None:
        raise cp.SolverError("out of patience")

    monkeypatch.setattr(cp.Problem, "solve", crash)
    with pytest.raises(NumericalError, match="out of patience"):
        Reranker(constraints=RULES, solver="SCIPY").rerank(frame, catalogue)
    monkeypatch.setattr(cp.Problem, "solve", lambda self, **options: None)
    with pytest.raises(NumericalError, match="without an answer"):
        Reranker(constraints=RULES, solver="SCIPY").rerank(frame, catalogue)


def test_the_re_ranker_never_loads_torch() -> None:
    code = "import sys, recsys_budget.rerank; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
