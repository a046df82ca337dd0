"""Rules about all slates over parts: the slates and the certificate of one process, bit for bit."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import dask
import numpy as np
import pandas as pd
import polars as pl
import pytest
from distributed import Client, LocalCluster

from recsys_budget.constraints import (
    CatalogueCoverage,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    GroupParity,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, InfeasibleError, SolverTimeoutError, SpecificationError
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
from recsys_budget.rerank import (
    Engagement,
    EngagementDiversity,
    Novelty,
    Reranker,
    distributed,
    rerank_distributed,
)

N_USERS, N_ITEMS, N = 450, 60, 24
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame(
        {
            "item": [f"i{j}" for j in range(N_ITEMS)],
            "categories": [["A", "B", "C"][j % 3 : j % 3 + 1] for j in range(N_ITEMS)],
            "provider": [f"p{min(j % 7, 4)}" for j in range(N_ITEMS)],
            "cost": np.linspace(0.5, 2.25, N_ITEMS),
            "popularity": np.linspace(0.9, 0.01, N_ITEMS),
        }
    ),
    attributes=("cost", "popularity"),
)
QUOTAS: list[Constraint] = [SlateSize(5), CategoryMinimum("A", 1), CategoryMaximum("C", 2)]
FAIR: list[Constraint] = [*QUOTAS, ProviderMinimum(share=0.17), ProviderMaximum(share=0.25)]


def candidates(seed: int = 5, ties: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    items = np.argsort(rng.random((N_USERS, N_ITEMS)), axis=1)[:, :N]
    relevance = rng.integers(1, 6, items.size) if ties else rng.gamma(2.0, size=items.size)
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{j}" for j in range(N_USERS)], N),
            "item": CATALOGUE.ids[items.ravel()],
            "relevance": relevance.astype(float) * (1.0 + (items.ravel() % 7 == 0)),
        }
    )
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def spread(frame: pd.DataFrame, n_parts: int, seed: int = 0) -> list[pd.DataFrame]:
    """Users dealt to parts at random; some parts may be empty."""
    users = frame["user"].unique()
    part = dict(zip(users, np.random.default_rng(seed).integers(0, n_parts, len(users)), strict=True))
    return [frame[frame["user"].map(part) == at] for at in range(n_parts)]


def check_same(reranker: Reranker, frame: pd.DataFrame, parts: list[Any], **how: Any) -> None:
    whole = reranker.rerank(frame, CATALOGUE, progress=False)
    apart = rerank_distributed(parts, reranker=reranker, catalogue=CATALOGUE, **how)
    gather = how.get("gather", list)
    slates = pd.concat([pd.DataFrame(part) for part in gather(apart.parts)]).astype({"user": "str"})
    order = {user: at for at, user in enumerate(whole.frame["user"].unique())}
    slates = slates.iloc[np.argsort(slates["user"].map(order), kind="stable")].reset_index(drop=True)
    pd.testing.assert_frame_equal(slates, whole.frame, check_exact=True)
    one, other = (replace(c, seconds=0.0).to_dict() for c in (whole.certificate, apart.certificate))
    assert one == other
    pd.testing.assert_frame_equal(apart.certificate.per_user, whole.certificate.per_user, check_exact=True)


@pytest.mark.parametrize("n_parts", [1, 3, 20])
def test_any_number_of_parts_gives_what_one_process_gives(n_parts):
    frame = candidates()
    parts = [frame[:0], *spread(frame, n_parts), frame[:0]]
    check_same(Reranker(Engagement(), FAIR, gap=1e-4), frame, parts)


@pytest.mark.parametrize(
    ("objective", "rules"),
    [
        (Engagement(), [*QUOTAS, TotalMaximum("cost", 2_600.0)]),
        (Engagement(), [*QUOTAS, StockMaximum(50)]),
        (Engagement(), [*QUOTAS, GroupParity("A", "B", tolerance=0.02), ProviderMinimum(300, provider="p4")]),
        (Engagement(), [SlateSize(5), ProviderMinimum(share=0.18)]),
        (0.7 * Engagement() + 0.3 * Novelty(), FAIR),
        (EngagementDiversity(0.0), [*FAIR, CatalogueCoverage(60)]),
    ],
)
def test_every_rule_on_sums_and_every_linear_objective(objective, rules):
    frame = candidates(seed=1)
    check_same(Reranker(objective, rules, gap=1e-4), frame, spread(frame, 5))


def test_ties_everywhere_are_broken_alike():
    frame = candidates(ties=True)
    check_same(Reranker(Engagement(), FAIR, gap=1e-4), frame, spread(frame, 6))


def test_samples_larger_than_a_part_are_the_same_users(monkeypatch):
    from recsys_budget.rerank.routes import coupled, dual, oracle

    monkeypatch.setattr(coupled, "_SAMPLE", 60)
    monkeypatch.setattr(dual, "_SAMPLE", 90)
    monkeypatch.setattr(oracle, "_SPACING", 37)
    monkeypatch.setattr("recsys_budget.rerank.together.PRICED", 41)
    frame = candidates(seed=2)
    check_same(Reranker(Engagement(), FAIR, gap=1e-4), frame, spread(frame, 7))


def test_a_pool_may_answer_in_any_order():
    frame = candidates(seed=3)
    with ThreadPoolExecutor(4) as pool:
        check_same(Reranker(Engagement(), FAIR), frame, spread(frame, 5), map=pool.map)


def test_parts_that_are_lost_and_made_again_change_nothing():
    """Each round sees parts as they were before the first: what they kept is but a shortcut."""
    frame = candidates(seed=4)

    def forgetful(function: Any, *lists: Any) -> list[Any]:
        return [function(*pickle.loads(pickle.dumps(each))) for each in zip(*lists, strict=True)]  # noqa: S301

    check_same(Reranker(Engagement(), FAIR), frame, spread(frame, 4), map=forgetful)


def test_slates_leave_in_the_kind_of_their_part():
    frame = candidates()
    parts = [pl.from_pandas(part) for part in spread(frame, 2)]
    apart = rerank_distributed(parts, reranker=Reranker(constraints=FAIR), catalogue=CATALOGUE)
    assert all(isinstance(part, pl.DataFrame) for part in apart.parts)


class TestRefusals:
    def run(self, rules: list[Constraint], parts: Any = None, **how: Any) -> Any:
        how = {"reranker": Reranker(how.pop("objective", Engagement()), rules), **how}
        parts = spread(candidates(), 3) if parts is None else parts
        return rerank_distributed(parts, catalogue=CATALOGUE, **how)

    def test_no_rule_about_all_slates(self):
        with pytest.raises(SpecificationError, match="see rerank_part"):
            self.run(QUOTAS)

    @pytest.mark.parametrize(
        ("objective", "extra"),
        [
            (EngagementDiversity(0.2), []),
            (Engagement("log"), []),
            (Engagement(), [Soft(CategoryMinimum("B", 2), 1.0)]),
        ],
    )
    def test_other_structure(self, objective, extra):
        with pytest.raises(SpecificationError, match="gather the candidates"):
            self.run([*FAIR, *extra], objective=objective)

    def test_a_user_in_two_parts(self):
        frame = candidates()
        with pytest.raises(DataError, match="'u7' is in two parts"):
            self.run(FAIR, [frame[frame["user"] != "u9"], frame[frame["user"].isin(["u7", "u9"])]])

    def test_no_candidate_at_all(self):
        with pytest.raises(DataError, match="no candidate"):
            self.run(FAIR, [candidates()[:0]])

    def test_a_ledger(self):
        ledger = PrivacyLedger(PrivacyBudget(1.0, 1e-6))
        with pytest.raises(SpecificationError, match="a ledger governs"):
            self.run(FAIR, ledger=ledger)

    def test_a_user_without_a_slate(self):
        with pytest.raises(InfeasibleError) as caught:
            self.run([*FAIR, CategoryMinimum("B", 5), CategoryMaximum("B", 4)])
        assert set(caught.value.conflict) == {"at least 5 B", "at most 4 B"}

    def test_no_time(self, monkeypatch):
        monkeypatch.setattr(distributed.time, "monotonic", iter(np.arange(0.0, 1e6, 10.0)).__next__)
        with pytest.raises(SolverTimeoutError, match="1 s were not enough"):
            self.run([*QUOTAS, ProviderMinimum(share=0.2)], time_limit=1)


def test_conflicts_are_those_of_one_process():
    frame = candidates()
    reranker = Reranker(Engagement(), [*QUOTAS, ProviderMinimum(share=0.21), ProviderMaximum(share=0.9)])
    told = []
    for run in (
        lambda: reranker.rerank(frame, CATALOGUE, progress=False),
        lambda: rerank_distributed(spread(frame, 4), reranker=reranker, catalogue=CATALOGUE),
    ):
        with pytest.raises(InfeasibleError) as caught:
            run()
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "share 0.21 -> 0.2" in told[0]


@pytest.fixture(scope="module")
def two_workers():
    quiet = {"distributed.worker.memory.terminate": False, "distributed.admin.tick.limit": "1h"}
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_parts_that_stay_on_workers_give_what_one_process_gives(two_workers):
    frame = candidates()
    parts = two_workers.scatter(spread(frame, 4))
    reranker = Reranker(Engagement(), FAIR, gap=1e-4)
    check_same(reranker, frame, parts, map=two_workers.map, gather=two_workers.gather)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Spark's own about pandas 3
def test_spark_gives_what_one_process_gives(monkeypatch):
    if find_spec("pyspark") is None or shutil.which("java") is None:
        pytest.skip("needs pyspark and Java")
    from pyspark.sql import SparkSession

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )

    def over_parts(function: Any, parts: Any, *lists: Any) -> Any:
        """A resilient dataset's map, with further lists, and what comes of it kept."""
        numbered = parts.zipWithIndex()
        return numbered.map(lambda pair: function(pair[0], *(each[pair[1]] for each in lists))).cache()

    frame = candidates()[lambda f: f["user"].str.len() < 4]
    try:
        parts = spark.sparkContext.parallelize(spread(frame, 3), 3)
        reranker = Reranker(Engagement(), FAIR)
        check_same(reranker, frame, parts, map=over_parts, gather=lambda results: results.collect())
    finally:
        spark.stop()
