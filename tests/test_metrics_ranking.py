from __future__ import annotations

import json
import subprocess
import sys
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, MissingExtraError, SpecificationError
from recsys_budget.metrics import ranking_metrics

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("metrics.json").read_text(encoding="utf-8"))
ALL = ["recall@3", "ndcg@3", "map@3", "mrr@3"]
ITEMS = "abcdefghijkl"


def catalogue(items=ITEMS):
    return ItemCatalogue.from_frame(pd.DataFrame({"item": list(items)}))


def ranking(lists):
    rows = [(user, item, rank) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pd.DataFrame(rows, columns=["user", "item", "rank"])


def pairs(lists, items=ITEMS):
    rows = [(user, item) for user, chosen in lists.items() for item in chosen]
    return Interactions.from_frame(pd.DataFrame(rows, columns=["user", "item"]), catalogue=catalogue(items))


def reference(listed, relevant, name):
    """The definitions, one user at a time."""
    kind, _, k = name.partition("@")
    k = int(k)
    hits = [item in relevant for item in listed[:k]]
    gains = [hit / log2(1 + rank) for rank, hit in enumerate(hits, 1)]
    if kind == "recall":
        return sum(hits) / min(k, len(relevant))
    if kind == "ndcg":
        return sum(gains) / sum(1 / log2(1 + rank) for rank in range(1, min(k, len(relevant)) + 1))
    if kind == "map":
        return sum(hit * sum(hits[:r]) / r for r, hit in enumerate(hits, 1)) / len(relevant)
    return next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0.0)


def test_a_case_worked_by_hand():
    result = ranking_metrics(
        ranking({"u": "abcde"}),
        pairs({"u": "bdk"}),
        ["recall@2", "recall@5", "ndcg@5", "map@5", "mrr@5", "mrr@1"],
    )
    ideal = 1 + 1 / log2(3) + 1 / 2
    assert result.loc["u"].to_dict() == pytest.approx(
        {
            "recall@2": 1 / 2,
            "recall@5": 2 / 3,
            "ndcg@5": (1 / log2(3) + 1 / log2(5)) / ideal,
            "map@5": (1 / 2 + 2 / 4) / 3,
            "mrr@5": 1 / 2,
            "mrr@1": 0,
        }
    )
    assert list(result.columns) == ["recall@2", "recall@5", "ndcg@5", "map@5", "mrr@5", "mrr@1"]
    assert (result.dtypes == np.float64).all()
    assert result.index.name == "user"


@pytest.mark.parametrize(("relevant", "expected"), [("a", 1), ("abc", 1), ("abcdefgh", 1), ("ag", 1 / 2)])
def test_recall_divides_by_the_smaller_of_k_and_the_relevant(relevant, expected):
    result = ranking_metrics(ranking({"u": "abc"}), pairs({"u": relevant}), ["recall@3"])
    assert result.at["u", "recall@3"] == expected


def test_perfect_lists_score_one_and_hopeless_ones_nothing():
    result = ranking_metrics(
        ranking({"best": "abc", "worst": "abc"}), pairs({"best": "abc", "worst": "def"}), ALL
    )
    assert (result.loc["best"] == 1).all()
    assert (result.loc["worst"] == 0).all()


def test_agrees_with_other_libraries():
    inputs, golden = GOLDEN["inputs"], GOLDEN["metrics"]["ranking_metrics"]["values"]
    held_out = pairs(inputs["held_out"], list(inputs["categories"]))
    result = ranking_metrics(ranking(inputs["ranking"]), held_out, list(golden))
    assert len(golden) == 16
    for name, values in golden.items():
        assert result[name].to_dict() == pytest.approx(values, abs=1e-9), name


def test_agrees_with_the_definitions_for_more_users_than_fit_in_a_block():
    rng = np.random.default_rng(7)
    users = [f"u{number}" for number in range(2100)]
    listed = {user: [ITEMS[i] for i in rng.permutation(12)[: rng.integers(1, 7)]] for user in users}
    relevant = {user: [ITEMS[i] for i in rng.permutation(12)[: rng.integers(0, 9)]] for user in users}
    names = ["recall@4", "ndcg@4", "map@4", "mrr@2", "ndcg@100"]
    result = ranking_metrics(ranking(listed), pairs(relevant), names)
    expected = {
        name: {user: reference(listed[user], relevant[user], name) for user in users if relevant[user]}
        for name in names
    }
    assert len(result) > 1024
    for name in names:
        assert result[name].to_dict() == pytest.approx(expected[name], abs=1e-12)


lists = st.dictionaries(
    st.sampled_from(["u", "v", "w", "7", "NA"]),
    st.lists(st.sampled_from(ITEMS), unique=True, min_size=1),
    min_size=1,
)


@settings(deadline=None, max_examples=60)
@given(listed=lists, relevant=lists, seed=st.integers(0, 99))
def test_any_ranking_scores_between_zero_and_one_whatever_the_order_of_rows(listed, relevant, seed):
    relevant["u"], listed["u"] = ["a"], ["b", "a"]
    frame = ranking(listed)
    result = ranking_metrics(frame, pairs(relevant), ALL)
    assert result.stack().between(0, 1).all()
    assert set(result.index) == set(relevant)
    shuffled = frame.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(ranking_metrics(shuffled, pairs(relevant), ALL), result)


