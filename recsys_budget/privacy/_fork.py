"""Forks and ledgers: a process never forks in the middle of a ledger's reading or writing."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recsys_budget.privacy.ledger import PrivacyLedger

# A fork copies SQLite's own idea of which locks are held and what is half written. So that nothing is, every
# ledger is kept still while a process forks: fork first takes the locks that reading and writing take.
_LEDGERS: weakref.WeakSet[PrivacyLedger] = weakref.WeakSet()
_FORK = threading.RLock()
_still: list[threading.RLock] = []


def keep_still_while_forking(ledger: PrivacyLedger) -> None:
    """Have every fork of this process wait until the ledger is neither read nor written."""
    with _FORK:
        _LEDGERS.add(ledger)


def _before_fork() -> None:
    _FORK.acquire()
    for ledger in sorted(_LEDGERS, key=id):
        ledger._lock.acquire()
        _still.append(ledger._lock)


def _after_fork() -> None:
    while _still:
        _still.pop().release()
    _FORK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
