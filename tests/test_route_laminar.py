from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import laminar
from recsys_budget.rerank.routes.laminar import LaminarTree, bound_prices, solve_laminar


def random_instance(seed, n_users=3, most=9):
    """A tree of up to three levels with quotas that bind, and few candidates with many ties."""
    rng = np.random.default_rng(seed)
    n_items, n_nodes, k = 12, int(rng.integers(1, 7)), int(rng.integers(1, 5))
    parent = np.array([-1, *(rng.integers(0, v) for v in range(1, n_nodes))])
    lower = rng.integers(0, 2, n_nodes) * (rng.random(n_nodes) < 0.5)
    upper = np.minimum(lower + rng.integers(0, 4, n_nodes), k)
    lower[0] = upper[0] = k
    tree = LaminarTree(rng.integers(-1, n_nodes, n_items), parent, lower, upper)
    sizes = rng.integers(0, most, n_users)
    items = np.concatenate([rng.choice(n_items, size, replace=False) for size in sizes]).astype(np.int32)
    gains = np.concatenate([-np.sort(-rng.integers(0, 5, size)) / 4 for size in sizes]).astype(float)
    fixed = rng.choice([0, 0, 0, 0, 0, 1, -1], len(items)).astype(np.int8)
    return np.concatenate([[0], np.cumsum(sizes)]), gains, items, tree, fixed


def slates_of(rows, items, tree, fixed):
    """Every slate within the quotas, by counting, in the order of rows."""
    ancestors = [set() for _ in tree.parent]
    for v, up in enumerate(tree.parent):
        ancestors[v] = {v} | (ancestors[up] if v else set())
    for slate in combinations(rows, tree.k):
        leaves = [tree.leaf_of_item[items[row]] for row in slate]
        if -1 in leaves or any(fixed[row] < 0 for row in slate):
            continue
        if any(fixed[row] > 0 and row not in slate for row in rows):
            continue
        counts = [sum(v in ancestors[leaf] for leaf in leaves) for v in range(len(tree.parent))]
        if all(tree.lower <= counts) and all(counts <= tree.upper):
            yield slate


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request, monkeypatch):
    if request.param and not laminar.COMPILED:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(laminar, "COMPILED", request.param)


@pytest.mark.parametrize("pins", [False, True])
@pytest.mark.parametrize("block", range(10))
def test_greedy_is_the_best_of_all_slates(compiled, block, pins):
    possible = 0
    for seed in range(60 * block, 60 * block + 60):
        offsets, gains, items, tree, fixed = random_instance(seed)
        fixed = fixed if pins else np.zeros_like(fixed)
        discount = np.sort(np.random.default_rng(seed).random(tree.k))[::-1]
        answer = solve_laminar(offsets, gains, items, tree, fixed=fixed if pins else None, discount=discount)
        for user, (start, stop) in enumerate(pairwise(offsets)):
            values = [
                float(discount @ gains[list(slate)])
                for slate in slates_of(range(start, stop), items, tree, fixed)
            ]
            assert answer.feasible[user] == bool(values)
            if values:
                slate = tuple(start + answer.chosen[user])
                assert slate in set(slates_of(range(start, stop), items, tree, fixed))
                assert answer.objective[user] == pytest.approx(max(values))
                possible += 1
            else:
                assert (answer.chosen[user] == -1).all()
    assert possible > 20


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_twins_batches_and_threads_agree_bit_for_bit(seed, pins):
    offsets, gains, items, tree, fixed = random_instance(seed, n_users=20)
    marks = fixed if pins else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laminar, "BLOCK", 3)
        answers = []
        for is_compiled in {laminar.COMPILED, False}:
            patch.setattr(laminar, "COMPILED", is_compiled)
            answers += [
                solve_laminar(offsets, gains, items, tree, fixed=marks, threads=threads) for threads in (1, 4)
            ]
        for user in range(20):
            part = slice(offsets[user], offsets[user + 1])
            alone = solve_laminar(
                np.array([0, offsets[user + 1] - offsets[user]]),
                gains[part],
                items[part],
                tree,
                fixed=fixed[part] if pins else None,
            )
            for answer in answers:
                assert np.array_equal(alone.chosen[0], answer.chosen[user])
                assert alone.objective[0] == answer.objective[user]


def test_ties_take_the_earlier_row(compiled):
    tree = LaminarTree.partition(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0]), np.array([1, 2, 3]), 3)
    answer = solve_laminar(np.array([0, 5]), np.ones(5), np.arange(5), tree)
    assert answer.chosen.tolist() == [[0, 2, 3]]


def test_float32_gains_are_added_in_float64(compiled):
    gains = np.array([0.1, 0.1, 0.1], np.float32)
    tree = LaminarTree.partition(np.zeros(3, int), np.array([0]), np.array([3]), 3)
    answer = solve_laminar(np.array([0, 3]), gains, np.arange(3), tree)
    assert answer.objective[0] == pytest.approx(3 * float(np.float32(0.1)), rel=1e-15)


def test_quotas_that_exclude_every_slate(compiled):
    tree = LaminarTree.partition(np.zeros(4, int), np.array([1, 2]), np.array([4, 4]), 2)
    assert tree.contradictory
    answer = solve_laminar(np.array([0, 4]), np.ones(4), np.arange(4), tree)
    assert not answer.feasible.any()
    assert (answer.chosen == -1).all()


def test_no_users_and_a_user_without_candidates(compiled):
    tree = LaminarTree.partition(np.zeros(1, int), np.array([0]), np.array([1]), 1)
    assert solve_laminar(np.array([0]), np.zeros(0), np.zeros(0, int), tree).chosen.shape == (0, 1)
    assert not solve_laminar(np.array([0, 0]), np.zeros(0), np.zeros(0, int), tree).feasible[0]


def test_prices_of_bounds_by_hand():
    tree = LaminarTree.partition(np.array([0, 0, 1, 1]), np.array([0, 1]), np.array([1, 4]), 2)
    lower, upper = bound_prices(np.array([0, 4]), np.array([4.0, 3.0, 2.0, 1.0]), np.arange(4), tree)
    # Best is {0, 2}. A floor of 0 on the second category leaves the first capped at one: nothing gained.
    assert lower.tolist() == [0.0, 0.0, 0.0]
    # A cap of two on the first meets the floor of one on the second: again {0, 2}.
    assert upper.tolist() == [0.0, 0.0, 0.0]
    tree = LaminarTree.partition(np.array([0, 0, 1, 1]), np.array([0, 1]), np.array([2, 4]), 2)
    lower, upper = bound_prices(np.array([0, 4]), np.array([4.0, 3.0, 2.0, 1.0]), np.arange(4), tree)
    assert lower.tolist() == [0.0, 0.0, 1.0]
    assert upper.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("parent", "lower", "upper", "leaf", "message"),
    [
        ([-1, 0], [2, 0], [2], [1], "one of each per node"),
        ([0, 0], [2, 0], [2, 1], [1], "node 0 must be the root"),
        ([-1, 2, 0], [2, 0, 0], [2, 1, 1], [1], "after its parent"),
        ([-1, 0], [1, 0], [2, 1], [1], "size of the slate"),
        ([-1, 0], [2, 0], [2, 1], [2], "outside 0..1"),
    ],
)
def test_bad_trees_are_refused(parent, lower, upper, leaf, message):
    with pytest.raises(SpecificationError, match=message):
        LaminarTree(np.array(leaf), np.array(parent), np.array(lower), np.array(upper))
