"""The exposure route against linear programs over all rankings and over doubly stochastic matrices."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import exposure as route
from recsys_budget.rerank.routes.exposure import ExposureRankings, solve_exposure
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar

N_ITEMS = 12


@dataclass(frozen=True)
class Case:
    offsets: NDArray[np.int64]
    gains: NDArray[np.float64]
    items: NDArray[np.intp]
    tree: LaminarTree
    group: NDArray[np.int64]
    discount: NDArray[np.float64]
    ratio: tuple[Any, Any]

    def solve(self, **options: Any) -> ExposureRankings:
        return solve_exposure(
            self.offsets, self.gains, self.items, self.tree, self.group, self.discount, ratio=self.ratio,
            **options,
        )  # fmt: skip

    def rows(self, u: int) -> slice:
        return slice(self.offsets[u], self.offsets[u + 1])

    def averages(self, u: int, ranking: tuple[int, ...]) -> NDArray[np.float64]:
        """Average exposure of both groups; 0 for one without candidates."""
        items = self.items[self.rows(u)]
        allowed = self.tree.leaf_of_item[items] >= 0
        sums = np.zeros(2)
        for place, row in enumerate(ranking):
            if self.group[items[row]] >= 0:
                sums[self.group[items[row]]] += self.discount[place]
        return sums / np.maximum([(allowed & (self.group[items] == g)).sum() for g in (0, 1)], 1)

    def applies(self, u: int) -> bool:
        items = self.items[self.rows(u)]
        present = self.group[items][self.tree.leaf_of_item[items] >= 0]
        return bool((present == 0).any() and (present == 1).any())

    def rankings(self, u: int) -> list[tuple[int, ...]]:
        """Every ranking within the quotas."""
        items, tree, found = self.items[self.rows(u)], self.tree, []
        for ranking in itertools.permutations(range(len(items)), tree.k):
            counts = np.zeros(len(tree.parent), np.int64)
            leaves = tree.leaf_of_item[items[list(ranking)]]
            for leaf in leaves:
                counts[leaf] += 1
            counts[0] = tree.k  # leaves lie directly beneath the root here
            if (leaves >= 0).all() and (counts >= tree.lower).all() and (counts <= tree.upper).all():
                found.append(ranking)
        return found

    def optimum(self, u: int) -> float | None:
        """Best mixture of all rankings, by a linear program with a column a ranking."""
        rankings = self.rankings(u)
        if not rankings:
            return None
        gain = self.gains[self.rows(u)]
        values = np.array([self.discount @ gain[list(r)] for r in rankings])
        if not self.applies(u):
            return float(values.max())
        shown = np.array([self.averages(u, r) for r in rankings])
        low, high = self.ratio
        rules = [low * shown[:, 1] - shown[:, 0]]
        if high < np.inf:
            rules.append(shown[:, 0] - high * shown[:, 1])
        found = linprog(
            -values,
            A_ub=np.array(rules),
            b_ub=np.zeros(len(rules)),
            A_eq=np.ones((1, len(values))),
            b_eq=[1.0],
        )
        return -found.fun if found.status == 0 else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = draw(st.integers(1, 3))
    tied, quotas = draw(st.booleans()), draw(st.booleans())
    if quotas:
        lower, upper = rng.choice([0, 0, 1], 3), rng.choice([1, 2, k], 3)
        tree = LaminarTree.partition(rng.integers(-1, 3, N_ITEMS), lower, np.maximum(lower, upper), k)
    else:
        tree = LaminarTree(np.zeros(N_ITEMS), [-1], [k], [k])
    gains, items, sizes = [], [], rng.integers(0, 7, 3)
    for n in sizes:
        gains.append(-np.sort(-(rng.integers(0, 3, n) / 2.0 if tied else rng.random(n))))
        items.append(rng.choice(N_ITEMS, n, replace=False))
    return Case(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        gains=np.concatenate(gains),
        items=np.concatenate(items).astype(np.intp),
        tree=tree,
        group=rng.integers(-1 if draw(st.booleans()) else 0, 2, N_ITEMS),
        discount=draw(st.sampled_from([np.ones(k), 1.0 / np.log2(np.arange(k) + 2.0), np.eye(k)[0]])),
        ratio=draw(st.sampled_from([(1.0, 1.0), (0.8, 1.25), (0.5, np.inf), (0.0, 0.7), (2.0, 3.0)])),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_mixture_of_rankings_is_better(case: Case) -> None:
    found = case.solve()
    for u in range(len(case.offsets) - 1):
        best = case.optimum(u)
        assert found.feasible[u] == (best is not None)
        if best is None:
            assert (found.rankings[u] == -1).all()
            assert np.isnan([found.objective[u], found.probability[u], found.violation[u]]).all()
            continue
        allowed = set(case.rankings(u))
        first, second = (tuple(r.tolist()) for r in found.rankings[u])
        chance = found.probability[u]
        assert {first, second} <= allowed
        assert 0.0 <= chance <= 1.0
        assert found.objective[u] == pytest.approx(best, abs=1e-7)
        assert found.bound[u] >= max(found.objective[u], best - 1e-9)
        assert found.bound[u] <= found.objective[u] + 1e-9
        shown = chance * case.averages(u, first) + (1.0 - chance) * case.averages(u, second)
        low, high = case.ratio
        if case.applies(u):
            np.testing.assert_allclose(found.exposure[u], shown, atol=1e-12)
            assert low * shown[1] <= shown[0] + 1e-9
            assert high == np.inf or shown[0] <= high * shown[1] + 1e-9
            assert found.violation[u] <= 1e-9
        else:
            assert first == second


@settings(max_examples=25, deadline=None)
@given(cases())
def test_batch_equals_single(case: Case) -> None:
    batch = case.solve(threads=2)
    for u in range(len(case.offsets) - 1):
        rows = case.rows(u)
        single = replace(
            case,
            offsets=np.array([0, rows.stop - rows.start]),
            gains=case.gains[rows],
            items=case.items[rows],
        ).solve()
        for name in vars(batch):
            np.testing.assert_array_equal(getattr(batch, name)[u : u + 1], getattr(single, name))


def generated(n_users: int, *, n: int = 40, k: int = 8) -> Case:
    """A smaller group of which the candidates are less relevant."""
    rng, n_items = np.random.default_rng(5), 200
    group = (rng.random(n_items) < 0.7).astype(np.int64)
    items = np.stack([rng.choice(n_items, n, replace=False) for _ in range(n_users)])
    gains = rng.gamma(2.0, size=(n_users, n)) * np.where(group[items] == 0, 0.6, 1.0)
    order = np.argsort(-gains, axis=1, kind="stable")
    return Case(
        offsets=np.arange(n_users + 1) * n,
        gains=np.take_along_axis(gains, order, axis=1).ravel(),
        items=np.take_along_axis(items, order, axis=1).ravel(),
        tree=LaminarTree(np.zeros(n_items), [-1], [k], [k]),
        group=group,
        discount=1.0 / np.log2(np.arange(k) + 2.0),
        ratio=(1.0, 1.0),
    )


def test_no_doubly_stochastic_matrix_is_better() -> None:
    """The problem as Singh and Joachims write it, with places beyond the slate worth nothing."""
    case, n, k = generated(4, n=20, k=5), 20, 5
    found = case.solve()
    for u in range(4):
        gain, group = case.gains[case.rows(u)], case.group[case.items[case.rows(u)]]
        matrix = cp.Variable((n, n), nonneg=True)
        places = np.concatenate([case.discount, np.zeros(n - k)])
        shown = matrix @ places
        fair = shown @ ((group == 0) / (group == 0).sum() - (group == 1) / (group == 1).sum()) == 0
        problem = cp.Problem(
            cp.Maximize(gain @ shown), [cp.sum(matrix, axis=0) == 1, cp.sum(matrix, axis=1) == 1, fair]
        )
        problem.solve(solver=cp.HIGHS)
        assert found.objective[u] == pytest.approx(problem.value, rel=1e-7)
        assert 0.0 < found.probability[u] < 1.0


def test_the_price_is_the_slope_of_the_objective() -> None:
    """A slightly higher ratio costs the price times the second group's exposure, to first order."""
    case, step = generated(10), 1e-6
    found, tighter = case.solve(), replace(case, ratio=(1.0 + step, 1.0 + step)).solve()
    slope = (found.objective - tighter.objective) / step
    np.testing.assert_allclose(slope, found.price * found.exposure[:, 1], rtol=1e-3)
    assert (found.price > 0.0).all()


