"""What the records of a ledger add up to, population by population."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recsys_budget.errors import LedgerCorruptError, UnsupportedMechanismError
from recsys_budget.privacy._store import Record
from recsys_budget.privacy.accounting import (
    epsilon,
    largest_steps,
    renyi,
    renyi_cap,
    renyi_epsilon,
    smallest_noise,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.mechanism import (
    GaussianMechanism,
    Mechanism,
    SampledGaussianMechanism,
    releases,
)

# Divergences are kept as whole multiples of this, so that sums are exact and do not depend on their order.
UNIT = 1e-12
_KINDS = {kind.__name__: kind for kind in (GaussianMechanism, SampledGaussianMechanism)}


# About the least that anyone would ask for: where not even this fits, nothing does.
_LEAST = GaussianMechanism(1e4)
# Stands for a divergence that is not finite: far above any cap, and still a whole number.
_UNBOUNDED = 2**62


def cost(mechanisms: Sequence[Mechanism], order: int) -> int:
    """Units of Renyi divergence, each mechanism rounded up."""
    divergences = [renyi(m, order) for m in mechanisms]
    if not all(math.isfinite(d) for d in divergences):
        return _UNBOUNDED
    return min(_UNBOUNDED, sum(math.ceil(d / UNIT) for d in divergences))


def describe(mechanism: Mechanism) -> dict[str, Any]:
    """A mechanism as plain values: its kind and fields.

    Raises:
        UnsupportedMechanismError: It is none of this package's.
    """
    if _KINDS.get(type(mechanism).__name__) is not type(mechanism):
        raise UnsupportedMechanismError(
            f"cannot account for {type(mechanism).__name__}; use {' or '.join(_KINDS)}"
        )
    # Plain numbers, whatever kind of number (NumPy's, say) was given.
    fields = {name: v if isinstance(v, int) else float(v) for name, v in asdict(mechanism).items()}
    return {"kind": type(mechanism).__name__} | fields


def restore(described: Mapping[str, Any]) -> Mechanism:
    """The mechanism that :func:`describe` described."""
    fields = dict(described)
    return _KINDS[fields.pop("kind")](**fields)


def plain(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """The mechanisms as they will be read from the record: plain numbers, counted in double precision."""
    return tuple(restore(describe(m)) for m in mechanisms)


@dataclass
class Entry:
    """One reservation as recorded.

    Attributes:
        seq: Its number.
        mechanisms: What was reserved.
        purpose: What for.
        time: When, by the clock of the machine that wrote it; nothing depends on it.
        units: What counts as spent for it now.
        filtered: Whether the filter covered it when it was granted.
        claimed: Releases claimed so far, for each mechanism.
        settled: Whether it was settled; ``claimed`` then says what was used.
    """

    seq: int
    mechanisms: tuple[Mechanism, ...]
    purpose: str
    time: str
    units: int
    filtered: bool
    claimed: list[int]
    settled: bool = False

    @property
    def live(self) -> bool:
        """Whether anything was or may still be released: not if it was settled unused."""
        return not self.settled or any(self.claimed)


@dataclass
class Account:
    """One population's budget and everything reserved from it.

    Attributes:
        cap: The budget now.
        order: Renyi order of the filter, fixed when the population was declared.
        entries: Reservations by number.
        units: What all of them count for.
        digests: Keyed digests of every user set registered.
        sketches: Enciphered sketches of those sets.
        disjoint: Populations declared to be other people.
        events: Records other than reservations that history shows: (seq, time, event, words).
        most_units: Most units under the highest cap there was.
    """

    cap: PrivacyBudget
    order: int
    entries: dict[int, Entry] = field(default_factory=dict)
    units: int = 0
    digests: list[str] = field(default_factory=list)
    sketches: list[bytes] = field(default_factory=list)
    disjoint: set[str] = field(default_factory=set)
    events: list[tuple[int, str, str, str]] = field(default_factory=list)
    most_units: int = field(init=False)

    @property
    def live(self) -> list[Entry]:
        """The reservations from which something was or may still be released."""
        return [entry for entry in self.entries.values() if entry.live]

    def __post_init__(self) -> None:
        self.most_units = self.cap_units

    @property
    def cap_units(self) -> int:
        """Most units under the cap: always fewer than what stands for a divergence that is not finite."""
        return min(_UNBOUNDED - 1, max(0, math.floor(renyi_cap(self.cap, self.order) / UNIT)))


class Accounts:
    """All populations of one file, built up record by record.

    Attributes:
        ledger: Identity of the file.
        fingerprint: Of the key that its sketches were made with; empty before the first.
        populations: By name.
    """

    def __init__(self) -> None:
        self.ledger, self.fingerprint = "", ""
        self.populations: dict[str, Account] = {}

    def apply(self, record: Record) -> None:
        """Take one record in.

        Raises:
            LedgerCorruptError: A record of a kind that this version does not know.
        """
        body, population = record.body, record.population
        match record.kind:
            case "ledger":
                self.ledger = body["id"]
            case "key":
                self.fingerprint = body["fingerprint"]
            case "population":
                self.populations[population] = Account(_budget(body), body["order"])
            case "reserve":
                self._reserve(record)
            case "claim":
                entry = self.populations[population].entries[body["reservation"]]
                entry.claimed[body["place"]] = body["claimed"]
            case "settle":
                account = self.populations[population]
                entry = account.entries[body["reservation"]]
                returned = entry.units - body["units"]
                # The total last: interrupted and taken in again, the record must not return it twice.
                entry.units, entry.claimed, entry.settled = body["units"], list(body["used"]), True
                account.units -= returned
            case "cap":
                account = self.populations[population]
                account.cap = _budget(body)
                account.most_units = max(account.most_units, account.cap_units)
                self._event(record, "cap", f"epsilon {body['epsilon']:g}: {body['reason']}")
            case "users":
                account = self.populations[population]
                words = "users changed" if account.digests else "users registered"
                account.digests.append(body["digest"])
                account.sketches.append(record.data)
                self._event(record, "users", words)
            case "disjoint":
                self.populations[population].disjoint.add(body["other"])
                self._event(record, "disjoint", f"not the users of {body['other']}: {body['reason']}")
            case _:
                raise LedgerCorruptError(
                    f"record {record.seq} of the ledger is of the unknown kind {record.kind!r}: another "
                    "version of recsys-budget wrote it. Nothing was spent"
                )

    def _reserve(self, record: Record) -> None:
        account, body = self.populations[record.population], record.body
        if record.seq in account.entries:
            return
        mechanisms = tuple(restore(m) for m in body["mechanisms"])
        # The total first: an interruption between the two lines must not lose it.
        account.units += body["units"]
        account.entries[record.seq] = Entry(
            record.seq,
            mechanisms,
            body["purpose"],
            body["time"],
            body["units"],
            body["filtered"],
            list(body["claimed"]),
        )

    def _event(self, record: Record, event: str, words: str) -> None:
        self.populations[record.population].events.append((record.seq, record.body["time"], event, words))


def shortened(mechanisms: Sequence[Mechanism], used: Sequence[int]) -> tuple[Mechanism, ...]:
    """What was run of a reservation: each mechanism with as many steps as were used."""
    return tuple(
        replace(m, steps=n) if isinstance(m, SampledGaussianMechanism) else m
        for m, n in zip(mechanisms, used, strict=True)
        if n
    )


def _budget(body: Mapping[str, Any]) -> PrivacyBudget:
    return PrivacyBudget(body["epsilon"], body["delta"])


def granted(account: Account, request: tuple[Mechanism, ...]) -> tuple[int, bool] | None:
    """Units that the request counts for and whether the filter covers it; None where it is refused."""
    units = cost(request, account.order)
    if account.units + units <= account.cap_units:
        return units, True
    # Alone, it was fixed before anything was released. NaN is refused.
    if not account.live and epsilon(request, account.cap.delta) <= account.cap.epsilon:
        return units, False
    return None


def spent(account: Account) -> float:
    """Epsilon of all reservations, as they count now."""
    return total(account, account.units, account.live)


def total(account: Account, units: int, live: Sequence[Entry]) -> float:
    """Epsilon of these reservations, which count for so many units."""
    filtered = renyi_epsilon(UNIT * units, account.cap.delta, account.order)
    return min(filtered, epsilon(live[0].mechanisms, account.cap.delta)) if len(live) == 1 else filtered


def remaining(account: Account) -> float:
    if granted(account, (_LEAST,)) is None:
        return 0.0
    return max(0.0, account.cap.epsilon - spent(account))


def largest(
    request: tuple[Mechanism, ...], fits: Callable[[Sequence[Mechanism]], bool]
) -> tuple[Mechanism, ...] | None:
    """The request with as many steps as fit, or where not even one of each does, with as little noise."""
    most = max(releases(m) for m in request)

    def with_steps(n: int) -> tuple[Mechanism, ...]:
        return tuple(
            replace(m, steps=-(-m.steps * n // most)) if isinstance(m, SampledGaussianMechanism) else m
            for m in request
        )

    def with_noise(factor: float) -> tuple[Mechanism, ...]:
        return tuple(replace(m, noise_multiplier=m.noise_multiplier * factor) for m in request)

    steps = largest_steps(with_steps, fits, most - 1) if most > 1 else 0
    if steps:
        return with_steps(steps)
    factor = smallest_noise(with_noise, fits)
    return with_noise(factor) if math.isfinite(factor) else None
