"""The planner: how much noise each use gets, so that together they fit one budget with the least error.

At one Renyi order everything that is spent is a sum of convex functions of ``x = 1 / noise_multiplier^2``:
linear for a full Gaussian release, the logarithm of a sum of exponentials of linear functions for a sampled
one. The planned error, a sum of ``a / x``, is convex too: the best split of the budget is a convex program.

References:
    Mironov, Talwar and Zhang (2019), arXiv:1908.10530, section 3.3 (the divergence of a sampled Gaussian at a
    whole order). Canonne, Kamath and Steinke (2020), arXiv:2004.00010, proposition 12 (Renyi to epsilon).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp, softmax

from recsys_budget._html import card, gauge, table, text
from recsys_budget.errors import BudgetExceededError, NumericalError, SpecificationError
from recsys_budget.privacy.accounting import (
    epsilon,
    filter_order,
    renyi,
    renyi_cap,
    round_up,
    smallest_noise,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.ledger import PrivacyLedger
from recsys_budget.privacy.mechanism import (
    LEAST_NOISE,
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
)

# Orders tried, and how many of the best of them are compared by PLD.
_ORDERS, _COMPARED = 12, 4
# Terms of a moment (which is at least 1) below the exponential of this are not shown to the solver.
_NEGLIGIBLE = -35.0

_Floats = NDArray[np.float64]
_Cost = Callable[[_Floats], float]


@dataclass(frozen=True)
class Use:
    """Something that the budget is spent on.

    Attributes:
        name: What it is called in the plan.
        error: The harm done by noise: the planned error is ``error * noise_multiplier^2``. For a release of
            which the squared error matters: its number of entries times the square of its sensitivity, times
            what such an error matters beside those of the other uses.
        sample_rate: As for :class:`SampledGaussianMechanism`; 1 reads all users.
        steps: Number of releases.

    Raises:
        SpecificationError: A value outside its range.
    """

    name: str
    error: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise SpecificationError(f"a use is named {self.name!r}; give it a name in words")
        if not (isinstance(self.error, int | float) and math.isfinite(self.error) and self.error > 0):
            raise SpecificationError(
                f"use {self.name!r}: error is {self.error!r}; it must be positive and finite. "
                "Leave out what does not matter"
            )
        SampledGaussianMechanism(1.0, self.sample_rate, self.steps)

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What is released with this much noise; a plain Gaussian where all users are read once."""
        if self.sample_rate == 1.0 and self.steps == 1:
            return GaussianMechanism(noise_multiplier)
        return SampledGaussianMechanism(noise_multiplier, self.sample_rate, self.steps)


@dataclass(frozen=True, repr=False)
class BudgetPlan:
    """One budget, split: hand :attr:`mechanisms` to one ``ledger.reserve``; ``plan["name"]`` is one of them.

    Attributes:
        uses: What was asked for, in order.
        mechanisms: A mechanism a use, in the same order.
        epsilon: Epsilon of all of them together, by PLD, rounded up; what came before in the ledger apart.
        delta: The delta that epsilon goes with.
        cap: Epsilon of the budget, or of the ledger's cap.
        error: Sum over uses of ``use.error * noise_multiplier^2``.
        shadow_price: By how much ``error`` would fall for each unit of epsilon that the cap is raised,
            for a small raise.
    """

    uses: tuple[Use, ...]
    mechanisms: tuple[Mechanism, ...]
    epsilon: float
    delta: float
    cap: float
    error: float
    shadow_price: float

    def __getitem__(self, name: str) -> Mechanism:
        """The mechanism of the use with this name.

        Raises:
            SpecificationError: No use has it.
        """
        for use, mechanism in zip(self.uses, self.mechanisms, strict=True):
            if use.name == name:
                return mechanism
        raise SpecificationError(f"the plan has no use {name!r}; it has {[use.name for use in self.uses]}")

    def to_frame(self) -> pd.DataFrame:
        """A row a use: use, noise_multiplier, sample_rate, steps, error, epsilon (alone, PLD, rounded up)."""
        return pd.DataFrame(
            {
                "use": [use.name for use in self.uses],
                "noise_multiplier": [mechanism.noise_multiplier for mechanism in self.mechanisms],
                "sample_rate": [use.sample_rate for use in self.uses],
                "steps": [use.steps for use in self.uses],
                "error": [
                    use.error * mechanism.noise_multiplier**2
                    for use, mechanism in zip(self.uses, self.mechanisms, strict=True)
                ],
                "epsilon": [round_up(epsilon([mechanism], self.delta)) for mechanism in self.mechanisms],
            }
        )

    def __repr__(self) -> str:
        parts = "; ".join(f"{use.name}: {m}" for use, m in zip(self.uses, self.mechanisms, strict=True))
        return (
            f"BudgetPlan(epsilon {self.epsilon:.4f} of {self.cap:g} at delta {self.delta:g}, "
            f"error {self.error:.6g}, shadow price {self.shadow_price:.4g}; {parts})"
        )

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        rows = [
            (row.use, f"{row.noise_multiplier:.4g}", f"{row.sample_rate:g}", row.steps, f"{row.error:.4g}",
             f"{row.epsilon:.4f}")
            for row in frame.itertuples()
        ]  # fmt: skip
        return card(
            "Budget plan",
            gauge(self.epsilon, self.cap, label=f"epsilon of the plan, delta {self.delta:g}"),
            table(rows, ["use", "noise", "sample rate", "steps", "error", "epsilon alone"]),
            text(
                f"Planned error {self.error:.6g}. Around here one more unit of epsilon is worth "
                f"{self.shadow_price:.4g} of it."
            ),
            note="Epsilons are rounded up, and those of single uses do not add up. Nothing is spent until "
            "the mechanisms are reserved, all in one reservation.",
        )


