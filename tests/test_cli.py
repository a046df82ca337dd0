"""The command line from end to end, and its report in hostile company."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_budget import __version__
from recsys_budget.cli import demo as demo_module
from recsys_budget.cli.main import main
from recsys_budget.data import BUNDLED, SyntheticSpec, load_dataset, make_interactions
from recsys_budget.metrics import intra_list_diversity
from recsys_budget.privacy import Receipt


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"recsys-budget {__version__}\n"


def test_console_script_is_installed():
    script = Path(sys.executable).with_name("recsys-budget")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"recsys-budget {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["demo", "--data", "nothing"], ["data"], ["demo", "--epsilon", "much"]]
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_refusals_are_one_line_and_exit_with_1(tmp_path, capsys):
    assert main(["demo", "--data", "ml-1m", "--data-home", str(tmp_path), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("recsys-budget: ")
    assert "ratings.dat" in error
    assert len(error.splitlines()) == 1
    assert main(["demo", "--epsilon", "-1", "--quiet", "--out", str(tmp_path)]) == 1
    assert "epsilon is -1.0" in capsys.readouterr().err


def test_generate_writes_what_load_dataset_reads(tmp_path, capsys):
    assert main(["data", "generate", "--out", str(tmp_path / "bundled")]) == 0
    assert str(BUNDLED.n_users) in capsys.readouterr().out
    assert load_dataset("bundled", data_home=tmp_path).to_frame().equals(load_dataset("bundled").to_frame())


def test_list_names_every_dataset(capsys):
    assert main(["data", "list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"bundled", "ml-1m"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The demo on a small edition in which every title is hostile."""
    home = tmp_path_factory.mktemp("home")
    spec = SyntheticSpec(n_users=800, n_items=150, n_categories=8, n_providers=10)
    make_interactions(spec, rng=0).to_csv(home / "bundled")
    items = pd.read_csv(home / "bundled" / "items.csv", dtype=str, keep_default_na=False)
    items["title"] = "<script>alert(1)</script><b>$x_{$ " + items["item"]
    items.to_csv(home / "bundled" / "items.csv", index=False)
    out = home / "out"
    smaller = {"RERANKED_USERS": 30, "SWEPT_USERS": 5}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(demo_module, name, value)
        result = demo_module.run_demo(data_home=home, epsilon=6.0, out=out, progress=False)
    return result, out


def test_demo_writes_what_it_says(finished):
    result, out = finished
    slates = pd.read_parquet(out / "slates.parquet")
    assert slates.equals(result.slates.frame)
    assert slates.groupby("user").size().tolist() == [10] * 30
    assert Receipt.from_json((out / "receipt.json").read_text()) == result.receipt
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["violations"] == {rule.name: 0.0 for rule in result.rules}
    assert result.receipt.private
    assert 5.9 < result.receipt.ledger_epsilon <= 6.0
    assert result.ledger_history["event"].tolist() == ["users", "reservation"]


def test_demo_slates_satisfy_the_rules_counted_by_hand(finished):
    result, _ = finished
    _, most, *least = result.rules
    categories = result.catalogue.to_frame().set_index("item")["categories"]
    for _, slate in result.slates.frame.groupby("user"):
        held = [c for item in slate["item"] for c in categories[item]]
        assert slate["item"].nunique() == 10
        assert held.count(most.category) <= most.count
        for rule in least:
            assert held.count(rule.category) >= rule.count


def test_demo_summary_tells_what_was_measured(finished):
    result, _ = finished
    summary = result.summary()
    for text in ("epsilon cap", "spent", "steps run", "recall@20 private", "ndcg@100 EASE (not private)"):
        assert text in summary
    assert summary.splitlines()[-1].startswith("Not private: all figures but")
    before = intra_list_diversity(result.before, result.catalogue).mean()
    assert f"{before:.3f} -> {result.slates.certificate.diversity:.3f}" in summary
    assert np.isclose(
        intra_list_diversity(result.slates.frame, result.catalogue).mean(),
        result.slates.certificate.diversity,
    )


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.alts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.links += [v for k, v in values.items() if k in ("src", "href", "data", "action")]
        if tag == "img":
            self.alts.append(values.get("alt"))


def test_report_is_self_contained_and_escapes_titles(finished):
    _, out = finished
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not re.search(r"@import|url\(", text)
    assert len(page.alts) == 2
    assert all(page.alts)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert (
        text.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;$x_{$ i") == 60
    )  # 3 users, before and after


def test_report_labels_what_is_not_private(finished):
    _, out = finished
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "popularity (not private)" in text
    assert "<strong>not private</strong>" in text


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ml-100k"])
def test_demo_on_real_data(name, data_home, tmp_path):
    result = demo_module.run_demo(name, data_home=data_home, epsilon=8.0, out=tmp_path, progress=False)
    assert result.receipt.ledger_epsilon <= 8.0
    assert max(result.slates.certificate.violations.values()) == 0
    assert (
        result.accuracy.loc["EASE (not private)", "recall@20"] > result.accuracy.loc["private", "recall@20"]
    )
