"""The frontiers that come with the package: recreated, labelled, small, and open with nothing to solve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_budget.cli.demo import hard_rules
from recsys_budget.cli.main import main
from recsys_budget.cli.shipped import EPSILONS, FLOORS, METRIC, USERS, WEIGHTS
from recsys_budget.data import datasets, load_dataset
from recsys_budget.errors import DataError
from recsys_budget.frontiers import bundled_frontiers, figures, read_frontiers
from recsys_budget.rerank import Prepared
from recsys_budget.widgets import Explorer
from recsys_budget.widgets.operating import Operation

COMMITTED = Path(__file__).resolve().parents[1] / "data" / "bundled" / "frontiers.zip"


@pytest.fixture(scope="module")
def shipped():
    return bundled_frontiers()


@pytest.mark.slow
def test_the_command_makes_them_again(shipped, tmp_path, capsys):
    """As far as machines agree: the last bits of scores differ, so a tie in three decimals may too."""
    assert main(["data", "frontiers", "--quiet", "--out", str(tmp_path / "new" / "frontiers.zip")]) == 0
    assert "written to" in capsys.readouterr().out
    made = read_frontiers(tmp_path / "new" / "frontiers.zip")
    for ours, theirs in zip(shipped, made, strict=True):
        assert (ours.x, ours.y, ours.swept, ours.note) == (theirs.x, theirs.y, theirs.swept, theirs.note)
        assert ours.basis.reranker == theirs.basis.reranker
        assert list(ours.frame) == list(theirs.frame)
        # Another seed moves recall by .01 and engagement by .005.
        for column in (
            "epsilon",
            "weight",
            "exposure",
            "recall@10",
            "low",
            "high",
            "engagement",
            "diversity",
        ):
            if column in ours.frame:
                np.testing.assert_allclose(ours.frame[column], theirs.frame[column], atol=1e-3)
    for ours, theirs in zip(shipped[0].points, made[0].points, strict=True):
        both = ours.model.frame.merge(theirs.model.frame, on=["user", "item"])
        assert len(both) > 0.99 * len(ours.model.frame)
        assert (both["relevance_x"] - both["relevance_y"]).abs().max() <= 2e-3


def test_they_are_small_and_whole(shipped):
    assert COMMITTED.stat().st_size < 1_000_000
    path, weights, floors = shipped
    unspent = np.array(EPSILONS) - path.frame["epsilon"]
    assert (unspent >= 0.0).all()
    assert (unspent < 0.01).all()
    assert weights.frame["weight"].tolist() == list(WEIGHTS)
    assert floors.frame["exposure"].tolist() == list(FLOORS)
    for swept in shipped:
        assert swept.feasible().all()
        assert (swept.frame["largest_violation"] == 0.0).all()
        assert (swept.frame["gap"] <= 0.01).all()
        for row, point in zip(swept.frame.to_dict("records"), swept.points, strict=True):
            for name, value in figures(point.slates, swept.basis.catalogue).items():
                assert row[name] == pytest.approx(value, abs=1e-12)
            assert point.slates.certificate.n_users == USERS
    assert path.band == ("low", "high")
    assert (path.frame["low"] < path.frame[METRIC]).all()
    assert (path.frame[METRIC] < path.frame["high"]).all()
    # What the floor is for can be seen.
    assert (np.diff(floors.against("provider_gini").frame["provider_gini"]) < 0).all()
    assert (floors.frame["provider_coverage"].iloc[1:] == 1.0).all()


def test_they_are_of_the_bundled_data_under_the_demos_rules(shipped):
    data = load_dataset("bundled")
    for swept in shipped:
        catalogue = swept.basis.catalogue
        pd.testing.assert_frame_equal(catalogue.to_frame(), data.catalogue.to_frame())
        assert set(hard_rules(data.catalogue)) < set(swept.basis.reranker.constraints)
        assert swept.note.startswith("Invented people, repeatable noise (not private)")
    users = set(shipped[0].points[0].model.frame["user"])
    assert users < set(data.users)
    assert len(users) == USERS


def test_nothing_is_solved_before_the_first_view(shipped, monkeypatch):
    monkeypatch.setattr(Prepared, "rerank", lambda *_, **__: pytest.fail("something was solved"))
    explorer = Explorer(*shipped)
    bundle, _ = explorer._repr_mimebundle_()
    assert "image/png" in bundle
    assert explorer.result.certificate.privacy == "per_user"
    # Nor is anything where a point is clicked.
    operation = Operation(shipped)
    for swept in shipped:
        for place, point in enumerate(swept.points):
            answer = operation.answer(operation.at(swept, place, operation.start()))
            pd.testing.assert_frame_equal(answer.slates.frame, point.slates.frame)


def test_sliders_reach_every_number_swept(shipped):
    explorer = Explorer(*shipped)
    slider = explorer._sliders.rules[shipped[2].swept]
    assert (slider.children[0].min, slider.children[0].max, slider.value) == (0, max(FLOORS), 0)
    explorer.value = {"rules": {shipped[2].swept: 10}, "epsilon": 4.5}
    assert explorer.value["epsilon"] <= 4.0


def test_a_package_without_its_data_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "_BUNDLED", (tmp_path / "none",))
    with pytest.raises(DataError, match="install it again"):
        bundled_frontiers()
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        bundled_frontiers()
