"""The explorer: what is chosen, what follows, and that nothing is spent by moving."""

from __future__ import annotations

import base64

import ipywidgets
import numpy as np
import pandas as pd
import pytest

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.data import ItemCatalogue, SyntheticSpec, hold_out_users, make_interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers import Frontier, frontier
from recsys_budget.models import Popularity, PrivateAutoencoder
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.privacy.words import best_bet, in_words
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker
from recsys_budget.widgets import Explorer

HOSTILE = "<img src=x onerror=alert(1)> $x_{$"


@pytest.fixture(scope="module")
def split():
    spec = SyntheticSpec(n_users=300, n_items=80, n_categories=6, n_providers=10)
    return hold_out_users(make_interactions(spec, rng=1).interactions.positives(4), 60, rng=0)


@pytest.fixture(scope="module")
def rules(split):
    first, second = split.train.catalogue.category_names[:2]
    return [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(second, 1, reason="a promise")]


@pytest.fixture(scope="module")
def swept(split, rules):
    candidates = Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(6)), 30)
    base = Reranker(constraints=rules, gap=0.01)
    catalogue = split.train.catalogue
    return (
        frontier(candidates, catalogue, "diversity", [0.0, 0.3, 0.6], reranker=base, progress=False),
        frontier(candidates, catalogue, rules[2].name, range(6), reranker=base, progress=False),
    )


@pytest.fixture
def explorer(swept):
    return swept[0].explore(swept[1])


def texts(widget):
    """Everything that a widget shows as HTML."""
    if isinstance(widget, ipywidgets.HTML):
        return [widget.value]
    return [text for child in getattr(widget, "children", ()) for text in texts(child)]


def control(explorer, name):
    return explorer._controls[name]


def test_it_starts_where_the_frontier_was_made(explorer, rules):
    assert explorer.value["diversity"] == 0.0
    assert explorer.value["rules"] == {rule.name: rule.count for rule in rules[1:]}
    expected = Reranker(EngagementDiversity(0.0), rules, gap=0.01)
    assert explorer.result.rules == expected.constraints
    assert explorer.result.certificate.largest_violation == 0.0


def test_a_slider_changes_the_slates_and_tells_observers(explorer, rules):
    seen = []
    explorer.observe(lambda change: seen.append(change.new), "value")
    before = explorer.result.slates.frame
    control(explorer, "diversity").value = 0.6
    assert explorer.value["diversity"] == 0.6
    assert seen[-1]["diversity"] == 0.6
    assert not explorer.result.slates.frame.equals(before)
    own = Reranker(EngagementDiversity(0.6), rules, gap=0.01)
    basis = explorer._operation.basis
    expected = own.rerank(basis.source, basis.catalogue, progress=False)
    pd.testing.assert_frame_equal(explorer.result.slates.frame, expected.frame)


def test_a_point_that_is_clicked_becomes_the_choice(explorer, swept, rules):
    explorer._fronts[0].selected = 2
    assert explorer.value["diversity"] == control(explorer, "diversity").value == 0.6
    figures = swept[0].frame.iloc[2]
    assert explorer._fronts[0].now == pytest.approx([figures["diversity"], figures["engagement"]])
    explorer._fronts[1].selected = 3
    assert explorer.value["rules"][rules[2].name] == 3
    assert explorer.value["diversity"] == 0.6
    control(explorer, "diversity").value = 0.45
    assert explorer._fronts[0].selected == -1
    control(explorer, "diversity").value = 0.3
    assert explorer._fronts[0].selected == 1


def test_code_chooses_and_mistakes_change_nothing(explorer, rules):
    explorer.value = {"diversity": 0.25, "rules": {rules[1].name: 1}}
    assert control(explorer, "diversity").value == 0.25
    assert control(explorer, rules[1].name).value == 1
    assert explorer.value["rules"][rules[2].name] == 1
    before = explorer.result
    for wrong in ({"weight": 1}, {"rules": {"no such": 1}}, {"user": "nobody"}, {"epsilon": 1.0}):
        with pytest.raises(SpecificationError):
            explorer.value = wrong
        assert explorer.result is before


