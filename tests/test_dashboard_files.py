"""What the dashboard opens: the bundled frontiers, an archive, or files of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from recsys_budget.cli import dashboard
from recsys_budget.cli.main import main
from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, Policy, SlateSize
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.frontiers import bundled_frontiers, write_frontiers
from recsys_budget.rerank import Conflict, Prepared


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "own.zip"
    write_frontiers(path, *bundled_frontiers()[:2])
    return path


def policy(folder, *rules):
    path = folder / "policy.yaml"
    path.write_text(Policy("own", [SlateSize(5), *rules]).to_yaml(), encoding="utf-8")
    return path


def asked(words, environment, folder):
    """What the served page asks for."""
    with folder:
        (cell,) = json.loads(Path(words[3]).read_text("utf-8"))["cells"]
        (said,) = re.findall(r"loads\((.*)\)\)$", cell["source"])
        return json.loads(json.loads(said))


def test_without_files_it_opens_the_bundled_frontiers(monkeypatch):
    monkeypatch.setattr(Prepared, "rerank", lambda *_, **__: pytest.fail("something was solved"))
    page = dashboard.explorer(**asked(*dashboard.command()))
    assert [f.swept for f in page._operation.frontiers][:2] == ["epsilon", "diversity"]
    assert page.value["epsilon"] == max(point.value for point in bundled_frontiers()[0].points)
    assert page.result.certificate.privacy == "per_user"


def test_it_opens_an_archive(archive, tmp_path):
    page = dashboard.explorer(**asked(*dashboard.command(frontiers=archive)))
    assert [f.swept for f in page._operation.frontiers] == ["epsilon", "diversity"]
    slates = bundled_frontiers()[1].points[3].slates.frame
    slates.to_csv(tmp_path / "slates.csv", index=False)
    page = dashboard.explorer(**asked(*dashboard.command(frontiers=archive, slates=tmp_path / "slates.csv")))
    first = slates["user"].iloc[0]
    before = page._operation.before(page.value["epsilon"])
    assert before.loc[before["user"] == first, "item"].tolist() == slates["item"].tolist()[:10]


def test_rules_of_ones_own_are_asked_of_the_bundled_candidates(tmp_path):
    rule = CategoryMinimum("Crime", 1)
    page = dashboard.explorer(policy=str(policy(tmp_path, rule)))
    assert page.result.rules == (SlateSize(5), rule)
    assert page.result.certificate.n_users == 100
    conflict = dashboard.explorer(
        policy=str(policy(tmp_path, CategoryMinimum("Crime", 3), CategoryMaximum("Crime", 2)))
    )
    assert isinstance(conflict, Conflict)


def test_files_that_do_not_go_together(archive, tmp_path):
    path = policy(tmp_path)
    pd.DataFrame({"item": ["i1"]}).to_csv(tmp_path / "c.csv", index=False)
    for files, match in (
        ({"frontiers": archive, "policy": path}, "leave the other files out"),
        ({"frontiers": archive, "candidates": path}, "leave the other files out|--catalogue"),
        ({"frontiers": archive, "catalogue": path}, "leave the other files out"),
        ({"slates": path}, "file of candidates"),
        ({"catalogue": path}, "file of candidates"),
        ({"candidates": path}, "--catalogue"),
    ):
        with pytest.raises(SpecificationError, match=match):
            dashboard.command(**files)
    worse = bundled_frontiers()[1].points[3].slates.frame.assign(rank="first")
    worse.to_csv(tmp_path / "worse.csv", index=False)
    with pytest.raises(DataError, match="no number"):
        dashboard.explorer(frontiers=str(archive), slates=str(tmp_path / "worse.csv"))
    with pytest.raises(DataError, match="zip archive"):
        dashboard.explorer(frontiers=str(path))


def test_the_command_line_hands_the_archive_on(archive, monkeypatch):
    seen = {}
    monkeypatch.setattr(dashboard, "serve", lambda **options: seen.update(options))
    assert main(["dashboard", "--frontiers", str(archive), "--no-browser", "--port", "0"]) == 0
    assert seen["frontiers"] == archive
    assert seen["candidates"] is None
