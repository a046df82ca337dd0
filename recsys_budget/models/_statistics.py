"""What models made from noisy statistics share: one reservation for all releases, then no private data."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Generic, Self, TypeVar

from sklearn.utils.validation import check_is_fitted

from recsys_budget.data import Interactions
from recsys_budget.models._constants import require_epsilons, require_whole
from recsys_budget.models._pool import combined
from recsys_budget.models.base import Recommender
from recsys_budget.models.path import PathPoint
from recsys_budget.privacy import (
    GaussianMechanism,
    Mechanism,
    PrivacyLedger,
    PrivateQueries,
    Receipt,
    epsilon,
    smallest_noise,
)

# Noise multipliers are looked for down to this, the least that a mechanism may have.
_LEAST, _LEAST_SEARCHED = 0.05, 0.3
# What a stage adds to 1 / noise**2 is at least this share of all of it.
_SMALLEST = 1e-4

_Stage = tuple[GaussianMechanism, ...]
_Fits = Callable[[Sequence[Mechanism]], bool]
Released = TypeVar("Released")


class StatisticsModel(Recommender, Generic[Released]):
    """A recommender whose ``fit`` releases a few statistics and computes from them alone.

    Each statistic is released once; with ``epsilons`` once a stage, with noise of its own. Subclasses say how
    the budget is shared (:meth:`_shares`), what a stage releases (:meth:`_release`), and what is learnt from
    any number of stages (:meth:`_learn`). Their constructors take ``declared_users``, ``epsilons`` and
    ``insecure_seed``.
    """

    declared_users: int
    epsilons: Sequence[float]
    insecure_seed: int | None
    _stages: tuple[_Stage, ...]
    _released: tuple[Released, ...]
    _path: tuple[PathPoint, ...] | None
    _public: ClassVar[tuple[str, ...]] = (
        "item catalogue",
        "about how many users there are",
        "constructor arguments",
    )

    @abstractmethod
    def _shares(self, users_per_noise: float) -> tuple[float, ...]:
        """Share of 1 / noise**2 that each statistic gets; they add up to 1.

        Args:
            users_per_noise: Declared users over the noise multiplier of a single release of all the budget.
        """

    @abstractmethod
    def _release(
        self, queries: PrivateQueries, stages: Sequence[_Stage], released: Sequence[Released]
    ) -> Released:
        """Ask the queries of the next stage, number ``len(released)``."""

    @abstractmethod
    def _learn(self, released: Sequence[Released]) -> str:
        """Set the fitted attributes from these stages alone, and say in words what came of it."""

    def _check(self, n_items: int) -> None:
        """Refuse constants out of range."""
        require_whole("declared_users", self.declared_users)
        require_epsilons(self.epsilons)

    def fit(self, interactions: Interactions, *, ledger: PrivacyLedger) -> Self:
        """Reserve all releases at once, make them, and learn from what was released.

        Takes all that the ledger has left.

        Args:
            interactions: Implicit feedback (ratings are ignored), over a declared catalogue.
            ledger: Of the population whose data this is.

        Raises:
            SpecificationError: Constants out of range, or a table that unaccounted reads have shaped; nothing
                was read or spent.
            PopulationError: Some of these users spend from another population's budget; nothing was spent.
            BudgetExceededError: Nothing more fits; nothing was read or spent.
            LedgerError: The ledger cannot be trusted or written.
        """
        self._check(interactions.n_items)
        # Refuses tables that unpaid reads have shaped, and strangers, before anything is spent.
        PrivateQueries(interactions, ledger, insecure_seed=self.insecure_seed)
        stages = self._plan(ledger)
        reservation = ledger.reserve(_flat(stages), purpose=f"fit {type(self).__name__}")
        with reservation:
            self.catalogue_ = interactions.catalogue
            queries = PrivateQueries(interactions, reservation, insecure_seed=self.insecure_seed)
            released: list[Released] = []
            for _ in stages:
                released.append(self._release(queries, stages, released))
        outcome = self._learn(released)
        self._stages, self._released, self._path = stages, tuple(released), None
        self.receipt_ = Receipt.write(
            model=type(self).__name__,
            private=self.insecure_seed is None,
            ledger=ledger,
            reservation=reservation,
            steps=0,
            stop_reason=outcome,
            constants=self.get_params(),
            declared_public=self._public,
        )
        return self

    def epsilon_path(self) -> tuple[PathPoint, ...]:
        """The model of what was released at each of ``epsilons`` that was reached, ascending.

        A point costs what its epsilon says, by PLD, at most what was asked for; all of them together cost
        what the fit cost. An epsilon above that gives the last model, and one too small for any release gives
        none. Points are computed from what was released when this is first called, each in about the time
        that ``fit`` takes; their receipts are that of the fit. None of them has a path of its own.

        Raises:
            NotFittedError: ``fit`` was not called (scikit-learn's error).
        """
        check_is_fitted(self, "receipt_")
        if self._path is None:
            self._path = tuple(self._points())
        return self._path

    def _points(self) -> Iterator[PathPoint]:
        delta, most = self.receipt_.delta, max(self.epsilons, default=0.0)
        assert delta is not None
        for count in range(1, len(self._stages) + 1):
            cost = epsilon(_flat(self._stages[:count]), delta)
            if cost > most:
                break  # the rest of the budget, for which no point was asked
            model = copy.copy(self)
            model._released, model._path = self._released[:count], ()
            if count < len(self._stages):
                model._learn(model._released)
            yield PathPoint(cost, 0, model)

    def _plan(self, ledger: PrivacyLedger) -> tuple[_Stage, ...]:
        """For each epsilon, and then for all that is left, a stage with the least noise that fits.

        What fits is asked of all stages up to that one: by PLD for an epsilon, and of the ledger in the end.
        """
        whole = self._stage((), ledger.fits)
        if not self.epsilons:
            return (whole,)
        delta = ledger.cap.delta
        cost = epsilon(whole, delta)
        stages: tuple[_Stage, ...] = ()

        def within(most: float) -> _Fits:
            return lambda mechanisms: epsilon(mechanisms, delta) <= most

        for most in sorted({float(e) for e in self.epsilons if e < cost}):
            stages = self._and_one(stages, within(most))
        return self._and_one(stages, ledger.fits) or (whole,)

    def _and_one(self, before: tuple[_Stage, ...], fits: _Fits) -> tuple[_Stage, ...]:
        """These stages and another, where one fits."""
        stages = (*before, self._stage(before, fits))
        return stages if fits(_flat(stages)) else before

    def _stage(self, before: tuple[_Stage, ...], fits: _Fits) -> _Stage:
        """What fits after these stages: Gaussian releases compose by adding up 1 / noise**2.

        Each statistic gets what is missing to its share of all the budget up to here. Where nothing fits,
        this does not either, and the ledger says so with its own figures.
        """
        so_far = [combined(parts).noise_multiplier for parts in zip(*before, strict=True)]

        def stage(noise: float, shares: tuple[float, ...]) -> _Stage:
            wanted = [max(noise / math.sqrt(share), _LEAST) for share in shares]
            # Exactly what is wanted where there is nothing so far.
            others = so_far or [math.inf] * len(shares)
            missing = [max(1 - (w / s) ** 2, _SMALLEST) for w, s in zip(wanted, others, strict=True)]
            return tuple(GaussianMechanism(w / math.sqrt(m)) for w, m in zip(wanted, missing, strict=True))

        def least(schedule: Callable[[float], Sequence[Mechanism]]) -> float:
            scale = _LEAST / _LEAST_SEARCHED
            return scale * min(smallest_noise(lambda noise: schedule(scale * noise), fits), 1e4)

        alone = least(lambda noise: (GaussianMechanism(max(noise, _LEAST)),))
        shares = self._shares(self.declared_users / alone)
        return stage(least(lambda noise: (*_flat(before), *stage(noise, shares))), shares)


def _flat(stages: Sequence[_Stage]) -> tuple[GaussianMechanism, ...]:
    return tuple(mechanism for stage in stages for mechanism in stage)
