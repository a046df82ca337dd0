"""Damage ledger files at random and see whether any is believed that counts too little.

    python benchmarks/ledger_damage.py [--json] [--damages 3000] [--truncations 300] [--journals 400] ...

A few ledgers of different shapes are written, and kept at every stage of their growth. Then copies are

- damaged: bytes changed anywhere or in the header, pages swapped, emptied, doubled or replaced by an older
  image of themselves, rubbish appended;
- truncated at any length;
- taken while a process was writing (stopped in the middle of it, which leaves what a crash would leave), with
  a journal beside them, and left so or damaged, in either file or by losing the journal;
- given a damaged key.

Each copy is opened and read, and some are written to. Right are the true state (or, with a journal, at least
what was acknowledged) and a typed error. ``silent`` counts copies that were believed though something is
missing from them; ``other_errors`` counts anything else that was raised. ``--mutant`` leaves out a check.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_budget.errors import LedgerError
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    _sketch,
)
from recsys_budget.privacy import _store as store_module
from recsys_budget.privacy._store import Record, Store

CAP = PrivacyBudget(20.0, 1e-5)
PAGE = 4096
SAMPLED = SampledGaussianMechanism(8.0, 0.01, 40)
# What can be said of a population: units spent, releases claimed of each reservation, cap, user sets.
State = dict[str, tuple[int, dict[int, list[int]], PrivacyBudget, int]]


@dataclass(frozen=True)
class Specimen:
    """A ledger file and its past.

    Attributes:
        stages: Its bytes after each step of its growth.
        state: What it says at the end.
        key: Bytes of its key; empty where it has none.
    """

    stages: list[bytes]
    state: State
    key: bytes = b""


def state_of(ledger: PrivacyLedger) -> State:
    """What the ledger says."""
    accounts = ledger._accounts.populations
    return {
        name: (a.units, {n: list(e.claimed) for n, e in a.entries.items()}, a.cap, len(a.digests))
        for name, a in accounts.items()
    }


def lacks(found: State, truth: State) -> bool:
    """Whether something true is missing from what was found."""
    for name, (units, claimed, cap, user_sets) in truth.items():
        if name not in found:
            return True
        found_units, found_claimed, found_cap, found_sets = found[name]
        if found_units < units or found_cap != cap or found_sets < user_sets:
            return True
        for number, counts in claimed.items():
            have = found_claimed.get(number)
            if have is None or any(h < c for h, c in zip(have, counts, strict=True)):
                return True
    return False


def grow(path: Path, steps: int, users: bool) -> Specimen:
    """A ledger with reservations open, settled and partly used, and perhaps two registered populations."""
    rng = random.Random(steps)
    ledgers = [PrivacyLedger(CAP, path)]
    if users:
        ledgers.append(PrivacyLedger(CAP, path, population="others"))
        for ledger in ledgers:
            ledger.register(f"{ledger.population} {n}" for n in range(50))
    stages = []
    for step in range(steps):
        ledger = rng.choice(ledgers)
        reservation = ledger.reserve([GaussianMechanism(60.0), SAMPLED], purpose=f"step {step}")
        for _ in range(rng.randrange(12)):
            reservation.use(SAMPLED)
        if rng.random() < 0.4:
            reservation.commit()
        if step % 5 == 4:
            ledger.set_cap(PrivacyBudget(CAP.epsilon - 0.01 * step, 1e-5), reason="tighter")
        stages.append(path.read_bytes())
    key = path.with_name(f"{path.name}.key")
    return Specimen(stages, state_of(ledgers[0]), key.read_bytes() if users else b"")


def change_bytes(content: bytes, rng: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """One to eight bytes changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(first, last or len(changed))] ^= rng.randrange(1, 256)
    return bytes(changed)


def damaged(specimen: Specimen, rng: random.Random) -> bytes:
    """A copy that something happened to."""
    content = specimen.stages[-1]
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    one, two = rng.randrange(len(pages)), rng.randrange(len(pages))
    match rng.randrange(10):
        case 0 | 1 | 2:
            return change_bytes(content, rng)
        case 3:
            return change_bytes(content, rng, 0, 100)
        case 4:  # in the part of a page where its structure is
            return change_bytes(content, rng, one * PAGE, one * PAGE + 64)
        case 5:
            pages[one], pages[two] = pages[two], pages[one]
        case 6:
            pages[one] = bytes(PAGE)
        case 7:
            pages[one] = pages[two]
        case 8:
            older = rng.choice(specimen.stages[:-1])
            one %= len(older) // PAGE
            pages[one] = older[one * PAGE : (one + 1) * PAGE]
        case 9:
            pages.append(rng.randbytes(rng.randint(1, 2 * PAGE)))
    return b"".join(pages)


