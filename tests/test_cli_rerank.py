"""`recsys-budget rerank`: files in, slates and certificate out, exit codes, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys_budget.cli.main import main
from recsys_budget.constraints import Calibration, Cap, CategoryMinimum, Policy, SlateSize
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.rerank import Coverage, Diversity, Engagement, Reranker

ITEMS = pd.DataFrame(
    {
        "item": [f"{j:03d}" for j in range(30)],  # ids that numbers would merge
        "title": ["<b>$x_{$ \u2028 é"] * 30,
        "categories": ["Drama", "Comedy", "Drama|Documentary"] * 10,
        "cost": np.arange(30) / 10,
    }
)
RULES = Policy("spring", [SlateSize(4), CategoryMinimum("Documentary", 2), Cap("cost", 6.0)])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    rng = np.random.default_rng(0)
    candidates = pd.DataFrame(
        {
            "user": np.repeat(["NA", "007", "7"], 20),
            "item": np.concatenate([rng.permutation(ITEMS["item"])[:20] for _ in range(3)]),
            "relevance": rng.gamma(2.0, size=60).round(3),
        }
    )
    candidates.to_parquet(tmp_path / "candidates.parquet", index=False)
    candidates.to_csv(tmp_path / "candidates.csv.gz", index=False)
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    ITEMS.to_parquet(tmp_path / "items.parquet", index=False)
    used = pd.DataFrame({"user": ["007", "7"], "item": ["002", "001"]})
    used.to_csv(tmp_path / "history.csv", index=False)
    (tmp_path / "policy.yaml").write_text(RULES.to_yaml(), encoding="utf-8")
    (tmp_path / "policy.json").write_text(RULES.to_json(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, candidates: str = "candidates.parquet", **changed: str) -> int:
    named = {"policy": "policy.yaml", "catalogue": "items.csv", "output": "slates.parquet"} | changed
    options = [word for name, value in named.items() for word in (f"--{name}", value)]
    return main(["rerank", candidates, *options, *words])


def expected(reranker: Reranker, folder: Path, history: Interactions | None = None) -> pd.DataFrame:
    catalogue = ItemCatalogue.from_frame(ITEMS, attributes=["cost"])
    candidates = pd.read_parquet(folder / "candidates.parquet")
    return reranker.rerank(candidates, catalogue, history=history, progress=False).frame


def strings(path: str) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"user": "str", "item": "str"}, keep_default_na=False)


def test_parquet_in_parquet_out_with_a_certificate(folder, capsys):
    assert run("--attribute", "cost", "--certificate", "certificate.json") == 0
    wanted = expected(Reranker(Engagement(), RULES), folder)
    pd.testing.assert_frame_equal(pd.read_parquet("slates.parquet"), wanted)
    certificate = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["violations"] == {rule.name: 0.0 for rule in RULES}
    assert certificate["n_users"] == 3
    assert "3 users" in capsys.readouterr().out
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_text_in_text_out_keeps_ids_as_written(folder, capsys):
    files = {"candidates": "candidates.csv.gz", "policy": "policy.json", "catalogue": "items.parquet"}
    assert run("--attribute", "cost", "--quiet", output="slates.csv", **files) == 0
    pd.testing.assert_frame_equal(strings("slates.csv"), expected(Reranker(Engagement(), RULES), folder))
    assert capsys.readouterr().out == ""


def test_objectives_add_up_and_history_counts(folder):
    rules = Policy("mix", [SlateSize(4), Calibration(2.0)])
    (folder / "policy.yaml").write_text(rules.to_yaml(), encoding="utf-8")
    words = ["--objective", "engagement=0.5", "--objective", "diversity=0.3", "--objective", "coverage=0.2"]
    assert run(*words, "--history", "history.csv", "--quiet") == 0
    catalogue = ItemCatalogue.from_frame(ITEMS)
    history = Interactions.from_frame(
        pd.DataFrame({"user": ["007", "7"], "item": ["002", "001"]}), catalogue=catalogue
    )
    objective = 0.5 * Engagement() + 0.3 * Diversity() + 0.2 * Coverage()
    wanted = expected(Reranker(objective, rules), folder, history)
    pd.testing.assert_frame_equal(pd.read_parquet("slates.parquet"), wanted)


def test_new_files_have_the_rights_that_files_get(folder):
    (folder / "plain").touch()
    assert run("--attribute", "cost", "--quiet") == 0
    assert (folder / "slates.parquet").stat().st_mode == (folder / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        ({"policy": "none.yaml"}, (), "none.yaml"),
        ({"catalogue": "none.csv"}, (), "none.csv"),
        ({"output": "slates.xlsx"}, (), "'.xlsx' is not known; write to .csv or .parquet"),
        ({"output": "nowhere/slates.csv"}, (), "nowhere/slates.csv: cannot be written"),
        ({"candidates": "bad.csv"}, (), "bad.csv, line 3, column 'relevance': 'nan' is not a finite number"),
        ({"candidates": "twice.csv"}, (), "twice.csv, line 3, column 'item': user 'u' and item '001' are"),
        ({"candidates": "unknown.csv"}, (), "unknown.csv, line 2, column 'item': item 'x' is not in"),
        ({"candidates": "empty.csv"}, (), "empty.csv: there is no candidate"),
        ({"candidates": "narrow.csv"}, (), "no such column"),
        ({"candidates": "candidates.xlsx"}, (), "'.xlsx' is not known"),
        ({"policy": "unknown.yaml"}, (), "unknown.yaml, line 3: there is no constraint of kind 'Slate'"),
        ({"policy": "sizeless.yaml"}, (), "exactly one SlateSize"),
        ({}, ("--history", "none.csv"), "none.csv"),
        ({}, ("--time-limit", "-1"), "time_limit=-1.0"),
        ({}, ("--gap", "2"), "gap=2.0"),
        ({}, ("--solver", "NONE"), "NONE"),
    ],
)
def test_refusals_are_one_line_and_exit_with_1(folder, capsys, changed, words, said):
    (folder / "bad.csv").write_text("user,item,relevance\nu,001,1\nu,002,nan\n")
    (folder / "twice.csv").write_text("user,item,relevance\nu,001,1\nu,001,2\n")
    (folder / "unknown.csv").write_text("user,item,relevance\nu,x,1\n")
    (folder / "empty.csv").write_text("user,item,relevance\n")
    (folder / "narrow.csv").write_text("user,relevance\nu,1\n")
    (folder / "unknown.yaml").write_text("policy: p\nconstraints:\n- kind: Slate\n  k: 3\n")
    (folder / "sizeless.yaml").write_text("policy: p\nconstraints: []\n")
    (folder / "slates.parquet").write_text("before")
    assert run("--attribute", "cost", *words, **changed) == 1
    error = capsys.readouterr().err
    assert error.startswith("recsys-budget: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert (folder / "slates.parquet").read_text() == "before"


def test_a_rule_about_a_column_not_asked_for_says_so(folder, capsys):
    assert run() == 1
    assert "no attribute 'cost'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["rerank"],
        ["rerank", "candidates.parquet", "--policy", "policy.yaml"],
        ["rerank", "c.csv", "--policy", "p", "--catalogue", "c", "-o", "o.csv", "--time-limit", "soon"],
        ["rerank", "c.csv", "--policy", "p", "--catalogue", "c", "-o", "o.csv", "--objective", "fame"],
        ["rerank", "c.csv", "--policy", "p", "--catalogue", "c", "-o", "o.csv", "--objective", "diversity=x"],
        ["rerank", "c.csv", "--policy", "p", "--catalogue", "c", "-o", "o.csv", "--objective", "novelty=-1"],
        ["rerank", "c.csv", "--policy", "p", "--catalogue", "c", "-o", "o.csv", "--objective", "novelty=nan"],
    ],
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    assert "usage: recsys-budget rerank" in capsys.readouterr().err


def test_rules_that_conflict_exit_with_3_and_are_named(folder, capsys):
    rules = Policy("impossible", [SlateSize(4), CategoryMinimum("Documentary", 3), Cap("cost", 0.1)])
    (folder / "policy.yaml").write_text(rules.to_yaml(), encoding="utf-8")
    (folder / "slates.parquet").write_text("before")
    assert run("--attribute", "cost", "--certificate", "certificate.json") == 3
    error = capsys.readouterr().err
    assert "at least 3 Documentary" in error or rules.constraints[2].name in error
    assert (folder / "slates.parquet").read_text() == "before"
    assert not (folder / "certificate.json").exists()


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_write_that_fails_leaves_the_old_files_whole(folder, capsys, monkeypatch, when):
    (folder / "slates.parquet").write_text("before")
    (folder / "certificate.json").write_text("before")
    names = sorted(path.name for path in folder.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if when == "writing":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    assert run("--attribute", "cost", "--certificate", "certificate.json", "--quiet") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (folder / "slates.parquet").read_text() == "before"
    assert (folder / "certificate.json").read_text() == "before"
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_break_from_the_keyboard_leaves_nothing_behind(folder, monkeypatch):
    names = sorted(path.name for path in folder.iterdir())

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(KeyboardInterrupt):
        run("--attribute", "cost", "--quiet")
    assert sorted(path.name for path in folder.iterdir()) == names
