import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from test_route_coupled import population, random_instance, random_rows

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes.covering import solve_covering
from recsys_budget.rerank.routes.laminar import solve_laminar
from recsys_budget.rerank.routes.rows import PopulationRows


def by_milp(offsets, gains, items, tree, rows, fixed, feasible, at_least):
    """The optimum with a binary variable an item: shown or not."""
    n, n_items = len(gains), len(tree.leaf_of_item)
    above = [[v] for v in range(len(tree.parent))]
    for v in range(1, len(above)):
        above[v] += above[tree.parent[v]]
    lines, low, high = [], [], []
    for user in np.flatnonzero(feasible):
        for v in range(len(tree.parent)):
            line = np.zeros(n + n_items)
            for row in range(offsets[user], offsets[user + 1]):
                line[row] = v in above[tree.leaf_of_item[items[row]]]
            lines.append(line)
            low.append(tree.lower[v])
            high.append(tree.upper[v])
    active = np.repeat(feasible, np.diff(offsets)).astype(float)
    for c, line in enumerate(rows.coefficients.toarray()):
        lines.append(np.concatenate([line[items] * active, np.zeros(n_items)]))
        low.append(rows.lower[c])
        high.append(rows.upper[c])
    for item in range(n_items):  # shown only if some slate has it
        line = np.zeros(n + n_items)
        line[:n][items == item] = active[items == item]
        line[n + item] = -1
        lines.append(line)
        low.append(0)
        high.append(np.inf)
    lines.append(np.concatenate([np.zeros(n), np.ones(n_items)]))
    low.append(at_least)
    high.append(np.inf)
    answer = milp(
        np.concatenate([-gains * active, np.zeros(n_items)]),
        constraints=LinearConstraint(np.array(lines), low, high),
        integrality=np.ones(n + n_items),
        bounds=Bounds(
            np.concatenate([(fixed > 0) * active, np.zeros(n_items)]),
            np.concatenate([(fixed >= 0) * active, np.ones(n_items)]),
        ),
        options={"mip_rel_gap": 0.0},
    )
    return -answer.fun if answer.status == 0 else None


def test_never_better_than_one_integer_program_and_seldom_worse():
    found, optimal, possible = 0, 0, 0
    for seed in range(120):
        offsets, gains, items, tree, fixed = random_instance(seed, n_users=4)
        feasible = solve_laminar(offsets, gains, items, tree, fixed=fixed).feasible
        rows = random_rows(seed, tree, "groups", tree.k * int(feasible.sum()))
        if seed % 2:
            rows = PopulationRows(sparse.csc_array((0, len(tree.leaf_of_item))), np.zeros(0), np.zeros(0))
        at_least = int(np.random.default_rng(seed).integers(3, 9))
        answer = solve_covering(offsets, gains, items, tree, rows, at_least, fixed=fixed, gap=1e-6)
        best = by_milp(offsets, gains, items, tree, rows, fixed, feasible, at_least)
        if best is None:
            assert not answer.satisfied
            continue
        possible += 1
        assert best <= answer.bound + 1e-9
        shown = {
            int(items[offsets[user] + row])
            for user in np.flatnonzero(feasible)
            for row in answer.chosen[user]
        }
        assert answer.loads[-1] == len(shown)
        assert answer.violations[-1] == max(0, at_least - len(shown))
        if answer.satisfied:
            found += 1
            assert len(shown) >= at_least
            assert answer.objective <= best + 1e-9
            optimal += answer.objective == pytest.approx(best, rel=1e-6)
    assert possible > 40
    assert found >= 0.9 * possible
    assert optimal >= 0.8 * possible


def test_many_users_show_the_catalogue():
    offsets, gains, items, tree, rows = population(3_000, 6)
    # Gains that follow popularity, so that half of the items are shown to nobody without the rule.
    popularity = np.random.default_rng(1).gamma(0.5, size=400)
    gains = popularity[items] + 0.02 * gains
    order = np.concatenate([start + np.argsort(-gains[start : start + 40]) for start in offsets[:-1]])
    gains, items = gains[order], items[order]
    free = solve_covering(offsets, gains, items, tree, rows, 0)
    asked = int(free.loads[-1]) + 60
    assert asked < 380
    answer = solve_covering(offsets, gains, items, tree, rows, asked)
    assert answer.satisfied
    assert answer.loads[-1] >= asked
    assert answer.objective < free.objective
    assert 0.0 <= answer.gap <= 1e-4
    assert answer.prices[-1] < 0.0


def test_more_items_than_there_are():
    offsets, gains, items, tree, rows = population(50, 2)
    answer = solve_covering(offsets, gains, items, tree, rows, 401)
    assert not answer.satisfied
    assert answer.bound < 0.0
    assert np.flatnonzero(answer.ray).tolist() == [2]
    with pytest.raises(SpecificationError, match="0 or more"):
        solve_covering(offsets, gains, items, tree, rows, -1)
