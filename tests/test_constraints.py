"""What constraints mean, and that their measure and their inequality are two independent accounts of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recsys_budget.constraints import (
    Block,
    Calibration,
    Candidates,
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
    ItemConstraint,
    NoveltyMinimum,
    Pin,
    PopularityMaximum,
    Population,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.constraints.policy import KINDS
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.metrics import calibration_kl

NAMES = ("Action", "Documentary", "Drama")


def catalogue_of(*categories: tuple[str, ...]) -> ItemCatalogue:
    frame = pd.DataFrame({"item": [f"i{j}" for j in range(len(categories))], "categories": categories})
    return ItemCatalogue.from_frame(frame, category_names=NAMES)


def candidates_of(*categories: tuple[str, ...]) -> Candidates:
    n = len(categories)
    return Candidates("u", catalogue_of(*categories), np.arange(n), np.linspace(1.0, 0.0, n), k=2)


MIXED = candidates_of(("Drama",), ("Drama", "Documentary"), (), ("Documentary",), ("Action", "Drama"))


@pytest.mark.parametrize(
    ("constraint", "name"),
    [
        (SlateSize(10), "exactly 10 items"),
        (CategoryMinimum("Documentary", 2), "at least 2 Documentary"),
        (CategoryMaximum("Drama", 4), "at most 4 Drama"),
        (CategoryMaximum("Drama", 4, name="not too sad", reason="survey of May"), "not too sad"),
    ],
)
def test_names(constraint: Constraint, name: str) -> None:
    assert constraint.name == name


def test_constraints_are_frozen_values() -> None:
    rule = CategoryMinimum("Drama", 1, reason="variety")
    assert rule == CategoryMinimum("Drama", 1, reason="variety")
    assert rule.reason == "variety"
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.count = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SlateSize(0), "k=0"),
        (lambda: SlateSize(-3), "k=-3"),
        (lambda: SlateSize(2.5), "k=2.5"),  # type: ignore[arg-type]
        (lambda: SlateSize(True), "k=True"),
        (lambda: CategoryMinimum("Drama", -1), "count=-1"),
        (lambda: CategoryMaximum("Drama", -1), "count=-1"),
        (lambda: CategoryMaximum("Drama", "2"), "count='2'"),  # type: ignore[arg-type]
        (lambda: CategoryMinimum("", 1), "category"),
        (lambda: CategoryMinimum(3, 1), "category"),  # type: ignore[arg-type]
        (lambda: Cap("cost", float("nan")), "total=nan"),
        (lambda: Cap("cost", float("inf")), "total=inf"),
        (lambda: EngagementFloor(1.5), "share=1.5"),
        (lambda: Calibration(-1.0), "divergence=-1.0"),
        (lambda: Calibration(1.0, alpha=0.0), "alpha=0.0"),
        (lambda: ExposureMinimum("Drama", -1.0), "exposure=-1.0"),
        (lambda: ExposureMinimum("Drama", 1.0, "dcg"), "discount='dcg'"),  # type: ignore[arg-type]
        (lambda: ExposureMinimum("Drama", 1.0, (0.5, 1.0)), "never rise"),
        (lambda: ExposureMinimum("Drama", 1.0, (float("nan"),)), "finite"),
        (lambda: ProviderMinimum(), "one of the two"),
        (lambda: ProviderMinimum(exposure=1, share=0.5), "one of the two"),
        (lambda: ProviderMaximum(share=1.5), "share=1.5"),
        (lambda: StockMaximum(-1), "count=-1"),
        (lambda: CatalogueCoverage(-1), "count=-1"),
        (lambda: Pin("i1", 0), "position=0"),
        (lambda: Soft(SlateSize(1), 0.0), "weight=0.0"),
        (lambda: Soft(Soft(SlateSize(1), 1.0), 1.0), "hard constraint"),
        (lambda: Custom(lambda x, c: x, 1.0), "name="),
        (lambda: Custom(3, 1.0, name="three"), "functions"),  # type: ignore[arg-type]
        (lambda: SlateSize(3, name=3), "name must be text"),  # type: ignore[arg-type]
    ],
)
def test_bad_numbers_are_refused_when_written(make: object, word: str) -> None:
    with pytest.raises(SpecificationError, match=word):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("constraint", "chosen", "violation"),
    [
        (SlateSize(2), [0, 1], 0.0),
        (SlateSize(2), [0], 1.0),
        (SlateSize(2), [], 2.0),
        (SlateSize(2), [0, 1, 2, 3, 4], 3.0),
        (SlateSize(2), [1, 1], 1.0),
        (SlateSize(2), [0, 1, 1], 1.0),
        (CategoryMinimum("Documentary", 2), [1, 3], 0.0),
        (CategoryMinimum("Documentary", 2), [1, 4], 1.0),
        (CategoryMinimum("Documentary", 2), [0, 2], 2.0),
        (CategoryMinimum("Documentary", 0), [2], 0.0),
        (CategoryMaximum("Drama", 1), [0, 3], 0.0),
        (CategoryMaximum("Drama", 1), [0, 1, 4], 2.0),
        (CategoryMaximum("Drama", 0), [2, 3], 0.0),
    ],
)
def test_measure_counts_items(constraint: Constraint, chosen: list[int], violation: float) -> None:
    assert constraint.measure(np.array(chosen, np.intp), MIXED) == violation


# Every kind of rule, with numbers that are satisfied by some selections and violated by others.
PER_USER: list[Constraint] = [
    SlateSize(3),
    CategoryMinimum("Drama", 2),
    CategoryMaximum("Drama", 1),
    GroupMaximum(1),
    GroupMaximum(2, by="series"),
    Pin("i1"),
    Pin("i0", 2),
    Block("i2"),
    Block("i1", 1),
    Cap("cost", 5.5),
    PopularityMaximum(0.3),
    NoveltyMinimum(2.0),
    ExposureMinimum("Drama", 1.2),
    ExposureMinimum("Drama", 2, discount="none"),
    ExposureMaximum("Documentary", 0.7),
    ExposureMaximum("Drama", 0.5, discount=(1.0, 0.5, 0.25)),
    EngagementFloor(0.9),
    EngagementFloor(0.9, discount="log"),
    Calibration(0.2),
]
TOGETHER: list[Constraint] = [
    ProviderMinimum(exposure=2),
    ProviderMinimum(share=0.3, provider="p"),
    ProviderMinimum(share=0.4, discount="log"),
    ProviderMaximum(exposure=1.5, provider="q", discount=(1.0, 0.5)),
    ProviderMaximum(share=0.4),
    StockMaximum(1),
    StockMaximum("stock"),
    TotalMaximum("cost", 9.0),
    CatalogueCoverage(4),
    GroupParity("Drama", tolerance=0.2),
    GroupParity("Drama", "Documentary", tolerance=0.0, discount="log"),
]


@st.composite
def populations(draw: st.DrawFn, users: int) -> tuple[Population, np.ndarray]:
    """A population, and slates of it that need not satisfy anything."""
    n, k = draw(st.integers(4, 7)), 3
    members = [tuple(sorted(draw(st.sets(st.sampled_from(NAMES))))) for _ in range(n)]
    members[:3] = [("Drama",), ("Documentary",), ()]
    numbers = st.integers(1, 8)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{j}" for j in range(n)],
                "categories": members,
                "provider": ["p", "q", *(draw(st.sampled_from(["p", "q", ""])) for _ in range(n - 2))],
                "cost": [draw(numbers) / 2.0 for _ in range(n)],
                "popularity": [draw(numbers) / 8.0 for _ in range(n)],
                "stock": [draw(st.integers(0, 2)) for _ in range(n)],
                "series": [draw(st.sampled_from([1.0, 2.0, None])) for _ in range(n)],
            }
        ),
        category_names=NAMES,
        attributes=["cost", "popularity", "stock", "series"],
    )
    items = [
        np.sort(np.array(draw(st.permutations(range(n)))[: draw(st.integers(k, n))])) for _ in range(users)
    ]
    mixes = [np.array([draw(st.integers(0, 3)) for _ in NAMES], np.float64) for _ in range(users)]
    history = np.array([mix / mix.sum() if mix.sum() else mix for mix in mixes])
    population = Population(
        catalogue,
        pd.Index([f"u{j}" for j in range(users)], dtype="str"),
        np.concatenate([[0], np.cumsum([len(part) for part in items])]),
        np.concatenate(items),
        np.concatenate(
            [
                np.sort(draw(st.lists(st.integers(-3, 9), min_size=len(p), max_size=len(p))))[::-1]
                for p in items
            ]
        ).astype(np.float64),
        k,
        sparse.csr_array(history),
    )
    chosen = np.array([draw(st.permutations(range(len(part))))[:k] for part in items])
    return population, chosen


def selection(chosen: np.ndarray, population: Population, positional: bool) -> np.ndarray:
    x = np.zeros((len(population.items), population.k))
    for u, slate in enumerate(chosen):
        for place, row in enumerate(slate):
            x[population.offsets[u] + row, place] = 1.0
    return x if positional else x.sum(axis=1)


def overshoot(rule: Constraint, x: np.ndarray, candidates: Candidates | Population) -> float:
    over = np.atleast_1d(np.asarray(rule.lhs(x, candidates), np.float64) - rule.rhs(candidates))
    return float(np.maximum(0.0, over).sum())


@settings(max_examples=60, deadline=None)
@given(populations(users=1))
def test_measure_agrees_with_the_inequality(case: tuple[Population, np.ndarray]) -> None:
    population, chosen = case
    user = population.of(0)
    for rule in PER_USER:
        rule.check(population.catalogue, population.k)
        x = selection(chosen, population, rule.positional)
        expected = overshoot(rule, x, user)
        assert rule.measure(chosen[0], user) == pytest.approx(expected, abs=1e-9), rule.name
        assert rule.explain(user)


@settings(max_examples=60, deadline=None)
@given(populations(users=3))
def test_measures_of_all_slates_agree_with_the_inequality(case: tuple[Population, np.ndarray]) -> None:
    population, chosen = case
    for rule in TOGETHER:
        rule.check(population.catalogue, population.k)
        x = selection(chosen, population, rule.positional)
        assert rule.measure(chosen, population) == pytest.approx(overshoot(rule, x, population), abs=1e-9), (
            rule.name
        )
        assert rule.explain(population)
    for rule in PER_USER:
        each = [rule.measure(slate, population.of(u)) for u, slate in enumerate(chosen)]
        assert rule.measure_all(chosen, population).tolist() == each, rule.name  # to the last bit


@settings(max_examples=15, deadline=None)
@given(populations(users=2))
def test_cvxpy_and_numpy_see_one_inequality(case: tuple[Population, np.ndarray]) -> None:
    from recsys_budget.rerank import problem  # noqa: F401 - teaches the expressions of cvxpy

    population, chosen = case
    alone = Population.of_one(population.of(0))
    for rule in [*PER_USER, *TOGETHER]:
        about = population if rule.scope == "population" else alone
        x = selection(chosen[: len(about)], about, rule.positional)
        variable = cp.Variable(x.shape)
        given = about if rule.scope == "population" else about.of(0)
        lhs = cp.Expression.cast_to_const(rule.lhs(variable, given))
        assert (lhs <= rule.rhs(given)).is_dcp(), rule.name
        variable.value = x
        assert np.allclose(lhs.value, rule.lhs(x, given)), rule.name


def test_every_kind_of_rule_is_held_to_its_inequality() -> None:
    assert {type(rule) for rule in [*PER_USER, *TOGETHER]} == set(KINDS.values())


def test_a_history_without_categories_holds_a_user_to_nothing() -> None:
    user = dataclasses.replace(MIXED, history=np.zeros(3))
    assert Calibration(0.0).measure(np.array([0, 2]), user) == 0.0
    with pytest.raises(SpecificationError, match="history="):
        Calibration(0.0).measure(np.array([0, 2]), MIXED)


def test_calibration_is_the_metric_where_every_item_has_a_category() -> None:
    catalogue = catalogue_of(("Drama",), ("Drama", "Action"), ("Documentary",), ("Action",))
    history = Interactions.from_frame(
        pd.DataFrame({"user": "u", "item": ["i0", "i2", "i3"]}), catalogue=catalogue
    )
    user = Candidates("u", catalogue, np.arange(4), np.arange(4, 0, -1.0), 2, np.array([1, 1, 1]) / 3)
    ranking = pd.DataFrame({"user": "u", "item": ["i1", "i2"], "rank": [1, 2]})
    nats = calibration_kl(ranking, history)["u"]
    assert Calibration(0.0).measure(np.array([1, 2]), user) == pytest.approx(nats, abs=1e-12)


def test_soft_keeps_the_rule_and_its_words() -> None:
    rule = CategoryMinimum("Drama", 2, reason="variety")
    soft = Soft(rule, 0.5)
    assert (soft.name, soft.reason, soft.hard, soft.penalty, rule.hard) == (
        rule.name,
        "variety",
        False,
        0.5,
        True,
    )
    assert soft.measure(np.array([2, 3]), MIXED) == 2.0
    assert Soft(rule, 0.5, name="mild") == Soft(dataclasses.replace(rule, name="mild"), 0.5)
    assert Soft(ProviderMinimum(exposure=1), 1.0).scope == "population"
    assert Soft(Pin("i0", 1), 1.0).positional


def test_custom_measures_itself_or_is_measured() -> None:
    rule = Custom(lambda x, c: c.relevance @ x, 1.2, name="modest")
    assert rule.measure(np.array([0, 1]), MIXED) == pytest.approx(0.55)
    by_atoms = Custom(lambda x, c: cp.sum_squares(c.membership.T @ x), 4.0, name="spread")
    assert by_atoms.measure(np.array([0, 1]), MIXED) == pytest.approx(1.0)
    counted = Custom(lambda x, c: c.relevance @ x, 1.2, count=lambda chosen, c: 7.0, name="counted")
    assert counted.measure(np.array([0, 1]), MIXED) == 7.0
    frame = MIXED.to_frame()
    assert list(frame.columns) == ["item", "relevance", "title", "categories", "provider"]


def test_a_lhs_written_beside_what_it_is_made_from_is_refused() -> None:
    with pytest.raises(TypeError, match=r"coefficients"):

        class Wrong(ItemConstraint):
            def lhs(self, x: object, candidates: object) -> object:
                return x


def test_measure_does_not_go_through_the_inequality(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (CategoryMinimum, ProviderMinimum, EngagementFloor, Calibration):
        monkeypatch.setattr(kind, "lhs", lambda self, x, candidates: -1e9)
    monkeypatch.setattr(CategoryMinimum, "item_rows", lambda self, catalogue: 1 / 0)
    assert CategoryMinimum("Documentary", 2).measure(np.array([0, 2]), MIXED) == 2.0
    assert EngagementFloor(1.0).measure(np.array([3, 4]), MIXED) > 0.5


def test_unknown_category_lists_the_known_ones() -> None:
    for rule in (CategoryMinimum("Western", 1), CategoryMaximum("Western", 1)):
        with pytest.raises(SpecificationError, match=r"'Western'.*'Action', 'Documentary', 'Drama'"):
            rule.check(MIXED.catalogue, 2)
    SlateSize(3).check(MIXED.catalogue, 3)
    with pytest.raises(SpecificationError, match="none at all; give its table a column 'categories'"):
        CategoryMinimum("Drama", 1).check(ItemCatalogue.from_frame(pd.DataFrame({"item": ["a"]})), 1)


def test_explain_says_what_the_candidates_offer() -> None:
    assert CategoryMinimum("Documentary", 3).explain(MIXED) == "2 of 5 candidates are Documentary"
    assert SlateSize(9).explain(MIXED) == "asks for 9 of 5 candidates"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Cap("cost", 3), "no attribute 'cost'"),
        (Cap("half", 3), "needs 'half' of every item, but 4 lack it, the first 'i1'"),
        (NoveltyMinimum(2, "two"), "must be a share of users above 0 and at most 1"),
        (GroupMaximum(1, by="series"), "no attribute 'series'"),
        (Pin("i9"), "item 'i9' is not in the catalogue of 5 items"),
        (Block("i1", 4), "names place 4 of a slate of 2"),
        (ProviderMinimum(exposure=1, provider="p"), "no provider 'p'"),
        (ProviderMinimum(exposure=1), "needs a catalogue with providers"),
        (GroupParity("Drama", "Western"), "no category 'Western'"),
        (StockMaximum("stock"), "no attribute 'stock'"),
    ],
)
def test_what_the_catalogue_lacks_is_refused(rule: Constraint, message: str) -> None:
    frame = MIXED.catalogue.to_frame().assign(half=[1.0, None, None, None, None], two=2.0)
    catalogue = ItemCatalogue.from_frame(frame, category_names=NAMES, attributes=["half", "two"])
    with pytest.raises(SpecificationError, match=message):
        rule.check(catalogue, 2)


def test_the_language_needs_no_solver() -> None:
    code = "import sys, recsys_budget.constraints; sys.exit('cvxpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
