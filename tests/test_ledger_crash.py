"""Nothing is overspent, forgotten or believed wrongly after crashes, damage and interruptions.

The campaigns are scripts of ``benchmarks/``, run here with the counts that are promised: they fork, so they
need a process without threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_budget.errors import BudgetError
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, SampledGaussianMechanism
from recsys_budget.privacy._account import Accounts
from recsys_budget.privacy._store import Record

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
BUDGET = PrivacyBudget(3.0, 1e-5)
TRAINING = SampledGaussianMechanism(4.0, 0.01, 80)


def campaign(script, *options):
    command = [sys.executable, str(BENCHMARKS / script), "--json", *map(str, options)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def memory_folder(tmp_path):
    """Where files cost no disk; whether a file is believed does not depend on where it lies."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path


@pytest.mark.slow
def test_a_thousand_kills_lose_nothing_and_overspend_nothing(tmp_path):
    figures = campaign("ledger_crash.py", "--kills", 1000, "--folder", tmp_path)
    problems = ("overspends", "unrecorded", "over_counted", "failures")
    assert {name: figures[name] for name in problems} == dict.fromkeys(problems, 0), figures
    assert figures["kills"] == 1000
    assert figures["reservations"] > 100
    assert figures["releases"] > 300


@pytest.mark.slow
def test_the_campaign_notices_ledgers_with_known_mistakes(tmp_path):
    figures = campaign("ledger_crash.py", "--kills", 1500, "--mutants", "--folder", tmp_path)
    symptoms = {
        "check-then-insert": "overspends",
        "claim-unrecorded": "unrecorded",
        "claims-not-replayed": "unrecorded",
        "settle-returns-all": "unrecorded",
        "acknowledged-unwritten": "unrecorded",
        "claim-all-at-once": "over_counted",
    }
    assert {mutant: figures[mutant][symptom] > 0 for mutant, symptom in symptoms.items()} == dict.fromkeys(
        figures, True
    ), figures


@pytest.mark.slow
def test_damaged_files_are_never_believed_when_something_is_missing(tmp_path):
    figures = campaign("ledger_damage.py", "--folder", memory_folder(tmp_path))
    assert figures["silent"] == figures["other_errors"] == 0, figures
    assert figures["slowest_s"] < 60  # nothing hangs
    assert (figures["damaged"]["copies"], figures["truncated"]["copies"]) == (3000, 300)
    for name in ("damaged", "truncated", "crashed", "keys"):
        assert figures[name]["refused"] > 0
    # Bytes that nothing depends on may change, and a crash leaves what can be repaired.
    assert figures["damaged"]["right"] > 0
    assert figures["crashed"]["right"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["hash-unchecked", "head-unchecked"])
def test_the_damage_is_noticed_where_a_check_is_left_out(tmp_path, mutant):
    counts = ("--damages", 1500, "--truncations", 0, "--journals", 1, "--keys", 0)
    figures = campaign("ledger_damage.py", *counts, "--mutant", mutant, "--folder", memory_folder(tmp_path))
    assert figures["silent"] + figures["other_errors"] > 0, figures


class Interrupted(BaseException):
    """Stands for the KeyboardInterrupt of an impatient reader."""


def interrupted_after(seconds, call):
    """Call, interrupt it after so long, and say whether it was."""

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


@pytest.mark.parametrize("operation", ["reserve", "use", "commit", "set_cap"])
def test_an_interrupted_operation_grants_nothing_that_is_not_recorded(tmp_path, operation):
    """The signal arrives while SQLite writes, and Python raises it right after: the worst moment there is."""
    rng = random.Random(operation)
    path = tmp_path / "b.db"
    ledger = PrivacyLedger(PrivacyBudget(30.0, 1e-5), path)
    interruptions = 0
    for number in range(50):
        reservation = ledger.reserve([TRAINING], purpose="interrupted")
        released = 0

        def use(reservation=reservation):
            nonlocal released
            reservation.use(TRAINING)
            released += 1

        for _ in range(rng.randrange(1, 10)):
            use()
        operations = {
            "reserve": lambda: ledger.reserve([GaussianMechanism(90.0)], purpose="more"),
            "use": lambda use=use: [use() for _ in range(25)],
            "commit": reservation.commit,
            "set_cap": lambda number=number: ledger.set_cap(
                PrivacyBudget(29.9 - number / 100, 1e-5), reason="tighter"
            ),
        }
        interruptions += interrupted_after(rng.uniform(1e-5, 1.5e-3), operations[operation])
        with contextlib.suppress(BudgetError):
            for _ in range(15):
                use()
        # No lock was left behind, and the record knows of all that happened.
        fresh = PrivacyLedger(path=path)
        assert released <= fresh._entry(reservation.id).claimed[0]
        assert ledger.spent >= fresh.spent > 0
        fresh.reserve([GaussianMechanism(500.0)], purpose="goes on")
        assert ledger.head == fresh.head
    assert interruptions > 3