def plan_budget(budget: PrivacyBudget | PrivacyLedger, uses: Sequence[Use]) -> BudgetPlan:
    """Split a budget over several uses so that the sum of their planned errors is least.

    Given a budget or an empty ledger, the plan is one schedule fixed in advance. The convex program is solved
    at several Renyi orders, which propose proportions; those that are best by PLD are kept, and all noise is
    scaled by a common factor until PLD just fits the cap: once it is reserved, nothing else fits. Given a
    ledger that holds reservations, the program is solved at the order of the ledger's filter, for what is
    left under it.

    Planning reads no private data and spends nothing.

    Args:
        budget: What may be spent, or the ledger that will grant it.
        uses: What for; at least one, with different names.

    Returns:
        The plan. It fits by the ledger's own accounting, whatever the solver said. With 0.1% less noise
        throughout it would not, unless a mechanism has the least noise that there is.

    Raises:
        SpecificationError: No uses, or two with the same name.
        BudgetExceededError: Nothing more fits into the ledger.
        NumericalError: The solver found no split that withstood checking.
        MissingExtraError: dp-accounting is not installed.

    Examples:
        >>> from recsys_budget.privacy import PrivacyBudget, PrivacyLedger, Use, plan_budget
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=1.0, delta=1e-6))
        >>> plan = plan_budget(ledger, [Use("counts", error=1.0), Use("gram", error=16.0)])
        >>> round(plan["counts"].noise_multiplier / plan["gram"].noise_multiplier, 2)
        2.0
        >>> reservation = ledger.reserve(plan.mechanisms, purpose="statistics")
    """
    uses = tuple(uses)
    names = [use.name for use in uses]
    if not uses or len(set(names)) < len(names):
        raise SpecificationError(f"the uses are {names}; give at least one, and each a name of its own")
    ledger = budget if isinstance(budget, PrivacyLedger) else PrivacyLedger(budget)
    cap = ledger.cap
    # A ledger from which nothing was spent grants a schedule by PLD, and any other by its filter.
    proportions, cost = _for_the_filter(ledger, uses) if ledger.spent else _for_one_schedule(cap, uses)

    def noise(factor: float) -> _Floats:
        return np.maximum(factor * proportions, LEAST_NOISE)

    factor = _smallest_factor(lambda s: _release(uses, noise(s)), ledger.fits)
    if math.isinf(factor):
        raise _exhausted(cap, uses)
    sigmas = noise(factor)
    more, less = noise(1.01 * factor), noise(0.99 * factor)
    saved = cost(less) - cost(more)
    mechanisms = _release(uses, sigmas)
    return BudgetPlan(
        uses=uses,
        mechanisms=mechanisms,
        epsilon=min(round_up(epsilon(mechanisms, cap.delta)), cap.epsilon),
        delta=cap.delta,
        cap=cap.epsilon,
        error=_error(uses, sigmas),
        shadow_price=(_error(uses, more) - _error(uses, less)) / saved if saved > 0 else 0.0,
    )