def test_a_rule_that_holds_anyway_changes_nothing() -> None:
    case = generated(5)
    found = replace(case, ratio=(0.0, np.inf)).solve()
    plain = solve_laminar(case.offsets, case.gains, case.items, case.tree, discount=case.discount)
    np.testing.assert_array_equal(found.rankings[:, 0], plain.chosen)
    np.testing.assert_array_equal(found.rankings[:, 1], plain.chosen)
    np.testing.assert_allclose(found.objective, plain.objective)
    assert (found.price == 0.0).all()
    assert (found.probability == 1.0).all()


def test_ratios_may_differ_between_users() -> None:
    case = generated(3)
    ratios = np.array([0.5, 1.0, 1.5])
    together = replace(case, ratio=(ratios, ratios)).solve()
    for u, ratio in enumerate(ratios):
        alone = replace(case, ratio=(ratio, ratio)).solve()
        np.testing.assert_array_equal(together.rankings[u], alone.rankings[u])
        shown = together.exposure[u]
        assert shown[0] == pytest.approx(ratio * shown[1])


def test_interpreted_and_compiled_agree_bit_for_bit(tmp_path: Path) -> None:
    answers = []
    for disabled in "01":
        out = tmp_path / f"{disabled}.npz"
        program = (
            "import sys, numpy as np\n"
            "sys.path.insert(0, sys.argv[1])\n"
            "from test_route_exposure import generated\n"
            "np.savez(sys.argv[2], **vars(generated(12).solve()))\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(out)],
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
        answers.append(np.load(out))
    for name in answers[0].files:
        np.testing.assert_array_equal(answers[0][name], answers[1][name])


def test_the_number_of_threads_changes_nothing() -> None:
    case = generated(2 * route.BLOCK + 1)
    one, two = case.solve(threads=1), case.solve(threads=2)
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(
    "change",
    [
        {"discount": np.ones(7)},
        {"discount": np.arange(8.0)},
        {"discount": -np.ones(8)},
        {"discount": np.full(8, np.nan)},
        {"ratio": (1.0, 0.5)},
        {"ratio": (-1.0, 1.0)},
        {"ratio": (np.nan, 1.0)},
        {"ratio": (np.inf, np.inf)},
        {"group": np.full(200, 2)},
        {"group": np.zeros(199)},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        replace(generated(1), **change).solve()
