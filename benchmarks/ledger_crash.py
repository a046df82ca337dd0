"""Kill processes that share a ledger, at random moments, and recount what is left with other arithmetic.

    python benchmarks/ledger_crash.py [--json] [--kills 2000] [--processes 8] [--mutants] [--folder PATH]

Each round starts with no ledger. Eight processes at a time make it, reserve, use, settle, and take up each
other's reservations, and each is ended by SIGKILL at a random moment of its first few operations; another
takes its place. After every release a process appends a line to a log, which is the truth. Then the rows of
the file are read by ``sqlite3`` alone and counted again from published formulas:

- ``overspends``: grants that took the total past the cap, by the record; or releases past it, by the log.
- ``unrecorded``: reservations handed out, or releases made, that the record lacks.
- ``over_counted``: reservations that count more unused releases than one chunk for each holder.
- ``failures``: unexpected errors in a process, and ledgers that cannot be opened afterwards or that
  state another total than the recount.

All are 0 unless the ledger is wrong. ``--mutants`` runs the campaign on ledgers with known mistakes instead,
each until the mistake is noticed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from recsys_budget.errors import BudgetExceededError, RecsysBudgetError, ReservationError
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    _account,
    epsilon,
)
from recsys_budget.privacy import ledger as ledger_module
from recsys_budget.privacy._store import Store
from recsys_budget.privacy.ledger import chunk
from recsys_budget.privacy.mechanism import releases

CAP = PrivacyBudget(3.0, 1e-5)
# About ten of these fill the budget, so that processes often compete for the last of it.
REQUESTS = [
    (GaussianMechanism(7.0),),
    (SampledGaussianMechanism(2.0, 0.05, 72),),
    (
        GaussianMechanism(9.0),
        SampledGaussianMechanism(1.5, 0.02, 24),
        SampledGaussianMechanism(2.5, 0.05, 90),
    ),
]
# Fits by its privacy loss distribution, if nothing else was granted; the filter would refuse it.
ALONE = (SampledGaussianMechanism(1.0, 0.05, 68),)
KILLS_A_ROUND = 25
PROBLEMS = ("overspends", "unrecorded", "over_counted", "failures")


def work(path: Path, log: int, rng: random.Random, with_alone: bool) -> None:
    """What a process does until it is killed."""
    ledger = PrivacyLedger(CAP, path)
    held = []
    requests = [*REQUESTS, ALONE] if with_alone else REQUESTS
    while True:
        action = rng.random()
        if action < 0.35:
            with suppress(BudgetExceededError):
                held.append(ledger.reserve(rng.choice(requests), purpose="campaign"))
                os.write(log, f"granted {held[-1].id} 0\n".encode())
        elif action < 0.5:
            number = rng.randint(1, ledger.head.seq)
            os.write(log, f"held {number} 0\n".encode())
            with suppress(ReservationError):
                held.append(ledger.resume(number))
        elif action < 0.65 and held:
            held.pop(rng.randrange(len(held))).commit()
        elif held:
            reservation = rng.choice(held)
            place = rng.randrange(len(reservation.mechanisms))
            with suppress(ReservationError):
                for _ in range(rng.randint(1, 20)):
                    reservation.use(reservation.mechanisms[place])
                    os.write(log, f"released {reservation.id} {place}\n".encode())


def check_then_insert() -> None:
    granted = _account.granted
    last: list[Any] = []

    def stale(account: _account.Account, request: tuple[Any, ...]) -> Any:
        frame = sys._getframe(1)
        if (
            frame.f_code.co_name == "reserve" and last
        ):  # inside the lock: what was found before it still counts
            return last.pop()
        last[:] = [granted(account, request)]
        return last[0]

    _account.granted = stale


def claim_unrecorded() -> None:
    def claim(self: PrivacyLedger, reservation: int, places: list[int]) -> tuple[int, int]:
        mechanism = self._entry(reservation).mechanisms[places[0]]
        return places[0], chunk(mechanism)

    PrivacyLedger._claim = claim  # type: ignore[method-assign, assignment]


def claims_not_replayed() -> None:
    apply = _account.Accounts.apply

    def forgetful(self: _account.Accounts, record: Any) -> None:
        if record.kind != "claim":
            apply(self, record)

    _account.Accounts.apply = forgetful  # type: ignore[method-assign]


def settle_returns_all() -> None:
    settle = PrivacyLedger._settle

    def generous(self: PrivacyLedger, reservation: int, unused: list[int]) -> None:
        settle(self, reservation, self._entry(reservation).claimed)

    PrivacyLedger._settle = generous  # type: ignore[method-assign, assignment]


def acknowledged_unwritten() -> None:
    transaction = Store.transaction

    @contextmanager
    def hasty(self: Store) -> Iterator[None]:
        with transaction(self):
            yield
            if random.random() < 0.2:
                self._connection.execute("ROLLBACK")
                self._connection.execute("BEGIN")

    Store.transaction = hasty  # type: ignore[method-assign]


def claim_all_at_once() -> None:
    ledger_module.chunk = releases


MUTANTS: dict[str, Callable[[], None]] = {
    "check-then-insert": check_then_insert,
    "claim-unrecorded": claim_unrecorded,
    "claims-not-replayed": claims_not_replayed,
    "settle-returns-all": settle_returns_all,
    "claim-all-at-once": claim_all_at_once,
    "acknowledged-unwritten": acknowledged_unwritten,
}


def start(path: Path, log: int, with_alone: bool, mutate: Callable[[], None] | None) -> int:
    seed = random.SystemRandom().getrandbits(64)
    child = os.fork()
    if child:
        return child
    try:
        if mutate:
            mutate()
        work(path, log, random.Random(seed), with_alone)
    except BaseException:
        lines = traceback.format_exc().strip().replace("\n", " | ")
        os.write(log, f"failed 0 0 {lines}\n".encode())
    os._exit(1)


def kill_all_day(
    path: Path,
    log: int,
    kills: int,
    processes: int,
    longest: float,
    with_alone: bool,
    mutate: Callable[[], None] | None,
) -> None:
    """Keep so many processes working, and kill each at a random moment of its ``longest`` seconds."""
    chance = random.SystemRandom()
    deadlines: dict[int, float] = {}
    started = 0
    while started < kills or deadlines:
        while started < kills and len(deadlines) < processes:
            life = longest * chance.random()
            deadlines[start(path, log, with_alone, mutate)] = time.monotonic() + life
            started += 1
        child = min(deadlines, key=lambda c: deadlines[c])
        time.sleep(max(0.0, deadlines.pop(child) - time.monotonic()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def divergence(mechanism: dict[str, Any], steps: int, order: int) -> float:
    """Renyi divergence at a whole order (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, section 3.3)."""
    noise = mechanism["noise_multiplier"]
    if mechanism["kind"] == "GaussianMechanism":
        return steps * order / (2 * noise**2)
    rate = mechanism["sample_rate"]
    terms = (
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k * math.exp(k * (k - 1) / (2 * noise**2))
        for k in range(order + 1)
    )
    return steps * math.log(math.fsum(terms)) / (order - 1)


class Recount:
    """The rows of a ledger file and a log of releases, counted again."""

    def __init__(self, path: Path, log: str, alone_fits: bool) -> None:
        self.overspends = self.unrecorded = self.over_counted = 0
        self.total = 0.0
        self.reservations: dict[int, dict[str, Any]] = {}
        self.released: Counter[tuple[int, int]] = Counter()
        granted, holders = set(), Counter[int]()
        for line in log.splitlines():
            event, number, place = line.split()[:3]
            granted |= {int(number)} if event == "granted" else set()
            holders[int(number)] += event == "held"
            self.released[int(number), int(place)] += event == "released"
        if not path.exists():
            self.unrecorded = len(granted)
            return
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT seq, kind, body FROM record ORDER BY seq").fetchall()
        for seq, kind, text in rows:
            self._take(seq, kind, json.loads(text), alone_fits)
        self.unrecorded += len(granted - self.reservations.keys())
        for (number, place), count in self.released.items():
            known = self.reservations.get(number)
            same = known is not None and place < len(known["claimed"])
            self.unrecorded += max(0, count - known["claimed"][place]) if same else count
        for number, r in self.reservations.items():
            for place, claimed in enumerate(r["claimed"]):
                share = max(1, min(1024, r["releases"][place] // 8))
                unused = claimed - self.released[number, place]
                self.over_counted += unused > share * (1 + holders[number])

    def _take(self, seq: int, kind: str, body: dict[str, Any], alone_fits: bool) -> None:
        if kind == "population":
            self.order, delta = body["order"], body["delta"]
            # Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 12.
            gain = math.log1p(-1 / self.order) - math.log(delta * self.order) / (self.order - 1)
            self.limit = body["epsilon"] - gain
        elif kind == "reserve":
            grants = [m.get("steps", 1) for m in body["mechanisms"]]
            cost = self._cost(body["mechanisms"], grants)
            live = any(not r["settled"] or any(r["claimed"]) for r in self.reservations.values())
            alone = alone_fits and not live and body["mechanisms"] == [_account.describe(m) for m in ALONE]
            self.overspends += self.total + cost > self.limit and not alone
            self.reservations[seq] = body | {"releases": grants, "settled": False, "cost": cost}
            self.total += cost
        elif kind == "claim":
            self.reservations[body["reservation"]]["claimed"][body["place"]] = body["claimed"]
            r = self.reservations[body["reservation"]]
            self.overspends += body["claimed"] > r["releases"][body["place"]] or r["settled"]
        elif kind == "settle":
            r = self.reservations[body["reservation"]]
            cost = self._cost(r["mechanisms"], body["used"])
            if r["filtered"] or not any(body["used"]):
                self.total += cost - r["cost"]
                r["cost"] = cost
            r["settled"], r["claimed"] = True, body["used"]

    def _cost(self, mechanisms: list[dict[str, Any]], counts: list[int]) -> float:
        return math.fsum(divergence(m, n, self.order) for m, n in zip(mechanisms, counts, strict=True))

    def past_the_cap_by_the_log(self) -> bool:
        """Whether what was truly released, whatever the record says, passed the cap."""
        if any(not r["filtered"] for r in self.reservations.values()) or not self.reservations:
            return False
        known = [
            divergence(r["mechanisms"][place], count, self.order)
            for (number, place), count in self.released.items()
            if (r := self.reservations.get(number)) and place < len(r["mechanisms"])
        ]
        return math.fsum(known) > self.limit


def run(kills: int, processes: int, folder: Path, mutant: str | None = None) -> dict[str, Any]:
    """The whole campaign; its figures."""
    # Once, here: what the forked processes share of it they need not work out.
    alone_fits = epsilon(ALONE, CAP.delta) <= CAP.epsilon
    rehearsal = PrivacyLedger(CAP)
    for request in [*REQUESTS, ALONE]:
        epsilon(request, CAP.delta)
        with suppress(RecsysBudgetError), rehearsal.reserve(request, purpose="warm up") as reservation:
            for mechanism in request:
                for _ in range(releases(mechanism)):
                    reservation.use(mechanism)
    begin = time.perf_counter()
    if not os.fork():
        PrivacyLedger(CAP, folder / "pace.db").reserve(REQUESTS[0], purpose="pace")
        os._exit(0)
    os.wait()
    # Processes get a core each only as far as there are cores; a few more operations than that one.
    longest = min(0.15, (time.perf_counter() - begin) * max(1, processes / (os.cpu_count() or 1)))
    figures: Counter[str] = Counter()
    first_failure = ""
    done = rounds = 0
    while done < kills:
        path, log_path = folder / f"{rounds}.db", folder / f"{rounds}.log"
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        now = min(KILLS_A_ROUND, kills - done)
        kill_all_day(path, log, now, processes, longest, rounds % 4 == 3, MUTANTS[mutant] if mutant else None)
        os.close(log)
        done, rounds = done + now, rounds + 1
        text = log_path.read_text()
        failures = [line for line in text.splitlines() if line.startswith("failed")]
        recount = Recount(path, text, alone_fits)
        if path.exists():
            try:
                account = PrivacyLedger(CAP, path)._accounts.populations["users"]
            except RecsysBudgetError as error:
                failures.append(f"{type(error).__name__}: {error}")
            else:
                if not 0 <= account.units * 1e-12 - recount.total <= 1e-6 * (1 + recount.total):
                    failures.append(f"states {account.units} units; the recount is {recount.total}")
        figures["failures"] += len(failures)
        first_failure = first_failure or (failures[0] if failures else "")
        figures["reservations"] += len(recount.reservations)
        figures["releases"] += sum(recount.released.values())
        figures["overspends"] += recount.overspends + recount.past_the_cap_by_the_log()
        figures["unrecorded"] += recount.unrecorded
        figures["over_counted"] += recount.over_counted
        if mutant and any(figures[name] for name in PROBLEMS):
            break
    return {
        "kills": done,
        "processes": processes,
        "rounds": rounds,
        **{name: figures[name] for name in ("reservations", "releases", *PROBLEMS)},
        **({"first_failure": first_failure} if first_failure else {}),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--kills", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--mutants", action="store_true", help="run on ledgers with known mistakes")
    parser.add_argument("--folder", type=Path, help="where to put the ledgers (default: a temporary folder)")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for mutant in MUTANTS if arguments.mutants else (None,):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = run(arguments.kills, arguments.processes, Path(folder), mutant)
        figures |= {mutant: found} if mutant else found
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>22} {value}")


if __name__ == "__main__":
    main()