def test_a_conflict_is_shown_and_a_button_settles_it(split, swept, rules):
    first = rules[1].category
    basis = swept[0].basis
    contrary = CategoryMinimum(first, 1)
    base = Reranker(constraints=[*rules, contrary], gap=0.01)
    explorer = frontier(
        basis.source, basis.catalogue, "diversity", [0.0], reranker=base, progress=False
    ).explore()
    before = explorer.result
    explorer.value = {"rules": {contrary.name: 4}}
    assert explorer.result.slates is None
    panel, *buttons = explorer._conflict.children
    assert "at least 4" in panel.value
    assert "Impossible" in explorer._status.value
    assert "conflict" in explorer._slates.value
    assert [button.description for button in buttons] == [
        f"Relax: 'at most 2 {first}': count 2 -> 4",
        f"Relax: 'at least 4 {first}': count 4 -> 2",
    ]
    buttons[1].click()
    assert explorer.result.conflict is None
    assert explorer.value["rules"][contrary.name] == control(explorer, contrary.name).value == 2
    assert explorer._conflict.children == ()
    explorer.value = {"rules": {contrary.name: 1}}
    assert explorer.result is before


def test_each_new_item_says_why(explorer, rules):
    explorer.value = {"rules": {rules[2].name: 2}, "diversity": 0.0}
    operation, result = explorer._operation, explorer.result
    catalogue = operation.catalogue
    second = rules[2].category
    for user in result.slates.frame["user"].unique():
        for item, reason in operation.reasons(result, user).items():
            kinds = catalogue.take(catalogue.positions([item])).to_frame()["categories"].iloc[0]
            if "at least 2" in reason:
                assert second in kinds
            else:  # without a weight on diversity, something must have forced it in
                assert reason.startswith("for at ")


def test_room_is_counted_in_the_rules_own_unit(explorer, rules):
    operation, result = explorer._operation, explorer.result
    user = explorer.value["user"]
    slack = operation.slack(result, user)
    chosen = result.slates.frame
    items = chosen.loc[chosen["user"] == user, "item"]
    kinds = operation.catalogue.take(operation.catalogue.positions(items)).to_frame()["categories"]
    in_first = sum(rules[1].category in kind for kind in kinds)
    in_second = sum(rules[2].category in kind for kind in kinds)
    assert slack[rules[1].name] == pytest.approx(2 - in_first)
    assert slack[rules[2].name] == pytest.approx(in_second - 1)
    assert slack["exactly 5 items"] == pytest.approx(0.0)


def test_rules_about_all_slates_and_soft_ones_have_sliders_and_room(split):
    catalogue = split.train.catalogue
    provider, first = catalogue.provider_names[0], catalogue.category_names[0]
    rules = [SlateSize(3), ProviderMinimum(2, provider=provider), Soft(CategoryMinimum(first, 1), 0.1)]
    candidates = Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(4)), 40)
    made = frontier(
        candidates,
        catalogue,
        rules[1].name,
        [0, 1, 2],
        reranker=Reranker(Engagement(), rules),
        progress=False,
    )
    explorer = made.explore()
    assert set(explorer.value["rules"]) == {rules[1].name, rules[2].name}
    assert explorer.value["diversity"] is None
    chosen = catalogue.positions(explorer.result.slates.frame["item"])
    shown = (catalogue.to_frame()["provider"].to_numpy()[chosen] == provider).sum()
    slack = explorer._operation.slack(explorer.result, explorer.value["user"])
    assert slack[rules[1].name] == pytest.approx(shown - 2)
    assert "not_private" in explorer._rules.value


def test_what_comes_from_data_is_escaped(split):
    frame = pd.DataFrame(
        {
            "item": ["a", "b", "c", "d"],
            "title": [HOSTILE, "b", HOSTILE, "d"],
            "categories": ["x", "<b>y</b>", "x", "<b>y</b>"],
        }
    )
    catalogue = ItemCatalogue.from_frame(frame)
    candidates = pd.DataFrame(
        {"user": [HOSTILE] * 4, "item": list("abcd"), "relevance": [4.0, 3.0, 2.0, 1.0]}
    )
    rules = [SlateSize(2), CategoryMinimum("<b>y</b>", 1, reason=HOSTILE, name=HOSTILE)]
    made = frontier(
        candidates, catalogue, HOSTILE, [0, 1, 2, 3], reranker=Reranker(Engagement(), rules), progress=False
    )
    explorer = made.explore()
    explorer.value = {"rules": {HOSTILE: 3}}
    for html in texts(explorer):
        assert "<img src=x" not in html
        assert "<b>y" not in html
    explorer.value = {"rules": {HOSTILE: 1}}
    assert "&lt;img" in explorer._slates.value


