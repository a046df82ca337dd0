"""A ledger's file: shared, full, read-only, locked, replaced, foreign, newer. Never a silent under-count.

Kills and random damage: ``test_ledger_crash.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

from recsys_budget.errors import (
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
    _store,
    filter_epsilon,
)
from recsys_budget.privacy import ledger as ledger_module

BUDGET = PrivacyBudget(3.0, 1e-5)
LOOK = GaussianMechanism(3.0)
forking = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def spend(ledger, times=1):
    for _ in range(times):
        ledger.reserve([LOOK], purpose="look").use(LOOK)


def in_a_fork(work):
    """Exit status of a forked child that runs this; 99 where it raises what it should not."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "büdget 1.db"


class TestSharing:
    def test_opened_again_it_has_not_forgotten(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger, 2)
        before, head = ledger.spent, ledger.head
        del ledger
        again = PrivacyLedger(path=path)
        assert again.spent == before > 0
        assert again.cap == BUDGET
        again.verify(head)
        with pytest.raises(SpecificationError, match="set_cap"):
            PrivacyLedger(PrivacyBudget(8.0, 1e-5), path)

    def test_two_ledgers_on_one_file_see_each_other(self, path):
        one, two = PrivacyLedger(BUDGET, path), PrivacyLedger(BUDGET, path)
        granted = 0
        for ledger in [one, two] * 50:
            try:
                spend(ledger)
                granted += 1
            except BudgetExceededError:
                break
        assert one.spent == two.spent
        assert (
            filter_epsilon([LOOK] * granted, BUDGET) <= 3.0 < filter_epsilon([LOOK] * (granted + 1), BUDGET)
        )

    def test_two_real_processes_share_one_budget(self, path):
        PrivacyLedger(BUDGET, path)
        code = (
            "import sys\n"
            "from recsys_budget.errors import BudgetExceededError\n"
            "from recsys_budget.privacy import GaussianMechanism, PrivacyLedger\n"
            "ledger, granted = PrivacyLedger(path=sys.argv[1]), 0\n"
            "try:\n"
            "    while True:\n"
            "        ledger.reserve([GaussianMechanism(9.0)], purpose='kernel')\n"
            "        granted += 1\n"
            "except BudgetExceededError:\n"
            "    print(granted)\n"
        )
        kernels = [
            subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        granted = sum(int(kernel.communicate(timeout=120)[0]) for kernel in kernels)
        looks = [GaussianMechanism(9.0)]
        assert filter_epsilon(looks * granted, BUDGET) <= 3.0 < filter_epsilon(looks * (granted + 1), BUDGET)
        assert len(PrivacyLedger(path=path).history()) == granted

    def test_threads_share_one_budget(self, path):
        ledger, granted = PrivacyLedger(BUDGET, path), []

        def work():
            for _ in range(20):
                try:
                    granted.append(ledger.reserve([LOOK], purpose="thread").id)
                except BudgetExceededError:
                    return

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(granted)) == len(granted)
        assert filter_epsilon([LOOK] * len(granted), BUDGET) <= 3.0
        assert filter_epsilon([LOOK] * (len(granted) + 1), BUDGET) > 3.0

    @forking
    def test_a_fork_opens_the_file_anew_and_cannot_use_the_parents_releases(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        training = SampledGaussianMechanism(5.0, 0.01, 80)
        reservation = ledger.reserve([training], purpose="parent")
        reservation.use(training)

        def child():
            spend(ledger)
            try:
                reservation.use(training)
            except ReservationError:
                pass
            else:
                return 1
            resumed = ledger.resume(reservation.id)
            while resumed.left(training):
                resumed.use(training)
            return 0

        assert in_a_fork(child) == 0
        assert ledger.history()["purpose"].tolist() == ["parent", "look"]
        # What the parent had claimed is still its own; nothing else is left.
        for _ in range(9):
            reservation.use(training)
        with pytest.raises(ReservationError, match="were used"):
            reservation.use(training)

    @forking
    def test_processes_that_make_the_same_ledger_at_once_make_one(self, path):
        ready, go = os.pipe()
        children = []
        for number in range(6):
            child = os.fork()
            if child == 0:
                try:
                    os.close(go)
                    os.read(ready, 1)
                    ledger = PrivacyLedger(BUDGET, path)
                    ledger.reserve([GaussianMechanism(20.0 + number)], purpose=f"child {number}")
                    os._exit(0)
                except BaseException as error:
                    os.write(2, f"{type(error).__name__}: {error}\n".encode())
                    os._exit(99)
            children.append(child)
        os.close(go)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
        os.close(ready)
        assert len(PrivacyLedger(path=path).history()) == 6
        assert sorted(p.name for p in path.parent.iterdir()) == [path.name]

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


class TestUnavailable:
    @forking
    @pytest.mark.parametrize("room", [0, 512, 2_048, 4_096, 8_192])
    def test_a_full_disk_refuses_and_what_was_granted_is_recorded(self, path, room):
        PrivacyLedger(BUDGET, path)
        size = path.stat().st_size

        def child():
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
            granted = 0
            try:
                ledger = PrivacyLedger(path=path)
                while granted < 90:
                    ledger.reserve([GaussianMechanism(100.0)], purpose="x" * 200)
                    granted += 1
            except LedgerUnavailableError:
                return granted
            return 98

        granted = in_a_fork(child)
        assert granted < 90
        ledger = PrivacyLedger(path=path)
        assert len(ledger.history()) == granted
        ledger.reserve([GaussianMechanism(100.0)], purpose="there is room again")

    @forking
    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_what_cannot_be_written_can_be_read(self, path, what):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        spent = ledger.spent
        for folder in path.parents[:3]:
            folder.chmod(0o755)
        if what == "file":
            path.chmod(0o444)
            path.parent.chmod(0o777)
        else:
            path.chmod(0o666)
            path.parent.chmod(0o555)

        def child():
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            other = PrivacyLedger(path=path)
            if other.spent != spent or len(other.history()) != 1:
                return 1
            try:
                other.reserve([LOOK], purpose="must fail")
            except LedgerUnavailableError:
                return 0
            return 2

        try:
            assert in_a_fork(child) == 0
        finally:
            path.parent.chmod(0o755)
        assert len(PrivacyLedger(path=path).history()) == 1

    def test_a_missing_folder_and_a_folder_in_place_of_a_file(self, tmp_path):
        with pytest.raises(LedgerUnavailableError, match="folder exists"):
            PrivacyLedger(BUDGET, tmp_path / "nowhere" / "b.db")
        with pytest.raises(LedgerError):
            PrivacyLedger(BUDGET, tmp_path)
        with pytest.raises(SpecificationError, match="no ledger"):
            PrivacyLedger(path=tmp_path / "b.db")

    def test_a_lock_that_is_not_let_go_is_an_error(self, path, monkeypatch):
        monkeypatch.setattr(_store, "_PATIENCE", 0.05)
        ledger = PrivacyLedger(BUDGET, path)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailableError, match="held by another process"):
            spend(ledger)
        holder.execute("ROLLBACK")
        holder.close()
        spend(ledger)
        assert len(ledger.history()) == 1

    def test_a_newer_format_is_not_read(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        with sqlite3.connect(path) as raw:
            raw.execute(f"PRAGMA user_version={_store.SCHEMA_VERSION + 1}")
        raw.close()
        with pytest.raises(LedgerError, match=r"upgrade|format"):
            PrivacyLedger(path=path)

    def test_a_clock_that_goes_backwards_changes_nothing(self, path, monkeypatch):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        one = ledger.spent

        class Yesterday(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(1999, 1, 1, tzinfo=UTC)

        monkeypatch.setattr(ledger_module, "datetime", Yesterday)
        spend(ledger)
        assert ledger.spent > one
        history = PrivacyLedger(path=path).history()
        assert history["record"].is_monotonic_increasing
        assert not history["time"].is_monotonic_increasing
        assert history["total"].is_monotonic_increasing


class TestReplaced:
    def test_an_older_copy_put_back_is_noticed_by_a_head(self, path, tmp_path):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        shutil.copy(path, tmp_path / "old.db")
        spend(ledger)
        head = ledger.head
        del ledger
        shutil.copy(tmp_path / "old.db", path)
        with pytest.raises(LedgerCorruptError, match="older copy"):
            PrivacyLedger(path=path).verify(head)

    @pytest.mark.parametrize("how", ["replace", "copy over"])
    def test_replaced_while_open_nothing_more_is_granted(self, path, tmp_path, how):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        shutil.copy(path, tmp_path / "old.db")
        spend(ledger, 2)
        if how == "replace":
            os.replace(tmp_path / "old.db", path)
        else:
            shutil.copy(tmp_path / "old.db", path)
        with pytest.raises(LedgerCorruptError):
            spend(ledger)

    def test_deleted_while_open_nothing_more_is_granted(self, path):
        ledger = PrivacyLedger(BUDGET, path)
        spend(ledger)
        path.unlink()
        with pytest.raises(LedgerError):
            spend(ledger)
        assert not path.exists()

    def test_an_emptied_or_foreign_file_is_not_a_new_ledger(self, path):
        path.write_bytes(b"")
        with pytest.raises(LedgerCorruptError, match="empty"):
            PrivacyLedger(BUDGET, path)
        path.write_text("these are my notes\n" * 400)
        with pytest.raises(LedgerCorruptError):
            PrivacyLedger(BUDGET, path)
        path.unlink()
        raw = sqlite3.connect(path)
        raw.execute("CREATE TABLE record (seq INTEGER PRIMARY KEY)")
        raw.commit()
        raw.close()
        with pytest.raises(LedgerCorruptError, match="not a ledger"):
            PrivacyLedger(BUDGET, path)

    def test_a_journal_without_its_ledger_is_refused(self, path):
        path.with_name(path.name + "-journal").write_bytes(b"left over")
        with pytest.raises(LedgerCorruptError, match="journal"):
            PrivacyLedger(BUDGET, path)

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM record WHERE seq = (SELECT max(seq) FROM record)",
            "UPDATE record SET body = replace(body, '3.0', '9.0') WHERE kind = 'reserve'",
            "INSERT INTO record SELECT seq + 9, population, kind, body, data, hash FROM record WHERE seq = 3",
            "UPDATE head SET seq = seq - 1",
            "DELETE FROM head",
            "CREATE TRIGGER quiet BEFORE INSERT ON record BEGIN SELECT RAISE(IGNORE); END",
        ],
    )
    def test_edits_are_noticed(self, path, statement):
        spend(PrivacyLedger(BUDGET, path), 2)
        raw = sqlite3.connect(path)
        for trigger in ("no_update", "no_delete"):
            (sql,) = raw.execute("SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)).fetchone()
            raw.execute(f"DROP TRIGGER {trigger}")
            if trigger == "no_update":
                kept = [sql]
            else:
                kept.append(sql)
        raw.execute(statement)
        for sql in kept:
            raw.execute(sql)
        raw.commit()
        raw.close()
        with pytest.raises(LedgerCorruptError):
            PrivacyLedger(path=path)

    def test_records_cannot_be_changed_or_deleted_by_mistake(self, path):
        spend(PrivacyLedger(BUDGET, path))
        raw = sqlite3.connect(path)
        for statement in ("UPDATE record SET kind = 'cap'", "DELETE FROM record"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                raw.execute(statement)
        raw.close()
