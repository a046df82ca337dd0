"""An append-only, hash-chained list of records, in one SQLite file or in memory.

The file is the only truth: whoever writes locks it first, reads what others have added, checks that it
continues the chain, and only then decides. DELETE journal and ``synchronous=EXTRA``: a record that was
acknowledged is on the disk, its folder entry included. A write-ahead log would be faster, but a copy of the
file alone would then lack records that were acknowledged.

The chain finds edits. The head, kept in another page and written in the same transaction, finds rows lost
from the end. Neither finds an older copy put back whole: only a head kept elsewhere does (see
:meth:`Store.verify`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recsys_budget.errors import LedgerCorruptError, LedgerUnavailableError, ReservationError

SCHEMA_VERSION = 1
_APPLICATION = 0x52425047  # "RBPG"
_PATIENCE = 60.0  # seconds to wait for other processes' locks
_PAUSE = 0.001  # seconds between two attempts
_SCHEMA = {
    "record": "CREATE TABLE record (seq INTEGER PRIMARY KEY, population TEXT NOT NULL, kind TEXT NOT NULL, "
    "body TEXT NOT NULL, data BLOB, hash BLOB NOT NULL)",
    "head": "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, "
    "hash BLOB NOT NULL)",
    "no_update": "CREATE TRIGGER no_update BEFORE UPDATE ON record BEGIN "
    "SELECT RAISE(ABORT, 'records are never changed'); END",
    "no_delete": "CREATE TRIGGER no_delete BEFORE DELETE ON record BEGIN "
    "SELECT RAISE(ABORT, 'records are never deleted'); END",
}


class Record(NamedTuple):
    """One line of the record.

    Attributes:
        seq: 1, 2, 3, ... without holes.
        population: Whose data it is about; empty for the file itself.
        kind: What happened.
        body: The facts.
        data: Bytes that belong to it.
        hash: SHA-256 over the hash before and all of the above.
    """

    seq: int
    population: str
    kind: str
    body: Mapping[str, Any]
    data: bytes
    hash: bytes


class Store:
    """The records of one file, as far as they were read and checked.

    Every record, old or new, is handed to ``apply`` exactly once and in order, and never before it is on
    the disk. Not safe for several threads at once: the caller holds a lock.

    Args:
        path: The file; None keeps the records in memory.
        apply: Called with each record.

    Raises:
        LedgerCorruptError: The file is damaged, edited, emptied or another program's.
        LedgerUnavailableError: It cannot be read or written, or a newer version of this package wrote it.
    """

    def __init__(self, path: Path | None, apply: Callable[[Record], None]) -> None:
        self._path, self._apply = path, apply
        # Number and hash in one value: an interruption must not come between them.
        self._last: tuple[int, bytes] = 0, b""
        self._pending: list[Record] = []
        self._process = os.getpid()
        # A connection carried over a fork is never used again. No transaction was open in it, since ledgers
        # are kept still while a process forks, so that closing it at the end touches nothing of the parent's.
        self._carried_over: list[sqlite3.Connection] = []
        if path is None:
            self._connection = _connect(":memory:")
            _create(self._connection)
        else:
            if is_missing(path):
                _create_file(path)
            self._open()
        self.refresh()

    @property
    def path(self) -> Path | None:
        """The file, or None."""
        return self._path

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash (hexadecimal) of the last record read."""
        seq, digest = self._last
        return seq, digest.hex()

    def refresh(self) -> None:
        """Read what others have added.

        Raises:
            LedgerError: As for the constructor.
        """
        with self._translated():
            self._make_ready()
            try:
                _execute(self._connection, "BEGIN")
                self._read()
            finally:
                self._roll_back()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock the file against writers, read what others have added, and keep appended records together.

        All records appended inside are on the disk when the block ends, or none of them counts.
        """
        with self._translated():
            self._make_ready()
            self._pending.clear()
            try:
                self._begin()
                self._read()
                yield
                _execute(self._connection, "COMMIT")
                self._check_place()
            except BaseException:
                self._pending.clear()
                self._roll_back()
                raise
        # Only now: what is not on the disk was never said.
        pending, self._pending = self._pending, []
        for record in pending:
            self._accept(record)

    def append(self, population: str, kind: str, body: Mapping[str, Any], data: bytes = b"") -> int:
        """Add a record inside :meth:`transaction`; its number."""
        if not self._connection.in_transaction:
            raise LedgerUnavailableError(
                f"the ledger {self._path} was used again, by a signal handler say, in the middle of writing; "
                "try again. Nothing was granted"
            )
        last = self._pending[-1] if self._pending else None
        seq, before = (last.seq, last.hash) if last else self._last
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = _digest(before, seq + 1, population.encode(), kind.encode(), text.encode(), data)
        _execute(
            self._connection,
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)",
            (seq + 1, population, kind, text, data, digest),
        )
        changed = _execute(
            self._connection,
            "UPDATE head SET seq = ?, hash = ? WHERE one = 1 AND seq = ?",
            (seq + 1, digest, seq),
        )
        if changed.rowcount != 1:
            raise self._corrupt("its head is not where its last record is")
        self._pending.append(Record(seq + 1, population, kind, json.loads(text), data, digest))
        return seq + 1

    def verify(self, seq: int, digest: str) -> None:
        """Check that the record with this number has this hash.

        Raises:
            LedgerCorruptError: It has not: an older copy or another file was put in this one's place.
        """
        with self._translated():
            self._make_ready()
            rows = _execute(self._connection, "SELECT hex(hash) FROM record WHERE seq = ?", (seq,)).fetchall()
        if rows != [(digest.upper().encode(),)]:
            raise self._corrupt(
                f"it does not hold record {seq} that was written to it: an older copy or another file was "
                "put in its place, so spending is missing. Put the newest copy back"
            )

    def _begin(self) -> None:
        _execute(self._connection, "BEGIN IMMEDIATE")

    def _roll_back(self) -> None:
        """End a transaction that was not committed, also one that an interruption left behind."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _open(self) -> None:
        assert self._path is not None
        with self._translated():
            status = os.stat(self._path)
            if status.st_size == 0:
                raise self._corrupt("it is empty")
            if status.st_nlink > 1 and _drop_leftovers(self._path):
                # A journal is found by the file's name: under another one, a crash would not be repaired,
                # or be repaired later, over what was written since.
                raise LedgerUnavailableError(
                    f"the ledger {self._path} has another name as well (a hard link); remove that, and take "
                    "a copy where one is wanted. Nothing was spent"
                )
            self._file = (status.st_dev, status.st_ino)
            self._connection = _connect(f"{self._path.absolute().as_uri()}?mode=rw")
            # There is no close(): connections end with the store, and those of a failed opening too.
            weakref.finalize(self, self._connection.close)
            if self._one("PRAGMA application_id") != _APPLICATION:
                raise self._corrupt("it is not a ledger")
            version = self._one("PRAGMA user_version")
            if version > SCHEMA_VERSION:
                raise LedgerUnavailableError(
                    f"the ledger {self._path} is in format {version} and this version reads up to "
                    f"{SCHEMA_VERSION}; upgrade recsys-budget. Nothing was spent"
                )
            if version != SCHEMA_VERSION:
                raise self._corrupt(f"it says that its format is {version}")
            if self._one("PRAGMA journal_mode") != b"delete":
                raise self._corrupt("its journal mode was changed, so records may lie in another file")
            rows = _execute(self._connection, "SELECT name, sql FROM sqlite_master").fetchall()
            if dict(rows) != {name.encode(): sql.encode() for name, sql in _SCHEMA.items()}:
                raise self._corrupt("its tables are not a ledger's")
            if self._one("PRAGMA integrity_check") != b"ok":
                raise self._corrupt("SQLite finds it damaged")

    def _make_ready(self) -> None:
        self._follow_fork()
        self._roll_back()
        # Pages kept from before are trusted as long as a counter in the file stands where it stood, which it
        # may after a copy was put back and written to.
        _execute(self._connection, "PRAGMA shrink_memory")

    def _one(self, statement: str) -> Any:
        return _execute(self._connection, statement).fetchone()[0]

    def _follow_fork(self) -> None:
        """In a forked process, open the file anew."""
        if self._process == os.getpid():
            return
        if self._path is None:
            raise ReservationError(
                "this ledger lives in the memory of the process that made it; a fork would spend the same "
                "budget again. Give it a path to share it between processes"
            )
        self._carried_over.append(self._connection)
        self._process = os.getpid()
        self._open()

    def _check_place(self) -> None:
        """What is read and written is the file that everybody else finds under this path."""
        if self._path is not None:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) != self._file:
                raise self._corrupt("it was replaced by another file while it was open; open it again")

    def _read(self) -> None:
        self._check_place()
        head = _execute(self._connection, "SELECT seq, hash FROM head").fetchone()
        rows = _execute(
            self._connection,
            "SELECT seq, population, kind, body, data, hash FROM record WHERE seq > ? ORDER BY seq",
            self._last[:1],
        ).fetchall()
        found = []
        last, before = self._last
        for row in rows:
            record = _checked(row, last + 1, before)
            if record is None:
                raise self._corrupt(f"record {last + 1} was changed or is missing")
            found.append(record)
            last, before = record.seq, record.hash
        if head != (last, before):
            raise self._corrupt(f"its last record is {last}, which is not what its head says")
        for record in found:
            self._accept(record)

    def _accept(self, record: Record) -> None:
        try:
            self._apply(record)
        except (LookupError, TypeError, ValueError) as error:
            raise self._corrupt(f"record {record.seq} says what cannot be: {error!r}") from error
        self._last = record.seq, record.hash

    def _corrupt(self, problem: str) -> LedgerCorruptError:
        return LedgerCorruptError(
            f"the ledger {self._path} cannot be trusted: {problem}. Nothing was spent now. Put back the "
            "newest intact copy, and check it against the receipts of your models"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as this package's. What is not known to be harmless means damage."""
        try:
            yield
        except UnicodeDecodeError as error:  # of a name in one of SQLite's own messages
            raise self._corrupt("SQLite finds it damaged") from error
        except sqlite3.Error as error:
            reason = getattr(error, "sqlite_errorname", "")
            for prefix, problem in _UNAVAILABLE.items():
                if reason.startswith(prefix):
                    raise LedgerUnavailableError(
                        f"the ledger {self._path} {problem} ({error}). Nothing was granted"
                    ) from error
            raise self._corrupt(f"SQLite says {error}") from error
        except OSError as error:
            raise LedgerUnavailableError(
                f"the ledger {self._path} cannot be reached: {error}. Nothing was granted"
            ) from error


_UNAVAILABLE = {
    "SQLITE_BUSY": "is held by another process; wait for it and try again",
    "SQLITE_LOCKED": "is held by another process; wait for it and try again",
    "SQLITE_FULL": "could not be written: the disk is full; make room and try again",
    "SQLITE_READONLY": "cannot be written; make file and folder writable",
    "SQLITE_PERM": "cannot be written; make file and folder writable",
    "SQLITE_CANTOPEN": "cannot be opened; check the path and its permissions",
    "SQLITE_IOERR": "could not be read or written; check the disk",
    "SQLITE_NOMEM": "could not be read: memory is short",
    "SQLITE_INTERRUPT": "was interrupted",
}


def _checked(row: tuple[Any, ...], seq: int, before: bytes) -> Record | None:
    """The row as a record, or None where it is not the one that was written as number ``seq``."""
    try:
        stated, *parts, digest = row
        if stated != seq or digest != _digest(before, seq, *parts):
            return None
        population, kind, body, data = parts
        return Record(seq, population.decode(), kind.decode(), json.loads(body), data, digest)
    except (TypeError, ValueError):  # damage can change a column's type
        return None


def _digest(before: bytes, seq: int, *parts: bytes) -> bytes:
    """SHA-256 of the hash before, the number and each part with its length, so that no two splits collide."""
    total = hashlib.sha256(before + seq.to_bytes(8, "big"))
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.digest()


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name,
        uri=name.startswith("file:"),
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
    )
    # Damaged text must reach the check of its hash, not fail while it is decoded.
    connection.text_factory = bytes
    # None of these writes to the file: it may turn out to be another program's.
    for pragma in (
        "synchronous=EXTRA",
        "fullfsync=ON",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "temp_store=MEMORY",
    ):
        _execute(connection, f"PRAGMA {pragma}")
    return connection


