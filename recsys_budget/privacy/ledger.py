"""The ledger: the only way to spend privacy budget."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget import _html
from recsys_budget.errors import (
    BudgetExceededError,
    LedgerCorruptError,
    PopulationError,
    ReservationError,
    SpecificationError,
)
from recsys_budget.privacy import _account
from recsys_budget.privacy._account import UNIT, Account, Accounts, Entry
from recsys_budget.privacy._fork import keep_still_while_forking
from recsys_budget.privacy._sketch import Sketcher, key_path, read_key
from recsys_budget.privacy._store import Store, is_missing
from recsys_budget.privacy.accounting import (
    epsilon,
    filter_order,
    renyi_epsilon,
    round_up,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.mechanism import Mechanism, releases
from recsys_budget.privacy.reservation import _FROM_A_LEDGER, Reservation

_SHOWN = 12  # reservations in a notebook's display
_COLUMNS = ("record", "time", "event", "purpose", "mechanisms", "used", "epsilon", "total", "settled")


def chunk(mechanism: Mechanism) -> int:
    """How many releases are claimed at once: many, so that a step costs nothing, and few of the whole."""
    return max(1, min(1024, releases(mechanism) // 8))


@dataclass(frozen=True)
class LedgerHead:
    """A point in a ledger's record, kept elsewhere to tell whether an older copy was put back.

    Attributes:
        ledger: Identity of the ledger.
        population: Whose budget it was.
        seq: Number of the last record then.
        hash: SHA-256 chained over all records up to it, hexadecimal.
    """

    ledger: str
    population: str
    seq: int
    hash: str


class PrivacyLedger:
    """Keeps everything that is spent on one population's data at or under a cap.

    Spend first, read after: :meth:`reserve` records the cost before any private data is touched, or raises
    and records nothing. What was reserved stays spent until it is settled, and what was run stays spent.

    With a path, the record is a file that survives crashes and restarts and that any number of processes,
    threads and kernels may share; one file holds any number of populations, each with a cap of its own.
    Without one, it lives in this object: another kernel, or running the cell again, starts a new record.

    Accounting: costs add up as Renyi divergence at one order, fixed when the population is declared, in whole
    units of 1e-12. The filter grants a request while the total stays at or under what converts to the
    cap, which is valid when later requests depend on earlier outputs (Feldman and Zrnic 2021). A first
    request that the filter would refuse is granted all the same if it costs no more than the cap by PLD, the
    tighter accounting of schedules fixed in advance: then nothing can follow it, and nothing is returned.
    Which rule applies never depends on data.

    Args:
        cap: The budget that is never exceeded. None takes what the file says. To change a recorded cap, call
            :meth:`set_cap`.
        path: The ledger file, made if there is none; None keeps the record in memory.
        population: Name of the people whose data this is. Data that grew or changed under the same name
            goes on spending the same budget.

    Raises:
        SpecificationError: Without a cap there is nothing to open; or the file records another cap.
        LedgerCorruptError: The file is damaged, edited, emptied, or lost while its key is there.
        LedgerUnavailableError: The file cannot be read or written.

    Examples:
        >>> from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=2.0, delta=1e-6))
        >>> reservation = ledger.reserve([GaussianMechanism(10.0)], purpose="popularity counts")
        >>> round(ledger.spent, 2)
        0.4

    References:
        Feldman and Zrnic (2021), arXiv:2008.11193. Rogers, Roth, Ullman and Vadhan (2016), arXiv:1605.08294
        (why adaptively chosen budgets need filters).
    """

    def __init__(
        self,
        cap: PrivacyBudget | None = None,
        path: str | PathLike[str] | None = None,
        *,
        population: str = "users",
    ) -> None:
        if not isinstance(population, str) or not population or not _encodable(population):
            raise SpecificationError(f"population is {population!r}; give the people a name")
        self._population = population
        self._lock = threading.RLock()
        self._accounts = Accounts()
        self._sketcher: Sketcher | None = None
        self._other_marks: dict[tuple[str, int], NDArray[np.uint64]] = {}
        # Absolute, so that it stays the same file wherever the process goes.
        where = None if path is None else Path(path).absolute()
        if where is not None and is_missing(where):
            if cap is None:
                raise SpecificationError(f"there is no ledger {where}; give the cap to make one")
            if not is_missing(key_path(where)):
                raise LedgerCorruptError(
                    f"the ledger {where} is missing, but its key {key_path(where)} is there: put the ledger "
                    "back. Only if it never held anything that counts, delete the key to start a new one"
                )
        keep_still_while_forking(self)
        with self._lock:
            self._store = Store(where, self._accounts.apply)
            self._declare(cap)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ledger cannot be copied or pickled: open its path again instead")

    @property
    def path(self) -> Path | None:
        """The file, or None for a record in memory."""
        return self._store.path

    @property
    def population(self) -> str:
        """Whose budget this is."""
        return self._population

    @property
    def cap(self) -> PrivacyBudget:
        """The budget that is never exceeded."""
        with self._read() as account:
            return account.cap

    @property
    def head(self) -> LedgerHead:
        """The end of the record now: keep it elsewhere, and :meth:`verify` it later."""
        with self._read():
            return LedgerHead(self._accounts.ledger, self._population, *self._store.head)

    @property
    def spent(self) -> float:
        """Epsilon of everything reserved so far, less what was returned, at the cap's delta."""
        with self._read() as account:
            return _account.spent(account)

    @property
    def remaining(self) -> float:
        """The cap's epsilon less :attr:`spent`; 0 when nothing more fits. A summary: costs do not add up."""
        with self._read() as account:
            return _account.remaining(account)

    @property
    def guaranteed_epsilon(self) -> float:
        """Epsilon that everything reserved so far is guaranteed to keep to.

        What one reservation costs by PLD; from the second on the cap itself, the highest there was, since a
        filter guarantees its cap, and what was spent under it is a running figure.
        """
        with self._read() as account:
            live, delta = account.live, account.cap.delta
            if len(live) > 1:
                # Of the highest cap there was: lowering it does not take back what it admitted.
                return max(
                    account.cap.epsilon, renyi_epsilon(UNIT * account.most_units, delta, account.order)
                )
            return epsilon(live[0].mechanisms, account.cap.delta) if live else 0.0

    def fits(self, mechanisms: Sequence[Mechanism]) -> bool:
        """Whether :meth:`reserve` would grant this; reserves nothing."""
        request = _account.plain(mechanisms)
        with self._read() as account:
            return _account.granted(account, request) is not None

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
            LedgerError: The record cannot be written; nothing is granted.
        """
        request = _account.plain(mechanisms)
        if not request:
            raise SpecificationError("an empty reservation; name the mechanisms that are about to run")
        # Worked out before the file is locked, since it is slow; the second look, inside, is from the cache.
        self.fits(request)
        with self._write() as account:
            terms = _account.granted(account, request)
            if terms is not None:
                units, filtered = terms
                number = self._append(
                    "reserve",
                    mechanisms=[_account.describe(m) for m in request],
                    purpose=str(purpose),
                    units=units,
                    filtered=filtered,
                    claimed=[chunk(m) for m in request],
                )
        if terms is None:
            raise self._exceeded(request, purpose)
        return Reservation(self, number, request, purpose, [chunk(m) for m in request], _FROM_A_LEDGER)

    def resume(self, reservation: int) -> Reservation:
        """An open reservation again: after a restart or a crash, or in another process.

        What was claimed before stays used, whether it was run or lost; the rest can be used or returned.

        Args:
            reservation: ``Reservation.id``, also the column ``record`` of :meth:`history`.

        Raises:
            ReservationError: This population has no such reservation, or it is settled.
        """
        with self._read() as account:
            entry = account.entries.get(reservation)
            if entry is None or entry.settled:
                what = "is not one of this population" if entry is None else "is settled"
                raise ReservationError(f"reservation {reservation} {what}; reserve again")
            nothing = [0] * len(entry.mechanisms)
            return Reservation(self, entry.seq, entry.mechanisms, entry.purpose, nothing, _FROM_A_LEDGER)

    def register(self, users: Iterable[str]) -> None:
        """Tell the ledger whose data is about to be read, so that nobody has two budgets.

        Models and queries call this before they reserve. Users are compared by a keyed sketch (see
        ``SECURITY.md``): the file reveals nothing about them without the key, which lies beside it, and
        which should not be handed out with it. That somebody is known under two names is shown to the owner
        of the machine by an error, and is not private.

        Args:
            users: Ids of everybody in the data.

        Raises:
            PopulationError: Some of them are known under another population of this file, which was not
                declared to be other people.
        """
        with self._read():
            if self._sketcher is None:
                self._sketcher = self._make_sketcher()
        marks, digest = self._sketcher.marks(map(str, users))
        with self._write() as account:
            self._check_key(self._sketcher)
            shared = self._known_as(marks)
            if shared is not None:
                raise PopulationError(
                    f"users of {self._population!r} are already known as {shared!r} in this ledger: spend "
                    f"from that population's budget, or, if equal ids are different people, say so with "
                    f"declare_disjoint({shared!r}, reason=...). Nothing was spent"
                )
            if digest in account.digests:
                return
            if not self._accounts.fingerprint:
                self._store.append("", "key", {"fingerprint": self._sketcher.fingerprint})
            self._append("users", data=self._sketcher.encipher(marks), digest=digest)

    def declare_disjoint(self, other: str, *, reason: str) -> None:
        """Declare that this population and another are different people, even where ids agree.

        Args:
            other: Name of the other population.
            reason: Why that is so; recorded.
        """
        if not reason:
            raise SpecificationError("say why these are different people: reason='...'")
        with self._write() as account:
            if other not in account.disjoint:
                self._append("disjoint", other=str(other), reason=str(reason))

    def set_cap(self, cap: PrivacyBudget, *, reason: str) -> None:
        """Change the cap: an explicit act, recorded with its reason.

        A higher cap admits more spending. A lower one keeps the history and refuses what no longer fits, even
        if that is everything. The order at which the filter counts stays what it was. The guarantee is that
        of the cap that was kept to, provided that raising it does not depend on what was released.

        Args:
            cap: The new budget.
            reason: Why.
        """
        if not reason:
            raise SpecificationError("say why the cap changes: reason='...'")
        with self._write() as account:
            if cap != account.cap:
                self._append("cap", epsilon=cap.epsilon, delta=cap.delta, reason=str(reason))

    def verify(self, head: LedgerHead) -> None:
        """Check that this record goes on from a head that was kept elsewhere, in a receipt say.

        Raises:
            LedgerCorruptError: It does not: an older copy or another file was put in its place.
        """
        with self._read():
            if head.ledger != self._accounts.ledger:
                raise LedgerCorruptError(
                    f"this is ledger {self._accounts.ledger}, not {head.ledger}: it was made anew or is "
                    "another. Put the right one back"
                )
            self._store.verify(head.seq, head.hash)

    def history(self) -> pd.DataFrame:
        """Everything recorded for this population, oldest first; times are UTC and nothing depends on them.

        Columns: record (its number), time, event ("reservation", "users", "cap" or "disjoint"), purpose,
        mechanisms and used (in words), epsilon (of the reservation alone, by PLD), total (epsilon of all
        up to it, as they count now) and settled. Rows of other events leave the last four missing.
        """
        with self._read() as account:
            rows: list[dict[str, Any]] = [
                {"record": seq, "time": time, "event": event, "purpose": words}
                for seq, time, event, words in account.events
            ]
            units, live, totals = 0, [], []
            for entry in account.entries.values():
                units += entry.units
                live += [entry] if entry.live else []
                totals.append(_account.total(account, units, live))
            rows += [
                {
                    "record": entry.seq,
                    "time": entry.time,
                    "event": "reservation",
                    "purpose": entry.purpose,
                    "mechanisms": "; ".join(map(str, entry.mechanisms)),
                    "used": "; ".join(
                        f"{n} of {releases(m)}" for n, m in zip(entry.claimed, entry.mechanisms, strict=True)
                    ),
                    "epsilon": epsilon(entry.mechanisms, account.cap.delta),
                    "total": total,
                    "settled": entry.settled,
                }
                for entry, total in zip(account.entries.values(), totals, strict=True)
            ]
        rows.sort(key=lambda row: int(row["record"]))
        frame = pd.DataFrame(rows, columns=list(_COLUMNS))
        return frame.assign(time=pd.to_datetime(frame["time"], utc=True))

    def __repr__(self) -> str:
        with self._read() as account:
            return (
                f"PrivacyLedger(epsilon spent {round_up(_account.spent(account))} of {account.cap.epsilon:g} "
                f"at delta {account.cap.delta:g}, reservations: {len(account.entries)})"
            )

    def _repr_html_(self) -> str:
        """Spent, remaining, and a line a reservation; everything that somebody wrote is escaped."""
        with self._read() as account:
            spent, left, cap = _account.spent(account), _account.remaining(account), account.cap
            rows = [
                (
                    entry.seq,
                    entry.purpose,
                    "; ".join(map(str, entry.mechanisms)),
                    f"{round_up(epsilon(entry.mechanisms, cap.delta)):.4f}",
                    "settled" if entry.settled else "open",
                )
                for entry in account.entries.values()
            ]
        where: Path | str = self.path or "the memory of this process: gone when it ends"
        if self.path is not None and self.path.is_relative_to(Path.cwd()):
            where = self.path.relative_to(Path.cwd())
        shown = rows[-_SHOWN:]
        earlier = f" ({len(rows) - _SHOWN} earlier ones are in history())" if len(rows) > _SHOWN else ""
        return _html.card(
            f"Privacy ledger of {self._population}",
            _html.gauge(spent, cap.epsilon),
            _html.text(f"remaining: {math.floor(left * 1e4) / 1e4:.4f}, at delta {cap.delta:g}"),
            _html.table(shown, ("record", "purpose", "mechanisms", "epsilon alone", "state"))
            if rows
            else _html.text("nothing is spent yet"),
            note=f"Kept in {where}. Epsilons of single reservations do not add up{earlier}.",
        )

    @contextmanager
    def _read(self) -> Iterator[Account]:
        """This population as it stands now, everybody's writing included."""
        with self._lock:
            self._store.refresh()
            yield self._accounts.populations[self._population]

    @contextmanager
    def _write(self) -> Iterator[Account]:
        """The same, with the file locked: what is appended is on the disk when the block ends."""
        with self._lock, self._store.transaction():
            yield self._accounts.populations[self._population]

    def _append(self, kind: str, *, data: bytes = b"", **body: Any) -> int:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self._store.append(self._population, kind, {"time": now} | body, data)

    def _declare(self, cap: PrivacyBudget | None) -> None:
        """Record the population if it is new, or hold its recorded cap against the one given."""
        account = self._accounts.populations.get(self._population)
        if account is None:
            if cap is None:
                known = ", ".join(map(repr, self._accounts.populations)) or "none"
                raise SpecificationError(
                    f"{self.path} has no population {self._population!r}; it has {known}. Name one of them, "
                    "or give a cap to declare another"
                )
            with self._store.transaction():
                if not self._accounts.ledger:
                    self._store.append("", "ledger", {"id": secrets.token_hex(16)})
                if self._population not in self._accounts.populations:
                    self._append("population", epsilon=cap.epsilon, delta=cap.delta, order=filter_order(cap))
            account = self._accounts.populations[self._population]
        if cap is not None and (cap.epsilon, cap.delta) != (account.cap.epsilon, account.cap.delta):
            raise SpecificationError(
                f"the ledger records the cap {account.cap} for {self._population!r}, not {cap}; open it "
                "without a cap, and call set_cap to change it"
            )

    def _entry(self, reservation: int) -> Entry:
        with self._read() as account:
            return account.entries[reservation]

    def _claim(self, reservation: int, places: Sequence[int]) -> tuple[int, int]:
        """Claim a chunk of releases for one of these places of a reservation: the place, and how many."""
        with self._write() as account:
            entry = account.entries[reservation]
            if entry.settled:
                raise ReservationError(f"the reservation for {entry.purpose!r} is settled; reserve again")
            for place in places:
                mechanism, claimed = entry.mechanisms[place], entry.claimed[place]
                count = min(chunk(mechanism), releases(mechanism) - claimed)
                if count:
                    self._append("claim", reservation=reservation, place=place, claimed=claimed + count)
                    return place, count
            return places[0], 0

    def _settle(self, reservation: int, unused: Sequence[int]) -> None:
        with self._write() as account:
            entry = account.entries[reservation]
            if entry.settled:
                return
            used = [n - left for n, left in zip(entry.claimed, unused, strict=True)]
            units = entry.units
            if entry.filtered or not any(used):
                units = min(units, _account.cost(_account.shortened(entry.mechanisms, used), account.order))
            self._append("settle", reservation=reservation, used=used, units=units)

    def _make_sketcher(self) -> Sketcher:
        known = self._accounts.fingerprint
        sketcher = Sketcher(read_key(self.path, self._accounts.ledger, expected=bool(known)))
        self._check_key(sketcher)
        return sketcher

    def _check_key(self, sketcher: Sketcher) -> None:
        if self._accounts.fingerprint not in ("", sketcher.fingerprint):
            raise LedgerCorruptError(
                f"{self.path} was written with another key than now lies beside it; put the right key back"
            )

    def _known_as(self, marks: NDArray[np.uint64]) -> str | None:
        """Another population, not declared disjoint, that some of these users are known under."""
        assert self._sketcher is not None
        ours = self._accounts.populations[self._population]
        for name, other in self._accounts.populations.items():
            if name == self._population or name in ours.disjoint or self._population in other.disjoint:
                continue
            for number, sketch in enumerate(other.sketches):
                if (name, number) not in self._other_marks:
                    self._other_marks[name, number] = self._sketcher.decipher(sketch)
                if len(np.intersect1d(marks, self._other_marks[name, number], assume_unique=True)):
                    return name
        return None

    def _exceeded(self, request: tuple[Mechanism, ...], purpose: str) -> BudgetExceededError:
        with self._read() as account:
            cap, delta = account.cap.epsilon, account.cap.delta
            alone, spent, remaining = (
                epsilon(request, delta),
                _account.spent(account),
                _account.remaining(account),
            )
            together = renyi_epsilon(
                UNIT * (account.units + _account.cost(request, account.order)), delta, account.order
            )
            if not account.live:
                together = min(together, alone)
        largest = _account.largest(request, self.fits) if remaining else None
        looser = ", by the looser rule for choices made after seeing results" if spent else ""
        more = f"What would fit: {'; '.join(map(str, largest))}" if largest else "Nothing more fits"
        return BudgetExceededError(
            f"{purpose!r} does not fit under the cap: epsilon {round_up(spent)} of {cap:g} is spent, and "
            f"with this request everything together would cost {round_up(together)}{looser}. Nothing was "
            f"spent now. {more}",
            requested=alone,
            remaining=remaining,
            cap=cap,
            largest=largest,
        )


def _encodable(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
