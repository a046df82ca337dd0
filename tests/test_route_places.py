import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from test_route_coupled import population, random_instance, random_rows, same

from recsys_budget.rerank.routes import laminar, oracle
from recsys_budget.rerank.routes.coupled import solve_coupled
from recsys_budget.rerank.routes.laminar import solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows


def by_milp(offsets, gains, items, tree, rows, fixed, feasible, discount):
    """The optimum with a binary variable for each row and place."""
    n, k = len(gains), tree.k
    above = [[v] for v in range(len(tree.parent))]
    for v in range(1, len(above)):
        above[v] += above[tree.parent[v]]
    lines, low, high = [], [], []

    def rule(line, least, most):
        lines.append(line.ravel())
        low.append(least)
        high.append(most)

    for user in np.flatnonzero(feasible):
        own = range(offsets[user], offsets[user + 1])
        for v in range(len(tree.parent)):
            line = np.zeros((n, k))
            for row in own:
                line[row] = v in above[tree.leaf_of_item[items[row]]]
            rule(line, tree.lower[v], tree.upper[v])
        for place in range(k):
            line = np.zeros((n, k))
            line[list(own), place] = 1
            rule(line, 1, 1)
        for row in own:
            line = np.zeros((n, k))
            line[row] = 1
            rule(line, fixed[row] > 0, fixed[row] >= 0)
    active = np.repeat(feasible, np.diff(offsets)).astype(float)
    for c, line in enumerate(rows.coefficients.toarray()):
        rule(np.outer(line[items] * active, discount), rows.lower[c], rows.upper[c])
    answer = milp(
        -np.outer(gains * active, discount).ravel(),
        constraints=LinearConstraint(np.array(lines, float), low, high),
        integrality=np.ones(n * k),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return -answer.fun if answer.status == 0 else None


@pytest.mark.parametrize("kind", ["groups", "costs"])
def test_agrees_with_one_integer_program(kind):
    seen = {"optimal": 0, "impossible": 0}
    for seed in range(70):
        offsets, gains, items, tree, fixed = random_instance(seed, ties=seed % 4 == 0, n_users=2)
        discount = 1.0 / np.log2(np.arange(2, tree.k + 2))
        feasible = solve_laminar(offsets, gains, items, tree, fixed=fixed).feasible
        whole = random_rows(seed, tree, kind, float(discount.sum()) * int(feasible.sum()))
        rows = PopulationRows(whole.coefficients, whole.lower - 0.2, whole.upper + 0.2)
        answer = solve_coupled(offsets, gains, items, tree, rows, fixed=fixed, discount=discount, gap=1e-9)
        best = by_milp(offsets, gains, items, tree, rows, fixed, feasible, discount)
        if best is None:
            assert not answer.satisfied
            seen["impossible"] += 1
            continue
        assert answer.satisfied
        assert best <= answer.bound + 1e-12
        assert answer.objective == pytest.approx(best, rel=1e-6)
        loads, total = np.zeros(len(rows.lower)), 0.0
        for user in np.flatnonzero(feasible):
            slate = offsets[user] + answer.chosen[user]
            assert len(set(slate)) == tree.k
            loads += rows.coefficients[:, items[slate]] @ discount
            total += discount @ gains[slate]
        assert answer.loads == pytest.approx(loads)
        assert answer.objective == pytest.approx(total)
        seen["optimal"] += 1
    assert seen["optimal"] > 25
    assert seen["impossible"] > 0 or kind == "costs"


def test_many_users_get_near_the_bound():
    offsets, gains, items, tree, rows = population(4_000, 8)
    discount = 1.0 / np.log2(np.arange(2, tree.k + 2))
    share = discount.sum() / tree.k
    rows = PopulationRows(rows.coefficients, share * rows.lower, share * rows.upper)
    answer = solve_coupled(offsets, gains, items, tree, rows, discount=discount)
    assert answer.satisfied
    assert 0.0 <= answer.gap <= 1e-4
    # Without rows, places follow gains.
    free = PopulationRows(sparse.csc_array((0, len(tree.leaf_of_item))), np.zeros(0), np.zeros(0))
    plain = solve_coupled(offsets, gains, items, tree, free, discount=discount)
    assert np.array_equal(plain.chosen, solve_laminar(offsets, gains, items, tree).chosen)
    assert plain.gap <= 1e-12


def test_numpy_and_compiled_agree_bit_for_bit(monkeypatch):
    if not laminar.COMPILED:
        pytest.skip("numba is not installed")
    problem = population(400, 6)
    discount = 0.8 ** np.arange(5)
    compiled = solve_coupled(*problem, discount=discount)
    monkeypatch.setattr(laminar, "COMPILED", False)
    monkeypatch.setattr(oracle, "COMPILED", False)
    assert same(compiled, solve_coupled(*problem, discount=discount))
