"""The direct route against every slate one by one, integer programs, and solvers that lie."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.routes import _users
from recsys_budget.rerank.routes import direct as route
from recsys_budget.rerank.routes._core import bound_at
from recsys_budget.rerank.routes._program import Program
from recsys_budget.rerank.routes.direct import DirectSlates, solve_direct

N_ITEMS = 12


@dataclass(frozen=True)
class Case:
    offsets: NDArray[np.int64]
    gains: NDArray[np.float64]
    items: NDArray[np.intp]
    k: int
    rules: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    fixed: NDArray[np.int8]
    factors: NDArray[np.float64] | None = None
    curvature: float = 0.0
    linear: NDArray[np.float64] | None = None

    def solve(self, programs: bool = False, **options: Any) -> DirectSlates:
        """The route's answer, or that of linear programs without the search before them."""
        with pytest.MonkeyPatch.context() as patch:
            if programs:
                patch.setattr(route, "NODES", 0)
            return self._solve(**options)

    def _solve(self, **options: Any) -> DirectSlates:
        return solve_direct(
            self.offsets, self.gains, self.items, self.k, self.rules, self.lower, self.upper,
            self.factors, self.curvature, self.linear, fixed=self.fixed, **options,
        )  # fmt: skip

    def user(self, u: int) -> Case:
        rows = slice(self.offsets[u], self.offsets[u + 1])
        return replace(
            self,
            offsets=np.array([0, rows.stop - rows.start]),
            gains=self.gains[rows],
            items=self.items[rows],
            fixed=self.fixed[rows],
            lower=np.broadcast_to(self.lower, (len(self.offsets) - 1, self.rules.shape[1]))[u],
            upper=np.broadcast_to(self.upper, (len(self.offsets) - 1, self.rules.shape[1]))[u],
        )

    def slates(self, u: int, k: int | None = None) -> dict[tuple[int, ...], float]:
        """Every slate within the rules, and its gain."""
        alone, found = self.user(u), {}
        must, never = set(np.flatnonzero(alone.fixed == 1)), set(np.flatnonzero(alone.fixed == -1))
        for slate in itertools.combinations(range(len(alone.gains)), k or self.k):
            sums = self.rules[alone.items[list(slate)]].sum(axis=0)
            kept = (sums >= alone.lower - 1e-10).all() and (sums <= alone.upper + 1e-10).all()
            if kept and must <= set(slate) and not never & set(slate):
                found[slate] = float(alone.gains[list(slate)].sum())
                if self.factors is not None and self.linear is not None:
                    items = alone.items[list(slate)]
                    z = self.factors[items].sum(axis=0)
                    found[slate] += float(self.linear[items].sum() - self.curvature * (z @ z))
        return found


@st.composite
def cases(draw: st.DrawFn, diverse: bool = False) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, n_rules = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    rules = (rng.random((N_ITEMS, n_rules)) < 0.4) * 1.0
    if draw(st.booleans()) and n_rules:  # a knapsack, in large units
        rules[:, 0] = rng.gamma(2.0, size=N_ITEMS) * 1e6
    if draw(st.booleans()) and n_rules:
        rules[:, -1] = rng.normal(size=N_ITEMS)
    mean = np.abs(rules).mean(axis=0) * k
    lower = np.where(rng.random(n_rules) < 0.5, np.round(mean * rng.random(n_rules)), -np.inf)
    upper = np.where(rng.random(n_rules) < 0.5, np.round(mean * (0.5 + rng.random(n_rules))), np.inf)
    upper = np.maximum(upper, lower)
    tied = draw(st.booleans())
    gains, items, sizes = [], [], rng.integers(0, 10, 3)
    for n in sizes:
        gains.append(-np.sort(-(rng.integers(0, 3, n) / 2.0 if tied else rng.random(n))))
        items.append(rng.choice(N_ITEMS, n, replace=False))
    fixed = rng.choice([0, 0, 0, 0, 0, 1, -1], sizes.sum()) * draw(st.booleans())
    return Case(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        gains=np.concatenate(gains),
        items=np.concatenate(items).astype(np.intp),
        k=k,
        rules=rules,
        lower=lower,
        upper=upper,
        fixed=fixed.astype(np.int8),
        **(_diversity(draw, rng, tied) if diverse else {}),
    )


