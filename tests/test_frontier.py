"""Frontiers: which points are dominated, what the sweeps hold, and figures that survive hostile labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.constraints import CategoryMinimum, SlateSize
from recsys_budget.data import SyntheticSpec, hold_out_users, make_interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.frontier import Frontier, diversity_frontier, epsilon_frontier
from recsys_budget.metrics import ranking_metrics
from recsys_budget.models import Popularity, PrivateAutoencoder
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger


@pytest.fixture(scope="module")
def split():
    spec = SyntheticSpec(n_users=300, n_items=80, n_categories=6, n_providers=10)
    return hold_out_users(make_interactions(spec, rng=1).interactions.positives(4), 60, rng=0)


@pytest.fixture
def axes():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(points, st.sampled_from(["more", "less"]))
def test_dominated_by_brute_force(pairs, x_better):
    frontier = Frontier(pd.DataFrame(pairs, columns=["x", "y"], dtype=float), "x", "y", x_better)
    sign = 1 if x_better == "more" else -1
    for (x, y), dominated in zip(pairs, frontier.dominated(), strict=True):
        beaten = any(sign * a >= sign * x and b >= y and (a, b) != (x, y) for a, b in pairs)
        assert dominated == beaten
    assert frontier.to_frame()["dominated"].tolist() == frontier.dominated().tolist()


def test_direction_is_checked():
    with pytest.raises(SpecificationError, match="'more' or 'less'"):
        Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "higher")


def test_plot_returns_the_axes_it_was_given_and_draws_every_point(axes):
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [3.0, 1.0, 2.0], "e": [0.1, 0.1, 0.1]})
    assert Frontier(frame, "x", "y", "more", error="e", note="a note").plot(axes) is axes
    drawn = {tuple(map(float, p)) for line in axes.get_lines() for p in line.get_xydata()}
    assert {(1.0, 3.0), (3.0, 2.0), (2.0, 1.0)} <= drawn
    assert axes.get_xlabel() == "x"
    assert axes.get_title(loc="left") == "a note"


@pytest.mark.parametrize("label", ["$x_{$", "<b>bold</b>", "50% $", r"\frac{", "雨の港"])
def test_hostile_labels_are_text(label, axes, recwarn):
    frame = pd.DataFrame({"x": [1.0], "y": [1.0], "title": [label]})
    Frontier(frame, "x", "y", "more", label="title", note=label).plot(axes)
    axes.figure.canvas.draw()
    assert label in [text.get_text() for text in axes.texts]
    recwarn.clear()  # a font without a glyph warns; that is not what is tested here


def test_plot_makes_axes_of_its_own():
    ax = Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "more").plot()
    assert ax.get_ylabel() == "y"
    plt.close(ax.figure)


def test_epsilon_frontier_measures_the_path_of_one_run(split):
    ledger = PrivacyLedger(PrivacyBudget(6.0, 1e-5))
    model = PrivateAutoencoder(
        declared_users=240, steps=20, n_factors=4, epsilons=(2.0, 4.0, 6.0), progress=False
    ).fit(split.train, ledger=ledger)
    spent = ledger.spent
    frame = epsilon_frontier(model, split.fold_in, split.held_out, metric="ndcg@10").to_frame()
    assert ledger.spent == spent
    assert frame["epsilon"].is_monotonic_increasing
    assert (frame["epsilon"] >= [p.epsilon for p in model.epsilon_path()]).all()
    last = ranking_metrics(model.recommend(split.fold_in, 10), split.held_out, ("ndcg@10",))["ndcg@10"]
    assert frame["ndcg@10"].iloc[-1] == pytest.approx(last.mean())
    assert frame["standard_error"].iloc[-1] == pytest.approx(last.std(ddof=1) / np.sqrt(len(last)))
    model._path = ()
    with pytest.raises(SpecificationError, match="epsilons"):
        epsilon_frontier(model, split.fold_in, split.held_out)


def test_diversity_frontier_keeps_the_rules_and_trades_one_for_the_other(split):
    catalogue = split.train.catalogue
    candidates = Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(4)), 30)
    rules = [SlateSize(5), CategoryMinimum(catalogue.category_names[0], 1)]
    frame = diversity_frontier(candidates, catalogue, rules, (0.0, 0.5, 1.0), progress=False).to_frame()
    assert frame["weight"].tolist() == [0.0, 0.5, 1.0]
    assert (frame["largest_violation"] == 0).all()
    assert (np.diff(frame["engagement"]) <= 1e-3).all()
    assert (np.diff(frame["diversity"]) >= -1e-3).all()
    assert (frame["bound"] >= frame["objective"] - 1e-9).all()
