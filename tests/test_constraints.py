"""What constraints mean, and that their measure and their inequality are two independent accounts of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.constraints import Candidates, CategoryMaximum, CategoryMinimum, Constraint, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError

NAMES = ("Action", "Documentary", "Drama")


def catalogue_of(*categories: tuple[str, ...]) -> ItemCatalogue:
    frame = pd.DataFrame({"item": [f"i{j}" for j in range(len(categories))], "categories": categories})
    return ItemCatalogue.from_frame(frame, category_names=NAMES)


def candidates_of(*categories: tuple[str, ...]) -> Candidates:
    n = len(categories)
    return Candidates.of("u", catalogue_of(*categories), np.arange(n), np.linspace(1.0, 0.0, n))


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


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=8),
    bits=st.lists(st.booleans(), min_size=8, max_size=8),
    category=st.sampled_from(NAMES),
    count=st.integers(0, 4),
)
def test_measure_agrees_with_the_inequality(
    members: list[set[str]], bits: list[bool], category: str, count: int
) -> None:
    candidates = candidates_of(*(tuple(sorted(m)) for m in members))
    x = np.array(bits[: len(members)], np.float64)
    for rule in (CategoryMinimum(category, count), CategoryMaximum(category, count), SlateSize(count + 1)):
        overshoot = float(np.max(np.asarray(rule.lhs(x, candidates)) - rule.rhs))
        assert rule.measure(np.flatnonzero(x), candidates) == max(0.0, overshoot)


def test_measure_does_not_go_through_the_inequality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CategoryMinimum, "lhs", lambda self, x, candidates: -1e9)
    assert CategoryMinimum("Documentary", 2).measure(np.array([0, 2]), MIXED) == 2.0


def test_measure_reads_the_catalogue_rather_than_the_solved_matrix() -> None:
    doctored = dataclasses.replace(MIXED, membership=np.ones_like(MIXED.membership))
    assert CategoryMinimum("Documentary", 2).measure(np.array([0, 2]), doctored) == 2.0


def test_unknown_category_lists_the_known_ones() -> None:
    for rule in (CategoryMinimum("Western", 1), CategoryMaximum("Western", 1)):
        with pytest.raises(SpecificationError, match=r"'Western'.*'Action', 'Documentary', 'Drama'"):
            rule.check(MIXED.catalogue)
    SlateSize(3).check(MIXED.catalogue)
    with pytest.raises(SpecificationError, match="none at all"):
        CategoryMinimum("Drama", 1).check(ItemCatalogue.from_frame(pd.DataFrame({"item": ["a"]})))


def test_explain_says_what_the_candidates_offer() -> None:
    assert CategoryMinimum("Documentary", 3).explain(MIXED) == "2 of 5 candidates are Documentary"
    assert SlateSize(9).explain(MIXED) == "asks for 9 of 5 candidates"


def test_alike_tells_apart_relevance_category_and_provider() -> None:
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": list("abcdef"),
                "categories": [["Drama"], ["Drama"], ["Drama"], ["Action"], [], ["Drama"]],
                "provider": ["p", "p", "q", "p", "p", "p"],
            }
        )
    )
    relevance = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    labels = Candidates.of("u", catalogue, np.arange(6), relevance).alike()
    assert labels[0] == labels[1]
    assert len(set(labels.tolist())) == 5


def test_the_language_needs_no_solver() -> None:
    code = "import sys, recsys_budget.constraints; sys.exit('cvxpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