def _smallest_factor(
    release: Callable[[float], tuple[Mechanism, ...]], fits: Callable[[Sequence[Mechanism]], bool]
) -> float:
    """Smallest factor at which the release fits, at most 0.01% too large; infinity where none does."""
    factor = smallest_noise(release, fits)
    # That search ends at 0.3, being made for noise multipliers; this one where no noise can shrink.
    if factor > 0.301 or release(factor) == release(factor / 2):
        return factor
    return factor * _smallest_factor(lambda s: release(factor * s), fits)


def _release(uses: Sequence[Use], sigmas: _Floats) -> tuple[Mechanism, ...]:
    return tuple(use.mechanism(float(sigma)) for use, sigma in zip(uses, sigmas, strict=True))


def _error(uses: Sequence[Use], sigmas: _Floats) -> float:
    return float(sum(use.error * sigma**2 for use, sigma in zip(uses, sigmas, strict=True)))


def _for_one_schedule(cap: PrivacyBudget, uses: Sequence[Use]) -> tuple[_Floats, _Cost]:
    """Noise in good proportions for a schedule fixed in advance, and what it costs in epsilon, by PLD."""

    def cost(sigmas: _Floats) -> float:
        return epsilon(_release(uses, sigmas), cap.delta)

    solutions = [(order, _solve(uses, order, allowance)) for order, allowance in _orders(cap)]
    found = sorted((sigmas for _, sigmas in solutions if sigmas is not None), key=lambda s: _error(uses, s))
    if not found:
        raise _nothing_withstood(cap, uses)
    # At equal error the proportions that cost least are best; Renyi orders alone mislead by a few per cent
    # where sample rates are small.
    target = _error(uses, found[0])
    equal = [np.maximum(s * math.sqrt(target / _error(uses, s)), LEAST_NOISE) for s in found[:_COMPARED]]
    return min(equal, key=cost), cost


def _for_the_filter(ledger: PrivacyLedger, uses: Sequence[Use]) -> tuple[_Floats, _Cost]:
    """Best noise for what is left of a ledger's filter, and what it costs in divergence at its order."""
    cap, order = ledger.cap, filter_order(ledger.cap)
    # What is left is what one Gaussian release could still take.
    least = smallest_noise(lambda sigma: (GaussianMechanism(sigma),), ledger.fits)
    if math.isinf(least):
        raise _exhausted(cap, uses)
    sigmas = _solve(uses, order, order / (2 * least**2))
    if sigmas is None:
        raise _nothing_withstood(cap, uses)

    def cost(sigmas: _Floats) -> float:
        return sum(renyi(mechanism, order) for mechanism in _release(uses, sigmas))

    return sigmas, cost


def _orders(cap: PrivacyBudget) -> Iterator[tuple[int, float]]:
    """Orders around the best one for a Gaussian, each with the divergence that converts to the cap."""
    log = math.log(1 / cap.delta)
    best = 1 + math.sqrt(log) * (math.sqrt(log + cap.epsilon) + math.sqrt(log)) / cap.epsilon
    for order in sorted({max(2, round(order)) for order in np.geomspace(0.45 * best, 2 * best, _ORDERS)}):
        allowance = renyi_cap(cap, order)
        if allowance > 0:
            yield order, allowance


