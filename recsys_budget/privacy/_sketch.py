"""Keyed sketches of user ids: whether two populations share users, without writing down who they are.

A user's mark is a keyed hash of the id. A sketch keeps the ``SIZE`` smallest marks, so that two sketches
keep the marks of the same users wherever both reach: up to ``SIZE`` users every shared user is found, and
of n users that two larger populations share, all but a share ``(1 - SIZE / users) ** n`` of the time at
least one is (coordinated sampling: Cohen 1997, doi:10.1006/jcss.1997.1534).

What is written has the same length for every population, padded and enciphered, so that without the key it
tells neither who the users are nor how many.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys_budget.errors import LedgerCorruptError, LedgerUnavailableError
from recsys_budget.privacy._store import is_missing

SIZE = 32_768  # marks; 256 KiB
_PAD = np.uint64(2**64 - 1)
_KEY_BYTES = 32


class Sketcher:
    """Makes and reads sketches under one key.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, and nothing else about them."""
        return hashlib.blake2b(b"fingerprint", key=self._key, digest_size=16).hexdigest()

    def marks(self, users: Iterable[str]) -> tuple[NDArray[np.uint64], str]:
        """The smallest marks, ascending, and a keyed digest of the whole set of users."""
        key = hashlib.blake2b(key=self._key, digest_size=8, person=b"user")
        marks = []
        for user in users:
            one = key.copy()
            one.update(user.encode("utf-8", "surrogatepass"))
            marks.append(one.digest())
        every = np.sort(np.frombuffer(b"".join(marks), dtype=">u8").astype(np.uint64))
        digest = hashlib.blake2b(every.tobytes(), key=self._key, digest_size=16, person=b"set").hexdigest()
        return every[:SIZE], digest

    def encipher(self, marks: NDArray[np.uint64]) -> bytes:
        """What may be written down: the same length whatever the marks."""
        padded = np.full(SIZE, _PAD)
        padded[: len(marks)] = marks
        nonce = secrets.token_bytes(16)
        return nonce + _xor(padded.tobytes(), self._stream(nonce))

    def decipher(self, written: bytes) -> NDArray[np.uint64]:
        """The marks that were enciphered."""
        nonce, body = written[:16], written[16:]
        marks = np.frombuffer(_xor(body, self._stream(nonce)), np.uint64)
        return np.asarray(marks[marks != _PAD])

    def _stream(self, nonce: bytes) -> bytes:
        # SHAKE256 with the key in front is a pseudo-random function; the nonce is never used twice.
        return hashlib.shake_256(self._key + nonce).digest(8 * SIZE)


def read_key(path: Path | None, ledger: str, *, expected: bool) -> bytes:
    """The key beside a ledger file, made when there is none yet; a fresh one in memory.

    The key file also names the ledger, so that a ledger that is lost is not mistaken for a new one.

    Args:
        path: Of the ledger.
        ledger: Identity of the ledger.
        expected: Whether the ledger holds sketches, so that a key must exist.

    Raises:
        LedgerCorruptError: The key file is damaged or belongs to another ledger.
        LedgerUnavailableError: It cannot be read or written.
    """
    if path is None:
        return secrets.token_bytes(_KEY_BYTES)
    name = key_path(path)
    fresh = secrets.token_bytes(_KEY_BYTES)
    if expected and is_missing(name):
        raise LedgerCorruptError(
            f"the key {name} is missing, so users cannot be compared with those registered; put the key back"
        )
    temporary = name.with_name(f"{name.name}.new-{secrets.token_hex(8)}")
    try:
        if is_missing(name):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{ledger} {fresh.hex()}\n")
                file.flush()
                os.fsync(file.fileno())
            # Where another process made one at the same moment, its key counts.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, name)
        words = name.read_text(encoding="ascii").split()
    except UnicodeDecodeError:
        words = []
    except OSError as error:
        raise LedgerUnavailableError(
            f"the key {name} cannot be read or made: {error}; make file and folder accessible"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    if len(words) != 2 or words[0] != ledger or len(words[1]) != 2 * _KEY_BYTES:
        raise LedgerCorruptError(
            f"{name} is not the key of this ledger, so users cannot be compared; put the right key back"
        )
    try:
        return bytes.fromhex(words[1])
    except ValueError:
        raise LedgerCorruptError(f"the key {name} is damaged; put the right one back") from None


def key_path(path: Path) -> Path:
    """Where the key of a ledger file lies."""
    return path.with_name(f"{path.name}.key")


def _xor(left: bytes, right: bytes) -> bytes:
    return (np.frombuffer(left, np.uint8) ^ np.frombuffer(right, np.uint8)).tobytes()
