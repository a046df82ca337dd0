"""Answers of the explorer's state: taken from frontiers where those have them, the same as solving again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, ProviderMinimum, SlateSize
from recsys_budget.data import (
    Interactions,
    ItemCatalogue,
    SyntheticSpec,
    hold_out_users,
    make_interactions,
)
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers import Frontier, frontier
from recsys_budget.rerank import EngagementDiversity, Prepared, Reranker
from recsys_budget.widgets.operating import Choice, Operation

K, KINDS = 4, ("A", "B", "C")


def setting(n_users: int = 5, seed: int = 0) -> tuple[pd.DataFrame, ItemCatalogue]:
    rng = np.random.default_rng(seed)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame(
            {
                "item": [f"i{n}" for n in range(30)],
                "categories": [KINDS[n % 3] for n in range(30)],
                "provider": [f"p{n % 4}" for n in range(30)],
            }
        )
    )
    rows = [(f"u{u}", f"i{n}", rng.random()) for u in range(n_users) for n in rng.permutation(30)[:20]]
    return pd.DataFrame(rows, columns=["user", "item", "relevance"]), catalogue


RULES = (SlateSize(K), CategoryMinimum("B", 1), CategoryMaximum("A", 2))
RERANKER = Reranker(EngagementDiversity(0.3), RULES, gap=1e-6)


def swept(candidates, catalogue, vary, values, reranker=RERANKER) -> Frontier:
    return frontier(candidates, catalogue, vary, values, reranker=reranker, progress=False)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every answer that is searched for."""
    asked: list[object] = []
    own = Prepared.rerank

    def watched(self, **what):
        asked.append(what)
        return own(self, **what)

    monkeypatch.setattr(Prepared, "rerank", watched)
    return asked


def test_a_choice_that_a_frontier_has_is_not_solved_again(solved) -> None:
    candidates, catalogue = setting()
    made = (
        swept(candidates, catalogue, "diversity", [0.0, 0.3, 0.6]),
        swept(candidates, catalogue, RULES[1].name, [0, 1, 2]),
    )
    operation = Operation(made)
    start = operation.start()
    solved.clear()
    for frontier_, place in ((made[0], 0), (made[0], 2), (made[1], 0), (made[1], 2)):
        choice = operation.at(frontier_, place, start)
        result = operation.answer(choice)
        expected = frontier_.points[place].slates
        pd.testing.assert_frame_equal(result.slates.frame, expected.frame)
        assert result.certificate is expected.certificate
        assert result.certificate.objective == pytest.approx(
            Reranker(EngagementDiversity(choice.diversity), result.rules, gap=1e-6)
            .rerank(candidates, catalogue, progress=False)
            .certificate.objective
        )
    assert not solved
    both = replace(start, diversity=0.6, numbers={**start.numbers, RULES[1].name: 2})
    assert operation.answer(both).certificate.violations[RULES[1].default_name().replace("1", "2")] == 0.0
    assert len(solved) == 1  # no frontier has both


def test_slates_of_other_questions_are_never_taken(solved) -> None:
    candidates, catalogue = setting()
    base = swept(candidates, catalogue, "diversity", [0.3])
    other_rules = (*RULES[:2], CategoryMaximum("A", 1))
    others = {
        "other candidates": swept(setting(seed=1)[0], catalogue, "diversity", [0.6]),
        "other rules": swept(
            candidates, catalogue, "diversity", [0.6], replace(RERANKER, constraints=other_rules)
        ),
        "another gap": swept(candidates, catalogue, "diversity", [0.6], replace(RERANKER, gap=0.1)),
        "another weight": swept(
            candidates,
            catalogue,
            RULES[1].name,
            [0, 2],
            replace(RERANKER, objective=EngagementDiversity(0.1)),
        ),
    }
    for what, other in others.items():
        operation = Operation((base, other))
        start = operation.start()
        choice = replace(start, diversity=0.6)
        if other.swept != "diversity":
            choice = operation.at(other, 1, start)
        solved.clear()
        result = operation.answer(choice)
        assert len(solved) == 1, what
        own = replace(RERANKER, objective=EngagementDiversity(choice.diversity), constraints=result.rules)
        expected = own.rerank(candidates, catalogue, progress=False)
        pd.testing.assert_frame_equal(result.slates.frame, expected.frame)


