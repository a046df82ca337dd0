"""Frontiers: which points are dominated, what the sweeps hold, and figures that survive hostile labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented import few

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, SlateSize, Soft
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.frontiers import Frontier, Point, frontier
from recsys_budget.frontiers.bound import envelope, steps_bound
from recsys_budget.metrics import ranking_metrics
from recsys_budget.models import Popularity, PrivateAutoencoder
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker


@pytest.fixture(scope="module")
def split():
    return few()


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


@pytest.fixture(scope="module")
def candidates(split):
    return Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(4)), 30)


@pytest.fixture(scope="module")
def model(split):
    ledger = PrivacyLedger(PrivacyBudget(6.0, 1e-5))
    model = PrivateAutoencoder(
        declared_users=240, steps=20, n_factors=4, epsilons=(2.0, 4.0, 6.0), progress=False
    )
    model.fit(split.train, ledger=ledger)
    model.ledger = ledger
    return model


def test_epsilon_measures_the_path_of_one_run(split, model):
    spent = model.ledger.spent
    swept = frontier(
        model, split.fold_in, "epsilon", held_out=split.held_out, metric="ndcg@10", progress=False
    )
    frame = swept.to_frame()
    assert model.ledger.spent == spent
    assert frame["epsilon"].is_monotonic_increasing
    assert (frame["epsilon"] >= [p.epsilon for p in model.epsilon_path()]).all()
    last = ranking_metrics(model.recommend(split.fold_in, 10), split.held_out, ("ndcg@10",))["ndcg@10"]
    assert frame["ndcg@10"].iloc[-1] == pytest.approx(last.mean())
    assert frame["standard_error"].iloc[-1] == pytest.approx(last.std(ddof=1) / np.sqrt(len(last)))
    assert swept.points[-1].model is model.epsilon_path()[-1].model


def test_epsilon_takes_the_most_within_each_value(split, model):
    swept = frontier(
        model, split.fold_in, "epsilon", [4.5], held_out=split.held_out, metric="ndcg@10", progress=False
    )
    (point,) = swept.points
    assert point.value == max(p.epsilon for p in model.epsilon_path() if p.epsilon <= 4.5)


def test_slates_along_epsilon_keep_the_rules(split, model):
    name = split.train.catalogue.category_names[0]
    served = split.fold_in.take_users(np.arange(20))
    held_out = split.held_out.take_users(np.arange(20))
    swept = frontier(
        model,
        served,
        "epsilon",
        reranker=Reranker(Engagement(), [SlateSize(5), CategoryMinimum(name, 2)]),
        held_out=held_out,
        metric="recall@5",
        n_candidates=40,
        progress=False,
    )
    assert (swept.frame["largest_violation"] == 0).all()
    for row, point in zip(swept.frame["recall@5"], swept.points, strict=True):
        assert row == pytest.approx(
            ranking_metrics(point.slates.frame, held_out, ("recall@5",)).mean().item()
        )


def test_what_epsilon_needs(split, model, candidates):
    with pytest.raises(SpecificationError, match="epsilons"):
        frontier(Popularity().fit(split.train), split.fold_in, "epsilon", held_out=split.held_out)
    with pytest.raises(SpecificationError, match="held_out"):
        frontier(model, split.fold_in, "epsilon")
    with pytest.raises(SpecificationError, match="histories"):
        frontier(model, split.train.catalogue, "epsilon", held_out=split.held_out)


def test_weights_keep_the_rules_and_trade_one_for_the_other_under_the_bound(split, candidates):
    catalogue = split.train.catalogue
    rules = [SlateSize(5), CategoryMinimum(catalogue.category_names[0], 1)]
    swept = frontier(
        candidates,
        catalogue,
        "diversity",
        (0.0, 0.5, 1.0),
        reranker=Reranker(constraints=rules),
        progress=False,
    )
    frame = swept.to_frame()
    assert frame["weight"].tolist() == [0.0, 0.5, 1.0]
    assert (frame["largest_violation"] == 0).all()
    assert (np.diff(frame["engagement"]) <= 1e-3).all()
    assert (np.diff(frame["diversity"]) >= -1e-3).all()
    assert (frame["bound"] >= frame["objective"] - 1e-9).all()
    # Slates made with weights between those swept are below the line too.
    for weight in (0.1, 0.3, 0.8, 0.95):
        made = Reranker(EngagementDiversity(weight), rules).rerank(candidates, catalogue, progress=False)
        most = envelope(
            frame["weight"].to_numpy(), frame["bound"].to_numpy(), np.array([made.certificate.diversity])
        )
        assert made.certificate.engagement <= most[0] + 1e-9


def test_penalties_leave_no_bound_on_the_parts(split, candidates):
    catalogue = split.train.catalogue
    rules = [SlateSize(5), Soft(CategoryMinimum(catalogue.category_names[0], 2), 0.1)]
    swept = frontier(
        candidates, catalogue, "diversity", [0.2], reranker=Reranker(constraints=rules), progress=False
    )
    assert swept.bound is None


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_envelope_is_above_every_point_that_the_bounds_allow(seed):
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 0.25, 0.5, 1.0, *rng.random(2)], 4)
    points = rng.random((30, 2))  # x, y
    bounds = np.array([((1 - w) * points[:, 1] + w * points[:, 0]).max() for w in weights])
    most = envelope(weights, bounds, points[:, 0])
    assert (points[:, 1] <= most + 1e-12).all()
    # Of those on the frontier in the direction of a weight, one is on the line.
    for w, bound in zip(weights, bounds, strict=True):
        if w < 1.0:
            at = ((1 - w) * points[:, 1] + w * points[:, 0]).argmax()
            assert most[at] <= (bound - w * points[at, 0]) / (1 - w) + 1e-12


def test_a_rules_number_is_swept_until_it_conflicts(split, candidates):
    catalogue = split.train.catalogue
    first, second = catalogue.category_names[:2]
    rules = [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(first, 1), CategoryMinimum(second, 1)]
    base = Reranker(Engagement(), rules)
    name = f"at least 1 {first}"
    swept = frontier(candidates, catalogue, name, [3, 0, 2, 1, 4], reranker=base, progress=False)
    frame = swept.to_frame()
    assert frame["count"].tolist() == [3, 0, 2, 1, 4]
    assert frame["feasible"].tolist() == [False, True, True, True, False]
    assert [point.conflict is None for point in swept.points] == frame["feasible"].tolist()
    assert set(swept.points[0].conflict) == {f"at most 2 {first}", f"at least 3 {first}"}
    assert swept.y == "engagement"
    assert swept.x_better == "more"
    in_order = frame[frame["feasible"]].sort_values("count")
    assert (np.diff(in_order["engagement"]) <= 1e-9).all()
    assert "2 impossible" in repr(swept)
    with pytest.raises(InfeasibleError):
        frontier(candidates, catalogue, name, [3, 4], reranker=base, progress=False)


def test_ceilings_soft_rules_and_other_objectives_are_swept(split, candidates):
    catalogue = split.train.catalogue
    first = catalogue.category_names[0]
    rules = [SlateSize(5), Soft(CategoryMaximum(first, 2), 0.2), CategoryMinimum(first, 3)]
    swept = frontier(
        candidates,
        catalogue,
        f"at most 2 {first}",
        range(5),
        reranker=Reranker(EngagementDiversity(0.3), rules),
        progress=False,
    )
    frame = swept.frame
    assert swept.x_better == "less"
    assert swept.y == "objective"
    assert (np.diff(frame["objective"]) >= -1e-3).all()
    assert swept.points[1].certificate.violations[f"at most 1 {first}"] >= 2
    assert (np.diff(swept.bound["objective"]) <= 1e-12).all()  # from loose to tight


def test_what_a_sweep_needs(split, candidates):
    catalogue = split.train.catalogue
    base = Reranker(Engagement(), [SlateSize(5)])
    for arguments, match in (
        ({"vary": "diversity"}, "reranker"),
        ({"vary": "diversity", "reranker": base}, "EngagementDiversity"),
        ({"vary": "no such rule", "values": [1], "reranker": base}, "'exactly 5 items'"),
        ({"vary": "exactly 5 items", "reranker": base}, "values"),
        ({"vary": "exactly 5 items", "values": [], "reranker": base}, "at least one number"),
        ({"vary": "exactly 5 items", "values": [1.5], "reranker": base}, "whole number|no number"),
        (
            {"vary": "diversity", "values": [2.0], "reranker": Reranker(constraints=[SlateSize(5)])},
            "between 0",
        ),
    ):
        with pytest.raises(SpecificationError, match=match):
            frontier(candidates, catalogue, progress=False, **arguments)


def test_a_recommender_is_asked_for_candidates(split):
    model = Popularity().fit(split.train)
    served = split.fold_in.take_users(np.arange(3))
    base = Reranker(constraints=[SlateSize(5)])
    ours = frontier(
        model, served, "diversity", [0.0, 0.5], reranker=base, n_candidates=25, progress=False
    ).frame
    theirs = frontier(
        model.recommend(served, 25), served.catalogue, "diversity", [0.0, 0.5], reranker=base, progress=False
    ).frame
    pd.testing.assert_frame_equal(ours, theirs)


def test_the_staircase_holds_as_far_as_the_next_tighter_number():
    bound = steps_bound(np.array([3.0, 1.0, 2.0]), np.array([0.5, 1.0, 0.8]), 1, ("x", "y"))
    assert bound["x"].tolist() == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert bound["y"].tolist() == [1.0, 1.0, 0.8, 0.8, 0.5]
    bound = steps_bound(np.array([3.0, 1.0]), np.array([1.0, 0.5]), -1, ("x", "y"))
    assert bound["x"].tolist() == [3.0, 1.0, 1.0]
    assert bound["y"].tolist() == [1.0, 1.0, 0.5]


def test_the_knee_is_where_the_curve_bends():
    corner = pd.DataFrame({"x": [0.0, 0.5, 0.9, 1.0, 0.2], "y": [1.0, 0.95, 0.8, 0.0, 0.1]})
    assert Frontier(corner, "x", "y", "more").knee() == 2
    straight = pd.DataFrame({"x": [0.0, 0.5, 1.0], "y": [1.0, 0.5, 0.0]})
    assert Frontier(straight, "x", "y", "more").knee() == 0
    less = pd.DataFrame({"x": [1.0, 2.0, 4.0], "y": [0.1, 0.9, 1.0]})
    assert Frontier(less, "x", "y", "less").knee() == 1
    with pytest.raises(SpecificationError, match="no point"):
        Frontier(pd.DataFrame({"x": [1.0], "y": [np.nan]}), "x", "y", "more").knee()


def test_points_and_rows_go_together():
    with pytest.raises(SpecificationError, match="2 points for 1 rows"):
        Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "more", points=(Point(1.0), Point(2.0)))


def test_the_page_stands_alone_and_escapes(split, candidates, tmp_path):
    catalogue = split.train.catalogue
    hostile = "<script>alert(1)</script> $x_{$"
    first = catalogue.category_names[0]
    rules = [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(first, 1, name=hostile)]
    swept = frontier(
        candidates, catalogue, hostile, [1, 2, 3], reranker=Reranker(Engagement(), rules), progress=False
    )
    swept.save(tmp_path / "frontier.html")
    page = (tmp_path / "frontier.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.split("base64,")[0]
    assert "What makes the rest impossible" in page
    assert 'alt="2 points from' in page


def test_the_chosen_point_is_marked_and_the_impossible_shaded(split, candidates, axes):
    catalogue = split.train.catalogue
    first = catalogue.category_names[0]
    rules = [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(first, 1)]
    swept = frontier(
        candidates,
        catalogue,
        f"at least 1 {first}",
        range(5),
        reranker=Reranker(Engagement(), rules),
        progress=False,
    )
    swept.plot(axes, selected=1)
    assert {text.get_text() for text in axes.get_legend().get_texts()} - {"dominated"} == {
        "achieved",
        "certified: nothing is above",
        "chosen",
        "impossible",
    }
    (span,) = [patch for patch in axes.patches if patch.get_hatch()]
    low, high = span.get_x(), span.get_x() + span.get_width()
    assert 2 < low < 3
    assert high >= 4