def crash_copies(folder: Path, rng: random.Random) -> Iterator[tuple[bytes, bytes, State]]:
    """Copies of a file and its journal as a crash would leave them, and what was acknowledged by then.

    A process writes; it is stopped at random moments, and its files are copied while it stands still.
    """
    for number in itertools.count():
        path, journal = folder / f"busy{number}.db", folder / f"busy{number}.db-journal"
        PrivacyLedger(CAP, path)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                keep_reserving(PrivacyLedger(path=path), writing)
            finally:
                os._exit(1)
        os.close(writing)
        truth = struct.unpack("=QQ", os.read(reading, 16))
        os.set_blocking(reading, False)
        try:
            for _ in range(60):
                time.sleep(rng.uniform(0, 0.002))
                os.kill(child, signal.SIGSTOP)
                os.waitpid(child, os.WUNTRACED)
                with suppress(BlockingIOError):
                    while True:
                        truth = struct.unpack("=QQ", os.read(reading, 16))
                beside = journal.read_bytes() if journal.exists() else b""
                content = path.read_bytes()
                os.kill(child, signal.SIGCONT)
                if beside:
                    yield content, beside, {"users": (truth[1], {truth[0]: [1]}, CAP, 0)}
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)


def keep_reserving(ledger: PrivacyLedger, writing: int) -> None:
    """Reserve until killed, and say after each time what was acknowledged."""
    while True:
        reservation = ledger.reserve([GaussianMechanism(2000.0)], purpose="busy " * 300)
        units = ledger._accounts.populations["users"].units
        os.write(writing, struct.pack("=QQ", reservation.id, units))


class Judge:
    """Opens copies and counts what became of them."""

    def __init__(self, folder: Path) -> None:
        self.figures: Counter[str] = Counter()
        self.folder, self.slowest, self.first_problem = folder, 0.0, ""

    def judge(
        self, truth: State, content: bytes, journal: bytes = b"", what: str = "", intact: bool = False
    ) -> None:
        """Open one copy, read it, perhaps write to it; an intact one must not be refused."""
        path = self.folder / f"{sum(self.figures.values())}.db"
        path.write_bytes(content)
        beside = path.with_name(f"{path.name}-journal")
        if journal:
            beside.write_bytes(journal)
        begin = time.perf_counter()
        try:
            ledger = PrivacyLedger(path=path)
            if lacks(state_of(ledger), truth):
                self._problem("silent", what)
                return
            if self.figures["right"] % 4 == 0:
                ledger.reserve([GaussianMechanism(1000.0)], purpose="one more")
                if lacks(state_of(PrivacyLedger(path=path)), state_of(ledger)):
                    self._problem("silent", f"{what}, after one more")
                    return
            self.figures["right"] += 1
        except LedgerError as error:
            self.figures["refused"] += 1
            if intact:
                self._problem("other_errors", f"{what}: {error!r}")
        except Exception as error:
            self._problem("other_errors", f"{what}: {error!r}")
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - begin)
            for name in (path, beside):
                name.unlink(missing_ok=True)

    def judge_key(self, specimen: Specimen, key: bytes) -> None:
        """Whether users who are known under another population get a second budget by a damaged key."""
        path = self.folder / "key.db"
        path.write_bytes(specimen.stages[-1])
        path.with_name("key.db.key").write_bytes(key)
        try:
            PrivacyLedger(path=path, population="others").register(["users 7"])
            self._problem("silent", f"key {key!r}")
        except LedgerError:
            self.figures["refused"] += 1
        except Exception as error:
            self._problem("other_errors", f"key {key!r}: {error!r}")

    def _problem(self, kind: str, what: str) -> None:
        self.figures[kind] += 1
        self.first_problem = self.first_problem or f"{kind}: {what}"

    def result(self) -> dict[str, Any]:
        """The figures so far, as one would print them."""
        names = ("right", "refused", "silent", "other_errors")
        return {name: self.figures[name] for name in names} | (
            {"first_problem": self.first_problem} if self.first_problem else {}
        )