def _diversity(draw: st.DrawFn, rng: np.random.Generator, tied: bool) -> dict[str, Any]:
    m = draw(st.integers(1, 3))
    factors = (rng.random((N_ITEMS, m)) < 0.5) / np.sqrt(2.0) if tied else rng.normal(size=(N_ITEMS, m))
    curvature = draw(st.sampled_from([0.02, 0.2, 1.0, 5.0]))
    linear = curvature * np.square(factors).sum(axis=1)
    return {"factors": factors, "curvature": curvature, "linear": linear}


def check(case: Case, found: DirectSlates, gap: float = 0.0) -> None:
    """Exact, or within the gap; and impossible only where no slate is."""
    for u in range(len(case.offsets) - 1):
        possible = case.slates(u)
        assert found.feasible[u] == bool(possible)
        assert found.impossible[u] == (not possible)
        if not possible:
            assert (found.chosen[u] == -1).all()
            assert np.isnan([found.objective[u], found.bound[u]]).all()
            continue
        slate = tuple(found.chosen[u].tolist())
        assert found.objective[u] == pytest.approx(possible[slate], abs=1e-12)
        assert found.bound[u] >= max(possible.values()) - 1e-14
        assert found.bound[u] - found.objective[u] <= gap * abs(found.objective[u]) + 1e-9


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.1]), st.booleans())
def test_every_slate_tried(case: Case, gap: float, programs: bool) -> None:
    check(case, case.solve(programs, gap=gap), gap)


@settings(max_examples=100, deadline=None)
@given(cases(diverse=True), st.sampled_from([0.0, 1e-3, 0.1]), st.booleans())
def test_every_diverse_slate_tried(case: Case, gap: float, programs: bool) -> None:
    check(case, case.solve(programs, gap=gap, nodes=100_000), gap)