class Fragile(dict):
    """The facts of a record; reading them is interrupted once."""

    def __init__(self, facts, at):
        super().__init__(facts)
        self.left = at

    def __getitem__(self, name):
        self.left -= 1
        if self.left == 0:
            raise Interrupted
        return super().__getitem__(name)


def test_a_record_taken_in_twice_counts_no_less():
    def record(seq, kind, body):
        return Record(seq, "users", kind, body, b"", b"")

    time = {"time": "2024-01-01T00:00:00+00:00"}
    mechanisms = [
        {"kind": "SampledGaussianMechanism", "noise_multiplier": 4.0, "sample_rate": 0.1, "steps": 80}
    ]
    history = [
        record(1, "population", {"epsilon": 3.0, "delta": 1e-5, "order": 7}),
        *(
            record(
                seq,
                "reserve",
                time
                | {"mechanisms": mechanisms, "purpose": "", "units": 1000, "filtered": True, "claimed": [10]},
            )
            for seq in (2, 3)
        ),
        record(4, "claim", time | {"reservation": 2, "place": 0, "claimed": 20}),
        record(5, "settle", time | {"reservation": 2, "used": [13], "units": 130}),
    ]
    for position in range(1, len(history)):
        for at in range(1, 9):
            accounts = Accounts()
            for number, one in enumerate(history):
                if number == position:
                    with contextlib.suppress(Interrupted):
                        accounts.apply(one._replace(body=Fragile(one.body, at)))
                accounts.apply(one)
            account = accounts.populations["users"]
            assert account.units >= 1130
            assert account.units >= sum(entry.units for entry in account.entries.values()) == 1130
            assert account.entries[2].claimed == [13]


def test_what_was_returned_cannot_be_used_when_the_answer_is_lost(monkeypatch):
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([TRAINING], purpose="interrupted while settling")
    settle = PrivacyLedger._settle

    def lost(*arguments):
        settle(*arguments)
        raise Interrupted

    monkeypatch.setattr(PrivacyLedger, "_settle", lost)
    with pytest.raises(Interrupted):
        reservation.commit()
    monkeypatch.undo()
    assert ledger.spent == 0.0
    with pytest.raises(BudgetError, match="settled"):
        reservation.use(TRAINING)
    reservation.commit()
    assert ledger.spent == 0.0


def test_a_settling_that_failed_can_be_repeated(monkeypatch):
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(9.0)], purpose="another, so that the filter counts")
    reservation = ledger.reserve([TRAINING], purpose="settled at the second attempt")
    reservation.use(TRAINING)
    spent = ledger.spent
    append = PrivacyLedger._append

    def fail(*_, **__):
        raise Interrupted

    monkeypatch.setattr(PrivacyLedger, "_append", fail)
    with pytest.raises(Interrupted):
        reservation.commit()
    assert not reservation.settled
    assert ledger.spent == spent
    monkeypatch.setattr(PrivacyLedger, "_append", append)
    reservation.commit()
    assert reservation.settled
    assert ledger.spent < spent


def test_a_ledger_used_again_in_the_middle_of_writing_grants_nothing(monkeypatch):
    """A signal handler or a finaliser that uses the ledger ends what it interrupted."""
    ledger = PrivacyLedger(BUDGET)
    append = PrivacyLedger._append

    def append_after_a_look(self, kind, **body):
        monkeypatch.setattr(PrivacyLedger, "_append", append)
        assert self.spent == 0.0
        return append(self, kind, **body)

    monkeypatch.setattr(PrivacyLedger, "_append", append_after_a_look)
    with pytest.raises(BudgetError, match="in the middle of writing"):
        ledger.reserve([TRAINING], purpose="interrupted by a look")
    assert ledger.spent == 0.0
    assert ledger.reserve([TRAINING], purpose="again").left(TRAINING) == 80