@dataclass(frozen=True, eq=False)
class _Curve:
    """Renyi divergence of a use at one order, a convex function of ``x = 1 / noise_multiplier^2``.

    It is ``weight * log(sum(exp(constants + slopes * x)))``. Where all users are read it has one term,
    ``steps * order * x / 2``. For a sampled use it is ``steps / (order - 1)`` times the log of the moment
    whose terms are ``binom(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) x / 2)`` with the order a, the sample rate
    q and k = 0, ..., a (Mironov, Talwar and Zhang 2019).
    """

    weight: float
    constants: _Floats
    slopes: _Floats

    @classmethod
    def of(cls, use: Use, order: int) -> _Curve:
        q, k = use.sample_rate, np.arange(order + 1.0)
        if q == 1.0:
            return cls(use.steps * order / 2, np.zeros(1), np.ones(1))
        binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        constants = binomial + k * math.log(q) + (order - k) * math.log1p(-q)
        return cls(use.steps / (order - 1), constants, k * (k - 1) / 2)

    def value(self, x: float) -> float:
        return float(self.weight * logsumexp(self.constants + self.slopes * x))

    def slope(self, x: float) -> float:
        return float(self.weight * (softmax(self.constants + self.slopes * x) @ self.slopes))

    def most(self, allowance: float) -> float:
        """Largest x that the allowance permits this use alone."""
        most = LEAST_NOISE**-2
        if self.value(most) <= allowance:
            return most
        # Below the tangent at 0 of no use: sampling only lowers the divergence, and a full one is linear.
        steepest = self.weight * self.slopes.max()
        return float(brentq(lambda x: self.value(x) - allowance, 0.5 * allowance / steepest, most, rtol=1e-9))


def _solve(uses: Sequence[Use], order: int, allowance: float) -> _Floats | None:
    """Noise of least error within a divergence; None where the solver's answer fails the check."""
    import cvxpy as cp

    curves, errors = [_Curve.of(use, order) for use in uses], np.array([use.error for use in uses])
    # In units of what each use could take alone, every number that the solver sees is of moderate size.
    unit = np.array([curve.most(allowance) for curve in curves])
    weights = errors / unit
    share = cp.Variable(len(uses), pos=True)
    spent = 0
    for position, curve in enumerate(curves):
        kept = curve.constants + curve.slopes * unit[position] > _NEGLIGIBLE
        exponents = curve.constants[kept] + curve.slopes[kept] * unit[position] * share[position]
        spent += curve.weight / allowance * (exponents[0] if kept.sum() == 1 else cp.log_sum_exp(exponents))
    problem = cp.Problem(cp.Minimize(weights / weights.max() @ cp.inv_pos(share)), [spent <= 1, share <= 1])
    with warnings.catch_warnings():
        # An answer that the solver calls inaccurate is checked like any other.
        warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.SolverError:
            return None
    if share.value is None or not (share.value > 0).all():
        return None
    x = np.minimum(share.value, 1.0) * unit
    return x**-0.5 if _is_optimal(x, errors, curves, allowance) else None


def _is_optimal(x: _Floats, errors: _Floats, curves: Sequence[_Curve], allowance: float) -> bool:
    """Conditions of Karush, Kuhn and Tucker, sufficient for a convex program, to 1%, without the solver."""
    spent = sum(curve.value(value) for curve, value in zip(curves, x, strict=True))
    # What a use gains and costs as its x grows by a share of itself: in the best split all at one price.
    gains = errors / x
    costs = x * np.array([curve.slope(value) for curve, value in zip(curves, x, strict=True)])
    free = x < 0.999 * LEAST_NOISE**-2
    if not free.any():
        return spent <= 1.001 * allowance
    price = gains[free].sum() / costs[free].sum()
    return bool(
        abs(spent / allowance - 1) <= 1e-3
        and (np.abs(gains - price * costs)[free] <= 0.01 * gains.sum()).all()
        and (gains >= 0.99 * price * costs)[~free].all()
    )


def _exhausted(cap: PrivacyBudget, uses: Sequence[Use]) -> BudgetExceededError:
    return BudgetExceededError(
        f"nothing more fits under the cap of epsilon {cap.epsilon:g}, so there is nothing to split over "
        f"{', '.join(use.name for use in uses)}. Nothing was spent",
        requested=epsilon(_release(uses, np.full(len(uses), 1e4)), cap.delta),
        remaining=0.0,
        cap=cap.epsilon,
    )


def _nothing_withstood(cap: PrivacyBudget, uses: Sequence[Use]) -> NumericalError:
    return NumericalError(
        f"no split of epsilon {cap.epsilon:g} over {', '.join(use.name for use in uses)} withstood checking; "
        "plan fewer uses at a time, or leave out those whose errors hardly matter"
    )