@settings(max_examples=40, deadline=None)
@given(cases(diverse=True), st.sampled_from([0.0, 0.1]), st.booleans())
def test_branching_alone_is_exact_for_diversity_too(case: Case, gap: float, programs: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "STEPS", 2)
        check(case, case.solve(programs, gap=gap, nodes=100_000), gap)


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_branching_alone_is_exact_too(case: Case, programs: bool) -> None:
    """With hardly any slate tried at a node, the tree does the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "STEPS", 2)
        check(case, case.solve(programs, nodes=100_000))


@settings(max_examples=40, deadline=None)
@given(
    st.booleans().flatmap(lambda diverse: cases(diverse=diverse)),
    st.integers(1, 3),
    st.sampled_from([0, 1, 2, 5]),
)
def test_a_limit_on_nodes_keeps_the_bound(case: Case, nodes: int, searched: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "STEPS", 2)
        patch.setattr(route, "NODES", searched)
        found = case.solve(nodes=nodes)
    assert (found.solves <= nodes).all()
    for u in range(len(case.offsets) - 1):
        possible = case.slates(u)
        assert not (found.impossible[u] and possible)
        if found.feasible[u]:
            assert tuple(found.chosen[u].tolist()) in possible
        if possible:
            assert found.bound[u] >= max(possible.values()) - 1e-14


@settings(max_examples=40, deadline=None)
@given(st.booleans().flatmap(lambda diverse: cases(diverse=diverse)), st.booleans())
def test_batch_equals_single(case: Case, programs: bool) -> None:
    batch = case.solve(programs)
    for u in range(len(case.offsets) - 1):
        single = case.user(u).solve(programs)
        for name in ("chosen", "feasible", "impossible", "objective", "bound", "prices", "solves"):
            np.testing.assert_array_equal(getattr(batch, name)[u : u + 1], getattr(single, name))
        assert (u in batch.rays) == (0 in single.rays)
        if u in batch.rays:
            np.testing.assert_array_equal(batch.rays[u], single.rays[0])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_rays_prove_that_there_is_no_slate(case: Case) -> None:
    """No k rows of those allowed reach what the multipliers ask for together."""
    found = case.solve()
    for u, ray in found.rays.items():
        alone = case.user(u)
        bars = np.where(ray > 0.0, alone.upper, alone.lower)[ray != 0.0]
        assert np.isfinite(bars).all()
        priced = case.rules[alone.items] @ ray
        least = [priced[alone.fixed == 1].sum()]
        free = np.sort(priced[alone.fixed == 0])[: case.k - (alone.fixed == 1).sum()]
        assert sum(least) + free.sum() > ray[ray != 0.0] @ bars


def generated(n_users: int, *, n: int = 60, k: int = 6, knapsack: bool = True) -> Case:
    """Overlapping categories with minimums and maximums, and a cap on cost."""
    rng, m, n_items = np.random.default_rng(11), 8, 300
    rules = (rng.random((n_items, m + 1)) < 0.25) * 1.0
    rules[:, m] = rng.gamma(2.0, size=n_items)
    lower, upper = np.full(m + 1, -np.inf), np.full(m + 1, np.inf)
    lower[[1, 2, 5]], upper[[0, 3]] = 2, 1
    if knapsack:
        upper[m] = 7.0
    return Case(
        offsets=np.arange(n_users + 1) * n,
        gains=-np.sort(-rng.gamma(2.0, size=(n_users, n)), axis=1).ravel(),
        items=np.concatenate([rng.choice(n_items, n, replace=False) for _ in range(n_users)]),
        k=k,
        rules=rules,
        lower=lower,
        upper=upper,
        fixed=np.zeros(n_users * n, np.int8),
    )


def diversified(n_users: int, weight: float) -> Case:
    """The same for engagement and for diversity of categories that overlap."""
    case = generated(n_users, knapsack=False)
    kinds = case.rules[:, :8] + (case.rules[:, :8].sum(axis=1) == 0.0)[:, None]
    factors = kinds / np.linalg.norm(kinds, axis=1, keepdims=True)
    curvature = weight / (case.k * (case.k - 1))
    best = case.gains.reshape(n_users, -1)[:, : case.k].sum(axis=1)
    return replace(
        case,
        rules=case.rules[:, :8],
        lower=case.lower[:8],
        upper=case.upper[:8],
        gains=(1.0 - weight) * case.gains / np.repeat(best, 60) + weight / case.k,
        factors=factors,
        curvature=curvature,
        linear=curvature * np.square(factors).sum(axis=1),
    )


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.95])
def test_the_search_and_linear_programs_agree(weight: float) -> None:
    """Two ways to the same: each within the gap, each bounding what the other found."""
    case = diversified(12, weight)
    searched, programmed = (case.solve(programs, gap=1e-3, nodes=100_000) for programs in (False, True))
    assert searched.feasible.all()
    assert not searched.solves.any()
    assert programmed.solves.all()
    for one, other in ((searched, programmed), (programmed, searched)):
        assert (one.bound >= other.objective - 1e-12).all()
        assert (one.bound - one.objective <= 1e-3 * np.abs(one.objective) + 1e-9).all()


@pytest.mark.parametrize("programs", [False, True])
def test_agrees_with_integer_programs_in_cvxpy(programs: bool) -> None:
    case = generated(6)
    found = case.solve(programs)
    for u in range(6):
        alone = case.user(u)
        x = cp.Variable(len(alone.gains), boolean=True)
        sums = case.rules[alone.items].T @ x
        low, high = np.isfinite(case.lower), np.isfinite(case.upper)
        rules = [cp.sum(x) == case.k, sums[low] >= case.lower[low], sums[high] <= case.upper[high]]
        problem = cp.Problem(cp.Maximize(alone.gains @ x), rules)
        problem.solve(solver=cp.HIGHS, mip_rel_gap=0.0)
        assert found.objective[u] == pytest.approx(problem.value, rel=1e-7)
        assert found.bound[u] == pytest.approx(found.objective[u], rel=1e-10)
    assert (found.solves.max() > 0) == programs


def test_prices_are_those_of_the_linear_relaxation() -> None:
    case, step = generated(1), 1e-4
    found = case.solve()
    alone = case.user(0)

    def relaxed(upper: NDArray[np.float64]) -> float:
        x = cp.Variable(len(alone.gains))
        sums = case.rules[alone.items].T @ x
        low, high = np.isfinite(case.lower), np.isfinite(upper)
        rules = [cp.sum(x) == case.k, x >= 0, x <= 1]
        rules += [sums[low] >= case.lower[low], sums[high] <= upper[high]]
        return float(cp.Problem(cp.Maximize(alone.gains @ x), rules).solve(solver=cp.HIGHS))

    for r in np.flatnonzero(np.isfinite(case.upper)):
        looser = case.upper.copy()
        looser[r] += step
        assert (relaxed(looser) - relaxed(case.upper)) / step == pytest.approx(found.prices[0, r], abs=1e-4)
    assert (found.prices[0, np.isfinite(case.lower)] <= 0.0).all()
    np.testing.assert_array_equal(found.shadow_prices, found.prices[0])


@pytest.mark.parametrize("programs", [False, True])
def test_the_order_of_users_changes_nothing(programs: bool) -> None:
    """The solver keeps nothing of the user before."""
    case = generated(30)
    order = np.random.default_rng(0).permutation(30)
    shuffled = replace(
        case,
        gains=case.gains.reshape(30, -1)[order].ravel(),
        items=case.items.reshape(30, -1)[order].ravel(),
    )
    there, here = case.solve(programs), shuffled.solve(programs)
    for name in ("chosen", "objective", "bound", "prices", "solves"):
        np.testing.assert_array_equal(getattr(there, name)[order], getattr(here, name))


@pytest.mark.parametrize("diverse", [False, True])
def test_interpreted_and_compiled_agree_bit_for_bit(tmp_path: Path, diverse: bool) -> None:
    for disabled in "01":
        program = (
            "import sys, numpy as np\n"
            "sys.path.insert(0, sys.argv[1])\n"
            "from test_route_direct import diversified, generated\n"
            f"case = diversified(4, 0.9) if {diverse} else generated(10)\n"
            "for programs in (False, True):\n"
            "    found = case.solve(programs, gap=1e-3)\n"
            "    names = ('chosen', 'objective', 'bound', 'feasible', 'solves', 'prices')\n"
            "    out = sys.argv[2].replace('#', str(programs))\n"
            "    np.savez(out, **{name: getattr(found, name) for name in names})\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / f"{disabled}#.npz")],
            check=True,
            env=os.environ | {"NUMBA_DISABLE_JIT": disabled},
        )
    for programs in (False, True):
        one, other = (np.load(tmp_path / f"{disabled}{programs}.npz") for disabled in "01")
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("lie", ["infeasible", "noise", "nan", "half"])
def test_a_solver_that_lies_costs_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    case = generated(3, n=18, k=3, knapsack=False)
    case = replace(case, lower=np.where(np.isfinite(case.lower), 1.0, -np.inf))
    truth = case.solve()
    assert truth.feasible.all()
    honest = Program.solve

    def solve(self: Any, state: Any) -> Any:
        fractions, prices, slopes, ray = honest(self, state)
        if lie == "infeasible":
            return fractions, prices, slopes, np.ones_like(prices)
        if lie == "noise":
            prices, slopes = (np.random.default_rng(0).normal(size=len(p)) for p in (prices, slopes))
        if lie == "half":
            fractions = np.full(len(fractions), 0.5)
        if lie == "nan":
            fractions, prices = np.zeros(len(fractions)), np.zeros(len(prices))
        return fractions, prices, slopes, ray

    monkeypatch.setattr(Program, "solve", solve)
    found = case.solve(programs=True, nodes=100_000)
    np.testing.assert_allclose(found.objective, truth.objective)
    assert (found.bound >= truth.objective - 1e-12).all()
    assert not found.impossible.any()


def test_a_status_that_is_no_answer_still_leaves_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    case = generated(2, n=18, k=3, knapsack=False)
    case = replace(case, lower=np.where(np.isfinite(case.lower), 1.0, -np.inf))
    truth = case.solve()
    monkeypatch.setattr(highspy.Highs, "run", lambda self: highspy.HighsStatus.kError)
    check(case, case.solve(programs=True, nodes=100_000))
    assert truth.feasible.any()


def test_rules_that_hold_anyway_need_no_program() -> None:
    case = generated(5)
    loose = replace(case, lower=np.full(9, -np.inf), upper=np.full(9, np.inf))
    found = loose.solve()
    assert found.chosen.tolist() == [list(range(6))] * 5
    assert not found.solves.any()
    assert not found.prices.any()


def test_bounds_may_differ_between_users() -> None:
    case = generated(2)
    upper = np.stack([case.upper, np.where(np.isfinite(case.upper), case.upper + 1, np.inf)])
    found = replace(case, lower=np.broadcast_to(case.lower, (2, 9)), upper=upper).solve()
    for u in range(2):
        alone = replace(case.user(u), upper=upper[u]).solve()
        np.testing.assert_array_equal(found.chosen[u], alone.chosen[0])


@pytest.mark.parametrize("programs", [False, True])
@pytest.mark.parametrize("lower", [[3, 0], [2, 2], [1, 3]])
def test_of_candidates_that_differ_in_nothing_the_earliest_are_chosen(
    monkeypatch: pytest.MonkeyPatch, programs: bool, lower: list[int]
) -> None:
    n, k = 12, 4
    if programs:
        monkeypatch.setattr(route, "NODES", 0)
    rules = sparse.csr_array(np.eye(2)[np.arange(n) % 2])
    found = solve_direct(np.array([0, n]), np.ones(n), np.arange(n), k, rules, lower, [4, 4])
    for kind in (0, 1):
        mine = [row for row in found.chosen[0].tolist() if row % 2 == kind]
        assert mine == list(range(kind, 12, 2))[: len(mine)]
        assert len(mine) >= lower[kind]


def test_sums_that_meet_a_bound_but_for_rounding_are_within_it() -> None:
    found = solve_direct(
        np.array([0, 3]), np.ones(3), np.arange(3), 3, np.array([[0.1], [0.2], [0.3]]), [0.6], [0.6]
    )
    assert found.feasible.all()
    over = solve_direct(
        np.array([0, 2]), np.ones(2), np.arange(2), 2, np.array([[0.1], [0.2]]), [0.3 + 1e-9], [1.0]
    )
    assert over.impossible.all()


def test_one_byte_over_a_cap_of_gigabytes_is_over() -> None:
    rules = np.array([[4e9], [4e9 + 1], [1.0]])
    found = solve_direct(np.array([0, 3]), np.array([3.0, 2.0, 1.0]), np.arange(3), 2, rules, -np.inf, 8e9)
    assert found.chosen[0].tolist() == [0, 2]


def test_a_time_limit_leaves_users_a_bound() -> None:
    case = generated(5)
    hurried, patient = case.solve(time_limit=0.0), case.solve()
    assert (hurried.solves <= 1).all()
    assert (hurried.bound >= patient.objective - 1e-12).all()


def test_no_user_has_a_slate() -> None:
    found = replace(generated(3), k=61).solve()
    assert found.impossible.all()
    assert found.shadow_prices.tolist() == [0.0] * 9


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"rules": np.full((300, 9), np.nan)},
        {"lower": np.full(9, 2.0), "upper": np.full(9, 1.0)},
        {"lower": np.full(9, np.nan)},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        replace(generated(1), **change).solve()


@pytest.mark.parametrize("options", [{"gap": -1.0}, {"gap": np.nan}, {"nodes": 0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        generated(1).solve(**options)


def hard(n_users: int) -> Case:
    """Users whose relaxation is far from integer: several knapsacks, some with a floor."""
    rng, n, k, n_items, n_rules = np.random.default_rng(17), 14, 5, 100, 4
    return Case(
        offsets=np.arange(n_users + 1) * n,
        gains=-np.sort(-rng.gamma(2.0, size=(n_users, n)), axis=1).ravel(),
        items=np.concatenate([rng.choice(n_items, n, replace=False) for _ in range(n_users)]),
        k=k,
        rules=rng.gamma(2.0, size=(n_items, n_rules)),
        lower=np.array([9.0, -np.inf, 9.0, -np.inf]),
        upper=np.array([11.0, 9.0, np.inf, 9.0]),
        fixed=np.zeros(n_users * n, np.int8),
    )


@pytest.mark.parametrize("programs", [False, True])
@pytest.mark.parametrize("steps", [5, route.STEPS])
def test_bounds_hold_and_optima_are_found_where_the_relaxation_is_loose(
    monkeypatch: pytest.MonkeyPatch, steps: int, programs: bool
) -> None:
    case = hard(60)
    optimum = np.array([max(case.slates(u).values(), default=np.nan) for u in range(60)])
    monkeypatch.setattr(route, "STEPS", steps)
    for nodes in (1, 2, 5):
        few = case.solve(programs, nodes=nodes)
        there = np.isfinite(optimum) & ~few.impossible
        assert (there == np.isfinite(optimum)).all()
        assert (few.bound[there] >= optimum[there]).all()
        assert (few.objective[few.feasible] <= optimum[few.feasible] + 1e-12).all()
    found = case.solve(programs, nodes=100_000)
    np.testing.assert_allclose(found.objective, optimum, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(found.bound, optimum, rtol=0.0, atol=1e-9)
    assert np.isfinite(optimum).mean() > 0.3  # otherwise this tests little


def hard_and_diverse(n_users: int) -> Case:
    factors = np.abs(np.random.default_rng(3).normal(size=(100, 3)))
    linear = 0.2 * np.square(factors).sum(axis=1)
    return replace(hard(n_users), factors=factors, curvature=0.2, linear=linear)


def hard_and_of_few_kinds(n_users: int) -> Case:
    """Factors of few values, none below 0, whose sums are known in advance."""
    factors = np.random.default_rng(4).choice([0.0, 0.5, 1.0], (100, 3), p=[0.5, 0.3, 0.2])
    linear = 0.2 * np.square(factors).sum(axis=1)
    return replace(hard(n_users), factors=factors, curvature=0.2, linear=linear)


@pytest.mark.parametrize("make", [hard, hard_and_diverse, hard_and_of_few_kinds])
def test_any_prices_bound_every_slate(make: Callable[[int], Case]) -> None:
    """Weak duality, at prices and slopes that a solver would never give and with rows settled."""
    case, rng = make(20), np.random.default_rng(0)
    tight = 0
    for u in range(20):
        alone = case.user(u)
        possible = case.slates(u)
        if not possible:
            continue
        user = alone.solve()._users.of_user(0)
        for _ in range(20):
            state = np.zeros(14, np.int8)
            kept = next(iter(possible))
            state[kept[0]], state[next(i for i in range(14) if i not in kept)] = 1, -1
            within = [v for s, v in possible.items() if (state[list(s)] >= 0).all() and kept[0] in s]
            price = rng.normal(size=4) * rng.choice([0.01, 0.3, 3.0])
            at = user.at(price, 5.0 * rng.random(user.factors.shape[1]))
            bound = bound_at(user.rows, state, np.flatnonzero(state >= 0), at)
            price = at.price
            assert np.isfinite(np.where(price > 0, alone.upper, alone.lower)[price != 0.0]).all()
            assert bound >= max(within)
            tight += bound < 1.5 * max(within)
    assert tight > 20


@pytest.mark.parametrize("programs", [False, True])
@pytest.mark.parametrize("make", [hard_and_diverse, hard_and_of_few_kinds])
def test_bounds_hold_where_squares_and_rules_leave_the_relaxation_loose(
    make: Callable[[int], Case], programs: bool
) -> None:
    case = make(40)
    optimum = np.array([max(case.slates(u).values(), default=np.nan) for u in range(40)])
    there = np.isfinite(optimum)
    for nodes in (1, 3, 100_000):
        found = case.solve(programs, nodes=nodes)
        known = there & ~found.impossible
        assert (known == there).all()
        assert (found.bound[known] >= optimum[known] - 1e-12).all()
        assert (found.objective[found.feasible] <= optimum[found.feasible] + 1e-12).all()
    np.testing.assert_allclose(found.objective[there], optimum[there], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"curvature": -1.0},
        {"curvature": np.inf},
        {"factors": np.full((300, 2), np.nan), "curvature": 1.0},
        {"factors": np.ones((3, 2)), "curvature": 1.0},
        {"linear": np.ones(3)},
        {"linear": np.full(300, np.inf)},
    ],
)
def test_squares_that_are_no_diversity_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecificationError):
        replace(generated(1), **change).solve()


@pytest.mark.parametrize("look", [None, 0.0, 1.0])
def test_rows_are_of_a_kind_only_where_they_are_the_same(
    monkeypatch: pytest.MonkeyPatch, look: float | None
) -> None:
    """Whatever they look like by the weights: all alike, or alike by their sums."""
    if look is not None:
        monkeypatch.setattr(_users, "_weights", lambda n: np.full(n, look))
    rng = np.random.default_rng(2)
    one, other = rng.integers(0, 3, (60, 2)) * 1.0, rng.integers(0, 2, (60, 2)) * 1.0
    number = _users.kinds(sparse.csr_array(one), sparse.csr_array(other))
    rows = np.hstack([one, other])
    same = (rows[:, None] == rows[None]).all(axis=2)
    assert not ((number[:, None] == number[None]) & ~same).any()
    if look is None:
        np.testing.assert_array_equal(number[:, None] == number[None], same)
    assert _users.kinds(sparse.csr_array((0, 3))).tolist() == []
    assert len(set(_users.kinds(sparse.csr_array((4, 0))).tolist())) == 1


@settings(max_examples=80, deadline=None)
@given(
    st.booleans().flatmap(lambda diverse: cases(diverse=diverse)),
    st.sampled_from([0.0, 1e-3, 0.1]),
    st.integers(0, 10_000),
)
def test_a_warm_start_changes_no_promise(case: Case, gap: float, seed: int) -> None:
    """Slates and prices of other gains and other bounds: exact or within the gap all the same."""
    rng = np.random.default_rng(seed)
    other = replace(
        case,
        gains=case.gains * rng.uniform(0.5, 1.5),
        lower=np.where(rng.random(len(case.lower)) < 0.5, -np.inf, case.lower),
        upper=np.where(rng.random(len(case.upper)) < 0.5, np.inf, case.upper),
        linear=None if case.linear is None else 0.5 * case.linear,
        curvature=0.5 * case.curvature,
        fixed=np.zeros_like(case.fixed),
    )
    check(case, case.solve(gap=gap, nodes=100_000, warm=other.solve(gap=gap)), gap)


def test_a_warm_start_of_something_else_is_refused() -> None:
    case = generated(3)
    fewer = replace(case, rules=case.rules[:, :8], lower=case.lower[:8], upper=case.upper[:8])
    for other in (generated(2), replace(case, k=5), fewer, diversified(3, 0.5)):
        with pytest.raises(SpecificationError, match="warm start"):
            case.solve(warm=other.solve())
