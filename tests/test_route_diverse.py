"""The diverse route against every slate one by one, the cvxpy meaning, and its own interpreted twin."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank import EngagementDiversity, Reranker
from recsys_budget.rerank.routes import diverse as route
from recsys_budget.rerank.routes.diverse import DiverseSlates, solve_diverse
from recsys_budget.rerank.routes.laminar import LaminarTree, solve_laminar


@dataclass(frozen=True)
class Case:
    """Users with few enough candidates to try every slate."""

    offsets: NDArray[np.int64]
    gains: NDArray[np.float64]
    items: NDArray[np.intp]
    tree: LaminarTree
    factors: NDArray[np.float64]
    curvature: float
    linear: NDArray[np.float64]
    fixed: NDArray[np.int8]

    def solve(self, **options: Any) -> DiverseSlates:
        return solve_diverse(
            self.offsets, self.gains, self.items, self.tree, self.factors, self.curvature, self.linear,
            fixed=self.fixed, **options,
        )  # fmt: skip

    def user(self, u: int) -> Case:
        rows = slice(self.offsets[u], self.offsets[u + 1])
        return replace(
            self,
            offsets=np.array([0, rows.stop - rows.start]),
            gains=self.gains[rows],
            items=self.items[rows],
            fixed=self.fixed[rows],
        )

    def value(self, u: int, slate: tuple[int, ...]) -> float:
        """Straight from the definition."""
        rows = self.offsets[u] + np.array(slate)
        items = self.items[rows]
        z = self.factors[items].sum(axis=0)
        return float(self.gains[rows].sum() + self.linear[items].sum() - self.curvature * (z @ z))

    def rounding(self, u: int) -> float:
        """What the route promises where no gap is asked for: 3e-12 of the largest sum of a slate."""
        rows = slice(self.offsets[u], self.offsets[u + 1])
        items, k = self.items[rows], self.tree.k
        longest = np.linalg.norm(self.factors[items], axis=1).max()
        return (
            1e-12
            * 3
            * float(
                k * np.abs(self.gains[rows] + self.linear[items]).max() + self.curvature * (k * longest) ** 2
            )
        )

    def slates(self, u: int) -> list[tuple[int, ...]]:
        """Every slate within the quotas, from the words of the tree."""
        n, tree = int(self.offsets[u + 1] - self.offsets[u]), self.tree
        found = []
        for slate in itertools.combinations(range(n), tree.k):
            counts = np.zeros(len(tree.parent), np.int64)
            rows = self.offsets[u] + np.array(slate)
            for leaf in tree.leaf_of_item[self.items[rows]]:
                node = int(leaf)
                while node >= 0:
                    counts[node] += 1
                    node = int(tree.parent[node])
            marks = self.fixed[self.offsets[u] : self.offsets[u + 1]]
            if (
                (tree.leaf_of_item[self.items[rows]] >= 0).all()
                and (counts >= tree.lower).all()
                and (counts <= tree.upper).all()
                and set(np.flatnonzero(marks == 1)) <= set(slate)
                and not set(np.flatnonzero(marks == -1)) & set(slate)
            ):
                found.append(slate)
        return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, m, n_items = draw(st.integers(1, 4)), draw(st.integers(1, 4)), 12
    tied = draw(st.booleans())
    inner = draw(st.booleans())  # leaves 2 and 3 beneath node 1, leaf 4 beneath the root
    parent = np.array([-1, 0, 1, 1, 0] if inner else [-1, 0, 0, 0])
    lower = np.concatenate([[k], rng.choice([0, 0, 0, 1, 2], len(parent) - 1)])
    upper = np.concatenate([[k], rng.choice([1, 2, k, k], len(parent) - 1)])
    leaf = rng.integers(-1 if draw(st.booleans()) else 1, len(parent), n_items)
    if draw(st.booleans()):
        factors = (rng.random((n_items, m)) < 0.5).astype(float)
        factors /= np.maximum(1.0, np.sqrt(factors.sum(axis=1, keepdims=True)))
    else:  # dense, of both signs
        factors = rng.normal(size=(n_items, m))
    gains, items, sizes = [], [], []
    for _ in range(3):
        n = int(rng.integers(0, 10))
        gain = rng.integers(0, 3, n) / 4.0 if tied else rng.random(n)
        gains.append(-np.sort(-gain))
        items.append(rng.choice(n_items, n, replace=False))
        sizes.append(n)
    fixed = rng.choice([0, 0, 0, 0, 0, 1, -1], sum(sizes)) * draw(st.booleans())
    return Case(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        gains=np.concatenate(gains),
        items=np.concatenate(items).astype(np.intp),
        tree=LaminarTree(leaf, parent, lower, upper),
        factors=factors,
        curvature=draw(st.sampled_from([0.0, 0.02, 0.2, 1.0, 5.0])),
        linear=np.zeros(n_items) if tied else rng.normal(size=n_items),
        fixed=fixed.astype(np.int8),
    )


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.0, 1e-3, 0.1]), st.sampled_from([1, 3, 500]))
def test_every_slate_tried(case: Case, gap: float, nodes: int) -> None:
    found = case.solve(gap=gap, nodes=nodes)
    for u in range(len(case.offsets) - 1):
        possible = case.slates(u)
        assert found.feasible[u] == bool(possible)
        if not possible:
            assert (found.chosen[u] == -1).all()
            assert np.isnan([found.objective[u], found.bound[u]]).all()
            continue
        slate = tuple(found.chosen[u].tolist())
        assert slate in possible  # ascending as well
        optimum = max(case.value(u, other) for other in possible)
        assert found.objective[u] == pytest.approx(case.value(u, slate), abs=1e-11)
        assert found.bound[u] >= max(optimum, found.objective[u])
        if nodes == 500:  # enough for all slates of nine candidates
            assert found.bound[u] - found.objective[u] <= gap * abs(found.objective[u]) + case.rounding(u)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_batch_equals_single(case: Case) -> None:
    batch = case.solve(threads=2)
    for u in range(len(case.offsets) - 1):
        single = case.user(u).solve()
        for name in vars(batch):
            np.testing.assert_array_equal(getattr(batch, name)[u : u + 1], getattr(single, name))


def generated(n_users: int, *, n: int = 60, k: int = 6, weight: float = 0.4) -> Case:
    """Overlapping categories, as the language writes engagement and diversity for this route."""
    rng, m, n_items = np.random.default_rng(7), 8, 300
    member = rng.random((n_items, m)) < 0.2
    member[np.arange(n_items), rng.integers(0, m, n_items)] = True
    factors = member / np.sqrt(member.sum(axis=1, keepdims=True))
    gains = -np.sort(-rng.gamma(2.0, size=(n_users, n)), axis=1)
    gains *= (1 - weight) / gains[:, :k].sum(axis=1, keepdims=True)
    lower, upper = np.zeros(m, np.int64), np.full(m, k)
    lower[[1, 2]], upper[0] = 1, 2
    curvature = weight / (k * (k - 1))
    return Case(
        offsets=np.arange(n_users + 1) * n,
        gains=gains.ravel(),
        items=np.concatenate([rng.choice(n_items, n, replace=False) for _ in range(n_users)]),
        tree=LaminarTree.partition(member.argmax(axis=1), lower, upper, k),
        factors=factors,
        curvature=curvature,
        linear=weight / k + curvature * np.square(factors).sum(axis=1),
        fixed=np.zeros(n_users * n, np.int8),
    )


def test_interpreted_and_compiled_agree_bit_for_bit(tmp_path: Path) -> None:
    answers = []
    for disabled in "01":
        out = tmp_path / f"{disabled}.npz"
        program = (
            "import sys, numpy as np\n"
            "sys.path.insert(0, sys.argv[1])\n"
            "from test_route_diverse import generated\n"
            "np.savez(sys.argv[2], **vars(generated(12).solve(gap=1e-4)))\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(out)],
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
        answers.append(np.load(out))
    for name in answers[0].files:
        np.testing.assert_array_equal(answers[0][name], answers[1][name])


def test_agrees_with_the_integer_programs_of_the_language() -> None:
    """Quotas on categories are laminar where each item has one, so that cvxpy means this problem."""
    rng, n, k, weight = np.random.default_rng(3), 30, 5, 0.5
    names = ["a", "b", "c", "d"]
    category = rng.integers(0, 4, n)
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": [f"i{j}" for j in range(n)], "categories": [names[c] for c in category]}),
        category_names=names,
    )
    relevance = -np.sort(-rng.gamma(2.0, size=n))
    frame = pd.DataFrame({"user": "u", "item": [f"i{j}" for j in range(n)], "relevance": relevance})
    rules = [SlateSize(k), CategoryMinimum("a", 1), CategoryMaximum("b", 1)]
    theirs = Reranker(EngagementDiversity(weight), rules, gap=1e-6, max_solves=30).rerank(
        frame, catalogue, progress=False
    )
    pairs = k * (k - 1)
    ours = solve_diverse(
        np.array([0, n]),
        (1 - weight) * relevance / relevance[:k].sum(),
        np.arange(n),
        LaminarTree.partition(category, np.array([1, 0, 0, 0]), np.array([k, 1, k, k]), k),
        sparse.csr_array(np.eye(4)[category]),
        weight / pairs,
        np.full(n, weight / k + weight / pairs),
        gap=0.0,
    )
    assert ours.objective[0] == pytest.approx(ours.bound[0], abs=1e-10)
    assert theirs.certificate.objective <= ours.bound[0] + 1e-9
    assert theirs.certificate.bound >= ours.objective[0] - 2e-6


def test_without_curvature_it_is_the_laminar_route() -> None:
    case = replace(generated(20), curvature=0.0, linear=np.zeros(300))
    found = case.solve(gap=0.0)
    exact = solve_laminar(case.offsets, case.gains, case.items, case.tree)
    np.testing.assert_array_equal(found.chosen, exact.chosen)
    np.testing.assert_allclose(found.bound, exact.objective, rtol=1e-10)


def test_more_nodes_never_loosen_the_gap_asked_for() -> None:
    case = generated(30, weight=0.8)
    few, many = case.solve(gap=1e-3, nodes=1), case.solve(gap=1e-3, nodes=5000)
    assert (many.bound - many.objective <= 1e-3 * many.objective + 1e-12).all()
    assert (few.bound >= many.objective).all()
    assert (many.bound >= few.objective).all()
    assert few.visited.max() == 1
    assert many.visited.max() > 1


def test_alike_candidates_break_ties_by_row() -> None:
    n, k = 12, 4
    found = solve_diverse(
        np.array([0, n]), np.ones(n), np.arange(n), LaminarTree(np.zeros(n), [-1], [k], [k]),
        np.eye(2)[np.arange(n) % 2], 0.5,
    )  # fmt: skip
    assert found.chosen[0].tolist() == [0, 1, 2, 3]
    assert found.visited[0] < 500


def test_all_candidates_or_none_too_many() -> None:
    case = generated(2, n=6, k=6)
    free = LaminarTree(np.zeros(300), [-1], [6], [6])
    whole = replace(case, tree=free).solve()
    assert whole.chosen.tolist() == [list(range(6))] * 2
    short = replace(case, tree=LaminarTree(np.zeros(300), [-1], [7], [7])).solve()
    assert not short.feasible.any()


def test_a_time_limit_leaves_every_user_a_slate_and_a_bound() -> None:
    case = generated(40, weight=0.9)
    hurried, patient = case.solve(gap=0.0, time_limit=0.0), case.solve(gap=0.0)
    assert hurried.feasible.all()
    assert hurried.visited.max() == 1
    assert (hurried.bound >= patient.objective).all()
    assert (hurried.objective <= patient.bound).all()


def test_large_numbers_keep_their_bound() -> None:
    case = generated(5)
    scaled = replace(
        case, gains=case.gains * 1e150, curvature=case.curvature * 1e150, linear=case.linear * 1e150
    )
    plain, large = case.solve(), scaled.solve()
    np.testing.assert_array_equal(plain.chosen, large.chosen)
    np.testing.assert_allclose(large.bound, plain.bound * 1e150, rtol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"curvature": -1.0},
        {"curvature": np.nan},
        {"factors": np.full((300, 8), np.inf)},
        {"factors": np.ones((299, 8))},
        {"linear": np.full(300, np.nan)},
        {"linear": np.zeros(299)},
    ],
)
def test_bad_numbers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        replace(generated(1), **change).solve()


@pytest.mark.parametrize("options", [{"gap": -0.1}, {"gap": np.nan}, {"nodes": 0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        generated(1).solve(**options)


def test_the_number_of_threads_changes_nothing() -> None:
    case = generated(3 * route.BLOCK)
    one, two = case.solve(threads=1), case.solve(threads=2)
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def hard(n_users: int) -> Case:
    """Users whose relaxation is far from integer: factors of both signs against gains that hardly differ."""
    rng, n, k, m, n_items = np.random.default_rng(13), 14, 5, 6, 100
    lower, upper = np.array([0, 1, 0]), np.array([3, 5, 2])
    return Case(
        offsets=np.arange(n_users + 1) * n,
        gains=-np.sort(-rng.random((n_users, n)), axis=1).ravel(),
        items=np.concatenate([rng.choice(n_items, n, replace=False) for _ in range(n_users)]),
        tree=LaminarTree.partition(np.arange(n_items) % 3, lower, upper, k),
        factors=rng.normal(size=(n_items, m)),
        curvature=0.3,
        linear=rng.random(n_items),
        fixed=np.zeros(n_users * n, np.int8),
    )


def test_bounds_hold_and_optima_are_found_where_the_relaxation_is_loose() -> None:
    case = hard(60)
    slates = [case.slates(u) for u in range(60)]
    optimum = np.array([max(case.value(u, s) for s in slates[u]) for u in range(60)])
    visited = []
    for nodes in (1, 2, 5, 500):
        found = case.solve(gap=0.0, nodes=nodes)
        assert (found.bound >= optimum).all()
        assert (found.objective <= optimum + 1e-9).all()
        visited.append(found.visited)
    np.testing.assert_allclose(found.objective, optimum, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(found.bound, optimum, rtol=0.0, atol=1e-9)
    assert np.mean(visited[-1] > 5) > 0.3  # otherwise this tests little


def bound_at_one_point(case: Case, u: int, nodes: int = 1) -> float:
    return float(case.user(u).solve(nodes=nodes).bound[0])


@pytest.mark.parametrize("weight", [0.7, 0.9, 1.0])
def test_where_diversity_weighs_most_every_bound_holds_and_few_are_loose(weight: float) -> None:
    case = generated(6, n=16, k=4, weight=weight)
    for u in range(6):
        optimum = max(case.value(u, slate) for slate in case.slates(u))
        for nodes in (1, 2, 5):
            bound = bound_at_one_point(case, u, nodes)
            # No slate of four has a diversity above 1, and a tangent alone says 1.05.
            assert optimum <= bound <= min(1.0 + 1e-9, 1.06 * optimum)


@pytest.mark.parametrize("weight", [0.9, 1.0])
def test_bounds_of_slates_of_ten_stay_close_where_diversity_weighs_most(weight: float) -> None:
    found = generated(40, n=100, k=8, weight=weight).solve(gap=1e-3, nodes=60)
    assert float(np.mean(1.0 - found.objective / found.bound)) < 0.01


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1.0, 0.5, 0.25, 0.75]), min_size=1, max_size=12), st.integers(1, 4))
def test_what_slates_can_sum_to(values: list[float], k: int) -> None:
    bars, lists, first, sums = route.attainable(sparse.csr_array(np.array(values)[:, None]), k)
    different = sorted(set(values))
    assert first.tolist() == [0, len(different) + 1]
    for t in range(len(different) + 1):
        expected = {
            sum(some)
            for size in range(k + 1)
            for some in itertools.combinations_with_replacement(different[:t], size)
        }
        assert sums[lists[t] : lists[t + 1]].tolist() == sorted(expected)[: route.SUMS]
        assert bars[t] == (different[t - 1] / 2 if t else -np.inf)


def test_factors_below_zero_or_of_many_values_have_no_list() -> None:
    rng = np.random.default_rng(0)
    factors = np.column_stack([rng.random(20), -np.ones(20), np.ones(20)])
    _, _, first, _ = route.attainable(sparse.csr_array(factors), 3)
    assert first.tolist() == [0, 0, 0, 2]
