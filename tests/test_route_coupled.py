import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import dual, laminar, oracle
from recsys_budget.rerank.routes.answers import row_of
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


@pytest.mark.parametrize("kind", ["groups", "counts", "costs"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_within_the_certificate_on_any_instance(kind, seed):
    offsets, gains, items, tree, fixed = random_instance(seed, ties=seed % 2 == 0, n_users=8)
    feasible = solve_laminar(offsets, gains, items, tree, fixed=fixed).feasible
    rows = random_rows(seed, tree, kind, tree.k * int(feasible.sum()))
    answer = solve_coupled(offsets, gains, items, tree, rows, fixed=fixed, gap=1e-3)
    check_slates(answer, offsets, gains, items, tree, rows, fixed)
    best = by_milp(offsets, gains, items, tree, rows, fixed, feasible)
    assert answer.satisfied == (best is not None)
    if best is not None:
        assert answer.objective <= best + 1e-9 * abs(best)
        assert best <= answer.bound
        assert best - answer.objective <= 1e-3 * answer.bound + 1e-9
    elif kind == "groups":
        assert answer.ray is not None


def population(n_users, n_groups, seed=0, floor=0.6, ceiling=1.7, n_items=400, dtype=np.float64):
    """Many users, skewed providers, floors and ceilings that bind."""
    rng = np.random.default_rng(seed)
    k, n = 5, 40
    share = 1.0 / np.arange(1, n_groups + 1)
    group = rng.choice(n_groups, n_items, p=share / share.sum())
    tree = LaminarTree.partition(rng.integers(0, 6, n_items), [1, 0, 0, 0, 0, 0], [2, 2, 3, 5, 5, 5], k)
    items = np.argsort(rng.random((n_users, n_items)), axis=1)[:, :n].ravel().astype(np.int32)
    gains = -np.sort(-rng.gamma(2.0, size=(n_users, n)), axis=1).ravel().astype(dtype)
    fair = k * n_users / n_groups
    rows = PopulationRows.groups(group, np.full(n_groups, np.floor(floor * fair)), np.ceil(ceiling * fair))
    return np.arange(n_users + 1) * n, gains, items, tree, rows


def same(one, other):
    return (
        np.array_equal(one.chosen, other.chosen)
        and (one.objective, one.bound) == (other.objective, other.bound)
        and np.array_equal(one.prices, other.prices)
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_users_get_near_the_bound_and_keep_every_row(dtype):
    offsets, gains, items, tree, rows = population(6_000, 12, dtype=dtype)
    answer = solve_coupled(offsets, gains, items, tree, rows)
    assert answer.satisfied
    assert answer.violations.max() == 0.0
    assert 0.0 <= answer.gap <= 1e-4
    free = solve_laminar(offsets, gains, items, tree)
    assert answer.objective < 0.999 * free.objective.sum()  # the rows do bind
    check_slates(answer, offsets, gains, items, tree, rows, np.zeros(len(gains), np.int8))


def test_threads_and_blocks_change_nothing(monkeypatch):
    problem = population(1_500, 8)
    monkeypatch.setattr(oracle, "BLOCK", 100)
    one = solve_coupled(*problem, threads=1)
    assert same(one, solve_coupled(*problem, threads=4))
    monkeypatch.setattr(oracle, "BLOCK", 999)
    assert same(one, solve_coupled(*problem, threads=3))


def test_numpy_and_compiled_agree_bit_for_bit(monkeypatch):
    if not laminar.COMPILED:
        pytest.skip("numba is not installed")
    problem = population(800, 8)
    compiled = solve_coupled(*problem)
    monkeypatch.setattr(laminar, "COMPILED", False)
    monkeypatch.setattr(oracle, "COMPILED", False)
    monkeypatch.setattr(dual, "pick", lambda kernel, twin, n_rows: kernel.py_func)
    assert same(compiled, solve_coupled(*problem))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), discounted=st.booleans())
def test_oracle_twins_agree_and_no_margin_is_too_wide(seed, discounted):
    offsets, gains, items, tree, fixed = random_instance(seed, ties=seed % 3 == 0, n_users=12)
    rng = np.random.default_rng(seed)
    discount = np.sort(rng.random(tree.k))[::-1] if discounted else None
    prices = rng.normal(size=len(tree.leaf_of_item))
    walker = Oracle(offsets, gains, items, tree, fixed=fixed, discount=discount)
    for step in (1.0, 0.3, 0.01, 0.0, 0.001, 0.5):
        prices = prices + step * rng.normal(size=len(prices))
        fresh = Oracle(offsets, gains, items, tree, fixed=fixed, discount=discount)
        found, expected = walker.best(prices), fresh.best(prices)
        assert np.array_equal(walker.chosen, fresh.chosen)  # slates kept unseen are still the best
        assert found.value == expected.value
        assert np.array_equal(found.counts, expected.counts)
        free = walker.exchanges(prices, 0.4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(oracle, "COMPILED", False)
            twin = Oracle(offsets, gains, items, tree, fixed=fixed, discount=discount)
            by_numpy = twin.best(prices)
            assert np.array_equal(walker.chosen, twin.chosen)
            assert found.value == by_numpy.value
            assert np.array_equal(found.counts, by_numpy.counts)
            free_twin = twin.exchanges(prices, 0.4)
        for field in ("user", "leaves", "enters", "cost", "cheapest", "items", "gains"):
            assert np.array_equal(getattr(free, field), getattr(free_twin, field))
        assert (free.cost >= 0).all()


def test_exchanges_are_exactly_those_of_the_slates():
    counted = 0
    for seed in range(60):
        offsets, gains, items, tree, fixed = random_instance(seed, ties=seed % 2 == 0, n_users=4)
        prices = np.random.default_rng(seed).normal(size=len(tree.leaf_of_item))
        asked = Oracle(offsets, gains, items, tree, fixed=fixed)
        found = asked.exchanges(prices, 1.0)
        start = offsets[found.user]
        leaves, enters = start + row_of(found.leaves), start + row_of(found.enters)
        assert (items[np.stack([leaves, enters], axis=1)] == found.items).all()
        assert (gains[np.stack([leaves, enters], axis=1)] == found.gains).all()
        pairs = set(zip(leaves.tolist(), enters.tolist(), strict=True))
        net = gains - prices[items]
        expected = set()
        for user in asked.users:
            slate = (offsets[user] + asked.chosen[user]).tolist()
            for enters in set(range(offsets[user], offsets[user + 1])) - set(slate):
                for leaves in slate:
                    counts = np.zeros(len(tree.parent), int)
                    for row in [enters, *(row for row in slate if row != leaves)]:
                        v = tree.leaf_of_item[items[row]]
                        while v >= 0:
                            counts[v] += 1
                            v = tree.parent[v]
                    allowed = (tree.lower <= counts).all() and (counts <= tree.upper).all()
                    allowed &= fixed[leaves] <= 0 <= fixed[enters]
                    if allowed and net[leaves] - net[enters] <= 1.0:
                        expected.add((leaves, enters))
        assert pairs == expected
        counted += len(expected)
    assert counted > 100


def test_rows_that_bind_nobody_leave_the_best_slates():
    offsets, gains, items, tree, rows = population(300, 5, floor=0.0, ceiling=100.0)
    answer = solve_coupled(offsets, gains, items, tree, rows)
    assert np.array_equal(answer.chosen, solve_laminar(offsets, gains, items, tree).chosen)
    assert not answer.prices.any()
    none = PopulationRows(sparse.csc_array((0, len(tree.leaf_of_item))), np.zeros(0), np.zeros(0))
    assert np.array_equal(solve_coupled(offsets, gains, items, tree, none).chosen, answer.chosen)


def test_prices_are_what_a_bound_is_worth():
    offsets, gains, items, tree, rows = population(3_000, 6)
    answer = solve_coupled(offsets, gains, items, tree, rows, gap=1e-8)
    for c in np.flatnonzero(np.abs(answer.prices) > 0.05):
        lower, upper = rows.lower.copy(), rows.upper.copy()
        (upper if answer.prices[c] > 0 else lower)[c] += 20
        moved = solve_coupled(
            offsets, gains, items, tree, PopulationRows(rows.coefficients, lower, upper), gap=1e-8
        )
        assert moved.objective - answer.objective == pytest.approx(20 * answer.prices[c], rel=0.05)
    # Complementary slackness: a price other than 0 stands at a bound that is met exactly.
    assert (answer.loads[answer.prices > 1e-2] == rows.upper[answer.prices > 1e-2]).all()
    assert (answer.loads[answer.prices < -1e-2] == rows.lower[answer.prices < -1e-2]).all()


def test_warm_start_is_as_good_and_takes_fewer_evaluations():
    offsets, gains, items, tree, rows = population(6_000, 12)
    cold = solve_coupled(offsets, gains, items, tree, rows)
    upper = rows.upper.copy()
    upper[0] += 50
    changed = PopulationRows(rows.coefficients, rows.lower, upper)
    warm = solve_coupled(offsets, gains, items, tree, changed, warm=cold)
    again = solve_coupled(offsets, gains, items, tree, changed)
    assert warm.satisfied
    assert warm.gap <= 1e-4
    assert warm.objective == pytest.approx(again.objective, rel=1e-4)
    assert warm.evaluations < again.evaluations
    assert cold.objective <= warm.objective
    with pytest.raises(SpecificationError, match="same candidates"):
        solve_coupled(offsets, gains.copy(), items, tree, changed, warm=cold)


def test_ties_everywhere():
    offsets, gains, items, tree, rows = population(400, 8)
    answer = solve_coupled(offsets, np.ones_like(gains), items, tree, rows)
    assert answer.satisfied
    assert answer.objective == tree.k * answer.feasible.sum()
    assert answer.gap == pytest.approx(0.0, abs=1e-9)


def test_all_candidates_are_needed():
    tree = LaminarTree.partition(np.zeros(3, int), [0], [3], 3)
    rows = PopulationRows.groups(np.array([0, 0, 1]), [4, 2], [4, 2])
    answer = solve_coupled(
        np.array([0, 3, 6]), np.array([3.0, 2, 1, 3, 2, 1]), np.array([0, 1, 2] * 2), tree, rows
    )
    assert answer.satisfied
    assert answer.objective == 12.0


def test_one_user():
    tree = LaminarTree.partition(np.zeros(4, int), [0], [2], 2)
    rows = PopulationRows.groups(np.array([0, 0, 1, 1]), [0, 1], [2, 2])
    answer = solve_coupled(np.array([0, 4]), np.array([4.0, 3, 2, 1]), np.arange(4), tree, rows)
    assert answer.chosen.tolist() == [[0, 2]]
    assert answer.bound == pytest.approx(6.0)


def test_nobody():
    tree = LaminarTree.partition(np.zeros(2, int), [0], [2], 2)
    no_rows = np.zeros(0), np.zeros(0, np.int32), tree
    idle = PopulationRows.groups(np.array([0, 1]), [0, 0], [2, 2])
    assert solve_coupled(np.array([0]), *no_rows, idle).satisfied
    asked = PopulationRows.groups(np.array([0, 1]), [0, 1], [2, 2])
    answer = solve_coupled(np.array([0, 0]), *no_rows, asked)  # one user without candidates
    assert not answer.satisfied
    assert np.flatnonzero(answer.ray).tolist() == [1]


class TestContradictions:
    """Rows that cannot be met are proven so, and named."""

    def rows_of(self, lower, upper):
        offsets, gains, items, tree, rows = population(500, 4, floor=0.0, ceiling=100.0)
        assert solve_laminar(offsets, gains, items, tree).feasible.sum() == 499  # 2,495 shows
        for c, value in lower.items():
            rows.lower[c] = value
        for c, value in upper.items():
            rows.upper[c] = value
        answer = solve_coupled(offsets, gains, items, tree, rows)
        if answer.ray is None:
            assert answer.satisfied
            return None
        assert not answer.satisfied
        assert answer.bound < 0.0
        return np.flatnonzero(answer.ray).tolist()

    def test_floors_above_all_places(self):
        assert self.rows_of({0: 1300, 2: 1196}, {}) == [0, 2]
        assert self.rows_of({0: 1000, 2: 800}, {}) is None

    def test_ceilings_below_all_places(self):
        assert self.rows_of({}, {0: 600, 1: 600, 2: 600, 3: 694}) == [0, 1, 2, 3]
        assert self.rows_of({}, {0: 695, 1: 600, 2: 600, 3: 600}) is None

    def test_a_group_that_too_few_candidates_have(self):
        assert self.rows_of({3: 2_400}, {}) == [3]

    def test_a_floor_that_no_candidate_can_serve(self):
        offsets, gains, items, tree, _ = population(50, 4)
        empty = PopulationRows.groups(np.zeros(400, int), [0, 1], [np.inf, np.inf])
        answer = solve_coupled(offsets, gains, items, tree, empty)
        assert np.flatnonzero(answer.ray).tolist() == [1]

    def test_a_ray_is_a_proof(self):
        offsets, gains, items, tree, rows = population(300, 6, floor=1.05, ceiling=1.5)
        answer = solve_coupled(offsets, gains, items, tree, rows)
        asked = Oracle(offsets, np.zeros_like(gains), items, tree)
        # No slates reach what the multipliers ask of them: the most they can is less than 0.
        most = asked.best(rows.coefficients.T @ answer.ray).value
        assert most + dual.price_of_bounds(answer.ray, rows).sum() < 0.0


def test_time_that_is_up_yields_slates_and_a_valid_bound():
    problem = population(3_000, 12)
    answer = solve_coupled(*problem, time_limit=0.0)
    exact = solve_coupled(*problem)
    assert (answer.chosen[answer.feasible] >= 0).all()
    assert answer.ray is None
    assert answer.bound >= exact.objective


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        ([2.0], [1.0], "row 0 must lie between 2.0 and 1.0"),
        ([np.nan], [1.0], "row 0"),
        ([np.inf], [np.inf], "row 0"),
        ([0.0, 0.0], [1.0], "one of each"),
    ],
)
def test_bad_rows_are_refused(lower, upper, message):
    with pytest.raises(SpecificationError, match=message):
        PopulationRows(sparse.csc_array(np.ones((1, 3))), np.array(lower), np.array(upper))


def test_coefficients_that_are_no_numbers_are_refused():
    with pytest.raises(SpecificationError, match="not finite"):
        PopulationRows(sparse.csc_array(np.array([[np.nan, 1.0]])), np.zeros(1), np.ones(1))


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf, 1e303])
def test_gains_that_break_the_proof_are_refused(bad):
    tree = LaminarTree.partition(np.zeros(2, int), [0], [1], 1)
    rows = PopulationRows.groups(np.array([0, 1]), [0, 0], [1, 1])
    gains = np.array([1.0, bad]) if not bad > 1 else np.array([bad, 1.0])
    with pytest.raises(SpecificationError, match="finite with room"):
        solve_coupled(np.array([0, 2]), gains, np.arange(2), tree, rows)
