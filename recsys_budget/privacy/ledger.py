"""The ledger: the only way to spend privacy budget."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import NoReturn

import pandas as pd

from recsys_budget.errors import (
    BudgetExceededError,
    ReservationError,
    ReservationUsedUpError,
    SpecificationError,
)
from recsys_budget.privacy.accounting import epsilon, filter_epsilon, round_up
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism

# About the least that anyone would ask for: where not even this fits, nothing does.
_LEAST = GaussianMechanism(1e4)
_FROM_A_LEDGER = object()


class Reservation:
    """Permission, already paid for, to run the reserved mechanisms once.

    Made by :meth:`PrivacyLedger.reserve` and by nothing else. Whatever becomes of it, its whole cost stays
    spent. It cannot be copied, pickled or used in a forked process, since each copy would be granted the
    same releases again.
    """

    def __init__(self, mechanisms: tuple[Mechanism, ...], purpose: str, token: object = None) -> None:
        if token is not _FROM_A_LEDGER:
            raise ReservationError("reservations are made by PrivacyLedger.reserve, which pays for them")
        self._process = os.getpid()
        self._mechanisms, self._purpose = mechanisms, purpose
        self._settled = False
        self._used = [0] * len(mechanisms)
        self._lock = threading.Lock()

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """What may be run."""
        return self._mechanisms

    @property
    def purpose(self) -> str:
        """What for, in words."""
        return self._purpose

    @property
    def settled(self) -> bool:
        """Whether :meth:`commit` was called."""
        return self._settled

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reservation cannot be copied or pickled: its releases are granted once")

    def __repr__(self) -> str:
        state = "settled" if self._settled else "open"
        return f"Reservation({self._purpose!r}, {state}: {'; '.join(map(str, self._mechanisms))})"

    def use(self, mechanism: Mechanism) -> None:
        """Take one release of a reserved mechanism: call this right before each read of private data.

        A :class:`GaussianMechanism` may be used once, a :class:`SampledGaussianMechanism` ``steps`` times.

        Raises:
            ReservationError: The mechanism is not in the reservation, all its releases were used, the
                reservation is settled, or this is another process than the one that reserved.
        """
        _same_process(self._process)
        with self._lock:
            if self._settled:
                raise ReservationError(f"the reservation for {self._purpose!r} is settled; reserve again")
            places = [i for i, reserved in enumerate(self._mechanisms) if reserved == mechanism]
            for place in places:
                if self._used[place] < _releases(mechanism):
                    self._used[place] += 1
                    return
            problem = "all reserved releases of it were used" if places else "it was not reserved"
            error = ReservationUsedUpError if places else ReservationError
            raise error(f"{mechanism}: {problem}; reserve it before reading. Reserved is {self!r}")

    def used(self, mechanism: Mechanism) -> int:
        """How many releases of this mechanism were taken."""
        return sum(used for used, m in zip(self._used, self._mechanisms, strict=True) if m == mechanism)

    def commit(self) -> None:
        """Settle: no release can be taken from this reservation any more."""
        with self._lock:
            self._settled = True


class PrivacyLedger:
    """Keeps everything that is spent on one population's data at or under a cap.

    Spend first, read after: :meth:`reserve` records the cost before any private data is touched, or raises
    and records nothing. What was reserved stays spent, settled or not.

    Accounting: a schedule that is alone in the ledger was fixed before anything was released, so its PLD
    epsilon is exact enough to use. From the second reservation on, later choices may depend on earlier
    outputs, so everything together must fit the Renyi filter (see :mod:`recsys_budget.privacy.accounting`).
    Which rule applies never depends on the data.

    Why the switch is sound: write R for the Renyi divergence that converts to the cap. If the first
    reservation has more than R, nothing can follow it, so its PLD epsilon stands. Otherwise whatever follows
    keeps the sum at R or below, and the filter covers everything. Which of the two holds is settled by the
    first request, before anything is released.

    The record lives in this object: keep one ledger a population, and share it between models. It is safe
    to use from several threads, and refuses forked processes, whose records would part ways. It is *not*
    written to disk: a new process, or running the cell that makes it again, starts a new record. To spend in
    several processes, split epsilon *and* delta between them beforehand.

    Args:
        cap: The budget that is never exceeded.

    Examples:
        >>> from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=2.0, delta=1e-6))
        >>> reservation = ledger.reserve([GaussianMechanism(10.0)], purpose="popularity counts")
        >>> round(ledger.spent, 2)
        0.4
    """

    def __init__(self, cap: PrivacyBudget) -> None:
        self._cap = cap
        self._reservations: list[Reservation] = []
        self._lock = threading.RLock()
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ledger cannot be copied or pickled: a copy would spend the same budget again")

    @property
    def cap(self) -> PrivacyBudget:
        """The budget that is never exceeded."""
        return self._cap

    @property
    def spent(self) -> float:
        """Epsilon of everything reserved so far, at the cap's delta."""
        with self._lock:
            return self._cost(self._recorded())

    @property
    def remaining(self) -> float:
        """The cap's epsilon less :attr:`spent`; 0 when nothing more fits. A summary: costs do not add up."""
        return max(0.0, self._cap.epsilon - self.spent) if self.fits([_LEAST]) else 0.0

    @property
    def guaranteed_epsilon(self) -> float:
        """Epsilon that everything reserved so far is guaranteed to keep to.

        What one reservation costs; from the second on the cap itself, since a filter guarantees its cap, and
        what was spent under it is a running figure.
        """
        with self._lock:
            return self.spent if len(self._reservations) <= 1 else self._cap.epsilon

    def fits(self, mechanisms: Sequence[Mechanism]) -> bool:
        """Whether :meth:`reserve` would grant this; reserves nothing."""
        _same_process(self._process)
        with self._lock:
            return self._cost([*self._recorded(), tuple(mechanisms)]) <= self._cap.epsilon

    def reserve(self, mechanisms: Sequence[Mechanism], *, purpose: str) -> Reservation:
        """Pay for mechanisms that are about to run.

        Args:
            mechanisms: The schedule, fixed now; at least one mechanism.
            purpose: What for, in words; kept in the history.

        Returns:
            The reservation whose ``use`` grants each release.

        Raises:
            BudgetExceededError: The total would pass the cap; nothing is recorded.
            UnsupportedMechanismError: A mechanism that cannot be accounted; nothing is recorded.
            ReservationError: In another process than the one that made the ledger.
        """
        request = tuple(mechanisms)
        if not request:
            raise SpecificationError("an empty reservation; name the mechanisms that are about to run")
        _same_process(self._process)
        with self._lock:
            recorded = self._recorded()
            cost = self._cost([*recorded, request])
            if not cost <= self._cap.epsilon:
                alone, spent, remaining = epsilon(request, self._cap.delta), self.spent, self.remaining
                looser = ", by the looser rule for choices made after seeing results" if recorded else ""
                more = "Ask for fewer steps or more noise" if remaining else "Nothing more fits"
                raise BudgetExceededError(
                    f"{purpose!r} does not fit under the cap: epsilon {round_up(spent)} of "
                    f"{self._cap.epsilon:g} is spent, and with this request everything together would cost "
                    f"{round_up(cost)}{looser}. Nothing was spent now. {more}",
                    requested=alone,
                    remaining=remaining,
                    cap=self._cap.epsilon,
                )
            reservation = Reservation(request, purpose, _FROM_A_LEDGER)
            self._reservations.append(reservation)
            return reservation

    def history(self) -> pd.DataFrame:
        """One row a reservation, oldest first: purpose, mechanisms, epsilon (alone), total, settled."""
        with self._lock:
            rows = [
                {
                    "purpose": r.purpose,
                    "mechanisms": "; ".join(map(str, r.mechanisms)),
                    "epsilon": epsilon(r.mechanisms, self._cap.delta),
                    "total": self._cost([s.mechanisms for s in self._reservations[: i + 1]]),
                    "settled": r.settled,
                }
                for i, r in enumerate(self._reservations)
            ]
        return pd.DataFrame(rows, columns=["purpose", "mechanisms", "epsilon", "total", "settled"])

    def __repr__(self) -> str:
        return (
            f"PrivacyLedger(epsilon spent {round_up(self.spent)} of {self._cap.epsilon:g} "
            f"at delta {self._cap.delta:g}, reservations: {len(self._reservations)})"
        )

    def _recorded(self) -> list[tuple[Mechanism, ...]]:
        return [r.mechanisms for r in self._reservations]

    def _cost(self, requests: list[tuple[Mechanism, ...]]) -> float:
        everything = [mechanism for request in requests for mechanism in request]
        if len(requests) <= 1:
            return epsilon(everything, self._cap.delta)
        return filter_epsilon(everything, self._cap)


def _releases(mechanism: Mechanism) -> int:
    return mechanism.steps if isinstance(mechanism, SampledGaussianMechanism) else 1


def _same_process(process: int) -> None:
    if os.getpid() != process:
        raise ReservationError(
            "this ledger belongs to the process that made it; a fork would spend the same budget again"
        )