def test_only_and_all_users_with_held_out_pairs_are_measured():
    table = pairs({"10": "ab", "2": "c", "3": "d"})
    held_out = table.where(table.rows != table.users.get_loc("3"))
    result = ranking_metrics(ranking({"10": "a", "3": "d", "stranger": "a"}), held_out, ["recall@1"])
    assert result["recall@1"].to_dict() == {"2": 0, "10": 1}
    assert list(result.index) == ["2", "10"]


def test_a_gap_in_the_ranks_is_a_miss():
    frame = pd.DataFrame({"user": ["u", "u"], "item": ["b", "a"], "rank": [2, 4]})
    result = ranking_metrics(frame, pairs({"u": "ab"}), ["mrr@4", "recall@3"])
    assert result.loc["u"].to_dict() == {"mrr@4": 1 / 2, "recall@3": 1 / 2}


def test_cutoffs_may_pass_the_end_of_the_list_and_of_the_catalogue():
    result = ranking_metrics(ranking({"u": "ab"}), pairs({"u": "bc"}), ["recall@1000000000", "ndcg@12"])
    assert result.loc["u"].to_list() == pytest.approx([1 / 2, 1 / log2(3) / (1 + 1 / log2(3))])


def test_an_empty_ranking_scores_nothing_and_no_held_out_pairs_give_an_empty_frame():
    nothing = ranking({})
    assert ranking_metrics(nothing, pairs({"u": "a"}), ALL).loc["u"].to_list() == [0, 0, 0, 0]
    assert ranking_metrics(nothing, pairs({}), ALL).shape == (0, 4)
    assert ranking_metrics(ranking({"u": "a"}), pairs({}), ALL).shape == (0, 4)


@pytest.mark.parametrize("convert", [pl.from_pandas, pa.Table.from_pandas])
def test_reads_other_tables_and_integer_ids(convert):
    frame = pd.DataFrame({"user": [1, 1], "item": [7, 8], "rank": [2, 1]})
    held_out = Interactions.from_frame(frame, catalogue=catalogue("789")).where(np.array([True, False]))
    assert ranking_metrics(convert(frame), held_out, ["mrr@2"]).at["1", "mrr@2"] == 1 / 2


@pytest.mark.parametrize(
    "name", ["recall", "recall@0", "recall@-1", "recall@1.5", "hits@3", "NDCG@3", "map@3 ", ""]
)
def test_refuses_metrics_that_are_none(name):
    with pytest.raises(SpecificationError, match="not a metric"):
        ranking_metrics(ranking({"u": "a"}), pairs({"u": "a"}), [name])


def test_refuses_to_measure_nothing():
    with pytest.raises(SpecificationError, match="no metric"):
        ranking_metrics(ranking({"u": "a"}), pairs({"u": "a"}), [])


@pytest.mark.parametrize(
    ("change", "column", "line", "message"),
    [
        ({"item": ["a", "zz", "c"]}, "item", 2, "'zz' is not in the catalogue"),
        ({"item": ["a", "b", "a"]}, "item", 3, "user 'u' has item 'a' twice"),
        ({"rank": [1, 2, 2]}, "rank", 3, "user 'u' has rank 2 twice"),
        ({"rank": [0, 1, 2]}, "rank", 1, "rank 0 is not from 1"),
        ({"rank": [1, 2, 13]}, "rank", 3, "rank 13 is not from 1"),
        ({"rank": pd.array([1, None, 2], "Int64")}, "rank", 2, "not from 1"),
        ({"rank": [1.0, 2.0, 3.0]}, "rank", None, "must be integers"),
        ({"rank": ["1", "2", "3"]}, "rank", None, "must be integers"),
        ({"user": ["u", None, "u"]}, "user", 2, "missing id"),
        ({"user": ["x", "y", "z"]}, "user", None, "no user of the ranking"),
    ],
)
def test_refuses_what_is_no_ranking(change, column, line, message):
    frame = ranking({"u": "abc"}).assign(**change)
    with pytest.raises(DataError, match=message) as caught:
        ranking_metrics(frame, pairs({"u": "a", "v": "b"}), ALL)
    assert (caught.value.column, caught.value.line) == (column, line)


def test_refuses_a_table_without_ranks():
    with pytest.raises(DataError, match="no such column"):
        ranking_metrics(ranking({"u": "a"}).drop(columns="rank"), pairs({"u": "a"}))


def test_leaves_the_number_of_threads_alone():
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    ranking_metrics(ranking({"u": "a"}), pairs({"u": "a"}), ALL)
    assert numba.get_num_threads() == before


def test_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ranx", None)
    with pytest.raises(MissingExtraError, match=r"recsys-budget\[metrics\]"):
        ranking_metrics(ranking({"u": "a"}), pairs({"u": "a"}), ALL)


def run_alone(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_importing_metrics_brings_no_heavy_package():
    done = run_alone(
        "import sys, recsys_budget.metrics\n"
        "print([name for name in ('ranx', 'numba', 'torch', 'cvxpy', 'matplotlib') if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_may_be_called_from_several_threads():
    # In a process of its own: numba's threads abort the process when this goes wrong.
    done = run_alone(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import pandas as pd\n"
        "from recsys_budget.data import Interactions\n"
        "from recsys_budget.metrics import ranking_metrics\n"
        "frame = pd.DataFrame({'user': range(1000), 'item': range(1000), 'rank': 1})\n"
        "held_out = Interactions.from_frame(frame)\n"
        "measure = lambda _: ranking_metrics(frame, held_out, ['mrr@500'])['mrr@500'].mean()\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(set(pool.map(measure, range(60))))"
    )
    assert done.stdout.strip() in ("{1.0}", "{np.float64(1.0)}"), done.stderr
