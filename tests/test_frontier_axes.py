"""Figures of slates, other axes for the same points, and bands over repetitions of a training."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from invented import few

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.frontiers import Frontier, figures, frontier
from recsys_budget.frontiers.figures import provider_figures, provider_places
from recsys_budget.metrics import ranking_metrics
from recsys_budget.models import Popularity
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker

EPSILONS = (0.5, 1.0, 2.0)


class Blurred:
    """Popularity with noise: what private repetitions look like, in no time."""

    def __init__(self, model, noise, seed):
        self.model, self.noise, self.seed = model, noise, seed

    def recommend(self, served, k):
        lists = self.model.recommend(served, len(served.catalogue) // 2)
        rng = np.random.default_rng(self.seed)
        lists["relevance"] += self.noise * lists["relevance"].std() * rng.normal(size=len(lists))
        lists = lists.sort_values(["user", "relevance"], ascending=[True, False], kind="stable")
        lists["rank"] = lists.groupby("user").cumcount() + 1
        return lists[lists["rank"] <= k]


class Run:
    """A fitted recommender that kept a path."""

    def __init__(self, model, seed, epsilons=EPSILONS):
        self.points = tuple(
            SimpleNamespace(epsilon=e, steps=int(10 * e), model=Blurred(model, 1.0 / e, 10 * seed + i))
            for i, e in enumerate(epsilons)
        )

    def epsilon_path(self):
        return self.points

    def recommend(self, served, k):
        return self.points[-1].model.recommend(served, k)


@pytest.fixture(scope="module")
def split():
    return few()


@pytest.fixture(scope="module")
def rules(split):
    first, second = split.train.catalogue.category_names[:2]
    return [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(second, 1)]


@pytest.fixture(scope="module")
def candidates(split):
    return Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(12)), 30)


@pytest.fixture(scope="module")
def runs(split):
    popularity = Popularity().fit(split.train)
    return [Run(popularity, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def weights(split, rules, candidates):
    reranker = Reranker(constraints=rules)
    return frontier(
        candidates, split.train.catalogue, "diversity", [0.0, 0.3, 0.6], reranker=reranker, progress=False
    )


def test_figures_by_hand(split, rules, candidates):
    catalogue = split.train.catalogue
    slates = Reranker(EngagementDiversity(0.3), rules).rerank(candidates, catalogue, progress=False)
    found = figures(slates, catalogue)
    for name in ("engagement", "diversity", "objective", "bound", "gap", "largest_violation"):
        assert found[name] == getattr(slates.certificate, name)
    each = slates.certificate.per_user["diversity"]
    assert found["diversity_error"] == pytest.approx(each.std() / np.sqrt(len(each)))
    owner = dict(zip(catalogue.ids, catalogue.provider_codes, strict=True))
    places = [0] * len(catalogue.provider_names)
    for item in slates.frame["item"]:
        places[owner[item]] += 1
    pairs = [abs(a - b) for a in places for b in places]
    assert 0 in places  # those without a place count
    assert found["provider_gini"] == pytest.approx(np.mean(pairs) / (2 * np.mean(places)))
    assert found["provider_coverage"] == sum(p > 0 for p in places) / len(places)
    assert provider_places(slates.frame, catalogue).tolist() == places


def test_figures_of_nothing_and_of_items_without_providers():
    frame = pd.DataFrame({"item": ["a", "b", "c"], "provider": ["P", "Q", None]})
    catalogue = ItemCatalogue.from_frame(frame)
    lists = pd.DataFrame({"user": ["u", "v"], "item": ["c", "c"], "rank": [1, 1]})
    assert np.isnan(provider_figures(lists, catalogue)["provider_gini"])
    assert provider_figures(lists, catalogue)["provider_coverage"] == 0.0
    lists["item"] = ["a", "c"]
    assert provider_figures(lists, catalogue) == {"provider_gini": 0.5, "provider_coverage": 0.5}
    # A provider that is named counts, with or without an item left.
    fewer = catalogue.take(np.array([0, 2]))
    assert provider_figures(lists, fewer) == {"provider_gini": 0.5, "provider_coverage": 0.5}
    lists["item"] = ["a", "b"]
    assert provider_figures(lists, catalogue) == {"provider_gini": 0.0, "provider_coverage": 1.0}
    assert all(np.isnan(list(figures(None, catalogue).values())))
    unnamed = ItemCatalogue.from_frame(frame[["item"]])
    assert provider_figures(lists, unnamed) == {}
    assert set(figures(None, catalogue)) - set(figures(None, unnamed)) == {
        "provider_gini",
        "provider_coverage",
    }


def test_every_sweep_has_the_figures_of_its_slates(split, rules, candidates, runs, weights):
    catalogue = split.train.catalogue
    reranker = Reranker(constraints=rules)
    numbers = frontier(candidates, catalogue, rules[2].name, range(7), reranker=reranker, progress=False)
    epsilon = frontier(
        runs[0], split.fold_in, "epsilon", reranker=reranker, held_out=split.held_out, progress=False
    )
    assert not numbers.feasible().all()
    for swept in (weights, numbers, epsilon):
        for row, point in zip(swept.frame.to_dict("records"), swept.points, strict=True):
            for name, value in figures(point.slates, catalogue).items():
                assert row[name] == pytest.approx(value, nan_ok=True)
    lists = frontier(runs[0], split.fold_in, "epsilon", held_out=split.held_out, progress=False)
    first = lists.points[0].model.recommend(split.fold_in, 20)
    assert lists.frame["provider_gini"].iloc[0] == provider_figures(first, catalogue)["provider_gini"]
    assert "engagement" not in lists.frame


def test_other_axes_keep_the_points_and_mean_the_right_way(weights):
    fair = weights.against("provider_gini")
    assert fair.points is weights.points
    assert fair.frame is weights.frame
    assert (fair.x, fair.y, fair.x_better, fair.label) == ("provider_gini", "engagement", "less", "weight")
    assert fair.bound is None
    assert fair.error == "engagement_error"
    x, y = fair.frame["provider_gini"], fair.frame["engagement"]
    for place, dominated in enumerate(fair.dominated()):
        beaten = any(
            a <= x[place] and b >= y[place] and (a < x[place] or b > y[place])
            for a, b in zip(x, y, strict=True)
        )
        assert dominated == beaten
    covered = fair.against("provider_coverage", "diversity")
    assert (covered.x_better, covered.error) == ("more", "diversity_error")
    back = covered.against("diversity", "engagement")
    assert (back.x_better, back.label, back.bound) == ("more", "weight", None)
    assert weights.against("diversity").bound is weights.bound
    assert weights.against("diversity", "engagement").bound is weights.bound
    assert weights.against("provider_gini").against("provider_gini", "objective").y == "objective"
    for at in (fair, covered):
        assert at.plot().get_xlabel() == at.x.replace("_", " ")
        plt.close()
        assert f"at {at.x}".replace("_", " ") in at.describe()


def test_what_was_swept_is_an_axis_again(split, rules, candidates, runs):
    catalogue = split.train.catalogue
    for rule, direction in ((rules[1], "less"), (rules[2], "more")):
        swept = frontier(
            candidates,
            catalogue,
            rule.name,
            [0, 1, 2],
            reranker=Reranker(Engagement(), rules),
            progress=False,
        )
        away = swept.against("provider_gini", "diversity")
        assert away.label == "count"
        back = away.against("count", "engagement")
        assert (back.x_better, back.label) == (direction, None)
    path = frontier(runs[0], split.fold_in, "epsilon", held_out=split.held_out, progress=False)
    back = path.against("provider_gini").against("epsilon")
    assert (back.x_better, back.y, back.label) == ("less", "recall@20", None)
    with pytest.raises(SpecificationError, match="'count' is no axis"):
        path.against("count")


def test_axes_that_are_none(weights):
    with pytest.raises(SpecificationError, match=r"'profit' is no axis.*'engagement'"):
        weights.against("profit")
    with pytest.raises(SpecificationError, match="'weight' is no axis"):
        weights.against("weight")
    with pytest.raises(SpecificationError, match="less of 'provider_gini' is better"):
        weights.against("diversity", "provider_gini")
    with pytest.raises(SpecificationError, match="no column 'high'"):
        Frontier(pd.DataFrame({"x": [1.0], "y": [1.0], "low": [1.0]}), "x", "y", "more", band=("low", "high"))


@pytest.mark.parametrize("reranked", [False, True])
def test_a_band_is_the_lowest_and_the_highest_run(split, rules, runs, reranked):
    options = {"held_out": split.held_out, "metric": "recall@5", "n_candidates": 30, "progress": False}
    if reranked:
        options["reranker"] = Reranker(constraints=rules)
    banded = frontier(runs, split.fold_in, "epsilon", **options)
    alone = [frontier(run, split.fold_in, "epsilon", **options) for run in runs]
    each = np.array([swept.frame["recall@5"] for swept in alone])
    assert np.ptp(each, axis=0).min() > 0
    np.testing.assert_allclose(banded.frame["recall@5"], each.mean(axis=0))
    np.testing.assert_array_equal(banded.frame["low"], each.min(axis=0))
    np.testing.assert_array_equal(banded.frame["high"], each.max(axis=0))
    assert banded.band == ("low", "high")
    assert all(swept.band is None and "low" not in swept.frame for swept in alone)
    assert [p.model for p in banded.points] == [p.model for p in runs[0].epsilon_path()]
    assert banded.basis.source is runs[0]
    for name in ("provider_gini", *(["engagement", "gap"] if reranked else [])):
        np.testing.assert_array_equal(banded.frame[name], alone[0].frame[name])
    # The error is over users, each of whom has a mean over runs.
    lists = []
    for run in runs:
        model = run.epsilon_path()[0].model
        if reranked:
            slates = options["reranker"].recommend(model, split.fold_in, n_candidates=30, progress=False)
            lists.append(slates.frame)
        else:
            lists.append(model.recommend(split.fold_in, 5))
    users = np.mean([ranking_metrics(one, split.held_out, ("recall@5",)) for one in lists], axis=0)
    assert banded.frame["standard_error"].iloc[0] == pytest.approx(users.std(ddof=1) / np.sqrt(len(users)))
    assert "Mean of 3 private runs" in banded.note
    assert "cost up to their sum" in banded.note
    assert banded.against("provider_gini").band == ("low", "high")
    if reranked:
        assert banded.against("epsilon", "engagement").band is None


def test_the_band_is_drawn(split, runs):
    banded = frontier(runs, split.fold_in, "epsilon", held_out=split.held_out, progress=False)
    ax = banded.plot()
    (band,) = [c for c in ax.collections if c.get_label() == "lowest to highest run"]
    corners = {tuple(map(float, corner)) for path in band.get_paths() for corner in path.vertices}
    for name in ("low", "high"):
        assert set(zip(banded.frame["epsilon"], banded.frame[name], strict=True)) <= corners
    assert "lowest to highest run" in {text.get_text() for text in ax.get_legend().get_texts()}
    plt.close(ax.figure)


def test_values_choose_the_same_points_of_every_run(split, runs):
    banded = frontier(
        runs, split.fold_in, "epsilon", [1.5], held_out=split.held_out, metric="ndcg@10", progress=False
    )
    each = [
        ranking_metrics(run.points[1].model.recommend(split.fold_in, 10), split.held_out, ("ndcg@10",))
        for run in runs
    ]
    assert banded.frame["epsilon"].tolist() == [1.0]
    assert banded.frame["high"].iloc[0] == max(one["ndcg@10"].mean() for one in each)


def test_runs_of_different_trainings_make_no_band(split, candidates, runs, weights, rules):
    popularity = Popularity().fit(split.train)

    class Other(Run):
        pass

    options = {"held_out": split.held_out, "progress": False}
    for other in (Run(popularity, 9, (0.5, 1.0)), Run(popularity, 9, (0.5, 1.0, 2.1)), Other(popularity, 9)):
        with pytest.raises(SpecificationError, match=r"run 2 is .*repetitions of one training"):
            frontier([runs[0], other], split.fold_in, "epsilon", **options)
    with pytest.raises(SpecificationError, match="kept no path"):
        frontier([runs[0], popularity], split.fold_in, "epsilon", **options)
    with pytest.raises(SpecificationError, match="0 runs"):
        frontier([], split.fold_in, "epsilon", **options)
    reranker = Reranker(constraints=rules)
    with pytest.raises(SpecificationError, match="2 runs"):
        frontier([candidates, candidates], split.train.catalogue, "diversity", reranker=reranker)
