"""Re-ranking a table spread over processes: the same rows as one process gives."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster

from recsys_budget.constraints import (
    Calibration,
    CategoryMaximum,
    CategoryMinimum,
    ProviderMinimum,
    SlateSize,
)
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.rerank import (
    SLATES_SCHEMA,
    EngagementDiversity,
    Reranker,
    no_slates,
    rerank_part,
    rerank_parts,
)

N_USERS, N_ITEMS = 60, 50
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame(
        {
            "item": [f"i{j}" for j in range(N_ITEMS)],
            "categories": [["A", "B", "C"][j % 3 : j % 3 + 1 + j % 2] for j in range(N_ITEMS)],
            "provider": [f"p{j % 4}" for j in range(N_ITEMS)],
        }
    )
)
RERANKER = Reranker(
    EngagementDiversity(0.2),
    [SlateSize(5), CategoryMinimum("A", 1), CategoryMaximum("C", 2), Calibration(2.0)],
)
QUOTAS = Reranker(constraints=[SlateSize(5), CategoryMinimum("A", 1), CategoryMaximum("C", 2)])


def candidates() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "user": np.repeat([f"u{j}" for j in range(N_USERS)], 20),
            "item": np.concatenate(
                [CATALOGUE.ids[rng.choice(N_ITEMS, 20, replace=False)] for _ in range(N_USERS)]
            ),
            "relevance": rng.gamma(2.0, size=20 * N_USERS),
        }
    )
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


def history() -> Interactions:
    rng = np.random.default_rng(6)
    used = [(f"u{u}", f"i{i}") for u in range(N_USERS) for i in rng.choice(N_ITEMS, 4, replace=False)]
    return Interactions.from_frame(pd.DataFrame(used, columns=["user", "item"]), catalogue=CATALOGUE)


def in_order(slates: pd.DataFrame) -> pd.DataFrame:
    return slates.astype({"user": "str", "item": "str"}).sort_values(["user", "rank"], ignore_index=True)


def whole(reranker: Reranker = QUOTAS, **known: Any) -> pd.DataFrame:
    return in_order(reranker.rerank(candidates(), CATALOGUE, progress=False, **known).frame)


@pytest.mark.parametrize("parts", [1, 7])
def test_parts_of_a_dask_frame_give_what_the_whole_gives(parts):
    known = history()
    with dask.config.set(scheduler="synchronous"):
        spread = dd.from_pandas(candidates(), npartitions=parts).shuffle(on="user", npartitions=parts)
        slates = spread.map_partitions(
            rerank_part, reranker=RERANKER, catalogue=CATALOGUE, history=known, meta=no_slates()
        )
        assert slates.npartitions == parts
        computed = slates.compute()
    pd.testing.assert_frame_equal(in_order(computed), whole(RERANKER, history=known))


def test_more_parts_than_users_leave_some_empty():
    few = candidates().query("user in ['u1', 'u2']")
    with dask.config.set(scheduler="synchronous"):
        spread = dd.from_pandas(few, npartitions=2).shuffle(on="user", npartitions=9)
        computed = spread.map_partitions(
            rerank_part, reranker=QUOTAS, catalogue=CATALOGUE, meta=no_slates()
        ).compute()
    assert in_order(computed).equals(whole().query("user in ['u1', 'u2']").reset_index(drop=True))


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
def test_two_worker_processes_give_what_one_process_gives(two_workers):
    spread = dd.from_pandas(candidates(), npartitions=4).shuffle(on="user")
    slates = spread.map_partitions(rerank_part, reranker=QUOTAS, catalogue=CATALOGUE, meta=no_slates())
    pd.testing.assert_frame_equal(in_order(two_workers.compute(slates).result()), whole())


@pytest.mark.slow
def test_an_error_comes_back_from_a_worker_with_its_fields(two_workers):
    impossible = Reranker(constraints=[SlateSize(5), CategoryMinimum("A", 5), CategoryMaximum("A", 4)])
    task = two_workers.submit(rerank_part, candidates(), reranker=impossible, catalogue=CATALOGUE)
    with pytest.raises(InfeasibleError) as caught:
        task.result()
    assert caught.value.user == "u0"
    assert set(caught.value.conflict) == {"at least 5 A", "at most 4 A"}


@pytest.mark.parametrize("kind", [lambda f: f, pl.from_pandas, lambda f: pa.Table.from_pandas(f)])
def test_an_empty_part_gives_no_slates_of_its_kind(kind):
    frame = kind(candidates())
    full = rerank_part(frame, reranker=QUOTAS, catalogue=CATALOGUE)
    empty = rerank_part(frame[:0], reranker=QUOTAS, catalogue=CATALOGUE)
    assert type(empty) is type(full) is type(frame)
    assert len(empty) == 0
    if isinstance(frame, pd.DataFrame):
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
    else:
        assert str(empty.schema) == str(full.schema)


def test_batches_that_cut_a_user_in_two_are_put_together():
    frame = candidates()
    batches = [frame[start : start + 7] for start in range(0, len(frame), 7)]
    (slates,) = rerank_parts(iter(batches), reranker=QUOTAS, catalogue=CATALOGUE)
    pd.testing.assert_frame_equal(in_order(slates), whole())
    assert list(rerank_parts(iter([frame[:0]]), reranker=QUOTAS, catalogue=CATALOGUE)) == []


def test_rules_about_all_slates_are_refused_in_parts():
    shared = Reranker(constraints=[SlateSize(5), ProviderMinimum(9, provider="p1")])
    for part in (candidates(), candidates()[:0]):
        with pytest.raises(SpecificationError, match="rules about all slates"):
            rerank_part(part, reranker=shared, catalogue=CATALOGUE)


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
        .config("spark.sql.shuffle.partitions", "3")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "7")  # cuts users in two
        .getOrCreate()
    )
    try:
        slates = (
            spark.createDataFrame(candidates())
            .repartition(3, "user")
            .mapInPandas(partial(rerank_parts, reranker=QUOTAS, catalogue=CATALOGUE), schema=SLATES_SCHEMA)
            .toPandas()
        )
    finally:
        spark.stop()
    pd.testing.assert_frame_equal(in_order(slates), whole())
