"""Re-ranking part by part, where a table of candidates is spread over processes or machines.

Rules about one slate need the candidates of one user alone, so parts of the table are worked on apart, as
long as each user's rows are all in one part. Spread a table by user first. For rules about all slates see
:func:`~recsys_budget.rerank.rerank_distributed`.

Dask::

    candidates.shuffle(on="user").map_partitions(
        rerank_part, reranker=reranker, catalogue=catalogue, meta=no_slates()
    )

Spark::

    candidates.repartition("user").mapInPandas(
        partial(rerank_parts, reranker=reranker, catalogue=catalogue), schema=SLATES_SCHEMA
    )
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.frames import in_kind
from recsys_budget.rerank.reranker import Reranker

SLATES_SCHEMA = "user string, item string, rank bigint, relevance double"


def no_slates() -> pd.DataFrame:
    """A frame of slates without a row: what Dask wants to know as ``meta``."""
    return pd.DataFrame(
        {
            "user": pd.Series([], dtype="str"),
            "item": pd.Series([], dtype="str"),
            "rank": pd.Series([], dtype=np.int64),
            "relevance": pd.Series([], dtype=np.float64),
        }
    )


def rerank_part(
    frame: Any, *, reranker: Reranker, catalogue: ItemCatalogue, history: Interactions | None = None
) -> Any:
    """The slates of the users in a part of a table: the rows that one process would give them.

    A pure function of its arguments. Slates are checked in each part before they are handed out; for a
    certificate of all of them, call ``Reranker.rerank``.

    Args:
        frame: Candidates as for ``Reranker.rerank``, all rows of each user; it may be empty.
        reranker: Without rules about all slates.
        catalogue: The catalogue that the items are from.
        history: As for ``Reranker.rerank``.

    Returns:
        Slates like ``Slates.frame``, in the kind of ``frame``.

    Raises:
        SpecificationError: A rule is about all slates, which no part can see.
        DataError: As for ``Reranker.rerank``.
        InfeasibleError: As for ``Reranker.rerank``.
    """
    _refuse_shared(reranker)
    table = nw.from_native(frame, eager_only=True)
    if len(table):
        return reranker.rerank(frame, catalogue, history=history, progress=False).frame
    return in_kind(no_slates(), table.implementation)


def rerank_parts(
    frames: Iterable[pd.DataFrame],
    *,
    reranker: Reranker,
    catalogue: ItemCatalogue,
    history: Interactions | None = None,
) -> Iterator[pd.DataFrame]:
    """:func:`~recsys_budget.rerank.rerank_part` of a part that comes in batches, as in Spark.

    Spark cuts batches by their number of rows, in the middle of a user's, so all batches of a part are put
    together first: a part must fit into a worker's memory.

    Args:
        frames: The batches of one part.
        reranker: As for :func:`rerank_part`, like all that follow.
        catalogue: The catalogue.
        history: What users had used.

    Yields:
        The slates of the part; nothing for a part without a row.
    """
    batches = [frame for frame in frames if len(frame)]
    if batches:
        whole = pd.concat(batches, ignore_index=True)
        yield rerank_part(whole, reranker=reranker, catalogue=catalogue, history=history)


def _refuse_shared(reranker: Reranker) -> None:
    shared = [rule.name for rule in reranker.constraints if rule.scope == "population"]
    if shared:
        raise SpecificationError(
            f"{', '.join(map(repr, shared))}: a part of a table cannot keep rules about all slates alone; "
            "see rerank_distributed"
        )
