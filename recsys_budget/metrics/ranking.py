"""How well rankings find what users went on to use, measured by ranx."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget._extras import extra
from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.metrics._ranked import Ranked

_NAME = re.compile(r"(recall|ndcg|map|mrr)@([1-9][0-9]*)")
_USERS_AT_ONCE = 1024  # bounds the padded arrays, however many users there are
# ranx runs on numba's workqueue threads, which abort the whole process when two threads call at once.
_ONE_CALL_AT_A_TIME = Lock()


def ranking_metrics(
    ranking: Any, held_out: Interactions, metrics: Sequence[str] = ("recall@20", "ndcg@100")
) -> pd.DataFrame:
    """Measure each user's ranking against the pairs held out; ``.mean()`` of the result averages over users.

    With R the number of a user's held-out items, and a hit a ranked item among them:

    - ``recall@k``: hits in the top k over min(k, R), so that a perfect top k scores 1 (Liang et al.).
    - ``ndcg@k``: sum of 1 / log2(1 + rank) over the hits in the top k, over the largest such sum possible.
    - ``map@k``: sum over the hits in the top k of the share of hits down to that rank, over R. The best
      possible score is below 1 when R > k.
    - ``mrr@k``: 1 / rank of the first hit in the top k, or 0.

    Not private: the figures read held-out interactions and are charged to no budget. The columns are headed
    "not private", and means keep that heading. :meth:`recsys_budget.privacy.PrivateQueries.ranking_metrics`
    gives means with noise that a budget pays for.

    Args:
        ranking: Table (pandas, polars or pyarrow) with columns user, item, rank (integer, 1 is the top), one
            row a ranked item. Items rank exactly where ``rank`` says; a gap in the ranks is a miss.
        held_out: The relevant pairs; ratings are ignored. Its catalogue says which items may be ranked.
        metrics: Names as above with k a positive integer, such as ``"recall@20"``.

    Returns:
        Frame of float64 in [0, 1], indexed by user in the order of ``held_out``, one column a metric. It has
        the users with a held-out pair, no others: one whom the ranking lacks scores 0 (an empty ranking: all
        of them), and ranked users without a held-out pair are left out.

    Raises:
        SpecificationError: A metric is not one of the above.
        DataError: The ranking is not one: see its columns above; an item is unknown, a user has an item or a
            rank twice, or none of its users is in ``held_out``.
        MissingExtraError: ranx is not installed.

    Note:
        ranx compiles each metric on its first use (a few seconds) and caches the result on disk.

    Example:
        >>> frame = pd.DataFrame({"user": ["u", "u"], "item": ["a", "b"]})
        >>> ranking = frame.assign(rank=[2, 1])
        >>> held_out = Interactions.from_frame(frame).where(np.array([True, False]))
        >>> ranking_metrics(ranking, held_out, ["recall@2", "mrr@2"])
        not private  recall@2  mrr@2
        user
        u                 1.0    0.5

    References:
        Bassani (2022), "ranx", doi:10.1007/978-3-030-99739-7_30.
        Järvelin and Kekäläinen (2002), for NDCG, doi:10.1145/582415.582418.
        Liang, Krishnan, Hoffman and Jebara (2018), for recall, arXiv:1802.05814.
    """
    wanted = {name: _parse(name) for name in metrics}
    if not wanted:
        raise SpecificationError("no metric was asked for; use names such as 'recall@20'")
    ranked = Ranked.read(ranking, held_out.catalogue)
    with extra("metrics"):
        from ranx import metrics as ranx
    kinds = {
        "recall": ranx.hits,
        "ndcg": ranx.ndcg,
        "map": ranx.average_precision,
        "mrr": ranx.reciprocal_rank,
    }

    relevant = np.diff(held_out.indptr)
    users = np.flatnonzero(relevant)
    depth = min(max(k for _, k in wanted.values()), held_out.n_items)
    top = _top(ranked, held_out, users, depth)
    scores = {name: np.empty(len(users)) for name in wanted}
    for start in range(0, len(users), _USERS_AT_ONCE):
        block = slice(start, start + _USERS_AT_ONCE)
        counts = relevant[users[block]]
        truth, run = _padded(held_out, users[block]), _with_scores(top[block])
        for name, (kind, k) in wanted.items():
            with _ONE_CALL_AT_A_TIME:
                found = kinds[kind](truth, run, k)
            scores[name][block] = found / np.minimum(k, counts) if kind == "recall" else found
    frame = pd.DataFrame(scores, index=held_out.users[users].rename("user"))
    return frame.rename_axis(columns="not private")


def _parse(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise SpecificationError(
            f"{name!r} is not a metric; use recall@k, ndcg@k, map@k or mrr@k with k a positive integer"
        )
    return match[1], int(match[2])


def _top(ranked: Ranked, held_out: Interactions, users: NDArray[np.intp], depth: int) -> NDArray[np.int32]:
    """Item at each rank up to ``depth`` for these users of ``held_out``; -1 where there is none."""
    place = np.full(held_out.n_users + 1, -1)  # the last entry is for users whom held_out lacks
    place[users] = np.arange(len(users))
    rows = place[ranked.positions_in(held_out)][ranked.rows]
    kept = (rows >= 0) & (ranked.ranks <= depth)
    top = np.full((len(users), depth), -1, np.int32)
    top[rows[kept], ranked.ranks[kept] - 1] = ranked.items[kept]
    return top


# ranx takes arrays of (id, score) pairs, one row a user, and takes ids in the order given. Arrays skip its
# dictionaries of strings, which cost far more than the metrics. -1 is never the id of a relevant item.


def _with_scores(top: NDArray[np.int32]) -> NDArray[np.float64]:
    ranks = np.broadcast_to(np.arange(1, top.shape[1] + 1), top.shape)
    return np.stack([top, -ranks], axis=-1).astype(np.float64)


def _padded(held_out: Interactions, users: NDArray[np.intp]) -> NDArray[np.float64]:
    counts = np.diff(held_out.indptr)[users]
    present = np.arange(counts.max()) < counts[:, None]
    ids = np.full(present.shape, -1.0)
    # Users that are skipped have no pairs, so the pairs of those taken lie side by side.
    ids[present] = held_out.indices[held_out.indptr[users[0]] : held_out.indptr[users[-1] + 1]]
    return np.stack([ids, present.astype(np.float64)], axis=-1)
