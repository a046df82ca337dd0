"""A reservation: permission, already paid for, to release what was reserved, each release once."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from recsys_budget.errors import ReservationError, ReservationUsedUpError
from recsys_budget.privacy.mechanism import Mechanism, releases

if TYPE_CHECKING:
    from recsys_budget.privacy.ledger import PrivacyLedger

_FROM_A_LEDGER = object()


class Reservation:
    """Permission, already paid for, to run the reserved mechanisms once.

    Made by :meth:`PrivacyLedger.reserve`, and again by :meth:`PrivacyLedger.resume`; by nothing else.
    Releases are claimed from the ledger in chunks, before they happen: after a crash, at most one chunk
    counts as run that was not. Whatever was not run can be returned by :meth:`commit` (or by leaving a
    ``with`` block); until then it counts as spent. A reservation cannot be copied, pickled or used in a
    forked process, since each copy would be granted the same releases again.
    """

    def __init__(
        self,
        ledger: PrivacyLedger,
        number: int,
        mechanisms: tuple[Mechanism, ...],
        purpose: str,
        granted: list[int],
        token: object = None,
    ) -> None:
        if token is not _FROM_A_LEDGER:
            raise ReservationError("reservations are made by PrivacyLedger.reserve, which pays for them")
        self._ledger, self._id = ledger, number
        self._mechanisms, self._purpose = mechanisms, purpose
        self._granted = granted  # claimed from the ledger and not used yet
        self._closed = False
        self._process = os.getpid()
        self._lock = ledger._lock

    @property
    def ledger(self) -> PrivacyLedger:
        """Where it was made."""
        return self._ledger

    @property
    def id(self) -> int:
        """Number in the ledger: the same in every process."""
        return self._id

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
        """Whether :meth:`commit` was called, here or in another process."""
        return self._ledger._entry(self._id).settled

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reservation cannot be copied or pickled: its releases are granted once")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commit()

    def __repr__(self) -> str:
        state = "settled" if self.settled else "open"
        return f"Reservation({self._purpose!r}, {state}: {'; '.join(map(str, self._mechanisms))})"

    def use(self, mechanism: Mechanism) -> None:
        """Take one release of a reserved mechanism: call this right before each read of private data.

        A :class:`GaussianMechanism` may be used once, a :class:`SampledGaussianMechanism` ``steps`` times.

        Raises:
            ReservationUsedUpError: All its releases were taken.
            ReservationError: The mechanism is not in the reservation, the reservation is settled, or this is
                another process than the one that reserved.
            LedgerError: The ledger cannot record it.
        """
        if os.getpid() != self._process:
            raise ReservationError(
                "this reservation belongs to the process that made it; a fork would use its releases "
                "again. Call ledger.resume(reservation.id) there"
            )
        with self._lock:
            if self._closed:
                raise ReservationError(f"the reservation for {self._purpose!r} is settled; reserve again")
            places = [i for i, reserved in enumerate(self._mechanisms) if reserved == mechanism]
            if not places:
                raise ReservationError(
                    f"{mechanism} was not reserved; reserve it before reading. Reserved is {self!r}"
                )
            place = next((i for i in places if self._granted[i]), None)
            if place is None:
                place, self._granted[place] = self._claim(places, mechanism)
            self._granted[place] -= 1

    def used(self, mechanism: Mechanism) -> int:
        """How many releases of this mechanism were taken, here and elsewhere; lost chunks count."""
        places = [i for i, reserved in enumerate(self._mechanisms) if reserved == mechanism]
        with self._lock:
            claimed = self._ledger._entry(self._id).claimed
            return sum(claimed[i] - self._granted[i] for i in places)

    def left(self, mechanism: Mechanism) -> int:
        """How many releases of this mechanism can still be taken."""
        if self.settled:
            return 0
        total = sum(releases(m) for m in self._mechanisms if m == mechanism)
        return total - self.used(mechanism)

    def commit(self) -> None:
        """Settle: no release can be taken any more, and what was not run is returned where that is sound.

        It is sound when the Renyi filter covered the reservation, because a filter holds whenever, and
        for whatever reason, a run stops. It is not when the reservation was granted for being alone, by the
        tighter accounting of schedules fixed in advance: then all of it stays spent.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            # First of all: whether what comes next is interrupted or not, what is returned is never used.
            self._closed = True
            self._ledger._settle(self._id, self._granted)
            self._granted = [0] * len(self._mechanisms)

    def _claim(self, places: list[int], mechanism: Mechanism) -> tuple[int, int]:
        place, count = self._ledger._claim(self._id, places)
        if not count:
            raise ReservationUsedUpError(
                f"{mechanism}: all reserved releases of it were used; reserve more before reading"
            )
        return place, count
