"""The explorer: what is chosen, what follows, and that nothing is spent by moving."""

from __future__ import annotations

import base64
import copy
import re
import sys
import types
from dataclasses import replace

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import pytest
import traitlets
from invented import few
from nbconvert import HTMLExporter

from recsys_budget.constraints import (
    CategoryMaximum,
    CategoryMinimum,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers import Basis, Frontier, Point, frontier
from recsys_budget.frontiers.figures import figures
from recsys_budget.metrics import gini
from recsys_budget.models import Popularity, PrivateAutoencoder
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger, round_up
from recsys_budget.privacy.words import best_bet, in_words
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker
from recsys_budget.widgets import Explorer
from recsys_budget.widgets.front import chart_of

HOSTILE = "<img src=x onerror=alert(1)> $x_{$"


@pytest.fixture(scope="module")
def split():
    return few()


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
    if name == "epsilon":
        return explorer._path.slider
    return explorer._sliders.weight if name == "diversity" else explorer._sliders.rules[name]


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
    explorer._views[0].front.selected = 2
    assert explorer.value["diversity"] == control(explorer, "diversity").value == 0.6
    figures = swept[0].frame.iloc[2]
    assert explorer._views[0].front.now == pytest.approx([figures["diversity"], figures["engagement"]])
    explorer._views[1].front.selected = 3
    assert explorer.value["rules"][rules[2].name] == 3
    assert explorer.value["diversity"] == 0.6
    control(explorer, "diversity").value = 0.45
    assert explorer._views[0].front.selected == -1
    control(explorer, "diversity").value = 0.1 + 0.2  # pages round, and so do sums
    assert explorer._views[0].front.selected == 1


def test_code_chooses_and_mistakes_change_nothing(explorer, rules):
    explorer.value = {"diversity": 0.25, "rules": {rules[1].name: 1}}
    assert control(explorer, "diversity").value == 0.25
    assert control(explorer, rules[1].name).value == 1
    assert explorer.value["rules"][rules[2].name] == 1
    before, value = explorer.result, explorer.value
    wrong = [{"weight": 1}, {"rules": {"no such": 1}}, {"user": "nobody"}, {"epsilon": 1.0}]
    wrong += [{"diversity": 1.5}, {"rules": {rules[1].name: -1}}, {"rules": {rules[1].name: 1.5}}]
    for mistake in wrong:
        with pytest.raises(SpecificationError):
            explorer.value = mistake
        assert explorer.result is before
        assert explorer.value == value
        assert control(explorer, "diversity").value == 0.25


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
    assert 'alt="3 points' in explorer._views[0].picture.value
    explorer._views[0].front.loaded = True
    assert explorer._views[0].picture.value == ""
    bundle, metadata = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "3 points" in bundle["text/plain"]
    assert metadata["image/png"]["alt"] == bundle["text/plain"]
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
    spending = explorer._spending
    spending.amount.value = 2.0
    assert "2" in spending.ask.description
    assert f"epsilon 2 more, at most {round_up(spent + 2.0):g} in all" in explorer._budget.value
    spending.ask.click()
    assert spending._sure.layout.display == ""
    spending.cancel.click()
    assert spending._sure.layout.display == "none"
    spending.ask.click()
    assert ledger.spent == spent
    assert not asked
    assert spending.confirm.description == "Spend epsilon 2 for good"
    spending.confirm.click()
    assert asked == [2.0]
    assert ledger.spent > spent
    assert explorer.value["epsilon"] == explorer._operation.epsilons[-1]
    assert explorer._operation.path is not path


class Offers:
    """A stand-in for a model at one epsilon: the same candidates whatever it cost."""

    def __init__(self, candidates):
        self.recommend = lambda histories, n: candidates


@pytest.fixture
def banded(split, rules):
    """A path of four models, the mean of several runs with their band."""
    served = split.fold_in.take_users(np.arange(6))
    candidates = Popularity().fit(split.train).recommend(served, 30)
    slates = Reranker(EngagementDiversity(0.2), rules).rerank(candidates, split.train.catalogue)
    epsilons = (0.5, 1.0, 2.0, 4.0)
    frame = pd.DataFrame(
        {
            "epsilon": epsilons,
            "recall@5": [0.10, 0.20, 0.18, 0.30],
            "low": [0.05, 0.12, 0.17, 0.25],
            "high": [0.12, 0.26, 0.19, 0.35],
            "standard_error": [0.01] * 4,
        }
    )
    return Frontier(
        frame,
        "epsilon",
        "recall@5",
        "less",
        error="standard_error",
        band=("low", "high"),
        points=tuple(Point(e, slates, model=Offers(candidates)) for e in epsilons),
        swept="epsilon",
        basis=Basis(Offers(candidates), served, Reranker(EngagementDiversity(0.2), rules), None, 30),
    )


@pytest.mark.parametrize(
    ("utility", "epsilon", "said"),
    [
        (0.05, 0.5, "takes epsilon 0.5 on average over runs of the noise, 0.5 to have it in every run"),
        (0.11, 1.0, "takes epsilon 1 on average over runs of the noise, 1 to have it in every run"),
        (0.15, 1.0, "takes epsilon 1 on average over runs of the noise, 2 to have it in every run"),
        (0.19, 1.0, "takes epsilon 1 on average over runs of the noise, 4 to have it in every run"),
        (0.28, 4.0, "takes epsilon 4 on average; none gave it in every run"),
    ],
)
def test_the_utility_wanted_gives_the_epsilon_it_takes(banded, utility, epsilon, said):
    explorer = banded.explore()
    explorer.value = {"epsilon": 2.0}
    path = explorer._path
    path.wanted.value = utility
    assert explorer.value["epsilon"] == epsilon
    assert said in path._takes.value
    path.wanted.value = 1.0
    assert "No model on this path reaches recall@5 1.000; the best has 0.300" in path._takes.value
    assert explorer.value["epsilon"] == epsilon


def test_one_run_says_that_it_is_one(banded):
    path = replace(banded, band=None).explore()._path
    path.wanted.value = 0.15
    assert "takes epsilon 1, measured on one run of the noise" in path._takes.value
    assert "over runs" not in path._means.value


def test_an_epsilon_says_what_it_means_and_gives(banded):
    ledger = PrivacyLedger(PrivacyBudget(6.0, 1e-5))
    explorer = banded.explore(ledger=ledger)
    explorer.value = {"epsilon": 1.5}
    said = explorer._path._means.value
    assert explorer.value["epsilon"] == 1.0
    assert f"Epsilon 1 with delta 1e-05: {in_words(1.0, 1e-5)}" in said
    assert "recall@5 is 0.200, plus or minus 0.01 over users; 0.120 to 0.260 over runs" in said
    alone = banded.explore()._path._means.value
    assert f"Epsilon 4 with any delta up to 0.0001: {in_words(4.0, 1e-4)}" in alone
    assert "recall@5 is 0.300" in alone


def test_the_page_is_told_of_bands_and_conflicts(banded, swept, rules):
    points = chart_of(banded)["points"]
    assert [point["band"] for point in points] == [[0.05, 0.12], [0.12, 0.26], [0.17, 0.19], [0.25, 0.35]]
    assert points[1]["text"] == "epsilon 1, recall@5 0.2 plus or minus 0.01, 0.12 to 0.26 over runs"
    assert points[2]["text"].endswith("beaten by another point")
    basis, first = swept[0].basis, rules[1].category
    base = Reranker(constraints=[*rules, CategoryMinimum(first, 1)], gap=0.01)
    varied = frontier(
        basis.source, basis.catalogue, f"at least 1 {first}", [2, 3], reranker=base, progress=False
    )
    possible, impossible = chart_of(varied)["points"]
    assert "impossible" not in possible["text"]
    assert impossible["y"] is impossible["band"] is None
    names = " and ".join(varied.points[1].conflict.names)
    assert impossible["text"] == f"count 3, impossible: {names} conflict"


def test_the_choice_has_a_place_on_other_axes(swept, split):
    providers = swept[0].against("provider_gini")
    explorer = providers.explore(swept[1])
    explorer.value = {"diversity": 0.6}
    at = swept[0].frame.iloc[2]
    assert explorer._views[0].front.now == pytest.approx([at["provider_gini"], at["engagement"]])
    assert explorer._views[0].front.selected == 2
    explorer.value = {"diversity": 0.45}
    gini_there = figures(explorer.result.slates, split.train.catalogue)["provider_gini"]
    assert explorer._views[0].front.now[0] == pytest.approx(gini_there)


def test_providers_are_counted_before_and_after(explorer, split):
    explorer.value = {"diversity": 0.6}
    catalogue = split.train.catalogue
    owners = catalogue.to_frame().set_index("item")["provider"]
    half = len(catalogue.provider_names) // 2
    for lists in (explorer._operation.before(None), explorer.result.slates.frame):
        places = owners[lists["item"]].value_counts().reindex(catalogue.provider_names, fill_value=0)
        least = places.sort_values().iloc[:half].sum() / places.sum()
        for said in (f"{least:.1%}", f"{(places > 0).sum()} of {len(places)}", f"{gini(places):.3f}"):
            assert f"<td>{said}</td>" in explorer._providers.value
    assert "not private" in explorer._providers.value


def test_a_slider_is_called_what_its_rule_asks(explorer, rules):
    second = rules[2]
    control(explorer, second.name).value = 2
    slider, box = control(explorer, second.name).children
    assert slider.description == f"at least 2 {second.category}"
    assert box.description == f"at least 2 {second.category}, exactly"
    box.value = 3
    assert explorer.value["rules"][second.name] == slider.value == 3


def test_a_receipt_knows_its_delta(banded):
    point = banded.points[0]
    point.model.receipt_ = types.SimpleNamespace(delta=1e-3)
    assert "with delta 0.001: " in banded.explore()._path._means.value


def test_a_saved_notebook_shows_a_picture_without_a_kernel(explorer):
    """As nbconvert makes a page of it: without state of widgets, or with state and the documented setting."""
    data, metadata = explorer._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("explorer", outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    stateful = copy.deepcopy(notebook)
    state = {"state": {explorer.model_id: {"model_name": "VBoxModel"}}, "version_major": 2}
    stateful.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    setting = traitlets.config.Config()
    setting.NbConvertBase.display_data_priority = ["image/png", "text/html", "text/plain"]
    for page, exporter in (
        (notebook, HTMLExporter()),
        (notebook, HTMLExporter(template_name="classic")),
        (stateful, HTMLExporter(config=setting)),
    ):
        html, _ = exporter.from_notebook_node(page)
        (image,) = re.findall("<img[^>]*>", html)
        assert data["image/png"].strip() in image.replace("\n", "")
        assert f'"model_id": "{explorer.model_id}"' not in html
        if exporter.template_name == "classic":  # the other template drops the words
            assert f'alt="{metadata["image/png"]["alt"]}"' in image


def test_colab_is_asked_to_let_widgets_in(explorer, monkeypatch):
    asked = []
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: asked.append(True))
    explorer._repr_mimebundle_()
    assert not asked
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(output=output))
    explorer._repr_mimebundle_()
    assert asked == [True]


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