def test_equal_candidates_in_another_table_will_do(solved) -> None:
    candidates, catalogue = setting()
    made = (
        swept(candidates, catalogue, "diversity", [0.3]),
        swept(candidates.copy(), catalogue, "diversity", [0.6]),
        swept(pl.from_pandas(candidates), catalogue, RULES[1].name, [2]),
    )
    operation = Operation(made)
    start = operation.start()
    solved.clear()
    assert operation.answer(replace(start, diversity=0.6)).certificate is made[1].points[0].certificate
    result = operation.answer(replace(start, numbers={**start.numbers, RULES[1].name: 2}))
    assert not solved
    assert isinstance(result.slates.frame, pd.DataFrame)
    user = result.slates.frame["user"].iloc[0]
    assert operation.slack(result, user)["at least 2 B"] >= 0.0


def test_a_conflict_is_taken_only_by_the_number_that_it_is_about(solved) -> None:
    candidates, catalogue = setting()
    made = swept(candidates, catalogue, RULES[1].name, [0, K + 1, K + 3])
    operation = Operation((made,))
    start = operation.start()
    solved.clear()
    for place, searched in ((1, 0), (2, 1)):
        choice = operation.at(made, place, start)
        result = operation.answer(choice)
        assert result.slates is None
        assert len(solved) == searched
        name = next(rule.name for rule in result.conflict.constraints if "B" in rule.name)
        assert f"at least {made.points[place].value:g} B" == name
        operation.relaxed(result, name)  # names a rule of this choice