def test_the_picture_stands_in_where_no_front_loads(explorer):
    assert 'alt="3 points' in explorer._picture.value
    explorer._fronts[0].loaded = True
    assert explorer._picture.value == ""
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "3 points" in bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_frontiers_made_by_hand_or_of_others_are_refused(swept, split):
    with pytest.raises(SpecificationError, match="reranker"):
        Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "more").explore()
    with pytest.raises(SpecificationError, match="reranker"):
        Explorer()
    candidates = Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(2)), 30)
    other = ItemCatalogue.from_frame(split.train.catalogue.to_frame())
    made = frontier(
        candidates, other, "diversity", [0.0], reranker=Reranker(constraints=[SlateSize(5)]), progress=False
    )
    with pytest.raises(SpecificationError, match="apart"):
        swept[0].explore(made)
    with pytest.raises(SpecificationError, match="ledger"):
        swept[0].explore(spend=lambda epsilon: made)


@pytest.fixture(scope="module")
def along(split, rules):
    """A ledger, a frontier over epsilon, and what makes a longer one."""
    ledger = PrivacyLedger(PrivacyBudget(6.0, 1e-5))
    served, held_out = (part.take_users(np.arange(20)) for part in (split.fold_in, split.held_out))

    def train(epsilon):
        model = PrivateAutoencoder(
            declared_users=240,
            steps=10,
            n_factors=4,
            noise_multiplier=4.0,
            epsilons=(0.5, 1.0, epsilon),
            progress=False,
        ).fit(split.train, ledger=ledger)
        return frontier(
            model,
            served,
            "epsilon",
            reranker=Reranker(constraints=rules, gap=0.01),
            held_out=held_out,
            metric="recall@5",
            n_candidates=30,
            progress=False,
        )

    return ledger, train(1.5), train


def test_moving_spends_nothing_and_a_confirmed_button_does(along):
    ledger, path, train = along
    spent, asked = ledger.spent, []

    def spend(epsilon):
        asked.append(epsilon)
        return train(epsilon)

    explorer = path.explore(ledger=ledger, spend=spend)
    epsilons = explorer._operation.epsilons
    explorer.value = {"epsilon": epsilons[0]}
    assert control(explorer, "epsilon").value == epsilons[0]
    control(explorer, "epsilon").value = epsilons[-1]
    (amount, ask), (confirm, _) = (
        explorer._spending.children[0].children,
        explorer._spending.children[1].children,
    )
    amount.value = 2.0
    assert "2" in ask.description
    ask.click()
    assert explorer._spending.children[1].layout.display == ""
    assert ledger.spent == spent
    assert not asked
    assert confirm.description == "Spend epsilon 2 for good"
    confirm.click()
    assert asked == [2.0]
    assert ledger.spent > spent
    assert explorer.value["epsilon"] == explorer._operation.epsilons[-1]
    assert explorer._operation.path is not path


def test_the_utility_wanted_gives_the_epsilon_it_takes(along):
    _, path, _ = along
    explorer = path.explore()
    utilities = path.frame["recall@5"]
    explorer._wanted.value = float(utilities.min())
    reaching = [p.value for p, u in zip(path.points, utilities, strict=True) if u >= utilities.min() - 1e-12]
    assert explorer.value["epsilon"] == min(reaching)
    explorer._wanted.value = 1.0
    assert "No model" in explorer._status.value
    assert "recall" in explorer._status.value


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_best_bet_is_that_of_the_worst_mechanism(epsilon, delta):
    """Randomised response that reveals all with probability delta: the tight case."""
    e = np.exp(epsilon)
    in_data = np.array([delta, (1 - delta) * e / (1 + e), (1 - delta) / (1 + e), 0.0])
    without = in_data[::-1]
    right = np.maximum(in_data, without).sum() / 2
    assert best_bet(epsilon, delta) == pytest.approx(right)


def test_the_bet_is_rounded_up_and_bounded():
    assert "88.1%" in in_words(2.0, 0.0)
    assert "100%" in in_words(1e6, 0.0)
    assert "50%" in in_words(0.0, 0.0)
    with pytest.raises(SpecificationError):
        best_bet(-1.0, 0.0)
