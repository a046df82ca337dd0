"""Speed of the ledger, and of the search for the largest number of steps under a budget, beside Opacus's PRV.

    python benchmarks/ledger.py [--json] [--seconds 2] [--records 100000] [--no-prv] [--folder PATH]

- ``reservations_per_s_1``, ``_8``: reservations acknowledged by one process, and by eight on one file.
  ``bare_sqlite_per_s``: rows that ``sqlite3`` alone commits with the same settings on the same disk.
- ``per_step_us``: one ``Reservation.use`` in a long training run, its share of writing included, in
  microseconds.
- ``read_us``: ``PrivacyLedger.fits`` on a file that others may write to.
- ``open_s``: opening a ledger of so many ``records``, each of them checked.
- ``max_steps_s``: the largest number of steps at noise multiplier 1 and sample rate 0.01 under epsilon 3 and
  delta 1e-5, by bisection with nothing cached. ``prv_over_ours``: time of the same bisection with Opacus's
  PRV accountant, over that; ``steps`` and ``prv_steps`` are the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    accounting,
    epsilon,
)

CAP = PrivacyBudget(1e6, 1e-5)
REQUEST = [GaussianMechanism(10.0)]
TARGET, NOISE, RATE, LIMIT = PrivacyBudget(3.0, 1e-5), 1.0, 0.01, 10_000


def reserve_for(path: Path, seconds: float) -> int:
    ledger = PrivacyLedger(path=path)
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        ledger.reserve(REQUEST, purpose="benchmark")
        count += 1
    return count


def reservations_per_s(folder: Path, processes: int, seconds: float) -> float:
    path = folder / f"{processes}.db"
    PrivacyLedger(CAP, path).reserve(REQUEST, purpose="warm up")
    children = []
    for _ in range(processes):
        child = os.fork()
        if not child:
            reserve_for(path, seconds)
            os._exit(0)
        children.append(child)
    begin = time.perf_counter()
    if any(os.waitpid(child, 0)[1] for child in children):
        raise RuntimeError("a process failed")
    wall = time.perf_counter() - begin
    return (len(PrivacyLedger(path=path).history()) - 1) / wall


def bare_sqlite_per_s(folder: Path, seconds: float) -> float:
    with closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("CREATE TABLE record (seq INTEGER PRIMARY KEY, body TEXT)")
        begin, count = time.perf_counter(), 0
        while (wall := time.perf_counter() - begin) < seconds:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO record (body) VALUES (?)", ("x" * 300,))
            connection.execute("COMMIT")
            count += 1
    return count / wall


def per_step_us(folder: Path, steps: int = 100_000) -> float:
    mechanism = SampledGaussianMechanism(10.0, 0.01, steps)
    reservation = PrivacyLedger(CAP, folder / "steps.db").reserve([mechanism], purpose="training")
    begin = time.perf_counter()
    for _ in range(steps):
        reservation.use(mechanism)
    return 1e6 * (time.perf_counter() - begin) / steps


def read_us(folder: Path, calls: int = 2_000) -> float:
    ledger = PrivacyLedger(path=folder / "1.db")
    begin = time.perf_counter()
    for _ in range(calls):
        ledger.fits(REQUEST)
    return 1e6 * (time.perf_counter() - begin) / calls


def open_s(folder: Path, records: int) -> float:
    path = folder / "long.db"
    ledger = PrivacyLedger(CAP, path)
    ledger.reserve(REQUEST, purpose="as all of them")
    with closing(sqlite3.connect(path)) as connection:
        text = connection.execute("SELECT body FROM record WHERE kind = 'reserve'").fetchone()[0]
    # All in one transaction, since only reading them is timed.
    with ledger._store.transaction():
        for _ in range(records):
            ledger._store.append("users", "reserve", json.loads(text))
    del ledger
    begin = time.perf_counter()
    PrivacyLedger(path=path)
    return time.perf_counter() - begin


def search(cost: Callable[[int], float]) -> tuple[float, int]:
    """Seconds, and the largest number of steps that costs no more than the target's epsilon."""
    begin = time.perf_counter()
    steps = accounting.largest_steps(
        lambda n: [SampledGaussianMechanism(NOISE, RATE, n)],
        lambda schedule: cost(schedule[0].steps) <= TARGET.epsilon,  # type: ignore[union-attr]
        LIMIT,
    )
    return time.perf_counter() - begin, steps


def by_pld(steps: int) -> float:
    return epsilon([SampledGaussianMechanism(NOISE, RATE, steps)], TARGET.delta)


def by_prv(steps: int) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(NOISE, RATE, steps)]
    return float(accountant.get_epsilon(TARGET.delta))


def measure(seconds: float, records: int, with_prv: bool, folder: Path) -> dict[str, float]:
    figures = {
        "reservations_per_s_1": round(reservations_per_s(folder, 1, seconds), 1),
        "reservations_per_s_8": round(reservations_per_s(folder, 8, seconds), 1),
        "bare_sqlite_per_s": round(bare_sqlite_per_s(folder, seconds), 1),
        "per_step_us": round(per_step_us(folder), 3),
        "read_us": round(read_us(folder), 1),
        "records": records,
        "open_s": round(open_s(folder, records), 3),
    }
    by_pld(1)  # imports what it needs
    accounting._epsilon.cache_clear()
    accounting._one_step.cache_clear()
    ours, steps = search(by_pld)
    figures |= {"max_steps_s": round(ours, 3), "steps": steps}
    if with_prv:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_prv(1)
            theirs, prv_steps = search(by_prv)
        figures |= {"prv_over_ours": round(theirs / ours, 2), "prv_steps": prv_steps}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to reserve for")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--no-prv", action="store_true", help="leave out Opacus's accountant")
    parser.add_argument("--folder", type=Path, help="where to put the ledgers (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(arguments.seconds, arguments.records, not arguments.no_prv, Path(folder))
    print(json.dumps(figures, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
