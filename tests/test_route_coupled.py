import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import coupled, dual, laminar, oracle
from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.routes.rows import PopulationRows


def random_tree(rng, n_items, k):
    n_nodes = int(rng.integers(1, 6))
    parent = np.array([-1, *(rng.integers(0, v) for v in range(1, n_nodes))])
    lower = (rng.random(n_nodes) < 0.2).astype(int)
    upper = np.minimum(lower + rng.integers(1, 4, n_nodes), k)
    lower[0] = upper[0] = k
    return LaminarTree(rng.integers(0, n_nodes, n_items), parent, lower, upper)


def random_instance(seed, ties=False, n_users=None):
    rng = np.random.default_rng(seed)
    n_items, k = 9, int(rng.integers(1, 4))
    tree = random_tree(rng, n_items, k)
    n_users = int(rng.integers(1, 6)) if n_users is None else n_users
    sizes = rng.integers(k, n_items, n_users)
    items = np.concatenate([rng.choice(n_items, size, replace=False) for size in sizes]).astype(np.int32)
    draws = [rng.integers(0, 4, size) if ties else rng.gamma(2.0, size=size) for size in sizes]
    gains = np.concatenate([-np.sort(-draw) for draw in draws]).astype(float)
    fixed = rng.choice([0] * 12 + [1, -1], len(items)).astype(np.int8)
    return np.concatenate([[0], np.cumsum(sizes)]), gains, items, tree, fixed


def random_rows(seed, tree, kind, total):
    rng = np.random.default_rng(seed)
    n_items = len(tree.leaf_of_item)
    if kind == "groups":
        n = int(rng.integers(2, 5))
        fair = total / n
        lower = np.floor(fair * rng.uniform(0.0, 1.0, n))
        upper = np.ceil(fair * rng.uniform(0.8, 2.0, n))
        return PopulationRows.groups(rng.integers(-1, n, n_items), lower, np.maximum(lower, upper))
    n = int(rng.integers(1, 4))
    if kind == "counts":
        matrix = rng.integers(-1, 3, (n, n_items)).astype(float)
    else:
        matrix = rng.uniform(0.0, 2.0, (n, n_items)) * (rng.random((n, n_items)) < 0.7)
    centre, width = matrix.mean(axis=1) * total, rng.uniform(0.05, 0.4, n) * total
    lower, upper = np.floor(centre - width), np.ceil(centre + width)
    side = rng.integers(0, 3, n)
    return PopulationRows(
        sparse.csc_array(matrix), np.where(side == 1, -np.inf, lower), np.where(side == 2, np.inf, upper)
    )


def by_milp(offsets, gains, items, tree, rows, fixed, feasible):
    """The optimum by one integer program with every quota written out; None if there is no answer."""
    n = len(gains)
    up = [[v] for v in range(len(tree.parent))]
    for v in range(1, len(up)):
        up[v] += up[tree.parent[v]]
    blocks, low, high = [], [], []
    for user in np.flatnonzero(feasible):
        for v in range(len(tree.parent)):
            line = np.zeros(n)
            for row in range(offsets[user], offsets[user + 1]):
                line[row] = v in up[tree.leaf_of_item[items[row]]]
            blocks.append(line)
            low.append(tree.lower[v])
            high.append(tree.upper[v])
    user_of_row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    active = feasible[user_of_row]
    load = rows.coefficients.toarray()[:, items] * active
    matrix = np.vstack([*blocks, load]) if blocks else load
    answer = milp(
        -gains * active,
        constraints=LinearConstraint(
            matrix, np.concatenate([low, rows.lower]), np.concatenate([high, rows.upper])
        ),
        integrality=np.ones(n),
        bounds=Bounds((fixed > 0) * active, (fixed >= 0) * active),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status in (0, 2)
    return -answer.fun if answer.status == 0 else None


def check_slates(answer, offsets, gains, items, tree, rows, fixed):
    """Every rule counted from the emitted slates alone."""
    loads = np.zeros(len(rows.lower))
    total = 0.0
    for user in np.flatnonzero(answer.feasible):
        slate = offsets[user] + answer.chosen[user]
        assert (np.diff(answer.chosen[user]) > 0).all()
        assert offsets[user] <= slate[0]
        assert slate[-1] < offsets[user + 1]
        part = slice(offsets[user], offsets[user + 1])
        assert set(np.flatnonzero(fixed[part] > 0)) <= set(answer.chosen[user])
        assert not (fixed[slate] < 0).any()
        counts = np.zeros(len(tree.parent), int)
        for item in items[slate]:
            v = tree.leaf_of_item[item]
            while v >= 0:
                counts[v] += 1
                v = tree.parent[v]
        assert (tree.lower <= counts).all()
        assert (counts <= tree.upper).all()
        loads += rows.coefficients[:, items[slate]].sum(axis=1)
        total += gains[slate].sum()
    assert (answer.chosen[~answer.feasible] == -1).all()
    assert answer.loads == pytest.approx(loads)
    assert answer.objective == pytest.approx(total)
    outside = np.maximum(0, np.maximum(rows.lower - loads, loads - rows.upper))
    assert answer.violations == pytest.approx(outside, abs=1e-9)
    assert answer.satisfied == (outside.max(initial=0.0) <= 1e-6)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("kind", ["groups", "counts", "costs"])
def test_agrees_with_one_integer_program(kind, ties):
    seen = {"optimal": 0, "impossible": 0, "proven": 0}
    for seed in range(150):
        offsets, gains, items, tree, fixed = random_instance(seed, ties)
        feasible = solve_laminar(offsets, gains, items, tree, fixed=fixed).feasible
        rows = random_rows(seed, tree, kind, tree.k * int(feasible.sum()))
        answer = solve_coupled(offsets, gains, items, tree, rows, fixed=fixed, gap=1e-9)
        check_slates(answer, offsets, gains, items, tree, rows, fixed)
        best = by_milp(offsets, gains, items, tree, rows, fixed, feasible)
        if best is None:
            assert not answer.satisfied
            seen["impossible"] += 1
            seen["proven"] += answer.ray is not None
        else:
            assert answer.ray is None
            assert answer.satisfied
            assert best <= answer.bound
            assert answer.objective == pytest.approx(best, rel=1e-6, abs=1e-6)
            seen["optimal"] += 1
            if kind == "groups":  # the intersection of two matroids has no integrality gap
                assert answer.gap <= 1e-6
    assert seen["optimal"] > 30
    assert seen["proven"] > 5
