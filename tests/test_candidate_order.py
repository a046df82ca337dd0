"""The order of candidates, which is the tie rule everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.rerank.frames import _order


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.5, 1e308, -1e308]), st.integers(0, 9)),
        min_size=1,
        max_size=40,
        unique_by=lambda row: (row[0], row[2]),
    ),
    st.booleans(),
)
def test_it_is_the_lexicographic_order(table: list[tuple[int, float, int]], grouped: bool) -> None:
    if grouped:
        table = sorted(table, key=lambda row: row[0])
    users = sorted({row[0] for row in table})
    rows = np.array([users.index(row[0]) for row in table])
    relevance, items = np.array([row[1] for row in table]), np.array([row[2] for row in table])
    expected = np.lexsort((items, -relevance, rows))
    assert _order(rows, relevance, items).tolist() == expected.tolist()
