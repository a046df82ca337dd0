"""Some of the rules at a time: whether slates satisfy them, and how far one must give way until some do."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints import (
    TOLERANCE,
    Constraint,
    ItemConstraint,
    LinearConstraint,
    Population,
    SlateSize,
)
from recsys_budget.errors import NumericalError
from recsys_budget.rerank import problem
from recsys_budget.rerank.integer import Program, relaxed_prices, search, solve_highs
from recsys_budget.rerank.loosening import moved_by, number_of, one_step
from recsys_budget.rerank.model import Model, assemble


class OutOfTime(Exception):
    """The time limit came before an answer."""


@dataclass(frozen=True, eq=False)
class Loosening:
    """What one rule has to give.

    Attributes:
        field: Number of the rule that moves; None where it has none.
        amount: How far, or the violation of a rule without a number.
        exact: Whether nothing smaller will do.
    """

    field: str | None
    amount: float
    exact: bool


class Subsets:
    """Hard rules over one population, of which any may be left out. Sets are of positions in the rules.

    Args:
        rules: The rules, all hard.
        population: The candidates of one user, or of all where some rule is about all.
        solver: Solver of integer programs by its name; None, or one that takes no integers, is HiGHS.
        deadline: When to give up with :class:`OutOfTime`, by ``time.monotonic``.
    """

    def __init__(
        self, rules: Sequence[Constraint], population: Population, solver: str | None, deadline: float
    ) -> None:
        self.rules, self.population, self.deadline = tuple(rules), population, deadline
        self._name = solver if solver is not None and problem.solves_integers(solver) else "HIGHS"
        self._solve = problem.integer_solver(self._name)
        self.everything = frozenset(range(len(self.rules)))
        self._sizes = frozenset(i for i, rule in enumerate(self.rules) if isinstance(rule, SlateSize))

    def satisfying(self, kept: Set[int]) -> NDArray[np.float64] | None:
        """A selection that satisfies these rules, or None where the solver finds that there is none.

        Raises:
            NumericalError: The solver stopped without an answer, or its slates violate a rule.
            OutOfTime: The deadline passed.
        """
        model = self._model(kept)
        found = search(model, self._solve, gap=1e-6, max_solves=100, deadline=self.deadline)
        if found.infeasible:
            return None
        if found.z is None:
            if found.stopped:
                raise OutOfTime
            raise NumericalError(
                f"{self._name} neither found a slate nor a proof that there is none ({found.status})"
            )
        if broken := self._broken([self.rules[i] for i in kept], model, found.z):
            raise NumericalError(
                f"{self._name} offered a selection that violates {broken!r}; try another solver"
            )
        return found.z

    def weigh(self, kept: Set[int]) -> tuple[Set[int], bool]:
        """Rules that conflict already in the linear relaxation, and whether their weights prove it.

        The weights are the prices of rules where each may be violated at a price of 1 a unit. By Farkas'
        lemma a weighted sum of inequalities that asks for more than any z in [0, 1] gives is a proof; it is
        checked here, for linear rules. Rules that are only known as functions are always among those
        returned.
        """
        model = self._model(kept)
        soft = replace(
            model,
            penalty=np.where(model.owner >= 0, 1.0, math.inf),
            opaque=tuple(replace(rule, penalty=1.0) for rule in model.opaque),
        )
        n, m = len(model.linear), len(model.upper)
        if not model.is_linear:
            by_rule = relaxed_prices(soft, len(self.rules))
            opaque = {rule.owner for rule in model.opaque}
            return {i for i in kept if by_rule[i] > TOLERANCE or i in opaque}, False
        own = np.flatnonzero(model.owner >= 0)
        excess = sparse.csr_array((-np.ones(len(own)), (own, np.arange(len(own)))), shape=(m, len(own)))
        program = Program(
            c=np.concatenate([np.zeros(n), -np.ones(len(own))]),
            a=sparse.csr_array(sparse.hstack([model.rows, excess])),
            lower=np.full(m, -math.inf),
            upper=model.upper,
            least=np.zeros(n + len(own)),
            most=np.concatenate([np.ones(n), np.full(len(own), math.inf)]),
            integers=0,
        )
        duals = solve_highs(program, 0.0, math.inf).duals
        prices = np.zeros(m) if duals is None else np.asarray(duals, np.float64)
        positive = np.where(prices > TOLERANCE, prices, 0.0)
        least = np.minimum(0.0, model.rows.T @ positive).sum()
        asked = float(positive @ model.upper)
        scale = float(positive @ (np.abs(model.upper) + 1.0))
        return set(model.owner[(positive > 0.0) & (model.owner >= 0)].tolist()), bool(
            least - asked > TOLERANCE * scale
        )

    def loosen(self, kept: Set[int], owner: int) -> Loosening | None:
        """The least that one rule of these has to give until slates satisfy them all.

        Returns:
            None where the rule cannot give enough. Where it can, slates that show it were counted.

        Raises:
            OutOfTime: The deadline passed.
        """
        rule = self.rules[owner]
        field, sign = number_of(rule)
        if isinstance(rule, SlateSize):
            return None  # a change of size changes what the others mean; see rerank.infeasibility
        model = self._model(kept)
        rows = np.flatnonzero(model.owner == owner)
        if field is None:
            rates = np.ones(len(rows) + sum(len(o.upper) for o in model.opaque if o.owner == owner))
            step = 1.0
        else:
            trial, step = one_step(rule, field, sign)
            if trial is None:
                return None
            found = self._rates(rule, trial, sized=bool(self._sizes & set(kept)))
            if found is None or not (found > 0.0).any():
                return None
            rates = found
        z, least = self._least(model, rows, owner, rates, summed=field is None)
        if z is None:
            return None
        over = _excess(model, z, owner)
        moved = rates > 0.0
        if field is None:
            amount = float(np.maximum(0.0, over).sum())
            return Loosening(None, amount, amount - least <= TOLERANCE * max(1.0, amount))
        steps = float(np.maximum(0.0, over[moved] / rates[moved]).max())
        whole = isinstance(getattr(rule, field), int | np.integer)
        if whole:
            steps, least = math.ceil(steps - TOLERANCE), math.ceil(least - TOLERANCE)
        exact = steps - least <= TOLERANCE * max(1.0, steps)
        for tidy in (True, False):
            relaxed = moved_by(rule, field, sign * -steps * step, tidy=tidy)
            others = [self.rules[i] for i in kept if i != owner]
            if relaxed is not None and not self._broken([*others, relaxed], model, z):
                amount = abs(getattr(relaxed, field) - getattr(rule, field))
                return Loosening(field, amount, exact)
        return None

    def violations(self, kept: Set[int], owner: int) -> NDArray[np.float64] | None:
        """How far each row of a rule is violated where all of them together are violated least; None without.

        Raises:
            OutOfTime: The deadline passed.
        """
        model = self._model(kept)
        rows = np.flatnonzero(model.owner == owner)
        z, _ = self._least(model, rows, owner, np.ones(len(rows)), summed=True)
        return None if z is None else np.maximum(0.0, _excess(model, z, owner))

    def _model(self, kept: Set[int]) -> Model:
        """The problem of these rules: any selection that satisfies them."""
        whole = self._placed if any(self.rules[i].positional for i in kept) else self._flat
        return _part(whole, kept)

    @cached_property
    def _placed(self) -> Model:
        return assemble(None, self.rules, self.population, problem.express)

    @cached_property
    def _flat(self) -> Model:
        at = [i for i, rule in enumerate(self.rules) if not rule.positional]
        if len(at) == len(self.rules):
            return self._placed
        model = assemble(None, [self.rules[i] for i in at], self.population, problem.express)
        owner = np.array([*at, -1], np.intp)[model.owner]
        return replace(model, owner=owner, opaque=tuple(replace(o, owner=at[o.owner]) for o in model.opaque))

    def _rates(self, rule: Constraint, trial: Constraint, *, sized: bool) -> NDArray[np.float64] | None:
        """How much looser each row of a rule gets when its number moves a step; None where z has a say.

        A number may also move coefficients, as the bound on a mean does: where each item counts alike, and
        slates hold k of them, that is a move of the bound.
        """
        was, becomes = (assemble(None, [each], self.population, problem.express) for each in (rule, trial))
        mine = was.owner == 0
        rates = (becomes.upper - was.upper)[mine]
        change = sparse.csr_array((becomes.rows - was.rows)[mine])
        change.eliminate_zeros()
        if change.nnz:
            each, starts = change.toarray(), was.offsets[:-1] * was.places
            low, high = np.minimum.reduceat(each, starts, axis=1), np.maximum.reduceat(each, starts, axis=1)
            if not sized or np.abs(high - low).max() > 1e-9:
                return None
            rates = rates - was.k * high.sum(axis=1)
        opaque = [b.upper - a.upper for a, b in zip(was.opaque, becomes.opaque, strict=True)]
        return np.concatenate([rates, *opaque])

    def _least(
        self, model: Model, rows: NDArray[np.intp], owner: int, rates: NDArray[np.float64], *, summed: bool
    ) -> tuple[NDArray[np.float64] | None, float]:
        """A selection at which one rule is violated least, in steps, and a lower bound on any.

        The violation is the largest over rows, or their sum. Where rules are not linear, the search
        minimises the sum in either case, and the bound allows for that.
        """
        if model.is_linear and not summed:
            return self._least_step(model, rows, rates)
        n_rows = len(rows)
        with np.errstate(divide="ignore"):
            price = np.where(rates > 0.0, 1.0 / rates, math.inf)
        penalty = model.penalty.copy()
        penalty[rows] = price[:n_rows]
        opaque, at = [], n_rows
        for rule in model.opaque:
            if rule.owner == owner:
                prices = price[at : at + len(rule.upper)]
                at += len(rule.upper)
                opaque.append(replace(rule, penalty=float(prices.max())))
            else:
                opaque.append(rule)
        soft = replace(model, penalty=penalty, opaque=tuple(opaque))
        found = search(soft, self._solve, gap=1e-6, max_solves=100, deadline=self.deadline)
        if found.z is None:
            if found.stopped:
                raise OutOfTime
            return None, math.inf
        return found.z, max(0.0, -found.bound) / (1 if summed else max(1, int((rates > 0.0).sum())))

    def _least_step(
        self, model: Model, rows: NDArray[np.intp], rates: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64] | None, float]:
        """The same for linear rules, as one program with the step as its last variable."""
        n, m = len(model.linear), len(model.upper)
        moving = rates > 0.0
        step = sparse.csr_array(
            (-rates[moving], (rows[moving], np.zeros(int(moving.sum()), np.intp))), shape=(m, 1)
        )
        program = Program(
            c=np.concatenate([np.zeros(n), [-1.0]]),
            a=sparse.csr_array(sparse.hstack([model.rows, step])),
            lower=np.full(m, -math.inf),
            upper=model.upper,
            least=np.zeros(n + 1),
            most=np.concatenate([np.ones(n), [math.inf]]),
            integers=n,
        )
        left = self.deadline - time.monotonic()
        if left <= 0.0:
            raise OutOfTime
        answer = self._solve(program, 0.0, left)
        if answer.infeasible:
            return None, math.inf
        if answer.v is None:
            raise OutOfTime
        z = np.round(np.clip(answer.v[:n], 0.0, 1.0)).astype(np.float64)
        return z, max(0.0, -answer.bound)

    def _broken(self, rules: Sequence[Constraint], model: Model, z: NDArray[np.float64]) -> str | None:
        """Name of a rule that the slates of a selection violate, counted without the inequality.

        Without the slate size, what some rules say of a selection is not what they say of a slate.
        """
        if not any(isinstance(rule, SlateSize) for rule in rules):
            return None
        slates = model.slates(z)
        for rule in rules:
            about = self.population
            measured = (
                np.array([rule.measure(slates, about)])
                if rule.scope == "population"
                else rule.measure_all(slates, about)
            )
            if not (measured <= TOLERANCE).all():
                return rule.name
        return None

    def steps_to_fit(self, kept: Set[int], owner: int) -> int | None:
        """How far the slate size must move at least for these rules to leave slates; None where none will do.

        Where some of the rules depends on the size, that is not known before it is tried, and 1 is returned.
        """
        if any(self._knows_size(self.rules[i]) for i in kept if i != owner):
            return 1
        model = self._model(kept)
        rows = np.flatnonzero(model.owner == owner)
        z, _ = self._least(model, rows, owner, np.ones(len(rows)), summed=False)
        return None if z is None else max(1, round(float(_excess(model, z, owner).max())))

    def _knows_size(self, rule: Constraint) -> bool:
        """Whether a rule asks something else of slates of another size."""
        if not isinstance(rule, ItemConstraint) or rule.positional:
            return True
        resized = replace(self.population, k=self.population.k + 1)
        return not np.array_equal(rule.rhs(self.population), rule.rhs(resized))

    def fits(self, kept: Set[int], k: int) -> bool:
        """Whether these rules leave slates when they are to hold k items instead.

        Raises:
            OutOfTime: The deadline passed.
        """
        rules = [replace(rule, k=k) if isinstance(rule, SlateSize) else rule for rule in self.rules]
        other = Subsets(
            [rules[i] for i in sorted(kept)], replace(self.population, k=k), self._name, self.deadline
        )
        return other.satisfying(other.everything) is not None

    def may_lose_size(self, kept: Set[int]) -> bool:
        """Whether these rules mean the same of any set of items as of slates of k.

        Linear rules do; where positions count, all of them must, and places after the last one for nothing.
        """
        rules = [self.rules[i] for i in kept]
        if not any(rule.positional for rule in rules):
            return all(isinstance(rule, LinearConstraint) for rule in rules)
        k = self.population.k
        weights = [
            rule.position_weights(k + 1) if isinstance(rule, LinearConstraint) else None for rule in rules
        ]
        return all(each is not None and each[k] == 0.0 for each in weights)


def _part(model: Model, kept: Set[int]) -> Model:
    """The problem with the rows of these rules alone, and those that make z an assignment."""
    here = (model.owner < 0) | np.isin(model.owner, list(kept))
    position = np.cumsum(here) - 1
    return replace(
        model,
        rows=sparse.csr_array(model.rows[here]),
        upper=model.upper[here],
        penalty=model.penalty[here],
        owner=model.owner[here],
        curves=tuple(replace(c, row=int(position[c.row])) for c in model.curves if here[c.row]),
        opaque=tuple(o for o in model.opaque if o.owner in kept),
    )


def _excess(model: Model, z: NDArray[np.float64], owner: int) -> NDArray[np.float64]:
    """How far a rule's rows, and then the entries of one only known as a function, are above their bounds."""
    over = model.rows @ z - model.upper
    for curve in model.curves:
        over[curve.row] += float(curve.function(curve.factor.T @ z))
    entries = [o.evaluate(z[o.at])[0] - o.upper for o in model.opaque if o.owner == owner]
    return np.concatenate([over[model.owner == owner], *entries])