def is_missing(path: Path) -> bool:
    """Whether there is no file.

    Raises:
        LedgerUnavailableError: That cannot be told.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        raise LedgerUnavailableError(
            f"{path} cannot be reached: {error}; check the path and its permissions"
        ) from error
    return False


def _drop_leftovers(path: Path) -> bool:
    """Remove the names that :func:`_create_file` left when it was killed; whether other names remain."""
    true_path = Path(os.path.realpath(path))
    for name in true_path.parent.glob(f"{glob.escape(true_path.name)}.new-*"):
        with contextlib.suppress(FileNotFoundError):
            if name.samefile(true_path):
                name.unlink()
    return os.stat(path).st_nlink > 1


def _execute(connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
    """Execute, and while somebody else holds the file try again, until patience ends.

    SQLite's own waiting sleeps for up to 0.1 s at a time. Between two writes of a busy process the file is
    free for far less, so that others could wait for minutes; nor can that be interrupted.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not busy or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.values():
        connection.execute(statement)
    connection.execute("INSERT INTO head VALUES (1, 0, ?)", (b"",))
    connection.execute(f"PRAGMA application_id={_APPLICATION}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _create_file(path: Path) -> None:
    """Make an empty ledger under another name and link it into place.

    The file is never seen half made, so an empty one was truncated; and of several processes that make it
    at the same moment one wins.
    """
    if os.path.exists(f"{path}-journal"):
        raise LedgerCorruptError(
            f"there is a journal {path}-journal but no ledger {path}; put the ledger back. Nothing was spent"
        )
    temporary = path.with_name(f"{path.name}.new-{secrets.token_hex(8)}")
    try:
        with contextlib.closing(_connect(f"{temporary.absolute().as_uri()}?mode=rwc")) as connection:
            _create(connection)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        _sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise LedgerUnavailableError(
            f"no ledger can be made at {path}: {error}; check that the folder exists and can be written"
        ) from error
    finally:
        for leftover in (temporary, Path(f"{temporary}-journal")):
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
