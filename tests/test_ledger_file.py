"""A ledger's file: shared, locked, full, read-only, old, replaced, foreign. Never a silent under-count.

Kills, interruptions and random damage: ``test_ledger_crash.py``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from recsys_budget.errors import (
    BudgetError,
    BudgetExceededError,
    LedgerCorruptError,
    LedgerError,
    LedgerUnavailableError,
    ReservationError,
    SpecificationError,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    _account,
    _store,
    filter_epsilon,
)
from recsys_budget.privacy import ledger as ledger_module

BUDGET = PrivacyBudget(3.0, 1e-5)
WIDE = PrivacyBudget(1000.0, 1e-5)
COUNTS = GaussianMechanism(9.0)
TRAINING = SampledGaussianMechanism(4.0, 0.01, 80)
NOBODY = 65_534

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads


@pytest.fixture
def path(tmp_path):
    return tmp_path / "budget.db"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_store, "_PATIENCE", 0.05)


@pytest.fixture
def open_folder():
    """A folder that other users may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody():
    """Without the powers of root, whom no permission stops."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def forked(work):
    """Run in a forked process; its number. The work's result, a small whole number, is its exit status."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        status = int(work() or 0)
    finally:
        os._exit(status)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_another_process(work):
    return status_of(forked(work))


