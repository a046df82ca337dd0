"""Small kernels that are written twice, for numba and without it: the same answers bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_budget.rerank.routes.dual import _add_compiled, _add_numpy


@pytest.mark.parametrize("stored", [0, 1, 7, 40])
def test_a_sparse_row_is_added_alike(stored: int) -> None:
    rng = np.random.default_rng(stored)
    columns = rng.permutation(40)[:stored].astype(np.int32)
    data, into = rng.normal(size=stored) * 10.0 ** rng.integers(-8, 8, stored), rng.normal(size=40)
    by_loop, by_arrays = into.copy(), into.copy()
    _add_compiled(columns, data, 0.1, by_loop)
    _add_numpy(columns, data, 0.1, by_arrays)
    np.testing.assert_array_equal(by_loop, by_arrays)
    expected = into.tolist()
    for column, value in zip(columns.tolist(), data.tolist(), strict=True):
        expected[column] += value * 0.1
    assert by_arrays.tolist() == expected