def test_the_oldest_answers_are_forgotten(solved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_budget.widgets.operating._KEPT", 2)
    candidates, catalogue = setting(2)
    operation = Operation((swept(candidates, catalogue, "diversity", [0.0]),))
    solved.clear()
    choices = [replace(operation.start(), diversity=weight) for weight in (0.1, 0.2, 0.3)]
    first, *_, last = (operation.answer(choice) for choice in choices)
    assert operation.answer(choices[2]) is last
    assert len(solved) == 3
    again = operation.answer(choices[0])
    assert len(solved) == 4
    pd.testing.assert_frame_equal(again.slates.frame, first.slates.frame)


@pytest.mark.parametrize("user", ["u0", "u4"])
def test_room_for_rules_about_all_slates_is_that_of_their_inequality(user: str) -> None:
    candidates, catalogue = setting()
    rules = [*RULES, ProviderMinimum(2, provider="p1"), ProviderMinimum(share=0.1)]
    reranker = Reranker(EngagementDiversity(0.0), rules)
    made = swept(candidates, catalogue, rules[3].name, [2], reranker)
    operation = Operation((made,))
    result = operation.answer(operation.start())
    providers = catalogue.to_frame()["provider"]
    shown = (
        providers.iloc[catalogue.positions(result.slates.frame["item"])]
        .value_counts()
        .reindex([f"p{n}" for n in range(4)], fill_value=0)
    )
    room = operation.slack(result, user)
    assert room[rules[3].name] == pytest.approx(shown["p1"] - 2)
    assert room[rules[4].name] == pytest.approx(shown.min() - 0.1 * shown.sum())


def test_a_choice_without_a_weight_keeps_the_objective(solved) -> None:
    candidates, catalogue = setting()
    operation = Operation((swept(candidates, catalogue, RULES[1].name, [1, 2]),))
    solved.clear()
    kept = operation.answer(Choice(None, None, {RULES[1].name: 2}))
    assert not solved
    assert kept.certificate is operation.frontiers[0].points[1].certificate


class Offered:
    """A recommender with a path of two models, whose scores are drawn once and for all."""

    def __init__(self, seed: int, *path: Offered) -> None:
        self.seed, self._path = seed, path

    def epsilon_path(self) -> tuple[SimpleNamespace, ...]:
        return tuple(SimpleNamespace(epsilon=1.0 + n, steps=n, model=m) for n, m in enumerate(self._path))

    def recommend(self, interactions: Interactions, k: int) -> pd.DataFrame:
        rng = np.random.default_rng(self.seed)
        lists = [rng.permutation(len(interactions.catalogue))[:k] for _ in interactions.users]
        return pd.DataFrame(
            {
                "user": np.repeat(interactions.users, k),
                "item": interactions.catalogue.ids.to_numpy()[np.concatenate(lists)],
                "relevance": rng.random(k * len(lists)),
            }
        )


def test_each_epsilon_has_slates_of_its_own(solved) -> None:
    spec = SyntheticSpec(n_users=60, n_items=40, n_categories=3, n_providers=4)
    split = hold_out_users(make_interactions(spec, rng=1).interactions.positives(4), 6, rng=0)
    kind = split.train.catalogue.category_names[0]
    reranker = Reranker(EngagementDiversity(0.3), [SlateSize(K), CategoryMaximum(kind, 2)], gap=1e-6)
    model = Offered(2, Offered(1), Offered(2))
    options = {"reranker": reranker, "n_candidates": 30, "progress": False}
    made = (
        frontier(model, split.fold_in, "epsilon", held_out=split.held_out, metric="recall@4", **options),
        frontier(model, split.fold_in, "diversity", [0.3, 0.6], **options),
    )
    operation = Operation(made)
    assert operation.epsilons == (1.0, 2.0)
    solved.clear()
    first, last = (operation.answer(replace(operation.start(), epsilon=e)) for e in operation.epsilons)
    assert not solved
    for result, point in ((first, made[0].points[0]), (last, made[0].points[1])):
        pd.testing.assert_frame_equal(result.slates.frame, point.slates.frame)
    assert not first.slates.frame.equals(last.slates.frame)
    weighted = replace(operation.start(), diversity=0.6)
    assert operation.answer(weighted).certificate is made[1].points[1].certificate
    assert not solved  # the last model made that frontier
    other = operation.answer(replace(weighted, epsilon=1.0))
    assert len(solved) == 1
    assert other.certificate is not made[1].points[1].certificate


def test_the_re_ranker_that_has_all_that_is_swept_is_the_one_that_is_moved() -> None:
    """Whatever the order of the frontiers: a point of each can be chosen."""
    candidates, catalogue = setting()
    floor = ProviderMinimum(2)
    more = Reranker(EngagementDiversity(0.3), (*RULES, floor), gap=1e-6)
    weights = swept(candidates, catalogue, "diversity", [0.0, 0.4])
    floors = swept(candidates, catalogue, floor.name, [0, 2], more)
    for frontiers in ((weights, floors), (floors, weights)):
        operation = Operation(frontiers)
        assert operation.reranker == more
        for each in frontiers:
            choice = operation.at(each, 0, operation.start())
            assert set(choice.numbers) == set(operation.numbers())
            assert operation.answer(choice).slates is not None


def test_frontiers_of_which_none_has_all_that_is_swept_are_refused() -> None:
    candidates, catalogue = setting()
    floor = ProviderMinimum(2)
    one = swept(candidates, catalogue, RULES[1].name, [0, 1])
    other = swept(
        candidates,
        catalogue,
        floor.name,
        [0, 2],
        Reranker(EngagementDiversity(0.3), (RULES[0], RULES[2], floor)),
    )
    with pytest.raises(SpecificationError) as caught:
        Operation((one, other))
    assert RULES[1].name in str(caught.value)
    assert floor.name in str(caught.value)
    assert "a floor of 0" in str(caught.value)
