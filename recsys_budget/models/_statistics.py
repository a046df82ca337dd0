"""What models made from noisy statistics share: one reservation for all releases, then no private data."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Self

from recsys_budget.data import Interactions
from recsys_budget.models._constants import require_whole
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyLedger,
    PrivateQueries,
    Receipt,
    smallest_noise,
)

# Noise multipliers are looked for down to this, the least that a mechanism may have.
_LEAST, _LEAST_SEARCHED = 0.05, 0.3


class StatisticsModel(Recommender):
    """A recommender whose ``fit`` releases a few statistics, each once, and computes from them alone.

    Subclasses say how the budget is shared (:meth:`_shares`), and what is released and learnt
    (:meth:`_learn`). Their constructors take ``declared_users`` and ``insecure_seed``.
    """

    declared_users: int
    insecure_seed: int | None
    _public: ClassVar[tuple[str, ...]] = (
        "item catalogue",
        "about how many users there are",
        "constructor arguments",
    )

    @abstractmethod
    def _shares(self, users_per_noise: float) -> tuple[float, ...]:
        """Share of 1 / noise**2 that each release gets; they add up to 1.

        Args:
            users_per_noise: Declared users over the noise multiplier of a single release of all the budget.
        """

    @abstractmethod
    def _learn(self, queries: PrivateQueries, mechanisms: tuple[GaussianMechanism, ...]) -> str:
        """Ask the queries, set the fitted attributes, and say in words what came of it."""

    def _check(self, n_items: int) -> None:
        """Refuse constants out of range."""
        require_whole("declared_users", self.declared_users)

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
        mechanisms = self._plan(ledger)
        reservation = ledger.reserve(mechanisms, purpose=f"fit {type(self).__name__}")
        with reservation:
            self.catalogue_ = interactions.catalogue
            queries = PrivateQueries(interactions, reservation, insecure_seed=self.insecure_seed)
            outcome = self._learn(queries, mechanisms)
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

    def _plan(self, ledger: PrivacyLedger) -> tuple[GaussianMechanism, ...]:
        """The least noise that fits. Gaussian releases compose by adding up 1 / noise**2."""

        def schedule(noise: float, shares: tuple[float, ...]) -> tuple[GaussianMechanism, ...]:
            return tuple(GaussianMechanism(max(noise / math.sqrt(share), _LEAST)) for share in shares)

        def least(shares: tuple[float, ...]) -> float:
            scale = _LEAST / _LEAST_SEARCHED
            found = smallest_noise(lambda noise: schedule(scale * noise, shares), ledger.fits)
            # Where nothing fits, the ledger refuses the schedule, and says so with its own figures.
            return scale * min(found, 1e4)

        shares = self._shares(self.declared_users / least((1.0,)))
        return schedule(least(shares), shares)