def without(check: str) -> Callable[[], None]:
    """A ledger that leaves out one check."""

    def mutate() -> None:
        def read(self: Store) -> None:
            rows = self._connection.execute(
                "SELECT seq, population, kind, body, data, hash FROM record WHERE seq > ? ORDER BY seq",
                self._last[:1],
            )
            for seq, population, kind, body, data, digest in rows.fetchall():
                expected = store_module._digest(self._last[1], seq, population, kind, body, data)
                if check != "hash" and (digest != expected or seq != self._last[0] + 1):
                    raise self._corrupt("chain")
                self._accept(Record(seq, population.decode(), kind.decode(), json.loads(body), data, digest))
            head = self._connection.execute("SELECT seq, hash FROM head").fetchone()
            if check != "head" and head != self._last:
                raise self._corrupt("head")

        Store._read = read  # type: ignore[method-assign]

    return mutate


MUTANTS = {"hash-unchecked": without("hash"), "head-unchecked": without("head")}


def run(damages: int, truncations: int, journals: int, keys: int, folder: Path, seed: int) -> dict[str, Any]:
    """The whole campaign; its figures."""
    begin = time.perf_counter()
    rng = random.Random(seed)
    _sketch.SIZE = 600  # the blobs still need pages of their own, and the files stay small
    small, users, long = (
        grow(folder / "small.db", 6, users=False),
        grow(folder / "users.db", 8, users=True),
        grow(folder / "long.db", 70, users=False),
    )
    results: dict[str, Any] = {}
    slowest = 0.0

    def part(name: str, count: int, one: Callable[[Judge], None]) -> None:
        nonlocal slowest
        judge = Judge(folder)
        for _ in range(count):
            one(judge)
        results[name] = {"copies": count} | judge.result()
        slowest = max(slowest, judge.slowest)

    def pick() -> Specimen:
        return rng.choices((small, users, long), (4, 2, 1))[0]

    def damage(judge: Judge) -> None:
        specimen = pick()
        judge.judge(specimen.state, damaged(specimen, rng), what="damaged")

    def truncate(judge: Judge) -> None:
        specimen = pick()
        content = specimen.stages[-1]
        length = (
            rng.randrange(len(content)) if rng.random() < 0.6 else rng.randrange(len(content) // PAGE) * PAGE
        )
        judge.judge(specimen.state, content[:length], what=f"truncated to {length}")

    copies = crash_copies(folder, rng)

    def crash(judge: Judge) -> None:
        content, journal, truth = next(copies)
        match rng.randrange(6):
            case 0 | 1:
                judge.judge(truth, content, journal, "left by a crash", intact=True)
            case 2:
                judge.judge(truth, content, change_bytes(journal, rng), "journal damaged")
            case 3:
                judge.judge(truth, content, journal[: rng.randrange(len(journal))], "journal truncated")
            case 4:
                judge.judge(truth, content, b"", "journal lost")
            case 5:
                judge.judge(truth, change_bytes(content, rng), journal, "damaged beside its journal")

    def spoil(judge: Judge) -> None:
        key = users.key
        judge.judge_key(
            users, change_bytes(key, rng) if rng.random() < 0.7 else key[: rng.randrange(len(key))]
        )

    part("damaged", damages, damage)
    part("truncated", truncations, truncate)
    part("crashed", journals, crash)
    part("keys", keys, spoil)
    copies.close()
    return results | {
        "silent": sum(r["silent"] for r in results.values()),
        "other_errors": sum(r["other_errors"] for r in results.values()),
        "slowest_s": round(slowest, 2),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--damages", type=int, default=3_000)
    parser.add_argument("--truncations", type=int, default=300)
    parser.add_argument("--journals", type=int, default=400)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="run on a ledger that leaves out a check")
    parser.add_argument("--folder", type=Path, help="where to put the files (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.mutant:
        MUTANTS[arguments.mutant]()
    counts = (arguments.damages, arguments.truncations, arguments.journals, arguments.keys)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = run(*counts, Path(folder), arguments.seed)
    print(json.dumps(figures, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