def numbers(path):
    """Numbers of the recorded reservations, read from the file anew."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {n for (n,) in connection.execute("SELECT seq FROM record WHERE kind = 'reserve'")}


class TestSharing:
    def test_everything_is_there_after_a_restart(self, path):
        ledger = PrivacyLedger(BUDGET, path, population="viewers")
        ledger.register(["a", "b"])
        reservation = ledger.reserve([TRAINING, COUNTS], purpose="fit — größer")
        reservation.use(COUNTS)
        for _ in range(25):
            reservation.use(TRAINING)
        ledger.reserve([COUNTS], purpose="counts").commit()
        ledger.set_cap(PrivacyBudget(2.5, 1e-5), reason="tighter")
        history, head, spent = ledger.history(), ledger.head, ledger.spent
        del ledger
        again = PrivacyLedger(path=path, population="viewers")
        assert again.head == head
        assert again.spent == spent
        assert again.cap == PrivacyBudget(2.5, 1e-5)
        assert again.history().equals(history)
        resumed = again.resume(reservation.id)
        assert resumed.mechanisms == (TRAINING, COUNTS)
        assert resumed.left(COUNTS) == 0
        assert resumed.left(TRAINING) == 50

    def test_two_kernels_take_turns_on_one_budget(self, path):
        """Two processes with nothing in common but the path, one step each in turn."""
        script = (
            "import sys\n"
            "from recsys_budget.errors import BudgetExceededError\n"
            "from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger\n"
            f"ledger = PrivacyLedger(PrivacyBudget(3.0, 1e-5), {str(path)!r})\n"
            "for line in sys.stdin:\n"
            "    try:\n"
            "        ledger.reserve([GaussianMechanism(4.0)], purpose='a kernel')\n"
            "        print('granted', ledger.spent, flush=True)\n"
            "    except BudgetExceededError:\n"
            "        print('refused', ledger.spent, flush=True)\n"
        )
        kernels = [
            subprocess.Popen(
                [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        answers = []
        for turn in range(16):
            kernel = kernels[turn % 2]
            kernel.stdin.write("\n")
            kernel.stdin.flush()
            answers.append(kernel.stdout.readline().split())
        for kernel in kernels:
            kernel.communicate(timeout=60)
        words = [word for word, _ in answers]
        granted = words.count("granted")
        alone = PrivacyLedger(BUDGET)
        expected = 0
        with contextlib.suppress(BudgetExceededError):
            while True:
                alone.reserve([GaussianMechanism(4.0)], purpose="the same in one kernel")
                expected += 1
        assert granted == expected > 2
        assert words == ["granted"] * granted + ["refused"] * (16 - granted)
        assert float(answers[-1][1]) == PrivacyLedger(path=path).spent == alone.spent <= 3.0

    def test_threads_with_ledgers_of_their_own_share_the_file(self, path):
        PrivacyLedger(BUDGET, path)
        granted, errors = [], []

        def spend():
            ledger = PrivacyLedger(path=path)
            try:
                for _ in range(4):
                    with contextlib.suppress(BudgetExceededError):
                        granted.append(ledger.reserve([GaussianMechanism(3.5)], purpose="thread").id)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=spend) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert set(granted) == numbers(path)
        assert len(granted) == len(set(granted)) < 24
        assert PrivacyLedger(path=path).spent <= 3.0

    @pytest.mark.parametrize("equal", [True, False])
    def test_processes_that_make_the_ledger_at_the_same_moment_agree_on_one(self, tmp_path, equal):
        for number in range(5):
            path = tmp_path / f"{number}.db"
            ready, go = os.pipe()

            def make(cap, path=path, ready=ready, go=go):
                os.close(go)
                os.read(ready, 1)  # ends when all may start
                try:
                    PrivacyLedger(cap, path).reserve([COUNTS], purpose="first")
                except SpecificationError:
                    return 1
                return 0

            caps = [PrivacyBudget(3.0 if equal else 3.0 + n % 2, 1e-5) for n in range(6)]
            children = [forked(lambda cap=cap: make(cap)) for cap in caps]
            os.close(ready)
            os.close(go)
            refused = [status_of(child) for child in children]
            ledger = PrivacyLedger(path=path)
            assert refused == [int(cap != ledger.cap) for cap in caps]
            assert len(numbers(path)) == refused.count(0)
            assert [name.name for name in tmp_path.glob(f"{number}.db*")] == [path.name]

    def test_a_forked_process_shares_a_file_but_not_a_reservation(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        reservation = ledger.reserve([TRAINING], purpose="parent")

        def child():
            with contextlib.suppress(ReservationError):
                reservation.use(TRAINING)
                return 1
            ledger.reserve([COUNTS], purpose="child")
            resumed = ledger.resume(reservation.id)
            for _ in range(70):
                resumed.use(TRAINING)
            with contextlib.suppress(ReservationError):
                resumed.use(TRAINING)
                return 2
            return 0

        assert in_another_process(child) == 0
        assert len(ledger.history()) == 2
        for _ in range(10):
            reservation.use(TRAINING)
        with pytest.raises(ReservationError, match="were used"):
            reservation.use(TRAINING)

    def test_forking_while_another_thread_writes_harms_neither(self, path, monkeypatch):
        """A fork in the middle of a write would copy SQLite's locks, and its half-written transaction."""
        monkeypatch.setattr(_store, "_PATIENCE", 20.0)
        ledger = PrivacyLedger(WIDE, path)
        reservation = ledger.reserve([SampledGaussianMechanism(50.0, 0.01, 100_000)], purpose="training")
        acknowledged, errors, stop = [], [], threading.Event()

        def write():
            try:
                while not stop.wait(0.002):
                    acknowledged.append(ledger.reserve([COUNTS], purpose="thread").id)
                    for _ in range(300):
                        reservation.use(reservation.mechanisms[0])
            except BaseException as error:
                errors.append(error)

        def child():
            before = reservation.used(reservation.mechanisms[0])
            ledger.reserve([COUNTS], purpose="child")
            ledger._store._connection.close()  # as the end of a process does
            for connection in ledger._store._carried_over:
                connection.close()
            return 0 if before else 1

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        try:
            statuses = [in_another_process(child) for _ in range(20)]
        finally:
            stop.set()
            thread.join()
        assert not errors
        assert statuses == [0] * 20
        assert len(acknowledged) > 1
        assert set(acknowledged) <= numbers(path)
        assert len(numbers(path)) == len(acknowledged) + 20 + 1
        assert PrivacyLedger(path=path).head == ledger.head

    def test_a_killed_process_leaves_its_reservation_spent_and_resumable(self, path):
        code = (
            "import os, signal, sys\n"
            "from recsys_budget.privacy import PrivacyBudget, PrivacyLedger, SampledGaussianMechanism\n"
            "training = SampledGaussianMechanism(1.4, 0.05, 200)\n"
            "ledger = PrivacyLedger(PrivacyBudget(3.0, 1e-5), sys.argv[1])\n"
            "reservation = ledger.reserve([training], purpose='killed')\n"
            "for _ in range(60):\n"
            "    reservation.use(training)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL
        ledger = PrivacyLedger(path=path)
        whole, number = ledger.spent, int(ledger.history()["record"].iloc[0])
        training = SampledGaussianMechanism(1.4, 0.05, 200)
        resumed = ledger.resume(number)
        assert 60 <= resumed.used(training) <= 60 + 25  # at most a chunk too many
        resumed.commit()
        assert ledger.spent < whole
        assert ledger.spent >= min(filter_epsilon([SampledGaussianMechanism(1.4, 0.05, 60)], BUDGET), whole)

    def test_waiting_for_somebody_who_does_not_let_go_ends_with_a_typed_error(self, path, impatient):
        ledger = PrivacyLedger(BUDGET, path)
        for kind in ("IMMEDIATE", "EXCLUSIVE"):
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute(f"BEGIN {kind}")
                with pytest.raises(LedgerUnavailableError, match="held by another process"):
                    ledger.reserve([COUNTS], purpose="waits")
                if kind == "EXCLUSIVE":
                    with pytest.raises(LedgerUnavailableError, match="held by another process"):
                        PrivacyLedger(path=path)
                else:
                    assert PrivacyLedger(path=path).spent == 0.0
        assert numbers(path) == set()
        # A reader that never ends keeps a writer from finishing, too.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM head").fetchall()
            with pytest.raises(LedgerUnavailableError, match="held by another process"):
                ledger.reserve([COUNTS], purpose="waits")
        assert ledger.reserve([COUNTS], purpose="at last").id in numbers(path)
        assert len(numbers(path)) == 1

    def test_connections_end_with_their_ledger(self, path):
        def descriptors():
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        PrivacyLedger(BUDGET, path)
        before = descriptors()
        for _ in range(5):
            PrivacyLedger(path=path).fits([COUNTS])
            with pytest.raises(SpecificationError):
                PrivacyLedger(PrivacyBudget(1.0, 1e-5), path)
        assert descriptors() == before


class TestFullDisk:
    def test_acknowledged_equals_recorded_at_every_size(self, path):
        ledger = PrivacyLedger(WIDE, path)
        reservation = ledger.reserve([SampledGaussianMechanism(90.0, 0.01, 900)], purpose="training")
        (training,) = reservation.mechanisms
        acknowledged, released, refused = {reservation.id}, 0, 0
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in range(1_000, 60_000, 700):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                for _ in range(2):
                    acknowledged.add(ledger.reserve([COUNTS], purpose="p" * 600).id)
                    reservation.use(training)
                    released += 1
            except LedgerUnavailableError:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert numbers(path) == acknowledged
        assert refused > 20
        assert len(acknowledged) > 20
        fresh = PrivacyLedger(path=path)
        assert fresh.spent == ledger.spent
        assert fresh._entry(reservation.id).claimed[0] >= released
        # There is room again.
        ledger.reserve([COUNTS], purpose="goes on")
        assert fresh.head == ledger.head

    @pytest.mark.parametrize("limit", [0, 100, 3_000, 9_000])
    def test_a_ledger_that_cannot_be_made_leaves_nothing_behind(self, path, limit):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(LedgerUnavailableError, match="can be made"):
                PrivacyLedger(BUDGET, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert list(path.parent.iterdir()) == []
        PrivacyLedger(BUDGET, path)

    def test_a_key_that_cannot_be_made_leaves_nothing_behind(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(LedgerUnavailableError, match="key"):
                ledger.register(["a"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert [name.name for name in path.parent.iterdir()] == [path.name]
        ledger.register(["a"])

    def test_a_small_file_system_that_runs_full(self, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=96k", "none", disk], capture_output=True
        ).returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            ledger = PrivacyLedger(WIDE, disk / "b.db")
            acknowledged = set()
            for filler in (60, 50, 40, 30, 20):
                (disk / "filler").write_bytes(b"x" * 1024 * filler)

                def fill():
                    for _ in range(200):
                        acknowledged.add(ledger.reserve([COUNTS], purpose="p" * 900).id)

                with pytest.raises(LedgerUnavailableError, match="disk"):
                    fill()
                assert numbers(disk / "b.db") == acknowledged
                (disk / "filler").unlink()
                acknowledged.add(ledger.reserve([COUNTS], purpose="there is room again").id)
            assert PrivacyLedger(path=disk / "b.db").head == ledger.head
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


class TestReadOnly:
    @pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o555), (0o666, 0o555), (0o444, 0o777)])
    def test_reading_is_right_and_reserving_is_refused(self, open_folder, file_mode, folder_mode):
        path = open_folder / "budget.db"
        ledger = PrivacyLedger(BUDGET, path)
        ledger.reserve([COUNTS], purpose="before")
        spent, head = ledger.spent, ledger.head
        path.chmod(file_mode)
        open_folder.chmod(folder_mode)
        with as_nobody():
            reader = PrivacyLedger(path=path)
            assert reader.spent == spent
            assert reader.head == head
            assert len(reader.history()) == 1
            reader.verify(head)
            for write in (
                lambda: reader.reserve([COUNTS], purpose="no"),
                lambda: reader.set_cap(PrivacyBudget(9.0, 1e-5), reason="no"),
                lambda: reader.resume(head.seq).commit(),
            ):
                with pytest.raises(LedgerUnavailableError, match=r"writ|opened"):
                    write()
        assert ledger.head == head
        ledger.reserve([COUNTS], purpose="its owner may")

    def test_a_folder_where_nothing_can_be_made(self, open_folder):
        open_folder.chmod(0o555)
        with as_nobody(), pytest.raises(LedgerUnavailableError, match="can be made"):
            PrivacyLedger(BUDGET, open_folder / "budget.db")

    def test_a_folder_that_cannot_be_entered(self, open_folder):
        PrivacyLedger(BUDGET, open_folder / "budget.db")
        open_folder.chmod(0o000)
        with as_nobody(), pytest.raises(LedgerUnavailableError, match="cannot be reached"):
            PrivacyLedger(BUDGET, open_folder / "budget.db")

    def test_a_file_that_cannot_be_read(self, open_folder):
        PrivacyLedger(BUDGET, open_folder / "budget.db")
        (open_folder / "budget.db").chmod(0o000)
        with as_nobody(), pytest.raises(LedgerUnavailableError):
            PrivacyLedger(BUDGET, open_folder / "budget.db")

    def test_a_crash_is_repaired_by_who_may_write_and_never_read_over_by_who_may_not(self, open_folder):
        path = open_folder / "budget.db"
        ledger = PrivacyLedger(BUDGET, path)
        ledger.reserve([COUNTS], purpose="before")
        spent = ledger.spent

        def crash():
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("PRAGMA cache_size=1")
            connection.execute("BEGIN IMMEDIATE")
            for number in range(100, 300):  # more than the cache holds: pages reach the file before the end
                connection.execute(
                    "INSERT INTO record VALUES (?, 'users', 'reserve', ?, NULL, x'00')", (number, "x" * 2000)
                )
            os.kill(os.getpid(), signal.SIGKILL)

        small = path.stat().st_size
        assert in_another_process(crash) == -signal.SIGKILL
        assert path.stat().st_size > small
        assert path.with_name("budget.db-journal").stat().st_size > 0
        path.chmod(0o666)
        open_folder.chmod(0o555)
        with as_nobody(), pytest.raises(LedgerUnavailableError):
            PrivacyLedger(path=path)
        open_folder.chmod(0o755)
        assert PrivacyLedger(path=path).spent == spent == ledger.spent
        assert not path.with_name("budget.db-journal").exists()


class TestOldCopies:
    def test_put_back_while_closed_is_found_by_a_head_kept_elsewhere(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        ledger.reserve([COUNTS], purpose="1")
        old, old_head = path.read_bytes(), ledger.head
        ledger.reserve([COUNTS], purpose="2")
        head = ledger.head
        del ledger
        path.write_bytes(old)
        again = PrivacyLedger(path=path)
        again.verify(old_head)
        with pytest.raises(LedgerCorruptError, match="older copy"):
            again.verify(head)
        # Nor when it has been written to since.
        again.reserve([COUNTS], purpose="2 again")
        assert again.head.seq == head.seq
        again.verify(old_head)
        with pytest.raises(LedgerCorruptError, match="older copy"):
            again.verify(head)

    @pytest.mark.parametrize("by", ["write", "rename"])
    def test_put_back_while_open_is_found_at_once(self, path, by):
        ledger = PrivacyLedger(BUDGET, path)
        ledger.reserve([COUNTS], purpose="1")
        old = path.read_bytes()
        reservation = ledger.reserve([TRAINING], purpose="2")
        if by == "write":
            path.write_bytes(old)
        else:
            (path.parent / "old").write_bytes(old)
            (path.parent / "old").rename(path)
        for attempt in (
            lambda: ledger.spent,
            lambda: ledger.reserve([COUNTS], purpose="3"),
            lambda: ledger.fits([COUNTS]),
            lambda: [reservation.use(TRAINING) for _ in range(11)],
            reservation.commit,
        ):
            with pytest.raises(LedgerCorruptError):
                attempt()
        assert len(numbers(path)) == 1

    def test_put_back_while_open_and_written_to_by_another_process(self, path):
        """The file's own counter then stands where it stood, so that SQLite would trust the pages it kept."""
        ledger = PrivacyLedger(BUDGET, path)
        ledger.reserve([COUNTS], purpose="1")
        old = path.read_bytes()
        ledger.reserve([COUNTS], purpose="2")
        path.write_bytes(old)
        assert not in_another_process(
            lambda: PrivacyLedger(path=path).reserve([GaussianMechanism(5.0)], purpose="by another") is None
        )
        with pytest.raises(LedgerCorruptError):
            ledger.reserve([COUNTS], purpose="3")
        assert "by another" in PrivacyLedger(path=path).history()["purpose"].tolist()

    @pytest.mark.parametrize("what", ["replaced", "removed"])
    def test_replaced_in_the_middle_of_writing_is_not_acknowledged(self, path, monkeypatch, what):
        ledger = PrivacyLedger(BUDGET, path)
        old = path.read_bytes()
        append = PrivacyLedger._append

        def late(self, *arguments, **facts):
            number = append(self, *arguments, **facts)
            path.unlink()
            if what == "replaced":
                path.write_bytes(old)
            return number

        monkeypatch.setattr(PrivacyLedger, "_append", late)
        with pytest.raises(LedgerError):
            ledger.reserve([COUNTS], purpose="into a file that nobody finds")

    def test_removed_while_open(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        reservation = ledger.reserve([TRAINING], purpose="1")
        path.unlink()
        for attempt in (
            lambda: ledger.spent,
            lambda: ledger.reserve([COUNTS], purpose="2"),
            reservation.commit,
        ):
            with pytest.raises(LedgerUnavailableError, match="cannot be reached"):
                attempt()
        assert not path.exists()

    def test_another_ledger_in_its_place(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        head = ledger.head
        path.unlink()
        fresh = PrivacyLedger(BUDGET, path)
        with pytest.raises(LedgerCorruptError, match="replaced"):
            ledger.fits([COUNTS])
        with pytest.raises(LedgerCorruptError, match="made anew"):
            fresh.verify(head)

    def test_a_journal_without_its_ledger(self, path):
        path.with_name("budget.db-journal").write_bytes(b"x" * 600)
        with pytest.raises(LedgerCorruptError, match="no ledger"):
            PrivacyLedger(BUDGET, path)
        assert not path.exists()


class TestOtherFiles:
    def test_a_newer_format_is_refused(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version={_store.SCHEMA_VERSION + 1}")
        with pytest.raises(LedgerUnavailableError, match="upgrade recsys-budget"):
            PrivacyLedger(path=path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version=0")
        with pytest.raises(LedgerCorruptError, match="format is 0"):
            PrivacyLedger(path=path)
        assert ledger.spent == 0.0

    def test_a_record_of_a_kind_that_only_a_newer_version_knows(self, path):
        ledger, newer = PrivacyLedger(BUDGET, path), PrivacyLedger(BUDGET, path)
        newer._store._apply = lambda record: None
        with newer._store.transaction():
            newer._append("novelty", units=5)
        for attempt in (lambda: ledger.spent, lambda: PrivacyLedger(path=path)):
            with pytest.raises(LedgerCorruptError, match="unknown kind 'novelty'"):
                attempt()

    def test_a_record_that_says_what_cannot_be(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        ledger._store._apply = lambda record: None
        with ledger._store.transaction():
            ledger._append("claim", reservation=77, place=0, claimed=3)
        with pytest.raises(LedgerCorruptError, match="cannot be"):
            PrivacyLedger(path=path)

    def test_a_changed_journal_mode_is_refused(self, path):
        """In write-ahead mode the newest records lie in another file, and a copy of this one lacks them."""
        PrivacyLedger(BUDGET, path).reserve([COUNTS], purpose="1")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with pytest.raises(LedgerCorruptError, match="journal mode"):
            PrivacyLedger(path=path)

    @pytest.mark.parametrize("mode", ["delete", "wal"])
    def test_another_program_s_database_is_refused_and_left_alone(self, path, mode):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("CREATE TABLE mine (x)")
            connection.commit()
        before = path.read_bytes()
        with pytest.raises(LedgerCorruptError, match="not a ledger"):
            PrivacyLedger(BUDGET, path)
        gc.collect()
        assert path.read_bytes() == before
        assert [name.name for name in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize(
        "content", [b"", b"x", b"user,item\n1,2\n" * 900, b"SQLite format 3\0", bytes(8192)]
    )
    def test_files_that_are_no_database_are_refused_and_left_alone(self, path, content):
        path.write_bytes(content)
        with pytest.raises(LedgerCorruptError):
            PrivacyLedger(BUDGET, path)
        assert path.read_bytes() == content

    def test_things_that_are_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for thing in (tmp_path, tmp_path / "fifo", Path("/dev/null"), Path("/")):
            with pytest.raises(LedgerError):
                PrivacyLedger(BUDGET, thing)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE record SET body = replace(body, '\"claimed\":[1]', '\"claimed\":[0]') WHERE seq = 3",
            "UPDATE record SET kind = 'users' WHERE seq = 3",
            "DELETE FROM record WHERE seq = 3",
            "DELETE FROM record WHERE seq = 4",
            "UPDATE record SET population = 'others' WHERE seq = 3",
            "UPDATE head SET seq = 3",
            "DELETE FROM head",
            "INSERT INTO record SELECT seq + 2, population, kind, body, data, hash FROM record WHERE seq = 3",
            "DROP TABLE head",
            "CREATE TABLE more (x)",
            "DROP TRIGGER no_delete",
            "CREATE TRIGGER quiet BEFORE INSERT ON record BEGIN SELECT RAISE(IGNORE); END",
        ],
    )
    def test_edits_are_found(self, path, change):
        ledger = PrivacyLedger(BUDGET, path)
        for _ in range(2):
            ledger.reserve([COUNTS], purpose="counts")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                connection.execute("DELETE FROM record WHERE seq = 3")
            for trigger in ("no_update", "no_delete") if "record" in change else ():
                sql = connection.execute(
                    "SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)
                ).fetchone()
                connection.execute(f"DROP TRIGGER {trigger}")
                connection.execute("CREATE TABLE IF NOT EXISTS kept (sql)")
                connection.execute("INSERT INTO kept VALUES (?)", sql)
            connection.execute(change)
            if "record" in change:
                for (sql,) in connection.execute("SELECT sql FROM kept").fetchall():
                    connection.execute(sql)
                connection.execute("DROP TABLE kept")
            connection.commit()
        with pytest.raises(LedgerCorruptError):
            PrivacyLedger(path=path)


class TestPaths:
    @pytest.mark.parametrize("name", ["größer 预算 🎬.db", "50% #1 ?mode=ro&x=y.db", " ", "a'b\"c;--.db"])
    def test_any_name_will_do(self, tmp_path, name):
        path = tmp_path / name
        PrivacyLedger(BUDGET, path).reserve([COUNTS], purpose="1")
        assert len(PrivacyLedger(path=str(path)).history()) == 1
        assert [found.name for found in tmp_path.iterdir()] == [name]

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(LedgerUnavailableError, match="check that the folder exists"):
            PrivacyLedger(BUDGET, tmp_path / "no" / "budget.db")

    @pytest.mark.parametrize("name", ["a\0b", "n" * 300, "file/budget.db"])
    def test_names_that_no_file_can_have(self, tmp_path, name):
        (tmp_path / "file").touch()
        with pytest.raises(LedgerUnavailableError):
            PrivacyLedger(BUDGET, tmp_path / name)

    def test_a_ledger_stays_the_same_file_wherever_the_process_goes(self, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        PrivacyLedger(WIDE, tmp_path / "elsewhere" / "budget.db")
        monkeypatch.chdir(tmp_path)
        ledger = PrivacyLedger(BUDGET, "budget.db")
        monkeypatch.chdir(tmp_path / "elsewhere")
        ledger.reserve([COUNTS], purpose="1")
        assert not in_another_process(lambda: ledger.reserve([COUNTS], purpose="2") is None)
        assert len(numbers(tmp_path / "budget.db")) == 2
        assert ledger.path == tmp_path / "budget.db"

    def test_a_link_to_a_ledger_is_that_ledger(self, tmp_path):
        (tmp_path / "true").mkdir()
        path, link = tmp_path / "true" / "budget.db", tmp_path / "link.db"
        first = PrivacyLedger(BUDGET, path)
        link.symlink_to(path)
        second = PrivacyLedger(path=link)
        for ledger in (first, second, first, second):
            ledger.reserve([COUNTS], purpose="by turns")
        assert first.head == second.head
        # Pointed elsewhere while open, it is found out.
        other = PrivacyLedger(BUDGET, tmp_path / "other.db")
        link.unlink()
        link.symlink_to(other.path)
        with pytest.raises(LedgerCorruptError, match="replaced"):
            second.fits([COUNTS])

    def test_a_link_to_nothing(self, tmp_path):
        (tmp_path / "link.db").symlink_to(tmp_path / "nothing.db")
        with pytest.raises(LedgerUnavailableError):
            PrivacyLedger(BUDGET, tmp_path / "link.db")

    def test_a_second_name_is_refused(self, path):
        """A crash under one name leaves a journal that is not found under the other."""
        ledger = PrivacyLedger(BUDGET, path)
        other = path.with_name("snapshot.db")
        os.link(path, other)
        for name in (path, other):
            with pytest.raises(LedgerUnavailableError, match="hard link"):
                PrivacyLedger(path=name)
        other.unlink()
        assert PrivacyLedger(path=path).head == ledger.head

    def test_what_a_killed_maker_left_is_cleared_away(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        os.link(path, path.with_name("budget.db.new-0123456789abcdef"))
        path.with_name("budget.db.new-of-somebody-else").write_bytes(b"")
        assert PrivacyLedger(path=path).head == ledger.head
        assert not path.with_name("budget.db.new-0123456789abcdef").exists()
        assert path.with_name("budget.db.new-of-somebody-else").exists()

    def test_a_population_that_cannot_be_written_down(self):
        for name in ("", "\ud800", 5):
            with pytest.raises(SpecificationError, match="give the people a name"):
                PrivacyLedger(BUDGET, population=name)
        assert PrivacyLedger(BUDGET, population="a\0b").reserve([COUNTS], purpose="\ud800 \0").id


def test_nothing_depends_on_the_clock(path, monkeypatch):
    class Clock(datetime):
        moment = datetime(2030, 1, 1, tzinfo=UTC)

        @classmethod
        def now(cls, tz=None):
            return cls.moment

    monkeypatch.setattr(ledger_module, "datetime", Clock)
    ledger = PrivacyLedger(BUDGET, path)
    for year in (2030, 1999, 1970, 2200, 2001):
        Clock.moment = datetime(year, 6, 1, tzinfo=UTC)
        ledger.reserve([COUNTS], purpose=str(year))
    fresh = PrivacyLedger(path=path)
    assert fresh.spent == ledger.spent
    history = fresh.history()
    assert history["purpose"].tolist() == ["2030", "1999", "1970", "2200", "2001"]
    assert history["time"].dt.year.tolist() == [2030, 1999, 1970, 2200, 2001]
    assert history["total"].is_monotonic_increasing


def test_another_key_in_the_meantime_is_found(path):
    first, second = PrivacyLedger(BUDGET, path), PrivacyLedger(BUDGET, path, population="more")
    first.register(["a"])
    with pytest.raises(BudgetError, match="already known"):
        second.register(["a"])
    path.unlink()
    key = path.with_name("budget.db.key")
    key.unlink()
    first, second = PrivacyLedger(BUDGET, path), PrivacyLedger(BUDGET, path, population="more")
    with first._read():
        first._sketcher = first._make_sketcher()  # has read the key, and not written anything
    key.unlink()
    second.register(["a"])
    with pytest.raises(LedgerCorruptError, match="another key"):
        first.register(["a"])


def test_the_guarantee_is_that_of_the_highest_cap():
    ledger = PrivacyLedger(BUDGET)
    ledger.set_cap(PrivacyBudget(6.0, 1e-5), reason="more")
    with contextlib.suppress(BudgetExceededError):
        for _ in range(100):
            ledger.reserve([GaussianMechanism(4.0)], purpose="fill")
    assert ledger.spent > 5.0
    ledger.set_cap(PrivacyBudget(1.0, 1e-5), reason="too much after all")
    assert ledger.guaranteed_epsilon == pytest.approx(6.0)
    assert ledger.guaranteed_epsilon >= ledger.spent > ledger.cap.epsilon
    ledger.set_cap(PrivacyBudget(7.0, 1e-5), reason="and back")
    assert ledger.guaranteed_epsilon == 7.0


def test_no_cap_is_wide_enough_for_a_divergence_that_is_not_finite(monkeypatch):
    ledger = PrivacyLedger(PrivacyBudget(1e12, 1e-5))
    ledger.reserve([COUNTS], purpose="so that it is not alone")
    assert ledger.fits([COUNTS])
    monkeypatch.setattr(_account, "renyi", lambda *_: np.inf)
    assert not ledger.fits([COUNTS])


def test_numbers_of_every_kind_cost_the_same_and_are_written_down(path):
    ledger = PrivacyLedger(BUDGET, path)
    mechanism = GaussianMechanism(np.float32(7.3))
    reservation = ledger.reserve([mechanism], purpose="single precision")
    plain = GaussianMechanism(float(np.float32(7.3)))
    expected = PrivacyLedger(BUDGET)
    expected.reserve([plain], purpose="double precision")
    units = ledger._accounts.populations["users"].units
    assert units == expected._accounts.populations["users"].units
    reservation.use(mechanism)
    assert PrivacyLedger(path=path).resume(reservation.id).mechanisms == (plain,)


def test_a_long_history_is_told_in_linear_time(path):
    """Twenty thousand reservations; with a sum over all of them for each, this would take minutes."""
    ledger = PrivacyLedger(WIDE, path)
    ledger.reserve([COUNTS], purpose="0")
    with ledger._store.transaction():
        body = {
            "time": "2024-01-01T00:00:00+00:00",
            "mechanisms": [{"kind": "GaussianMechanism", "noise_multiplier": 9.0}],
            "purpose": "many",
            "units": 1000,
            "filtered": True,
            "claimed": [1],
        }
        for _ in range(20_000):
            ledger._store.append("users", "reserve", body)
    history = PrivacyLedger(path=path).history()
    assert len(history) == 20_001
    assert history["total"].is_monotonic_increasing
    assert history["total"].iloc[-1] == pytest.approx(ledger.spent)
